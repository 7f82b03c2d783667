"""Longformer's Table 5 (Beltagy et al. 2020, section 5) on the reference encoder: what positions and a short training do at long input.

    python -m scripts.dev.studies.table5 --work-dir work          # about half an hour on one core

Rows: the original on chunks of its length; converted to a long input with random positions and with copied ones, without training; and
copied positions after 2 % of the original's pre-training steps, at the learning rate that is best on the validation packages. With
--controls also random positions after as many steps, and copied ones of which only the new rows are trained. All rows predict the same
masked tokens of the same held-out documents. Models are kept in the work folder, and those that are complete are not trained again.
Writes OUTPUT.json and OUTPUT.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerBase

import hf_longattn
from hf_longattn.errors import CheckpointError
from scripts.dev.benchmarks.report import machine, markdown_table, one_sentence_errors, store_study
from scripts.dev.studies.adaptation import adapt, paired, standard_error, training_losses, write_long_documents
from scripts.dev.studies.corpus import iter_modules
from scripts.dev.studies.text_loss import MaskedText, masked_loss, masked_texts

PAPER = {
    "original": "1.846", "random positions": "10.299", "copied positions": "1.957", "copied positions + 0.02": "1.753 (+ 2K steps)",
    "copied positions, new rows only": "1.850 (+ 65K steps)",
}  # fmt: skip
"""RoBERTa-base in the paper's Table 5."""
TABLE = "position_embeddings.weight"
TOKENS_PER_STEP = 8192
"""Of the reference encoder's pre-training, and of the steps after it."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work-dir", type=Path, required=True, help="folder of the training text and the models; kept between runs")
    add("--model", type=Path, default=Path("model_cards/bert-python-512"), help="folder of the original, with its training_log.jsonl")
    add("--length", type=int, default=4096, help="tokens of the long input (default: 4096)")
    add("--documents", type=int, default=32, help="held-out documents, each at least as long (default: 32)")
    add("--share", type=float, default=0.02, help="steps of the short training, as a share of the pre-training's (default: 0.02)")
    add("--more", type=float, nargs="*", default=[], help="longer trainings of the copied positions, as shares")
    add("--controls", action="store_true", help="also train random positions, and the new rows of copied ones alone")
    add("--learning-rates", type=float, nargs="+", default=[5e-4, 1e-4, 3e-5], metavar="RATE",
        help="highest learning rates to choose from (default: 5e-4 1e-4 3e-5)")  # fmt: skip
    add("--validation-documents", type=int, default=16, help="documents of the validation packages that choose it (default: 16)")
    add("--new-rows-learning-rate", type=float, default=5e-3, help="the same where only positions are trained (default: 5e-3)")
    add("--window", type=int, default=512, help="Longformer's window (default: 512)")
    add("--threads", type=int, default=0, help="processor threads (default: torch's)")
    add("--seed", type=int, default=0, help="seed of masks, data and random positions")
    add("--output", type=Path, default=Path("scripts/dev/results/table5"), help="path without suffix (default: %(default)s)")
    return parser.parse_args(arguments)


def pretraining_steps(model: Path) -> int:
    """The steps in the log of a reference checkpoint.

    Raises:
        CheckpointError: it has no log.
    """
    log = model / "training_log.jsonl"
    if not log.is_file():
        raise CheckpointError(
            f"{str(model)!r} has no training_log.jsonl, which says how long it was pre-trained; give --model a reference checkpoint"
        )
    return max(int(json.loads(line).get("step", 0)) for line in log.read_text(encoding="utf-8").splitlines())


def make_models(
    options: argparse.Namespace, steps: int, tokenizer: PreTrainedTokenizerBase, validation: Sequence[MaskedText]
) -> dict[str, dict[str, Any]]:
    """Convert and train; {row: folder, steps, learning rate}. Folders that exist are used.

    The learning rate with the lowest loss on the ``validation`` texts after the short training is that of all rows; the losses of all
    rates are kept with the row of the short training.
    """
    work, length = options.work_dir, options.length
    text = write_long_documents(
        work / f"train-{length}.jsonl",
        4 * length,
        max(4_000_000, round(6 * max([0.0, *options.more]) * steps * TOKENS_PER_STEP)),
        options.seed,
    )
    rows: dict[str, dict[str, Any]] = {"original": {"folder": options.model, "steps": 0}}
    converted = {}
    for name, positions in (("random", "random"), ("copied", "tile")):
        converted[name] = work / f"{name}-{length}"
        if not converted[name].exists():
            attention = {"mechanism": "longformer", "window": options.window}
            hf_longattn.convert_checkpoint(
                options.model, converted[name], max_length=length, positions=positions, verify=False, **attention
            )
        rows[f"{name} positions"] = {"folder": converted[name], "steps": 0}
    run = partial(adapt, text=text, objective="mlm", length=length, rows=max(1, TOKENS_PER_STEP // length), seed=options.seed)

    def train(name: str, share: float, rate: float) -> dict[str, Any]:
        count = round(share * steps)
        folder = run(converted[name], work / f"{name}-{length}-{count}-{rate:g}", steps=count, learning_rate=rate)
        return {"folder": folder, "steps": count, "learning_rate": rate}

    searched = {rate: train("copied", options.share, rate) for rate in options.learning_rates}
    losses = {rate: validation_loss(row["folder"], tokenizer, validation) for rate, row in searched.items()}
    rate = min(losses, key=losses.__getitem__)
    untrained = validation_loss(converted["copied"], tokenizer, validation)
    rows[f"copied positions + {options.share:g}"] = searched[rate] | {
        "validation": {"untrained": untrained, **{f"{one:g}": loss for one, loss in losses.items()}}
    }
    for name, share in [("copied", share) for share in options.more] + [("random", options.share)] * options.controls:
        rows[f"{name} positions + {share:g}"] = train(name, share, rate)
    if options.controls:
        old = AutoModelForMaskedLM.from_pretrained(options.model).config.max_position_embeddings
        count, rate = round(options.share * steps), options.new_rows_learning_rate
        kept = work / f"rows-{length}-{count}-{rate:g}"
        folder = run(converted["copied"], kept, steps=count, learning_rate=rate, new_rows_of=TABLE, old_rows=old)
        rows["copied positions, new rows only"] = {"folder": folder, "steps": count, "learning_rate": rate}
    return rows


def validation_loss(folder: Path, tokenizer: PreTrainedTokenizerBase, texts: Sequence[MaskedText]) -> float:
    """Nats per masked token of the validation texts."""
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    return statistics.fmean(masked_loss(model, tokenizer, texts))


def characters(texts: Sequence[MaskedText], tokenizer: PreTrainedTokenizerBase) -> int:
    """The bytes of all masked tokens: a piece of a byte-level vocabulary is written with one character per byte."""
    return sum(len(piece) for text in texts for piece in tokenizer.convert_ids_to_tokens([text.tokens[place] for place in text.places]))


def evaluate(
    rows: dict[str, dict[str, Any]], tokenizer: PreTrainedTokenizerBase, texts: Sequence[MaskedText], short: int, length: int
) -> list[dict[str, Any]]:
    """The table: losses per document and in the mean, with the paired difference from the original."""
    table: list[dict[str, Any]] = []
    predicted, written = sum(len(text.places) for text in texts), characters(texts, tokenizer)
    for name, row in rows.items():
        model = AutoModelForMaskedLM.from_pretrained(row["folder"], dtype=torch.float32).eval()
        losses = masked_loss(model, tokenizer, texts, chunk=short if name == "original" else None)
        away, error = paired(losses, table[0]["losses"] if table else losses)
        total = sum(loss * len(text.places) for loss, text in zip(losses, texts, strict=True))
        table.append(
            {
                "row": name,
                "sequence_length": short if name == "original" else length,
                "steps": row["steps"],
                "learning_rate": row.get("learning_rate"),
                "validation": row.get("validation"),
                "nats": statistics.fmean(losses),
                "nats_se": standard_error(losses),
                "n": len(losses),
                "masked_tokens": predicted,
                "bits_per_token": total / predicted / math.log(2),
                "bits_per_character": total / written / math.log(2),
                "from_original": away,
                "from_original_se": error,
                "training_losses": training_losses(row["folder"]) if row["steps"] else [],
                "losses": losses,
            }
        )
        print(f"{name}: {table[-1]['nats']:.4f}", file=sys.stderr, flush=True)
    return table


def markdown(record: dict[str, Any]) -> str:
    """The table of a document."""
    about = record["about"]
    rows = [
        [
            described(row, about["pretraining_steps"]),
            f"{row['sequence_length']:,}",
            f"{row['nats']:.3f} ± {row['nats_se']:.3f}",
            f"{row['bits_per_token']:.3f}",
            f"{row['bits_per_character']:.3f}",
            "–" if row["row"] == "original" else f"{row['from_original']:+.3f} ± {row['from_original_se']:.3f}",
            PAPER.get(row["row"], "–"),
        ]
        for row in record["table"]
    ]
    header = [
        "model",
        "tokens",
        "nats per masked token",
        "bits per masked token",
        "bits per character",
        "− original, nats",
        "RoBERTa-base in the paper",
    ]
    first = record["table"][0]
    searched = next((row for row in record["table"] if row.get("validation")), None)
    return (
        f"{markdown_table(header, rows)}\n\n*n = {first['n']} documents of networkx and pandas ({first['masked_tokens']:,} masked tokens); "
        f"± standard error over documents; {about['processor']}, {about['threads']} thread, torch {about['torch']}, {about['date']}*\n"
        + (trained(searched, record["table"][2]) if searched else "")
    )


def trained(row: dict[str, Any], copied: dict[str, Any]) -> str:
    """What the short training changed, and how its learning rate was chosen."""
    away, error = paired(row["losses"], copied["losses"])
    losses = dict(row["validation"])
    untrained = losses.pop("untrained")
    tried = ", ".join(f"{rate}: {loss:.3f}" for rate, loss in losses.items())
    return (
        f"\nThe {row['steps']} steps change the loss of copied positions by {away:+.3f} ± {error:.3f} nats. Their learning rate is the "
        f"best of these on the validation packages: {tried} nats; {untrained:.3f} without training.\n"
    )


def described(row: dict[str, Any], steps: int) -> str:
    """The first column."""
    name = row["row"].partition(" + ")[0]
    return f"{name} + {row['steps']} steps ({100 * row['steps'] / steps:.0f} %)" if row["steps"] else name


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    steps = pretraining_steps(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    short = AutoModelForMaskedLM.from_pretrained(options.model).config.max_position_embeddings
    texts, validation = (
        masked_texts((one.text for one in iter_modules(split)), tokenizer, options.length, count, seed=options.seed)
        for split, count in (("test", options.documents), ("validation", options.validation_documents))
    )
    rows = make_models(options, steps, tokenizer, validation)
    about = {
        **machine(), "model": options.model.as_posix(), "pretraining_steps": steps, "tokens_per_step": TOKENS_PER_STEP,
        "window": options.window, "masked": "15 %, all by the mask token", "seed": options.seed,
    }  # fmt: skip
    record = {"about": about, "table": evaluate(rows, tokenizer, texts, short, options.length)}
    store_study(options.output, record, markdown(record))
    print(markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
