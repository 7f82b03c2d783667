"""Masks that no reader recognises: attention of stock layers under ``sdpa`` and under ``longattn``, in one run.

    python -m scripts.dev.benchmarks.unread_masks  # five minutes
    python -m scripts.dev.benchmarks.unread_masks --quick  # 2,048 tokens; stores nothing

Both sides get one mask function, and make their mask from it: sdpa a tensor of all pairs, longattn its visible blocks.
Layers of 8 heads of 64 share the mask. Equality comes first: outputs and gradients in float64 and in float32, and
outputs at the timed lengths. Passes in float32 take turns. Memory is the largest growth of a process that runs one
side alone.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers.masking_utils as masking
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_longattn.modeling.backend import longattn_attention_forward
from hf_longattn.modeling.declared import DeclaredMask
from scripts.dev.benchmarks import report
from scripts.dev.benchmarks.memory import growth

OUTPUT = Path("scripts/dev/results/unread_masks")
EXACT_LENGTH = 2048
"""Tokens of the comparison of gradients, and of that in float64."""
PASSES = {2048: [(1, False)], 4096: [(1, False), (4, False), (1, True)], 16384: [(1, False)]}
"""Tokens -> the passes that are timed: layers, and whether the backward pass runs."""
HEADS, WIDTH, TURNS = 8, 64, 3
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Largest difference of outputs, relative to the largest of them. Gradients may differ ten times as much."""
WAYS = ("sdpa", "longattn")


