"""Is a second run of a benchmark slower than a first one, beyond noise?

Both records hold the times of every round. Within a round, ours is divided by a reference of the same round (SDPA, say), which takes out
most of what the machine did meanwhile. Then every round of the second record is compared with every round of the first.
"""

from __future__ import annotations

import json
import statistics
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from hf_longattn.errors import OptionError

from .report import markdown_table

TOLERANCE = 0.03
"""A median that grew by less than this is no regression."""
CERTAIN = 0.9
"""Share of the pairs of rounds that must have become slower."""
OURS = "longattn"


class Change(NamedTuple):
    """What became of one of our implementations at a length, by the median time per that of ``reference`` and the share of slower pairs."""

    implementation: str
    length: int
    reference: str | None
    factor: float
    slower: float

    @property
    def regressed(self) -> bool:
        """Slower than before by more than :data:`TOLERANCE`, in :data:`CERTAIN` of all pairs of rounds."""
        return self.factor > 1 + TOLERANCE and self.slower >= CERTAIN


def read_record(path: Path) -> dict[str, Any]:
    """A record of attention, a model or training.

    Raises:
        OptionError: it cannot be read, or holds no rounds.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8") if path.is_file() else "")  # a pipe would be waited for
    except (OSError, ValueError) as error:
        raise OptionError(f"{str(path)!r} is not a stored result that can be read; give a .json file of scripts/dev/results.") from error
    if not isinstance(record, dict) or not record.get("timings") or "rounds_ms" not in record["timings"][0]:
        raise OptionError(f"{str(path)!r} holds no rounds of a benchmark; give a result of attention, model or train.")
    return record


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """The changes of every implementation of ours at every length that both records have.

    Raises:
        OptionError: the records are of different cases or clocks, or share no length.
    """
    for name in ("kind", "case"):
        if before[name] != after[name]:
            raise OptionError(f"The records are of different cases, {name} {before[name]} and {after[name]}; compare runs of one case.")
    if before.get("clock", "time") != after.get("clock", "time"):
        raise OptionError("One record has times of the wall, the other of the processor; run both with or without --processor-time.")
    old, new = ({(one["implementation"], one["length"]): one["rounds_ms"] for one in record["timings"]} for record in (before, after))
    shared = old.keys() & new.keys()
    ours = sorted(key for key in shared if key[0].startswith(OURS))
    if not ours:
        raise OptionError("The two records have no length in common; run both with the same --lengths.")
    changes = []
    for name, length in ours:
        others = {other for other, tokens in shared if tokens == length and not other.startswith(OURS)}
        reference = "sdpa" if "sdpa" in others else min(others, default=None)
        first, second = (
            [mine / (1 if reference is None else rounds[reference, length][at]) for at, mine in enumerate(rounds[name, length])]
            for rounds in (old, new)
        )
        slower = statistics.fmean(later > earlier for later, earlier in product(second, first))
        changes.append(Change(name, length, reference, statistics.median(second) / statistics.median(first), slower))
    return changes


def table(changes: list[Change]) -> str:
    """The changes as a Markdown table."""
    rows = [
        [
            change.implementation, f"{change.length:,}", change.reference or "–", f"{change.factor:.3f}", f"{change.slower:.0%}",
            "slower" if change.regressed else "",
        ]
        for change in changes
    ]  # fmt: skip
    return markdown_table(["implementation", "tokens", "per time of", "time after / before", "slower pairs", ""], rows)
