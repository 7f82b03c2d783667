"""A position table replaced by rotary positions: what all-MiniLM-L6-v2 keeps of its vectors, and how it reads whole pages.

    python -m scripts.dev.studies.rotary_encoder --work runs/retrieval            seed 0; resumes what was interrupted
    python -m scripts.dev.studies.rotary_encoder --work runs/quick --quick        a minute of training, few pages

The checkpoint is converted with ``--positions rotary`` and distilled from itself on pieces of at most 512 tokens of the training's manual
pages, by commands of users, which are printed. The queries and pages of the test are those of :mod:`real_retrieval`, whose folder can be
given as ``--work``.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_longattn.training.results import end_of_training
from scripts.dev.benchmarks.report import footnote, markdown_table, one_sentence_errors
from scripts.dev.studies.joint_reading import convert, finish, over_pages, prepare, read, read_options, run, stored, windows_of, write
from scripts.dev.studies.manual_pages import manuals, without_shared
from scripts.dev.studies.real_retrieval import LONG, Ranks, build, by_words, embed, grouped, ranks

OUTPUT = Path("scripts/dev/results/rotary_encoder")
TRAINED, SIZES = 512, (64, 128, 256, 512)
"""Longest input of the training, and the tokens of its pieces, page by page."""


def rules(trained: int, longest: int, head_dim: int) -> dict[str, str]:
    """Ways to read ``longest`` tokens after a training on ``trained`` -> the option ``relative``.

    Args:
        head_dim: features of a head, from which NTK's base follows.
    """
    factor, window = longest / trained, trained // 4
    group = next(group for group in itertools.count(2) if (longest - 1) // group + window - window // group < trained)
    return {
        "as trained": "rotary",
        "interpolated": f"rotary:factor={factor:g}",
        "NTK": f"rotary:base={round(10_000 * factor ** (head_dim / (head_dim - 2)))}",
        "Self-Extend": f"rotary_self_extend:window={window},group={group}",
    }


RULES = rules(TRAINED, LONG, head_dim=32)
"""How whole pages are read -> the option ``relative``."""
ROWS = {
    "truncated": "original, first 512 tokens",
    "mean 256": "original, mean of its chunks of 256",
    "best 256": "original, best of its chunks of 256",
    "bm25": "BM25",
    "tile": "converted with a tiled table, `longformer`, one vector",
    "rotary best 256": "**rotary**, best of its chunks of 256",
    "old vectors": "**rotary** queries, the original's vectors of chunks of 256, best",
    **{rule: f"**rotary**, one vector, {rule}" for rule in RULES},
}


class Minutes(NamedTuple):
    """Minutes of the distillation."""

    distillation: float = 30.0


def pieces(work: Path, tokenizer: Any) -> None:
    """Write the texts of the distillation: all pages of the training in pieces of one of :data:`SIZES`."""
    pages = without_shared(manuals("train", work / "packages"), manuals("test", work / "packages"))
    texts = [text for number, page in enumerate(pages) for _, text in windows_of("", page.text, tokenizer, SIZES[number % 4], 0)]
    write(work / "pieces.jsonl", [{"text": text} for text in texts])


def train(work: Path, minutes: Minutes) -> None:
    """Convert and distil, and make the copies that read long texts by each of :data:`RULES`."""
    if not (work / "rotary" / "model.safetensors").exists():
        options = ["--mechanism", "full", "--max-length", LONG, "--positions", "rotary", "--overwrite"]
        run("convert", work / "minilm", work / "rotary-start", *options)
        run("train", "distill", "--method", "hidden", "--model", work / "rotary-start", "--teacher", work / "minilm",
            "--text", work / "pieces.jsonl", "--max-length", TRAINED, "--tokens-per-batch", 2048, "--gradient-accumulation-steps", 1,
            "--learning-rate", "3e-4", "--max-minutes", minutes.distillation, "--max-eval-samples", 200, "--logging-steps", 50,
            "--output", work / "rotary", "--overwrite")  # fmt: skip
    copies(work, RULES)


def copies(work: Path, rules: Mapping[str, str]) -> None:
    """Copies of the model ``rotary`` that read long texts by each of ``rules``, named after them."""
    for rule, relative in rules.items():
        folder = work / f"rotary {rule}"
        if not folder.exists():
            shutil.copytree(work / "rotary", folder, ignore=shutil.ignore_patterns("checkpoint-*"))
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            config["long_attention"]["relative"] = relative
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def score(work: Path) -> Iterator[Ranks]:
    """Yield the ranks of every system."""
    rows = read(work / "pages-queries.jsonl")
    find = partial(ranks, rights={row["id"]: row["right"] for row in rows})
    queries = {model: embed(work, model, "pages-queries", task="query") for model in ("minilm", "long", "rotary as trained")}
    chunks = embed(work, "minilm", "chunks 256")
    found = {
        "truncated": find(queries["minilm"], embed(work, "minilm", "pages")),
        "mean 256": find(queries["minilm"], grouped(chunks, mean=True)),
        "best 256": find(queries["minilm"], grouped(chunks)),
        "bm25": by_words(read(work / "pages.jsonl"), rows),
        "tile": find(queries["long"], embed(work, "long", "pages")),
        "rotary best 256": find(queries["rotary as trained"], grouped(embed(work, "rotary as trained", "chunks 256"))),
        "old vectors": find(queries["rotary as trained"], grouped(chunks)),
        **{rule: find(queries["rotary as trained"], embed(work, f"rotary {rule}", "pages")) for rule in RULES},
    }
    for system, reciprocals in found.items():
        yield Ranks("pages", system, reciprocals)


def cosines(work: Path) -> dict[str, float]:
    """The mean cosine of a text's vector with the original's, of queries and of chunks."""
    found = {}
    for data in ("pages-queries", "chunks 256"):
        old, new = (
            embed(work, model, data, task="query" if "queries" in data else "document") for model in ("minilm", "rotary as trained")
        )
        found[data] = round(float(np.mean([(old[name] * new[name]).sum() for name in old])), 3)
    return found


def markdown(record: Mapping[str, Any]) -> str:
    """MRR of every system, and how it was measured."""
    test, log = record["test"], record["test"]["training"]
    rows = [
        [label, *("{:.1f} [{:.1f}, {:.1f}]".format(*record["table"][system][name]) for name in ("mrr", "first"))]
        for system, label in ROWS.items()
    ]
    table = markdown_table([f"the page of a sentence: {test['queries']} queries", "MRR, %", "right one first, %"], rows)
    return (
        f"# Rotary positions in place of a table: all-MiniLM-L6-v2\n\n{table}\n\n"
        f"{Minutes(*record['minutes']).distillation:g} minutes of distillation on texts of at most {TRAINED} tokens, {log['tokens']:,} "
        f"tokens: mean squared distance of the hidden states {log['before']:.3f} before, {log['after']:.3f} after; cosine with the "
        f"original's vectors {test['cosine']['pages-queries']:.3f} for queries, {test['cosine']['chunks 256']:.3f} for chunks of 256 "
        f"tokens. {test['documents']} pages; 95 % intervals by bootstrap over pages; one seed.\n\n{footnote(record['machine'])}"
    )


def training(work: Path) -> dict[str, Any]:
    """What the log of the distillation says."""
    log = json.loads((work / "rotary" / "training_log.json").read_text(encoding="utf-8"))
    speeds = [entry["tokens_per_second"] for entry in log["history"] if "tokens_per_second" in entry]
    return {**log["held_out_distance"], "tokens": round(int(np.mean(speeds) * end_of_training(log)["train_runtime"]), -3)}


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the study; return its exit code."""
    from transformers import AutoTokenizer

    options = read_options(arguments, __doc__, OUTPUT, Minutes, "of the distillation", quick="a tenth of the pages")
    work, options.seeds = options.work, [0]
    prepare(work)
    tokenizer = AutoTokenizer.from_pretrained(work / "minilm")
    if not (work / "pages-train.jsonl").exists():
        build(work, tokenizer, options.quick)
    if not (work / "pieces.jsonl").exists():
        pieces(work, tokenizer)
    convert(work, "minilm", "long", length=LONG)
    train(work, options.minutes)
    queries = {row["id"]: row["right"] for row in read(work / "pages-queries.jsonl")}
    table = {}
    for _, system, reciprocals in stored(work / "rotary-ranks.json", Ranks, partial(score, work)):
        values = {(queries[query], query): value for query, value in reciprocals.items()}
        table[system] = {"mrr": over_pages(values), "first": over_pages({key: float(value == 1) for key, value in values.items()})}
    about = {"queries": len(queries), "documents": len(read(work / "pages.jsonl")), "cosine": cosines(work), "training": training(work)}
    finish(options, about, table, markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
