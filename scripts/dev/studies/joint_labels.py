"""Whole documents classified on a real checkpoint: does a page answer a question? The label rests on two far places of it.

    python -m scripts.dev.studies.joint_reading --work runs/joint     first: it trains the readers that this study starts from
    python -m scripts.dev.studies.joint_labels --work runs/joint      three seeds; resumes what was interrupted

Pages and questions are those of ``joint_reading``. Half of the pages lose the entry that answers. So "How is the class that `Foo` extends
described?" has an answer or none, and only the entry of `Foo` says which class to look for. The original and the converted reader of
questions get a head for two classes and equal minutes of training: on windows of 512 tokens that share 128, each with the label of its
page, and on 4,096 tokens. All trainings are the commands of users.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from scripts.dev.benchmarks.report import footnote, one_sentence_errors
from scripts.dev.studies.joint_reading import (
    LONG,
    SHORT,
    asked_of,
    fine_tune,
    finish,
    on_every_core,
    points,
    read,
    read_options,
    stored,
    systems_table,
    test_of,
    windows_of,
    write,
)
from scripts.dev.studies.reference_pages import program, share_of_words, without_entry

OUTPUT = Path("scripts/dev/results/joint_labels")
KINDS = ("one place", "two places", "names exchanged")
ANSWERED, UNANSWERED = LABELS = ("answered", "unanswered")
RULES: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "random": lambda record: random.Random(record["id"]).random(),
    "lexical": lambda record: share_of_words(record)[0],
    "program": lambda record: float(program(record) != ""),
}
SYSTEMS: Mapping[str, tuple[str, Callable[[Sequence[float]], float]]] = {
    "excerpts": ("excerpts", max), "first": ("windows", itemgetter(0)), "mean": ("windows", np.mean), "highest": ("windows", max),
    "long": ("long", itemgetter(0)),
}  # fmt: skip
"""The reader of each system, and how it pools the odds of a page's parts."""
WINDOWS = ("excerpts", "mean", "highest")
ROWS = {
    "random": "a coin",
    "lexical": "the share of the question's words in the entry that has most",
    "program": "a program written for the questions",
    "excerpts": "original, trained on excerpts alone, windows of 512, highest",
    "first": "original, the first 512 tokens",
    "mean": "original, windows of 512, mean",
    "highest": "original, windows of 512, highest",
    "long": "converted to 4,096 tokens (windows of 128, one layer full)",
}


class Minutes(NamedTuple):
    """Minutes of training: on excerpts of less than 512 tokens, and on whole pages and longer excerpts."""

    excerpts: float = 6.0
    pages: float = 4.0


class Answer(NamedTuple):
    """How ``sure`` one system is that a page answers, and whether it does; ``seed`` is None where nothing is trained for each seed."""

    system: str
    seed: int | None
    kind: str
    folder: str
    sure: float
    answered: bool
    seconds: float


