"""The second part of the demo: which README is a sentence from? Nothing is trained.

READMEs are those of the installed packages. ``real_retrieval`` has the whole comparison, with trainings, on manual pages.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from datasets import disable_progress_bars
from rich.console import Console

from hf_longattn.evaluation.embedding import embed_documents
from scripts.dev.studies.joint_reading import prepare, windows_of, write
from scripts.dev.studies.manual_pages import Manual, page_queries
from scripts.dev.studies.real_retrieval import Vectors, by_words, grouped, ranks, vectors_of

COUNT, LENGTHS, CHUNK = 60, (700, 4000), 256
"""READMEs at most, their tokens, and those of a chunk."""


def readmes(tokenizer: Any) -> list[Manual]:
    """READMEs of installed packages of :data:`LENGTHS` tokens, at most :data:`COUNT` of them."""
    found = {}
    for package in metadata.distributions():
        about = package.metadata.json
        name, text = str(about.get("name", "")), str(about.get("description", ""))
        if LENGTHS[0] <= len(tokenizer(text, verbose=False)["input_ids"]) <= LENGTHS[1]:
            found[name.lower()] = Manual(name, name, str(about.get("summary", "")), text)
    return [found[name] for name in sorted(random.Random(0).sample(sorted(found), min(COUNT, len(found))))]


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
        if (page_and_queries := page_queries(page, rng)) is not None:
            text, asked = page_and_queries
            documents.append({"id": page.name, "text": text})
            chunks += [{"id": f"{page.name}#{at}", "text": part} for at, part in windows_of("", text, tokenizer, CHUNK, 0)]
            queries += [{"id": f"{page.name}#{number}", "text": words, "right": page.name} for number, (words, _) in enumerate(asked)]
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
    console.print("   On manual pages and after training, in hours: python -m scripts.dev.studies.real_retrieval --work runs/retrieval")
