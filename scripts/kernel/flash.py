"""Exact attention with windows, by the functions of flash-attn: on a CPU too, forward and backward, in float dtypes.

On a CPU, a window costs what its keys cost: the engine cuts queries into blocks, and one call of PyTorch's fused
kernel runs many blocks (:class:`Varlen`). On other devices, PyTorch's own operators run: its varlen flash attention
where it takes the call, and otherwise a loop over blocks of queries (:func:`attend_in_blocks`), which also computes
score caps everywhere.

Tensors have the layout of flash-attn: ``(batch, tokens, heads, head_dim)``, or ``(all tokens, heads, head_dim)`` with
offsets. Keys and values may have fewer heads than queries. ``window_size=(left, right)`` shows each query that many
keys before and after its own position; -1 is no limit. The last query is at the last key's position, as in
flash-attn 2.1 and later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_longattn.engines.batch import differentiated, transformed
from hf_longattn.engines.call import UNBOUNDED
from hf_longattn.engines.cpu.band import DROPOUT_BLOCK, Group, band_plan, block_mask
from hf_longattn.engines.cpu.kernels import MAX_PLAIN_KEYS
from hf_longattn.engines.cpu.softmax import Part, Runs, Scope, Source, attend_parts, source
from hf_longattn.engines.dense import products, repeat_heads

BLOCK_SCORES = 1 << 24
"""Maximum scores of one block of :func:`attend_in_blocks`, over all heads."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Window = tuple[int, int]


class Texts(NamedTuple):
    """Neighbouring texts of equal lengths: ``number`` texts with ``queries`` queries from ``first_query`` on and
    ``keys`` keys from ``first_key`` on."""

    first_query: int
    queries: int
    first_key: int
    keys: int
    number: int


def texts_of(q: Tensor, k: Tensor, offsets: Sequence[Tensor], left: int, right: int) -> Iterator[Texts]:
    """The texts between neighbouring offsets in ``q, k (1, H, N, D)``, without queries that see no key.

    Raises:
        ValueError: offsets decrease, or are not in q and k.
    """
    texts: Texts | None = None
    offsets_q, offsets_k = (x.tolist() for x in offsets)
    end_q, end_k = q.shape[2], k.shape[2]
    for text in range(len(offsets_q) - 1):
        first, last = offsets_q[text], offsets_q[text + 1]
        first_key, last_key = offsets_k[text], offsets_k[text + 1]
        if not (0 <= first <= last <= end_q and 0 <= first_key <= last_key <= end_k):
            raise ValueError(
                f"Text {text} has cu_seqlens_q {first} to {last} and cu_seqlens_k {first_key} to {last_key}; offsets "
                f"may not decrease, nor leave the {end_q} queries and {end_k} keys."
            )
        keys = last_key - first_key
        first += max(0, last - first - keys - right)  # queries before it end before the first key
        if first >= last or not keys:
            continue
        if texts is not None and (
            (last - first, keys) == (texts.queries, texts.keys)
            and first == texts.first_query + texts.number * texts.queries
            and first_key == texts.first_key + texts.number * texts.keys
        ):
            texts = texts._replace(number=texts.number + 1)
            continue
        if texts is not None:
            yield texts
        texts = Texts(first, last - first, first_key, keys, 1)
    if texts is not None:
        yield texts


