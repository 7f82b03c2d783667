"""What a later layer of every mechanism asks of a GPU, counted without one: ``python -m tests.engines.device_layers``.

Tensors claim to be on cuda:0 and hold their data on the CPU (:mod:`.mixed_devices`), so that every choice is that of a
GPU. Fused kernels (flex_attention, scaled_dot_product_attention, PyTorch's flash attention) are stubs. Of everything
else that is dispatched, synchronisations and results in float64 are counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput

from hf_longattn import build_mechanism, list_mechanisms, mechanism_info
from hf_longattn.engines.batch import Batch
from hf_longattn.engines.byte_cache import BYTE_CACHE
from hf_longattn.engines.cuda import flash_band, flex
from hf_longattn.engines.dispatch import observe
from hf_longattn.engines.token_grid import Grid
from hf_longattn.functional import prepare, run_batch
from hf_longattn.mechanisms import check_options
from hf_longattn.mechanisms.common.capabilities import reads_grid
from hf_longattn.names import look_up

from . import mixed_devices
from .mixed_devices import OnCuda, moved, tree_leaves
from .pretended_h100 import started

LENGTH, BATCH, HEADS, HEAD_DIM = 4096, 2, 4, 64
DOCUMENTS = 8
"""Packed documents of one length in a row."""
UNEVEN_DOCUMENTS = (448, 128, 1056, 320, 640, 224, 768, 512)
"""Packed documents of different lengths in a row of :data:`LENGTH` tokens."""
SETTINGS = ("plain", "padded", "documents", "uneven documents", "gradients")
NO_KERNEL = {
    "alias",
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "lift_fresh",
    "_unsafe_view",
    "_reshape_alias",
    "view",
    "resize_",
    "set_",
    "is_pinned",
}
SYNCHRONISES = {
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "masked_select",
    "bincount",
    "equal",
    "_linalg_check_errors",
    "tolist",
    "item",
}
"""Operations whose result, or its shape, the host waits for."""


@dataclasses.dataclass
class Counts:
    """What one layer asks for."""

    synchronisations: Counter[str] = dataclasses.field(default_factory=Counter)
    """Times that the host waits, by operation and place in the code."""
    float64: int = 0
    """Operations with a float64 result."""
    paths: Counter[str] = dataclasses.field(default_factory=Counter)


counting: Counts | None = None


def observe_operator(operator: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Add an operation on the pretended GPU to the counts."""
    name = operator.overloadpacket.__name__
    if counting is None or operator.is_view or name in NO_KERNEL:
        return
    operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
    if not any(isinstance(x, OnCuda) for x in (*operands, *results)):
        return
    by_mask = name.startswith("index") and any(
        isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1:2])
    )
    crosses = name in ("_to_copy", "copy_") and len({isinstance(x, OnCuda) for x in (*operands, *results)}) > 1
    if name in SYNCHRONISES or by_mask or crosses:
        counting.synchronisations[f"{name} at {place()}"] += 1
    counting.float64 += any(x.dtype == torch.float64 for x in results)


def place() -> str:
    """The innermost function of the package on the stack."""
    frames = [frame for frame in traceback.extract_stack() if f"{os.sep}hf_longattn{os.sep}" in frame.filename]
    return f"{frames[-1].filename.rsplit(f'hf_longattn{os.sep}', 1)[1]}:{frames[-1].name}" if frames else "?"


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    global counting
    before, counting = counting, None
    try:
        yield
    finally:
        counting = before


def like_output(q: Tensor, v: Tensor) -> Tensor:
    """A tensor of the shape of attention's output that needs gradients where it would."""
    with uncounted():
        return (q.sum(-1, keepdim=True) * 0).expand(*q.shape[:-1], v.shape[-1]).clone()


def fused_flex(kind: Any, q: Tensor, k: Tensor, v: Tensor, *, return_aux: Any = None, **_: Any) -> Any:
    """In place of flex_attention's kernel."""
    out = like_output(q, v)
    if return_aux is None:
        return out
    with uncounted():
        return out, AuxOutput(lse=out.sum(-1).float())


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **_: Any) -> Tensor:
    """In place of PyTorch's."""
    return like_output(q, v)


