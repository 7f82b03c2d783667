"""Every mechanism on tensors that claim to be on a GPU: ``python -m tests.engines.mixed_devices`` prints a JSON line
for each call.

An :class:`OnCuda` holds its data on the CPU. An operation that a GPU would refuse, of such a tensor with one of the
CPU, fails here too, and so does a copy of indices from the CPU, which waits for the GPU. Only devices are looked at:
kernels are stubs.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.nn.attention.flex_attention import AuxOutput
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hf_longattn import attend, build_mechanism, list_mechanisms, mechanism_info
from hf_longattn.engines import byte_cache
from hf_longattn.engines.cuda import flash_band, flex
from hf_longattn.mechanisms import Mechanism, check_options

from . import flash_operator
from .pretended_cuda import started

CUDA = torch.device("cuda", 0)
LENGTH, BATCH, HEADS, HEAD_DIM = 700, 2, 4, 64
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class OnCuda(Tensor):
    """``x`` for which all code sees ``cuda:0``."""

    x: Tensor

    @staticmethod
    def __new__(cls, x: Tensor) -> OnCuda:
        layout = {"strides": x.stride(), "storage_offset": x.storage_offset()}
        self = Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype, device=CUDA, **layout)
        self.x = x
        return self

    def __repr__(self) -> str:
        return f"OnCuda({self.x})"

    def tolist(self) -> Any:
        return self.x.tolist()

    def __getitem__(self, index: Any) -> Tensor:
        """By lists as well, which PyTorch would turn into tensors of a real GPU."""
        parts = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(
            tuple(OnCuda(torch.as_tensor(part)) if isinstance(part, list) else part for part in parts)
        )

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operator, args, kwargs or {})


class Devices(TorchDispatchMode):
    """New tensors get the device that is asked for."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(operator, args, kwargs or {})


def our_function(operator: Any) -> Callable[..., Any] | None:
    """The function of one of our operators, which PyTorch would call without its Python tensors."""
    found = OPDEFS.get(f"{operator.namespace}::{operator.overloadpacket.__name__}")
    return None if found is None else found._init_fn


