"""Relative positions as score terms, chosen as ``relative="alibi"`` or ``relative="shaw:clip=32"``.

A mechanism holds one module of this file as ``mechanism.relative``. A pre-hook of ``forward`` puts its
:meth:`~RelativePositions.score_term` into the call. :meth:`RelativePositions.term` is the definition. Decode caches use it too, because
their keys are at any distance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..engines.common.dense import at_least_fp32, repeat_heads
from ..engines.common.score_terms import DistanceBias, DistanceTerm, ScoreTerm
from ..errors import OptionError, nearest
from .tables import sinusoids_at

Span = tuple[int, int]
"""Largest visible distances (back, ahead) of a key before and after its query, in tokens."""


class RelativePositions(nn.Module, ABC):
    """A term added to one layer's scores ``q·k · scale``. It depends on ``distance = query position - key position``.

    Padding shifts query and key alike, so it changes nothing. Parameters are initialised to zero, which leaves outputs unchanged.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    settings: ClassVar[Mapping[str, tuple[int, str]]] = MappingProxyType({})
    """Default and meaning of each setting, by name. All settings are whole numbers."""
    neutral: ClassVar[bool] = True
    """Whether the term is initialised to zero, so that a converted checkpoint's outputs are unchanged."""
    reads_keys: ClassVar[bool] = False
    """Whether the term depends on the key's content as well as its position."""

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
        """The definition: the term added to the scaled scores, ``(B or 1, H, Nq, Nk)``.

        Args:
            q, k: ``(B, H, Nq, D)``, ``(B, H_kv, Nk, D)``.
            distance: ``(B or 1, Nq, Nk)`` whole numbers, query position - key position.
            causal: whether only distances >= 0 are visible.
            scale: the factor on q·k.
        """

    @abstractmethod
    def score_term(self, q: Tensor, k: Tensor, causal: bool, scale: float, span: Span) -> ScoreTerm:
        """The term for engines. It holds for distances within ``span``. The queries are the last Nq positions of the keys' sequence."""

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Set all parameters to zero. ``generator`` is for kinds with random parameters."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def extra_repr(self) -> str:
        return ", ".join([self.name, *(f"{name}={value}" for name, value in self.values.items())])


class DistanceOnly(RelativePositions):
    """A term that depends on head and distance only."""

    @abstractmethod
    def bias(self, distance: Tensor, causal: bool) -> Tensor:
        """The term at every ``distance``, ``(H, *distance.shape)``."""

    def term(self, q: Tensor, k: Tensor, distance: Tensor, causal: bool, scale: float) -> Tensor:
        return self.bias(distance, causal).transpose(0, 1)

    def score_term(self, q: Tensor, k: Tensor, causal: bool, scale: float, span: Span) -> DistanceBias:
        back, ahead = span
        return DistanceBias(self.bias(torch.arange(-ahead, back + 1, device=q.device), causal), ahead)


class QueryDependent(RelativePositions):
    """A term that also depends on the query: its product with a row for the distance.

    The band engine adds it in linear memory. Other engines take ``(B, H, Nq, W)`` memory for W distinct distances.
    """

    @abstractmethod
    def rows(self, causal: bool, span: Span, like: Tensor) -> tuple[Tensor, int]:
        """``rows (H or 1, W, D)`` and ``ahead``: row r is for the distance r - ahead. ``like`` sets device and dtype.
        Larger distances use the last row, smaller ones the first."""

    def position_query(self, q: Tensor) -> Tensor:
        """The queries ``(B, H, Nq, D)`` to multiply with the rows, in at least fp32."""
        return at_least_fp32(q)

    def content_query(self, like: Tensor) -> Tensor | None:
        """The vectors ``(H, D)`` that are multiplied with every key; ``None`` without such a term."""
        return None

    def term(self, q: Tensor, k: Tensor, distance: Tensor, causal: bool, scale: float) -> Tensor:
        queries, content = self.position_query(q), self.content_query(at_least_fp32(k))
        rows, ahead = self.rows(causal, (int(distance.max().clamp(min=0)), int((-distance).max().clamp(min=0))), queries)
        table = queries @ rows.transpose(-1, -2)
        index = (distance + ahead).clamp(0, table.shape[-1] - 1)[:, None].expand(*table.shape[:-1], -1)
        terms = table.gather(-1, index)
        if content is not None:
            terms = terms + (repeat_heads(at_least_fp32(k), len(content)) @ content[..., None]).transpose(-1, -2)
        return terms * scale

    def score_term(self, q: Tensor, k: Tensor, causal: bool, scale: float, span: Span) -> DistanceTerm:
        queries = self.position_query(q) * scale
        rows, ahead = self.rows(causal, span, queries)
        content = self.content_query(at_least_fp32(k))
        return DistanceTerm(queries, rows, ahead, k, None if content is None else content * scale)


