"""Candidates of a search: mechanisms with options that any layer may run."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import LongAttentionError, OptionError
from ..inputs.kind import InputSizes
from ..inspect import Candidate
from ..inspect.candidates import USUAL_CAUSAL, unasked, unique_candidates
from ..inspect.candidates import read_candidates as candidates_from
from ..mechanisms.common.registry import list_mechanisms, prototype

USUAL = (
    "window:window=32", "window:window=64", "window:window=96", "window:window=128", "window:window=192", "window:window=256",
    "window:window=320", "window:window=384", "window:window=512", "window:window=768", "window:window=1024", "longformer:window=128",
    "longformer:window=256", "longformer:window=384", "longformer:window=512", "bigbird", "block_top_k:num_blocks=4",
    "block_top_k:num_blocks=8",
)  # fmt: skip
"""Tried by default, besides full attention."""
USUAL_ON_GRIDS = (
    "window2d:window=7", "window2d:window=8", "window2d:window=16", "window2d:window=32", "window2d:window=16,shift=alternate",
    "window:window=256,order=hilbert", "window:window=512,order=hilbert",
    "segmented:block_size=64,integration=pooled,order=tiles:8x8", "segmented:block_size=256,integration=pooled,order=tiles:16x16",
    "bigbird:block_size=64,order=tiles:8x8", "block_top_k:block_size=64,num_blocks=4,order=tiles:8x8",
    "block_top_k:block_size=64,num_blocks=8,order=tiles:8x8",
)  # fmt: skip
"""Tried by default for images, besides windows of the source's size, every other mechanism on a grid, and full attention."""
FULL = Candidate("full")


def usual_candidates(sizes: InputSizes, causal: bool = False) -> list[Candidate]:
    """The candidates by default for what the model reads, full attention among them. Decoders also try windows with sinks."""
    if not sizes.kind.drawn:
        return unique_candidates([*unasked((*USUAL, *USUAL_CAUSAL * causal)), FULL])
    side = min(sizes.old.grid.sizes)
    own_windows = (f"window2d:window={side}", f"segmented:block_size={side * side},integration=pooled,order=tiles:{side}x{side}")
    named = unasked((*own_windows, *USUAL_ON_GRIDS))
    mechanisms = {candidate.mechanism for candidate in named}
    others = [Candidate(name) for name in ("full", *list_mechanisms(grid=True)) if name not in mechanisms]
    return unique_candidates([*named, *others, FULL])


def read_candidates(texts: Iterable[str | Candidate]) -> list[Candidate]:
    """Candidates from texts such as ``window:window=512``, without repetitions.

    Raises:
        OptionError: there is none, or an option that does not exist.
        OptionError: a mechanism that does not exist.
    """
    candidates = candidates_from(texts)
    if not candidates:
        raise OptionError("There is no candidate; give for example --candidate window:window=256, or leave --candidate out.")
    return candidates


def unsuitable(candidate: Candidate, causal: bool, sizes: InputSizes) -> str:
    """Why a candidate cannot run in single layers of a model, as one sentence; empty if it can. ``sizes`` are those of its
    inputs.

    Raises:
        LongAttentionError: options that contradict one another.
    """
    built = prototype(candidate.mechanism, candidate.options)
    if built.causal not in ("both", causal):
        return f"{candidate} has no {'causal' if causal else 'bidirectional'} form, which the model's layers need."
    if built.capabilities.recursion is not None:
        return f"{candidate} reads a text segment by segment, which all layers do together."
    try:
        sizes.check(built)
    except LongAttentionError as error:
        return str(error)
    return ""
