"""The whole path on a fresh machine, without a network (10 minutes at most, 2 cores).

    make demo                        or   python scripts/demo.py
    python scripts/demo.py --minutes 1 --per-length 4        a shorter look

First, all-MiniLM-L6-v2 is converted (`make install` has installed it), and compared with the original.
Then a 512-token question-answering model is converted, scored, fine-tuned on long documents, and scored again. It is committed, in
model_cards/bert-python-512-qa. All scores, tables and the model card are made here.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import Progress

from scripts.dev import ROOT

ASSET = ROOT / "model_cards" / "bert-python-512-qa"
BEFORE, AFTER = "converted to longformer", "longformer, fine-tuned"
LENGTH, WINDOW = 8192, 256
TRAINING_LENGTHS, TRAINING_QUESTIONS = (1024, 2048, 4096), 60
"""Of the packages for validation: reading those for training takes minutes, for a training that uses about 50 documents."""
console = Console(width=None if sys.stdout.isatty() else 120)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default=str(ASSET), help="512-token QA model to convert (default: the committed one)")
    add("--output", default="demo_output", help="folder for models, tables and card (default: demo_output)")
    add("--minutes", type=float, default=1.5, help="minutes of fine-tuning (default: 1.5)")
    add("--data", nargs="+", default=["argument", "base", "lookup"], help="tasks to score (default: argument base lookup)")
    add("--per-length", type=int, default=8, help="questions per length and data set (default: 8)")
    add("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="lengths of lookup documents")
    add("--threads", type=int, default=0, help="processor threads (default: torch's)")
    return parser.parse_args(arguments)


def convert(options: argparse.Namespace, out: Path) -> Path:
    """Convert, verify, and show what came out."""
    from hf_longattn import convert_checkpoint
    from hf_longattn.cli.checkpoints import conversion_report
    from hf_longattn.cli.terminal import show

    step(2, f"Convert the committed 512-token QA model to {LENGTH:,} tokens with longformer attention")
    console.print(
        f"   longattn convert {options.model} {out / 'converted'} --mechanism longformer --option window={WINDOW} --max-length {LENGTH}"
    )
    console.print("   With a network the same command takes a Hub name:")
    console.print("   longattn convert deepset/bert-base-cased-squad2 long-bert --mechanism longformer --max-length 4096\n")
    report = convert_checkpoint(options.model, out / "converted", mechanism="longformer", window=WINDOW, max_length=LENGTH)
    show(report.to_dict(), conversion_report(report))
    return out / "converted"


def readers(options: argparse.Namespace, converted: Path) -> list[Any]:
    """The rows that need no training."""
    from hf_longattn.evaluation.qa_reader import QAReader
    from hf_longattn.training import load_qa_model
    from scripts.dev.studies.qa_baselines import LexicalRule, RandomCandidate

    model, tokenizer = load_qa_model(options.model)
    return [
        RandomCandidate(),
        LexicalRule(),
        QAReader(model, tokenizer, 512, None, name="first 512 tokens"),
        QAReader(model, tokenizer, 512, 128, name="windows of 512, stride 128"),
        long_reader(BEFORE, converted),
    ]


def long_reader(row: str, folder: Path) -> Any:
    """A converted model that reads the whole document."""
    from hf_longattn.evaluation.qa_reader import QAReader
    from hf_longattn.training import load_qa_model

    model, tokenizer = load_qa_model(str(folder))
    return QAReader(model, tokenizer, LENGTH, batch_size=1, name=row)


def score(systems: list[Any], sets: dict[str, list[dict[str, Any]]], what: str) -> list[Any]:
    """Ask all questions, with a progress bar per data set."""
    from scripts.dev.studies.qa_run import run_readers

    answers = []
    with Progress(console=console) as progress:
        for name, records in sets.items():
            task = progress.add_task(f"   {what}: {name}, {len(records)} questions", total=len(records))
            answers += run_readers(systems, records, name, partial(progress.advance, task))
    return answers


def fine_tune(options: argparse.Namespace, converted: Path, out: Path) -> Path:
    """Train the converted model for a few minutes on questions about other packages, by `longattn train qa`."""
    from hf_longattn.cli.train import train
    from hf_longattn.data.qa_schemas import save_qa
    from hf_longattn.errors import LongAttentionError
    from hf_longattn.training import load_qa_model
    from scripts.dev.studies.qa_run import evaluation_set

    step(4, f"Fine-tune the converted model on long documents for {options.minutes:g} minutes (here and now, with Trainer)")
    _, tokenizer = load_qa_model(options.model)
    records = [
        {name: record[name] for name in ("id", "title", "question", "context", "answers")}
        for task in options.data
        for record in evaluation_set(task, tokenizer, split="validation", per_length=TRAINING_QUESTIONS, lengths=TRAINING_LENGTHS)
    ]
    save_qa(records, out / "train.jsonl")
    command = ["--model", str(converted), "--output", str(out / "fine-tuned"), "--data", str(out / "train.jsonl")]
    command += ["--max-minutes", f"{options.minutes:g}", "--learning-rate", "2e-5"]
    command += ["--no-eval-on-start", "--max-eval-samples", "8"]  # all questions are asked below, and were asked above
    console.print(f"   longattn train qa {' '.join(command)}")
    if train("qa", command):
        raise LongAttentionError("the fine-tuning failed; see above")
    return out / "fine-tuned"


def finish(answers: list[Any], out: Path, folder: Path, options: argparse.Namespace, started: float) -> None:
    """Print the tables, draw them, write the model card."""
    from hf_longattn.hub import write_model_card
    from scripts.dev.benchmarks.report import machine
    from scripts.dev.studies.qa_table import card_results, summary_markdown, write_report

    about = {
        "committed": "the 512-token QA model; everything else was made by this run",
        "trained on the spot": f"{AFTER}: {options.minutes:g} minutes of Trainer",
        "timing": "one document at a time; the fine-tuned model in a second pass",
        "machine": ", ".join(f"{key} {value}" for key, value in machine().items()),
    }
    table = write_report(out / "long_qa", answers, about, "Long question answering: the demo's tables")
    step(6, "What came out: exact answers, per cent ± standard error")
    console.print(Markdown(summary_markdown(table)))
    card = write_model_card(
        folder,
        results=card_results(table, AFTER),
        title="bert-python-8192-qa",
        training=f"Converted from the 512-token QA model of this project and fine-tuned for {options.minutes:g} minutes by the demo.",
        license="apache-2.0",
        limits=["A 7 M-parameter model trained on Python source alone: it shows the method, not the state of the art."],
    )
    console.print(f"   tables by length, F1 and times {out / 'long_qa.md'}, model card {card}")
    console.print("   Committed: the 512-token QA model. Made here: both conversions, the fine-tuned model, all scores and times.")
    console.print("   all-MiniLM-L6-v2, trained for questions that need two places of a page, in two hours: docs/results/long_qa.md")
    console.print(f"   Done in {(time.monotonic() - started) / 60:.1f} minutes.")


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
    from hf_longattn.training import load_qa_model
    from scripts.dev.studies.qa_run import evaluation_set
    from scripts.dev.studies.real_checkpoint import show_real_checkpoint

    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    out = Path(options.output)
    try:
        for name in ("minilm", "converted", "fine-tuned"):
            shutil.rmtree(out / name, ignore_errors=True)
        step(1, "Convert all-MiniLM-L6-v2, a sentence encoder that many programs use, and compare it with the original")
        show_real_checkpoint(console, out)
        converted = convert(options, out)
        step(3, "Score on long documents from packages that no training ever saw, before any training")
        _, tokenizer = load_qa_model(options.model)
        sets = {name: evaluation_set(name, tokenizer, per_length=options.per_length, lengths=options.lengths) for name in options.data}
        for name, records in sets.items():
            shown = records[len(records) // 2]
            console.print(f"   {name}: {shown['question']}  Answer: {shown['answers']['text'][0]}", markup=False)
        answers = score(readers(options, converted), sets, "all systems")
        folder = fine_tune(options, converted, out)
        step(5, "Score the fine-tuned model on the same questions")
        answers += score([long_reader(AFTER, folder)], sets, "fine-tuned")
        finish(answers, out, folder, options, started)
    except LongAttentionError as error:
        console.print(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
