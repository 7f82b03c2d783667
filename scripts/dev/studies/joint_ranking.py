"""Reranking on a real checkpoint: which of several versions of a page answers a question of two far places?

    python -m scripts.dev.studies.joint_reading --work runs/joint      first,
    python -m scripts.dev.studies.joint_labels --work runs/joint       and second: they train the readers that this study starts from
    python -m scripts.dev.studies.joint_ranking --work runs/joint      three seeds; resumes what was interrupted

Questions and pages are those of ``joint_reading``. Every page of the test stands in the corpus in four versions, as in the documentation
of four releases: each lacks some entry, and three lack the one that answers. BM25 finds 20 pages; it cannot tell versions apart. Then a
cross-encoder scores the pages: by their best window of 512 tokens, by the two best, or, converted, by all of the page. Both start from
the classifiers of ``joint_labels`` that learned on excerpts whether these answer, and get equal minutes of
``longattn train embed --reranker``.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_longattn.errors import LongAttentionError
from scripts.dev.benchmarks.report import footnote, one_sentence_errors
from scripts.dev.studies.joint_reading import (
    asked_of,
    fine_tune,
    finish,
    means_over_seeds,
    on_every_core,
    over_pages,
    points,
    read,
    read_options,
    stored,
    systems_table,
    test_of,
    windows_of,
    write,
)
from scripts.dev.studies.reference_pages import ENTRY, asked_name, program, without_entry

OUTPUT = Path("scripts/dev/results/joint_ranking")
KINDS = ("two places", "names exchanged")
CANDIDATES, VERSIONS, TEST = 20, 4, 24
"""Pages that are read for a question, versions of a page, and questions of each kind."""
TOKENS = 2000, 2800
"""Tokens of a page, above the first number and up to the second.

The study was designed on shorter pages, and it takes too long to read twenty longer ones for each question.
"""
OTHERS = ("bm25", "best", "two")
"""With what the converted model is compared question by question."""
ROWS = {
    "random": "BM25's first 20 in random order",
    "bm25": "BM25",
    "program": "BM25, then a program written for the questions",
    "best": "BM25, then the original on the best window of 512",
    "two": "BM25, then the original on the two best windows",
    "long": "BM25, then the converted model on the whole page",
}


class Minutes(NamedTuple):
    """Minutes of training, on whole pages and longer excerpts."""

    pages: float = 6.0


class Rank(NamedTuple):
    """One over the place of the right page among the candidates, 0 where BM25 did not find it; ``seed`` is None for what has none."""

    system: str
    seed: int | None
    kind: str
    folder: str
    question: str
    reciprocal: float
    seconds: float


def with_negatives(records: Sequence[Mapping[str, Any]], seed: int = 0) -> Iterator[tuple[Mapping[str, Any], tuple[str, str]]]:
    """Yield the questions for a description that the page has, each with the page without that, and with another page."""
    rng = random.Random(seed)
    for record in asked_of(records):
        while asked_name(record["question"]) in (other := rng.choice(records)["context"]):
            pass
        yield record, (without_entry(record["context"], record["answers"]["answer_start"][0]), other)


def pairs(records: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the questions with their page and each negative."""
    for record, negatives in with_negatives(records):
        for negative in negatives:
            yield {"anchor": record["question"], "positive": record["context"], "negative": negative}


