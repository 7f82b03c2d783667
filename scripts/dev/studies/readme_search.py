"""The second part of the demo: which README is a sentence from? Nothing is trained.

READMEs are those of the installed packages. docs/results/embed.md has a larger comparison, with trainings, on manual pages.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import disable_progress_bars
from rich.console import Console

from hf_longattn.evaluation.embedding import embed_documents
from scripts.dev.studies.joint_reading import prepare, windows_of, write

COUNT, LENGTHS, CHUNK = 60, (700, 4000), 256
"""READMEs at most, their tokens, and those of a chunk."""
SENTENCE = re.compile(r"(?:(?<=[.] )|(?<=   ))[A-Z][^.!?:;|\[\]<>{}=]{60,220}\.(?=\s)")
Vectors = Mapping[str, np.ndarray]
"""Vectors ``(count, width)`` of a document or a query, by its id."""


class Readme(NamedTuple):
    """A README: the package's name, its description in one line, and the text."""

    name: str
    about: str
    text: str

    def names_itself(self, start: int, end: int) -> bool:
        """Whether the text between two characters has the package's name or its last part ("box" of copier-box)."""
        whole, last = re.sub(r"[-_.@\s]+", r"[-_.@\\s]+", self.name), re.escape(re.split(r"[-_.@\s]+", self.name)[-1])
        return re.search(rf"{whole}|\b{last}\b", self.text[start:end], flags=re.IGNORECASE) is not None

    def queries(self, rng: random.Random) -> tuple[str, list[str]] | None:
        """The text without its description and a sentence, and these two; None where it has no sentence."""
        sentences = [match for match in SENTENCE.finditer(self.text) if not self.names_itself(*match.span())]
        if not sentences or len(self.about.split()) < 3:
            return None
        asked, text = [self.about, " ".join(rng.choice(sentences)[0].split())], self.text
        for words in asked:
            text = re.sub(r"\s+".join(map(re.escape, words.split())), "", text)
        return text, asked


def readmes(tokenizer: Any) -> list[Readme]:
    """READMEs of installed packages of :data:`LENGTHS` tokens, at most :data:`COUNT` of them."""
    found = {}
    for package in metadata.distributions():
        about = package.metadata.json
        name, text = str(about.get("name", "")), str(about.get("description", ""))
        if LENGTHS[0] <= len(tokenizer(text, verbose=False)["input_ids"]) <= LENGTHS[1]:
            found[name.lower()] = Readme(name, str(about.get("summary", "")), text)
    return [found[name] for name in sorted(random.Random(0).sample(sorted(found), min(COUNT, len(found))))]


def vectors_of(folder: Path) -> Vectors:
    """The vectors of a folder that ``longattn embed`` wrote."""
    import pyarrow.parquet as pq

    found = defaultdict(list)
    for file in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(16_384, columns=["id", "vector"]):
            flat = batch.column("vector").flatten().to_numpy()
            for name, vector in zip(batch.column("id").to_pylist(), flat.reshape(batch.num_rows, -1), strict=True):
                found[name].append(vector)
    return {name: np.stack(rows) for name, rows in found.items()}


def grouped(vectors: Vectors) -> Vectors:
    """The vectors of chunks, "readme#number", by README."""
    pages = defaultdict(list)
    for name, rows in vectors.items():
        pages[name.rpartition("#")[0]].append(rows)
    return {name: np.concatenate(rows) for name, rows in pages.items()}


def ranks(queries: Vectors, documents: Vectors, rights: Mapping[str, str]) -> dict[str, float]:
    """One over the rank of each query's document: the sum over the query's vectors of the best among the document's (MaxSim)."""
    numbers = {name: number for number, name in enumerate(documents)}
    flat, first = np.concatenate(list(documents.values())), np.cumsum([0, *(len(rows) for rows in documents.values())])[:-1]
    found = {}
    for query, rows in queries.items():
        scores = np.maximum.reduceat(rows @ flat.T, first, axis=1).sum(0)
        found[query] = 1.0 / (1 + int((scores > scores[numbers[rights[query]]]).sum()))
    return found


