"""Relative positions as score terms, chosen as ``relative="alibi"`` or ``relative="shaw:clip=32"``.

A mechanism holds one module of this file as ``mechanism.relative``. A pre-hook of ``forward`` puts its
:meth:`~RelativePositions.score_term` into the call. :meth:`RelativePositions.term` is the definition. Decode caches
also call ``term``, because their keys are at any distance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..engines import accelerator, dense
from ..engines.batch import in_graph, no_fused_kernels
from ..engines.byte_cache import tensor_version
from ..engines.call import AttentionCall
from ..engines.dense import at_least_fp32, products, repeat_heads
from ..engines.score_terms import ColumnTerm, DistanceBias, DistanceTerm, ScoreTerm, remapped
from ..errors import OptionError, nearest
from .tables import sinusoids_at

MAX_ROWS = 65536
"""Maximum value of a setting that sizes a learned table."""
Span = tuple[int, int]
"""Largest visible distances (back, ahead) of a key before and after its query, in tokens."""


class RelativePositions(nn.Module, ABC):
    """A term added to one layer's scores ``q·k · scale``. It depends on ``distance = query position - key position``.

    Padding shifts query and key equally, so distances are unchanged. Parameters are initialised to zero, which leaves
    outputs unchanged.
    """

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, int]] = MappingProxyType({})
    """The default of each setting, by name. All settings are whole numbers."""
    rows_of_tables: ClassVar[tuple[str, ...]] = ()
    """The settings that size a learned table."""
    reads_keys: ClassVar[bool] = False
    """Whether the term depends on the key's content as well as its position."""
    differs_by_head: ClassVar[bool] = False
    """Whether the term depends on the head's number, or has parameters by heads."""
    counts_tokens: ClassVar[bool] = False
    """Whether the term depends on both positions in the sequence, not only on their distance. The option ``relative``
    accepts such a term for full attention only."""

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, settings: Mapping[str, int]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.hidden_size = hidden_size
        self.values = dict(settings)
        self.add_parameters()

    def add_parameters(self) -> None:
        """Create the parameters, as zeros. Called by the constructor."""

    @classmethod
    def check(cls, settings: Mapping[str, int]) -> None:
        """Raise :class:`OptionError` if a setting has a value that is not permitted."""
        for name, value in settings.items():
            if value >= 1 and (name not in cls.rows_of_tables or value <= MAX_ROWS):
                continue
            bound = "at least 1" if value < 1 else f"at most {MAX_ROWS}"
            raise OptionError(
                f"Setting {name!r} of relative positions {cls.name!r} is {value}, but must be {bound}; "
                f"for example relative='{cls.name}:{name}={cls.settings[name]}'."
            )

    def changes(self, kv_len: int, call: AttentionCall) -> bool:
        """Whether the term may change scores of a call with ``kv_len`` keys."""
        return True

    @abstractmethod
    def term(self, q: Tensor, k: Tensor, rows: Tensor, keys: Tensor, causal: bool, scale: float) -> Tensor:
        """The definition: the term added to the scaled scores, ``(B or 1, H, Nq, Nk)``.

        Args:
            q, k: ``(B, H, Nq, D)``, ``(B, H_kv, Nk, D)``.
            rows, keys: ``(B or 1, Nq)``, ``(B or 1, Nk)``, positions of queries and keys, whole numbers.
            causal: whether only keys up to the query's position are visible.
            scale: the factor on q·k.
        """

    def score_term(self, q: Tensor, k: Tensor, causal: bool, scale: float, span: Span) -> ScoreTerm | None:
        """The term for engines; ``None`` if the term is zero, or if :meth:`SelfExtend.attention` replaces it.

        The result is valid for distances within ``span``. The queries are the last Nq positions of the keys' sequence.
        """
        return None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Set all parameters to zero. Subclasses with random parameters use ``generator``."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class DistanceOnly(RelativePositions):
    """A term that depends on head and distance only."""

    differs_by_head = True

    @abstractmethod
    def bias(self, distance: Tensor, causal: bool) -> Tensor:
        """The term at every ``distance``, ``(H, *distance.shape)``."""

    def term(self, q: Tensor, k: Tensor, rows: Tensor, keys: Tensor, causal: bool, scale: float) -> Tensor:
        return self.bias(rows[:, :, None] - keys[:, None], causal).transpose(0, 1)

    def score_term(self, q: Tensor, k: Tensor, causal: bool, scale: float, span: Span) -> DistanceBias:
        back, ahead = span
        return DistanceBias(self.bias(torch.arange(-ahead, back + 1, device=q.device), causal), ahead)


