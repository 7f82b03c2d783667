"""Reranking on a real checkpoint: pages found by BM25 for two sentences from far places, read whole or in chunks.

    python -m scripts.dev.studies.joint_ranking --work runs/joint      three seeds; resumes what was interrupted

The query is two descriptions of a page of :mod:`reference_pages`, taken out of it, from far places; so no chunk holds what is said about
both. all-MiniLM-L6-v2 becomes a cross-encoder on queries and chunks of 512 tokens; from there on, with equal minutes: a page's
score is that of its best chunk, or of the two best; or the model is converted to 4,096 tokens and reads the page. All trainings are the
commands of users.
"""

from __future__ import annotations

import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scripts.dev.benchmarks.report import footnote, markdown_table, one_sentence_errors
from scripts.dev.studies.joint_reading import (
    convert,
    fine_tune,
    finish,
    interval,
    prepare,
    read,
    read_options,
    stored,
    windows_of,
    write,
)
from scripts.dev.studies.reference_pages import FAR, PACKAGES, Page, pages_of

OUTPUT = Path("scripts/dev/results/joint_ranking")
LENGTHS = (1000, 1700)
"""Tokens of a page, drawn between these: twenty are read for each query."""
CANDIDATES, TEST = 20, 120
ROWS = {
    "random": "BM25's first 20 in random order",
    "bm25": "BM25",
    "best": "BM25, then the best chunk",
    "two": "BM25, then the two best chunks",
    "long": "BM25, then the whole page (converted, longformer)",
}


class Minutes(NamedTuple):
    """Minutes of training: on chunks, and on chunks or whole pages."""

    chunks: float = 10.0
    pages: float = 5.0


class Rank(NamedTuple):
    """One over the place of the right page among the candidates, 0 where BM25 did not find it; ``seed`` is None for BM25."""

    system: str
    seed: int | None
    page: str
    reciprocal: float
    first: bool
    seconds: float


class Query(NamedTuple):
    """Two descriptions, the page without them, and the characters at which they stood."""

    text: str
    page: str
    places: tuple[int, int]


def query_of(page: Page, rng: random.Random) -> Query | None:
    """A query about a page; None where no two descriptions are :data:`FAR` tokens apart."""
    entries = [entry for entry in page.described.values() if len(entry.answer) >= 40]
    pairs = [(one, other) for one in entries for other in entries if other.start - one.start >= FAR * 4.2]
    if not pairs:
        return None
    first, second = rng.choice(pairs)
    text, places = page.text, list[int]()
    for entry in (second, first):
        start, end = entry.answer_start, entry.answer_start + len(entry.answer)
        text = text[:start] + text[end:]
        places.insert(0, start)
    return Query(f"{first.answer} {second.answer}", text, (places[0], places[1] - len(first.answer)))