def mask_function(name: str, length: int) -> Any:
    """A mask function over positions.

    random blocks: each block of 256 tokens sees itself and three others. prefix: causal, and all tokens see the first
    quarter.
    """
    if name == "prefix":
        return masking.or_masks(masking.causal_mask_function, lambda b, h, q, k: k < length // 4)
    count = -(-length // 256)
    blocks = torch.eye(count, dtype=torch.bool)
    blocks[torch.arange(count)[:, None], torch.randint(count, (count, 3), generator=seeded())] = True
    return lambda b, h, q, k: blocks[q // 256, k // 256]


CASES = ("random blocks", "prefix")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def inputs(length: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Queries, keys and values ``(1, H, N, D)``, stored token by token, as projections make them."""
    made = torch.randn(3, 1, length, HEADS, WIDTH, generator=seeded(), dtype=torch.float64).to(dtype)
    return made.transpose(2, 3).unbind(0)


def run(way: str, name: str, qkv: Sequence[Tensor], layers: int) -> Tensor:
    """Make the mask and run the layers. The output of the last."""
    length, module = qkv[0].shape[2], nn.Module()
    arguments: dict[str, Any] = {
        "batch_size": 1,
        "q_length": length,
        "kv_length": length,
        "q_offset": 0,
        "kv_offset": 0,
        "mask_function": mask_function(name, length),
        "attention_mask": None,
        "allow_is_causal_skip": False,
        "use_vmap": True,  # as create_causal_mask does with functions of a model
    }
    out = qkv[0]
    if way == "sdpa":
        mask = masking.sdpa_mask(**arguments)
        for _ in range(layers):
            out, _ = sdpa_attention_forward(module, *qkv, mask, is_causal=False)
    else:
        declared: Any = DeclaredMask(**arguments)
        for _ in range(layers):
            out, _ = longattn_attention_forward(module, qkv[0], qkv[1], qkv[2], declared)
    return out


def difference(name: str, length: int, dtype: torch.dtype, backward: bool = False) -> list[float]:
    """Largest difference of outputs, relative to the largest of sdpa's; with ``backward``, also of the gradients of
    queries, keys and values.

    Raises:
        SystemExit: one is above its tolerance.
    """
    results: list[list[Tensor]] = []
    for way in WAYS:
        qkv = [x.requires_grad_(backward) for x in inputs(length, dtype)]
        out = run(way, name, qkv, 1)
        upstream = torch.randn(out.shape, generator=seeded()).to(dtype)
        results.append([out.detach(), *(torch.autograd.grad(out, qkv, upstream) if backward else ())])
    found = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(*results, strict=True)]
    if not (found[0] <= TOLERANCES[dtype] and max(found) <= 10 * TOLERANCES[dtype]):
        raise SystemExit(f"error: {name} differs in {dtype} at {length:,} tokens by {found}, so nothing is stored")
    return found


def memory(way: str, name: str, length: int) -> float:
    """MiB by which a forward pass of one layer grows this process."""
    with torch.no_grad():
        run(way, name, inputs(1024, torch.float32), 1)  # lazy imports and threads
        qkv = inputs(length, torch.float32)
        return growth(lambda: run(way, name, qkv, 1))


def seconds(way: str, name: str, length: int, layers: int, backward: bool) -> float:
    """Wall time of one pass in float32."""
    qkv = [x.requires_grad_(backward) for x in inputs(length, torch.float32)]
    started = time.perf_counter()
    with torch.set_grad_enabled(backward):
        out = run(way, name, qkv, layers)
        if backward:
            out.backward(out.detach())
    return time.perf_counter() - started


def measure(name: str, length: int) -> list[dict[str, Any]]:
    """The rows of a mask at a length."""
    output, mebibytes, rows = difference(name, length, torch.float32)[0], list[float](), list[dict[str, Any]]()
    for way in WAYS:
        with (
            mock.patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(2**16)),
            ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process,
        ):
            mebibytes.append(process.submit(memory, way, name, length).result())
    for layers, backward in PASSES[length]:
        turns = [[seconds(way, name, length, layers, backward) for way in WAYS] for _ in range(TURNS)]
        row = {"mask": name, "length": length, "layers": layers, "backward": backward, "turns": turns}
        rows.append(row | ({} if layers > 1 or backward else {"difference": output, "mebibytes": mebibytes}))
        print(name, *cells(rows[-1]), sep=", ", file=sys.stderr, flush=True)
    return rows


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table, without its mask."""
    stock, ours = (statistics.median(way) for way in zip(*row["turns"], strict=True))
    ratio = statistics.median(stock / ours for stock, ours in row["turns"])
    mebibytes = [f"{size:,.0f}" for size in row.get("mebibytes", [])] or ["", ""]
    layers = "1 layer, both ways" if row["backward"] else f"{row['layers']} layer{'s' * (row['layers'] > 1)}"
    return [f"{row['length']:,}", layers, f"{stock:.2f}", f"{ours:.2f}", f"{ratio:.1f} ×", *mebibytes]


def markdown(record: dict[str, Any]) -> str:
    """The table of the page."""
    header = ["mask", "tokens", "", "sdpa, s", "longattn, s", "times as fast", "sdpa, MiB", "longattn, MiB"]
    table = report.markdown_table(header, [[row["mask"], *cells(row)] for row in record["rows"]])
    output = max(row["difference"] for row in record["rows"] if "difference" in row)
    note = f"Largest difference of outputs in float32, relative to the largest: {output:.0e}."
    return f"{table}\n\n{note}\n\n*{report.where(record['machine'])}, commit {record['commit']}*\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = report.study_parser(__doc__, OUTPUT, f"{EXACT_LENGTH:,} tokens")
    options = parser.parse_args(arguments)
    output = report.output_of(options, OUTPUT)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    exact = {
        f"{name}, {dtype}": difference(name, EXACT_LENGTH, dtype, backward=True)
        for name in CASES
        for dtype in TOLERANCES
    }
    lengths = [EXACT_LENGTH] if options.quick else [length for length in PASSES if length > EXACT_LENGTH]
    rows = [row for name in CASES for length in lengths for row in measure(name, length)]
    record = {"machine": report.machine(), "commit": commit.stdout.strip(), "differences": exact, "rows": rows}
    if output:
        report.store_study(output, record)
    print(markdown(record))


if __name__ == "__main__":
    main()
