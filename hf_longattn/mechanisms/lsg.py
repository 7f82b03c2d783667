"""LSG attention: local, sparse and global keys under one softmax (Condevaux & Harispe 2022, LSG Attention, section 3).

The sequence is cut into blocks of b tokens, counted from the first real token. Queries of block I see

    local:   the blocks I-1, I, I+1
    sparse:  S sparse keys on each side, from the next S·f/b blocks; with the sparsity factor f, each block has b/f sparse keys
    global:  the global tokens; a query that is global itself sees all tokens (and no means)

Each token counts once, and global tokens are never sparse keys. Every selection has a causal form, in which queries see the keys up to
their own and the sparse keys of complete past blocks. By default the first token is global and belongs to the first block, as in the
authors' attention layer. Models of their converter prepend global tokens and count blocks after them, as ``block_offset`` does here.
The converter's selection ``bos_pooling`` is not implemented.

Sparse keys come from cells of c tokens. Each cell gives m = c / f sparse keys. Head h takes (section 3.2)

    strided:          the tokens at the offsets h mod f, h mod f + f, h mod f + 2f, …
    block_strided:    the m tokens from the offset m · (h mod f) on
    max_norm:         the m tokens whose keys have the highest norm ‖k_j‖; ties go to the earlier one
    average_pooling:  the mean key and the mean value of every f consecutive tokens
    lsh:              the mean key and the mean value of each of m clusters, g_j = argmax [x_j R; -x_j R], R ∈ R^(D × m/2) Gaussian

A cell is a block, so c = b. For max_norm and lsh, a cell has min(b, S) tokens if that is a multiple of f and divides b, as in the authors'
converter. For lsh, x_j is the key k_j; after a pre-round, it is the sum of the keys in its cluster. A pre-round hashes into c clusters with
its own directions. A mean is an additional key, and its weight counts for its tokens in equal shares. Padding and global tokens are never
chosen and never enter a mean. Choices and clusters are computed in float64, without gradients. Gradients flow through means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.common.byte_cache import BYTE_CACHE
from ..engines.common.call import AttentionCall, GatherTile, mark_static, rows_of
from ..engines.common.dense import dense_attention, grid_of, index_grid, repeat_heads
from ..engines.common.derivatives import map_one_by_one
from ..engines.common.global_rows import global_index, overwrite_global_rows
from ..engines.common.score_terms import remapped
from ..engines.dispatch import choose
from ..engines.gathered import gathered_attention
from ..engines.topk import exact_dtype, topk
from ..errors import OptionError
from ..options import Options, option
from ..positions.distances import Locality
from .common.base import Mechanism
from .common.layout import full_pairs, joined, neighbourhoods
from .common.ordered import KeysOrWeights
from .common.pooled import PooledKeys, pooled_weights, uniform
from .common.registry import register_mechanism
from .common.scores import pad_queries, visible_to_all
from .common.token_rules import check_counted, global_tokens
from .common.traits import Handling

CHOOSING_SELECTIONS = ("strided", "block_strided", "max_norm")
AVERAGING_SELECTIONS = ("average_pooling", "lsh")
SELECTIONS = CHOOSING_SELECTIONS + AVERAGING_SELECTIONS
WITHIN_SPARSE_BLOCKS = ("max_norm", "lsh")
"""Selections that compare the tokens of a cell. Cells then have min(b, S) tokens if possible."""


@dataclasses.dataclass(frozen=True)
class LsgOptions(Options):
    block_size: int = option(128, "b, tokens in a block; a query sees its block and the one on either side", "tokens", least=1)
    sparse_block_size: int = option(128, "S, sparse keys that a query sees on each side; 0 for none", "keys", least=0)
    sparsity_factor: int = option(4, "f, tokens for each sparse key", "tokens", least=1)
    selection: str = option("max_norm", f"how sparse keys are found: {', '.join(SELECTIONS)}", choices=SELECTIONS)
    global_tokens: tuple[int, ...] = option(
        (0,),
        "positions, counted from the first real token, that are global if no global_attention_mask is given; none = no token",
        "positions",
    )
    seed: int = option(0, "seed of the hash directions of selection='lsh'", least=0)
    lsh_pre_rounds: int = option(
        1,
        "rounds of selection='lsh' that merge similar keys before the last round; lsh_num_pre_rounds of the authors' converter",
        "rounds",
        least=0,
    )
    block_offset: int = option(
        0,
        "tokens before the first block, which form a block themselves: 0 as in the authors' layer; for the models of their converter, the "
        "number of global tokens in front",
        "tokens",
        least=0,
    )

    def check(self) -> None:
        check_counted("lsg", "global_tokens", self.global_tokens, "positions", example=0)
        if self.block_offset >= self.block_size:
            raise OptionError(
                f"Option 'block_offset' of mechanism 'lsg' is {self.block_offset}, but must be less than block_size={self.block_size}; for "
                "example block_offset=1 for one global token in front."
            )
        if self.sparse_block_size:
            self._check_cells()

    def _check_cells(self) -> None:
        size, factor, sparse = self.block_size, self.sparsity_factor, self.sparse_block_size
        if size % factor:
            raise OptionError(
                f"Option 'sparsity_factor' of mechanism 'lsg' is {factor}, but must divide block_size={size}, since every block gives "
                "block_size / sparsity_factor sparse keys; for example sparsity_factor=2 for an even block_size."
            )
        if sparse * factor % size:
            raise OptionError(
                f"Option 'sparse_block_size' of mechanism 'lsg' is {sparse}, but must be a multiple of block_size / sparsity_factor = "
                f"{size // factor}, the sparse keys of one block; for example sparse_block_size={size}."
            )
        keys = self.cells.keys
        if self.selection == "lsh" and factor > 1 and keys > 1 and keys % 2:
            raise OptionError(
                f"With selection='lsh' of mechanism 'lsg', {self.cells.size} tokens have {keys} clusters, but that must be even, one for "
                "each sign of a direction; choose another sparsity_factor."
            )

    @property
    def cells(self) -> Cells:
        """The cells from which sparse keys are taken."""
        size, block = min(self.block_size, self.sparse_block_size or self.block_size), self.block_size
        if self.selection in WITHIN_SPARSE_BLOCKS and block % size == 0 and size % self.sparsity_factor == 0:
            return Cells(size, self.sparsity_factor, block // size)
        return Cells(block, self.sparsity_factor)


@register_mechanism("lsg")
class Lsg(Mechanism):
    """Softmax over neighbouring blocks, sparse keys of the blocks beyond, and global tokens."""

    summary = "own and neighbouring blocks, sparse keys of the blocks beyond them, and global tokens"
    paper = "Condevaux & Harispe 2022, LSG Attention, §3"
    when = "an encoder without training in which each block should also see a sparse selection of its surroundings; LSG checkpoints"
    engine = "gathered"
    handling = Handling(exports_definition=True)
    cost = "N·(3b + 2S + g), with g global tokens"
    traits = Mechanism.traits.but(takes_globals=True)
    sample: ClassVar[dict[str, Any]] = {"block_size": 16, "sparse_block_size": 16, "sparsity_factor": 4}

    @classmethod
    def covering(cls, length: int, causal: bool) -> dict[str, Any]:
        return {"block_size": length, "sparse_block_size": 0}

    options: LsgOptions

    @property
    def per_head_tensors(self) -> tuple[str, ...] | None:  # type: ignore[override]
        return None if self.options.selection == "lsh" else ()  # lsh draws directions for all heads together

    @property
    def cells(self) -> Cells:
        return self.options.cells

    @property
    def missing(self) -> int:
        """Number of padding tokens that fill the block before the first one; 0 without such a block."""
        return -self.options.block_offset % self.options.block_size

    @property
    def beyond(self) -> int:
        """Number of blocks on either side, beyond the local ones, that provide sparse keys."""
        return self.options.sparse_block_size * self.options.sparsity_factor // self.options.block_size

    def locality(self, causal: bool) -> Locality | None:
        size = self.options.block_size
        seen = (2 + self.beyond) * size - 1
        return None if self.options.block_offset else Locality(seen, 0 if causal else seen, size, beside="globals")

    def covers(self, length: int, causal: bool = False) -> bool:
        return length <= self.options.block_size + (self.options.block_offset or self.options.block_size)

    def pairs(self, length: int, causal: bool = False) -> int:
        dense = full_pairs(length, causal)
        if self.covers(length, causal):
            return dense
        position, size = torch.arange(length), self.options.block_size
        block = (position + self.missing) // size
        sizes = F.pad(torch.bincount(block), (1, 1))  # tokens of each block, with an empty block at either end
        sides = (block - 1).clamp(0, self.beyond)
        if causal:
            local = position - (sizes.cumsum(0) - sizes)[block + 1] + 1 + sizes[block]
        else:
            local = sizes[block] + sizes[block + 1] + sizes[block + 2]
            sides = sides + (len(sizes) - 4 - block).clamp(0, self.beyond)
        crossing = len(self.options.global_tokens) * length * (1 if causal else 2)
        return min(dense, int((local + sides * (size // self.options.sparsity_factor)).sum()) + crossing)

    def resolve_globals(self, k: Tensor, call: AttentionCall) -> Tensor | None:
        return global_tokens(self.options.global_tokens, k, call)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        (q_len, kv_len), missing = (q.shape[2], k.shape[2]), self.missing
        path = choose("pairs", q, k, call, covered=self.covers(kv_len, call.causal))
        if path == "dense":
            return dense_attention(q, k, v, call)
        small, given = path == "dense-masked", call.global_mask is not None
        call = call.replace(global_mask=self.resolve_globals(k, call))
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        q = q if small else pad_queries(q, kv_len)
        if missing:  # fill the block before the first one with padding
            call, q = _shifted(call, missing, k), q if small else F.pad(q, (0, 0, missing, 0))
            k, v = (F.pad(x, (0, 0, missing, 0)) for x in (k, v))
        if small:
            return self.dense_path(q, k, v, call)
        max_globals = min(len(set(self.options.global_tokens)), kv_len) if not given else None
        return self.sparse_path(q, k, v, call, max_globals)[:, :, missing + kv_len - q_len :]

    def sparse_path(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, max_globals: int | None) -> Tensor:
        """Attention of whole sequences with the first block at position 0. ``max_globals``: most global tokens; ``None`` if unknown."""
        length, rows, blocks = k.shape[2], rows_of(k.shape[2], self.options.block_size, q.device), self.cells.blocks(k.shape[2])
        tokens, real, choosable = call.global_mask, call.key_mask, _choosable(call)
        seen = KeyRows(self.cells, self.beyond, call.causal)
        parts = [*self._local_parts(length, call.causal, q.device)]
        every_k, every_v, extended_call, chosen, sparse = k, v, call, None, None
        if self.beyond and self.options.selection in CHOOSING_SELECTIONS:
            with torch.no_grad():
                chosen = chosen_keys(self.options.selection, k, choosable, self.cells).unflatten(2, (blocks, -1)).flatten(3)
            sparse = seen.chosen(chosen)
        elif self.beyond:
            means = self._means(k, v, choosable, call.seed)
            every_k, every_v, extended_call = means.appended(k, v, call)
            place = torch.arange(length, every_k.shape[2], device=k.device).view(1, 1, blocks, -1)
            cut = length % self.cells.factor or length % self.cells.block
            if real is not None or cut or self.options.selection == "lsh" or self._empties_runs(tokens, max_globals):
                place = torch.where(means.real.unflatten(2, place.shape[2:]), place, -1)
            parts += [GatherTile(rows, keys) for keys in seen.means(place)]
        index, present = (None, None) if tokens is None else _places(tokens, max_globals)
        if index is None or present is None or not index.shape[1]:
            parts += [] if sparse is None else [GatherTile(rows, sparse)]
            return gathered_attention(q, every_k, every_v, parts, extended_call)
        keys = seen.global_keys(torch.where(present, index, -1), chosen, length)
        parts.append(GatherTile(rows, keys if sparse is None else joined(sparse, keys), causal=call.causal))
        out = gathered_attention(q, every_k, every_v, parts, extended_call)
        return overwrite_global_rows(out, q, k, v, index, present, call)

    def _local_parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        """The tile of each block with its neighbouring blocks, cached for the next call."""

        def make() -> tuple[GatherTile, ...]:
            size = self.options.block_size
            return mark_static([GatherTile(rows_of(length, size, device), neighbourhoods(length, size, causal, device), causal=causal)])

        return BYTE_CACHE.get(("neighbouring blocks", self.options.block_size, length, causal, device), make)

    def _empties_runs(self, tokens: Tensor | None, max_globals: int | None) -> bool:
        """Whether all tokens of some mean (``sparsity_factor`` consecutive tokens) may be global. This mean is then empty."""
        if tokens is None or max_globals is None:
            return tokens is not None
        wanted, factor = {position + self.missing for position in self.options.global_tokens}, self.options.sparsity_factor
        return any(wanted.issuperset(range(position // factor * factor, (position // factor + 1) * factor)) for position in wanted)

    def _means(self, k: Tensor, v: Tensor, choosable: Tensor | None, seed: int) -> PooledKeys:
        o = self.options
        return means_of_cells(o.selection, k, v, choosable, self.cells, o.seed + seed, o.lsh_pre_rounds)

    def dense_path(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """Attention by comparing all pairs, for one query or few tokens. The queries are the last tokens."""
        (batch, heads, q_len, _), length, size = q.shape, k.shape[2], self.options.block_size
        _, _, i, j = index_grid(batch, heads, q_len, length, q.device)
        is_global, choosable, means = call.global_mask, _choosable(call), None
        away = (i // size - j // size).abs()
        seen = (away <= 1).expand(batch, heads, q_len, length)
        if self.beyond and self.options.selection in CHOOSING_SELECTIONS:
            places = chosen_keys(self.options.selection, k, choosable, self.cells)
            places = torch.where(places < 0, length, places).flatten(2).expand(batch, -1, -1)
            taken = torch.zeros(batch, heads, length + 1, dtype=torch.bool, device=q.device).scatter(2, places, True)[:, :, None, :length]
            seen = seen | (taken & (away <= 1 + self.beyond))
        elif self.beyond:
            means = self._means(k, v, choosable, call.seed)
        rows = None if is_global is None else is_global[:, None, length - q_len :, None]
        if is_global is not None and rows is not None:
            seen = seen | rows | is_global[:, None, None]
        seen = seen & visible_to_all(q, k, call)
        if means is not None:
            before = i // size - torch.arange(means.keys.shape[2], device=q.device) // (size // self.options.sparsity_factor)
            past = before if call.causal else before.abs()
            far = (past >= 2) & (past <= 1 + self.beyond) & means.real[:, :, None]
            seen = torch.cat([seen, far if rows is None else far & ~rows], -1)
            k, v, call = means.appended(k, v, call)
        return dense_attention(q, k, v, call.replace(causal=False, batch=None), mask_mod=lambda *_: seen, q_idx=i)

    def attended_keys(self, q: Tensor, k: Tensor, call: AttentionCall) -> KeysOrWeights | None:
        if self.beyond and self.options.selection in AVERAGING_SELECTIONS:
            return None
        length, missing, taken = k.shape[2], self.missing, None
        block = (torch.arange(length, device=k.device) + missing) // self.options.block_size
        tokens = self.resolve_globals(k, call)
        if self.beyond:
            shifted = _shifted(call.replace(global_mask=tokens), missing, k) if missing else call.replace(global_mask=tokens)
            keys = F.pad(repeat_heads(k, q.shape[1]), (0, 0, missing, 0)).detach()
            places = chosen_keys(self.options.selection, keys, _choosable(shifted), self.cells).flatten(2)
            places = torch.where(places < missing, missing + length, places) - missing
            taken = torch.zeros(*places.shape[:2], length + 1, dtype=torch.bool, device=k.device).scatter_(2, places, True)[..., None, :-1]

        def keeps(rows: Tensor, scores: Tensor) -> Tensor:
            away = (block[rows][:, None] - block).abs()
            seen = (away <= 1)[None, None]
            if taken is not None:
                seen = seen | (taken & (away <= 1 + self.beyond))
            return seen if tokens is None else seen | tokens[:, None, None] | tokens[:, None, rows, None]

        return keeps

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        k, size, first = repeat_heads(k, q.shape[1]), self.options.block_size, -self.missing
        _, _, i, j = grid_of(q, k)
        away = torch.div(j - first, size, rounding_mode="floor") - torch.div(i - first, size, rounding_mode="floor")
        far = (away.abs() >= 2) & (away.abs() <= 1 + self.beyond)
        tokens, seen, everything = self.resolve_globals(k, call), away.abs() <= 1, torch.zeros_like(away, dtype=torch.bool)
        choosable = call.real(k) if tokens is None else call.real(k) & ~tokens
        chosen, spread = sparse_definition(self.options, self.cells, k.detach(), choosable, first, call.seed)
        if chosen is not None:
            seen = seen | (far & chosen)
        if tokens is not None:
            everything = tokens[:, None, k.shape[2] - q.shape[2] :, None]
            seen = seen | tokens[:, None, None] | everything
        # A mean is seen if its tokens lie in a block beyond the local ones, and before them in the causal form.
        far = (far & ((away < 0) | (not call.causal))).to(q.dtype).expand(*q.shape[:3], -1)
        means_seen = (far @ spread.transpose(-1, -2) > 0) & ~everything[..., :1]
        return pooled_weights(q, k, spread, spread > 0, seen & visible_to_all(q, k, call), means_seen, call)


def _shifted(call: AttentionCall, places: int, k: Tensor) -> AttentionCall:
    """The call for sequences with ``places`` tokens of padding in front. ``k`` are the keys without this padding."""

    def earlier(index: Tensor) -> Tensor:
        return (index - places).clamp(min=0)

    score_mod = remapped(call.score_mod, queries=earlier, keys=lambda b, h, kv_idx: earlier(kv_idx))
    tokens = None if call.global_mask is None else F.pad(call.global_mask, (places, 0), value=False)
    return call.replace(score_mod=score_mod, global_mask=tokens).with_mask(F.pad(call.real(k), (places, 0), value=False))


def _choosable(call: AttentionCall) -> Tensor | None:
    """The tokens that may be sparse keys, ``(B, N)`` bool: real and not global. ``None`` if all may be."""
    real, tokens = call.key_mask, call.global_mask
    if tokens is None:
        return real
    return ~tokens if real is None else real & ~tokens


def _places(tokens: Tensor, max_globals: int | None) -> tuple[Tensor, Tensor]:
    """Positions ``(B, g)`` of the global tokens, and a mask ``(B, g)`` of the slots in use. ``max_globals`` bounds g, if known."""
    if max_globals is None:
        return global_index(tokens)
    index = tokens.int().argsort(dim=-1, descending=True, stable=True)[:, :max_globals]
    return index, tokens.gather(1, index)


class Cells(NamedTuple):
    """Cells of ``size`` tokens, ``in_block`` of them per block. Every ``factor`` tokens give one sparse key."""

    size: int
    factor: int
    in_block: int = 1

    @property
    def keys(self) -> int:
        """Number of sparse keys per cell."""
        return self.size // self.factor

    @property
    def block(self) -> int:
        """Number of tokens per block."""
        return self.size * self.in_block

    def blocks(self, length: int) -> int:
        return (length + self.block - 1) // self.block

    def count(self, length: int) -> int:
        """Number of cells for a sequence of ``length`` tokens, with the last block completed."""
        return self.blocks(length) * self.in_block


def chosen_keys(selection: str, k: Tensor, real: Tensor | None, cells: Cells) -> Tensor:
    """Positions ``(B or 1, H, cells, m)`` of the sparse keys in every cell of ``k (B, H, N, D)``; -1 in empty slots."""
    heads, length = k.shape[1:3]
    count, keys_per_cell = cells.count(length), cells.keys
    first = torch.arange(count, device=k.device).view(1, 1, -1, 1) * cells.size
    if selection == "max_norm":
        norms = torch.linalg.vector_norm(k.detach(), dim=-1, dtype=exact_dtype(k.device))
        if real is not None:
            norms = norms.masked_fill(~real[:, None], float("-inf"))
        norms = F.pad(norms, (0, count * cells.size - length), value=float("-inf"))
        place = topk(norms.unflatten(2, (count, cells.size)), keys_per_cell)
        return torch.where(place >= 0, place + first, -1)
    offset = (torch.arange(heads, device=k.device) % cells.factor).view(1, -1, 1, 1)
    slot = torch.arange(keys_per_cell, device=k.device)
    place = first + (slot * cells.factor + offset if selection == "strided" else slot + keys_per_cell * offset)
    return torch.where(place < length, place, -1)


def means_of_cells(selection: str, k: Tensor, v: Tensor, real: Tensor | None, cells: Cells, seed: int, pre_rounds: int) -> PooledKeys:
    """Mean keys and values of the cells of ``k, v (B, H, N, D)``, over the tokens in ``real (B, N)``."""
    (batch, heads, length, _), count, keys_per_cell = k.shape, cells.count(k.shape[2]), cells.keys
    if real is None:
        real = torch.ones(batch, length, dtype=torch.bool, device=k.device)
    if selection == "lsh":
        group = clusters(k.detach(), real, cells.size, keys_per_cell, pre_rounds, seed)
    else:
        group = (torch.arange(length, device=k.device) % cells.size // cells.factor).expand(batch, heads, -1)
    missing = count * cells.size - length
    group = F.pad(group.masked_fill(~real[:, None], -1), (0, missing), value=-1).unflatten(2, (count, cells.size))
    member = group[..., None, :] == torch.arange(keys_per_cell, device=k.device)[:, None]  # (B, H, cells, m, b)
    number = member.sum(-1)
    precise = torch.promote_types(k.dtype, torch.float32)
    share = member.to(precise) / number.clamp(min=1)[..., None]
    keys, values = (
        (share.to(x.dtype) @ F.pad(x, (0, 0, 0, missing)).unflatten(2, (count, cells.size))).flatten(2, 3).to(x.dtype) for x in (k, v)
    )
    places = torch.arange(count * cells.size, device=k.device).view(count, 1, cells.size)
    position = (member * places).sum(-1) // number.clamp(min=1)
    return PooledKeys(keys, values, (number > 0).flatten(2), position.flatten(2))


@torch.library.custom_op("hf_longattn::lsg_clusters", mutates_args=())
def clusters(k: Tensor, real: Tensor, size: int, many: int, pre_rounds: int, seed: int) -> Tensor:
    """Cluster number of every key of ``k (B, H, N, D)`` in its cell of ``size`` tokens: ``(B, H, N)`` int64 below ``many``."""
    (batch, heads, length, width), count = k.shape, -(-k.shape[2] // size)
    place = torch.arange(size, device=k.device)
    if many in (1, size):  # one cluster for all tokens, or one for each token
        return (place % many).repeat(count)[:length].expand(batch, heads, -1).clone()
    rounds = [size] * pre_rounds + [many]
    keys = k.to(exact_dtype(k.device)).masked_fill(~real[:, None, :, None], 0.0)
    vectors = F.pad(keys, (0, 0, 0, count * size - length)).unflatten(2, (count, size))
    group = place.expand(batch, heads, count, -1)
    for clustered, rotation in zip(rounds, directions(seed, heads, width, rounds, k.device), strict=True):
        products = vectors @ rotation[:, None]
        index = torch.cat([products, -products], -1).argmax(-1)
        group = index.gather(-1, group)
        if clustered == size:  # a further round hashes the clusters' sums
            vectors = torch.zeros_like(vectors).scatter_add(3, index[..., None].expand_as(vectors), vectors)
    return group.flatten(2)[:, :, :length].contiguous()


map_one_by_one(clusters)


@clusters.register_fake
def _(k, real, size, many, pre_rounds, seed):  # type: ignore[no-untyped-def]
    return k.new_empty(k.shape[:3], dtype=torch.int64)


def directions(seed: int, heads: int, head_dim: int, rounds: Sequence[int], device: torch.device) -> list[Tensor]:
    """R of every round, ``(H, D, clusters / 2)`` in float64, equal on every device. ``rounds``: number of clusters in each round."""

    def make() -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        drawn = [
            torch.randn(heads, head_dim, clusters_in_round // 2, generator=generator, dtype=torch.float64, device="cpu")
            for clusters_in_round in rounds
        ]
        return [rotation.to(device, exact_dtype(device)) for rotation in drawn]

    return BYTE_CACHE.get(("rotations of lsg", seed, heads, head_dim, tuple(rounds), device), make)


class KeyRows(NamedTuple):
    """Tables of the keys that a block of queries sees, with one row per block; -1 in empty slots.
    A block sees its neighbours and the sparse keys of ``beyond`` further blocks on either side. The causal form has past blocks only."""

    cells: Cells
    beyond: int
    causal: bool

    def chosen(self, place: Tensor) -> Tensor:
        """Visible sparse keys that are tokens, ``(B or 1, H or 1, blocks, ≤ 2S)``, from ``place (B or 1, H or 1, blocks, b/f)``."""
        count, most = place.shape[2], self.beyond
        row = torch.arange(count, device=place.device)[:, None]
        before = (row - 1).clamp(0, most)
        after = torch.zeros_like(row) if self.causal else (count - 2 - row).clamp(0, most)
        slot = torch.arange(max(1, min(most, count - 2), 0 if self.causal else min(2 * most, count - 3)), device=place.device)
        cell = torch.where(slot < before, row - 1 - before + slot, row + 2 - before + slot)
        keys = place[:, :, cell.clamp(0, count - 1)]
        return keys.masked_fill((slot >= before + after)[..., None], -1).flatten(-2)

    def means(self, place: Tensor) -> list[Tensor]:
        """Visible mean keys, before and after each block: ``(B or 1, H or 1, blocks, S)`` each. ``place`` is as in :meth:`chosen`."""
        count = place.shape[2]
        row = torch.arange(count, device=place.device)[:, None]
        sides = []
        for start in (-1 - self.beyond, 2)[: 1 if self.causal else 2]:
            cell = row + start + torch.arange(self.beyond, device=place.device)
            inside = (cell >= 0) & (cell < count)
            keys = place[:, :, cell.clamp(0, count - 1)].masked_fill(~inside[..., None], -1)
            sides.append(keys.flatten(-2))
        return sides

    def global_keys(self, index: Tensor, chosen: Tensor | None, length: int) -> Tensor:
        """The global keys ``index (B, g)`` for each block, ``(B, H or 1, blocks, g)``; -1 for keys that the block sees already.

        chosen: sparse keys that are tokens, ``(B or 1, H, blocks, b/f)``, or None.
        """
        away = (index // self.cells.block)[:, None, None] - torch.arange(self.cells.blocks(length), device=index.device)[:, None]
        again = away.abs() <= 1
        if chosen is not None:
            places = torch.where(chosen < 0, length, chosen).flatten(2).expand(index.shape[0], -1, -1)
            taken = torch.zeros(*places.shape[:2], length + 1, dtype=torch.bool, device=index.device).scatter(2, places, True)
            taken = taken.gather(2, index.clamp(min=0)[:, None].expand(-1, places.shape[1], -1))[:, :, None]
            again = again | (taken & (away.abs() <= 1 + self.beyond))
        return torch.where(again, -1, index[:, None, None])


def sparse_definition(options: LsgOptions, cells: Cells, k: Tensor, real: Tensor, start: int, seed: int) -> tuple[Tensor | None, Tensor]:
    """Definition of the sparse keys: either a mask of chosen tokens, or the weight of every token in every mean.

    Args:
        k: ``(B, H, N, D)``.
        real: ``(B, N)`` bool, tokens that may be chosen.
        start: position where the first block starts, 0 or less.
    Returns:
        The mask, ``(B or 1, H, 1, N)`` bool; ``None`` for means.
        The weights, ``(B, H, M, N)`` for M means; M = 0 for chosen tokens. Rows sum to 1, or to 0 for an empty mean.
    """
    selection, (batch, heads, length, _) = options.selection, k.shape
    place = (torch.arange(length, device=k.device) - start).view(1, 1, 1, -1)
    cell = torch.div(place, cells.size, rounding_mode="floor")
    offset = torch.arange(heads, device=k.device).view(1, -1, 1, 1) % cells.factor
    nothing = k.new_zeros(batch, heads, 0, length)
    if cells.block % cells.factor:  # there are no sparse keys
        return torch.zeros_like(cell, dtype=torch.bool), nothing
    if selection == "strided":
        return place % cells.factor == offset, nothing
    if selection == "block_strided":
        return place % cells.block // (cells.block // cells.factor) == offset, nothing
    together = cell == cell.transpose(-1, -2)
    if selection == "max_norm":
        norm, other_norm = (k.double().square().sum(-1).unsqueeze(axis) for axis in (2, 3))
        higher = (other_norm > norm) | ((other_norm == norm) & (place.transpose(-1, -2) < place))
        return (together & real[:, None, :, None] & higher).sum(2, keepdim=True) < cells.keys, nothing
    group = place % cells.size // cells.factor
    if selection == "lsh" and cells.factor > 1:
        group = _hashed(options, cells, k, real, together, seed)[:, :, None]
    mean = torch.arange(cells.count(length - start) * cells.keys, device=k.device)[:, None]
    member = (mean == cell * cells.keys + group) & real[:, None, None]
    return None, uniform(member.expand(batch, heads, -1, -1), k.dtype)


def _hashed(options: LsgOptions, cells: Cells, k: Tensor, real: Tensor, together: Tensor, seed: int) -> Tensor:
    """Cluster number of every token, ``(B, H, N)``. ``together (1, 1, N, N)`` is True for tokens of one cell."""
    if cells.keys == 1:
        return torch.zeros(k.shape[:3], dtype=torch.long, device=k.device)
    rounds = [cells.size] * options.lsh_pre_rounds + [cells.keys]
    keys = (k * real[:, None, :, None]).double()
    sums = keys
    for rotation in directions(options.seed + seed, k.shape[1], k.shape[3], rounds, k.device):
        cluster = torch.cat([sums @ rotation, -sums @ rotation], -1).argmax(-1)
        sums = (together & (cluster[..., None] == cluster[..., None, :])).double() @ keys
    return cluster