@source
class Varlen(Source):
    """Texts one after the other in a batch of one row, each with a window.

    - fixed: offsets of the texts' queries and of their keys, ``(n + 1,)`` integers each.
    - numbers: left and right.
    """

    name = "varlen"
    sums_in_fp32 = False

    def read_arguments(self) -> None:
        self.left, self.right = self.numbers
        self.offsets = [offsets for offsets in self.fixed if offsets is not None]

    def prepare(self, out: Tensor, lse: Tensor) -> None:
        out.zero_()  # of queries that see no key
        lse.zero_()

    def scopes(self, backward: bool) -> Iterator[Scope]:
        for texts in texts_of(self.q, self.k, self.offsets, self.left, self.right):
            yield Scope([*self.parts(texts, backward)])

    def parts(self, texts: Texts, backward: bool) -> Iterator[Part]:
        """The parts of texts of equal lengths."""
        first_query, q_len, first_key, kv_len, count = texts
        shift, left, right = kv_len - q_len, min(self.left, kv_len), min(self.right, max(q_len, kv_len))
        queries, keys = Runs(first_query, q_len, count, q_len), Runs(first_key, kv_len, count, kv_len)
        everything = Group(0, 1, q_len, 0, q_len, kv_len)
        if everything.sees_all(shift, left, right):
            yield Part(queries, keys)
            return
        if left >= kv_len - 1 and right == 0:  # causal, without a window
            if q_len <= MAX_PLAIN_KEYS:
                yield Part(queries, keys, block_mask(everything, shift, left, right, q_len, self.dtype))
                return
            if shift:  # all queries see the keys before the first of them
                yield Part(queries, Runs(first_key, shift, count, kv_len))
            later = Runs(first_key + shift, q_len, count, kv_len)
            yield Part(queries, later, label=(1,), merges=shift > 0, causal=True)
            return
        sizes, block = (q_len, kv_len, shift, left, right), DROPOUT_BLOCK if self.dropout else None
        plan = band_plan(*sizes, self.q.dtype, torch.get_num_threads(), backward=backward, block=block)
        if plan.dense:
            mask = block_mask(everything, shift, left, right, q_len, self.dtype)
            yield Part(queries, keys, mask, causal=right == 0 and shift == 0)
            return
        label = 0
        for text in range(count):
            query, key = first_query + text * q_len, first_key + text * kv_len
            for group in plan.groups:
                mask = block_mask(group, shift, left, right, plan.block, self.dtype)
                for blocks in group.parts(max(1, plan.queries // plan.block)):
                    rows = Runs(query + blocks.first, blocks.block, blocks.blocks, blocks.block)
                    columns = Runs(key + blocks.start, blocks.width, blocks.blocks, blocks.step)
                    yield Part(rows, columns, mask, (label,))
                    label += 1


class Settings(NamedTuple):
    """How a call weighs keys. ``left`` and ``right``: keys before and after each query that it sees."""

    left: int
    right: int
    scale: float
    softcap: float
    dropout: float
    sinks: Tensor | None
    """Scores of attention sinks ``(H,)``."""

    @classmethod
    def of(
        cls,
        q: Tensor,
        dropout: float,
        scale: float | None,
        causal: bool,
        window: Window,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Settings:
        """The settings for arguments of flash-attn."""
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout_p is {dropout}, but must be at least 0 and less than 1.")
        left, right = (UNBOUNDED if size is None or size < 0 else int(size) for size in window)
        if causal:
            right = 0
        scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
        return cls(left, right, scale, softcap or 0.0, dropout, sinks)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, offsets: Sequence[Tensor], settings: Settings) -> Tensor:
    """Attention ``(1, H, N, D)`` of texts in one row, a block of queries at a time, by plain operations.

    The backward pass computes the scores of each block again.
    """
    left, right = settings.left, settings.right
    outs, done = [], 0
    for texts in texts_of(q, k, offsets, left, right):
        shift, width = texts.keys - texts.queries, min(texts.keys, left + right + 256)
        block = max(16, min(texts.queries, BLOCK_SCORES // (q.shape[1] * width)))
        for text in range(texts.number):
            query, key = texts.first_query + text * texts.queries, texts.first_key + text * texts.keys
            outs.append(torch.zeros_like(q[:, :, done:query]))  # queries that see no key
            done = query + texts.queries
            for first in range(0, texts.queries, block):
                size = min(block, texts.queries - first)
                start, stop = max(0, first + shift - left), min(texts.keys, first + size + shift + right)
                rows = torch.arange(first + shift, first + shift + size, device=q.device)[:, None]
                distance = rows - torch.arange(start, stop, device=q.device)
                hidden = (distance > left) | (distance < -right)
                at, near = slice(query + first, query + first + size), slice(key + start, key + stop)
                inputs = (q[:, :, at], k[:, :, near], v[:, :, near], hidden, settings)
                if torch.is_grad_enabled() and not transformed():
                    outs.append(checkpoint(attend_block, *inputs, use_reentrant=False))
                else:
                    outs.append(attend_block(*inputs))
    if not outs:  # zeros with gradients, which are zeros too
        nothing = [x[..., :0].sum() for x in (q, k, v, settings.sinks) if x is not None]
        return torch.zeros_like(q) + sum(nothing)
    return torch.cat([*outs, torch.zeros_like(q[:, :, done:])], 2)


def attend_block(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, settings: Settings) -> Tensor:
    """Attention ``(1, H, n, D)`` of a block of queries to the keys near it. ``hidden``: ``(n, keys)`` bool."""
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    if settings.sinks is None and not settings.softcap:
        return F.scaled_dot_product_attention(q, k, v, ~hidden, dropout_p=settings.dropout, scale=settings.scale)
    scores = products(q, k) * settings.scale
    if settings.softcap:
        scores = (scores / settings.softcap).tanh() * settings.softcap
    scores = scores.masked_fill(hidden, -torch.inf)
    if settings.sinks is not None:
        sinks = settings.sinks.to(scores.dtype)[:, None, None]
        scores = torch.cat([scores, sinks.expand(len(scores), -1, scores.shape[2], 1)], 3)
    weights = scores.softmax(3)[..., : k.shape[2]]
    return F.dropout(weights, settings.dropout).to(v.dtype) @ v


def attend(
    q: Tensor, k: Tensor, v: Tensor, offsets: Sequence[Tensor], longest: tuple[int, int], settings: Settings
) -> Tensor:
    """Attention of texts that stand one after the other, by the engine that the device and the call allow.

    Args:
        q, k, v: ``(N, H, D)``, ``(M, H_kv, D)``.
        offsets: ``(n + 1,)`` integers each: where the queries and the keys of each text begin, then their numbers.
        longest: maximum queries and keys of a text.
    """
    left, right, scale, _, dropout, sinks = settings
    if varlen_flash_runs(q, settings):
        from torch.nn.attention.varlen import varlen_attn

        limits = (-1 if left == UNBOUNDED else left, -1 if right == UNBOUNDED else right)
        starts_q, starts_k = (x.to(q.device, torch.int32) for x in offsets)
        grouped: dict[str, Any] = {"scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
        out = varlen_attn(q, k, v, starts_q, starts_k, longest[0], longest[1], window_size=limits, **grouped)
        return out if isinstance(out, Tensor) else out[0]
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    if q.device.type != "cpu" or settings.softcap or transformed():
        return attend_in_blocks(q, k, v, offsets, settings)[0].transpose(0, 1)
    if dropout or differentiated(q, k, v):  # the fused kernel groups heads, but not the products beside it
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    return attend_parts("varlen", q, k, v, scale, (), offsets, (left, right), dropout, sinks)[0].transpose(0, 1)


def varlen_flash_runs(q: Tensor, settings: Settings) -> bool:
    """Whether PyTorch's flash attention for texts in one row computes the call."""
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16) or q.shape[-1] > 256:
        return False
    if settings.dropout or settings.softcap or settings.sinks is not None:
        return False  # it has none of them
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in varlen_attn.__annotations__


def check(q: Tensor, k: Tensor, v: Tensor, s_aux: Tensor | None, axes: tuple[int, int] = (4, 4)) -> None:
    """Refuse what no engine here computes. ``axes``: how many q has, and how many k and v have.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: dtypes that differ, or without an engine, such as fp8.
    """
    if q.dim() != axes[0] or not k.dim() == v.dim() == axes[1]:
        shapes = f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        raise ValueError(f"q must have {axes[0]} axes, and k and v {axes[1]}; their shapes are {shapes}.")
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise TypeError(
            f"longattn computes attention in float16, bfloat16, float32 and float64, with equal dtypes of q, k and v; "
            f"these are {q.dtype}, {k.dtype} and {v.dtype}. Convert them first."
        )
    if not q.shape[-1] == k.shape[-1] == v.shape[-1]:
        raise ValueError(
            f"longattn needs equal head sizes; q, k and v have {q.shape[-1]}, {k.shape[-1]} and {v.shape[-1]}."
        )
    if k.shape[:-1] != v.shape[:-1] or 0 in q.shape[-2:] + k.shape[-2:] or q.shape[-2] % k.shape[-2]:
        raise ValueError(
            "longattn needs as many keys as values, and heads of q that are a multiple of theirs; shapes are "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}."
        )
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k and v are on different devices: {q.device}, {k.device}, {v.device}.")
    if s_aux is not None and s_aux.shape != q.shape[-2:-1]:
        raise ValueError(
            f"s_aux has shape {tuple(s_aux.shape)}, but must have one number for each of {q.shape[-2]} heads."
        )


def check_integers(name: str, x: Any, axes: int = 1) -> None:
    """Refuse offsets, lengths and tables of blocks that are not integers in a tensor with this number of axes."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor of integers, but is {x!r:.80}.")
    if x.dtype not in (torch.int32, torch.int64) or x.dim() != axes:
        raise ValueError(f"{name} must be int32 or int64 in {axes} axes; it is {x.dtype} of shape {tuple(x.shape)}.")


def refuse(**arguments: Any) -> None:
    """Refuse arguments of flash-attn that are not implemented, if they are given.

    Raises:
        NotImplementedError: one is given.
    """
    for name, value in arguments.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"longattn does not implement {name} of flash-attn; call it without {name}.")


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    s_aux: Tensor | None = None,
) -> Tensor:
    """Attention ``(B, N, H, D)`` of ``q (B, N, H, D)`` to ``k, v (B, M, H_kv, D)``.

    Args:
        dropout_p: probability with which a weight is dropped.
        softmax_scale: factor on scores; ``D ** -0.5`` by default.
        causal: whether a query sees no key after its own position.
        window_size: keys before and after each query that it sees; -1 is no limit.
        softcap: scores are ``softcap * tanh(score / softcap)``.
        s_aux: ``(H,)``, scores of attention sinks, which take weight and have no value.
    Raises:
        NotImplementedError: ``alibi_slopes`` or ``return_attn_probs``. Every result is deterministic.
    """
    refuse(alibi_slopes=alibi_slopes, return_attn_probs=return_attn_probs)
    settings = Settings.of(q, dropout_p, softmax_scale, causal, window_size, softcap, s_aux)
    check(q, k, v, s_aux)
    batch, q_len, kv_len = q.shape[0], q.shape[1], k.shape[1]
    if len(k) != batch:
        raise ValueError(f"q has a batch of {batch} rows, but k and v have {len(k)}; they must have equal numbers.")
    offsets = [torch.arange(batch + 1) * length for length in (q_len, kv_len)]
    q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    out = attend(q, k, v, offsets, (q_len, kv_len), settings)
    return out.view(batch, q_len, *out.shape[1:])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    s_aux: Tensor | None = None,
) -> Tensor:
    """Attention ``(all queries, H, D)`` of texts that stand one after the other, each to its own keys.

    Args:
        q, k, v: ``(all queries, H, D)``, ``(all keys, H_kv, D)``; with ``block_table``, k and v are caches of blocks
            ``(blocks, block size, H_kv, D)``.
        cu_seqlens_q, cu_seqlens_k: ``(texts + 1,)`` integers: where each text's queries and keys begin, then their
            numbers.
        block_table: ``(texts, most blocks)`` integers: the blocks with a text's keys, in order.

    The other arguments are those of :func:`flash_attn_func`.
    """
    refuse(alibi_slopes=alibi_slopes, return_attn_probs=return_attn_probs)
    settings = Settings.of(q, dropout_p, softmax_scale, causal, window_size, softcap, s_aux)
    check(q, k, v, s_aux, (3, 3 + (block_table is not None)))
    check_integers("cu_seqlens_q", cu_seqlens_q)
    check_integers("cu_seqlens_k", cu_seqlens_k)
    of_q, of_k = len(cu_seqlens_q) - 1, len(cu_seqlens_k) - 1
    if of_q != of_k:
        raise ValueError(f"cu_seqlens_q names {of_q} texts and cu_seqlens_k {of_k}; they must be the same texts.")
    if block_table is not None:
        check_integers("block_table", block_table, 2)
        lengths = cu_seqlens_k.diff().tolist()
        k, v = keys_of_blocks(k, v, lengths, blocks_in_use(k, lengths, block_table))
    offsets, longest = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    return attend(q, k, v, offsets, longest, settings)


def blocks_in_use(k: Tensor, lengths: Sequence[int], block_table: Tensor) -> list[Tensor]:
    """The blocks of each text with this number of keys, from a cache of blocks ``(blocks, block size, H_kv, D)``.

    Raises:
        ValueError: the table has another shape than one row for each text, with blocks for its keys, or a block that
            the cache does not have. On a GPU, the blocks are not read.
    """
    size, longest = k.shape[1], max(lengths, default=0)
    if len(block_table) != len(lengths) or block_table.shape[1] * size < longest or min(lengths, default=0) < 0:
        raise ValueError(
            f"block_table, or the cache without one, has shape {tuple(block_table.shape)}, but needs a row for each "
            f"of {len(lengths)} texts, with blocks of {size} for {min(lengths, default=0)} to {longest} keys."
        )
    tables = [table[: -(-length // size)] for table, length in zip(block_table, lengths, strict=True)]
    used = [block for table in tables if table.is_cpu for block in table.tolist()]
    if used and not 0 <= min(used) <= max(used) < len(k):
        raise ValueError(f"block_table has blocks {min(used)} to {max(used)}; the cache has 0 to {len(k) - 1}.")
    return tables


def keys_of_blocks(k: Tensor, v: Tensor, lengths: Sequence[int], tables: list[Tensor]) -> Iterator[Tensor]:
    """Keys and values ``(sum of lengths, H_kv, D)`` of texts in these blocks of caches."""
    for x in (k, v):
        texts = [x[blocks].flatten(0, 1)[:length] for blocks, length in zip(tables, lengths, strict=True)]
        yield torch.cat([x[:0].flatten(0, 1), *texts])


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float | None = None,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    s_aux: Tensor | None = None,
) -> Tensor:
    """Attention ``(B, N, H, D)`` to the first keys of a cache, after new ones were written behind them, in place.

    Args:
        q: ``(B, N, H, D)``.
        k_cache, v_cache: ``(B, most keys, H_kv, D)``; with ``block_table``, ``(blocks, block size, H_kv, D)``.
        k, v: ``(B, new keys, H_kv, D)``, or ``None``.
        cache_seqlens: ``(B,)`` integers or one: keys that each row of the cache has before; all by default.
        block_table: ``(B, most blocks)`` integers: the blocks of each row.

    The other arguments are those of :func:`flash_attn_func`.

    Raises:
        NotImplementedError: rotation, rows by index, padding on the left, ALiBi, or the log-sum-exp.
        ValueError: there is no room for the new keys.
    """
    refuse(rotary_cos=rotary_cos, rotary_sin=rotary_sin, cache_batch_idx=cache_batch_idx)
    refuse(cache_leftpad=cache_leftpad, alibi_slopes=alibi_slopes, return_softmax_lse=return_softmax_lse)
    settings = Settings.of(q, 0.0, softmax_scale, causal, window_size, softcap, s_aux)
    check(q, k_cache, v_cache, s_aux)
    batch, q_len = q.shape[:2]
    size, new = k_cache.shape[1], 0
    if block_table is None:
        block_table = torch.arange(len(k_cache), device=q.device)[:batch, None]  # a row is one block
    check_integers("block_table", block_table, 2)
    if k is not None or v is not None:
        if k is None or v is None:
            raise ValueError("k and v must be given together: new keys, and a value for each.")
        if not k.shape == v.shape == (batch, *k.shape[1:2], *k_cache.shape[2:]):
            shapes = f"{tuple(k.shape)} and {tuple(v.shape)}; q has {tuple(q.shape)}, k_cache {tuple(k_cache.shape)}"
            raise ValueError(f"New k and v must have the rows of q and the heads of the cache; they have {shapes}.")
        new = k.shape[1]
    room = block_table.shape[1] * size
    if cache_seqlens is None:
        cache_seqlens = room
    if isinstance(cache_seqlens, int):
        cache_seqlens = torch.full((batch,), cache_seqlens)
    check_integers("cache_seqlens", cache_seqlens)
    lengths = [length + new for length in cache_seqlens.tolist()]
    if len(lengths) != batch or min(lengths, default=new) < new or max(lengths, default=0) > room:
        had = cache_seqlens.tolist()
        raise ValueError(f"cache_seqlens {had} must be {batch} numbers from 0; {room} at most with {new} new keys.")
    tables = blocks_in_use(k_cache, lengths, block_table)
    if k is not None and v is not None:
        at = cache_seqlens.to(q.device)[:, None] + torch.arange(new, device=q.device)
        blocks = block_table.gather(1, at // size).long()
        k_cache[blocks, at % size], v_cache[blocks, at % size] = k, v
    keys, values = keys_of_blocks(k_cache, v_cache, lengths, tables)
    offsets = torch.arange(batch + 1) * q_len, F.pad(torch.tensor(lengths).cumsum(0), (1, 0))
    out = attend(q.reshape(-1, *q.shape[2:]), keys, values, offsets, (q_len, max(lengths, default=0)), settings)
    return out.view(batch, q_len, *out.shape[1:])
