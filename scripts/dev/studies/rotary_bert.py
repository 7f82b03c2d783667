"""Rotary positions in place of the table of the project's BERT: its masked loss by length.

    python -m scripts.dev.studies.rotary_bert --work runs/rotary-bert            seed 0; resumes what was interrupted
    python -m scripts.dev.studies.rotary_bert --work runs/quick --quick          a minute of training, few documents

The model of ``model_cards/bert-python-512`` is converted with ``--positions rotary`` and distilled from itself on inputs of 512 tokens of
Python source. Held-out source is read in inputs of every length. All of it is done by commands of users, which are printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scripts.dev import RESULTS, ROOT
from scripts.dev.benchmarks.report import footnote, markdown_table, one_sentence_errors
from scripts.dev.studies.corpus import iter_modules
from scripts.dev.studies.joint_reading import finish, read_options, run, write
from scripts.dev.studies.rotary_encoder import copies, rules

OUTPUT = RESULTS / "rotary_bert"
SOURCE = ROOT / "model_cards" / "bert-python-512"
TRAINED, LENGTHS = 512, (512, 1024, 2048, 4096)
LONG, HEAD_DIM = LENGTHS[-1], 64
RULES = rules(TRAINED, LONG, HEAD_DIM)
CHARACTERS = 8 * LONG
"""Characters of a file from which its first tokens are taken: more than :data:`LONG` tokens."""
TILED = "tiled table, windows of 512, untrained"


class Minutes(NamedTuple):
    """Minutes of the distillation."""

    distillation: float = 30.0


def texts(work: Path, documents: int) -> None:
    """Write every fourth file of the training, and held-out files cut to :data:`LONG` tokens with the special ones."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SOURCE)
    write(work / "train.jsonl", [{"text": module.text} for number, module in enumerate(iter_modules("train")) if number % 4 == 0])
    found: list[dict[str, Any]] = []
    for module in iter_modules("test"):
        if len(found) == documents:
            break
        start = module.text[:CHARACTERS]
        offsets = tokenizer(start, truncation=True, max_length=LONG, return_offsets_mapping=True)["offset_mapping"]
        text = start[: max(end for _, end in offsets)]
        if len(tokenizer(text)["input_ids"]) == LONG:
            found.append({"text": text})
    write(work / "test.jsonl", found)


def train(work: Path, minutes: Minutes) -> None:
    """Make the model with a tiled table, the rotary one, and a copy of it for each of :data:`RULES`."""
    if not (work / "rotary" / "model.safetensors").exists():
        run("convert", SOURCE, work / "rotary-start", "--mechanism", "full", "--max-length", LONG, "--positions", "rotary", "--overwrite")
        run("train", "distill", "--method", "logits", "--model", work / "rotary-start", "--teacher", SOURCE, "--text", work / "train.jsonl",
            "--max-length", TRAINED, "--batch-size", 8, "--gradient-accumulation-steps", 1, "--learning-rate", "5e-4", "--max-minutes",
            minutes.distillation, "--max-eval-samples", 100, "--logging-steps", 50, "--output", work / "rotary", "--overwrite")  # fmt: skip
    copies(work, RULES)
    if not (work / "tiled").exists():
        run("convert", SOURCE, work / "tiled", "--mechanism", "longformer", "--option", "window=512", "--max-length", LONG)


def loss(work: Path, model: Path, length: int) -> list[float]:
    """The masked loss of the held-out texts in inputs of ``length`` tokens, and its standard error."""
    folder = work / "scores" / f"{model.name} {length}"
    if not (folder / "scores.json").exists():
        run("evaluate", "mlm", "--model", model, "--text", work / "test.jsonl", "--max-length", length, "--no-bf16", "--output", folder)
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["held_out_loss"]
    return [scores["after"], scores["standard_error"]]


def losses(work: Path) -> dict[str, dict[str, list[float]]]:
    """The loss of every model at every length that it reads."""
    models: dict[str, tuple[Path, Sequence[int]]] = {"original": (SOURCE, [TRAINED]), TILED: (work / "tiled", LENGTHS)}
    models["rotary, before training"] = work / "rotary-start", [TRAINED]
    models |= {f"rotary, {rule}": (work / f"rotary {rule}", LENGTHS) for rule in RULES}
    return {row: {str(length): loss(work, model, length) for length in lengths} for row, (model, lengths) in models.items()}


def markdown(record: Mapping[str, Any]) -> str:
    """The loss of every model by length, and how it was measured."""
    rows = [[row, *("{:.2f} ± {:.2f}".format(*found[str(n)]) if str(n) in found else "–" for n in LENGTHS)]
            for row, found in record["table"].items()]  # fmt: skip
    table = markdown_table(["masked loss, nats; tokens of an input", *(f"{length:,}" for length in LENGTHS)], rows)
    before, after, source = (record["table"][row][str(TRAINED)][0] for row in ("rotary, before training", "rotary, as trained", "original"))
    return (
        f"# Rotary positions in place of a table: masked loss of bert-python-512\n\n{table}\n\n"
        f"{Minutes(*record['minutes']).distillation:g} minutes of distillation on inputs of {TRAINED} tokens, which win back "
        f"{100 * (before - after) / (before - source):.0f} % of the loss that the conversion costs at {TRAINED} tokens. "
        f"{record['test']['documents']} held-out files of {LONG:,} tokens; ± is the standard error over inputs; one seed.\n\n"
        f"{footnote(record['machine'])}"
    )


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the study; return its exit code."""
    options = read_options(arguments, __doc__, OUTPUT, Minutes, "of the distillation", quick="8 documents")
    work, options.seeds = options.work, [0]
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "test.jsonl").exists():
        texts(work, 8 if options.quick else 80)
    train(work, options.minutes)
    documents = len((work / "test.jsonl").read_text(encoding="utf-8").splitlines())
    finish(options, {"documents": documents}, losses(work), markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