def by_words(texts: Sequence[Mapping[str, Any]], queries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The same by BM25, with its usual constants."""
    counts = {row["id"]: Counter(re.findall(r"\w\w+", row["text"].lower())) for row in texts}
    length = {name: sum(words.values()) for name, words in counts.items()}
    average, held = sum(length.values()) / len(length), Counter(word for words in counts.values() for word in words)

    def score(name: str, word: str) -> float:
        count, rarity = counts[name][word], math.log1p((len(counts) - held[word] + 0.5) / (held[word] + 0.5))
        return rarity * 2.5 * count / (count + 1.5 * (0.25 + 0.75 * length[name] / average))

    found = {}
    for row in queries:
        words = re.findall(r"\w\w+", row["text"].lower())
        scores = {name: sum(score(name, word) for word in words) for name in counts}
        found[row["id"]] = 1.0 / (1 + sum(other > scores[row["right"]] for other in scores.values()))
    return found


def show_search(console: Console, long: Path, work: Path) -> None:
    """Print how often each way of embedding finds the README of a sentence, and its seconds.

    Args:
        long: the converted model.
        work: folder for documents and vectors.
    """
    from transformers import AutoTokenizer

    disable_progress_bars()
    prepare(work)
    tokenizer, rng = AutoTokenizer.from_pretrained(long), random.Random(0)
    documents, chunks, queries = list[dict[str, str]](), list[dict[str, str]](), list[dict[str, str]]()
    for page in readmes(tokenizer):
        if (text_and_queries := page.queries(rng)) is not None:
            text, asked = text_and_queries
            documents.append({"id": page.name, "text": text})
            chunks += [{"id": f"{page.name}#{at}", "text": part} for at, part in windows_of("", text, tokenizer, CHUNK, 0)]
            queries += [{"id": f"{page.name}#{number}", "text": words, "right": page.name} for number, words in enumerate(asked)]
    for name, rows in (("documents", documents), ("chunks", chunks), ("queries", queries)):
        write(work / f"{name}.jsonl", rows)
    rights = {row["id"]: row["right"] for row in queries}

    def embed(model: Path, data: str, vectors: str = "document", task: str = "document") -> Vectors:
        out = work / f"{'converted' if model == long else 'original'} {data} {vectors}".replace(":", " ")
        embed_documents(str(model), str(work / f"{data}.jsonl"), out, vectors=vectors, task=task)
        return vectors_of(out)

    one, tokens = (embed(long, "queries", vectors, "query") for vectors in ("document", "tokens"))
    short = work / "minilm"
    systems: dict[str, Callable[[], dict[str, float]]] = {
        "original, first 512 tokens": lambda: ranks(one, embed(short, "documents"), rights),
        f"original, best of its chunks of {CHUNK}": lambda: ranks(one, grouped(embed(short, "chunks")), rights),
        "BM25": lambda: by_words(documents, queries),
        "converted, one vector": lambda: ranks(one, embed(long, "documents"), rights),
        "converted, late chunks of 128, best": lambda: ranks(one, embed(long, "documents", "passages:128"), rights),
        "converted, a vector for every token, MaxSim": lambda: ranks(tokens, embed(long, "documents", "tokens"), rights),
    }
    console.print(
        f"\n   Which of {len(documents)} READMEs is it from? {len(queries)} descriptions and sentences, taken out of their READMEs"
    )
    console.print("   longattn embed MODEL documents.jsonl --output FOLDER [--vectors passages:128 | tokens]")
    console.print("    MRR, %   seconds")
    for name, find in systems.items():
        started = time.monotonic()
        found = find()
        mrr = 100 * float(np.mean(list(found.values())))
        console.print(f"   {mrr:>7.1f}   {time.monotonic() - started:>7.1f}   {name}", highlight=False)
    console.print("   On manual pages and after training: docs/results/embed.md")