def slopes(num_heads: int) -> Tensor:
    """ALiBi's penalty per token of distance for each head, ``(H,)`` float32."""
    power = 1 << (num_heads.bit_length() - 1)
    first = 2.0 ** (-8.0 / power * torch.arange(1, power + 1, dtype=torch.float64))
    between = 2.0 ** (-4.0 / power * torch.arange(1, 2 * power, 2, dtype=torch.float64))
    return torch.cat([first, between[: num_heads - power]]).float()


class Alibi(DistanceOnly):
    """ALiBi (Press et al. 2022, Train Short, Test Long, section 3): a penalty linear in the distance, with a slope for each head.

        term(h, i, j) = -m_h · |i - j|

    If H is a power of two, the slopes are the geometric sequence m_h = 2^(-8 (h+1) / H). Otherwise, with P the largest power
    of two below H, they are the slopes for P heads, then every second slope for 2P heads, as in the paper's code. Nothing is learned.
    """

    name = "alibi"
    summary = "a penalty linear in the distance, with a fixed slope for each head"
    paper = "Press et al. 2022, Train Short, Test Long, §3"
    neutral = False

    def bias(self, distance: Tensor, causal: bool) -> Tensor:
        of_heads = slopes(self.num_heads).to(distance.device)
        return -of_heads.view(-1, *[1] * distance.dim()) * distance.abs()


def buckets(distance: Tensor, causal: bool, num_buckets: int, max_distance: int) -> Tensor:
    """The bucket of every ``distance`` = query - key, of the same shape, int64."""
    first = torch.zeros_like(distance)
    if causal:
        distance = distance.clamp(min=0)
    else:
        num_buckets //= 2
        first = (distance < 0).long() * num_buckets
        distance = distance.abs()
    single = num_buckets // 2
    # in float32: its rounding determines where T5's buckets end
    share = torch.log(distance.clamp(min=1).float() / single) / math.log(max_distance / single)
    coarse = (single + (share * (num_buckets - single)).long()).clamp(max=num_buckets - 1)
    return first + torch.where(distance < single, distance, coarse)


class T5Buckets(DistanceOnly):
    """T5's relative positions (Raffel et al. 2020, section 2.1): a learned number per head and bucket of distances.

        term(h, i, j) = table[bucket(i - j), h]

    Half of the buckets hold one distance each; the others grow logarithmically up to ``max_distance``, and the last one holds all larger
    distances. Bidirectional layers use half of the buckets for past keys and half for future keys. Here every layer has its own table; T5
    shares the first layer's.
    """

    name = "t5_buckets"
    summary = "a learned number per head and bucket of distances, with buckets that grow logarithmically"
    paper = "Raffel et al. 2020, T5, §2.1"
    settings = MappingProxyType({
        "num_buckets": (32, "number of buckets of distances"),
        "max_distance": (128, "distance in tokens beyond which all share one bucket"),
    })  # fmt: skip

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, settings: Mapping[str, int]) -> None:
        super().__init__(num_heads, head_dim, hidden_size, settings)
        self.table = nn.Parameter(torch.zeros(self.values["num_buckets"], num_heads))

    @classmethod
    def check(cls, settings: Mapping[str, int]) -> None:
        super().check(settings)
        num_buckets, furthest = settings["num_buckets"], settings["max_distance"]
        if num_buckets % 4 or furthest <= num_buckets // 2:
            raise OptionError(
                f"Relative positions 't5_buckets' have num_buckets={num_buckets} and max_distance={furthest}, but need a multiple of 4 and "
                "a distance above half the buckets; for example relative='t5_buckets:num_buckets=32,max_distance=128'."
            )

    def bias(self, distance: Tensor, causal: bool) -> Tensor:
        at = buckets(distance, causal, self.values["num_buckets"], self.values["max_distance"])
        return at_least_fp32(self.table)[at].movedim(-1, 0)


class Shaw(QueryDependent):
    """Relative key embeddings (Shaw et al. 2018, Self-Attention with Relative Position Representations, equations 2 and 4).

        score(i, j) = q_i · (k_j + a_{clip(j - i, -clip, clip)}) · scale

    The embeddings a ``(2·clip + 1, D)`` are shared by the heads of a layer. Values are unchanged: the paper's ablation (table 4) finds no
    gain from relative values in addition to relative keys.
    """

    name = "shaw"
    summary = "the query's product with a learned embedding of the distance, clipped"
    paper = "Shaw et al. 2018, Self-Attention with Relative Position Representations, eq. 4"
    settings = MappingProxyType({"clip": (16, "distance in tokens beyond which all share one embedding")})

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, settings: Mapping[str, int]) -> None:
        super().__init__(num_heads, head_dim, hidden_size, settings)
        self.keys = nn.Parameter(torch.zeros(2 * self.values["clip"] + 1, head_dim))

    def rows(self, causal: bool, span: Span, like: Tensor) -> tuple[Tensor, int]:
        clip = self.values["clip"]
        back, ahead = min(clip, span[0]), min(clip, span[1])
        by_distance = self.keys.flip(0)[clip - ahead : clip + back + 1]  # by query - key; the paper's rows are by key - query
        return by_distance.to(like.dtype)[None], ahead


