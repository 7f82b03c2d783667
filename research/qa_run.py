"""Score several readers on the same questions in one interleaved run, and keep every answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from hf_longattn.evaluation.metrics.long_qa import BUCKETS, score_answer


class Reader(Protocol):
    """Anything with a ``name`` that answers a SQuAD-shaped record; see :class:`QAReader` and the baselines."""

    name: str
    seed: int | None

    def answer(self, record: Mapping[str, Any]) -> str:
        """Return the answer's text."""
        ...


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer of one system.

    Attributes:
        system: the reader's name.
        seed: of its training; None where there is none.
        group: which table it belongs to, "docstring" or "lookup, 2 hops" for instance.
        id: the question's.
        length: tokens of the document.
        text: the answer given.
        exact, f1: 0 … 1.
        seconds: wall time from text to answer.
    """

    system: str
    seed: int | None
    group: str
    id: str
    length: int
    text: str
    exact: float
    f1: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)


def run_readers(
    readers: Sequence[Reader],
    records: Iterable[Mapping[str, Any]],
    group: str,
    on_record: Callable[[int], None] | None = None,
) -> list[ScoredAnswer]:
    """Ask every reader every question, one document at a time and reader after reader.

    Interleaving gives all readers the same conditions: what else the machine does meanwhile slows all of them alike.

    Args:
        readers: the systems to compare.
        records: SQuAD-shaped records with ``tokens`` (or ``length``), and ``hops`` where the group is split by it.
        group: name of the data; " 1 hop" and " 2 hops" are appended where records say so.
        on_record: called with the number of records done, for progress.
    """
    answers = []
    for done, record in enumerate(records, start=1):
        for reader in readers:
            started = time.perf_counter()
            text = reader.answer(record)
            seconds = time.perf_counter() - started
            exact, f1 = score_answer(text, record["answers"]["text"])
            length = int(record.get("length") or record.get("tokens") or 0)
            answers.append(ScoredAnswer(reader.name, reader.seed, _group(group, record), record["id"], length, text, exact, f1, seconds))
        if on_record is not None:
            on_record(done)
    return answers


def bucket_of(length: int, buckets: Sequence[int] = BUCKETS) -> str:
    """Return the name of the length bucket, "<=1024" for instance."""
    return next((f"<={high}" for high in buckets if length <= high), f">{buckets[-1]}")


def _group(group: str, record: Mapping[str, Any]) -> str:
    hops = record.get("hops")
    return group if hops is None else f"{group}, {hops} hop{'' if hops == 1 else 's'}"