def labelled(records: Iterable[Mapping[str, Any]], seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the questions for a description that the page has; a coin decides whether it stays there."""
    rng = random.Random(seed)
    for record in asked_of(records):
        text, label = record["context"], rng.choice(LABELS)
        if label == UNANSWERED:
            text = without_entry(text, record["answers"]["answer_start"][0])
        yield {**{name: record[name] for name in ("id", "title", "question", "kind")}, "text": text, "label": label}


def build(work: Path, tokenizer: Any) -> None:
    """Write the labelled excerpts and pages, to train on, held out, and of the test, from the files of ``joint_reading``."""
    files = {"short": ["second"], "train": ["longer", "pages"], "validation": ["validation"], "test": ["test"]}
    for split, names in files.items():
        found = list(labelled(record for name in names for record in read(work / f"{name}.jsonl")))
        random.Random(0).shuffle(found)
        write(work / f"labels-{split}.jsonl", found)
        if split in ("train", "validation"):
            parts = [{**one, "text": part} for one in found for _, part in windows_of(one["question"], one["text"], tokenizer)]
            write(work / f"labels-{split}-windows.jsonl", parts)


def train(work: Path, seed: int, minutes: Minutes) -> None:
    """Train two readers of excerpts, which all seeds share, and go on with whole pages."""
    task = "classify --question-column question --max-eval-samples 200"
    for name, windows in (("windows", "-windows"), ("long", "")):
        few, more = (
            f"--warmup-steps 50 --tokens-per-batch {tokens} --learning-rate {rate}" for tokens, rate in ((2048, 1e-4), (4096, 5e-5))
        )
        fine_tune(work, f"labels-{name}", task, name, "labels-short", minutes.excerpts, seed, few)
        held_out, pages = f"labels-validation{windows}", f"labels-train{windows}"
        fine_tune(work, f"labels-{name}-{seed}", task, f"labels-{name}", pages, minutes.pages, seed, more, held_out=held_out)


def log_odds(model: Any, tokenizer: Any, asked: str, texts: Sequence[str], length: int) -> np.ndarray:
    """Log odds ``(texts,)`` of "answered"."""
    encoded = tokenizer([asked] * len(texts), list(texts), truncation="only_second", max_length=length, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits
    answered = model.config.label2id[ANSWERED]
    return (logits[:, answered] - logits[:, 1 - answered]).numpy()


def read_by(work: Path, seed: int | None, readers: Mapping[str, str], step: int, first: int) -> list[Answer]:
    """Every ``step``-th page of the test, read by one reader after the other.

    Args:
        readers: their folders by their names; "long" reads whole pages.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import hf_longattn  # noqa: F401 (its models register themselves)

    models = {name: AutoModelForSequenceClassification.from_pretrained(work / folder).eval() for name, folder in readers.items()}
    tokenizer, found = AutoTokenizer.from_pretrained(work / "minilm"), []
    for record in read(work / "labels-test.jsonl")[first::step]:
        asked, text = record["question"], record["text"]
        for name, model in models.items():
            started = time.perf_counter()
            parts = [text] if name == "long" else [part for _, part in windows_of(asked, text, tokenizer)]
            odds = log_odds(model, tokenizer, asked, parts, LONG if name == "long" else SHORT).tolist()
            seconds = time.perf_counter() - started
            found += [answer(system, seed, record, pooled(odds), seconds) for system, (its, pooled) in SYSTEMS.items() if its == name]
    return found


def answer(system: str, seed: int | None, record: Mapping[str, Any], sure: float, seconds: float = 0.0) -> Answer:
    """The answer of a system that is so ``sure`` about a labelled page."""
    return Answer(system, seed, record["kind"], record["title"], float(sure), record["label"] == ANSWERED, seconds)


def score(work: Path, seeds: Sequence[int]) -> list[Answer]:
    """Show every page to every rule and reader."""
    records = read(work / "labels-test.jsonl")
    answers = [answer(name, None, one, rule({**one, "context": one["text"]})) for one in records for name, rule in RULES.items()]
    shared = partial(read_by, work, None, {"excerpts": "labels-windows"})
    answers += stored(work / "labels-answers.json", Answer, partial(on_every_core, shared))
    for seed in seeds:
        its = partial(read_by, work, seed, {name: f"labels-{name}-{seed}" for name in ("windows", "long")})
        answers += stored(work / f"labels-answers-{seed}.json", Answer, partial(on_every_core, its))
    return answers


def areas(answers: Sequence[Answer], counts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Area under the ROC curve of one system in per cent, the mean over its seeds.

    Args:
        counts: how often each folder counts, in the sample and in every draw from it ``(draws,)``.
    """
    found = []
    for seed in dict.fromkeys(answer.seed for answer in answers):
        yes, no = ([one for one in answers if one.seed == seed and one.answered is label] for label in (True, False))
        wins = np.array([[np.heaviside(one.sure - other.sure, 0.5) for other in no] for one in yes])
        of_yes, of_no = (np.stack([counts[one.folder] for one in part], axis=1) for part in (yes, no))
        found.append(((of_yes @ wins) * of_no).sum(1) / (of_yes.sum(1) * of_no.sum(1)))
    return 100 * np.mean(found, axis=0)


def summary(answers: Sequence[Answer], rounds: int = 2000) -> dict[str, Any]:
    """Area under the curve by kind with a 95 % interval, and seconds of every system; and what "long" has more than each in windows."""

    def with_interval(values: np.ndarray) -> list[float]:
        return [round(float(value), 1) for value in (values[0], *np.nanpercentile(values[1:], [2.5, 97.5]))]

    table: dict[str, Any] = defaultdict(dict)
    for kind in KINDS:
        of_kind = defaultdict(list)
        for one in answers:
            if one.kind == kind:
                of_kind[one.system].append(one)
        folders = sorted({one.folder for its in of_kind.values() for one in its})
        draws = np.random.default_rng(0).multinomial(len(folders), [1 / len(folders)] * len(folders), size=rounds)
        counts = dict(zip(folders, np.vstack([np.ones_like(draws[:1]), draws]).T, strict=True))
        found = {name: areas(its, counts) for name, its in of_kind.items()}
        for name, values in found.items():
            table[name][kind] = with_interval(values)
        for other in WINDOWS:
            table["long"][f"{kind}, more than {other}"] = with_interval(found["long"] - found[other])
    for name, row in table.items():
        row["seconds"] = round(float(np.median([one.seconds for one in answers if one.system == name])), 3)
    return dict(table)


def markdown(record: Mapping[str, Any]) -> str:
    """Areas and seconds of every system, and how they were measured."""
    test, minutes = record["test"], Minutes(*record["minutes"])
    table = systems_table(record, ROWS, KINDS, "area under the ROC curve, %", "seconds a page, one thread")
    more = [f"- {ROWS[other]}: {points(record, KINDS, other)}" for other in WINDOWS]
    about = (
        f"{test[ANSWERED]} of the pages answer. The area is how often a page that answers gets higher odds than one that does not. "
        f"Seeds {', '.join(map(str, record['seeds']))}; 95 % intervals by bootstrap over {test['folders']} folders of modules. Each model "
        f"started from its reader of questions and was trained for {minutes.excerpts:g} minutes on excerpts, and for {minutes.pages:g} on "
        "whole pages and longer excerpts, these once for each seed."
    )
    minus = "Points that the converted model has more than each reader of windows:\n\n" + "\n".join(more)
    parts = ["# Whether a page answers: all-MiniLM-L6-v2", table, minus, about, footnote(record["machine"])]
    return "\n\n".join(parts)


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the study; return its exit code."""
    options = read_options(arguments, __doc__, OUTPUT, Minutes, "on excerpts, and on whole pages and longer excerpts")
    test = test_of(options.work, "labels-test", build, "joint_reading", "long")
    for seed in options.seeds:
        train(options.work, seed, options.minutes)
    about = {**Counter(one["kind"] for one in test), ANSWERED: sum(one["label"] == ANSWERED for one in test)}
    about["folders"] = len({one["title"] for one in test})
    finish(options, about, summary(score(options.work, options.seeds)), markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
