"""Facts about a mechanism that its layer, its model and the tools read, and base classes for additional features.

The defaults suit most mechanisms.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from ...engines.call import UNBOUNDED, AttentionCall, State
from ...engines.token_grid import Grid
from ...positions.trained_distances import Locality

if TYPE_CHECKING:
    from ...positions.relative import Span


@dataclasses.dataclass(frozen=True)
class About:
    """Facts about a mechanism, for lists and pages of mechanisms.

    summary: one line on which keys a query attends to.
    paper: author, year, title, section or equation.
    when: good use cases, as a noun or a clause without a full stop.
    engine: engine that ``forward`` runs on.
    cost: how time grows with the length N, such as ``"N·w"``.
    sample: options that suit inputs of a few hundred tokens, for tests and plots.
    covering: a function of ``(length, causal)``, or of the grid for a mechanism on a grid. It returns options with
        which the mechanism equals full softmax attention up to ``length`` tokens. ``None`` if no such options are
        known.
    """

    summary: str = ""
    paper: str = ""
    when: str = ""
    engine: str = "its own"
    cost: str = "not stated"
    sample: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    covering: Callable[..., dict[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class Recursion:
    """The segments in which a model processes a text, passing memory tokens on between them.

    length: tokens of a segment, memory included.
    memory: number of memory tokens that each segment passes to the next.
    depth: how many segments back gradients flow; ``None`` means all.
    """

    length: int
    memory: int
    depth: int | None = None

    def text(self, causal: bool) -> int:
        """Number of text tokens in a segment. A causal segment contains the memory tokens twice: at its start to be
        read, at its end to be written."""
        return self.length - self.memory * (1 + causal)


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """Features that a mechanism supports, and its requirements on layer and model.

    A class lists only changes from its base class: ``capabilities = Mechanism.capabilities.but(trains=True)``. If a
    capability depends on options, ``__init__`` sets ``self.capabilities`` in the same way.

    trains: whether the mechanism adds parameters, so that a converted checkpoint needs training.
    takes_globals: whether the mechanism uses ``global_mask``.
    takes_score_mod: whether a term can be added to its scores (``score_mod``, a position bias, a dense mask).
    takes_sinks: whether a call may have sinks (``sink_scores``). Requires that every output is one softmax over keys.
    takes_fewer_queries: whether a call may have fewer queries than keys. If not, such a call raises InputError.
    takes_hidden_states: whether it needs its layer's input, ``call.hidden_states (B, Nk, hidden_size)``.
    ignores_padding: whether padding leaves outputs unchanged. False if an option reproduces an implementation that
        counts padding.
    position_dependent: whether the output depends on where a sequence starts in its batch row, as with blocks or
        counted positions. If not, a key mask is enough for left padding.
    needs_grid: whether the mechanism is defined by the coordinates of tokens on a grid, ``call.grid``.
    images: ``"any"`` if it reads images. Otherwise why it does not: ``"neighbours"``, because distances in the
        sequence matter; or ``"segments"``, because it reads segments one after the other, each with a memory of
        earlier segments.
    exports: whether ``torch.export`` makes one graph of it for all lengths.
    recursion: the segments in which the whole model runs; ``None`` if it runs on whole texts.
    """

    trains: bool = False
    takes_globals: bool = False
    takes_score_mod: bool = True
    takes_sinks: bool = False
    takes_fewer_queries: bool = True
    takes_hidden_states: bool = False
    ignores_padding: bool = True
    position_dependent: bool = True
    needs_grid: bool = False
    images: Literal["any", "neighbours", "segments"] = "neighbours"
    exports: bool = False
    recursion: Recursion | None = None

    def but(self, **changes: Any) -> Capabilities:
        return dataclasses.replace(self, **changes)


class AddsLoss:
    """A mechanism with an auxiliary loss."""

    @abstractmethod
    def auxiliary_loss(self) -> Tensor:
        """A term that the model adds to its training loss, already multiplied by its weight."""


class Stateful:
    """A mechanism that decodes from a state of constant size in place of the keys."""

    @abstractmethod
    def advance(
        self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall
    ) -> tuple[Tensor, State]:
        """Causal attention of new tokens, given the state after the past ones.

        Args:
            q, k, v: of the new tokens only, ``(B, H, n, D)`` and ``(B, H_kv, n, D)``.
            state: the state that the previous call returned, or ``None`` at the beginning.
            call: ``key_mask (B, n)`` covers the new tokens only.
        Returns:
            The output ``(B, H, n, D)`` and the new state: tensors of constant size, with the batch axis first. Zeros
            in a batch row are an empty state, so that single rows can be reset.
        """


class NeedsWholeBatch:
    """A mechanism that draws or learns something once per call."""

    @abstractmethod
    def needs_one_call(self) -> bool:
        """Whether all rows and packed documents of a batch must be in one call, in the current mode (training or
        eval)."""


class CopiesProjections:
    """A mechanism with parameters that start as copies of its layer's projections."""

    copies: Mapping[str, str]
    """Names of parameters, relative to the mechanism, mapped to the projection that they start from, such as
    "query.weight" or "value.bias"."""


