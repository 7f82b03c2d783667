"""The whole path on a fresh machine, without the Hub (7 minutes at most, 2 cores).

    make demo                        or   python scripts/demo.py
    python scripts/demo.py --minutes 0.5 --documents 1        a shorter look

First, Gemma 3 270M, which has windows, is timed with transformers' attention and with ours; `make demo` has downloaded
it. Then all-MiniLM-L6-v2 is converted (`make install` has installed it), and compared with the original. Then a
question-answering model of 512 tokens is converted, scored, fine-tuned on long documents, and scored again. It is
committed, in model_cards/bert-python-512-qa. All scores, times, tables and the model's card are made here.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

from scripts.dev import ROOT
from scripts.dev.real import DECODER, NAME, real_checkpoint

ASSET = ROOT / "model_cards" / "bert-python-512-qa"
WINDOWS, CONVERTED, FINE_TUNED = "windows of 512, stride 128", "converted to longformer", "longformer, fine-tuned"
GEMMA = "google/gemma-3-270m"
LENGTH, WINDOW = 8192, 256
MINILM_LENGTH = 4096
STOCK_LENGTHS = (1024, 2048, 4096)
"""Tokens of the texts that Gemma reads."""
LENGTHS = (1024, 2048, 4096, 8192)
"""Tokens of the documents that all systems are scored on."""
TRAINING_LENGTHS, TRAINING_DOCUMENTS = (1024, 2048, 4096), 15
"""Tokens of the documents to train on, and their number at each length. A training of 1.5 minutes reads about 50 of
their questions."""
LOOKUP_LINE = re.compile(r"^# lookup (\w+) (\w+)$", re.MULTILINE)
console = Console(width=None if sys.stdout.isatty() else 120)


class Answer(NamedTuple):
    """The answer of one system to one question: the hops to it, the document's tokens, whether it is right, and
    seconds."""

    system: str
    hops: int
    length: int
    right: bool
    seconds: float


class FirstLine:
    """A baseline without a model: the last word of the line that the question begins."""

    def answer(self, record: Mapping[str, Any]) -> str:
        return dict(LOOKUP_LINE.findall(record["context"])).get(record["question"].split()[-1], "")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--model",
        default=str(ASSET),
        help="question-answering model of 512 tokens to convert (default: the committed one)",
    )
    add("--output", default="demo_output", help="folder for models and card (default: demo_output)")
    add("--minutes", type=float, default=1.5, help="minutes of fine-tuning (default: 1.5)")
    add(
        "--documents",
        type=int,
        default=4,
        help="documents to score on at each length, with four questions each (default: 4)",
    )
    return parser.parse_args(arguments)


def time_windows() -> list[dict[str, Any]]:
    """Read texts with Gemma's windows as transformers computes them and as we do, and draw a bar of seconds for each.

    Returns rows of the benchmark of stock windows.
    """
    from scripts.dev.benchmarks.stock_windows import measure

    step(
        1,
        'A real decoder with windows, Gemma 3 270M: the same model with one word more, attn_implementation="longattn"',
    )
    if not DECODER.is_dir() or sys.platform != "linux":
        console.print(
            "   Left out: it needs Linux, and the model. Type make real-decoder (240 MB; see "
            "ai.google.dev/gemma/terms)."
        )
        return []
    rows = [
        measure(GEMMA, length, str(DECODER), 0.0)
        for length in track(STOCK_LENGTHS, "   Three lengths", console=console)
    ]
    longest = max(wall for row in rows for wall, _ in row["turns"][0])
    for row in rows:
        for name, (wall, _), size in zip(("sdpa", "longattn"), row["turns"][0], row["mebibytes"], strict=True):
            bar = "█" * max(1, round(50 * wall / longest))
            console.print(f"   {row['length']:>6,} tokens  {name:<9}{bar} {wall:.1f} s, {size:,.0f} MiB")
    return rows


def convert(name: str, source: Path | str, target: Path, length: int, **options: Any) -> Any:
    """Convert and verify, and print the command and the report, which is returned."""
    from hf_longattn import convert_checkpoint
    from hf_longattn.cli.checkpoints import conversion_report
    from hf_longattn.cli.terminal import show

    words = "".join(f" --option {option}={value}" for option, value in options.items())
    console.print(f"   longattn convert {name} {target} --mechanism longformer{words} --max-length {length}\n")
    report = convert_checkpoint(source, target, mechanism="longformer", max_length=length, **options)
    show(report.to_dict(), conversion_report(report))
    return report


def long_reader(folder: Path) -> Any:
    """A converted model that reads the whole document."""
    from hf_longattn.evaluation.qa_reader import QAReader
    from hf_longattn.training import load_qa_model

    return QAReader(*load_qa_model(str(folder)), LENGTH, batch_size=1)


def score(readers: Mapping[str, Any], records: Sequence[dict[str, Any]]) -> list[Answer]:
    """Ask every reader every question, reader after reader, so that what else the machine does slows all of them
    alike."""
    from hf_longattn.evaluation.metrics.long_qa import score_answer

    answers = []
    for record in track(records, f"   {len(records)} questions", console=console):
        for name, reader in readers.items():
            started = time.perf_counter()
            text = reader.answer(record)
            seconds = time.perf_counter() - started
            exact, _ = score_answer(text, record["answers"]["text"])
            answers.append(Answer(name, record["hops"], record["length"], exact == 1, seconds))
    return answers


def fine_tune(options: argparse.Namespace, converted: Path, out: Path, tokenizer: Any) -> Path:
    """Train the converted model for some minutes on questions about other packages, by `longattn train qa`."""
    from hf_longattn.cli.train import train
    from hf_longattn.errors import LongAttentionError
    from scripts.dev.studies.lookup_questions import lookup_questions

    step(
        5,
        f"Fine-tune the converted model on long documents for {options.minutes:g} minutes (now, with Trainer)",
    )
    records = lookup_questions("validation", tokenizer, lengths=TRAINING_LENGTHS, documents=TRAINING_DOCUMENTS)
    rows = [{name: record[name] for name in ("id", "title", "question", "context", "answers")} for record in records]
    (out / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--model", str(converted), "--output", str(out / "fine-tuned"), "--data", str(out / "train.jsonl")]
    command += ["--max-minutes", f"{options.minutes:g}", "--learning-rate", "2e-5"]
    command += ["--no-eval-on-start", "--max-eval-samples", "8"]  # all questions are asked below, and were asked above
    console.print(f"   longattn train qa {' '.join(command)}")
    if train("qa", command):
        raise LongAttentionError("the fine-tuning failed; see above")
    return out / "fine-tuned"


def share_right(answers: Sequence[Answer], system: str, hops: int) -> tuple[float, float, int]:
    """The share of right answers in per cent, its standard error over questions, and their number."""
    right = [answer.right for answer in answers if (answer.system, answer.hops) == (system, hops)]
    mean = statistics.mean(right)
    return 100 * mean, 100 * (mean * (1 - mean) / len(right)) ** 0.5, len(right)


def show_table(answers: Sequence[Answer]) -> None:
    """One row for each system: right answers by the number of lines that an answer needs, and seconds for the longest
    documents."""
    _, _, count = share_right(answers, answers[0].system, 1)
    table = Table(
        "system", f"one line (n={count})", f"two lines, far apart (n={count})", f"seconds, {LENGTH:,} tokens"
    )
    for system in dict.fromkeys(answer.system for answer in answers):
        shares = [share_right(answers, system, hops) for hops in (1, 2)]
        seconds = statistics.median(
            answer.seconds for answer in answers if answer.system == system and answer.length == max(LENGTHS)
        )
        table.add_row(
            system,
            *(f"{mean:.0f} ± {error:.0f} %" for mean, error, _ in shares),
            f"{seconds:.2f}" if seconds > 5e-3 else "–",
        )
    console.print(table)


def show_summary(rows: Sequence[Mapping[str, Any]], embeddings: Mapping[str, Any], answers: Sequence[Answer]) -> None:
    """Print the last screen: what each model did before, and what it does now."""
    table = Table("model", "measured", "before", "with hf_longattn")
    for row in rows[-1:]:
        cells = (
            f"{wall:.1f} s, {size:,.0f} MiB" for (wall, _), size in zip(row["turns"][0], row["mebibytes"], strict=True)
        )
        table.add_row("Gemma 3 270M, as it is", f"a text of {row['length']:,} tokens", *cells)
        table.add_row("", "difference of its outputs", "–", f"{row['difference']:.0e} of the largest value")
    document, short = embeddings["document"], embeddings["cosines"]
    table.add_row("all-MiniLM-L6-v2, converted", "tokens that it reads", "512", f"{MINILM_LENGTH:,}")
    table.add_row("", "512 tokens: cosine with the original", "1", f"{min(short.values()):.3f}")
    measured = f"{MINILM_LENGTH:,} tokens: cosine with the mean of 8 chunks"
    table.add_row(
        "", measured, f"{document['first_chunk']:.3f} (its first 512)", f"{document['cosine']:.3f} (all, one pass)"
    )
    for hops, words in ((1, "answers that one line has"), (2, "answers from two lines, far apart")):
        shares = (share_right(answers, system, hops) for system in (WINDOWS, FINE_TUNED))
        cells = (f"{mean:.0f} ± {error:.0f} % right" for mean, error, _ in shares)
        table.add_row("" if hops == 2 else f"a small BERT, fine-tuned at {LENGTH:,} tokens", words, *cells)
    console.print(table)


def step(number: int, text: str) -> None:
    """Announce a step."""
    console.print(f"\n[bold]{number}. {text}[/bold]")


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return its exit code."""
    options = parse(arguments)
    started = time.monotonic()
    console.print("[bold]hf_longattn: windows as windows, and models of 512 tokens that read thousands[/bold]")
    console.print("   Loading libraries ...")
    import transformers

    import hf_longattn.cli.app  # noqa: F401 (before transformers: it silences warnings about kernels for other devices)
    from hf_longattn.errors import LongAttentionError
    from hf_longattn.evaluation.qa_reader import QAReader
    from hf_longattn.training import load_qa_model
    from scripts.dev.studies.lookup_questions import lookup_questions

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    out = Path(options.output)
    try:
        for name in ("minilm", "converted", "fine-tuned"):
            shutil.rmtree(out / name, ignore_errors=True)
        rows = time_windows()
        step(
            2, "Convert all-MiniLM-L6-v2, a sentence encoder that many programs use, and compare it with the original"
        )
        report = convert(NAME, real_checkpoint(), out / "minilm", MINILM_LENGTH)
        embeddings = next(check.values for check in report.checks if check.name == "embeddings")
        step(
            3,
            f"Convert the committed question-answering model of 512 tokens to {LENGTH:,} tokens with longformer "
            "attention",
        )
        console.print(
            "   With a network, the command takes a Hub name as well, such as deepset/bert-base-cased-squad2."
        )
        converted = out / "converted"
        convert(options.model, options.model, converted, LENGTH, window=WINDOW)
        step(4, "Score on long documents from packages that no training ever saw, before any training")
        model, tokenizer = load_qa_model(options.model)
        records = lookup_questions("test", tokenizer, lengths=LENGTHS, documents=options.documents)
        shown, (answer,) = records[-1], records[-1]["answers"]["text"]
        console.print(
            f"   In {shown['length']:,} tokens of source text: {shown['question']}  Answer, through two lines: "
            f"{answer}",
            markup=False,
        )
        readers = {
            "the line with the question's word": FirstLine(),
            "first 512 tokens": QAReader(model, tokenizer, 512, None),
            WINDOWS: QAReader(model, tokenizer, 512, 128),
            CONVERTED: long_reader(converted),
        }
        answers = score(readers, records)
        folder = fine_tune(options, converted, out, tokenizer)
        step(6, "Score the fine-tuned model on the same questions")
        answers += score({FINE_TUNED: long_reader(folder)}, records)
        show_table(answers)
        console.print(f"   Model card: {folder / 'README.md'}")
        step(7, "What came out")
        show_summary(rows, embeddings, answers)
        console.print(
            "\n   Committed: the small BERT of 512 tokens. Made here: both conversions, the training, all scores and "
            "times."
        )
        console.print(
            "   all-MiniLM-L6-v2, trained for questions that need two places of a page, in two hours: "
            "docs/results/long_qa.md"
        )
        console.print(f"   Done in {(time.monotonic() - started) / 60:.1f} minutes.")
    except LongAttentionError as error:
        console.print(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
