"""What a kind of relative positions is: a small module that adds a term to the scores of one layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...engines.pattern import DistanceBias, ScoreMod
from ...errors import OptionError

Span = tuple[int, int]
"""The furthest distances query - key that are seen: back, and ahead."""


class RelativePositions(nn.Module, ABC):
    """Added to the scores ``q·k · scale`` of one layer, so that they depend on ``distance = query position - key position``.

    Padding moves query and key alike, so it changes nothing. Parameters begin at zero: a model gets them without changing its outputs.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    settings: ClassVar[Mapping[str, tuple[int, str]]] = MappingProxyType({})
    """Name of every setting, a whole number: its default and its meaning."""
    neutral: ClassVar[bool] = True
    """Whether the terms begin at zero, so that a converted checkpoint gives what it gave."""
    reads_keys: ClassVar[bool] = False
    """Whether the term depends on what a key holds, and not on its position alone."""

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, settings: Mapping[str, int]) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.hidden_size, self.values = num_heads, head_dim, hidden_size, dict(settings)

    @classmethod
    def check(cls, settings: Mapping[str, int]) -> None:
        """Raise :class:`OptionError` when a setting is impossible."""
        for name, value in settings.items():
            if value < 1:
                raise OptionError(
                    f"Setting {name!r} of relative positions {cls.name!r} is {value}, but must be at least 1; "
                    f"for example relative='{cls.name}:{name}={cls.settings[name][0]}'."
                )

    @abstractmethod
    def term(self, q: Tensor, k: Tensor, distance: Tensor, causal: bool, scale: float) -> Tensor:
        """The definition: what is added to the scaled scores, ``(B or 1, H, Nq, Nk)``.

        Args:
            q, k: ``(B, H, Nq, D)``, ``(B, H_kv, Nk, D)``.
            distance: ``(B or 1, Nq, Nk)`` whole numbers, query position - key position.
            causal: whether only distances from 0 on are seen.
            scale: the factor on q·k.
        """

    @abstractmethod
    def score_mod(self, q: Tensor, k: Tensor, causal: bool, scale: float, span: Span) -> ScoreMod:
        """The same for engines: a function of (score, b, h, q_idx, kv_idx), right for distances within ``span``; the queries are the last
        Nq positions of the keys' sequence."""

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Begin without effect. ``generator`` is what a kind that draws its parameters would draw them from."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def extra_repr(self) -> str:
        return ", ".join([self.name, *(f"{name}={value}" for name, value in self.values.items())])


class DistanceOnly(RelativePositions):
    """A term that depends on head and distance only."""

    @abstractmethod
    def bias(self, distance: Tensor, causal: bool) -> Tensor:
        """``(H, *distance.shape)`` for whole numbers ``distance``."""

    def term(self, q: Tensor, k: Tensor, distance: Tensor, causal: bool, scale: float) -> Tensor:
        return self.bias(distance, causal).transpose(0, 1)

    def score_mod(self, q: Tensor, k: Tensor, causal: bool, scale: float, span: Span) -> DistanceBias:
        back, ahead = span
        return DistanceBias(self.bias(torch.arange(-ahead, back + 1, device=q.device), causal), ahead)


class QueryDependent(RelativePositions):
    """A term that depends on the query's values as well: for each query one number per distance, looked up by the engines.

    Costs ``(B, H, Nq, W)`` memory, where W is the number of distances that are told apart.
    """

    @abstractmethod
    def by_distance(self, q: Tensor, causal: bool, span: Span) -> tuple[Tensor, int]:
        """``(B, H, Nq, W)``, unscaled, for the distances from -ahead on, and ahead; distances beyond take the value at the end."""

    def by_key(self, k: Tensor) -> Tensor | None:
        """A further term ``(B, H, Nk)``, unscaled, that depends on the key alone."""
        return None

    def term(self, q: Tensor, k: Tensor, distance: Tensor, causal: bool, scale: float) -> Tensor:
        table, ahead = self.by_distance(q, causal, (int(distance.max().clamp(min=0)), int((-distance).max().clamp(min=0))))
        index = (distance + ahead).clamp(0, table.shape[-1] - 1)[:, None].expand(*table.shape[:-1], -1)
        found, of_keys = table.gather(-1, index), self.by_key(k)
        return (found if of_keys is None else found + of_keys[:, :, None]) * scale

    def score_mod(self, q: Tensor, k: Tensor, causal: bool, scale: float, span: Span) -> ScoreMod:
        table, ahead = self.by_distance(q, causal, span)
        of_keys, offset = self.by_key(k), k.shape[2] - q.shape[2]

        def mod(score: Tensor, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Tensor:
            row = (q_idx - offset).clamp(0, table.shape[2] - 1)
            found = table[b, h, row, (q_idx - kv_idx + ahead).clamp(0, table.shape[3] - 1)]
            return score + scale * (found if of_keys is None else found + of_keys[b, h, kv_idx.clamp(0, of_keys.shape[2] - 1)])

        return mod


def exact(q: Tensor) -> torch.dtype:
    """The dtype in which terms are computed: that of q, but float32 at least."""
    return torch.promote_types(q.dtype, torch.float32)