class OnGrid(ABC):
    """A mechanism defined by the coordinates of tokens on a grid."""

    @abstractmethod
    def on_grid(self, grid: Grid, check: bool = False, layer: int | None = None) -> Any:
        """The mechanism bound to ``grid``.

        check: whether to raise :class:`InputError` if the options make no sense on ``grid``.
        layer: layer number. Some mechanisms shift their windows by it.
        """

    @abstractmethod
    def grid_blocks(self, grid: Grid) -> tuple[int, ...] | None:
        """Block size in cells along each axis, if each cell of ``grid`` sees exactly its own block; else ``None``.

        Blocks start at the first cell. The last block of an axis may be smaller.
        """


def on_grid(mechanism: Any, grid: Grid | None, check: bool = False, layer: int | None = None) -> Any:
    """:meth:`OnGrid.on_grid`, or the mechanism itself if it does not depend on a grid or ``grid`` is ``None``."""
    if grid is None or not isinstance(mechanism, OnGrid):
        return mechanism
    return mechanism.on_grid(grid, check, layer)


def grid_blocks(mechanism: Any, grid: Grid) -> tuple[int, ...] | None:
    """:meth:`OnGrid.grid_blocks`, or ``None`` for a mechanism that does not depend on a grid."""
    return mechanism.grid_blocks(grid) if isinstance(mechanism, OnGrid) else None


def needs_whole_batch(mechanism: Any) -> bool:
    """Whether all rows and packed documents of a batch must be in one call, in the current mode (training or eval)."""
    return isinstance(mechanism, NeedsWholeBatch) and mechanism.needs_one_call()


def projection_copies(mechanism: Any) -> Mapping[str, str]:
    """:attr:`CopiesProjections.copies`, or an empty mapping."""
    return mechanism.copies if isinstance(mechanism, CopiesProjections) else {}


def aligns_sequences(mechanism: Any, call: AttentionCall) -> bool:
    """Whether every sequence is moved to index 0 before the mechanism runs.

    False without a batch, True for packed documents. Otherwise True if padding must not change outputs and the
    mechanism reads no grid: a token's index determines its place on the grid.
    """
    if call.batch is None:
        return False
    if call.batch.documents is not None:
        return True
    on_a_grid = call.grid is not None and mechanism.capabilities.needs_grid
    return mechanism.capabilities.ignores_padding and not on_a_grid


def _distances(mechanism: Any, causal: bool) -> Locality | None:
    """The mechanism's locality, or ``None`` if queries also see keys outside that range, such as global tokens."""
    local = mechanism.locality(causal)
    if local is None or local.beside:
        return None
    return local


def keys_per_query(mechanism: Any) -> int | None:
    """Maximum number of keys that a causal query sees, its own included. Determines the size of the decode cache.

    ``None`` if the number is unbounded or the keys are not one fixed range. Also ``None`` for mechanisms with blocks,
    whose cache is smaller.
    """
    local = _distances(mechanism, True)
    if local is None or local.period > 1:
        return None
    return local.back + 1


def largest_distances(mechanism: Any, q_len: int, kv_len: int, causal: bool) -> Span:
    """The largest visible distances, back (query - key) and ahead (key - query). They determine the size of relative
    position tables."""
    local = _distances(mechanism, causal)
    if local is None:
        return kv_len - 1, (0 if causal else q_len - 1)
    return min(local.back, kv_len - 1), min(local.ahead, q_len - 1)


def band_of(mechanism: Any, causal: bool) -> tuple[int, int] | None:
    """``(back, ahead)`` in tokens if the mechanism is exactly a sliding window, or full attention at every length.

    ``None`` for other mechanisms, and for every mechanism with relative positions.
    """
    if mechanism.relative is not None:
        return None
    local = mechanism.locality(causal)
    if mechanism.covers(UNBOUNDED, causal):
        return UNBOUNDED, (0 if causal else UNBOUNDED)
    if local is None or not local.is_window:
        return None
    return local.back, local.ahead
