"""Whole documents classified on a real checkpoint: claims about a page, true or false, that rest on two far places of it.

    python -m scripts.dev.studies.joint_reading --work runs/joint     first: it trains the reader that this study starts from
    python -m scripts.dev.studies.joint_claims --work runs/joint      three seeds; resumes what was interrupted

"The class that `Foo` extends is described as: …" is true or false of a page of :mod:`reference_pages`. Both readers of that study, the
original and the converted one, get a head for two classes and are trained on claims about excerpts and about whole pages, for equal
minutes: windows of 512 tokens that share 128, each with the label of its page, and 4,096 tokens. All trainings are the commands of users.
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from scripts.dev.benchmarks.report import footnote, markdown_table, one_sentence_errors
from scripts.dev.studies.joint_reading import (
    EXCERPTS,
    LONG,
    SHORT,
    Nearest,
    fine_tune,
    finish,
    over_pages,
    read,
    read_options,
    short_pages,
    stored,
    windows_of,
    write,
)
from scripts.dev.studies.reference_pages import FAR, LENGTHS, PACKAGES, Page, Question, most_words, pages_of, program, questions_of

OUTPUT = Path("scripts/dev/results/joint_claims")
LABELS = ("false", "true")
TEST = {"one place": 120, "two places": 220}
ROWS = {
    "random": "a coin",
    "lexical": "true if the description shares most words with the question",
    "program": "a program written for the claims",
    "first": "original, the first 512 tokens",
    "mean": "original, windows of 512, mean",
    "highest": "original, windows of 512, highest",
    "long": "converted to 4,096 tokens",
}


class Minutes(NamedTuple):
    """Minutes of training: on claims about excerpts, and about whole pages."""

    excerpts: float = 8.0
    pages: float = 4.0


class Answer(NamedTuple):
    """How sure one system is that a claim is true (above 0: true), and whether it is right; ``seed`` is None where nothing is trained."""

    system: str
    seed: int | None
    kind: str
    page: str
    id: str
    sure: float
    right: bool
    seconds: float


def claim(page: Page, question: Question, rng: random.Random) -> dict[str, Any] | None:
    """A claim that answers the question with its target, or with another description of the page; None where there is no other."""
    assert question.target is not None
    others = [entry.answer for entry in page.described.values() if entry.is_class and entry.answer != question.target.answer]
    if not others:
        return None
    label = rng.random() < 0.5
    said = question.target.answer if label else rng.choice(others)
    what = question.text.removeprefix("How is ").removesuffix(" described?")
    record = question.record(page)
    return {
        **{name: record[name] for name in ("id", "title", "question")}, "said": said, "kind": question.kind,
        "claim": f"{what[0].upper()}{what[1:]} is described as: {said}", "text": page.text, "label": LABELS[label],
    }  # fmt: skip


def claims(
    pages: Sequence[Page], counts: Mapping[str, int], *, far: int, nearest: Nearest | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Claims about whole pages, at most three of a kind and page, about different descriptions.

    Args:
        counts: how many of each kind.
        far: fewest tokens, about, between the two places.
        nearest: leave out the questions of two places that it answers, which need no join.
    """
    rng, found = random.Random(seed), defaultdict[str, list[dict[str, Any]]](list)
    for page in rng.sample(pages, len(pages)):
        if LENGTHS[0] <= len(page.text) / 4.2 <= LENGTHS[1]:
            by_kind: dict[str, dict[str, Question]] = {kind: {} for kind in counts}
            for question in questions_of(page):
                two = question.kind == "two places"
                if question.target and not (two and (question.near(far) or (nearest is not None and nearest.finds(page, question)))):
                    by_kind[question.kind].setdefault(question.target.answer, question)
            for kind, questions in by_kind.items():
                if len(found[kind]) < counts[kind]:
                    made = (claim(page, one, rng) for one in rng.sample(list(questions.values()), min(3, len(questions))))
                    found[kind] += [record for record in made if record is not None]
    return [record for kind, count in counts.items() for record in found[kind][:count]]