class Words:
    """BM25 of bm25s over pages."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self.bm25s = bm25s
        self.texts, self.index = list(texts), bm25s.BM25()
        self.index.index(bm25s.tokenize(self.texts, stopwords="en", show_progress=False), show_progress=False)

    def first(self, query: str, count: int) -> list[int]:
        """Numbers of the best pages."""
        tokens = self.bm25s.tokenize([query], stopwords="en", show_progress=False)
        found, _ = self.index.retrieve(tokens, k=min(count, len(self.texts)), show_progress=False)
        return [int(number) for number in found[0]]


def build(work: Path, tokenizer: Any) -> None:
    """Write pairs of queries and chunks, pairs of queries and pages, and the test with its candidates."""
    rng = random.Random(0)
    for split in ("train", "test"):
        pages = [page for name in PACKAGES[split].split() for page in pages_of(name, LENGTHS)]
        queries = [query_of(page, rng) if len(page.text) / 4 >= LENGTHS[0] / 1.2 else None for page in pages]
        asked = {number: query for number, query in enumerate(queries) if query is not None}
        texts = [asked[number].page if number in asked else page.text for number, page in enumerate(pages)]
        words, order = Words(texts), rng.sample(list(asked), len(asked))
        if split == "test":
            rows = []
            for number in order[:TEST]:
                found = words.first(asked[number].text, CANDIDATES)
                rows.append({"query": asked[number].text, "title": pages[number].title, "pages": [texts[one] for one in found],
                             "right": found.index(number) if number in found else -1})  # fmt: skip
            write(work / "ranking-test.jsonl", rows)
            continue
        whole, parts = [], []
        for number in order:
            query = asked[number]
            wrong = rng.choice([one for one in words.first(query.text, CANDIDATES) if one != number])
            whole.append({"anchor": query.text, "positive": texts[number], "negative": texts[wrong]})
            wrong_chunk = rng.choice(windows_of(query.text, texts[wrong], tokenizer))[1]
            for place in query.places:
                inside = [text for start, text in windows_of(query.text, texts[number], tokenizer) if start <= place < start + len(text)]
                if inside:
                    parts.append({"anchor": query.text, "positive": inside[0], "negative": wrong_chunk})
        write(work / "ranking-pages.jsonl", whole)
        write(work / "ranking-chunks.jsonl", rng.sample(parts, len(parts)))


def train(work: Path, seed: int, minutes: Minutes) -> None:
    """Train the cross-encoder of chunks, which all seeds share; go on with it, and train the converted one on whole pages."""
    task = "embed --reranker --max_eval_samples 20"
    fine_tune(work, "ranking", task, "minilm", "ranking-chunks", minutes.chunks, seed, "--batch_size 8 --learning_rate 1e-4")
    convert(work, "ranking", "ranking-converted")
    for name, model, data, rows in (("chunks", "ranking", "chunks", 8), ("long", "ranking-converted", "pages", 4)):
        more = f"--batch_size {rows} --learning_rate 5e-5"
        fine_tune(work, f"ranking-{name}-{seed}", task, model, f"ranking-{data}", minutes.pages, seed, more)


def score(work: Path, seeds: Sequence[int]) -> list[Rank]:
    """Rank the candidates of every query by every system, one query after the other."""
    from sentence_transformers import CrossEncoder

    import hf_longattn  # noqa: F401 (its models register themselves)

    test, ranks = read(work / "ranking-test.jsonl"), list[Rank]()

    def rank(system: str, seed: int | None, row: Mapping[str, Any], scores: Sequence[float], seconds: float) -> Rank:
        place = list(np.argsort(-np.asarray(scores), kind="stable")).index(row["right"]) + 1 if row["right"] >= 0 else 0
        return Rank(system, seed, row["title"], 1 / place if place else 0.0, place == 1, seconds)

    def of_readers(seed: int) -> Iterator[Rank]:
        chunks, long = (CrossEncoder(str(work / f"ranking-{name}-{seed}"), device="cpu") for name in ("chunks", "long"))
        for row in test:
            started = time.perf_counter()
            parts = [[text for _, text in windows_of(row["query"], page, chunks.tokenizer)] for page in row["pages"]]
            flat = chunks.predict([(row["query"], text) for its in parts for text in its], batch_size=8, show_progress_bar=False)
            seconds, values = time.perf_counter() - started, iter(flat.tolist())
            of_page = [sorted((next(values) for _ in its), reverse=True) for its in parts]
            yield rank("best", seed, row, [its[0] for its in of_page], seconds)
            yield rank("two", seed, row, [sum(its[:2]) for its in of_page], seconds)
            started = time.perf_counter()
            scores = long.predict([(row["query"], page) for page in row["pages"]], batch_size=2, show_progress_bar=False)
            yield rank("long", seed, row, scores.tolist(), time.perf_counter() - started)

    for row in test:
        count = len(row["pages"])
        ranks.append(rank("bm25", None, row, [-place for place in range(count)], 0.0))
        ranks.append(rank("random", None, row, random.Random(row["query"]).sample(range(count), count), 0.0))
    for seed in seeds:
        ranks += stored(work / f"ranking-ranks-{seed}.json", Rank, partial(of_readers, seed))
    return ranks


def summary(ranks: Sequence[Rank]) -> dict[str, Any]:
    """MRR, first places and seconds of every system, and differences to the best chunk query by query."""
    table: dict[str, Any] = {}
    values: dict[str, dict[str, list[Rank]]] = defaultdict(lambda: defaultdict(list))
    for rank in ranks:
        values[rank.system][rank.page].append(rank)
    for name, pages in values.items():
        table[name] = {
            "mrr": interval({page: [one.reciprocal for one in found] for page, found in pages.items()}),
            "first": interval({page: [one.first for one in found] for page, found in pages.items()}),
            "seconds": float(np.median([one.seconds for found in pages.values() for one in found])),
        }
        if name in ("two", "long"):
            best = values["best"]
            table[name]["more than the best chunk"] = interval(
                {
                    page: [one.reciprocal - other.reciprocal for one, other in zip(found, best[page], strict=True)]
                    for page, found in pages.items()
                }
            )
    return table


def markdown(record: Mapping[str, Any]) -> str:
    """MRR, first places and seconds of every system, and how they were measured."""
    rows = []
    for name, label in ROWS.items():
        row = record["table"][name]
        cells = ["{:.1f} [{:.1f}, {:.1f}]".format(*row[value]) for value in ("mrr", "first")]
        rows.append([label, *cells, f"{row['seconds']:.1f}" if row["seconds"] else "–"])
    test, minutes = record["test"], Minutes(*record["minutes"])
    more = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*record["table"]["long"]["more than the best chunk"])
    header = [f"{test['queries']} queries", "MRR, %", "right page first, %", "seconds a query"]
    return (
        f"# Reranking whole pages: all-MiniLM-L6-v2\n\n"
        f"{markdown_table(header, rows)}\n\nWhole pages minus the best chunk, in points of MRR: {more}.\n\nBM25 has the right page among "
        f"its first {CANDIDATES} for {test['found']} queries. Pages of {LENGTHS[0]:,} to {LENGTHS[1]:,} tokens; seeds "
        f"{', '.join(map(str, record['seeds']))}; 95 % intervals by bootstrap over folders of modules. Both cross-encoders share "
        f"{minutes.chunks:g} minutes of training on chunks; then {minutes.pages:g} minutes on chunks, or on whole pages, once "
        "for each seed.\n\n"
        f"{footnote(record['machine'])}"
    )


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the study; return its exit code."""
    from transformers import AutoTokenizer

    options = read_options(arguments, __doc__, OUTPUT, Minutes, "on chunks, and on chunks or whole pages")
    prepare(options.work)
    if not (options.work / "ranking-test.jsonl").exists():
        build(options.work, AutoTokenizer.from_pretrained(options.work / "minilm"))
    for seed in options.seeds:
        train(options.work, seed, options.minutes)
    test = read(options.work / "ranking-test.jsonl")
    about = {"queries": len(test), "found": sum(row["right"] >= 0 for row in test)}
    finish(options, about, summary(score(options.work, options.seeds)), markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
