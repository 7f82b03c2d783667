"""What attention dropout costs a training step on the CPU: all-MiniLM-L6-v2, converted to longformer and 4,096 tokens.

    python -m scripts.dev.benchmarks.training_steps          # ten minutes; writes results/training_steps.json and .md
    python -m scripts.dev.benchmarks.training_steps --quick  # texts of 512 tokens; stores nothing

A step is a forward and a backward pass over random tokens, without an optimiser. The systems take turns in one process, on all threads
of the machine, and a ratio is the median of those of the turns. tests/engines/test_cpu_dropout.py shows that tiles and plain operations
drop weights alike.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import AutoModel, BertModel

from hf_longattn.engines.cpu import dropout
from scripts.dev.benchmarks.report import finish_study, footnote, machine, markdown_table, one_sentence_errors, output_of, study_parser
from scripts.dev.real import NAME, real_checkpoint
from scripts.dev.studies.real_checkpoint import converted

OUTPUT = Path("scripts/dev/results/training_steps")
DROPOUT = 0.1
SIZES, QUICK_SIZES = ((2, 2048), (8, 512)), ((2, 512),)
"""Texts of a step, and tokens of each."""
TURNS = 5
NONE, TILES, PLAIN, FULL = "no attention dropout", "dropout in tiles", "dropout by plain operations", "full attention (SDPA), dropout"
SYSTEMS = (NONE, TILES, PLAIN, FULL)


def build(source: Path) -> dict[str, Any]:
    """The model of each system, in training: the converted one, without attention dropout and with, and BERT with as many positions."""
    with converted(source) as long:
        dropped = AutoModel.from_pretrained(long, attention_probs_dropout_prob=DROPOUT)
        models = {
            NONE: AutoModel.from_pretrained(long, attention_probs_dropout_prob=0.0),
            TILES: dropped,
            PLAIN: dropped,
            FULL: BertModel.from_pretrained(long, attention_probs_dropout_prob=DROPOUT),
        }
    return {name: model.train() for name, model in models.items()}


def step(model: Any, ids: Tensor) -> None:
    model(input_ids=ids).last_hidden_state.square().mean().backward()
    model.zero_grad()


def time_steps(models: dict[str, Any], ids: Tensor, turns: int = TURNS) -> list[dict[str, float]]:
    """Seconds of a step of every system, for every turn but a first one."""
    seconds: list[dict[str, float]] = []
    for _ in range(turns + 1):
        seconds.append({})
        for name, model in models.items():
            tiles = name != PLAIN
            started = time.perf_counter()
            with contextlib.nullcontext() if tiles else mock.patch.object(dropout, "drops_some", return_value=False):
                step(model, ids)
            seconds[-1][name] = time.perf_counter() - started
        print(*(f"{name}: {taken:.2f} s" for name, taken in seconds[-1].items()), sep="; ", file=sys.stderr, flush=True)
    return seconds[1:]


def markdown(record: dict[str, Any]) -> str:
    """The table of a document."""
    rows = []
    for size, turns in record["seconds"].items():
        for name in SYSTEMS:
            minute = 60 / statistics.median(turn[name] for turn in turns)
            ratio = statistics.median(turn[name] / turn[NONE] for turn in turns)
            rows.append([size, name, f"{minute:.1f}", f"{ratio:.2f} ×"])
    return (
        f"Training steps (forward and backward) of {NAME}, converted to `longformer` (window 512, one global token), in fp32. Attention "
        f"dropout is {DROPOUT}; dropout elsewhere is the checkpoint's in all rows.\n\n"
        f"{markdown_table(['texts × tokens', 'attention', 'steps a minute', 'time of a step'], rows)}\n\n" + footnote(record["machine"])
    )


@one_sentence_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = study_parser(__doc__, OUTPUT, "texts of 512 tokens").parse_args(arguments)
    torch.manual_seed(0)
    models, record = build(real_checkpoint()), {"machine": machine(), "seconds": dict[str, Any]()}
    for batch, length in QUICK_SIZES if options.quick else SIZES:
        ids = torch.randint(1000, 30000, (batch, length))
        record["seconds"][f"{batch} × {length:,}"] = time_steps(models, ids)
    finish_study(output_of(options, OUTPUT), record, markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
