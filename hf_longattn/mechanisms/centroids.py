"""Centroids that follow the tokens in training: the moving average, and when it is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def after_backward(tensors: Sequence[Tensor], act: Callable[[], None]) -> list[Tensor]:
    """The tensors, arranged so that ``act`` runs once when the backward pass has gone through everything computed from them.

    Activation checkpointing computes the forward pass twice but goes back through it once, and what it computes again must find the
    centroids that it found the first time: so they move in the backward pass. A compiled graph moves them at once, as batch
    normalisation moves its averages. At least one of the tensors must require gradients.
    """
    if torch.compiler.is_compiling():
        act()
        return list(tensors)
    first = next(i for i, x in enumerate(tensors) if x.requires_grad)
    watched = tensors[first].view_as(tensors[first])  # a node of this call alone: the caller's tensor keeps no hook
    done: list[bool] = []

    def hook(gradient: Tensor) -> None:
        if not done:
            done.append(True)
            act()

    watched.register_hook(hook)
    return [watched if i == first else x for i, x in enumerate(tensors)]


def cluster_sums(vectors: Tensor, clusters: Tensor, num_clusters: int, real: Tensor) -> Tensor:
    """Sum of each cluster's vectors, and how many they are in the last column: ``(H, clusters, D + 1)`` float32.

    vectors: ``(B, H, N, D)``; clusters: ``(B, H, N)``; real: ``(B, N)`` bool, True = real token.
    """
    member = F.one_hot(clusters, num_clusters).float() * real[:, None, :, None]
    return torch.cat([torch.einsum("bhnc,bhnd->hcd", member, vectors.float()), member.sum((0, 2))[..., None]], -1)


def moved(centroids: Tensor, kinds: Sequence[Tensor], decay: float) -> Tensor:
    """Centroids ``(H, C, D)`` after one step of the moving average, unit vectors; a cluster without tokens keeps its own.

    Args:
        kinds: :func:`cluster_sums` of several kinds of tokens, which have equal say.
        decay: what is kept of the old centroid.
    """
    sums = torch.stack(tuple(kinds))
    counts = sums[..., -1:]
    says = (counts > 0).float().sum(0)
    target = (sums[..., :-1] / counts.clamp(min=1)).sum(0) / says.clamp(min=1)
    step = F.normalize(decay * centroids.float() + (1 - decay) * target, dim=-1)
    return torch.where(says > 0, step, centroids.float()).to(centroids.dtype)


@torch.no_grad()
def average_centroids(model: nn.Module) -> None:
    """Give the centroids of every layer below ``model`` their mean over the processes of torch.distributed, as unit vectors.

    Every process must call it at the same point, such as after each optimizer step: the moving average itself waits for no other
    process, since a process that skips a batch or a layer would leave the others waiting. DistributedDataParallel broadcasts buffers before
    each forward pass, so that all processes have the first one's centroids without this call; other strategies broadcast none.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    found = [x for name, x in model.named_buffers() if name.rpartition(".")[2] == "centroids"]
    if not found:
        return
    together = torch.cat([x.flatten().float() for x in found])
    torch.distributed.all_reduce(together)
    for centroids, mean in zip(found, together.split([x.numel() for x in found]), strict=True):
        centroids.copy_(F.normalize(mean.view_as(centroids), dim=-1))
