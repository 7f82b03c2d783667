"""Pipelines that read a text of 20,000 tokens whole, beside truncation and windows by hand, in one run.

    python -m scripts.dev.benchmarks.whole_texts  # ten minutes on two cores
    python -m scripts.dev.benchmarks.whole_texts --quick  # 2,000 tokens; stores nothing

The network is all-MiniLM-L6-v2 (512 positions) in fp32, with random heads. By hand, windows of the tokenizer that
share 128 tokens run in batches of 8, and nothing is merged. The three ways take turns. Before, every reader reads
texts of four lengths, whose windows must reach from the first character to the last.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, pipeline

from hf_longattn import read_whole
from hf_longattn.evaluation.qa_reader import QAReader
from scripts.dev.benchmarks import report
from scripts.dev.benchmarks.run import in_turn
from scripts.dev.real import real_checkpoint

OUTPUT = Path("scripts/dev/results/whole_texts")
LENGTHS, QUICK = (10, 500, 5000, 20000), (10, 2000)
POSITIONS, SHARED, BATCH, TURNS = 512, 128, 8, 2
QUESTION = "What does a statement do?"
HEADS = {
    "text-classification": "SequenceClassification",
    "zero-shot-classification": "SequenceClassification",
    "token-classification": "TokenClassification",
    "feature-extraction": "",
    "fill-mask": "MaskedLM",
    "QAReader": "QuestionAnswering",
    "CrossEncoder": "SequenceClassification",
}


class Row:
    """A reader, and three ways to read a text with it."""

    def __init__(self, task: str, folder: Path) -> None:
        self.task = task
        self.tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=POSITIONS)
        torch.manual_seed(0)
        head = f"For{HEADS[task]}" if HEADS[task] else "Model"
        labels = {"num_labels": 1} if task == "CrossEncoder" else {"label2id": {"entailment": 1, "other": 0}}
        more = labels if "Classification" in head else {}
        self.model = getattr(transformers, f"Bert{head}").from_pretrained(folder, **more).eval()
        if task == "QAReader":
            self.reader: Any = QAReader(self.model, self.tokenizer, stride=None)
        elif task == "CrossEncoder":
            from sentence_transformers import CrossEncoder

            self.reader = CrossEncoder(str(folder), num_labels=1, max_length=POSITIONS, device="cpu")
        else:
            self.reader = pipeline(task, self.model, tokenizer=self.tokenizer, device="cpu")
        merges = task in ("text-classification", "zero-shot-classification", "CrossEncoder")
        self.whole = read_whole(self.reader, merge="max" if merges else None, stride=SHARED)

    def arguments(self, text: str) -> tuple[Any, ...]:
        """What the reader and ours take for a text."""
        if self.task == "zero-shot-classification":
            return text, ["code", "sport"]
        if self.task == "fill-mask":
            return (f"A {self.tokenizer.mask_token} is code. {text}",)
        if self.task == "QAReader":
            return ({"question": QUESTION, "context": text},)
        return ((QUESTION, text) if self.task == "CrossEncoder" else text,)

    def cut(self, text: str) -> Any:
        """The reader's own result, of the first tokens."""
        arguments = self.arguments(text)
        if self.task == "QAReader":
            return self.reader.read(list(arguments))
        if self.task == "CrossEncoder":
            return self.reader.predict(list(arguments))
        if self.task in ("text-classification", "feature-extraction"):
            return self.reader(*arguments, truncation=True)
        if self.task == "fill-mask":
            return self.reader(*arguments, tokenizer_kwargs={"truncation": True})
        return self.reader(*arguments)

    def by_hand(self, text: str) -> None:
        """Every window through the network."""
        beside: dict[str, list[str | None]] = {
            "zero-shot-classification": ["This example is code.", "This example is sport."],
            "QAReader": [QUESTION],
            "CrossEncoder": [QUESTION],
        }
        for other in beside.get(self.task, [None]):
            encoded = self.tokenizer(
                *((text,) if other is None else (other, text)),
                truncation=True if other is None else "only_second",
                stride=SHARED,
                return_overflowing_tokens=True,
                padding=True,
                return_tensors="pt",
            )
            encoded.pop("overflow_to_sample_mapping")
            for first in range(0, len(encoded["input_ids"]), BATCH):
                with torch.inference_mode():
                    self.model(**{name: x[first : first + BATCH] for name, x in encoded.items()})


def excerpt(text: str, tokenizer: Any, tokens: int) -> str:
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text[: offsets[tokens - 1][1]]


def measured(task: str, folder: Path, lengths: Sequence[int]) -> dict[str, Any]:
    """The stored row.

    Raises:
        SystemExit: windows leave a part of a text out.
    """
    row = Row(task, folder)
    reference = " ".join(topics[topic] for topic in sorted(topics))
    for length in lengths:
        text = excerpt(reference, row.tokenizer, length)
        read = row.arguments(text)[0] if task == "fill-mask" else text
        windows = row.whole(*row.arguments(text)).windows
        gaps = [last < first for (_, last), (first, _) in pairwise(windows)]
        if windows[0][0] != 0 or windows[-1][1] != len(read.rstrip()) or any(gaps):
            raise SystemExit(f"error: {task} leaves a part of {length:,} tokens out, so nothing is stored")
    ways: dict[str, Callable[[], Any]] = {
        "cut": lambda: row.cut(text),
        "by hand": lambda: row.by_hand(text),
        "read_whole": lambda: row.whole(*row.arguments(text)),
    }
    turns = in_turn(ways, TURNS)
    seconds = {way: [milliseconds / 1e3 for milliseconds in taken] for way, taken in turns.items()}
    print(task, {way: round(statistics.median(taken), 2) for way, taken in seconds.items()}, file=sys.stderr)
    return {"windows": len(windows), "seconds": seconds}


def markdown(record: dict[str, Any]) -> str:
    """The table of the page."""
    header = ["reader", "windows", "cut at 512, s", "windows by hand, s", "read_whole, s", "to by hand"]
    rows = []
    for task, row in record["rows"].items():
        seconds = row["seconds"]
        medians = [f"{statistics.median(taken):.1f}" for taken in seconds.values()]
        pairs = zip(seconds["read_whole"], seconds["by hand"], strict=True)
        ratio = statistics.median(ours / hand for ours, hand in pairs)
        rows.append([f"`{task}`", f"{row['windows']}", *medians, f"{ratio:.2f} ×"])
    return f"{report.markdown_table(header, rows)}\n\n*{report.where(record['machine'])}*\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = report.study_parser(__doc__, OUTPUT, "2,000 tokens")
    options = parser.parse_args(arguments)
    output = report.output_of(options, OUTPUT)
    lengths, folder = QUICK if options.quick else LENGTHS, real_checkpoint()
    rows = {task: measured(task, folder, lengths) for task in HEADS}
    record = {"machine": report.machine(), "tokens": lengths[-1], "rows": rows}
    if output:
        report.store_study(output, record)
    print(markdown(record))


if __name__ == "__main__":
    main()
