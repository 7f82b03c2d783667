"""What the reference checkpoints retrieve before and after conversion: RULER's tasks, passkeys, recall, induction and copies.

    python -m research.probe_table --work-dir work          # converts and asks; some 12 minutes on one core, resumable

The reference encoder (assets/bert-python-512), the reference reader (assets/bert-python-512-qa), and the two decoders that
`python -m research.context --work-dir work` pre-trains are asked as they are and as they are converted, without further training. The
encoder's and the decoders' answers are compared with wrong ones by likelihood, since models of five million parameters generate no answer
in words; the reader marks spans, the original one in windows of 512 tokens. Every cell that is complete is kept in the work folder.
Writes OUTPUT.json, OUTPUT.md, and OUTPUT.svg, heat maps of induction by depth and length.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import hf_longattn
from benchmarks.drawing import svg
from benchmarks.report import machine, markdown_table, one_sentence_errors, store_study
from hf_longattn.errors import LengthError
from hf_longattn.evaluation.probes import ProbeCell
from hf_longattn.evaluation.probes.run import Asker, open_model, probe_task
from research.context import LONG, ROWS, TOKENS, pretrain, slug

ASSETS = Path(__file__).parents[1] / "assets"
LENGTHS = (512, 1024, 2048, 4096)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
MAPPED = "induction"
"""The task that is drawn by depth."""
SAMPLES = {
    "copy": 1,
    "mqar": 2,
    "induction": 1,
    "niah_single_1": 4,
    "niah_multikey_2": 4,
    "passkey": 4,
    "fwe": 2,
    "vt": 2,
    "cwe": 2,
    "forgetting": 1,
    "compositional": 1,
    "niah_multikey_3": 2,
    "listops": 2,
}
"""Texts of a cell at --samples 1, for induction at each depth; a copy has hundreds of answers, three recall tasks have eight or nine."""
FIRST = list(SAMPLES)[:3]
"""Tasks that are measured first."""
TEXTS = [name for name in SAMPLES if name not in ("copy", "mqar", "forgetting", "compositional", "induction")]
"""What a reader can be asked."""
BERT = {"mechanism": "longformer", "window": 512}


@dataclass(frozen=True)
class Asked:
    """A row of the study: how ``model`` was converted, ``None`` for the original."""

    model: str
    row: str
    settings: dict[str, Any] | None = None


def rows() -> Iterator[Asked]:
    """Every model and conversion."""
    for model in ("encoder", "reader"):
        yield Asked(model, "original")
        yield Asked(model, "longformer", {**BERT, "max_length": 4096})
    yield Asked("encoder", "full attention, copied positions", {"mechanism": "full", "positions": "tile", "max_length": 4096})
    for model, wanted in (("llama", ("original", "window + sinks", "full attention, YaRN")), ("gpt2", ("window + sinks",))):
        for row in ROWS[model]:
            if row.name in wanted:
                yield Asked(model, row.name, None if row.settings is None else {**row.settings, "max_length": LONG})


TITLES = {
    "encoder": "Reference encoder (BERT, 512 positions), by masked likelihood",
    "reader": "Reference reader (BERT, 512 positions, fine-tuned on questions about Python files), by span",
    "llama": f"Llama (256 positions, {TOKENS['llama'] / 1e6:.1f} M tokens of pre-training), by likelihood",
    "gpt2": f"GPT-2 (256 positions, {TOKENS['gpt2'] / 1e6:.1f} M tokens of pre-training), by likelihood",
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work-dir", type=Path, required=True, help="folder of research.context's models, conversions and measured cells")
    add("--samples", type=int, default=1, help="factor of the numbers of texts (default: 1)")
    add("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens of a text (default: 512 1024 2048 4096)")
    add("--models", nargs="+", choices=list(TITLES), default=list(TITLES), help="what is asked (default: all)")
    add("--measured", action="store_true", help="ask nothing; write the tables of the cells that are complete")
    add("--threads", type=int, default=0, help="processor threads (default: torch's)")
    add("--output", type=Path, default=Path("docs/results/probes"), help="path without suffix (default: docs/results/probes)")
    return parser.parse_args(arguments)


def folder_of(work: Path, asked: Asked) -> Path:
    """The checkpoint of a row, which is made if it does not exist."""
    if asked.model in ("encoder", "reader"):
        source = ASSETS / ("bert-python-512" if asked.model == "encoder" else "bert-python-512-qa")
    else:
        source = pretrain(work, asked.model, 0)
    if asked.settings is None:
        return source
    target = work / "converted" / f"{asked.model}-{slug(asked.row)}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        hf_longattn.convert_checkpoint(source, target, verify=False, **asked.settings)
    return target


class Study:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.file: Path = options.work_dir / f"probes-{options.samples}.json"
        self.cells: dict[str, dict[str, Any] | None] = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        self.rows = [one for one in rows() if one.model in options.models]

    def run(self) -> None:
        """Ask what is missing: :data:`FIRST` tasks first, short texts first."""
        for first, length in itertools.product((True, False), sorted(self.options.lengths)):
            for asked in self.rows:
                missing = [key for key in self.keys(asked, length) if key[0] not in self.cells and (key[1] in FIRST) is first]
                if not missing:
                    continue
                model, tokenizer, head = open_model(folder_of(self.options.work_dir, asked))
                model.eval()
                asker = Asker(model, tokenizer, head, "span" if head == "span" else "likelihood", choices=8)
                for key, task, depth in missing:
                    self.cells[key] = self.ask(asker, task, length, depth)
                    self.store()
                print(f"{asked.model}, {asked.row}: {length:,} tokens", file=sys.stderr)

    def keys(self, asked: Asked, length: int) -> Iterator[tuple[str, str, float | None]]:
        """(key, task, depth) of every cell of a row at a length."""
        for task in TEXTS if asked.model == "reader" else SAMPLES:
            for depth in DEPTHS if task == MAPPED else (None,):
                yield f"{asked.model} | {asked.row} | {task} | {length} | {depth}", task, depth

    def ask(self, asker: Asker, task: str, length: int, depth: float | None) -> dict[str, Any] | None:
        """A cell without its records; ``None`` where the task or the model cannot be asked at this length."""
        try:
            asker.check_length(length)
            cell: ProbeCell = asker.cell(probe_task(task), length, depth, SAMPLES[task] * self.options.samples, 0)
        except LengthError:
            return None
        told = asdict(cell)
        scores = [record["score"] for record in told.pop("records")]
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in told.items()} | {"scores": scores}

    def store(self) -> None:
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.cells), encoding="utf-8")
        partial.replace(self.file)

    def record(self) -> dict[str, Any]:
        """What is stored: cells by model and row."""
        told: list[dict[str, Any]] = []
        for asked in self.rows:
            found = [
                {"key": [task, length, depth], "cell": self.cells[key]}
                for length in self.options.lengths
                for key, task, depth in self.keys(asked, length)
                if key in self.cells
            ]
            told.append({"model": asked.model, "row": asked.row, "settings": asked.settings, "cells": found})
        seconds = sum(one["cell"]["seconds"] for row in told for one in row["cells"] if one["cell"] is not None)
        return {"machine": machine(), "samples": self.options.samples, "lengths": self.options.lengths, "seconds": seconds, "rows": told}


def cells_of(row: dict[str, Any], task: str, length: int) -> list[dict[str, Any]]:
    """The cells of a task at a length; several where depths differ."""
    return [one["cell"] for one in row["cells"] if one["key"][:2] == [task, length] and one["cell"] is not None]


def mean(row: dict[str, Any], task: str, length: int) -> tuple[float, float] | None:
    """Percent and its standard error over all texts; ``None`` if it was not asked."""
    scores = [100 * score for cell in cells_of(row, task, length) for score in cell["scores"]]
    if not scores:
        return None
    return statistics.fmean(scores), statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0


def markdown(record: dict[str, Any]) -> str:
    """A table for each model: a line per task, and in each cell the scores at all lengths."""
    lengths, parts = record["lengths"], []
    for model in dict.fromkeys(row["model"] for row in record["rows"]):
        found = [row for row in record["rows"] if row["model"] == model]
        lines = []
        for task in TEXTS if model == "reader" else SAMPLES:
            chances = [cell["chance"] for row in found for length in lengths for cell in cells_of(row, task, length)]
            chance = "" if not chances or chances[0] is None else shares(min(chances), max(chances))
            lines.append([f"{task}, n = {count(found, task, lengths)}", chance, *(in_a_cell(row, task, lengths) for row in found)])
        shown = " / ".join(f"{length:,}" for length in lengths)
        parts.append(f"**{TITLES[model]}**, percent right at {shown} tokens:\n")
        parts.append(markdown_table(["task", "chance", *(row["row"] for row in found)], lines) + "\n")
    about = record["machine"]
    parts.append(
        "*n: texts at each length. Standard errors over texts are in probes.json; with few texts of one answer they are up to "
        f"{worst(record):.0f} points. –: the task needs more tokens, or the model reads fewer; ·: not asked. "
        f"{record['seconds'] / 60:.0f} minutes; "
        f"{about['processor']}, {about['threads']} thread{'s' * (about['threads'] > 1)}, torch {about['torch']}, {about['date']}*"
    )
    return "\n".join(parts) + "\n"


def shares(low: float, high: float) -> str:
    return f"{low:.0f}" if f"{low:.0f}" == f"{high:.0f}" else f"{low:.0f} to {high:.0f}"


def count(found: Sequence[dict[str, Any]], task: str, lengths: Sequence[int]) -> str:
    """Texts at a length."""
    asked = [sum(cell["samples"] for cell in cells_of(row, task, length)) for row in found for length in lengths]
    return shares(min(filter(None, asked), default=0), max(asked, default=0))


def in_a_cell(row: dict[str, Any], task: str, lengths: Sequence[int]) -> str:
    """The scores at all lengths; "–" where the task or the model cannot be asked, "·" where it was not."""
    asked = {tuple(one["key"][:2]) for one in row["cells"]}
    found = {length: mean(row, task, length) for length in lengths}
    return " / ".join(f"{one[0]:.0f}" if one is not None else "–" if (task, length) in asked else "·" for length, one in found.items())


def worst(record: dict[str, Any]) -> float:
    """The largest standard error."""
    found = [mean(row, task, length) for row in record["rows"] for task in SAMPLES for length in record["lengths"]]
    return max((one[1] for one in found if one is not None), default=0.0)


def plot(record: dict[str, Any], path: Path) -> Path:
    """Heat maps of :data:`MAPPED` by depth and length, a panel for each row that was asked.

    Raises:
        LongAttentionError: matplotlib is not installed.
    """
    drawn = [row for row in record["rows"] if any(one["key"][0] == MAPPED and one["cell"] for one in row["cells"])]
    lengths = record["lengths"]
    with svg(path, len(drawn), width=2.7) as (figure, axes):
        for axis, row in zip(axes, drawn, strict=True):
            cells = {
                (one["key"][1], one["key"][2]): one["cell"]["score"] for one in row["cells"] if one["key"][0] == MAPPED and one["cell"]
            }
            image = axis.imshow(
                [[cells.get((length, depth), float("nan")) for length in lengths] for depth in DEPTHS],
                cmap="viridis", vmin=0, vmax=100, aspect="auto",
            )  # fmt: skip
            axis.set_xticks(range(len(lengths)), [f"{n / 1024:g}K" if n >= 1024 else str(n) for n in lengths])
            axis.set_yticks(range(len(DEPTHS)), [f"{100 * depth:g} %" for depth in DEPTHS])
            axis.set(xlabel="tokens", ylabel="depth of the pair" if axis is axes[0] else "")
            axis.set_title(f"{row['model']}\n{row['row']}", fontsize=8)
        figure.colorbar(image, ax=axes[-1], label=f"{MAPPED}, percent right")
    return path


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    options.work_dir.mkdir(parents=True, exist_ok=True)
    study = Study(options)
    if not options.measured:
        study.run()
    record = study.record()
    store_study(options.output, record, markdown(record))
    plot(record, options.output.with_suffix(".svg"))
    print(markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
