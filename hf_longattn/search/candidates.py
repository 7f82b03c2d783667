"""Candidates of a search: mechanisms with options that any layer may run."""

from __future__ import annotations

from collections.abc import Iterable

from ..diagnostics import Candidate
from ..diagnostics.candidates import read_candidates as candidates_from
from ..errors import OptionError
from ..mechanisms.common.registry import prototype

USUAL = (
    "window:window=32", "window:window=64", "window:window=96", "window:window=128", "window:window=192", "window:window=256",
    "window:window=320", "window:window=384", "window:window=512", "window:window=768", "window:window=1024", "longformer:window=128",
    "longformer:window=256", "longformer:window=384", "longformer:window=512", "bigbird", "lsg", "block_top_k:num_blocks=4",
    "block_top_k:num_blocks=8",
)  # fmt: skip
"""Tried by default, besides full attention."""
FULL = Candidate("full")


def read_candidates(texts: Iterable[str | Candidate] | None) -> list[Candidate]:
    """Candidates from texts such as ``window:window=512``, without repetitions; :data:`USUAL` and full attention for ``None``.

    Raises:
        OptionError: there is none, or an option that does not exist.
        UnknownMechanismError: a mechanism that does not exist.
    """
    if texts is None:
        usual = [Candidate.read(text) for text in USUAL]
        return [*(Candidate(candidate.mechanism, candidate.options) for candidate in usual), FULL]
    candidates = candidates_from(texts)
    if not candidates:
        raise OptionError("There is no candidate; give for example --candidate window:window=256, or leave --candidate out.")
    return candidates


def unsuitable(candidate: Candidate, causal: bool, length: int) -> str:
    """Why a candidate cannot run in single layers of such a model, one sentence; empty if it can.

    Raises:
        LongAttentionError: options that contradict one another.
    """
    built = prototype(candidate.mechanism, candidate.options)
    if built.causal not in ("both", causal):
        return f"{candidate} has no {'causal' if causal else 'bidirectional'} form, which the model's layers need."
    if built.recursion is not None:
        return f"{candidate} reads a text segment by segment, which all layers do together."
    return ""