def in_windows(records: Sequence[Mapping[str, Any]], tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Yield the same with windows: the one that has the answer, and of each negative the one at that place."""
    for record, negatives in with_negatives(records):
        asked, (answer,), (at,) = record["question"], record["answers"]["text"], record["answers"]["answer_start"]
        inside = [text for _, text in windows_of(asked, record["context"], tokenizer) if answer in text]
        for negative in negatives:
            there = [text for start, text in windows_of(asked, negative, tokenizer) if start <= at]
            yield from ({"anchor": asked, "positive": text, "negative": there[-1]} for text in inside[:1])


def versions(record: Mapping[str, Any], count: int, rng: random.Random) -> list[str]:
    """The page without one other entry, and ``count - 1`` times without one other and the one that answers; [] where it has too few."""
    text, at = record["context"], record["answers"]["answer_start"][0]
    starts = [match.start() for match in ENTRY.finditer(text) if match["name"] != asked_name(record["question"])]
    target = max(start for start in starts if start < at)
    others = [start for start in starts if start != target]
    if len(others) < count:
        return []
    chosen = rng.sample(others, count)
    made = [without_entry(text, chosen[0] + 1)]
    for other in chosen[1:]:
        first, second = sorted((other + 1, at))
        made.append(without_entry(without_entry(text, second), first))
    return made


class Words:
    """BM25 of bm25s over pages."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self.bm25s = bm25s
        self.texts, self.index = list(texts), bm25s.BM25()
        self.index.index(bm25s.tokenize(self.texts, stopwords="en", show_progress=False), show_progress=False)

    def order(self, query: str) -> list[int]:
        """Numbers of all pages, the best first."""
        tokens = self.bm25s.tokenize([query], stopwords="en", show_progress=False)
        found, _ = self.index.retrieve(tokens, k=len(self.texts), show_progress=False)
        return [int(number) for number in found[0]]


def questions_with_candidates(records: Sequence[Mapping[str, Any]], count: int, seed: int = 0) -> list[dict[str, Any]]:
    """At most ``count`` questions of each of :data:`KINDS` with BM25's first pages, one of which answers.

    The corpus has the versions of all their pages, in random order, and the other pages; for each question, those that answer it as well
    are left out.
    """
    rng = random.Random(seed)
    asked = [
        record
        for kind in KINDS
        for record in [one for one in records if one["kind"] == kind and len(versions(one, VERSIONS, random.Random(0))) == VERSIONS][:count]
    ]
    of_question = [versions(record, VERSIONS, rng) for record in asked]
    corpus = list(dict.fromkeys([page for pages in of_question for page in pages] + [record["context"] for record in records]))
    rng.shuffle(corpus)
    words, rows = Words(corpus), []
    for record, (right, *_) in zip(asked, of_question, strict=True):
        found = list[str]()
        for number in words.order(record["question"]):
            if len(found) < CANDIDATES and (corpus[number] == right or not program({**record, "context": corpus[number]})):
                found.append(corpus[number])
        rows.append({"query": record["question"], "kind": record["kind"], "title": record["title"], "pages": found,
                     "right": found.index(right) if right in found else -1})  # fmt: skip
    return rows


def build(work: Path, tokenizer: Any) -> None:
    """Write pairs to train on and the test with its candidates, from the files of ``joint_reading``."""
    rng = random.Random(0)
    longer, pages = (read(work / f"{name}.jsonl") for name in ("longer", "pages"))
    for name, found in (
        ("pages", pairs(longer + pages)),
        ("pages-windows", in_windows(rng.sample(longer, min(2000, len(longer))) + pages, tokenizer)),
    ):
        its = list(found)
        rng.shuffle(its)
        write(work / f"ranking-{name}.jsonl", its)
    shortest, longest = TOKENS
    some = [one for one in read(work / "test.jsonl") if shortest < one["tokens"] <= longest]
    write(work / "ranking-test.jsonl", questions_with_candidates(some, TEST))


def train(work: Path, seed: int, minutes: Minutes) -> None:
    """Train the two classifiers of excerpts to rank whole pages."""
    for name, windows in (("windows", "-windows"), ("long", "")):
        more = f"--batch-size {4 if windows else 3} --learning-rate 5e-5"
        task, data = "embed --reranker --max-eval-samples 12", f"ranking-pages{windows}"
        fine_tune(work, f"ranking-{name}-{seed}", task, f"labels-{name}", data, minutes.pages, seed, more)


def ranks_of(work: Path, seed: int, step: int, first: int) -> list[Rank]:
    """Rank the candidates of every ``step``-th question by both readers of a seed, one after the other."""
    from sentence_transformers import CrossEncoder

    import hf_longattn  # noqa: F401 (its models register themselves)

    original, converted = (CrossEncoder(str(work / f"ranking-{name}-{seed}"), device="cpu") for name in ("windows", "long"))
    ranks = []
    for row in read(work / "ranking-test.jsonl")[first::step]:
        started = time.perf_counter()
        parts = [[text for _, text in windows_of(row["query"], page, original.tokenizer)] for page in row["pages"]]
        flat = original.predict([(row["query"], text) for its in parts for text in its], batch_size=8, show_progress_bar=False)
        seconds, values = time.perf_counter() - started, iter(flat.tolist())
        of_page = [sorted((next(values) for _ in its), reverse=True) for its in parts]
        ranks.append(rank("best", seed, row, [its[0] for its in of_page], seconds))
        ranks.append(rank("two", seed, row, [sum(its[:2]) for its in of_page], seconds))
        started = time.perf_counter()
        scores = converted.predict([(row["query"], page) for page in row["pages"]], batch_size=2, show_progress_bar=False)
        ranks.append(rank("long", seed, row, scores.tolist(), time.perf_counter() - started))
    return ranks


def rank(system: str, seed: int | None, row: Mapping[str, Any], scores: Sequence[float], seconds: float = 0.0) -> Rank:
    """The rank of the right page by a system's scores of the candidates; of equal ones, BM25's order counts."""
    place = list(np.argsort(-np.asarray(scores, dtype=float), kind="stable")).index(row["right"]) + 1 if row["right"] >= 0 else 0
    return Rank(system, seed, row["kind"], row["title"], row["query"], 1 / place if place else 0.0, seconds)


def score(work: Path, seeds: Sequence[int]) -> list[Rank]:
    """Rank the candidates of every question by every system."""
    ranks = list[Rank]()
    for row in read(work / "ranking-test.jsonl"):
        count = len(row["pages"])
        ranks.append(rank("bm25", None, row, [-place for place in range(count)]))
        ranks.append(rank("random", None, row, random.Random(row["query"]).sample(range(count), count)))
        ranks.append(rank("program", None, row, [program({"question": row["query"], "context": page}) != "" for page in row["pages"]]))
    for seed in seeds:
        ranks += stored(work / f"ranking-ranks-{seed}.json", Rank, partial(on_every_core, partial(ranks_of, work, seed)))
    return ranks


def summary(ranks: Sequence[Rank]) -> dict[str, Any]:
    """MRR by kind and seconds of every system; and what "long" has more than each of :data:`OTHERS`, question by question."""
    table: dict[str, Any] = defaultdict(dict)
    for kind in sorted({one.kind for one in ranks}, key=KINDS.index):
        means = means_over_seeds((one.system, (one.folder, one.question), one.reciprocal) for one in ranks if one.kind == kind)
        for name, its in means.items():
            table[name][kind] = over_pages(its)
        for other in OTHERS:
            table["long"][f"{kind}, more than {other}"] = over_pages({key: one - means[other][key] for key, one in means["long"].items()})
    for name, row in table.items():
        row["seconds"] = round(float(np.median([one.seconds for one in ranks if one.system == name])), 3)
    return dict(table)


def markdown(record: Mapping[str, Any]) -> str:
    """MRR and seconds of every system, and how they were measured."""
    test, minutes = record["test"], Minutes(*record["minutes"])
    kinds = [kind for kind in KINDS if kind in test]
    table = systems_table(record, ROWS, kinds, "MRR, %", "seconds a question, one thread")
    more = [f"- {ROWS[other]}: {points(record, kinds, other)}" for other in OTHERS]
    about = (
        f"BM25 has the right page among its first {CANDIDATES} for {test['found']} questions. Pages of {TOKENS[0]:,} to {TOKENS[1]:,} "
        f"tokens in {VERSIONS} versions; seeds {', '.join(map(str, record['seeds']))}; 95 % intervals by bootstrap over folders of "
        f"modules. Each cross-encoder started from a classifier that learned on excerpts whether these answer, and was trained for "
        f"{minutes.pages:g} minutes on whole pages and longer excerpts."
    )
    minus = "Points that the converted model has more than others:\n\n" + "\n".join(more)
    parts = ["# Which version of a page answers: all-MiniLM-L6-v2", table, minus, about, footnote(record["machine"])]
    return "\n\n".join(parts)


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the study; return its exit code."""
    options = read_options(arguments, __doc__, OUTPUT, Minutes, "on whole pages and longer excerpts")
    test = test_of(options.work, "ranking-test", build, "joint_labels", "labels-long")
    if not test:
        raise LongAttentionError(f"{options.work} has no pages of {TOKENS[0]:,} to {TOKENS[1]:,} tokens; run joint_reading without --quick")
    for seed in options.seeds:
        train(options.work, seed, options.minutes)
    about = {**Counter(row["kind"] for row in test), "found": sum(row["right"] >= 0 for row in test)}
    finish(options, about, summary(score(options.work, options.seeds)), markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