class QueryDependent(RelativePositions):
    """A term that also depends on the query: the product of the query and a table's row for the distance.

    The band engine adds the term in linear memory. Other engines take ``(B, H, Nq, W)`` memory for W distinct
    distances.

    position: ``(H, D)``, added to the queries of this product, or ``None``.
    content: ``(H, D)``. Its product with each key is added to the term. ``None`` for no such product.
    """

    position: nn.Parameter | None
    content: nn.Parameter | None

    @abstractmethod
    def rows(self, causal: bool, span: Span, like: Tensor) -> tuple[Tensor, int]:
        """The table, ``(H or 1, W, D)``, and the number ``ahead``. Row r of the table is for the distance r - ahead.

        Distances beyond the last row use the last row, and those below the first row use the first. ``like`` sets
        device and dtype.
        """

    def vectors(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor | None]:
        """The queries ``(B, H, Nq, D)`` to multiply with the rows, and the vectors ``(H, D)`` for the keys; in at
        least fp32."""
        q = at_least_fp32(q)
        if self.position is not None:
            q = q + self.position.to(q.dtype)[:, None]
        content = None if self.content is None else self.content.to(at_least_fp32(k).dtype)
        return q, content

    def term(self, q: Tensor, k: Tensor, rows: Tensor, keys: Tensor, causal: bool, scale: float) -> Tensor:
        """The term ``(B, H, Nq, Nk)``: the product of query and row for the distance, plus that of key and
        ``content``."""
        distance = rows[:, :, None] - keys[:, None]
        queries, content = self.vectors(q, k)
        span = int(distance.max().clamp(min=0)), int((-distance).max().clamp(min=0))
        table, ahead = self.rows(causal, span, queries)
        row_products = queries @ table.mT  # (B, H, Nq, W)
        index = (distance + ahead).clamp(0, row_products.shape[-1] - 1)[:, None]
        terms = row_products.gather(-1, index.expand(*row_products.shape[:-1], -1))
        if content is not None:
            terms = terms + (repeat_heads(at_least_fp32(k), len(content)) @ content[..., None]).mT
        return terms * scale

    def score_term(self, q: Tensor, k: Tensor, causal: bool, scale: float, span: Span) -> DistanceTerm:
        queries, content = self.vectors(q, k)
        queries = queries * scale
        table, ahead = self.rows(causal, span, queries)
        return DistanceTerm(queries, table, ahead, k, None if content is None else content * scale)


class Alibi(DistanceOnly):
    """ALiBi (Press et al. 2022, Train Short, Test Long, section 3): a penalty linear in the distance, with a slope for
    each head.

        term(h, i, j) = -m_h · |i - j|

    If H is a power of two, the slopes are the geometric sequence m_h = 2^(-8 (h+1) / H). Otherwise, with P the largest
    power of two below H, they are the slopes for P heads, then every second slope for 2P heads, as in the paper's
    code. Nothing is learned.
    """

    name = "alibi"

    def bias(self, distance: Tensor, causal: bool) -> Tensor:
        power = 1 << (self.num_heads.bit_length() - 1)  # P
        slopes = 2.0 ** (-8.0 / power * torch.arange(1, power + 1, dtype=torch.float64))
        between = 2.0 ** (-4.0 / power * torch.arange(1, 2 * power, 2, dtype=torch.float64))
        slopes = torch.cat([slopes, between[: self.num_heads - power]]).float().to(distance.device)
        return -slopes.view(-1, *[1] * distance.dim()) * distance.abs()


def buckets(distance: Tensor, causal: bool, num_buckets: int, max_distance: int) -> Tensor:
    """The bucket of every ``distance`` = query - key, int64 of the same shape."""
    first = torch.zeros_like(distance)
    if causal:
        distance = distance.clamp(min=0)
    else:  # the second half of the buckets is for keys after the query
        num_buckets //= 2
        first = (distance < 0).long() * num_buckets
        distance = distance.abs()
    single = num_buckets // 2  # buckets with one distance each
    # in float32: its rounding determines where T5's buckets end
    share = torch.log(distance.clamp(min=1).float() / single) / math.log(max_distance / single)
    coarse = (single + (share * (num_buckets - single)).long()).clamp(max=num_buckets - 1)
    return first + torch.where(distance < single, distance, coarse)


