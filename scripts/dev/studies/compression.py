"""What compression costs: every method on every mechanism, saved, loaded again and measured at 512, 1,024 and 4,096 tokens.

    python -m scripts.dev.studies.compression --work-dir work  # converts, compresses and measures; half an hour on one core, resumable

The reference encoder (model_cards/bert-python-512) and the Llama that `python -m scripts.dev.studies.context --work-dir work` pre-trains
are converted to 4,096 tokens with each mechanism, without further training, so losses before differ between mechanisms, most of all where
features would have to be trained. Each conversion is compressed by `hf_longattn.compress_checkpoint`, with the importance of heads and
units measured on text of the training packages; what was written is loaded through its Auto class, and reads the first tokens of the same
held-out documents. The difference of the losses is taken document by document. Times are processor time of one thread. Every cell that is
complete is kept in the work folder. Writes OUTPUT.json and OUTPUT.md; with --measured, of what is measured so far."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

import hf_longattn
from hf_longattn.errors import LongAttentionError
from hf_longattn.export.compress import METHODS
from hf_longattn.mechanisms import list_mechanisms
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.staging import write_text
from scripts.dev import ROOT
from scripts.dev.benchmarks.report import machine, markdown_table, store_study
from scripts.dev.studies.adaptation import paired
from scripts.dev.studies.context import TOKENS, pretrain
from scripts.dev.studies.corpus import iter_modules
from scripts.dev.studies.text_loss import MaskedText, first_tokens, masked_loss, masked_texts, shortened

LENGTHS = (512, 1024, 4096)
BEFORE = "before"
DOCUMENTS = 4
FEW = 2
"""Documents of mechanisms that are not in :data:`FIRST`."""
PIECES = {"prune-heads": 4, "prune-ffn": 4}
"""Pieces of text that importance is measured on, as by default; other methods need none."""
CHECKPOINTS = ROOT / "model_cards"
TITLES = {
    "encoder": "Reference encoder (BERT, 4 layers of width 256, 512 positions)",
    "llama": f"Llama (4 layers of width 256, 256 positions, {TOKENS['llama'] / 1e6:.1f} M tokens of pre-training)",
}
FIRST = ("longformer", "window", "full")
"""Mechanisms that are measured first."""
OPTIONS: dict[str, dict[str, Any]] = {
    "longformer": {"window": 512},
    "window": {"window": 512},
    "per_head": {"heads": "window:window=128,longformer:window=512"},
    "union": {"of": "strided:window=256,stride=64+longformer:window=256,global_tokens=0"},
    "synthesizer": {"variant": ("dense", "dot_product")},
}
"""Of the encoder's mechanisms, besides their defaults."""
DECODER: dict[str, dict[str, Any]] = {
    "window": {"window": 256, "num_sinks": 4},
    "longformer": {"window": 256},
    "full": {"positions": "rope:yarn"},
    "hybrid": {"window": 64},
    "delta": {},
    "infini": {},
}
"""The decoder's, with those that encoders do not have."""


@dataclass(frozen=True)
class Row:
    """A model with a mechanism."""

    model: str
    mechanism: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.model} | {self.mechanism}"


def rows() -> Iterator[Row]:
    """Every conversion."""
    bidirectional = [name for name in list_mechanisms() if mechanism_class(name).causal is not True]
    for name in sorted(bidirectional, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST)):
        yield Row("encoder", name, OPTIONS.get(name, {}))
    for name, options in DECODER.items():
        yield Row("llama", name, {"positions": "rope:none", **options})


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work-dir", type=Path, required=True, help="folder of scripts.dev.studies.context's models and of measured cells")
    add("--models", nargs="+", choices=list(TITLES), default=list(TITLES), help="what is compressed (default: both)")
    add("--mechanisms", nargs="+", help="only these")
    add("--documents", type=int, default=DOCUMENTS, help=f"held-out documents of the first mechanisms (default: {DOCUMENTS})")
    add("--measured", action="store_true", help="compress nothing; write the tables of the cells that are complete")
    add(
        "--output",
        type=Path,
        default=Path("scripts/dev/results/compress"),
        help="path without suffix (default: %(default)s)",
    )
    return parser.parse_args(arguments)


