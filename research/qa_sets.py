"""The fixed evaluation sets of the tables: a few questions of every length."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_longattn.evaluation.metrics.long_qa import BUCKETS
from hf_longattn.training.qa_data import load_qa
from research.docstring_qa import build_docstring_qa
from research.qa_run import bucket_of
from research.variable_tracking import build_variable_tracking


def evaluation_set(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str = "test",
    per_length: int = 100,
    lengths: Sequence[int] = (480, 1024, 2048, 4096, 8192),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return evaluation records, the same for the same arguments.

    Args:
        name: "docstring", "lookup", or SQuAD-shaped data of anyone (see :func:`load_qa`).
        tokenizer: measures the documents.
        split: "test" or "validation"; or a split of the given data.
        per_length: questions per length bucket (docstring, files) or length (lookup; half one hop, half two).
        lengths: of lookup documents, in tokens.
        seed: of the choice.
    """
    if name == "lookup":
        documents = max(1, per_length // 4)
        return build_variable_tracking(
            split, tokenizer, lengths=lengths, documents=documents, questions_per_document=4, seed=seed
        ).to_list()
    if name == "docstring":
        longest = min(8000, max(lengths) - 100)
        data = build_docstring_qa(split, tokenizer=tokenizer, max_tokens=longest, seed=seed).to_list()
    else:
        data = load_qa(name, split).to_list()
        for record in data:
            record["tokens"] = len(tokenizer(record["context"], add_special_tokens=False, verbose=False)["input_ids"])
    return choose_by_length(data, per_length, seed)


def choose_by_length(data: Sequence[dict[str, Any]], per_length: int, seed: int) -> list[dict[str, Any]]:
    """Choose at most ``per_length`` records of every length bucket, shortest bucket first."""
    by_bucket: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in data:
        by_bucket[bucket_of(record["tokens"])].append(record)
    order = [bucket_of(high) for high in (*BUCKETS, BUCKETS[-1] + 1)]
    rng = random.Random(seed)
    chosen: list[dict[str, Any]] = []
    for bucket in order:
        records = by_bucket.get(bucket, [])
        chosen += rng.sample(records, min(per_length, len(records)))
    return chosen


def source_name(name: str) -> str:
    """Return a short name of the data for tables."""
    return name if name in ("docstring", "lookup") else Path(name).stem
