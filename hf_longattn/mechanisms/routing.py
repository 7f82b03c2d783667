"""Routing attention: tokens meet in clusters (Roy et al. 2020, Routing Transformer, section 4.1 and algorithm 1).

A token's routing vector x̂ is its query or key after layer normalisation without a learned scale. Its affinity to
cluster c is a_c = x̂ · μ_c.

    bidirectional:  query i sees the w keys with the greatest affinity to its cluster c(i) = argmax_c a_c(q_i)
    causal:         query i sees the last w keys j <= i with c(k_j) = c(q_i)

A query that sees no key sees itself. Differences from the paper:

- Scores are q · k, as in the training of a converted checkpoint. Algorithm 1 has q̂ · k̂. The paper's causal form uses
  the queries as keys, K ← Q, but converted models have separate keys.
- The w best tokens of a cluster depend on the whole sequence. The causal form therefore takes the latest w instead.
- Every query belongs to one cluster, the nearest. In algorithm 1, a cluster takes its w nearest queries: a query in no
  cluster gets nothing, and a query in several clusters gets one of the results.
- The paper's local heads are a window in a ``union``.

``router="kmeans"``: the centroids μ are unit vectors in a buffer. In training with gradients they follow the tokens,
once per backward pass:

    μ_c  ←  normalise( λ μ_c + (1 - λ)/2 (mean of the queries in c + mean of the keys in c) )

If a cluster has no queries or no keys, only the other mean enters. Algorithm 1 has sums instead of means, and no
``normalise``. With means, the rate does not depend on the batch size. With unit vectors, no centroid attracts more
tokens by its length. In distributed training, each process moves its centroids by its own tokens.
:func:`~hf_longattn.mechanisms.routing.synchronise_centroids` replaces these moves by one move over the tokens of all
processes, which a single process with all tokens would make. ``longattn train`` calls this function after every
backward pass.

``router="learned"``: the rows of a trained matrix W_r replace μ, and affinities are logits. In the bidirectional form,
the logits are balanced by Sinkhorn iterations over the keys of each sequence, so that clusters are equally popular.
Let p_j(c) be the softmax over clusters c of key j's (balanced) logits. Then

    s_ij  =  q_i · k_j · scale + log p_j(c(i))

so that W_r receives gradients through log p.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines import accelerator
from ..engines.batch import differentiated, without_autocast
from ..engines.bucketed import MAX_ROW_QUERIES, RecentRounds, buckets_of_documents, cluster_rows, taken
from ..engines.call import AttentionCall, GatherTile
from ..engines.dense import repeat_heads
from ..engines.score_terms import add_term
from ..engines.topk import exact_dtype, ranking, topk
from .common.base import LayerSizes
from .common.buckets import BucketedMechanism, recent_in_bucket
from .common.capabilities import About, NeedsWholeBatch
from .common.layout import full_pairs
from .common.options import Options, option
from .common.registry import register_mechanism

DEFAULT_LENGTH = 4096
"""Length in tokens that sets the number of clusters if the longest input is unknown."""
SINKHORN_STEPS = 8
"""Iterations that balance the clusters of a learned router."""


@dataclasses.dataclass(frozen=True)
class RoutingOptions(Options):
    num_clusters: int | None = option(
        None, "clusters of a head; default: the square root of max_length", "clusters", most=1024, least=1
    )
    window_per_cluster: int | None = option(
        None, "keys of a cluster that a query sees; default: max_length / num_clusters", "tokens", least=1
    )
    router: str = option(
        "kmeans",
        "'kmeans': centroids that follow the tokens; 'learned': a trained router W_r with balanced clusters",
        choices=("kmeans", "learned"),
    )
    decay: float = option(0.999, "λ, share of a centroid that an update keeps", least=0, most=1)
    seed: int = option(0, "seed of the initial centroids")


@register_mechanism("routing")
class Routing(BucketedMechanism, NeedsWholeBatch):
    about = About(
        summary="each token sees the members of its nearest cluster, by online k-means or a learned router",
        paper="Roy et al. 2020, Routing Transformer, §4.1, algorithm 1",
        when="a model that you train, whose tokens should meet by topic; without training take `lsh` or `block_top_k`",
        engine="bucketed",
        cost="N·√N",
        sample={"num_clusters": 6, "window_per_cluster": 48},
        covering=lambda length, causal: {"num_clusters": 1, "window_per_cluster": length},
    )
    capabilities = BucketedMechanism.capabilities.but(images="any")
    options: RoutingOptions
    centroids: Tensor
    """``(H, clusters, D)``, part of the checkpoint. A learned router has a parameter ``router`` of that shape
    instead."""
    _unshared: tuple[Tensor, Tensor] | None = None
    """Centroids after the last :func:`synchronise_centroids`, and :func:`cluster_sums` of this process's queries and
    keys since then, ``(2, H, clusters, D + 1)``. ``None`` in a single process."""

    def __init__(self, sizes: LayerSizes, options: RoutingOptions) -> None:
        super().__init__(sizes, options)
        length = sizes.max_length or DEFAULT_LENGTH
        self.num_clusters = options.num_clusters or max(1, round(math.sqrt(length)))
        self.size = options.window_per_cluster or -(-length // self.num_clusters)
        self.learned = options.router == "learned"
        self.plain_scores = not self.learned
        empty = torch.empty(self.num_heads, self.num_clusters, self.head_dim)
        if self.learned:
            self.router = nn.Parameter(empty)
            self.per_head_tensors = ("router",)
        else:
            self.register_buffer("centroids", empty)
            self.per_head_tensors = ("centroids",)
        self.reset_parameters()

    def needs_one_call(self) -> bool:
        return self.training and not self.learned  # a pass moves the centroids once

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw unit centroids from the option ``seed``, or a random router."""
        super().reset_parameters(generator)
        self._unshared = None
        if self.learned:
            nn.init.normal_(self.router, std=self.head_dim**-0.5, generator=generator)
        else:
            seeded = torch.Generator().manual_seed(self.options.seed)
            drawn = torch.randn(self.centroids.shape, generator=seeded, device="cpu")
            with torch.no_grad():
                self.centroids.copy_(F.normalize(drawn, dim=-1))

    def logits(self, x: Tensor, exact: bool = True) -> Tensor:
        """Affinities ``(B, H, N, clusters)`` of ``x (B, H, N, D)``; float64 if ``exact``, else at least float32."""
        dtype = exact_dtype(x.device) if exact else torch.promote_types(x.dtype, torch.float32)
        centroids = self.router if self.learned else self.centroids
        with without_autocast(x):
            return F.layer_norm(x.to(dtype), x.shape[-1:]) @ centroids.to(dtype).mT

    @torch.no_grad()
    def offsets(self, k: Tensor, call: AttentionCall) -> Tensor | None:
        """Logit offsets that balance the clusters over the real keys, ``(B, H, 1, clusters)``. ``None`` without
        balancing."""
        if not self.learned or call.causal:
            return None
        logits, real = self.logits(k), call.real(k)
        # log of the wanted number of keys per cluster
        log_share = (real.sum(-1).clamp(min=1).to(logits.dtype) / self.num_clusters).log().view(-1, 1, 1, 1)
        offset = logits.new_zeros(*logits.shape[:2], 1, self.num_clusters)
        for _ in range(SINKHORN_STEPS):
            log_p = (logits + offset).log_softmax(-1).masked_fill(~real[:, None, :, None], float("-inf"))
            offset = offset + log_share - log_p.logsumexp(2, keepdim=True)
        return torch.where(real.any(-1).view(-1, 1, 1, 1), offset, 0.0)

    def shares(self, k: Tensor, offset: Tensor | None, exact: bool) -> Tensor:
        """Values by which clusters rank keys, ``(B, H, Nk, clusters)``. For a learned router, these are log p (with
        gradients); otherwise, affinities."""
        logits = self.logits(k, exact)
        if not self.learned:
            return logits
        if offset is not None:
            logits = logits + offset.to(logits.dtype)
        return logits.log_softmax(-1)

    @torch.no_grad()
    def clusters(self, x: Tensor, offset: Tensor | None) -> Tensor:
        """The cluster of every vector, ``(B, H, N)``."""
        if self.learned:
            return self.shares(x, offset, exact=True).argmax(-1)
        # The layer norm of x is not computed. It would divide by a number, which does not change the nearest cluster,
        # and subtract the mean. Centroids without their mean have the same effect:
        # Σ_d (x_d - mean(x)) μ_d = Σ_d x_d (μ_d - mean(μ)).
        dtype = exact_dtype(x.device)
        centroids = self.centroids.to(dtype)
        with without_autocast(x):
            return (x.to(dtype) @ (centroids - centroids.mean(-1, keepdim=True)).mT).argmax(-1)

    def meets(self, q: Tensor, k: Tensor, call: AttentionCall) -> Callable[[Tensor], Tensor]:
        """The definition, as a function ``rows (n,)`` -> ``(B, H, n, Nk)`` int: 1 for each key that a query sees, else
        0."""
        real, offset, first = call.real(k), self.offsets(k, call), k.shape[2] - q.shape[2]
        query_clusters = self.clusters(q, offset)
        if call.causal:
            key_clusters = self.clusters(k, offset)
            return lambda rows: recent_in_bucket(
                query_clusters[..., rows - first], key_clusters, real, self.size, rows
            ).int()
        rank = ranking(self._ranked(k, offset, real)).argsort(-1)
        member = ((rank < self.size) & real[:, None, None]).int()  # (B, H, clusters, Nk)
        return lambda rows: member.gather(2, query_clusters[..., rows - first, None].expand(-1, -1, -1, k.shape[2]))

    def counted(self, q: Tensor, k: Tensor, call: AttentionCall, count: Tensor) -> AttentionCall:
        if not self.learned:
            return super().counted(q, k, call, count)
        offset = self.offsets(k, call)
        share = self.shares(k, offset, exact=False).mT
        affinity = share.gather(2, self.clusters(q, offset)[..., None].expand(-1, -1, -1, k.shape[2]))  # log p_j(c(i))
        return call.replace(score_mod=add_term(call.score_mod, lambda *_: affinity))

    def labels_documents(self, k: Tensor, v: Tensor, call: AttentionCall) -> bool:
        # with a learned router, clusters choose among the keys of one document
        return accelerator.accelerated(k) and call.causal and not self.learned

    def visits(
        self, q: Tensor, k: Tensor, q_len: int, call: AttentionCall
    ) -> tuple[tuple[GatherTile, ...], Tensor | None]:
        """Tiles of queries with the keys of their clusters.

        If causal, also the queries that meet no key, ``(B, H, N)`` bool.
        """
        real, offset = call.key_mask, self.offsets(k, call)
        cluster = self.clusters(q, offset)
        no_visible_key = None
        if call.causal:  # a cluster is a bucket of one round
            key_cluster = self.clusters(k, None)
            buckets, count = buckets_of_documents(cluster[:, :, None], self.num_clusters, call.documents)
            key_buckets, _ = buckets_of_documents(key_cluster[:, :, None], self.num_clusters, call.documents)
            rounds = RecentRounds(buckets, key_buckets, count, real=real, q_len=q_len, size=self.size, shared=False)
            parts, no_visible_key = [*rounds.parts()], rounds.no_visible_key()
        else:  # rows of queries of one cluster, each with the members of the cluster
            members = topk(self._ranked(k, offset, real), self.size).sort(-1).values  # in the order of the sequence
            max_queries = max(1, min(self.size, MAX_ROW_QUERIES) // 2)
            rows, row_cluster = cluster_rows(cluster, self.num_clusters, real, q_len, max_queries)
            keys = members.gather(2, row_cluster[..., None].expand(-1, -1, -1, members.shape[-1]))
            parts = [GatherTile(rows, keys)]
        if self.learned:  # log p_j(c(i)) is the bias of a pair
            share = self.shares(k, offset, exact=False).flatten(2)
            for number, part in enumerate(parts):
                queries, keys = (x.expand(*cluster.shape[:2], -1, -1) for x in (part.queries, part.keys))
                index = keys.clamp(min=0)[..., None, :] * self.num_clusters + taken(cluster, queries)[..., :, None]
                bias = share.gather(2, index.flatten(2)).view(index.shape)
                if part.bias is not None:
                    bias = bias.masked_fill(~part.bias, float("-inf"))
                parts[number] = dataclasses.replace(part, bias=bias)
        return tuple(parts), no_visible_key

    @torch.no_grad()
    def _ranked(self, k: Tensor, offset: Tensor | None, real: Tensor | None) -> Tensor:
        """:meth:`shares`, transposed to ``(B, H, clusters, Nk)``, with -inf for padding."""
        ranked = self.shares(k, offset, exact=True).mT
        return ranked if real is None else ranked.masked_fill(~real[:, None, None], float("-inf"))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output ``(B, H, Nq, D)``. In training with gradients, the centroids move in the backward pass."""
        if self.needs_one_call() and differentiated(q, k, v):
            # The sums are taken now, by the centroids of this pass. The centroids move after the backward pass.
            real = call.real(k)
            sums_of_both: list[Tensor] = []  # of queries and of keys
            with torch.no_grad():
                for x, is_real in ((q, real[:, -q.shape[2] :]), (repeat_heads(k, q.shape[1]), real)):
                    clusters = self.clusters(x, None)
                    vectors = F.layer_norm(x.float(), x.shape[-1:])
                    sums_of_both.append(cluster_sums(vectors, clusters, self.num_clusters, is_real))

            @torch.no_grad()
            def move_centroids() -> None:
                """Move the centroids by the sums. With several processes, keep the sums for synchronise_centroids."""
                sums = torch.stack(sums_of_both)
                if processes() > 1:
                    earlier, unshared = self._unshared or (self.centroids.clone(), 0)
                    self._unshared = earlier, unshared + sums
                self.centroids.copy_(moved(self.centroids, sums, self.options.decay))

            q, k, v = after_backward((q, k, v), move_centroids)
        return super().forward(q, k, v, call)

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.num_clusters == 1 and self.size >= length

    def pairs(self, length: int, causal: bool = False) -> int:
        return min(full_pairs(length, causal), length * min(length, self.size))


def after_backward(tensors: Sequence[Tensor], act: Callable[[], None]) -> list[Tensor]:
    """Return the tensors with a hook by which ``act`` runs once, in the backward pass through their results.

    Activation checkpointing computes the forward pass twice and needs the same centroids both times. The centroids
    therefore move in the backward pass. In a compiled graph ``act`` runs immediately, like updates of batch
    normalisation. One of the tensors must require gradients.
    """
    if torch.compiler.is_compiling():
        act()
        return list(tensors)
    first = next(i for i, x in enumerate(tensors) if x.requires_grad)
    watched = tensors[first].view_as(tensors[first])  # a view, so that the caller's tensor keeps no hook
    done: list[bool] = []  # holds an entry after the first run

    def hook(gradient: Tensor) -> None:
        if not done:
            done.append(True)
            act()

    watched.register_hook(hook)
    return [watched if i == first else x for i, x in enumerate(tensors)]


def cluster_sums(vectors: Tensor, clusters: Tensor, num_clusters: int, real: Tensor) -> Tensor:
    """The sum of each cluster's vectors, and their number in the last column: ``(H, clusters, D + 1)`` float32.

    vectors: ``(B, H, N, D)`` float32; clusters: ``(B, H, N)``; real: ``(B, N)`` bool, True = real token.
    """
    counted = real[:, None, :, None].expand(*clusters.shape, 1).float()
    member = counted.new_zeros(*clusters.shape, num_clusters).scatter_(-1, clusters[..., None], counted)
    return torch.cat([torch.einsum("bhnc,bhnd->hcd", member, vectors), member.sum((0, 2))[..., None]], -1)


def moved(centroids: Tensor, sums: Tensor, decay: float) -> Tensor:
    """Centroids ``(H, C, D)`` after one step of the moving average, as unit vectors. Without tokens, a centroid does
    not move.

    Args:
        sums: :func:`cluster_sums` of queries and of keys, which have equal weight, ``(2, H, C, D + 1)``.
        decay: share of the old centroid in the new one.
    """
    counts = sums[..., -1:]
    means = sums[..., :-1] / counts.clamp(min=1)  # zeros for clusters without queries (or keys)
    step = F.normalize(decay * centroids.float() + (1 - decay) * means.mean(0), dim=-1)
    return torch.where(counts.sum(0) > 0, step, centroids.float()).to(centroids.dtype)


@torch.no_grad()
def synchronise_centroids(model: nn.Module) -> None:
    """Move all centroids of ``model`` by the tokens of all processes since the last call.

    Every process must call this function at the same point: after each backward pass or, for one move by all
    accumulated batches, after each optimizer step. The function first undoes the moves that the process made by
    itself, so that the centroids equal those of one process with the whole batch. This holds even if a process skipped
    a batch or a layer. The backward pass itself does not communicate: if a process skips it, the others would wait. In
    a single process, the function does nothing.

    Args:
        model: any module; also inside DistributedDataParallel or FSDP.
    """
    layers = [module for module in model.modules() if isinstance(module, Routing) and not module.learned]
    if processes() < 2 or not layers:
        return
    unshared = []
    for layer in layers:
        heads, clusters, width = layer.centroids.shape
        no_sums = layer.centroids.new_zeros(2, heads, clusters, width + 1, dtype=torch.float32)
        unshared.append((layer.centroids, no_sums) if layer._unshared is None else layer._unshared)

    # one communication for all layers
    all_sums = torch.cat([local.flatten() for _, local in unshared])
    torch.distributed.all_reduce(all_sums)
    sums_of_layers = all_sums.split([local.numel() for _, local in unshared])
    for layer, (earlier, local), sums in zip(layers, unshared, sums_of_layers, strict=True):
        # moves from `earlier`, which undoes the moves by this process's own tokens
        layer.centroids.copy_(moved(earlier, sums.view(local.shape), layer.options.decay))
        layer._unshared = None


def processes() -> int:
    """Number of processes; 1 if torch.distributed is not initialised."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