class T5Buckets(DistanceOnly):
    """T5's relative positions (Raffel et al. 2020, section 2.1): a learned number per head and bucket of distances.

        term(h, i, j) = table[bucket(i - j), h]

    Half of the buckets hold one distance each. The other half grow logarithmically up to ``max_distance``, and the
    last bucket holds all larger distances. Bidirectional layers use half of all buckets for keys after the query. Here
    every layer has a table of its own, whereas the layers of T5 share one.
    """

    name = "t5_buckets"
    settings = MappingProxyType({"num_buckets": 32, "max_distance": 128})
    rows_of_tables = ("num_buckets",)

    def add_parameters(self) -> None:
        self.table = nn.Parameter(torch.zeros(self.values["num_buckets"], self.num_heads))

    @classmethod
    def check(cls, settings: Mapping[str, int]) -> None:
        """Also refuse buckets that cannot be halved twice, and a distance too small for the logarithmic buckets."""
        super().check(settings)
        num_buckets, furthest = settings["num_buckets"], settings["max_distance"]
        if num_buckets % 4 or furthest <= num_buckets // 2:
            raise OptionError(
                f"Relative positions 't5_buckets' have num_buckets={num_buckets} and max_distance={furthest}, but "
                "num_buckets must be a multiple of 4, and max_distance more than num_buckets / 2; for example "
                "relative='t5_buckets:num_buckets=32,max_distance=128'."
            )

    def bias(self, distance: Tensor, causal: bool) -> Tensor:
        bucket = buckets(distance, causal, self.values["num_buckets"], self.values["max_distance"])
        return at_least_fp32(self.table)[bucket].movedim(-1, 0)


class Shaw(QueryDependent):
    """Relative key embeddings (Shaw et al. 2018, Self-Attention with Relative Position Representations, equations 2
    and 4).

        score(i, j) = q_i · (k_j + a_{clip(j - i, -clip, clip)}) · scale

    Tokens further apart than ``clip`` share an embedding. The embeddings a ``(2·clip + 1, D)`` are shared by the heads
    of a layer. Values are unchanged: the paper's ablation (table 4) finds no gain from relative values in addition to
    relative keys.
    """

    name = "shaw"
    settings = MappingProxyType({"clip": 16})
    rows_of_tables = ("clip",)

    def add_parameters(self) -> None:
        self.position = self.content = None
        self.keys = nn.Parameter(torch.zeros(2 * self.values["clip"] + 1, self.head_dim))

    def rows(self, causal: bool, span: Span, like: Tensor) -> tuple[Tensor, int]:
        clip = self.values["clip"]
        back, ahead = min(clip, span[0]), min(clip, span[1])
        # rows are ordered by query - key here, and by key - query in the paper
        by_distance = self.keys.flip(0)[clip - ahead : clip + back + 1]
        return by_distance.to(like.dtype)[None], ahead


class TransformerXL(QueryDependent):
    """Transformer-XL's relative positions (Dai et al. 2019, section 3.3).

        score(i, j) = (q_i·k_j + q_i·(W_R R_{i-j}) + u·k_j + v·(W_R R_{i-j})) · scale

    R_n is the sinusoid of the distance n, as wide as the model. W_R maps it to the heads. u and v are vectors for each
    head, a bias of the content and a bias of the position. W_R, u and v are learned per layer. In the bidirectional
    form distances may be negative (Yang et al. 2019, XLNet).
    """

    name = "transformer_xl"
    reads_keys = True
    differs_by_head = True

    def add_parameters(self) -> None:
        self.projection = nn.Parameter(torch.zeros(self.num_heads, self.head_dim, self.hidden_size))
        self.content = nn.Parameter(torch.zeros(self.num_heads, self.head_dim))
        self.position = nn.Parameter(torch.zeros(self.num_heads, self.head_dim))

    def rows(self, causal: bool, span: Span, like: Tensor) -> tuple[Tensor, int]:
        back, ahead = span
        distances = sinusoids_at(torch.arange(-ahead, back + 1, device=like.device), self.hidden_size).to(like.dtype)
        return torch.einsum("wm,hdm->hwd", distances, self.projection.to(like.dtype)), ahead


