"""Locality-sensitive hashing attention (Kitaev et al. 2020, Reformer, section 2).

Round r hashes the direction of a vector x by a random rotation (Andoni et al. 2015):

    h_r(x) = argmax over [x R_r ; -x R_r]                        R_r (D, num_buckets/2), normal, from the seed

The tokens are sorted by (bucket, position), the sorted order is cut into chunks of ``bucket_size``, and

    bidirectional:  query i sees the chunk into which (h_r(q_i), i) would be sorted, and the neighbouring chunks;
                    the last chunk is a neighbour of the first
    causal:         query i sees the last ``bucket_size`` keys j <= i with h_r(k_j) = h_r(q_i)

The keys of all rounds are one set, in which each key counts once (equation 6 and appendix A of the paper). With
``count_duplicates``, a key counts once for each round in which the query sees it, as in implementations that merge the
rounds by their log-sum-exp.

In the published causal form, later tokens shift the chunks, so that the keys of a query depend on the future. The
causal form here depends on earlier tokens only. Decoding token by token therefore equals one pass over the text.

``shared_qk`` is the published form. A token has one vector x: the key of its layer, since a cache keeps keys. Its
query is x, its key is x / rms(x), and the token sees itself only if it sees no other key.

Without ``shared_qk``, queries and keys are hashed by the same rotations. The argmax makes normalisation unnecessary.
(The asymmetric transformations of inner-product search, Neyshabur and Srebro 2015, would need the largest norm of all
keys, and so the future.) A causal query that finds no key in any round sees itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..engines import accelerator
from ..engines.batch import without_autocast
from ..engines.bucketed import ChunkRounds, RecentRounds, Rounds, buckets_of_documents, chunk_offsets
from ..engines.call import AttentionCall, GatherTile
from ..engines.dense import at_least_fp32, repeat_heads
from ..engines.topk import exact_dtype
from ..errors import OptionError
from .common.base import LayerSizes
from .common.buckets import BucketedMechanism, recent_in_bucket
from .common.capabilities import About
from .common.layout import full_pairs
from .common.options import Options, option
from .common.registry import register_mechanism

DEFAULT_LENGTH = 4096
"""Length in tokens that sets the number of buckets if the longest input is unknown."""
FACTOR_ABOVE = 32
"""Number of buckets above which two smaller hashes replace one hash, if the number is a power of two."""
MAX_SINGLE_HASH = 1024
"""Maximum buckets of a single hash, whose time is proportional to the number of buckets."""


@dataclasses.dataclass(frozen=True)
class LSHOptions(Options):
    num_hashes: int = option(4, "rounds of hashing", "rounds", most=32, least=1)
    bucket_size: int = option(
        64,
        "tokens in a chunk of the sorted order; when causal, keys of its bucket that a query sees",
        "tokens",
        least=1,
    )
    num_buckets: int | None = option(
        None,
        "buckets of a round, 1 or even; default: the power of two at or below 2·max_length/bucket_size",
        "buckets",
        most=65536,
    )
    shared_qk: bool = option(False, "each token's key is its query as well: the published form")
    num_chunks_before: int = option(
        1, "chunks seen before the query's own; bidirectional only", "chunks", most=1024, least=0
    )
    num_chunks_after: int = option(
        0, "chunks seen after the query's own; bidirectional only", "chunks", most=1024, least=0
    )
    count_duplicates: bool = option(False, "a key found in several rounds counts once for each of them")
    seed: int = option(0, "seed of the rotations")

    def check(self) -> None:
        """Refuse numbers of buckets that neither one hash nor two hashes can give."""
        if self.num_buckets is not None and self.num_buckets != 1 and (self.num_buckets < 2 or self.num_buckets % 2):
            raise OptionError(
                f"Option 'num_buckets' of mechanism 'lsh' is {self.num_buckets}, but a rotation gives 1 bucket or an "
                "even number; for example num_buckets=64."
            )
        if self.num_buckets is not None and self.num_buckets > MAX_SINGLE_HASH and self.num_buckets.bit_count() > 1:
            raise OptionError(
                f"Option 'num_buckets' of mechanism 'lsh' is {self.num_buckets}, but a number above {MAX_SINGLE_HASH} "
                "must be a power of two, since two hashes form it; for example "
                f"num_buckets={2 ** (self.num_buckets.bit_length() - 1)}."
            )


@register_mechanism("lsh")
class LSH(BucketedMechanism):
    about = About(
        summary="tokens meet if hashes of their vectors agree, in several rounds; long buckets are cut into chunks",
        paper="Kitaev et al. 2020, Reformer, §2; Andoni et al. 2015 (the hash)",
        when="a model that needs similar tokens from anywhere, without training; Reformer's attention",
        engine="bucketed",
        cost="N·(log N + rounds·bucket_size)",
        sample={"num_hashes": 2, "bucket_size": 16, "num_buckets": 8},
        covering=lambda length, causal: {"bucket_size": length, "num_buckets": 1},
    )
    per_head_tensors = ("rotations",)
    capabilities = BucketedMechanism.capabilities.but(images="any")
    options: LSHOptions
    rotations: Tensor
    """Random rotations ``(H, D, rounds, columns)``. A hash with f values (:attr:`factors`) has f/2 columns. The seed
    determines the rotations, so that a checkpoint does not hold them."""
    factors: tuple[int, ...]
    """Number of values of each hash. The hashes together give the bucket, so that ``num_buckets`` is their product."""

    def __init__(self, sizes: LayerSizes, options: LSHOptions) -> None:
        super().__init__(sizes, options)
        self.count_duplicates = options.count_duplicates
        self.plain_scores = not options.shared_qk
        self.chunks = {"before": options.num_chunks_before, "after": options.num_chunks_after}
        self.keys_in_chunks = options.bucket_size * (1 + options.num_chunks_before + options.num_chunks_after)

        # By default, the largest power of two up to 2·length/bucket_size. A bucket of the longest text then has half a
        # chunk to a chunk on average (§2).
        chunks = 2 * (sizes.max_length or DEFAULT_LENGTH) // options.bucket_size
        self.num_buckets = options.num_buckets or 2 ** max(1, chunks.bit_length() - 1)
        power = self.num_buckets.bit_length() - 1
        # two hashes of about √num_buckets cost far less than one
        if self.num_buckets > FACTOR_ABOVE and self.num_buckets == 2**power:
            self.factors = (2 ** (power // 2), 2 ** (power - power // 2))
        else:
            self.factors = (self.num_buckets,) if self.num_buckets > 1 else ()
        self.register_buffer(
            "rotations",
            torch.empty(self.num_heads, self.head_dim, options.num_hashes, sum(self.factors) // 2),
            persistent=False,
        )
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the rotations from the option ``seed``. They are the same on every device and after every load."""
        super().reset_parameters(generator)
        drawn = torch.randn(
            self.rotations.shape, generator=torch.Generator().manual_seed(self.options.seed), device="cpu"
        )
        self.rotations.copy_(drawn)

    def prepared(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys whose products are the scores, ``(B, H, Nq, D)`` and ``(B, H, Nk, D)``.

        With ``shared_qk``, both come from the keys, and keys are normalised.
        """
        x = repeat_heads(k, q.shape[1])
        if not self.options.shared_qk:
            return q, x
        queries = x[:, :, x.shape[2] - q.shape[2] :]
        if q.requires_grad:
            # The given queries take part with zero gradients, so that distributed training finds every parameter in
            # use.
            queries = queries + q.masked_fill(torch.ones_like(q, dtype=torch.bool), 0.0)
        squares = at_least_fp32(x).square()  # beyond the range of fp16
        return queries, x * torch.rsqrt(squares.mean(-1, keepdim=True) + 1e-6).to(x.dtype)

    @torch.no_grad()
    def hashes(self, x: Tensor) -> Tensor:
        """Buckets of ``x (B, H, N, D)`` in every round, ``(B, H, rounds, N)`` int64 below ``self.num_buckets``."""
        batch, heads, length, _ = x.shape
        exact = exact_dtype(x.device)
        halves = [factor // 2 for factor in self.factors]
        with without_autocast(x):
            rotations = self.rotations.to(exact).flatten(2)  # (H, D, rounds·columns)
            rotated = rotations.transpose(1, 2) @ x.to(exact).mT
        rotated = rotated.view(batch, heads, self.options.num_hashes, sum(halves), length)
        bucket = torch.zeros(batch, heads, self.options.num_hashes, length, dtype=torch.int64, device=x.device)
        if not halves:  # a single bucket
            return bucket
        scale = 1  # product of the factors so far
        for columns, factor in zip(rotated.split(halves, -2), self.factors, strict=True):
            # argmax [x ; -x], by one comparison for each column x_f
            highest = columns[..., 0, :].abs()
            index = (columns[..., 0, :] < 0).long() * (factor // 2)
            for f in range(1, factor // 2):
                column = columns[..., f, :]
                magnitude = column.abs()
                index = torch.where(magnitude > highest, f + factor // 2 * (column < 0), index)
                highest = torch.maximum(highest, magnitude)
            bucket = bucket + scale * index
            scale *= factor
        return bucket

    def meets(self, q: Tensor, k: Tensor, call: AttentionCall) -> Callable[[Tensor], Tensor]:
        """The definition, as a function ``rows (n,)`` -> ``(B, H, n, Nk)`` int: in how many rounds queries meet each
        key."""
        options, length, real = self.options, k.shape[2], call.real(k)
        size, shared, first = options.bucket_size, options.shared_qk, length - q.shape[2]
        key_buckets = self.hashes(k)
        query_buckets = key_buckets[..., first:] if shared else self.hashes(q)
        positions = torch.arange(length, device=k.device)
        is_real = real[:, None, None, :]
        if not call.causal:
            # The real keys sorted by (bucket, position). A token's rank is the number of real keys before it in this
            # order, and its chunk is the rank // size.
            codes = key_buckets * length + positions
            order = codes.masked_fill(~is_real, torch.iinfo(torch.int64).max).sort(-1).values
            query_ranks = torch.searchsorted(order, query_buckets * length + positions[first:])
            count = is_real.sum(-1, keepdim=True)
            query_chunks = query_ranks.minimum((count - 1).clamp(min=0)) // size
            key_chunks = torch.searchsorted(order, codes) // size
            chunks = ((count + size - 1) // size).clamp(min=1)

        def met_in(number: int, rows: Tensor) -> Tensor:
            """Whether queries meet each key in round ``number``, ``(B, H, n, N)`` bool."""
            if call.causal:
                buckets = query_buckets[:, :, number, rows - first]
                return recent_in_bucket(buckets, key_buckets[:, :, number], real, size, rows)
            met = torch.zeros(len(k), k.shape[1], len(rows), length, dtype=torch.bool, device=k.device)
            for offset in chunk_offsets(**self.chunks, chunks=-(-length // size)):
                near = (query_chunks[:, :, number, rows - first] + offset) % chunks[:, :, 0]
                met = met | (near[..., None] == key_chunks[:, :, number, None, :])
            return met & is_real

        def count_rounds(rows: Tensor) -> Tensor:
            """Number of rounds in which the queries at ``rows (n,)`` meet each key, ``(B, H, n, Nk)`` int."""
            count = met_in(0, rows).int()
            for number in range(1, options.num_hashes):
                count = count + met_in(number, rows)
            return count * (positions != rows[:, None]) if shared else count

        return count_rounds

    def labels_documents(self, k: Tensor, v: Tensor, call: AttentionCall) -> bool:
        # Bidirectional chunks start at each document's first sorted token and wrap around.
        return accelerator.accelerated(k) and call.causal

    def visits(
        self, q: Tensor, k: Tensor, q_len: int, call: AttentionCall
    ) -> tuple[tuple[GatherTile, ...], Tensor | None]:
        """The tiles of all rounds, and the queries that meet no key: by the last keys of a bucket if causal, else by
        chunks of the sorted order."""
        key_buckets, shared = self.hashes(k), self.options.shared_qk
        query_buckets = key_buckets if shared else self.hashes(q)
        arguments: dict[str, Any] = {
            "real": call.key_mask,
            "q_len": q_len,
            "size": self.options.bucket_size,
            "shared": shared,
        }
        if call.causal:
            key_buckets, count = buckets_of_documents(key_buckets, self.num_buckets, call.documents)
            if not shared:
                query_buckets, _ = buckets_of_documents(query_buckets, self.num_buckets, call.documents)
            rounds: Rounds = RecentRounds(query_buckets, key_buckets, count, **arguments)
        else:
            rounds = ChunkRounds(query_buckets, key_buckets, self.num_buckets, **arguments, **self.chunks)
        return rounds.parts(self.count_duplicates), rounds.no_visible_key()

    def covers(self, length: int, causal: bool = False) -> bool:
        if self.options.shared_qk:
            return False
        if causal:
            return self.num_buckets == 1 and self.options.bucket_size >= length
        return self.keys_in_chunks >= length

    def pairs(self, length: int, causal: bool = False) -> int:
        keys = self.options.bucket_size if causal else self.keys_in_chunks
        return min(full_pairs(length, causal), self.options.num_hashes * length * min(keys, length))
