"""Held-out loss of two small decoders against the context they are given, before and after a short adaptation.

    python -m scripts.dev.studies.context --work-dir work  # pre-trains, converts, adapts and measures; some hours on one core, resumable

A GPT-2 and a Llama (rotary positions, SwiGLU, grouped queries) of 256 positions are pre-trained on Python source by the recipe of
:data:`RECIPE`, and converted to 8,192 tokens. The first 8,192 tokens of held-out documents are read in inputs of 256 to 8,192 tokens: the
same tokens are predicted at every length, only the context differs. Adaptation is the same for every row: the same documents, number of
tokens and learning rate; the original's, at its own length, is the control that tells context from mere training. Everything that is
complete in the work folder is used; the decoders may be measured by two processes (--models), and a run of both then joins their results.
Writes OUTPUT.json, OUTPUT.md and OUTPUT.svg; with --measured, of what is measured so far.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import hf_longattn
from hf_longattn.errors import LengthError, LongAttentionError
from hf_longattn.training import linearise_attention
from hf_longattn.training.args import build_arguments
from hf_longattn.training.tasks.linearise import LINEARISE
from scripts.dev.benchmarks.drawing import svg
from scripts.dev.benchmarks.report import machine, markdown_table, one_sentence_errors, store_study
from scripts.dev.studies.adaptation import adapt, paired, standard_error, write_long_documents
from scripts.dev.studies.corpus import InstalledPackages
from scripts.dev.studies.pretraining.data import CLS, SEP, load_tokens
from scripts.dev.studies.pretraining.data import prepare as prepare_data
from scripts.dev.studies.pretraining.export import export
from scripts.dev.studies.pretraining.loop import Pretraining, Recipe

RECIPE = Recipe(compile=True)
"""Of both decoders: the defaults of `python -m scripts.dev.studies.pretrain_reference train`, and :data:`TOKENS`."""
TOKENS = {"gpt2": 4_900_000, "llama": 2_000_000}
"""Pre-training tokens, the decay included."""
NAMES = {"gpt2": "GPT-2", "llama": "Llama"}
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
SHORT, LONG = LENGTHS[0], LENGTHS[-1]
SINKS = {"mechanism": "window", "window": SHORT, "num_sinks": 4}
LONGFORMER = {"mechanism": "longformer", "window": SHORT}
HYBRID = {"mechanism": "hybrid", "window": 64}


@dataclass(frozen=True)
class Row:
    """A way to read long text: ``settings`` of the conversion, none for the original. ``adapted``: it is trained as well."""

    name: str
    settings: dict[str, Any] | None = None
    adapted: bool = True


ROWS = {
    "gpt2": (
        Row("original"),
        Row("window + sinks", SINKS),
        Row("longformer-causal", LONGFORMER),
        Row("hybrid", HYBRID),
        Row("full attention, copied positions", {"mechanism": "full", "positions": "tile"}, adapted=False),
    ),
    "llama": (
        Row("original"),
        Row("window + sinks", {**SINKS, "positions": "rope:none"}),
        Row("longformer-causal", {**LONGFORMER, "positions": "rope:none"}),
        Row("hybrid", {**HYBRID, "positions": "rope:none"}),
        Row("full attention, YaRN", {"mechanism": "full", "positions": "rope:yarn"}),
        Row("full attention, interpolated", {"mechanism": "full", "positions": "rope:linear"}, adapted=False),
    ),
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work-dir", type=Path, required=True, help="folder of tokens, models and measured cells; kept between runs")
    add("--models", nargs="+", choices=list(ROWS), default=list(ROWS), help="decoders to measure (default: both)")
    add("--documents", type=int, default=8, help="held-out documents (default: 8)")
    add("--steps", type=int, default=12, help="steps of the adaptation, 8,192 tokens each (default: 12)")
    add("--learning-rate", type=float, default=5e-4, help="highest learning rate of the adaptation (default: 5e-4)")
    add("--transfer-steps", type=int, default=12, help="steps of attention distillation before it, for the hybrid's features (default: 12)")
    add("--transfer-learning-rate", type=float, default=2e-2, help="their learning rate (default: 2e-2)")
    add("--measured", action="store_true", help="train and measure nothing; write the tables of the rows that are complete")
    add("--threads", type=int, default=0, help="processor threads (default: torch's)")
    add("--seed", type=int, default=0, help="seed of pre-training and adaptation")
    add(
        "--output",
        type=Path,
        default=Path("scripts/dev/results/context"),
        help="path without suffix (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def pretrain(work: Path, architecture: str, seed: int) -> Path:
    """Pre-train or resume, and export; the folder of the original.

    Raises:
        LongAttentionError: a signal stopped the training.
    """
    target = work / f"{architecture}-{SHORT}"
    if not target.exists():
        recipe = replace(RECIPE, architecture=architecture, max_tokens=TOKENS[architecture], seed=seed)
        run = Pretraining(recipe, work)
        if not run.progress.schedule.finished(run.progress.tokens):
            run.run()
        if not run.progress.schedule.finished(run.progress.tokens):  # stopped by a signal, after which it has saved its state
            raise LongAttentionError(f"the pre-training of {NAMES[architecture]} was stopped; run the same command to resume it")
        export(work, architecture, target)
    return target


def held_out_documents(work: Path, count: int, length: int) -> np.ndarray:
    """The first ``length`` tokens of ``count`` documents of the test packages, spread evenly over those that are as long: (count, length).

    Raises:
        LengthError: there are fewer.
    """
    tokens = load_tokens(work, "test")
    ends = np.flatnonzero(tokens == SEP)
    starts = np.r_[0, ends[:-1] + 1]
    long = starts[ends - starts >= length]
    if len(long) < count:
        raise LengthError(f"only {len(long)} held-out documents have {length:,} tokens; ask for at most as many documents")
    chosen = long[np.linspace(0, len(long) - 1, count).round().astype(int)]
    return np.stack([tokens[start : start + length] for start in chosen]).astype(np.int64)


@torch.inference_mode()
def losses_at(model: PreTrainedModel, documents: np.ndarray, length: int) -> list[float]:
    """Mean next-token loss of each document, in nats, read in pieces of ``length`` tokens, the first of which is ``[CLS]``.

    Pieces have ``length`` - 1 tokens of the text, the last one fewer, so that an input never exceeds ``length``; every token is predicted.
    """
    found, at_once = [], max(1, 2048 // length)
    for document in documents:
        body = length - 1
        total = 0.0
        pieces = [document[start : start + body] for start in range(0, len(document), body)]
        whole = [piece for piece in pieces if len(piece) == body]
        groups = [whole[start : start + at_once] for start in range(0, len(whole), at_once)] + [
            [piece] for piece in pieces if len(piece) < body
        ]
        for group in groups:
            ids = torch.from_numpy(np.stack([np.r_[CLS, piece] for piece in group]))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
                logits = model.get_output_embeddings()(hidden)
            total += float(nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"))
        found.append(total / len(document))
    return found


def readable(config: Any, length: int) -> bool:
    """Whether a model has positions for an input: rotary ones have no limit, which is not to say that they were trained."""
    return config.model_type != "gpt2" or length <= config.n_positions


class Study:
    """One run of the command: the models of a work folder and the cells that were measured there."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work = options, options.work_dir
        self.documents = held_out_documents(self.work, options.documents, LONG)
        training = (options.steps, options.learning_rate, options.transfer_steps, options.transfer_learning_rate, options.seed)
        self.training = "-".join(f"{value:g}" for value in training)
        self.cells: dict[str, dict[str, list[float] | None]] = {}
        for name in options.models:
            file = self.file(name)
            self.cells[name] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def file(self, architecture: str) -> Path:
        """The measured cells of a decoder; one file each, which two processes do not share."""
        path: Path = self.work / f"cells-{self.options.documents}-{architecture}.json"
        return path

    def key(self, row: Row, adapted: bool, length: int) -> str:
        """The name of a cell, which other settings of the adaptation do not share."""
        return f"{row.name}{f', adapted {self.training}' if adapted else ''}: {length}"

    def run(self) -> None:
        """Everything that is missing: first all rows as converted, then those that are adapted."""
        originals = {name: pretrain(self.work, name, self.options.seed) for name in self.options.models}
        for adapted in (False, True):
            for architecture, original in originals.items():
                for row in ROWS[architecture]:
                    if row.adapted or not adapted:
                        folder = original if row.settings is None else self.convert(original, architecture, row)
                        folder = self.adapted(folder, architecture, row) if adapted else folder
                        self.measure(folder, architecture, row, adapted)

    def convert(self, original: Path, architecture: str, row: Row) -> Path:
        target: Path = self.work / "converted" / f"{architecture}-{slug(row.name)}"
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            hf_longattn.convert_checkpoint(original, target, max_length=LONG, verify=False, **(row.settings or {}))
        return target

    def adapted(self, source: Path, architecture: str, row: Row) -> Path:
        """Trained at 8,192 tokens; the original at its own length. The hybrid's features are first distilled from the original's attention
        at its own length, the only one at which it is a teacher."""
        options, name = self.options, f"{architecture}-{slug(row.name)}"
        folder: Path = self.work / f"adapted-{self.training}"
        folder.mkdir(exist_ok=True)
        text = write_long_documents(self.work / f"train-{LONG}.jsonl", 4 * LONG, 4_000_000, options.seed)
        if row.settings is not None and row.settings["mechanism"] == "hybrid":
            source = self.distilled(source, folder / f"{name}-distilled", text)
        length = SHORT if row.settings is None else LONG
        training = {"steps": options.steps, "learning_rate": options.learning_rate, "seed": options.seed}
        return adapt(source, folder / name, text, objective="clm", length=length, rows=LONG // length, **training)

    def distilled(self, source: Path, target: Path, text: Path) -> Path:
        if not (target / "distillation_report.json").exists():
            options, rows = self.options, LONG // SHORT
            settings: dict[str, Any] = {
                "text": [str(text)], "stage": "1", "max_length": SHORT, "per_device_train_batch_size": min(8, rows), "held_out_inputs": 8,
                "gradient_accumulation_steps": max(1, rows // 8), "transfer_steps": options.transfer_steps, "report_to": "none",
                "transfer_learning_rate": options.transfer_learning_rate, "seed": options.seed,
            }  # fmt: skip
            linearise_attention(*build_arguments(LINEARISE, model=str(source), output_dir=str(target), **settings))
        return target

    def measure(self, folder: Path, architecture: str, row: Row, adapted: bool) -> None:
        """All lengths of a row; a length that the model has no positions for is None."""
        cells = self.cells[architecture]
        wanted = [length for length in LENGTHS if self.key(row, adapted, length) not in cells]
        if not wanted:
            return
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for length in wanted:
            losses = losses_at(model, self.documents, length) if readable(AutoConfig.from_pretrained(folder), length) else None
            cells[self.key(row, adapted, length)] = losses
            self.file(architecture).write_text(json.dumps(cells), encoding="utf-8")
            shown = "no positions" if losses is None else f"{np.mean(losses):.4f}"
            print(f"{architecture}: {self.key(row, adapted, length)}: {shown}", file=sys.stderr, flush=True)

    def complete(self, architecture: str, row: Row, adapted: bool) -> bool:
        """Whether all lengths of a row are measured."""
        return all(self.key(row, adapted, length) in self.cells[architecture] for length in LENGTHS)

    def record(self) -> dict[str, Any]:
        """What is stored: the rows that are complete, and the names of those that are not.

        Raises:
            LongAttentionError: a decoder's original, with which its rows are compared, is not measured.
        """
        options = self.options
        tables: dict[str, list[dict[str, Any]]] = {}
        missing: dict[str, list[str]] = {name: [] for name in options.models}
        for architecture in options.models:
            found = self.cells[architecture]
            baseline = found.get(self.key(ROWS[architecture][0], False, SHORT))
            if baseline is None:
                raise LongAttentionError(f"the original {NAMES[architecture]} is not measured yet; run the command without --measured")
            for adapted in (False, True):
                for row in ROWS[architecture]:
                    if adapted and not row.adapted:
                        continue
                    entry: dict[str, Any] = {"row": row.name, "adapted": adapted, "settings": row.settings}
                    if self.complete(architecture, row, adapted):
                        cells = {str(length): summary(found[self.key(row, adapted, length)], baseline) for length in LENGTHS}
                        tables.setdefault(architecture, []).append(entry | {"losses": cells})
                    else:
                        missing[architecture].append(title(entry))
        about = {
            **machine(), "documents": len(self.documents), "tokens": int(self.documents.size), "dtype": "bf16 autocast",
            "adaptation": {"steps": options.steps, "tokens_per_step": LONG, "learning_rate": options.learning_rate},
            "distillation_of_hybrid": {"steps": options.transfer_steps, "learning_rate": options.transfer_learning_rate, "tokens": SHORT},
            "pretraining": {name: pretrained(self.work, name) for name in options.models}, "seed": options.seed,
        }  # fmt: skip
        return {"about": about, "tables": tables, "missing": missing}


def summary(losses: Sequence[float] | None, baseline: Sequence[float]) -> dict[str, Any] | None:
    """Mean, standard error and paired difference from the original at its own length."""
    if losses is None:
        return None
    away, error = paired(losses, baseline)
    mean = sum(losses) / len(losses)
    return {
        "loss": mean, "se": standard_error(losses), "n": len(losses), "perplexity": math.exp(min(mean, 700.0)),
        "from_original": away, "from_original_se": error,
    }  # fmt: skip


def pretrained(work: Path, architecture: str) -> dict[str, Any]:
    """Tokens, steps, parameters and the held-out loss at the end of a pre-training."""
    lines = [json.loads(line) for line in (work / architecture / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    model = AutoModelForCausalLM.from_pretrained(work / f"{architecture}-{SHORT}")
    return {
        "tokens": max(line.get("tokens", 0) for line in lines), "steps": max(line.get("step", 0) for line in lines),
        "parameters": model.num_parameters(),
        "held_out_loss": next((line["evaluation"]["loss"] for line in reversed(lines) if line.get("event") == "finished"), None),
    }  # fmt: skip


def slug(name: str) -> str:
    """A row's name as a folder."""
    return name.replace(" + ", "-").replace(", ", "-").replace(" ", "-")


def markdown(record: dict[str, Any]) -> str:
    """The tables of a document: one for each decoder."""
    about, parts = record["about"], []
    for architecture, table in record["tables"].items():
        made = about["pretraining"][architecture]
        rows = []
        for entry in table:
            cells = [entry["losses"][str(length)] for length in LENGTHS]
            last = cells[-1] or cells[0]
            away = f"{last['from_original']:+.3f} ± {last['from_original_se']:.3f}"
            rows.append([title(entry), *map(shown, cells), away])
        header = ["nats per token", *(f"{length:,}" for length in LENGTHS), "longest − original at 256"]
        parts.append(
            f"**{NAMES[architecture]}**, {made['parameters'] / 1e6:.1f} M parameters, {made['tokens'] / 1e6:.1f} M tokens of pre-training "
            f"at {SHORT} positions:\n\n{markdown_table(header, rows)}\n"
        )
        if record["missing"][architecture]:
            parts.append(f"Not measured yet: {'; '.join(record['missing'][architecture])}.\n")
    adaptation = about["adaptation"]
    return (
        "\n".join(parts) + f"\n*n = {about['documents']} held-out documents of {LONG:,} tokens; adaptation: {adaptation['steps']} steps of "
        f"{adaptation['tokens_per_step']:,} tokens; ± standard error of the difference over documents; {about['processor']}, "
        f"{about['threads']} thread, torch {about['torch']}, {about['date']}*\n"
    )


def title(entry: dict[str, Any]) -> str:
    """The name of a row with what was done to it."""
    return f"{entry['row']}{', adapted' if entry['adapted'] else ''}"


def shown(cell: dict[str, Any] | None) -> str:
    """A loss in a table."""
    return "–" if cell is None else f"{cell['loss']:.3f}"


def plot(record: dict[str, Any], path: Path) -> Path:
    """Loss over the length of the input: one panel for each decoder; dashed before the adaptation, solid after it."""
    with svg(path, len(record["tables"]), width=6.4) as (_, panels):
        from matplotlib.ticker import FuncFormatter, NullFormatter

        for panel, (architecture, table) in zip(panels, record["tables"].items(), strict=True):
            colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(entry["row"] for entry in table))}
            for entry in table:
                points = [(length, entry["losses"][str(length)]) for length in LENGTHS]
                line = [(length, cell["loss"]) for length, cell in points if cell is not None]
                style: dict[str, Any] = {"linestyle": "-" if entry["adapted"] else "--", "color": colours[entry["row"]]}
                panel.plot(
                    *zip(*line, strict=True),
                    marker="o" if entry["adapted"] else "x",
                    markersize=4,
                    linewidth=1.4,
                    label=title(entry),
                    **style,
                )
            panel.set(
                xscale="log", xlabel="tokens of an input", ylabel="held-out nats per token", xticks=LENGTHS, title=NAMES[architecture]
            )
            losses = [cell["loss"] for entry in table for cell in entry["losses"].values() if cell is not None]
            panel.set_ylim(min(losses) - 0.1, min(max(losses), min(losses) + 3.0) + 0.1)
            panel.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1024:g}K" if n >= 1024 else f"{n:g}"))
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.grid(alpha=0.3)
            panel.legend(frameon=False, fontsize=7)
    return path


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    prepare_data(InstalledPackages(), options.work_dir)
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