@dataclass
class Texts:
    """What a model reads: documents as its tokenizer cuts them, ``masked`` of an encoder and ``plain`` of a decoder."""

    tokenizer: Any
    masked: list[MaskedText] = field(default_factory=list)
    plain: list[tuple[int, ...]] = field(default_factory=list)

    @torch.inference_mode()
    def losses(self, model: Any, length: int, count: int) -> list[float]:
        """Nats per masked or next token of the first ``count`` documents, one by one."""
        if self.masked:
            return masked_loss(model, self.tokenizer, shortened(self.masked[:count], length))
        found = []
        for document in self.plain[:count]:
            ids = torch.tensor([[self.tokenizer.cls_token_id, *document[: length - 1]]])
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            found.append(float(nn.functional.cross_entropy(logits.float(), ids[0, 1:])))
        return found


class Study:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work = options, options.work_dir
        self.file: Path = self.work / f"compression-{options.documents}.json"
        self.cells: dict[str, dict[str, Any]] = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        asked = options.mechanisms
        self.rows = [row for row in rows() if row.model in options.models and (asked is None or row.mechanism in asked)]

    def run(self) -> None:
        """Measure what is missing."""
        self.work.mkdir(parents=True, exist_ok=True)
        found: dict[str, Texts] = {}
        for row in self.rows:
            missing = [name for name in (BEFORE, *METHODS) if f"{row.key} | {name}" not in self.cells]
            if not missing:
                continue
            if row.model not in found:
                found[row.model] = texts(row.model, self.original(row.model), self.options.documents)
            with tempfile.TemporaryDirectory(dir=self.work) as folder:
                self.measure(row, missing, found[row.model], Path(folder))

    def original(self, model: str) -> Path:
        """The short checkpoint."""
        return CHECKPOINTS / "bert-python-512" if model == "encoder" else pretrain(self.work, model, 0)

    def count(self, row: Row) -> int:
        """Documents that its losses are measured on."""
        documents: int = self.options.documents
        return documents if row.mechanism in FIRST else min(FEW, documents)

    def measure(self, row: Row, missing: Sequence[str], read: Texts, folder: Path) -> None:
        source = folder / "long"
        for name in missing:
            started, target = time.perf_counter(), folder / name
            try:
                if not source.exists():
                    settings: dict[str, Any] = {"mechanism": row.mechanism, "max_length": LENGTHS[-1], "dtype": "fp32", "verify": False}
                    hf_longattn.convert_checkpoint(self.original(row.model), source, **settings, **row.settings)
                if name != BEFORE:
                    length = LENGTHS[-1] if name == "prune-heads" else LENGTHS[0]  # patterns by head number show at length only
                    given: dict[str, Any] = {"text": importance_text(self.work), "length": length, "documents": PIECES.get(name, 1)}
                    hf_longattn.compress_checkpoint(source, target, method=name, **given)
                cell = measured(row.model, source if name == BEFORE else target, read, self.count(row))
            except LongAttentionError as error:
                cell = {"refused": str(error)}
            shutil.rmtree(target, ignore_errors=True)
            self.cells[f"{row.key} | {name}"] = cell
            write_text(self.file, json.dumps(self.cells))
            told = cell.get("refused") or [round(statistics.fmean(values), 4) for values in cell["losses"].values()]
            print(f"{row.key} | {name}: {told}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)

    def record(self) -> dict[str, Any]:
        """What is stored: the rows that are complete, and the names of the others."""
        told, missing = [], []
        for row in self.rows:
            cells = {name: self.cells.get(f"{row.key} | {name}") for name in (BEFORE, *METHODS)}
            if None in cells.values():
                missing.append(row.key)
            else:
                told.append({"model": row.model, "mechanism": row.mechanism, "settings": row.settings, "cells": cells})
        return {"machine": machine(), "documents": self.options.documents, "lengths": list(LENGTHS), "rows": told, "missing": missing}


def texts(model: str, folder: Path, count: int) -> Texts:
    """The same documents of the test packages, as this model's tokenizer cuts them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = (module.text for module in iter_modules("test"))
    if model == "encoder":
        return Texts(tokenizer, masked=masked_texts(held_out, tokenizer, LENGTHS[-1], count))
    return Texts(tokenizer, plain=first_tokens(held_out, tokenizer, LENGTHS[-1], count))


def importance_text(work: Path) -> Path:
    """A file of some hundred thousand characters of the training packages."""
    file = work / "importance.txt"
    if not file.exists():
        modules = (module.text for module in iter_modules("train") if len(module.text) > 10_000)
        file.write_text("\n".join(text[:10_000] for text in itertools.islice(modules, 0, 400, 40)), encoding="utf-8")
    return file


def measured(kind: str, folder: Path, read: Texts, count: int) -> dict[str, Any]:
    """Losses by length, seconds of the longest input, and bytes of the weights."""
    auto: Any = AutoModelForMaskedLM if kind == "encoder" else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype="auto").eval()
    losses = {str(length): read.losses(model, length, count) for length in LENGTHS}
    ids = torch.randint(5, model.config.vocab_size, (1, LENGTHS[-1]), generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(2):
        started = time.process_time()
        with torch.inference_mode():
            model.base_model(input_ids=ids)
        seconds.append(time.process_time() - started)
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {"losses": losses, "seconds": min(seconds), "bytes": weights}


# ---- tables


def differences(row: dict[str, Any], method: str) -> list[tuple[float, float]] | None:
    """The change of the loss at every length and its standard error; ``None`` where the method is refused."""
    before, after = row["cells"][BEFORE], row["cells"][method]
    if "refused" in before or "refused" in after:
        return None
    return [paired(after["losses"][length], before["losses"][length]) for length in before["losses"]]


def markdown(record: dict[str, Any]) -> str:
    """A table of losses for each model, and one of sizes and times."""
    lengths, parts = record["lengths"], []
    shown = " / ".join(f"{length:,}" for length in lengths)
    for model in dict.fromkeys(row["model"] for row in record["rows"]):
        lines = []
        for row in (one for one in record["rows"] if one["model"] == model and "refused" not in one["cells"][BEFORE]):
            before = [f"{statistics.fmean(values):.2f}" for values in row["cells"][BEFORE]["losses"].values()]
            changes = [differences(row, method) for method in METHODS]
            cells = ["–" if found is None else " / ".join(f"{change:+.3f}" for change, _ in found) for found in changes]
            lines.append([f"`{row['mechanism']}`", " / ".join(before), *cells])
        parts.append(f"**{TITLES[model]}**, loss before, and its change, at {shown} tokens:\n")
        parts.append(markdown_table(["mechanism", BEFORE, *METHODS], lines) + "\n")
    parts.append("Size of the weights, and time of a pass of the base model over 4,096 tokens (median over mechanisms, range):\n")
    parts.append(markdown_table(["method", "size", "time"], [[method, *cost(record, method)] for method in METHODS]) + "\n")
    if record["missing"]:
        parts.append(f"Not measured: {', '.join(record['missing'])}.\n")
    about, worst = record["machine"], worst_error(record)
    parts.append(
        f"*Losses are nats per token of the same held-out source files: {record['documents']} for {', '.join(FIRST)}, "
        f"{min(FEW, record['documents'])} for the others. Half of the standard errors of changes (in compress.json) are below "
        f"{worst[0]:.3f}, all below {worst[1]:.2f}. –: refused. Sizes and times are shares of those of the conversion in fp32. "
        f"{about['processor']}, {about['threads']} thread{'s' * (about['threads'] > 1)}, torch {about['torch']}, {about['date']}*"
    )
    return "\n".join(parts) + "\n"


def cost(record: dict[str, Any], method: str) -> list[str]:
    """Bytes and seconds after, as shares of before."""
    pairs = [(row["cells"][BEFORE], row["cells"][method]) for row in record["rows"]]
    both = [(before, after) for before, after in pairs if "refused" not in before and "refused" not in after]
    told = []
    for name in ("bytes", "seconds"):
        shares = sorted(100 * after[name] / before[name] for before, after in both)
        told.append(f"{statistics.median(shares):.0f} % ({shares[0]:.0f} to {shares[-1]:.0f})" if shares else "–")
    return told


def worst_error(record: dict[str, Any]) -> tuple[float, float]:
    """The median and the largest standard error of a change."""
    changes = [found for row in record["rows"] for method in METHODS if (found := differences(row, method)) is not None]
    errors = [error for found in changes for _, error in found if math.isfinite(error)]
    return (statistics.median(errors), max(errors)) if errors else (0.0, 0.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parse(arguments)
    torch.set_num_threads(1)
    study = Study(options)
    if not options.measured:
        study.run()
    record = study.record()
    store_study(options.output, record, markdown(record))
    print(markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
