"""What a sequence that is sharded across processes costs in communication, next to ring attention.

    python -m scripts.dev.benchmarks.communication  # 4 gloo processes on this machine; writes results/communication.md

Each process runs one layer's attention, forward and backward, and counts the bytes that it sends: parts of sequences as they are, a sum
over P processes as 2 (P - 1) / P times its size (ring all-reduce), a gathering as P - 1 times. The same is computed from the mechanism's
shape, compared with the count, and computed for 64 devices and 1,048,576 tokens in bf16 (states are fp32). Ring attention (Liu et al. 2023)
sends every process's keys and values P - 1 times in the forward pass, and these and their gradients P - 1 times in the backward pass.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from typing import Any

from scripts.dev import RESULTS

from .report import store_study

OUTPUT = RESULTS / "communication"
HEADS, WIDTH, LENGTH, PROCESSES = 12, 64, 4096, 4
LARGE = (64, 1 << 20)
CASES: dict[str, tuple[str, dict[str, Any], bool, int]] = {
    "window, w = 512": ("window", {"window": 512}, False, 0),
    "window, w = 512, causal": ("window", {"window": 512}, True, 0),
    "longformer, w = 512, 64 global tokens": ("longformer", {"window": 512}, False, 64),
    "lsg, b = 128": ("lsg", {"block_size": 128, "sparse_block_size": 128, "global_tokens": ()}, False, 0),
    "block_top_k, b = 64 (heads for tokens)": ("block_top_k", {"block_size": 64}, False, 0),
    "linear": ("linear", {}, False, 0),
    "linear, causal": ("linear", {}, True, 0),
    "delta, causal": ("delta", {"gate_input": "key"}, True, 0),
}
"""Name -> mechanism, options, causal, global tokens."""


def expected(case: tuple[str, dict[str, Any], bool, int], processes: int, length: int, size: int) -> tuple[float, float]:
    """Bytes that a process in the middle sends for each of its tokens, forward and backward, for numbers of ``size`` bytes."""
    from hf_longattn import build_mechanism

    name, options, causal, tokens = case
    module = build_mechanism(name, num_heads=HEADS, head_dim=WIDTH, hidden_size=HEADS * WIDTH, max_length=length, **options)
    own, whole = length / processes, HEADS * WIDTH
    local = module.locality(causal)
    forward = backward = 0.0
    if local is not None:
        forward = backward = (local.back + local.ahead) * 2.0 * whole
        around = 2 * (processes - 1) / processes
        rows = tokens if tokens and module.global_rows(causal) else 0
        forward += around * (tokens * 2 * whole + rows * (whole + HEADS + whole + HEADS))  # keys and values; queries, largest, sums
        backward += around * (tokens * 2 * whole + rows * (whole + whole + HEADS))
    elif not module.stateful:  # queries, keys and values for those of some heads, and outputs for those of some tokens
        if processes > HEADS:
            return math.nan, math.nan
        forward = backward = own * 4.0 * whole * (processes - 1) / processes
    else:
        size = max(size, 4)  # states are fp32 at least
        state = HEADS * (WIDTH * WIDTH + WIDTH) if name == "linear" else HEADS * WIDTH * 2 * WIDTH
        forward = (processes - 1) * state
        backward = 2 * (processes - 1) / processes * processes * state
    return forward * size / own, backward * size / own


def ring(processes: int, size: int) -> tuple[float, float]:
    """The same for ring attention."""
    return 2.0 * HEADS * WIDTH * (processes - 1) * size, 4.0 * HEADS * WIDTH * (processes - 1) * size


def worker(rank: int, meeting: str) -> None:
    """One process: prints what it sent as JSON."""
    import torch
    import torch.distributed as dist

    from hf_longattn import build_mechanism
    from hf_longattn.attend import run_batch
    from hf_longattn.engines.common.call import AttentionCall
    from hf_longattn.engines.common.shards import Shard, even_bounds

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=PROCESSES)
    sent = [0.0]

    def counting(name: str, factor: float) -> None:
        inner = getattr(dist, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            if name == "batch_isend_irecv":
                sent[0] += sum(one.tensor.nbytes for one in args[0] if one.op is dist.isend)
            else:
                sent[0] += factor * (args[1] if name == "all_gather" else args[0]).nbytes
            return inner(*args, **kwargs)

        setattr(dist, name, run)

    counting("batch_isend_irecv", 1)
    counting("all_reduce", 2 * (PROCESSES - 1) / PROCESSES)
    counting("all_gather", PROCESSES - 1)
    found = {}
    for title, (name, options, causal, tokens) in CASES.items():
        module = build_mechanism(name, num_heads=HEADS, head_dim=WIDTH, hidden_size=HEADS * WIDTH, max_length=LENGTH, **options)
        global_mask = torch.zeros(1, LENGTH, dtype=torch.bool) if name == "longformer" else None
        if global_mask is not None:
            global_mask[:, :tokens] = True
        shard = Shard(None, even_bounds(LENGTH, PROCESSES), rank, run_batch, global_mask=global_mask)
        q, k, v = (torch.randn(1, HEADS, shard.stop - shard.start, WIDTH, requires_grad=True) for _ in range(3))
        sent[0] = 0.0
        out = module.attend_sharded(q, k, v, AttentionCall(causal=causal), shard)
        forward, sent[0] = sent[0], 0.0
        out.sum().backward()
        found[title] = [forward / (shard.stop - shard.start), sent[0] / (shard.stop - shard.start)]
    dist.barrier()
    print(json.dumps(found), flush=True)
    dist.destroy_process_group()
    raise SystemExit(0)


def main() -> int:
    """Run the processes, compare and write the table."""
    if len(sys.argv) == 3:
        worker(int(sys.argv[1]), sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "scripts.dev.benchmarks.communication"]
        running = [
            subprocess.Popen([*command, str(rank), f"{folder}/meeting"], stdout=subprocess.PIPE, text=True) for rank in range(PROCESSES)
        ]
        said = [process.communicate()[0] for process in running]
    middle = json.loads(said[1])
    lines = [
        "# Communication of a sequence that is sharded across processes",
        "",
        "Written by `python -m scripts.dev.benchmarks.communication`, which says what is counted. "
        f"{HEADS} heads of {WIDTH}. Counted: process 1 of {PROCESSES}, {LENGTH:,} tokens, fp32. "
        f"Computed: {LARGE[0]} devices, {LARGE[1]:,} tokens, bf16.",
        "",
        f"| bytes for each token and layer | counted: forward | backward | computed for these | for {LARGE[0]} devices: forward + backward "
        "| of ring attention |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    record: dict[str, Any] = {}
    whole = sum(ring(LARGE[0], 2))
    for title, case in CASES.items():
        here, large = expected(case, PROCESSES, LENGTH, 4), sum(expected(case, LARGE[0], LARGE[1], 2))
        record[title] = {"counted": middle[title], "computed": here, "large": None if math.isnan(large) else large}
        lines.append(
            f"| {title} | {middle[title][0]:,.0f} | {middle[title][1]:,.0f} | {here[0]:,.0f} + {here[1]:,.0f} "
            + (f"| at most {HEADS} devices | |" if math.isnan(large) else f"| {large:,.0f} | 1 / {whole / large:,.0f} |")
        )
    small = ring(PROCESSES, 4)
    lines.append(f"| ring attention | | | {small[0]:,.0f} + {small[1]:,.0f} | {whole:,.0f} | 1 |")
    store_study(OUTPUT, record, "\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
