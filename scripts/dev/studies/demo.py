"""The whole path on a fresh machine, without a network (10 minutes at most, 2 cores).

    make demo                        or   python scripts/demo.py
    python scripts/demo.py --minutes 1 --per-length 4        a shorter look

First, all-MiniLM-L6-v2 is converted (`make install` has installed it), compared with the original, and searches in READMEs.
Then a 512-token question-answering model is converted, scored on long documents, fine-tuned, and scored again, by the commands of users. It
is committed, in model_cards/bert-python-512-qa. All scores and the model card are made here.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from scripts.dev import ROOT

ASSET = ROOT / "model_cards" / "bert-python-512-qa"
LENGTH, WINDOW = 8192, 256
TRAINING_QUESTIONS = 60
"""Of each length: more than a training of these minutes reads."""
console = Console(width=None if sys.stdout.isatty() else 120)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default=str(ASSET), help="512-token QA model to convert (default: the committed one)")
    add("--output", default="demo_output", help="folder for models, scores and the table (default: demo_output)")
    add("--minutes", type=float, default=1.5, help="minutes of fine-tuning (default: 1.5)")
    add("--per-length", type=int, default=16, help="questions of each length of documents (default: 16)")
    add("--threads", type=int, default=0, help="processor threads (default: torch's)")
    return parser.parse_args(arguments)


def convert(options: argparse.Namespace, out: Path) -> Path:
    """Convert, verify, and show what came out."""
    from hf_longattn import convert_checkpoint
    from hf_longattn.cli.show import show_report

    step(2, f"Convert the committed 512-token QA model to {LENGTH:,} tokens with longformer attention")
    console.print(
        f"   longattn convert {options.model} {out / 'converted'} --mechanism longformer --option window={WINDOW} --max-length {LENGTH}"
    )
    console.print("   With a network the same command takes a Hub name:")
    console.print("   longattn convert deepset/bert-base-cased-squad2 long-bert --mechanism longformer --max-length 4096\n")
    show_report(convert_checkpoint(options.model, out / "converted", mechanism="longformer", window=WINDOW, max_length=LENGTH))
    return out / "converted"


def questions(options: argparse.Namespace, out: Path) -> None:
    """Write the questions of the test and of the training."""
    from hf_longattn.data.qa_schemas import save_qa
    from hf_longattn.training import load_qa_model
    from scripts.dev.studies.base_classes import records

    _, tokenizer = load_qa_model(options.model)
    for split, count in (("test", options.per_length), ("train", TRAINING_QUESTIONS)):
        found = records(split, tokenizer, count)
        save_qa(found, out / f"{split}.jsonl")
    console.print(f"   {found[-1]['question']}  Answer: {found[-1]['answers']['text'][0]}", markup=False)


def run(command: str, options: argparse.Namespace, *words: object) -> None:
    """Run a command of the package on questions, after printing it.

    Raises:
        LongAttentionError: it failed.
    """
    from hf_longattn.cli.train import train
    from hf_longattn.errors import LongAttentionError

    arguments = [*map(str, words), "--threads", str(options.threads)]
    console.print(f"   longattn {command} qa {shlex.join(arguments)}", markup=False)
    if train("qa", arguments, command):
        raise LongAttentionError(f"longattn {command} failed; see above")


def score(label: str, model: str | Path, out: Path, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """The scores of a model, and its ``seconds`` a question."""
    folder, started = out / "scores" / label.replace(" ", "-").replace(",", ""), time.monotonic()
    run("evaluate", options, "--model", model, "--data", out / "test.jsonl", "--output", folder, "--no-bf16", "--batch-size", "1", *more)
    scores: dict[str, Any] = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["held_out"]["after"]
    return {**scores, "seconds": (time.monotonic() - started) / scores["n"]}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Exact match and F1 of every row, and seconds a question."""
    from hf_longattn.evaluation.summaries import plus_minus
    from scripts.dev.benchmarks.report import footnote, machine, markdown_table

    lines = [
        [label, *(plus_minus(scores[name], scores.get(f"{name}_se"), 1) for name in ("exact_match", "f1")), f"{scores['seconds']:.2f}"]
        for label, scores in rows.items()
    ]
    header = [f"{next(iter(rows.values()))['n']} questions", "exact match, %", "F1, %", "seconds a question"]
    return f"{markdown_table(header, lines)}\n\n{footnote(machine())}"


def step(number: int, text: str) -> None:
    """Announce a step."""
    console.print(f"\n[bold]{number}. {text}[/bold]")


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return its exit code."""
    options = parse(arguments)
    started = time.monotonic()
    console.print("[bold]hf_longattn: models of 512 tokens read thousands[/bold]  (no network needed)")
    console.print("   Loading libraries ...")
    import torch
    import transformers

    import hf_longattn.cli.app  # noqa: F401 (before transformers: it silences warnings about kernels for other devices)
    from hf_longattn.errors import LongAttentionError
    from scripts.dev.studies.readme_search import show_search
    from scripts.dev.studies.real_checkpoint import show_real_checkpoint

    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    out, rows = Path(options.output), dict[str, dict[str, Any]]()
    try:
        for name in ("minilm", "search", "converted", "scores", "fine-tuned"):
            shutil.rmtree(out / name, ignore_errors=True)
        step(1, "Convert all-MiniLM-L6-v2, a sentence encoder that many programs use, and compare it with the original")
        show_real_checkpoint(console, out)
        show_search(console, out / "minilm", out / "search")
        converted = convert(options, out)
        step(3, "Score on long documents from packages that no training ever saw, before any training")
        questions(options, out)
        for label, model, more in (
            ("first 512 tokens", options.model, ("--long-documents", "truncate")),
            ("windows of 512, stride 128", options.model, ("--stride", "128")),
            ("converted to longformer", converted, ()),
        ):
            rows[label] = score(label, model, out, options, *more)
        step(4, f"Fine-tune the converted model on long documents for {options.minutes:g} minutes (here and now, with Trainer)")
        run("train", options, "--model", converted, "--data", out / "train.jsonl", "--output", out / "fine-tuned", "--max-minutes",
            f"{options.minutes:g}", "--learning-rate", "2e-5", "--no-eval-before-training", "--max-eval-samples", "8")  # fmt: skip
        step(5, "Score the fine-tuned model on the same questions")
        rows["longformer, fine-tuned"] = score("longformer, fine-tuned", out / "fine-tuned", out, options)
        step(6, "What came out: exact answers, per cent ± standard error")
        (out / "long_qa.md").write_text(table(rows), encoding="utf-8")
        console.print(Markdown(table(rows)))
        console.print(
            f"   the table {out / 'long_qa.md'}, scores and answers {out / 'scores'}, model card {out / 'fine-tuned' / 'README.md'}"
        )
        console.print("   Committed: the 512-token QA model. Made here: both conversions, the fine-tuned model, all scores and times.")
        console.print("   all-MiniLM-L6-v2, trained for questions that need two places of a page, in two hours: docs/results/long_qa.md")
        console.print(f"   Done in {(time.monotonic() - started) / 60:.1f} minutes.")
    except LongAttentionError as error:
        console.print(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