def run(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operator on the data, on the device that it would be on."""
    name = operator.overloadpacket.__name__
    if (function := our_function(operator)) is not None:
        with Devices():
            return function(*args, **kwargs)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    device = kwargs.get("device")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    on_cuda = (
        torch.device(device).type == "cuda" if device is not None else any(isinstance(x, OnCuda) for x in tensors)
    )
    if any(isinstance(x, OnCuda) for x in tensors) and name not in ("copy_", "_to_copy"):
        strict = name in ("cat", "stack", *INDEXING)
        if strange := [x for x in tensors if not isinstance(x, OnCuda) and (x.dim() > 0 or strict)]:
            raise RuntimeError(f"{name} of a tensor on cuda:0 and one on the CPU of shape {tuple(strange[0].shape)}")
    out = operator(*tree_map(_data, args), **tree_map(_data, kwargs))
    if not on_cuda or name == "_local_scalar_dense":
        return out
    same = next((x for x in tensors if isinstance(x, OnCuda) and x.x is out), None)
    return tree_map(lambda x: OnCuda(x) if isinstance(x, Tensor) else x, out) if same is None else same


def _data(x: Any) -> Any:
    return x.x if isinstance(x, OnCuda) else x


def fused_flex(
    kind: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_mask: Any,
    score_mod: Any = None,
    return_aux: Any = None,
    **_: Any,
) -> Any:
    """In place of the kernel: whether everything that it reads is on the GPU."""
    sizes, shapes = (*q.shape[:3], k.shape[2]), ((-1, 1, 1, 1), (-1, 1, 1), (-1, 1), (-1,))
    places = [torch.arange(n, device=CUDA).view(shape) for n, shape in zip(sizes, shapes, strict=True)]
    read = {name: x for name, x in vars(block_mask).items() if isinstance(x, Tensor)}
    read["the mask"] = block_mask.mask_mod(*places)
    if score_mod is not None:
        read["the scores"] = score_mod(torch.zeros(sizes, device=CUDA), *places)
    if elsewhere := [name for name, x in read.items() if not isinstance(x, OnCuda)]:
        raise RuntimeError(f"{', '.join(elsewhere)} of a block mask on the CPU")
    return q * 1.0 if return_aux is None else (q * 1.0, AuxOutput(lse=q.sum(-1).float() * 0))


def moved(module: Mechanism) -> Mechanism:
    """The module with its tensors on the GPU."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, torch.nn.Parameter(OnCuda(parameter.detach()), requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            delattr(part, name)
            setattr(part, name, OnCuda(buffer))
    return module.eval()


def calls(name: str, causal: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """What differs between the calls of a mechanism."""
    places = torch.arange(LENGTH)
    padded = places < torch.tensor([[LENGTH], [LENGTH - 150]])
    yield from (
        ("plain", {}),
        ("right padding", {"padding_mask": padded}),
        ("left padding", {"padding_mask": padded.flip(1)}),
    )
    packed = {"documents": (places // 333).expand(BATCH, -1).contiguous()}
    yield from (("documents", packed), ("documents, few queries", packed | {"queries": 40}))
    yield from (("grouped heads", {"kv_heads": 2}), ("one query", {"queries": 1}), ("few queries", {"queries": 40}))
    tokens = (
        {"global_mask": (places % 97 == 3).expand(BATCH, -1).contiguous()}
        if build(name).capabilities.takes_globals
        else {}
    )
    if tokens:
        yield "global tokens", tokens
    half: dict[str, Any] = {"dtype": torch.bfloat16, "kv_heads": 2}
    yield from (
        ("half precision", half | tokens),
        ("half precision, padding", half | tokens | {"padding_mask": padded.flip(1)}),
    )
    yield "half precision, documents", half | packed
    if build(name).capabilities.takes_score_mod:
        yield from ((kind, {"relative": kind}) for kind in ("alibi", "shaw"))


def build(name: str, length: int = LENGTH, head_dim: int = HEAD_DIM, **options: Any) -> Mechanism:
    longest = max(length, check_options(name, options).sample_length())
    return build_mechanism(name, num_heads=HEADS, head_dim=head_dim, max_length=longest, **options)


def attempt(
    name: str,
    causal: bool,
    kv_heads: int = HEADS,
    queries: int | None = None,
    relative: str | None = None,
    dtype: torch.dtype = torch.float32,
    length: int = LENGTH,
    head_dim: int = HEAD_DIM,
    grad: bool = False,
    **arguments: Any,
) -> None:
    """One call; raises what a GPU would."""
    module = moved(build(name, length, head_dim, **({} if relative is None else {"relative": relative})))
    shapes = ((HEADS, queries or length), (kv_heads, length), (kv_heads, length))
    q, k, v = (OnCuda(torch.randn(BATCH, heads, n, head_dim, dtype=dtype)).requires_grad_(grad) for heads, n in shapes)
    if module.capabilities.takes_hidden_states:
        arguments["hidden_states"] = torch.randn(BATCH, length, module.sizes.hidden_size, dtype=dtype)
    arguments = {key: OnCuda(value) if isinstance(value, Tensor) else value for key, value in arguments.items()}
    with torch.set_grad_enabled(grad), Devices():
        out = attend(q, k, v, module, causal=causal, **arguments)
    if not isinstance(out, OnCuda):
        raise RuntimeError("the output is on the CPU")


def pretend() -> None:
    """Make this process, for the rest of its life, one in which new tensors may claim to be on a GPU."""

    def claiming(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``torch.tensor`` and its like, which are no operators."""

        def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            if isinstance(data, Tensor):
                return data.to(device)
            x = make(data, *args, **kwargs)
            return OnCuda(x) if device is not None and torch.device(device).type == "cuda" else x

        return made

    patches = pytest.MonkeyPatch()
    for name, value in {"_lazy_init": None, "current_device": 0, "is_current_stream_capturing": False}.items():
        patches.setattr(torch.cuda, name, lambda value=value: value)
    for function in (torch.tensor, torch.as_tensor):
        patches.setattr(torch, function.__name__, claiming(function))
    patches.setattr(byte_cache, "tensor_bytes", lambda _: 0)  # which takes plain tensors only


def main() -> None:
    """Run the mechanisms named on the command line, or all, in a process of their own."""
    if not started(__spec__.name):
        return

    pretend()
    flex.fused_flex = fused_flex  # type: ignore[assignment]
    flash_band.flash_forward = flash_operator.forward
    for name in sys.argv[1:] or list_mechanisms(grid=False):
        form = mechanism_info(name).causal
        forms = [False, True] if form == "both" else [bool(form)]
        failures: dict[str, str] = {}
        count = 0
        for causal, (what, arguments) in itertools.chain.from_iterable(
            ((c, one) for one in calls(name, c)) for c in forms
        ):
            count += 1
            try:
                attempt(name, causal, **arguments)
            except Exception as error:
                failures[f"{what}, {'causal' if causal else 'both ways'}"] = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps({"mechanism": name, "calls": count, "failures": failures}), flush=True)


if __name__ == "__main__":
    main()
