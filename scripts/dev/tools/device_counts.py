"""What one layer of every mechanism asks of a GPU, counted without one: ``python -m scripts.dev.tools.device_counts``.

Tensors claim to be on cuda:0 and hold their data on the CPU (``tests/engines/mixed_devices.py``), so that every choice is that of a GPU.
Fused kernels (flex_attention, scaled_dot_product_attention, PyTorch's flash attention) are stubs: one operation each, with the work that
they would do. Everything else is counted as it is dispatched: operations that launch a kernel, synchronisations,
float64, bytes. From these a model of an H100 estimates the time at 16,384 tokens; nothing is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput

from hf_longattn import build_mechanism, list_mechanisms, mechanism_info
from hf_longattn.attend import prepare, run_batch
from hf_longattn.engines.common.batch import Batch
from hf_longattn.engines.common.byte_cache import BYTE_CACHE
from hf_longattn.engines.common.grid import Grid
from hf_longattn.engines.common.paths import observe
from hf_longattn.engines.cuda import flash_band, flex
from hf_longattn.mechanisms import check_options
from hf_longattn.private_apis import look_up
from scripts.dev.benchmarks.report import markdown_table
from tests.engines import mixed_devices
from tests.engines.mixed_devices import OnCuda, moved, tree_leaves
from tests.engines.pretended_h100 import started

RESULTS = Path(__file__).parents[1] / "results"
LENGTHS, BATCH, HEADS, HEAD_DIM = (2048, 4096), 2, 4, 64
DOCUMENTS = 8
"""Packed documents of one length in a row."""
UNEVEN_DOCUMENTS = (448, 128, 1056, 320, 640, 224, 768, 512)
"""Packed documents of different lengths in a row of the longer of :data:`LENGTHS`."""
SETTINGS = ("plain", "padded", "documents", "uneven documents", "gradients")
LAYERS = ("first", "later")
"""The first layer of a forward pass, which makes what the others share, and another. Both after a pass of the same shape."""
NO_KERNEL = {
    "alias", "detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "_unsafe_view",
    "_reshape_alias", "view", "resize_", "set_", "is_pinned",
}  # fmt: skip
SYNCHRONISES = {
    "_local_scalar_dense", "nonzero", "is_nonzero", "_unique", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "bincount",
    "equal", "_linalg_check_errors", "tolist", "item",
}  # fmt: skip
"""Operations whose result, or its shape, the host waits for."""
MATMULS = {"mm", "bmm", "addmm", "baddbmm", "matmul"}


@dataclasses.dataclass
class Counts:
    """What one layer asks for."""

    operations: int = 0
    """Launches of kernels, fused ones among them."""
    synchronisations: Counter[str] = dataclasses.field(default_factory=Counter)
    """Times that the host waits, by operation and place in the code."""
    float64: int = 0
    """Operations with a float64 result."""
    bytes: int = 0
    """Read and written, each tensor of an operation once."""
    fused: Counter[str] = dataclasses.field(default_factory=Counter)
    """Launches of fused kernels."""
    seconds: float = 0.0
    """Of the device, by the model."""
    paths: Counter[str] = dataclasses.field(default_factory=Counter)


BYTES_PER_SECOND = 3e12
FLOPS = {torch.bfloat16: 450e12, torch.float16: 450e12, torch.float32: 50e12, torch.float64: 50e12}
"""Of an H100 in practice: bf16 kernels at half of the peak, fp32 and fp64 without TF32."""
LAUNCH, WAIT = 5e-6, 20e-6
"""Seconds of the host for an operation and for a synchronisation."""

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
    by_mask = name.startswith("index") and any(isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1:2]))
    crosses = name in ("_to_copy", "copy_") and len({isinstance(x, OnCuda) for x in (*operands, *results)}) > 1
    if name in SYNCHRONISES or by_mask or crosses:
        counting.synchronisations[f"{name} at {place()}"] += 1
    counting.operations += 1
    counting.float64 += any(x.dtype == torch.float64 for x in results)
    sizes = {id(x): min(x.numel() * x.element_size(), data(x).untyped_storage().nbytes()) for x in (*operands, *results)}
    counting.bytes += sum(sizes.values())
    work = 0.0
    if name in MATMULS:
        left = operands[-2]
        work = 2 * left.numel() * operands[-1].shape[-1] / FLOPS.get(left.dtype, 50e12)
    counting.seconds += max(sum(sizes.values()) / BYTES_PER_SECOND, work)


def data(x: Tensor) -> Tensor:
    return x.x if isinstance(x, OnCuda) else x


def place() -> str:
    """The innermost function of the package on the stack."""
    frames = [frame for frame in traceback.extract_stack() if f"{os.sep}hf_longattn{os.sep}" in frame.filename]
    return f"{frames[-1].filename.rsplit(f'hf_longattn{os.sep}', 1)[1]}:{frames[-1].name}" if frames else "?"


def fused_kernel(name: str, pairs: float, *tensors: Tensor) -> None:
    """Add a fused kernel that reads and writes these tensors, queries first, and compares so many pairs over all heads."""
    if counting is None:
        return
    nbytes = sum(x.numel() * x.element_size() for x in tensors)
    q = tensors[0]
    counting.operations += 1
    counting.fused[name] += 1
    counting.bytes += nbytes
    counting.seconds += max(nbytes / BYTES_PER_SECOND, 4 * pairs * q.shape[-1] / FLOPS.get(q.dtype, 50e12))


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


def fused_flex(
    kind: Any, q: Tensor, k: Tensor, v: Tensor, *, block_mask: Any, score_mod: Any = None, return_aux: Any = None, **_: Any
) -> Any:
    """In place of the kernel: the work is that of the listed blocks."""
    with uncounted():
        lists = [x for x in (block_mask.kv_num_blocks, block_mask.full_kv_num_blocks) if x is not None]
        rows, columns = block_mask.BLOCK_SIZE
        blocks = sum(float(data(x).double().sum()) * q.shape[0] * q.shape[1] / (x.shape[0] * x.shape[1]) for x in lists)
    out = like_output(q, v)
    fused_kernel("flex", blocks * rows * columns, q, k, v, out)
    if return_aux is None:
        return out
    with uncounted():
        return out, AuxOutput(lse=out.sum(-1).float())


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, **_: Any
) -> Tensor:
    """In place of PyTorch's: a fused kernel, or with wide heads or grouped heads and a mask the unfused one."""
    out = like_output(q, v)
    pairs = q.shape[:-1].numel() * k.shape[-2] / (2 if is_causal else 1)
    fused_kernel("sdpa", pairs, q, k, v, out, *([] if attn_mask is None else [attn_mask]))
    return out


