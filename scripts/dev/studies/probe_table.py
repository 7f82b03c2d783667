"""What the reference checkpoints retrieve before and after conversion: RULER's tasks, passkeys, recall, induction and copies.

    python -m scripts.dev.studies.probe_table --work-dir work  # converts and asks; resumable
    python -m scripts.dev.studies.probe_table --work-dir work --samples 4 --models encoder   # four times as many texts, with those stored

The reference encoder (model_cards/bert-python-512), the reference reader (model_cards/bert-python-512-qa), and the two decoders that
`python -m scripts.dev.studies.context --work-dir work` pre-trains are asked as they are and as they are converted, without further
training. The encoder's and the decoders' answers are compared with wrong ones by likelihood, since models of five million parameters
generate no answer in words; the reader marks spans, the original one in windows of 512 tokens. Every text that was asked is kept in the
work folder. What differs between models is shown by length, with more texts; where all of them guess, the lengths are shown together.
Writes OUTPUT.json, OUTPUT.md, and OUTPUT.svg, heat maps of induction by depth and length."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import hf_longattn
from hf_longattn.errors import LengthError
from hf_longattn.evaluation.probes.run import Asker, open_model, probe_task
from scripts.dev import ROOT
from scripts.dev.benchmarks.drawing import svg
from scripts.dev.benchmarks.report import machine, markdown_table, one_sentence_errors, store_study
from scripts.dev.studies.context import LONG, ROWS, TOKENS, pretrain, slug

CHECKPOINTS = ROOT / "model_cards"
LENGTHS = (512, 1024, 2048, 4096)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
MAPPED = "induction"
"""The task that is drawn by depth."""
BY_LENGTH = {"encoder": {"mqar": 40, "induction": 8, "copy": 4}}
"""Tasks that tell a model's conversions apart, and texts of them at 512 tokens, for induction at each depth; of longer texts, as many as
take the same time. A text of mqar has eight questions, one of a copy hundreds of answers."""
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
"""Texts at each length, of tasks that are shown with all lengths together."""
FIRST = list(SAMPLES)[:3]
"""Tasks that are measured first."""
TEXTS = [name for name in SAMPLES if name not in ("copy", "mqar", "forgetting", "compositional", "induction")]
"""What a reader can be asked."""
BERT = {"mechanism": "longformer", "window": 512}

FURTHER: dict[str, dict[str, Any]] = {
    "strided": {"mechanism": "strided", "window": 512, "stride": 64},
    "block_top_k": {"mechanism": "block_top_k", "block_size": 64, "num_blocks": 8},
}
"""Further mechanisms of the encoder; asked only what :data:`BY_LENGTH` has."""


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
    for name, settings in FURTHER.items():
        yield Asked("encoder", name, {**settings, "max_length": 4096})
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
    add("--work-dir", type=Path, required=True, help="folder of scripts.dev.studies.context's models, conversions and measured cells")
    add("--samples", type=int, default=1, help="factor of the numbers of texts (default: 1)")
    add("--tasks", nargs="+", choices=list(SAMPLES), default=list(SAMPLES), help="what they are asked (default: all)")
    add("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens of a text (default: 512 1024 2048 4096)")
    add("--models", nargs="+", choices=list(TITLES), default=list(TITLES), help="what is asked (default: all)")
    add("--measured", action="store_true", help="ask nothing; write the tables of what was asked")
    add("--threads", type=int, default=0, help="processor threads (default: torch's)")
    add("--output", type=Path, default=Path("scripts/dev/results/probes"), help="path without suffix (default: %(default)s)")
    return parser.parse_args(arguments)


def folder_of(work: Path, asked: Asked) -> Path:
    """The checkpoint of a row, which is made if it does not exist."""
    if asked.model in ("encoder", "reader"):
        source = CHECKPOINTS / ("bert-python-512" if asked.model == "encoder" else "bert-python-512-qa")
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
        self.file: Path = options.work_dir / "probes.json"
        self.cells: dict[str, dict[str, Any] | None] = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        self.rows = [one for one in rows() if one.model in options.models]

    def run(self) -> None:
        """Ask what is missing: :data:`FIRST` tasks first, short texts first."""
        for first, length in itertools.product((True, False), sorted(self.options.lengths)):
            for asked in self.rows:
                keys = [key for key in self.keys(asked, length) if key[1] in self.options.tasks and (key[1] in FIRST) is first]
                missing = [key for key in keys if self.asks(*key)]
                if not missing:
                    continue
                model, tokenizer, head = open_model(folder_of(self.options.work_dir, asked))
                model.eval()
                asker = Asker(model, tokenizer, head, "span" if head == "span" else "likelihood", choices=8)
                for key, task, depth, texts in missing:
                    self.cells[key] = self.ask(asker, task, length, depth, texts, self.cells.get(key))
                    self.store()
                print(f"{asked.model}, {asked.row}: {length:,} tokens", file=sys.stderr)

    def asks(self, key: str, task: str, depth: float | None, texts: int) -> bool:
        """Whether a cell has fewer texts than wanted; one that cannot be asked has enough."""
        cell = self.cells.get(key)
        return texts > 0 and (key not in self.cells or (cell is not None and cell["samples"] < texts))

    def keys(self, asked: Asked, length: int) -> Iterator[tuple[str, str, float | None, int]]:
        """(key, task, depth, wanted texts) of every cell of a row at a length."""
        by_length = BY_LENGTH.get(asked.model, {})
        for task in by_length if asked.row in FURTHER else TEXTS if asked.model == "reader" else SAMPLES:
            texts = max(1, by_length[task] * LENGTHS[0] // max(length, LENGTHS[0])) if task in by_length else SAMPLES[task]
            for depth in DEPTHS if task == MAPPED else (None,):
                yield f"{asked.model} | {asked.row} | {task} | {length} | {depth}", task, depth, texts * self.options.samples

    def ask(
        self, asker: Asker, task: str, length: int, depth: float | None, texts: int, before: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        """A cell with its scores, those that were asked ``before`` among them; ``None`` where the task or the model cannot be asked at this
        length."""
        told = before or {"task": task, "length": length, "depth": depth, "seconds": 0.0, "chance": None, "scores": []}
        scores, chances, started = list(told["scores"]), [told["chance"]] * len(told["scores"]), time.perf_counter()
        try:
            asker.check_length(length)
            for number in range(len(scores), texts):
                found = asker.ask(probe_task(task), asker.sample(probe_task(task), length, depth, f"0/{number}"), length)
                scores.append(found.score)
                chances.append(None if found.chance is None else 100 * found.chance)
        except LengthError:
            return None
        return told | {
            "score": round(100 * statistics.fmean(scores), 4),
            "chance": None if chances[-1] is None else round(statistics.fmean(chances), 4),
            "samples": len(scores),
            "seconds": round(told["seconds"] + time.perf_counter() - started, 4),
            "scores": scores,
        }

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
                for key, task, depth, _ in self.keys(asked, length)
                if key in self.cells
            ]
            told.append({"model": asked.model, "row": asked.row, "settings": asked.settings, "cells": found})
        seconds = sum(one["cell"]["seconds"] for row in told for one in row["cells"] if one["cell"] is not None)
        return {"machine": machine(), "samples": self.options.samples, "lengths": self.options.lengths, "seconds": seconds, "rows": told}


def cells_of(row: dict[str, Any], task: str, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """The cells of a task at these lengths; several where depths differ."""
    return [one["cell"] for one in row["cells"] if one["key"][0] == task and one["key"][1] in lengths and one["cell"] is not None]


def in_a_cell(row: dict[str, Any], task: str, lengths: Sequence[int]) -> str:
    """Percent ± standard error over texts; "–" where the task or the model cannot be asked, "·" where it was not."""
    scores = [100 * score for cell in cells_of(row, task, lengths) for score in cell["scores"]]
    if not scores:
        return "–" if any(one["key"][0] == task and one["key"][1] in lengths for one in row["cells"]) else "·"
    error = f" ± {statistics.stdev(scores) / len(scores) ** 0.5:.0f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.0f}{error}"


def span(values: Sequence[float]) -> str:
    """The range of some numbers, "" if there are none."""
    found = sorted({f"{value:.0f}" for value in values}, key=float)
    return found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}" if found else ""


def texts_of(found: Sequence[dict[str, Any]], task: str, lengths: Sequence[int]) -> str:
    """Texts of a row, at these lengths together."""
    return span([n for row in found if (n := sum(cell["samples"] for cell in cells_of(row, task, lengths)))])


def chance(found: Sequence[dict[str, Any]], task: str, lengths: Sequence[int]) -> str:
    """What guessing scores, in percent."""
    return span([cell["chance"] for row in found for cell in cells_of(row, task, lengths) if cell["chance"] is not None])


def shown_by_length(found: Sequence[dict[str, Any]], lengths: Sequence[int]) -> str:
    """The table of a model's :data:`BY_LENGTH` tasks, given its rows; "" if it has none."""
    tasks = [task for task in BY_LENGTH.get(found[0]["model"], ()) if any(cells_of(row, task, lengths) for row in found)]
    lines = [
        [
            f"{task} (chance {chance(found, task, lengths) or 0})" if row is found[0] else "",
            row["row"],
            *(in_a_cell(row, task, [length]) for length in lengths),
        ]
        for task in tasks
        for row in found
        if cells_of(row, task, lengths)
    ]
    lines += [[f"texts of {task}", "", *(texts_of(found, task, [length]) for length in lengths)] for task in tasks]
    return markdown_table(["task", "conversion", *(f"{length:,} tokens" for length in lengths)], lines) + "\n" if lines else ""


