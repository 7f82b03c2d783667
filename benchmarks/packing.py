"""Training on packed rows against padded ones, on documents whose lengths are drawn log-normally.

    python -m benchmarks.packing --output docs/results/packing

A small BERT with a mechanism learns to classify random documents (mean 1,000 tokens, at most 4,096). Packed, padded and padded-by-length
batches of the same documents take turns in one process, each training a copy of the model, so that their losses compare.
Writes OUTPUT.json and OUTPUT.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from benchmarks.report import machine
from hf_longattn import LongAttentionConfig
from hf_longattn.families import LongBertConfig, LongBertForSequenceClassification
from hf_longattn.training.batching import first_tokens
from hf_longattn.training.classification import DocumentCollator

LONGEST, MEAN, SIGMA = 4096, 1000, 1.0
WAYS = ("packed", "padded", "padded by length")
Row = dict[str, Any]


def draw_lengths(count: int, generator: torch.Generator) -> list[int]:
    """Log-normal lengths, drawn again where they are beyond the longest; their mean is about ``MEAN``."""
    found: list[int] = []
    while len(found) < count:
        length = int(torch.exp(torch.randn((), generator=generator) * SIGMA + torch.log(torch.tensor(float(MEAN))) - SIGMA**2 / 2 + 0.14))
        if 16 <= length <= LONGEST:
            found.append(length)
    return found


def one_step(model: LongBertForSequenceClassification, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> float:
    """One step of training; its loss."""
    optimizer.zero_grad()
    lengths = batch.pop("lengths", None)
    if lengths is None:
        loss = model(**batch).loss
    else:
        with first_tokens(model, lengths):
            loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    return loss.item()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and losses of every batch, by way of batching."""
    generator = torch.Generator().manual_seed(options.seed)
    lengths = draw_lengths(options.documents, generator)
    rows: list[Row] = [
        {"input_ids": torch.randint(5, 1000, (length,), generator=generator).tolist(), "labels": number % 2, "length": length}
        for number, length in enumerate(lengths)
    ]
    torch.manual_seed(options.seed)
    size, batch = options.hidden, options.batch_size
    attention = LongAttentionConfig(mechanism=options.mechanism, window=512)
    config = LongBertConfig(
        vocab_size=1000, hidden_size=size, num_hidden_layers=options.layers, num_attention_heads=size // 64, intermediate_size=4 * size,
        max_position_embeddings=LONGEST, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, long_attention=attention,
    )  # fmt: skip
    first = LongBertForSequenceClassification(config)
    trained = {name: copy.deepcopy(first) for name in WAYS}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=3e-4) for name, model in trained.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"[PAD]": 0}, "[PAD]")), pad_token="[PAD]")
    ways = {"packed": DocumentCollator(tokenizer, pack=True), "padded": DocumentCollator(tokenizer)}
    groups = [rows[at : at + batch] for at in range(0, len(rows), batch)]
    by_length = sorted(rows, key=lambda row: row["length"])
    grouped = [by_length[at : at + batch] for at in range(0, len(rows), batch)]
    for collate in ways.values():  # the first pass of a process allocates
        one_step(first, torch.optim.SGD(first.parameters(), lr=0.0), collate(groups[0]))
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    losses: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(len(groups)):
        for name in seconds:
            collate = ways["packed" if name == "packed" else "padded"]
            made = collate((grouped if name == "padded by length" else groups)[number])
            started = time.perf_counter()
            losses[name].append(one_step(trained[name], optimizers[name], made))
            seconds[name].append(time.perf_counter() - started)
    tokens = sum(lengths)
    cells = sum(max(row["length"] for row in group) * len(group) for group in groups)
    speeds = {name: tokens / sum(values) for name, values in seconds.items()}
    apart = max(abs(a - b) for a, b in zip(losses["packed"], losses["padded"], strict=True))
    return {
        "settings": {name: value for name, value in vars(options).items() if name != "output"},
        "machine": machine(),
        "lengths": {"mean": tokens / len(lengths), "longest": max(lengths)},
        "padding": 1 - tokens / cells,
        "tokens_per_second": speeds,
        "packed_over_padded": speeds["packed"] / speeds["padded"],
        "packed_over_padded_by_length": speeds["packed"] / speeds["padded by length"],
        "largest_difference_of_losses": apart,
    }


def markdown(found: dict[str, Any]) -> str:
    """The table of a document."""
    settings, speeds = found["settings"], found["tokens_per_second"]
    lines = [
        f"`{settings['mechanism']}`, {settings['documents']} documents of {found['lengths']['mean']:,.0f} tokens on average, at most "
        f"{found['lengths']['longest']:,}, in batches of {settings['batch_size']}; {100 * found['padding']:.0f} % padding; "
        f"losses differ by {found['largest_difference_of_losses']:.1e} at most.",
        "",
        "| batches | tokens per second | × padded |",
        "|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {name} | {speed:,.0f} | {speed / speeds['padded']:.2f} |" for name, speed in speeds.items())]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mechanism", default="longformer")
    parser.add_argument("--documents", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="docs/results/packing", help="path without suffix (default: docs/results/packing)")
    options = parser.parse_args(arguments)
    found = measure(options)
    Path(f"{options.output}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    Path(f"{options.output}.md").write_text(markdown(found), encoding="utf-8")
    print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