class TransformerXL(QueryDependent):
    """Transformer-XL's relative positions (Dai et al. 2019, section 3.3).

        score(i, j) = (q_i·k_j + q_i·(W_R R_{i-j}) + u·k_j + v·(W_R R_{i-j})) · scale

    R is the sinusoid of the distance, as wide as the model; W_R maps it to the heads; u and v are a content and a position bias for each
    head. W_R, u and v are learned per layer. In the bidirectional form distances may be negative (Yang et al. 2019, XLNet).
    """

    name = "transformer_xl"
    summary = "the query's product with a projected sinusoid of the distance, and learned content and position biases"
    paper = "Dai et al. 2019, Transformer-XL, §3.3"
    reads_keys = True

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, settings: Mapping[str, int]) -> None:
        super().__init__(num_heads, head_dim, hidden_size, settings)
        self.projection = nn.Parameter(torch.zeros(num_heads, head_dim, hidden_size))
        self.content = nn.Parameter(torch.zeros(num_heads, head_dim))
        self.position = nn.Parameter(torch.zeros(num_heads, head_dim))

    def rows(self, causal: bool, span: Span, like: Tensor) -> tuple[Tensor, int]:
        back, ahead = span
        distances = sinusoids_at(torch.arange(-ahead, back + 1, device=like.device), self.hidden_size).to(like.dtype)
        return torch.einsum("wm,hdm->hwd", distances, self.projection.to(like.dtype)), ahead

    def position_query(self, q: Tensor) -> Tensor:
        q = at_least_fp32(q)
        return q + self.position.to(q.dtype)[:, None]

    def content_query(self, like: Tensor) -> Tensor:
        return self.content.to(like.dtype)


RELATIVE: dict[str, type[RelativePositions]] = {kind.name: kind for kind in (Alibi, T5Buckets, Shaw, TransformerXL)}


def read_relative(value: str | Mapping[str, Any]) -> str:
    """Check a choice of relative positions and return its normal form, ``kind`` or ``kind:name=value,...``.

    Args:
        value: text in that form, or a mapping such as ``{"kind": "shaw", "clip": 32}``.

    Raises:
        OptionError: unknown kind or setting (with the nearest one), or an impossible value.
    """
    kind, texts = _parts(value)
    cls = relative_kind(kind)
    settings: dict[str, int] = {}
    for name, number in texts.items():
        if name not in cls.settings:
            listed = ", ".join(cls.settings) or "none"
            raise OptionError(f"Relative positions {kind!r} have no setting {name!r}; settings are: {listed}.{nearest(name, cls.settings)}")
        try:
            settings[name] = int(str(number))
        except ValueError:
            raise OptionError(f"Setting {name!r} of relative positions {kind!r} is {number!r}, but must be a whole number.") from None
    cls.check(_complete(cls, settings))
    written = ",".join(f"{name}={number}" for name, number in settings.items())
    return f"{kind}:{written}" if written else kind


def relative_kind(value: str) -> type[RelativePositions]:
    """The class of a choice such as ``shaw`` or ``shaw:clip=32``.

    Raises:
        OptionError: unknown kind, with the nearest one.
    """
    kind = value.partition(":")[0].strip()
    if kind not in RELATIVE:
        raise OptionError(f"Unknown relative positions {kind!r}; the kinds are: {', '.join(RELATIVE)}.{nearest(kind, RELATIVE)}")
    return RELATIVE[kind]


def build_relative(choice: str, num_heads: int, head_dim: int, hidden_size: int) -> RelativePositions:
    """The module for a choice that :func:`read_relative` has checked."""
    kind, texts = _parts(choice)
    settings = {name: int(number) for name, number in texts.items()}
    return RELATIVE[kind](num_heads, head_dim, hidden_size, _complete(RELATIVE[kind], settings))


def _complete(cls: type[RelativePositions], settings: Mapping[str, int]) -> dict[str, int]:
    return {**{name: default for name, (default, _) in cls.settings.items()}, **settings}


def _parts(value: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(value, Mapping) and isinstance(value.get("kind"), str):
        return value["kind"], {name: number for name, number in value.items() if name != "kind"}
    pairs = [pair.partition("=") for pair in value.partition(":")[2].split(",") if pair.strip()] if isinstance(value, str) else []
    if not isinstance(value, str) or not all(sign for _, sign, _ in pairs):
        raise OptionError(
            f"relative is {value!r}, but must read KIND or KIND:NAME=VALUE,...; for example relative='alibi' or "
            "relative='t5_buckets:num_buckets=32'."
        )
    return value.partition(":")[0].strip(), {name.strip(): number for name, _, number in pairs}
