"""Retrieval on a real checkpoint: which manual page a sentence is from, and which passage says what is asked of a page.

    python -m scripts.dev.studies.real_retrieval --work runs/retrieval            three seeds; resumes what was interrupted
    python -m scripts.dev.studies.real_retrieval --work runs/quick --quick        one seed, a minute of each training, few pages

all-MiniLM-L6-v2 as it is, in chunks and fine-tuned in chunks, against the same model converted to 8,192 tokens, untrained and trained:
one vector, several, late chunks, and a vector for every token. :mod:`manual_pages` says what is asked. Vectors are made by ``longattn
embed``, trainings are commands of users, which are printed.
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
    means_over_seeds,
    over_pages,
    prepare,
    read,
    read_options,
    run,
    stored,
    windows_of,
    write,
)
from scripts.dev.studies.manual_pages import LENGTHS, Manual, manuals, page_queries, passage_queries, without_shared

OUTPUT = Path("scripts/dev/results/real_retrieval")
PAGES, LONG, TITLE = 250, 8192, 16
"""Pages of the test; tokens that a converted model reads; first tokens of a page that all see in ``long-titled``."""
CHUNKS = (128, 256, 512)
SETS = {"pages": "the page of a sentence", "passages": "the passage of a page"}
TRAINED = {
    "chunks": ("minilm", "chunks", "--batch-size 32 --learning-rate 5e-5 --max-length 512"),
    "named": ("minilm", "named", "--batch-size 32 --learning-rate 5e-5 --max-length 512"),
    "one": ("long", "pages", "--batch-size 16 --mini-batch-size 1 --learning-rate 5e-5"),
    "positions": ("long", "pages", "--batch-size 16 --mini-batch-size 1 --learning-rate 2e-3 --train positions"),
    "late": ("long", "passages", "--batch-size 8 --learning-rate 5e-5"),
    "titled": ("long-titled", "passages", "--batch-size 8 --learning-rate 5e-5"),
    "tokens": ("long", "pages", "--batch-size 16 --mini-batch-size 1 --learning-rate 1e-5 --multi-vector"),
}
"""What is trained: the model that it starts from, the pairs, and further options."""
ROWS = {
    "truncated": "original, first 512 tokens",
    **{f"mean {size}": f"original, mean of its chunks of {size}" for size in CHUNKS},
    **{f"best {size}": f"original, best of its chunks of {size}" for size in CHUNKS},
    "best 256, overlapping": "original, best of chunks of 256 that share 128",
    "chunks best 256": "**original, fine-tuned**, best of its chunks of 256",
    "bm25": "BM25",
    "chunk tokens": "original, tokens of chunks of 512, MaxSim",
    "one": "converted, one vector",
    **{f"parts {count}": f"converted, {count} vectors, best" for count in (2, 4, 8)},
    "clusters 8": "converted, 8 vectors by clusters, best",
    "late": "converted, late chunks of 128, best",
    "tokens": "converted, tokens, MaxSim",
    "tokens 64": "converted, tokens averaged to 64, MaxSim",
    "one trained": "**converted, trained**, one vector",
    "positions trained": "**converted, its new positions trained**, one vector",
    "late trained": "**converted, trained on passages**, late chunks of 128, best",
    "tokens trained": "**converted, trained for it**, tokens, MaxSim",
    "tokens trained 64": "**converted, trained for it**, tokens averaged to 64, MaxSim",
}
PASSAGE_ROWS = {
    "alone": "original, each passage alone",
    "title": "original, the page's name in front of each",
    "named trained": "**original, fine-tuned with the page's name in front**",
    "bm25": "BM25",
    "bm25 title": "BM25, the page's name in front",
    "tokens alone": "original, tokens of each passage, MaxSim",
    "tokens title": "original, tokens, the page's name in front, MaxSim",
    "late": "converted, late chunks",
    "late trained": "**converted, trained on passages**, late chunks",
    "titled trained": f"**the same, the page's first {TITLE} tokens global**",
}
BRIEF = {
    "original, first 512 tokens": ("truncated", None),
    "original, best chunk of 256; passages": ("best 256", "alone"),
    "original, passages with the page's name in front": (None, "title"),
    "original, trained: best chunk of 256; passages with the name": ("chunks best 256", "named trained"),
    "BM25; with the page's name in front": ("bm25", "bm25 title"),
    "original, token vectors of chunks; of passages with the name": ("chunk tokens", "tokens title"),
    "converted, one vector": ("one", None),
    "converted, one vector, trained": ("one trained", None),
    "converted, eight vectors": ("parts 8", None),
    "converted, 64 vectors": ("tokens 64", None),
    "converted, token vectors": ("tokens", None),
    "converted, token vectors, trained": ("tokens trained", None),
    "converted, late chunks": ("late", "late"),
    "converted, late chunks, trained": ("late trained", "late trained"),
    f"the same, the page's first {TITLE} tokens global": (None, "titled trained"),
}
"""Rows of the table in README.md, with the system of each of :data:`SETS`."""
SPEEDS = {
    "truncated": ("minilm", "original, first 512 tokens"),
    "chunks": ("minilm", "original, chunks of 512"),
    "one": ("long", "converted"),
    "optimised": ("long", "converted, after `optimize_for_inference(encoder, 'fp32')`"),
}
"""The model and the label of what is timed."""


class Minutes(NamedTuple):
    """Minutes of a training, on passages and on whole pages."""

    passages: float = 6.0
    pages: float = 24.0


class Ranks(NamedTuple):
    """What :func:`ranks` finds for the queries of a set."""

    which: str
    system: str
    reciprocals: dict[str, float]


class Found(NamedTuple):
    """One over the rank of what a query asks for; ``seed`` is None where nothing is trained."""

    which: str
    system: str
    seed: int | None
    page: str
    query: str
    reciprocal: float


Vectors = Mapping[str, np.ndarray]
"""Vectors ``(count, width)`` of a document, a passage or a query, by its id."""


def build(work: Path, tokenizer: Any, quick: bool) -> None:
    """Write the pages and queries of the test, and the pairs of the trainings."""
    rng = random.Random(0)

    def fits(page: Manual) -> bool:
        return LENGTHS[0] <= len(tokenizer(page.text, verbose=False)["input_ids"]) <= LENGTHS[1]

    pages = {split: [page for page in manuals(split, work / "packages") if fits(page)] for split in ("test", "train")}
    test = rng.sample(pages["test"], min(len(pages["test"]), 25 if quick else PAGES))
    train = without_shared(pages["train"], pages["test"])
    print(
        f"{len(train)} of {len(pages['train'])} pages of the training share no text with the {len(pages['test'])} of the test", flush=True
    )
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for page in test:
        left, asked = page_queries(page, rng) or (page.text, [])
        rows["pages"].append({"id": page.name, "text": left})
        for text, place in asked:
            rows["pages-queries"].append({"id": str(len(rows["pages-queries"])), "text": text, "right": page.name, "place": place})
        rows["passages"].append({"id": page.name, "text": page.text, "spans": page.passages})
        for number, (start, end) in enumerate(page.passages):
            if page.text[start:end].strip():
                rows["passages-alone"].append({"id": f"{page.name}#{number}", "text": page.text[start:end]})
                rows["passages-title"].append({"id": f"{page.name}#{number}", "text": f"{page.name}\n{page.text[start:end]}"})
    for text, page, start, end in passage_queries(test, rng):
        right = f"{page.name}#{page.passages.index((start, end))}"
        rows["passages-queries"].append({"id": str(len(rows["passages-queries"])), "text": text, "right": right})
    for size, stride, name in [*((size, 0, f"{size}") for size in CHUNKS), (256, 128, "256, overlapping")]:
        for row in rows["pages"]:
            parts = windows_of("", row["text"], tokenizer, size, stride)
            rows[f"chunks {name}"] += [{"id": f"{row['id']}#{number}", "text": text} for number, (_, text) in enumerate(parts)]
    for page in train:
        left, asked = page_queries(page, rng) or (page.text, [])
        for text, place in asked:
            rows["pages-train"].append({"anchor": text, "positive": left})
            at, parts = place * len(page.text), windows_of("", left, tokenizer, 256, 0)
            _, near = parts[int(np.argmin([abs(start + len(part) / 2 - at) for start, part in parts]))]
            rows["chunks-train"].append({"anchor": text, "positive": near})
    for text, page, start, end in passage_queries(train, rng, least=2, most=12):
        rows["passages-train"].append({"anchor": text, "positive": page.text, "start": start, "end": end})
        rows["named-train"].append({"anchor": text, "positive": f"{page.name}\n{page.text[start:end]}"})
    for name, records in rows.items():
        if name.endswith("-train"):
            rng.shuffle(records)
        write(work / f"{name}.jsonl", records)


def embed(work: Path, model: str, data: str, vectors: str = "document", task: str = "document") -> Vectors:
    """The vectors that ``longattn embed`` writes of a file of ``work``."""
    folder = work / "vectors" / f"{model} {data} {vectors} {task}".replace(":", " ")
    if not (folder / "done").exists():
        run("embed", work / model, work / f"{data}.jsonl", "--output", folder, "--vectors", vectors, "--task", task)
        (folder / "done").touch()
    return vectors_of(folder)


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


def late(work: Path, model: str) -> Vectors:
    """Late chunks of the passages of the test, by :func:`hf_longattn.evaluation.late_chunking.late_chunks`."""
    from sentence_transformers import SentenceTransformer

    import hf_longattn  # noqa: F401 (its models register themselves)
    from hf_longattn.evaluation.late_chunking import late_chunks

    encoder, found = SentenceTransformer(str(work / model), device="cpu"), dict[str, np.ndarray]()
    for row in read(work / "passages.jsonl"):
        spans = [(number, (start, end)) for number, (start, end) in enumerate(row["spans"]) if row["text"][start:end].strip()]
        (chunks,) = late_chunks(encoder.transformers_model, encoder.tokenizer, row["text"], spans=[[span for _, span in spans]])
        found |= {f"{row['id']}#{number}": chunk.embedding.numpy()[None] for (number, _), chunk in zip(spans, chunks, strict=True)}
    return found


def grouped(vectors: Vectors, mean: bool = False) -> Vectors:
    """The vectors of chunks, "page#number", by page; or their mean."""
    pages = defaultdict(list)
    for name, rows in vectors.items():
        pages[name.rpartition("#")[0]].append(rows)
    if mean:
        means = {name: np.concatenate(rows).mean(0, keepdims=True) for name, rows in pages.items()}
        return {name: row / np.linalg.norm(row) for name, row in means.items()}
    return {name: np.concatenate(rows) for name, rows in pages.items()}


def clusters(vectors: Vectors, count: int) -> Vectors:
    """Means of the ``count`` clusters of a page's token vectors."""
    from sklearn.cluster import KMeans

    found = {}
    for name, rows in vectors.items():
        centres = KMeans(min(count, len(rows)), n_init=1, max_iter=20, random_state=0).fit(rows).cluster_centers_
        found[name] = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    return found