class Rotation(NamedTuple):
    """How a model rotates queries and keys: by position · frequency, in planes of two features.

    frequencies: ``(F,)``, radians per position. The first 2F features are rotated.
    interleaved: whether a plane has neighbouring features (GPT-J, GLM), instead of features n and n + F (Llama).
    """

    frequencies: Tensor
    interleaved: bool = False

    def factors(
        self, by: Tensor, dtype: torch.dtype, scale: float = 1.0, *, change: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The two factors ``cos`` and ``sin`` of :meth:`combined`, ``(B or 1, 1, N, 2F)`` each, times ``scale``.

        Args:
            by: ``(B or 1, N)``, the further positions to rotate by.
            change: whether the result of ``combined`` is the rotated vector minus the vector itself.
        """
        # float32 loses 1e-4 of the angles of far positions
        exact = torch.float32 if by.device.type == "mps" else torch.float64
        angle = by.to(exact)[:, None, :, None] * self.frequencies.to(by.device, exact)
        cos, sin = angle.cos(), angle.sin()
        if change:
            cos = cos - 1.0
        axis = -1 if self.interleaved else -2  # puts both features of a plane into the order of the vector
        pairs = torch.stack([cos, cos], axis), torch.stack([-sin, sin], axis)
        return tuple((pair.flatten(-2) * scale).to(dtype) for pair in pairs)  # type: ignore[return-value]

    def combined(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The rotation ``(B, H, N, 2F)`` of the first 2F features of ``x (B, H, N, D)``: each feature times ``cos``,
        plus the other feature of the plane times ``sin``."""
        x = at_least_fp32(x)[..., : cos.shape[-1]]
        others = x.unflatten(-1, (-1, 2)).flip(-1) if self.interleaved else x.unflatten(-1, (2, -1)).flip(-2)
        return torch.addcmul(x * cos, others.flatten(-2), sin)

    def turned(self, x: Tensor, by: Tensor) -> Tensor:
        """``x (B, H, N, D)`` in at least fp32, rotated by ``by (B or 1, N)`` further positions."""
        x = at_least_fp32(x)
        planes = self.combined(x, *self.factors(by, x.dtype))
        return torch.cat([planes, x[..., planes.shape[-1] :]], -1)


class SelfExtend(RelativePositions):
    """Self-Extend (Jin et al. 2024, LLM Maybe LongLM, section 3): distant tokens share rotary positions in groups.

        score(i, j) = (R(A(i)) q_i) · (R(B(j)) k_j) · scale      for a key j with i - j >= window
        A(i) = ⌊i / group⌋ + window - ⌊window / group⌋
        B(j) = ⌊j / group⌋

    R(n) rotates by n positions. Near pairs keep A(i) = i and B(j) = j. The shift of A lets distances continue where
    the window ends. Texts of up to L tokens have distances below about ``(L - window) / group + window``. Nothing is
    learned. For keys after the query, in encoders, the query is at B(i) and the key at A(j), so that their distance is
    minus the distance of the pair (j, i).

    The model has already rotated queries and keys to their own positions, also the keys in a cache. Rotations add up.
    A further rotation by A(i) - i therefore gives the vector at A(i).
    """

    name = "self_extend"
    counts_tokens = True
    settings = MappingProxyType({"window": 1024, "group": 8})
    rotation: Callable[[], Rotation] | None = None
    """A function that returns how the model rotates. Set when the mechanism is attached. ``None``: as in Llama, with
    base 10,000."""

    def moved(self, q: Tensor, k: Tensor, rows: Tensor, keys: Tensor, causal: bool) -> list[tuple[Tensor, Tensor]]:
        """Rotated queries and keys for distant pairs and, if not causal, those for distant keys after the query.

        Their shapes are those of ``q`` and ``k``.
        """
        window, group = self.values["window"], self.values["group"]
        if self.rotation is None:
            rotation = Rotation(
                10_000.0 ** -(torch.arange(0, self.head_dim // 2 * 2, 2, dtype=torch.float64) / self.head_dim)
            )
        else:
            rotation = self.rotation()
        shift = window - window // group

        # The later of the two tokens is rotated to A, the earlier one to B.
        pairs = [(rotation.turned(q, rows // group + shift - rows), rotation.turned(k, keys // group - keys))]
        if not causal:
            pairs.append((rotation.turned(q, rows // group - rows), rotation.turned(k, keys // group + shift - keys)))
        return pairs

    def choices(self, rows: Tensor, keys: Tensor) -> Tensor:
        """Which vectors give a pair's score: 0 for near pairs, else n for entry n - 1 of :meth:`moved`. The tensors
        broadcast."""
        distant = (torch.maximum(rows, keys) - torch.minimum(rows, keys) >= self.values["window"]).int()
        return torch.where((distant > 0) & (keys > rows), 2, distant)

    def term(self, q: Tensor, k: Tensor, rows: Tensor, keys: Tensor, causal: bool, scale: float) -> Tensor:
        near = products(q, repeat_heads(k, q.shape[1])) * scale
        choice = self.choices(rows[:, None, :, None], keys[:, None, None])
        score = near
        for n, (x, y) in enumerate(self.moved(q, k, rows, keys, causal), 1):
            distant = products(x, repeat_heads(y, q.shape[1])).to(score.dtype) * scale
            score = torch.where(choice == n, distant, score)
        return score - near

    def attention(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """Softmax attention with these scores, in blocks of queries; in graphs and under ``torch.func`` in one block.

        A query has its vectors for all choices side by side. A key is repeated for every choice that the block needs,
        with zeros in the place of other choices. A mask hides all but one repetition for each pair.
        """
        kv_len, width, graph = k.shape[2], q.shape[-1], in_graph()
        positions = torch.arange(kv_len, device=k.device)
        rows = positions[kv_len - q.shape[2] :]
        vectors = [(q, k), *self.moved(q, k, rows[None], positions[None], call.causal)]
        queries = torch.cat([x.to(q.dtype) for x, _ in vectors], -1)
        real = call.real(k)[:, None, None]
        mod = call.written_out().score_mod

        def block(queries: Tensor, rows: Tensor) -> Tensor:
            """The output of ``queries`` at the positions ``rows``."""
            choice = self.choices(rows[:, None], positions)
            if call.causal:
                choice = torch.where(positions > rows[:, None], -1, choice)

            # For each choice, the positions of the keys that some query needs, and these keys.
            masks = [choice == n for n in range(len(vectors))]
            needed = [positions if graph else mask.any(0).nonzero().flatten() for mask in masks]
            keys_of_choices = [
                nn.functional.pad(y[:, :, at].to(k.dtype), (n * width, queries.shape[-1] - (n + 1) * width))
                for n, ((_, y), at) in enumerate(zip(vectors, needed, strict=True))
            ]
            at = torch.cat(needed)
            visible = torch.cat([mask[:, at] for mask, at in zip(masks, needed, strict=True)], -1) & real[..., at]

            # The CPU's kernel takes values as wide as the keys.
            values = nn.functional.pad(v[:, :, at], (0, queries.shape[-1] - v.shape[-1]))
            block_call = call.replace(
                causal=False,
                batch=None,
                scale=call.scale_for(width),
                score_mod=remapped(mod, lambda b, h, kv_idx: at[kv_idx]),
            )
            keys, q_idx = torch.cat(keys_of_choices, 2), rows.view(1, 1, -1, 1)
            out = dense.dense_attention(queries, keys, values, block_call, mask_mod=lambda *_: visible, q_idx=q_idx)
            return out[..., : v.shape[-1]]

        if graph or no_fused_kernels() is not None:
            size = q.shape[2]
        else:
            size = max(1, dense.MAX_SCORES // (len(q) * q.shape[1] * kv_len))
        if q.shape[2] <= size:
            return block(queries, rows)
        # with gradients, the backward pass computes each block again instead of storing it
        run = partial(checkpoint, block, use_reentrant=False) if torch.is_grad_enabled() else block
        return torch.cat([run(*parts) for parts in zip(queries.split(size, 2), rows.split(size), strict=True)], 2)


class SinkPositions(RelativePositions):
    """The positions of sinks in StreamingLLM (Xiao et al. 2023, Efficient Streaming Language Models with Attention
    Sinks, section 3.2).

        score(i, j) = (R(min(i, s + w - 1)) q_i) · (R(j) k_j) · scale      for a sink j < s outside of i's window

    R(n) rotates by n positions, and w is the number of keys in a window. These are the positions inside a cache of s
    sinks and w keys, so that no distance is larger than s + w - 1. Pairs in the window are unchanged, and so are texts
    of up to s + w tokens. In causal layers, all sinks are outside of the window of every query from position s + w - 1
    on. Whether a query is rotated therefore depends on its position alone. Nothing is learned.

    The option ``relative`` does not offer this class. Layers of rotary models get it for their sinks.
    """

    name = "sinks"
    counts_tokens = True
    reads_keys = True

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        hidden_size: int,
        sinks: int,
        window: int,
        rotation: Callable[[], Rotation],
    ) -> None:
        """rotation: a function that returns the layer's rotation."""
        super().__init__(num_heads, head_dim, hidden_size, {})
        self.sinks = sinks
        self.last = sinks + window - 1  # the last position in the cache
        self.rotation = rotation

    def changes(self, kv_len: int, call: AttentionCall) -> bool:
        if (
            not call.causal or call.global_mask is not None
        ):  # a caller's global tokens keep their positions in the text
            return False
        return torch.compiler.is_exporting() or kv_len > self.last + 1  # an exported graph is for all lengths

    def table(
        self, q: Tensor, sinks: Tensor, rows: Tensor, scale: float, factors: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """The term ``(B, H, Nq, n)`` for queries at ``rows (B or 1, Nq)`` and sink keys ``sinks (B, H_kv, n, D)``.

        factors: those of :meth:`Rotation.factors`, if they are known.
        """
        rotation = self.rotation()
        if factors is None:
            factors = rotation.factors((self.last - rows).clamp(max=0), at_least_fp32(q[:0]).dtype, scale, change=True)
        change = rotation.combined(q, *factors)
        grouped = change.unflatten(1, (sinks.shape[1], -1)).flatten(2, 3)  # all queries of a key head
        return products(grouped, sinks[..., : change.shape[-1]]).unflatten(2, (-1, q.shape[2])).flatten(1, 2)

    def term(self, q: Tensor, k: Tensor, rows: Tensor, keys: Tensor, causal: bool, scale: float) -> Tensor:
        is_sink = (keys >= 0) & (keys < self.sinks)
        return self.table(q, k, rows, scale) * is_sink[:, None, None]

    def score_term(self, q: Tensor, k: Tensor, causal: bool, scale: float, span: Span) -> ColumnTerm:
        """The term for the first ``sinks`` keys of the sequence, for engines."""
        q_len, kv_len = q.shape[2], k.shape[2]
        offset = kv_len - q_len
        first = 0 if in_graph() else min(max(0, self.last + 1 - offset), q_len)  # earlier queries are not rotated
        rows = torch.arange(offset + first, kv_len, device=q.device)[None]
        # a slice would bound a graph's lengths
        sinks = k.index_select(2, torch.arange(self.sinks, device=k.device).clamp(max=kv_len - 1))
        table = self.table(q[:, :, first:], sinks, rows, scale)
        return ColumnTerm(nn.functional.pad(table, (0, 0, first, 0)), offset)

    def mask(
        self, q: Tensor, k: Tensor, seen: Tensor, rows: Tensor, keys: Tensor, scale: float, call: AttentionCall
    ) -> Tensor:
        """The additive mask ``(B, H, Nq, S)``, term included, for keys at positions ``keys (B or 1, S)`` in any order.

        If a query is rotated, all sinks must be among its keys. Results that do not depend on ``q`` and ``k`` are
        computed once for all layers that pass the same tensors.

        Args:
            seen: ``(B or 1, 1, Nq, S)`` bool, the visible keys.
            rows: ``(B or 1, Nq)``, positions of the queries.
        """
        rotation, precise = self.rotation(), at_least_fp32(q[:0]).dtype
        dtype = q.dtype if accelerator.accelerated(q) else precise  # kernels for the CPU take a mask in fp32
        sources = (seen, rows, keys, rotation.frequencies)

        def make() -> tuple[Any, ...]:
            """The sources, the mask without the term, the index of each sink among the keys, and the factors."""
            hidden = torch.where(seen, torch.zeros((), dtype=dtype, device=q.device), torch.finfo(dtype).min)
            is_sink = keys[:, None] == torch.arange(self.sinks, device=keys.device)[:, None]  # (B or 1, sinks, S)
            factors = rotation.factors((self.last - rows).clamp(max=0), precise, scale, change=True)
            return sources, hidden, is_sink.int().argmax(-1)[:, None], factors

        if torch.compiler.is_compiling():  # a graph stores nothing, and cannot read versions
            _, hidden, slots, factors = make()
        else:  # the cached result holds the sources, so that no other tensors can get their ids
            name = (
                "sinks",
                self.sinks,
                self.last,
                rotation.interleaved,
                scale,
                dtype,
                *map(id, sources),
                tensor_version(sources[3]),
            )
            _, hidden, slots, factors = call.cached(name, make)
        sinks = k.gather(2, slots[..., None].expand(len(k), k.shape[1], -1, k.shape[3]))
        term = self.table(q, sinks, rows, scale, factors)
        return hidden.expand(*term.shape[:3], -1).scatter_add(3, slots[:, :, None].expand(term.shape), term.to(dtype))


CLASSES: dict[str, type[RelativePositions]] = {
    cls.name: cls for cls in (Alibi, T5Buckets, Shaw, TransformerXL, SelfExtend)
}


def read_relative(value: str) -> str:
    """Check a choice of relative positions and return its normal form, ``kind`` or ``kind:name=value,...``.

    Raises:
        OptionError: the kind or a setting is unknown (the message has the nearest name), or a value is not permitted.
    """
    cls, given, settings = settings_in(value)
    cls.check(settings)
    given_text = ",".join(f"{name}={number}" for name, number in given.items())
    return f"{cls.name}:{given_text}" if given_text else cls.name


def settings_in(value: str) -> tuple[type[RelativePositions], dict[str, int], dict[str, int]]:
    """The class of a choice, the settings that the choice gives, and all settings with defaults.

    :meth:`RelativePositions.check` checks the values, which this function does not.

    Raises:
        OptionError: as in :func:`read_relative`.
    """
    kind, _, settings = str(value).partition(":")
    pairs = [pair.partition("=") for pair in settings.split(",") if pair.strip()]
    if not isinstance(value, str) or not all(sign for _, sign, _ in pairs):
        raise OptionError(
            f"relative is {value!r}, but must read KIND or KIND:NAME=VALUE,...; for example relative='alibi' or "
            "relative='t5_buckets:num_buckets=32'."
        )
    kind, texts = kind.strip(), {name.strip(): number for name, _, number in pairs}
    cls = relative_class(kind)
    given: dict[str, int] = {}
    for name, number in texts.items():
        if name not in cls.settings:
            listed = ", ".join(cls.settings) or "none"
            raise OptionError(
                f"Relative positions {kind!r} have no setting {name!r}; settings are: "
                f"{listed}.{nearest(name, cls.settings)}"
            )
        try:
            given[name] = int(str(number))
        except ValueError:
            raise OptionError(
                f"Setting {name!r} of relative positions {kind!r} is {number!r}, but must be a whole number."
            ) from None
    return cls, given, {**cls.settings, **given}


def relative_class(value: str) -> type[RelativePositions]:
    """The class of a choice such as ``shaw`` or ``shaw:clip=32``.

    Raises:
        OptionError: the kind is unknown. The message has the nearest kind.
    """
    kind = value.partition(":")[0].strip()
    if kind not in CLASSES:
        raise OptionError(
            f"Unknown relative positions {kind!r}; the kinds are: {', '.join(CLASSES)}.{nearest(kind, CLASSES)}"
        )
    return CLASSES[kind]


def unchanged_tokens(choice: str) -> int | None:
    """Maximum text length, in tokens, at which a converted checkpoint's outputs are unchanged by a checked choice;
    ``None`` for any length."""
    cls, _, settings = settings_in(choice)
    if cls is SelfExtend:
        return None if settings["group"] == 1 else settings["window"]
    return 0 if cls is Alibi else None  # the parameters of other terms are initialised to zero


def build_relative(choice: str, num_heads: int, head_dim: int, hidden_size: int) -> RelativePositions:
    """The module for a choice that :func:`read_relative` has checked."""
    cls, _, settings = settings_in(choice)
    return cls(num_heads, head_dim, hidden_size, settings)