def shown_together(found: Sequence[dict[str, Any]], lengths: Sequence[int]) -> str:
    """The table of a model's other tasks, all lengths together; "" if none was asked."""
    tasks = [
        task for task in SAMPLES if task not in BY_LENGTH.get(found[0]["model"], ()) and any(cells_of(row, task, lengths) for row in found)
    ]
    rows = [row for row in found if any(cells_of(row, task, lengths) for task in tasks)]
    lines = [
        [task, chance(rows, task, lengths), texts_of(rows, task, lengths), *(in_a_cell(row, task, lengths) for row in rows)]
        for task in tasks
    ]
    return markdown_table(["task, all lengths", "chance", "texts", *(row["row"] for row in rows)], lines) + "\n" if lines else ""


def encoder_markdown(record: dict[str, Any]) -> str:
    """The encoder's table by length."""
    return shown_by_length([row for row in record["rows"] if row["model"] == "encoder"], record["lengths"]).strip()


def markdown(record: dict[str, Any]) -> str:
    """For each model, a table of :data:`BY_LENGTH` tasks, and one of the others with all lengths together."""
    lengths, parts = record["lengths"], []
    for model in dict.fromkeys(row["model"] for row in record["rows"]):
        found = [row for row in record["rows"] if row["model"] == model]
        parts.append(f"**{TITLES[model]}**, percent right ± standard error over texts:\n")
        parts += [table for table in (shown_by_length(found, lengths), shown_together(found, lengths)) if table]
    about = record["machine"]
    parts.append(
        f"*Lengths: {', '.join(f'{length:,}' for length in lengths)} tokens; an original is asked up to its length. –: the task needs more "
        f"tokens, or the model reads fewer; ·: not asked. {record['seconds'] / 60:.0f} minutes; "
        f"{about['processor']}, {about['threads']} thread{'s' * (about['threads'] > 1)}, torch {about['torch']}, {about['date']}*"
    )
    return "\n".join(parts) + "\n"


def plot(record: dict[str, Any], path: Path) -> Path | None:
    """Heat maps of :data:`MAPPED` by depth and length, a panel for each conversion of the models
    that are shown by length; ``None`` if none was asked.

    Raises:
        LongAttentionError: matplotlib is not installed.
    """
    drawn = [row for row in record["rows"] if row["model"] in BY_LENGTH and cells_of(row, MAPPED, record["lengths"])]
    if not drawn:
        return None
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
