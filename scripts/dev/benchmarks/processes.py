"""Training in several processes beside one: are the losses the same, and what memory does a process need?

    python -m scripts.dev.benchmarks.processes  # 1, 2 and 4 gloo processes on this machine's CPU; writes results/processes.{md,json}

**Losses**: a model of two layers takes 20 steps on batches of 8 texts whose lengths differ, the last batch of an epoch short: in one
process; with other texts in each process, and whole weights (DistributedDataParallel) or shares of them (torch's fully_shard, FSDP 2); and
with every text sharded across the processes (hf_longattn.sequence_parallel). Reported is the largest difference of any step's loss from
that of one process.

**Memory**: the tensors that two layers keep between the forward and the backward pass over one text, weights apart, in the process that
keeps most.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from scripts.dev import RESULTS

from .memory import MiB
from .report import machine, markdown_table, store_study

OUTPUT = RESULTS / "processes"
COUNTS = (1, 2, 4)
WAYS = ("DDP", "FSDP 2", "cut")
SHAPE = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
WITHOUT_DROPOUT = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
MECHANISMS: dict[str, dict[str, Any]] = {
    "window": {"window": 32},
    "longformer": {"window": 32, "global_tokens": (0,)},
    "bigbird": {"block_size": 8},
    "linear": {},
    "hybrid": {"window": 16},
    "adaptive_span": {"max_span": 64},
    "routing": {"num_clusters": 4, "window_per_cluster": 48, "decay": 0.9},
    "delta": {},
    "recurrent_memory": {"segment_length": 64, "num_memory_tokens": 2},
}
CAUSAL = ("delta", "recurrent_memory")
"""Those trained as causal language models; the others predict masked tokens."""
LEFT_OUT = {("recurrent_memory", "FSDP 2"): "equal lengths only", ("recurrent_memory", "cut"): "refused"}
"""With memory tokens, layers run once per segment, and processes with shares of the weights must run them equally often."""
TEXTS, BATCH, EPOCHS = 38, 8, 4
LARGE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256, "vocab_size": 99}
LENGTHS = (4096, 16384)
MEASURED: dict[str, dict[str, Any]] = {
    "window": {"window": 256},
    "longformer": {"window": 256, "global_tokens": (0,)},
    "bigbird": {"block_size": 64},
    "linear": {},
    "hybrid": {"window": 64},
    "adaptive_span": {"max_span": 256},
    "routing": {"num_clusters": 64, "window_per_cluster": 256},
}


def losses(name: str, way: str, rank: int, processes: int) -> list[float]:
    """The loss of every step, of the whole batch."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    import hf_longattn
    from hf_longattn.mechanisms.routing import synchronise_centroids
    from hf_longattn.modeling.run.losses import divides_by_items

    torch.manual_seed(0)
    settings = {**SHAPE, "max_position_embeddings": 256, "long_attention": {"mechanism": name, **MECHANISMS[name]}}
    bare: Any
    if name in CAUSAL:
        bare = hf_longattn.LongLlamaForCausalLM(hf_longattn.LongLlamaConfig(**settings, use_cache=False))
        layers = bare.model.layers
    else:
        bare = hf_longattn.LongBertForMaskedLM(hf_longattn.LongBertConfig(**settings, **WITHOUT_DROPOUT))
        layers = bare.bert.encoder.layer
    texts = [torch.randint(5, 99, (int(torch.randint(60, 200, (1,))),)) for _ in range(TEXTS)]
    chosen = [torch.rand(len(text)) < 0.3 for text in texts]
    model = bare.train()
    if processes > 1 and way == "DDP":
        model = DistributedDataParallel(bare)
    elif processes > 1 and way == "FSDP 2":
        mesh = init_device_mesh("cpu", (processes,))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(bare, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = []
    for first in [first for _ in range(EPOCHS) for first in range(0, TEXTS, BATCH)]:
        whole = range(first, min(first + BATCH, TEXTS))
        own = whole if way == "cut" else whole[rank::processes]
        longest = max(len(texts[i]) for i in own)
        batch = {key: torch.full((len(own), longest), value) for key, value in (("input_ids", 0), ("labels", -100), ("attention_mask", 0))}
        for row, i in enumerate(own):
            length = len(texts[i])
            batch["input_ids"][row, :length], batch["attention_mask"][row, :length] = texts[i], 1
            batch["labels"][row, :length] = texts[i] if name in CAUSAL else texts[i].masked_fill(~chosen[i], -100)
        counts = {i: len(texts[i]) - 1 if name in CAUSAL else int(chosen[i].sum()) for i in whole}
        counted = sum(counts.values())
        with hf_longattn.sequence_parallel(bare) if processes > 1 and way == "cut" else contextlib.nullcontext():
            if way == "cut" or divides_by_items(type(bare)):
                loss = model(**batch, num_items_in_batch=torch.tensor(counted)).loss  # this process's share
            else:
                loss = model(**batch).loss * sum(counts[i] for i in own) / counted
            (loss * processes).backward()
        total = loss.detach().clone()
        if processes > 1:
            dist.all_reduce(total)
            if way == "cut":
                for parameter in bare.parameters():
                    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    dist.all_reduce(gradient)
                    parameter.grad = gradient / processes
        synchronise_centroids(bare)
        optimizer.step()
        optimizer.zero_grad()
        found.append(total.item())
    return found


def kept(name: str, length: int, processes: int) -> float:
    """MiB that this process keeps for the backward pass."""
    import torch

    import hf_longattn

    torch.manual_seed(0)
    attention = {"mechanism": name, **MEASURED[name]}
    config = hf_longattn.LongBertConfig(**LARGE, **WITHOUT_DROPOUT, max_position_embeddings=LENGTHS[-1], long_attention=attention)
    model: Any = hf_longattn.LongBertModel(config, add_pooling_layer=False).train()
    ids = torch.randint(5, 99, (1, length))
    storages: dict[int, int] = {parameter.untyped_storage().data_ptr(): 0 for parameter in model.parameters()}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storages.setdefault(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes())
        return x

    cut = hf_longattn.sequence_parallel(model) if processes > 1 else contextlib.nullcontext()
    with cut, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(input_ids=ids)
    return sum(storages.values()) / MiB


def worker(rank: int, processes: int, meeting: str) -> None:
    """One process: prints its losses and memory as JSON."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    curves: dict[str, Any] = {}
    for name in MECHANISMS:
        for way in WAYS if processes > 1 else WAYS[:1]:
            if (name, way) not in LEFT_OUT:
                curves.setdefault(name, {})[way] = losses(name, way, rank, processes)
    memory = {name: [kept(name, length, processes) for length in LENGTHS] for name in MEASURED}
    print(json.dumps({"losses": curves, "memory": memory}), flush=True)
    if processes > 1:
        dist.barrier()
    os.kill(os.getpid(), signal.SIGKILL)  # the group is not taken down: freed beside DistributedDataParallel it aborts now and then


def run(processes: int) -> list[dict[str, Any]]:
    """What every process of a group found."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "scripts.dev.benchmarks.processes"]
        running = [
            subprocess.Popen([*command, str(rank), str(processes), f"{folder}/meeting"], stdout=subprocess.PIPE, text=True)
            for rank in range(processes)
        ]
        return [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]


def table_of_losses(record: dict[str, Any]) -> str:
    """Mechanisms × ways and processes: the largest difference of a loss."""
    columns = [(way, str(count)) for way in WAYS for count in COUNTS[1:]]

    def cells(name: str) -> Iterator[str]:
        for way, count in columns:
            difference = record["differences"][name].get(way, {}).get(count)
            yield LEFT_OUT[name, way] if difference is None else f"{difference:.0e}"

    rows = [[f"`{name}`", *cells(name), f"{record['losses'][name][0]:.2f} → {record['losses'][name][-1]:.2f}"] for name in MECHANISMS]
    return markdown_table(["largest difference of a loss", *(f"{way}, {count}" for way, count in columns), "loss"], rows)


def table_of_memory(record: dict[str, Any]) -> str:
    """Mechanisms × lengths and processes: MiB, and the share of one process's."""
    columns = [(place, count) for place in range(len(LENGTHS)) for count in COUNTS]

    def cell(name: str, place: int, count: int) -> str:
        whole, own = (record["memory"][name][str(number)][place] for number in (1, count))
        return f"{own:,.0f}" if count == 1 else f"{own:,.0f} ({own / whole:.2f})"

    rows = [[f"`{name}`", *(cell(name, place, count) for place, count in columns)] for name in MEASURED]
    return markdown_table(["MiB (share of one process's)", *(f"{LENGTHS[place]:,} in {count}" for place, count in columns)], rows)


def main() -> int:
    """Run 1, 2 and 4 processes, compare, and write the tables."""
    if len(sys.argv) == 4:
        worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    with ThreadPoolExecutor() as pool:  # nothing is timed
        found = dict(zip(COUNTS, pool.map(run, COUNTS), strict=True))
    (alone,) = found[1]
    whole = {name: curves[WAYS[0]] for name, curves in alone["losses"].items()}
    differences: dict[str, dict[str, dict[str, float]]] = {}
    for count in COUNTS[1:]:
        for name, ways in found[count][0]["losses"].items():
            for way, curve in ways.items():
                largest = max(abs(a - b) for a, b in zip(curve, whole[name], strict=True))
                differences.setdefault(name, {}).setdefault(way, {})[str(count)] = largest
    memory = {name: {str(count): [max(at) for at in zip(*(one["memory"][name] for one in found[count]), strict=True)] for count in COUNTS}
             for name in MEASURED}  # fmt: skip
    record: dict[str, Any] = {"machine": machine(), "losses": whole, "differences": differences, "lengths": LENGTHS, "memory": memory}
    about = record["machine"]
    lines = [
        "# Training in 2 and 4 processes beside one",
        "",
        f"Written by `python -m scripts.dev.benchmarks.processes`, which says what is measured; processes meet over gloo on one CPU "
        f"({about['processor']}, {about['cores']} cores), in fp32, with torch {about['torch']} and transformers {about['transformers']}. "
        f"`cut` is `hf_longattn.sequence_parallel`.",
        "",
        table_of_losses(record),
        "",
        "Tensors that two layers (4 heads of 32, fp32) keep for the backward pass over one text, in the process that keeps most:",
        "",
        table_of_memory(record),
    ]
    store_study(OUTPUT, record, "\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