def short_claims(pages: Sequence[Page], seed: int = 0) -> list[dict[str, Any]]:
    """Claims about excerpts of less than 512 tokens, in random order."""
    rng = random.Random(seed)
    short = short_pages(pages, (EXCERPTS["first"][0], EXCERPTS["second"][1]), rng)
    made = (claim(page, question, rng) for page, question in short if question.target is not None)
    found = [record for record in made if record is not None]
    rng.shuffle(found)
    return found


def build(work: Path, tokenizer: Any) -> None:
    """Write the claims: about excerpts and whole pages to train on, held-out pages, and the test."""
    pages = {split: [page for name in packages.split() for page in pages_of(name)] for split, packages in PACKAGES.items()}
    rng = random.Random(0)
    write(work / "claims-short.jsonl", short_claims(pages["train"]))
    for split, counts in (("train", {"one place": 400, "two places": 1200}), ("validation", {"one place": 80, "two places": 80})):
        found = claims(pages[split], counts, far=0)
        found = rng.sample(found, len(found))
        write(work / f"claims-{split}.jsonl", found)
        write(
            work / f"claims-{split}-windows.jsonl",
            [{**one, "text": part} for one in found for _, part in windows_of(one["claim"], one["text"], tokenizer)],
        )
    write(work / "claims-test.jsonl", claims(pages["test"], TEST, far=FAR, nearest=Nearest(work / "minilm")))


def train(work: Path, seed: int, minutes: Minutes) -> None:
    """Train two readers of claims about excerpts, which all seeds share, and go on with whole pages."""
    task = "classify --question-column claim --max_eval_samples 200"
    for name, windows in (("windows", "-windows"), ("long", "")):
        few = "--warmup_steps 50 --tokens_per_batch 2048 --learning_rate 1e-4"
        fine_tune(work, f"claims-{name}", task, name, "claims-short", minutes.excerpts, seed, few)
        held_out, more = f"claims-validation{windows}", "--tokens_per_batch 4096 --learning_rate 5e-5"
        pages = f"claims-train{windows}"
        fine_tune(work, f"claims-{name}-{seed}", task, f"claims-{name}", pages, minutes.pages, seed, more, held_out=held_out)