def ranks(queries: Vectors, documents: Vectors, rights: Mapping[str, str]) -> dict[str, float]:
    """One over the rank of each query's document: the sum over the query's vectors of the best among the document's (MaxSim)."""
    numbers = {name: number for number, name in enumerate(documents)}
    flat, first = np.concatenate(list(documents.values())), np.cumsum([0, *(len(rows) for rows in documents.values())])[:-1]
    found = {}
    for query, rows in queries.items():
        scores = np.maximum.reduceat(rows @ flat.T, first, axis=1).sum(0)
        found[query] = 1.0 / (1 + int((scores > scores[numbers[rights[query]]]).sum()))
    return found


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


def by_words(texts: Sequence[Mapping[str, Any]], queries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The same by BM25."""
    words, names = Words([row["text"] for row in texts]), [row["id"] for row in texts]
    orders = {row["id"]: [names[number] for number in words.order(row["text"])] for row in queries}
    return {row["id"]: 1.0 / (1 + orders[row["id"]].index(row["right"])) for row in queries}


def untrained(work: Path) -> Iterator[Ranks]:
    """Yield the ranks of what needs no training."""
    rows = {name: read(work / f"{name}-queries.jsonl") for name in SETS}
    rights = {name: {row["id"]: row["right"] for row in rows[name]} for name in SETS}
    short, long = ({name: embed(work, model, f"{name}-queries", task="query") for name in SETS} for model in ("minilm", "long"))
    tokens = {name: embed(work, "minilm", f"{name}-queries", "tokens", "query") for name in SETS}

    def of(which: str, system: str, queries: Vectors, documents: Vectors) -> Ranks:
        return Ranks(which, system, ranks(queries, documents, rights[which]))

    yield of("pages", "truncated", short["pages"], embed(work, "minilm", "pages"))
    for size in CHUNKS:
        chunks = embed(work, "minilm", f"chunks {size}")
        yield of("pages", f"mean {size}", short["pages"], grouped(chunks, mean=True))
        yield of("pages", f"best {size}", short["pages"], grouped(chunks))
    yield of("pages", "best 256, overlapping", short["pages"], grouped(embed(work, "minilm", "chunks 256, overlapping")))
    yield Ranks("pages", "bm25", by_words(read(work / "pages.jsonl"), rows["pages"]))
    yield of("pages", "chunk tokens", tokens["pages"], grouped(embed(work, "minilm", "chunks 512", "tokens")))
    yield of("pages", "one", long["pages"], embed(work, "long", "pages"))
    for count in (2, 4, 8):
        yield of("pages", f"parts {count}", long["pages"], embed(work, "long", "pages", f"parts:{count}"))
    yield of("pages", "late", long["pages"], embed(work, "long", "pages", "passages:128"))
    states = embed(work, "long", "pages", "tokens")
    yield of("pages", "tokens", tokens["pages"], states)
    yield of("pages", "clusters 8", long["pages"], clusters(states, 8))
    yield of("pages", "tokens 64", tokens["pages"], embed(work, "long", "pages", "parts:64"))
    for name in ("alone", "title"):
        yield of("passages", name, short["passages"], embed(work, "minilm", f"passages-{name}"))
        yield of("passages", f"tokens {name}", tokens["passages"], embed(work, "minilm", f"passages-{name}", "tokens"))
        by_bm25 = by_words(read(work / f"passages-{name}.jsonl"), rows["passages"])
        yield Ranks("passages", "bm25 title" if name == "title" else "bm25", by_bm25)
    yield of("passages", "late", long["passages"], late(work, "long"))


def trained(work: Path, seed: int) -> Iterator[Ranks]:
    """Yield the ranks of the trained models of a seed."""
    rights = {name: {row["id"]: row["right"] for row in read(work / f"{name}-queries.jsonl")} for name in SETS}

    def of(which: str, system: str, model: str, documents: Vectors, vectors: str = "document") -> Ranks:
        queries = embed(work, f"{model}-{seed}", f"{which}-queries", vectors, "query")
        return Ranks(which, system, ranks(queries, documents, rights[which]))

    yield of("pages", "chunks best 256", "chunks", grouped(embed(work, f"chunks-{seed}", "chunks 256")))
    yield of("pages", "one trained", "one", embed(work, f"one-{seed}", "pages"))
    yield of("pages", "positions trained", "positions", embed(work, f"positions-{seed}", "pages"))
    yield of("pages", "late trained", "late", embed(work, f"late-{seed}", "pages", "passages:128"))
    yield of("pages", "tokens trained", "tokens", embed(work, f"tokens-{seed}", "pages", "tokens"), "tokens")
    yield of("pages", "tokens trained 64", "tokens", embed(work, f"tokens-{seed}", "pages", "parts:64"), "tokens")
    yield of("passages", "named trained", "named", embed(work, f"named-{seed}", "passages-title"))
    for name in ("late", "titled"):
        yield of("passages", f"{name} trained", name, late(work, f"{name}-{seed}"))


def train(work: Path, seed: int, minutes: Minutes) -> None:
    """Train the models of a seed."""
    for name, (model, data, more) in TRAINED.items():
        length = minutes.pages if data == "pages" else minutes.passages
        fine_tune(work, f"{name}-{seed}", "embed", model, f"{data}-train", length, seed, f"{more} --max-eval-samples 60")


def score(work: Path, seeds: Sequence[int]) -> list[Found]:
    """The ranks of all systems, stored system by system."""
    found: list[Found] = []
    queries = {(name, row["id"]): row["right"].partition("#")[0] for name in SETS for row in read(work / f"{name}-queries.jsonl")}
    for seed in (None, *seeds):
        file = work / f"ranks-{'untrained' if seed is None else seed}.json"
        for which, system, reciprocals in stored(file, Ranks, partial(untrained, work) if seed is None else partial(trained, work, seed)):
            found += [Found(which, system, seed, queries[which, query], query, value) for query, value in reciprocals.items()]
    return found


def short_texts(work: Path, seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    """What a training does to texts that the original reads: cosine with its vectors, and Spearman's rank correlation of similarities."""
    from scipy.stats import spearmanr

    data = "chunks-short"
    if not (work / f"{data}.jsonl").exists():
        texts = sorted({row["anchor"] for row in read(work / "pages-train.jsonl")})
        write(work / f"{data}.jsonl", [{"id": str(number), "text": text} for number, text in enumerate(texts[:400])])
    before = np.concatenate(list(embed(work, "minilm", data).values()))
    upper = np.triu_indices(len(before), 1)
    table = {}
    for name in ("long", "one", "positions", "late"):
        values = []
        for model in [name] if name == "long" else [f"{name}-{seed}" for seed in seeds]:
            after = np.concatenate(list(embed(work, model, data).values()))
            correlation = spearmanr((before @ before.T)[upper], (after @ after.T)[upper]).statistic
            values.append((float((before * after).sum(1).mean()), float(correlation)))
        table[name] = dict(zip(("cosine", "spearman"), np.mean(values, 0).round(4).tolist(), strict=True))
    return table


class Round(NamedTuple):
    """Seconds that one system took for all documents."""

    system: str
    seconds: float


def speeds(work: Path) -> dict[str, float]:
    """Documents a second of ``SentenceTransformer.encode`` on every eighth page.

    Systems take turns in three rounds; the median counts.
    """
    from sentence_transformers import SentenceTransformer

    import hf_longattn

    pages = [row["text"] for row in read(work / "pages.jsonl")[::8]]

    def rounds() -> Iterator[Round]:
        encoders = {name: SentenceTransformer(str(work / model), device="cpu") for name, (model, _) in SPEEDS.items()}
        hf_longattn.optimize_for_inference(encoders["optimised"], "fp32")
        chunks = [text for page in pages for _, text in windows_of("", page, encoders["chunks"].tokenizer, 512, 0)]
        for _ in range(3):
            for name, encoder in encoders.items():
                started = time.perf_counter()
                encoder.encode(chunks if name == "chunks" else pages, batch_size=8, show_progress_bar=False)
                yield Round(name, time.perf_counter() - started)

    taken = stored(work / "rounds.json", Round, rounds)
    return {name: len(pages) / float(np.median([one.seconds for one in taken if one.system == name])) for name in SPEEDS}


def summary(found: Sequence[Found]) -> dict[str, Any]:
    """MRR and share of first places of every system by set, and differences to chunks query by query."""
    table: dict[str, Any] = defaultdict(dict)
    for which, base in (("pages", "mean 256"), ("passages", "alone")):
        its = [(one.system, (one.page, one.query), one.reciprocal) for one in found if one.which == which]
        means = means_over_seeds(its)
        firsts = means_over_seeds((system, query, float(value == 1)) for system, query, value in its)
        for system, of_system in means.items():
            table[which][system] = {
                "mrr": over_pages(of_system),
                "first": over_pages(firsts[system]),
                "more": over_pages({key: value - means[base][key] for key, value in of_system.items()}),
            }
    return dict(table)


def tables(record: Mapping[str, Any]) -> str:
    """Both sets, with how they were measured."""
    parts = []
    for which, labels, base in (("pages", ROWS, "the mean of chunks of 256"), ("passages", PASSAGE_ROWS, "passages alone")):
        count = record["test"][which]
        rows, measured = [], record["table"][which]
        for system, label in labels.items():
            if row := measured.get(system):
                values = ("{:.1f} [{:.1f}, {:.1f}]".format(*row[name]) for name in ("mrr", "first"))
                rows.append([label, *values, "{:+.1f}".format(row["more"][0])])
        header = [f"{SETS[which]}: {count} queries", "MRR, %", "right one first, %", f"MRR more than {base}"]
        parts.append(markdown_table(header, rows))
        if missing := [label for system, label in labels.items() if system not in measured]:
            parts.append(f"Not measured yet: {'; '.join(missing)}.")
    test, minutes = record["test"], Minutes(*record["minutes"])
    rows = [[label, f"{test['documents a second'][name]:.2f}"] for name, (_, label) in SPEEDS.items()]
    parts.append(markdown_table(["one vector of a page", "documents a second"], rows))
    labels = {"long": "untrained", "one": "trained for one vector", "positions": "new positions trained", "late": "trained on passages"}
    kept = ((label, test["short texts"][name]) for name, label in labels.items() if name in test["short texts"])
    parts.append("Sentences, against the original's vectors: " + "; ".join(
        f"{label} cosine {row['cosine']:.4f}, rank correlation of similarities {row['spearman']:.4f}" for label, row in kept
    ) + ".")  # fmt: skip
    return (
        "\n\n".join(parts)
        + f"\n\n{test['documents']} pages, {test['places']} passages; {test['late']:.0f} % of the sentences are from the "
        f"last third of their page. {minutes.passages:g} minutes of each training, {minutes.pages:g} on whole pages, "
        f"seed {', '.join(map(str, record['seeds']))}; 95 % intervals by bootstrap over pages.\n\n{footnote(record['machine'])}"
    )


def brief(record: Mapping[str, Any]) -> str:
    """MRR on both sets, for README.md."""
    table, test = record["table"], record["test"]

    def cell(which: str, system: str | None) -> str:
        return "–" if system is None else "{:.0f} [{:.0f}, {:.0f}]".format(*table[which][system]["mrr"])

    rows = [[label, cell("pages", of_pages), cell("passages", of_passages)] for label, (of_pages, of_passages) in BRIEF.items()]
    shortest, longest = LENGTHS
    return (
        f"{markdown_table(['MRR, %', *SETS.values()], rows)}\n\n*{test['pages']} and {test['passages']} queries over {test['documents']} "
        f"manual pages of {shortest:,} to {longest:,} tokens; 95 % intervals ([how it was measured](docs/results/embed.md)).*"
    )


def markdown(record: Mapping[str, Any]) -> str:
    """The page of the result."""
    return f"# Retrieval: all-MiniLM-L6-v2 on manual pages\n\n{tables(record)}"


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the study; return its exit code."""
    from transformers import AutoTokenizer

    options = read_options(arguments, __doc__, OUTPUT, Minutes, "on passages, on whole pages", quick="a tenth of the pages")
    work = options.work
    prepare(work)
    if not (work / "pages-train.jsonl").exists():
        build(work, AutoTokenizer.from_pretrained(work / "minilm"), options.quick)
    convert(work, "minilm", "long", length=LONG)
    convert(work, "minilm", "long-titled", "--option", f"global_tokens={','.join(map(str, range(TITLE)))}", length=LONG)
    for seed in options.seeds:
        train(work, seed, options.minutes)
    found = score(work, options.seeds)
    queries = {name: read(work / f"{name}-queries.jsonl") for name in SETS}
    about: dict[str, Any] = {name: len(rows) for name, rows in queries.items()}
    about |= {"documents": len(read(work / "pages.jsonl")), "places": len(read(work / "passages-alone.jsonl"))}
    about["late"] = 100 * float(np.mean([row["place"] > 2 / 3 for row in queries["pages"][1::2]]))
    about |= {"short texts": short_texts(work, options.seeds), "documents a second": speeds(work)}
    finish(options, about, summary(found), markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