def flash_attention_forward(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """In place of ``aten._flash_attention_forward``: ``(B, N, H, D)``, or ``(tokens, H, D)`` with the documents' offsets."""
    queries_from, _, _, longest, _, causal = args[:6]
    left, right = (kwargs.get(f"window_size_{side}") for side in ("left", "right"))
    width = longest if left is None or left < 0 else left + 1
    width += 0 if causal else 0 if right is None or right < 0 or width == longest else right
    out = like_output(q, v)
    tokens = q.shape[:-2].numel()
    fused_kernel("flash", tokens * q.shape[-2] * min(width, longest) / (2 if causal and width >= longest else 1), q, k, v, out)
    with uncounted():
        shape = (q.shape[1], tokens) if queries_from is not None else (q.shape[0], q.shape[2], q.shape[1])
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


def call_of(name: str, length: int, causal: bool, setting: str) -> tuple[Any, tuple[Tensor, ...], dict[str, Any]]:
    """The mechanism with its default options on the pretended GPU, q, k and v, and the other arguments."""
    module = moved(build_mechanism(name, **sizes_of(name, length))).train(setting == "gradients")
    generator = torch.Generator().manual_seed(0)
    batch = BATCH if setting == "padded" else 1
    tensors = tuple(
        OnCuda(torch.randn(batch, HEADS, length, HEAD_DIM, generator=generator).bfloat16()).requires_grad_(setting == "gradients")
        for _ in range(3)
    )
    arguments: dict[str, Any] = {"causal": causal}
    places = torch.arange(length)
    if setting == "padded":
        arguments["padding_mask"] = OnCuda(places < torch.tensor([[length], [length * 3 // 4]]))
    sizes = UNEVEN_DOCUMENTS if setting == "uneven documents" else (length // DOCUMENTS,) * DOCUMENTS
    if "documents" in setting:
        arguments["documents"] = OnCuda(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[None])
    if module.traits.takes_hidden_states:
        arguments["hidden_states"] = OnCuda(torch.randn(batch, length, module.hidden_size, generator=generator).bfloat16())
    if module.reads_grid:
        grids = [grid_of(size) for size in (sizes if "documents" in setting else [length])]
        arguments["grid"] = grids if len({*grids}) > 1 else grids[0]
    return module, tensors, arguments


def grid_of(cells: int) -> Grid:
    columns = 1 << (cells.bit_length() // 2)
    return Grid((cells // columns, columns))


def sizes_of(name: str, length: int) -> dict[str, Any]:
    longest = max(length, check_options(name, {}).sample_length())
    return {"num_heads": HEADS, "head_dim": HEAD_DIM, "max_length": longest}


def layer_counts(name: str, length: int, causal: bool, setting: str) -> dict[str, Counts]:
    """What the first layer of a forward pass asks for and what a later one does, after a pass that filled the process's caches."""
    global counting
    module, (q, k, v), arguments = call_of(name, length, causal, setting)
    BYTE_CACHE.clear()
    found = {}
    with torch.set_grad_enabled(setting == "gradients"), mixed_devices.Devices():
        prepared, call = prepare(q, k, v, module, {}, **arguments)
        run_batch(prepared, q, k, v, call)
        if call.batch is not None:
            call = call.replace(batch=Batch(call.batch.mask, call.batch.documents))
        for layer in LAYERS:
            found[layer] = counting = Counts()
            choices: list[str] = []
            with observe(lambda _, choice, choices=choices: choices.append(choice.path)):  # type: ignore[misc]
                run_batch(prepared, q, k, v, call)
            counting = None
            found[layer].paths.update(choices)
    return found


def at_long(few: float, many: float, lengths: tuple[int, ...] = LENGTHS) -> float:
    """A quantity at :data:`LONG` tokens from those at two ``lengths``: a part that is constant and one that grows with the length, or,
    where that is more, by the power of the length by which it grew."""
    short, long = lengths
    doublings = math.log(LONG / long) / math.log(long / short)
    return max(many, many + (many - few) * (LONG - long) / (long - short), many * (many / max(few, 1e-12)) ** doublings if few else 0.0)


def estimate(counts: dict[int, Counts]) -> float:
    """Milliseconds at :data:`LONG` tokens and :data:`LONG_HEADS` heads, from the counts at two lengths."""
    lengths, (short, long) = tuple(counts), tuple(counts.values())
    device = at_long(short.seconds, long.seconds, lengths) * LONG_HEADS / HEADS
    launches = at_long(short.operations, long.operations, lengths) * LAUNCH
    waits = at_long(short.synchronisations.total(), long.synchronisations.total(), lengths) * WAIT
    return 1e3 * max(device, launches + waits)


def alike(counts: dict[int, Counts], name: str, causal: bool) -> dict[int, Counts]:
    """The counts at two lengths at which the same paths run, since others grow otherwise: at :data:`LENGTHS`, or from their last on."""
    (_, short), (length, long) = counts.items()
    if short.paths == long.paths:
        return counts
    return {length: long, 2 * length: layer_counts(name, 2 * length, causal, "plain")["later"]}


LONG, LONG_HEADS = 16384, 12


def full_attention(causal: bool) -> float:
    """Milliseconds of full flash attention at :data:`LONG` tokens by the same model."""
    return 1e3 * 4 * LONG**2 * HEAD_DIM * LONG_HEADS / FLOPS[torch.bfloat16] / (2 if causal else 1)


def rows_of(name: str) -> dict[str, Any]:
    """The counts of a mechanism: causal or not, by setting and layer."""
    form = mechanism_info(name).causal
    rows: dict[str, Any] = {}
    for causal in [False, True] if form == "both" else [bool(form)]:
        row: dict[str, Any] = {}
        for setting in SETTINGS:
            try:
                lengths = LENGTHS if setting == "plain" else LENGTHS[-1:]
                found = {length: layer_counts(name, length, causal, setting) for length in lengths}
            except Exception as error:
                row[setting] = {"failure": f"{type(error).__name__}: {error}"[:300]}
                continue
            row[setting] = {layer: in_json(counts) for layer, counts in found[LENGTHS[-1]].items()}
            if setting == "plain":
                milliseconds = estimate(alike({length: counts["later"] for length, counts in found.items()}, name, causal))
                row["milliseconds"] = round(milliseconds, 3)
                row["of_full_attention"] = round(milliseconds / full_attention(causal), 3)
        rows["causal" if causal else "both ways"] = row
    return rows


def in_json(counts: Counts) -> dict[str, Any]:
    return {
        "paths": dict(sorted(counts.paths.items())),
        "operations": counts.operations,
        "synchronisations": dict(sorted(counts.synchronisations.items())),
        "float64": counts.float64,
        "megabytes": round(counts.bytes / 1e6, 1),
        "fused": dict(sorted(counts.fused.items())),
    }


INTRODUCTION = """# What one layer asks of a GPU

Counted without a GPU by `python -m scripts.dev.tools.device_counts`, every mechanism at its default options: batch of {batch} where rows
are padded, else 1, {heads} heads of {head_dim}, {length:,} tokens in bf16, {documents} packed documents of one length, or of
{shortest} to {longest:,} tokens where they are uneven, no gradients but where it says so. The first layer of a forward pass makes what the
others share. *Operations* launch a kernel; *synchronisations* make the host wait; *fused* kernels are part of the operations. Where two
numbers are joined by an arrow, the first is stored as it was before a change.

*Model* is an estimate of an H100, not a measurement: {long:,} tokens, {long_heads} heads, forward, as a factor of full flash attention
(both ways {both:.2f} ms, causal {causal:.2f} ms) at 3 TB/s, half of the peak of bf16, 5 µs an operation and 20 µs a synchronisation of
the host, from the counts at half the length and at this one, or where other paths run there, at this one and at its double. A fused
kernel reads and writes each of its tensors once. flash-linear-attention is not installed: with it linear attention, the delta rule and
nsa cost less.
"""


def page(stored: dict[str, Any]) -> str:
    """The table in Markdown: before -> now."""
    sizes = {"batch": BATCH, "heads": HEADS, "head_dim": HEAD_DIM, "length": LENGTHS[-1], "documents": DOCUMENTS}
    sizes |= {"shortest": min(UNEVEN_DOCUMENTS), "longest": max(UNEVEN_DOCUMENTS)}
    times = {"long": LONG, "long_heads": LONG_HEADS, "both": full_attention(False), "causal": full_attention(True)}
    before, now = stored["before"], stored["now"]
    parts = [INTRODUCTION.format(**sizes, **times)]
    names = sorted({*before, *now})
    forms = [(name, form) for name in names for form in ("both ways", "causal") if form in now.get(name, before.get(name, {}))]
    rows = []
    for name, form in forms:
        pair = [table.get(name, {}).get(form) for table in (before, now)]
        rows.append([f"`{name}`", form, *(changed(pair, lambda row, key=key: summary(row, key)) for key in SUMMARIES)])
    parts.append(markdown_table(["mechanism", "form", *SUMMARIES], rows).replace("---:", "---"))
    for setting in SETTINGS:
        rows = []
        for name, form in forms:
            pair = [table.get(name, {}).get(form, {}).get(setting) for table in (before, now)]
            cells = [changed(pair, lambda row, layer=layer, key=key: cell(row, layer, key)) for key in CELLS for layer in LAYERS]
            rows.append([f"`{name}`", form, *cells])
        columns = [f"{key}, {layer}" for key in CELLS for layer in LAYERS]
        parts += [f"## {setting.capitalize()}", markdown_table(["mechanism", "form", *columns], rows).replace("---:", "---")]
    return "\n\n".join([*parts, ""])


def in_brief(stored: dict[str, Any]) -> str:
    """The estimates of every mechanism, for the documentation."""
    before, now = stored["before"], stored["now"]
    rows = []
    for name in sorted({*before, *now}):
        pairs = {form: [table.get(name, {}).get(form) for table in (before, now)] for form in ("both ways", "causal")}
        cells = [changed(pair, lambda row: summary(row, "model")) if any(pair) else "–" for pair in pairs.values()]
        rows.append([f"`{name}`", *cells])
    return markdown_table(["mechanism", "both ways", "causal"], rows)


CELLS = ("operations", "synchronisations", "float64", "megabytes", "fused")
SUMMARIES = ("model", "paths")


def changed(pair: list[Any], text: Any) -> str:
    """What a table says before and now, once where they agree."""
    before, now = ("" if row is None else text(row) for row in pair)
    return before if before == now or not now else now if not before else f"{before} → {now}"


def summary(row: dict[str, Any], key: str) -> str:
    if key == "model":
        return f"×{row['of_full_attention']:.2f}" if "of_full_attention" in row else "–"
    return ", ".join(row["plain"].get("later", {}).get("paths", {}))


def cell(row: dict[str, Any], layer: str, key: str) -> str:
    if layer not in row:
        return "–"
    value = row[layer][key]
    return str(sum(value.values())) if isinstance(value, dict) else f"{value:,}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mechanisms", nargs="*", metavar="MECHANISM", help="default: all")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="folder of device_counts.json and device_counts.md, default %(default)s"
    )
    parser.add_argument("--as-before", action="store_true", help="store these counts as those before a change")
    options = parser.parse_args()
    if not started(__spec__.name, triton=False):
        return 1
    pretend()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "device_counts.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"before": {}, "now": {}}
    for name in options.mechanisms or list_mechanisms():
        stored["before" if options.as_before else "now"][name] = rows = rows_of(name)
        print(json.dumps({"mechanism": name, **rows}), flush=True)
        file.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        file.with_suffix(".md").write_text(page(stored), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # without PyTorch's threads of a device that is not there, which would abort


if __name__ == "__main__":
    sys.exit(main())