def log_odds(model: Any, tokenizer: Any, asked: str, texts: Sequence[str], length: int) -> np.ndarray:
    """Log odds ``(texts,)`` of "true"."""
    encoded = tokenizer([asked] * len(texts), list(texts), truncation="only_second", max_length=length, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits
    true = model.config.label2id["true"]
    return (logits[:, true] - logits[:, 1 - true]).numpy()


def score(work: Path, seeds: Sequence[int]) -> list[Answer]:
    """Show every claim to every reader, one after the other. What counts as true was found on the held-out claims, for each reader."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import hf_longattn  # noqa: F401 (its models register themselves)

    held_out, test = read(work / "claims-validation.jsonl"), read(work / "claims-test.jsonl")

    def of_readers(seed: int) -> Iterator[Answer]:
        folders = {name: work / f"claims-{name}-{seed}" for name in ("windows", "long")}
        models = {name: AutoModelForSequenceClassification.from_pretrained(folder).eval() for name, folder in folders.items()}
        tokenizer = AutoTokenizer.from_pretrained(folders["long"])
        rows: dict[str, list[tuple[dict[str, Any], float, float]]] = defaultdict(list)
        for record in held_out + test:
            started = time.perf_counter()
            parts = [part for _, part in windows_of(record["claim"], record["text"], tokenizer)]
            odds = log_odds(models["windows"], tokenizer, record["claim"], parts, SHORT)
            seconds = time.perf_counter() - started
            for name, value in (("first", odds[0]), ("mean", odds.mean()), ("highest", odds.max())):
                rows[name].append((record, float(value), seconds))
            started = time.perf_counter()
            (odds_of_page,) = log_odds(models["long"], tokenizer, record["claim"], [record["text"]], LONG)
            rows["long"].append((record, float(odds_of_page), time.perf_counter() - started))
        for name, values in rows.items():
            limit = best_limit([(sure, record["label"] == "true") for record, sure, _ in values[: len(held_out)]])
            for record, sure, seconds in values[len(held_out) :]:
                yield judged(name, seed, record, sure - limit, seconds)

    answers: list[Answer] = []
    for record in test:
        asked = {**record, "context": record["text"]}
        guesses = {"random": random.Random(record["id"]).choice((-1, 1))}
        guesses |= {name: 1 if rule(asked) == record["said"] else -1 for name, rule in (("lexical", most_words), ("program", program))}
        answers += [judged(name, None, record, guess, 0.0) for name, guess in guesses.items()]
    for seed in seeds:
        answers += stored(work / f"claims-answers-{seed}.json", Answer, partial(of_readers, seed))
    return answers


def judged(system: str, seed: int | None, record: Mapping[str, Any], sure: float, seconds: float) -> Answer:
    """The answer of a system that is so ``sure`` that a claim is true."""
    right = (sure > 0) == (record["label"] == "true")
    return Answer(system, seed, record["kind"], record["title"], record["id"], sure, right, seconds)


def best_limit(values: Sequence[tuple[float, bool]]) -> float:
    """The limit above which "true" is right most often."""
    limits = sorted(sure for sure, _ in values)
    middles = [(low + high) / 2 for low, high in itertools.pairwise(limits)]
    return max(middles, key=lambda limit: sum((sure > limit) == label for sure, label in values))


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Accuracy by kind and seconds of every system, and differences to the mean of windows claim by claim."""
    table: dict[str, Any] = {}
    for kind in TEST:
        rights: dict[str, dict[tuple[str, str], list[bool]]] = defaultdict(lambda: defaultdict(list))
        for answer in answers:
            if answer.kind == kind:
                rights[answer.system][answer.page, answer.id].append(answer.right)
        means = {name: {key: sum(found) / len(found) for key, found in its.items()} for name, its in rights.items()}
        for name, its in means.items():
            row = table.setdefault(name, {})
            row[kind] = over_pages(its)
            if name in ("highest", "long"):
                row[f"{kind}, more than the mean of windows"] = over_pages({key: one - means["mean"][key] for key, one in its.items()})
    for name, row in table.items():
        row["seconds"] = round(float(np.median([answer.seconds for answer in answers if answer.system == name])), 3)
    return table


def markdown(record: Mapping[str, Any]) -> str:
    """Accuracy and seconds of every system, and how they were measured."""
    rows = []
    for name, label in ROWS.items():
        row = record["table"][name]
        cells = ["{:.0f} [{:.0f}, {:.0f}]".format(*row[kind]) for kind in TEST]
        rows.append([label, *cells, f"{row['seconds']:.2f}" if row["seconds"] else "–"])
    test, minutes = record["test"], Minutes(*record["minutes"])
    more = "; ".join("{} {:+.0f} [{:+.0f}, {:+.0f}]".format(kind, *record["table"]["long"][f"{kind}, more than the mean of windows"])
                     for kind in TEST)  # fmt: skip
    header = ["accuracy, %", *(f"{kind} ({test[kind]})" for kind in TEST), "seconds a page"]
    return (
        f"# Claims about whole pages: all-MiniLM-L6-v2\n\n"
        f"{markdown_table(header, rows)}\n\nThe converted model minus the mean of windows, in points: {more}.\n\n{test['true']} of the "
        f"claims are true; seeds {', '.join(map(str, record['seeds']))}; 95 % intervals by bootstrap over {test['pages']} folders of "
        f"modules. Each started from its reader of questions and was trained for {minutes.excerpts:g} minutes on claims about excerpts "
        f"and for {minutes.pages:g} on claims about whole pages, these once for each seed.\n\n"
        f"{footnote(record['machine'])}"
    )


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the study; return its exit code."""
    from transformers import AutoTokenizer

    options = read_options(arguments, __doc__, OUTPUT, Minutes, "on claims about excerpts, and about whole pages")
    if not (options.work / "claims-test.jsonl").exists():
        build(options.work, AutoTokenizer.from_pretrained(options.work / "minilm"))
    for seed in options.seeds:
        train(options.work, seed, options.minutes)
    test = read(options.work / "claims-test.jsonl")
    about = {**Counter(one["kind"] for one in test), "true": sum(one["label"] == "true" for one in test)}
    about["pages"] = len({one["title"] for one in test})
    finish(options, about, summary(score(options.work, options.seeds)), markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