def flash_attention_forward(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """In place of ``aten._flash_attention_forward``: ``(B, N, H, D)``, or ``(tokens, H, D)`` with the documents'
    offsets."""
    out = like_output(q, v)
    with uncounted():
        shape = (q.shape[1], q.shape[0]) if args[0] is not None else (q.shape[0], q.shape[2], q.shape[1])
        lse = torch.zeros(shape, device=q.device)
        return out, lse, *(torch.zeros((), device=q.device, dtype=torch.int64) for _ in range(2)), q.new_empty(0)


def pretend() -> None:
    """Make this process count: its GPU is pretended, and fused kernels are stubs."""
    mixed_devices.pretend()
    run, flash = mixed_devices.run, look_up("cuda_flash").default

    def counted(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if operator is flash:
            with mixed_devices.Devices():
                return flash_attention_forward(*args, **kwargs)
        out = run(operator, args, kwargs)
        if mixed_devices.our_function(operator) is None:
            observe_operator(operator, args, kwargs, out)
        return out

    def tolist(self: OnCuda) -> Any:
        if counting is not None:
            counting.synchronisations[f"tolist at {place()}"] += 1
        return self.x.tolist()

    mixed_devices.run = counted
    OnCuda.tolist = tolist  # type: ignore[method-assign]
    flex.fused_flex = fused_flex  # type: ignore[assignment]
    flash_band.refused = lambda *_: None
    torch.nn.functional.scaled_dot_product_attention = scaled_dot_product_attention  # type: ignore[assignment]


def call_of(name: str, causal: bool, setting: str) -> tuple[Any, tuple[Tensor, ...], dict[str, Any]]:
    """The mechanism with its default options on the pretended GPU, q, k and v, and the other arguments."""
    module = moved(build_mechanism(name, **sizes_of(name))).train(setting == "gradients")
    generator = torch.Generator().manual_seed(0)
    batch = BATCH if setting == "padded" else 1
    tensors = tuple(
        OnCuda(torch.randn(batch, HEADS, LENGTH, HEAD_DIM, generator=generator).bfloat16()).requires_grad_(
            setting == "gradients"
        )
        for _ in range(3)
    )
    arguments: dict[str, Any] = {"causal": causal}
    places = torch.arange(LENGTH)
    if setting == "padded":
        arguments["padding_mask"] = OnCuda(places < torch.tensor([[LENGTH], [LENGTH * 3 // 4]]))
    sizes = UNEVEN_DOCUMENTS if setting == "uneven documents" else (LENGTH // DOCUMENTS,) * DOCUMENTS
    if "documents" in setting:
        arguments["documents"] = OnCuda(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[None])
    if module.capabilities.takes_hidden_states:
        arguments["hidden_states"] = OnCuda(
            torch.randn(batch, LENGTH, module.sizes.hidden_size, generator=generator).bfloat16()
        )
    if reads_grid(module):
        grids = [grid_of(size) for size in (sizes if "documents" in setting else [LENGTH])]
        arguments["grid"] = grids if len({*grids}) > 1 else grids[0]
    return module, tensors, arguments


def grid_of(cells: int) -> Grid:
    columns = 1 << (cells.bit_length() // 2)
    return Grid((cells // columns, columns))


def sizes_of(name: str) -> dict[str, Any]:
    longest = max(LENGTH, check_options(name, {}).sample_length())
    return {"num_heads": HEADS, "head_dim": HEAD_DIM, "max_length": longest}


def layer_counts(name: str, causal: bool, setting: str) -> Counts:
    """What a layer after the first of a forward pass asks for, after a pass of the same shape that filled the
    process's caches."""
    global counting
    module, (q, k, v), arguments = call_of(name, causal, setting)
    BYTE_CACHE.clear()
    with torch.set_grad_enabled(setting == "gradients"), mixed_devices.Devices():
        prepared, call = prepare(q, k, v, module, **arguments)
        run_batch(prepared, q, k, v, call)
        if call.batch is not None:
            call = call.replace(batch=Batch(call.batch.mask, call.batch.documents))
        run_batch(prepared, q, k, v, call)
        counting = found = Counts()
        choices: list[str] = []
        with observe(lambda _, choice: choices.append(choice.path)):
            run_batch(prepared, q, k, v, call)
        counting = None
    found.paths.update(choices)
    return found


def rows_of(name: str) -> dict[str, Any]:
    """The counts of a mechanism: causal or not, by setting."""
    form = mechanism_info(name).causal
    rows: dict[str, Any] = {}
    for causal in [False, True] if form == "both" else [bool(form)]:
        rows["causal" if causal else "both ways"] = {
            setting: vars(layer_counts(name, causal, setting)) for setting in SETTINGS
        }
    return rows


def main() -> None:
    """Count the mechanisms named on the command line, or all, in a process of their own; a line of JSON for each."""
    if not started(__spec__.name, triton=False):
        return
    pretend()
    for name in sys.argv[1:] or list_mechanisms():
        print(json.dumps({"mechanism": name, **rows_of(name)}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # without PyTorch's threads of a device that is not there, which would abort


if __name__ == "__main__":
    main()
