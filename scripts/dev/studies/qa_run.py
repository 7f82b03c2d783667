"""The fixed evaluation sets, and readers scored on the same questions in one interleaved run that keeps every answer."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from hf_longattn.evaluation.metrics.long_qa import score_answer
from hf_longattn.evaluation.summaries import BUCKETS
from scripts.dev.studies.code_qa import build_code_qa
from scripts.dev.studies.variable_tracking import build_variable_tracking


class Reader(Protocol):
    """Anything with a ``name`` that answers a SQuAD-shaped record; see :class:`QAReader` and the baselines."""

    name: str

    def answer(self, record: Mapping[str, Any]) -> str:
        """Return the answer's text."""
        ...


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer of one system.

    Attributes:
        system: the reader's name.
        group: which table it belongs to, "argument" or "lookup, 2 hops" for instance.
        id: the question's.
        length: tokens of the document.
        text: the answer given.
        exact, f1: 0 … 1.
        seconds: wall time from text to answer.
    """

    system: str
    group: str
    id: str
    length: int
    text: str
    exact: float
    f1: float
    seconds: float


def run_readers(
    readers: Sequence[Reader],
    records: Iterable[Mapping[str, Any]],
    group: str,
    on_record: Callable[[], None] | None = None,
) -> list[ScoredAnswer]:
    """Ask every reader every question, one document at a time and reader after reader.

    Interleaving gives all readers the same conditions: what else the machine does meanwhile slows all of them alike.

    Args:
        readers: the systems to compare.
        records: SQuAD-shaped records with ``tokens`` (or ``length``), and ``hops`` where the group is split by it.
        group: name of the data; " 1 hop" and " 2 hops" are appended where records say so.
        on_record: called after every record, for progress.
    """
    answers = []
    for record in records:
        hops = record.get("hops")
        name = group if hops is None else f"{group}, {hops} hop{'' if hops == 1 else 's'}"
        for reader in readers:
            started = time.perf_counter()
            text = reader.answer(record)
            seconds = time.perf_counter() - started
            exact, f1 = score_answer(text, record["answers"]["text"])
            length = int(record.get("length") or record.get("tokens") or 0)
            answers.append(ScoredAnswer(reader.name, name, record["id"], length, text, exact, f1, seconds))
        if on_record is not None:
            on_record()
    return answers


def bucket_of(length: int) -> str:
    """Return the name of the length bucket, "<=1024" for instance."""
    return next((f"<={high}" for high in BUCKETS if length <= high), f">{BUCKETS[-1]}")


def evaluation_set(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str = "test",
    per_length: int = 100,
    lengths: Sequence[int] = (480, 1024, 2048, 4096, 8192),
) -> list[dict[str, Any]]:
    """Return evaluation records, the same for the same arguments.

    Args:
        name: a task of :mod:`code_qa`, or "lookup".
        tokenizer: measures the documents.
        split: "test" or "validation".
        per_length: most questions per length bucket (code, files) or length (lookup; half one hop, half two).
        lengths: of lookup documents, in tokens.
    """
    if name == "lookup":
        documents = max(1, per_length // 4)
        return build_variable_tracking(split, tokenizer, lengths=lengths, documents=documents)
    data = build_code_qa(name, split, tokenizer, max_tokens=min(8000, max(lengths) - 100))
    by_bucket: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in data:
        by_bucket[bucket_of(record["tokens"])].append(record)
    rng, chosen = random.Random(0), list[dict[str, Any]]()
    for high in (*BUCKETS, BUCKETS[-1] + 1):
        records = by_bucket.get(bucket_of(high), [])
        chosen += rng.sample(records, min(per_length, len(records)))
    return chosen
