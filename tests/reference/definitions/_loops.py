"""What definitions share, in float64: one softmax for every query over the keys that it sees, and kernels of one head
at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Sees = Callable[[int, int, int, int], "bool | int"]
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass
class Call:
    """The arguments of attention besides queries, keys and values; see :func:`hf_longattn.attend`."""

    causal: bool
    padding_mask: Tensor | None = None
    global_mask: Tensor | None = None
    scaling: float | None = None
    score_mod: ScoreMod | None = None
    hidden_states: Tensor | None = None
    seed: int = 0


@dataclasses.dataclass
class Head:
    """One head ``h`` of one sequence ``b``: ``q`` (Nq, D), ``k`` and ``v`` (Nk, D) in float64.

    Row i of q is the token at ``queries[i]`` of the keys: queries are the last Nq tokens. ``real`` are the indices of
    the tokens that are no padding, in order; positions count from ``first``, the first of them.
    """

    b: int
    h: int
    q: Tensor
    k: Tensor
    v: Tensor
    queries: list[int]
    real: list[int]

    @property
    def first(self) -> int:
        return self.real[0] if self.real else 0

    @property
    def length(self) -> int:
        """Positions from the first to the last real token."""
        return self.real[-1] + 1 - self.real[0] if self.real else 0

    def seen(self, index: int, causal: bool) -> list[int]:
        """The real keys that the token at ``index`` may see."""
        return [j for j in self.real if j <= index or not causal]


def heads(q: Tensor, k: Tensor, v: Tensor, padding_mask: Tensor | None) -> Iterator[Head]:
    """Every head of every sequence, in order; with fewer key heads than heads, consecutive heads share one."""
    q, k, v = q.double(), k.double(), v.double()
    batch, num_heads, num_queries, _ = q.shape
    num_keys, group = k.shape[2], num_heads // k.shape[1]
    for b in range(batch):
        real = [j for j in range(num_keys) if padding_mask is None or bool(padding_mask[b, j])]
        for h in range(num_heads):
            yield Head(
                b, h, q[b, h], k[b, h // group], v[b, h // group], list(range(num_keys - num_queries, num_keys)), real
            )


def together(outputs: list[list[Tensor]], q: Tensor) -> Tensor:
    """The rows of all heads, in the order of :func:`heads`, as (B, H, Nq, D)."""
    return torch.stack([torch.stack(rows) for rows in outputs]).unflatten(0, q.shape[:2])


def average(weights: Tensor, values: Tensor) -> Tensor:
    """Σ_j w_j v_j / Σ_j w_j; zeros where nothing has any weight."""
    if not bool(weights.sum() != 0):
        return values.new_zeros(values.shape[1])
    return (weights[:, None] * values).sum(0) / weights.sum()


def kernel_attention(
    q: Tensor, k: Tensor, v: Tensor, call: Call, features: Callable[[Head], tuple[Tensor, Tensor]]
) -> Tensor:
    """o_i = Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j), with ``features`` giving φ of a head's queries and keys."""
    outputs = []
    for head in heads(q, k, v, call.padding_mask):
        phi_q, phi_k = features(head)
        rows = []
        for i, index in enumerate(head.queries):
            seen = head.seen(index, call.causal)
            rows.append(average(phi_k[seen] @ phi_q[i], head.v[seen]))
        outputs.append(rows)
    return together(outputs, q)


def share(scaling: float | None, width: int) -> float:
    """The factor of q, and of k, for kernels without a product to scale: 1 at the usual D^-½; elsewhere the two
    multiply to the rest."""
    return 1.0 if scaling is None else (scaling * width**0.5) ** 0.5


def is_real(padding_mask: Tensor | None, b: int, i: int) -> bool:
    """Whether position ``i`` of sequence ``b`` is a token and no padding."""
    return padding_mask is None or bool(padding_mask[b, i])


def real_positions(padding_mask: Tensor | None, b: int, length: int) -> list[int]:
    """The positions of sequence ``b`` that are tokens."""
    return [i for i in range(length) if is_real(padding_mask, b, i)]


def first_tokens(padding_mask: Tensor | None, batch: int, length: int) -> list[int]:
    """The position of every sequence's first token, from which blocks, columns and sinks are counted."""
    return [next(iter(real_positions(padding_mask, b, length)), 0) for b in range(batch)]


def scores_of(
    q: Tensor,
    keys: Tensor,
    positions: list[int],
    *,
    scaling: float | None,
    score_mod: ScoreMod | None,
    b: int,
    h: int,
    i: int,
) -> Tensor:
    """Scores of one query ``q (D,)`` at position ``i`` against ``keys (n, D)`` that stand at ``positions``,
    ``(n,)``."""
    scores = (keys @ q) * (q.shape[0] ** -0.5 if scaling is None else scaling)
    if score_mod is None:
        return scores
    return score_mod(scores, torch.tensor(b), torch.tensor(h), torch.tensor(i), torch.tensor(positions))


def scores_of_query(head: Head, row: int, i: int, keys: list[int], call: Call) -> Tensor:
    """The scores of query ``i``, which is number ``row`` of the queries of a head, and of its keys."""
    given = {"scaling": call.scaling, "score_mod": call.score_mod}
    return scores_of(head.q[row], head.k[keys], keys, **given, b=head.b, h=head.h, i=i)


def attend_to_seen(
    q: Tensor, k: Tensor, v: Tensor, call: Call, output: Callable[[Head, int, list[int], Tensor], Tensor]
) -> Tensor:
    """The outputs ``output(head, i, keys, scores)`` of all queries, where ``keys`` are those that query i may see.
    Padding has zeros."""
    outputs = []
    for head in heads(q, k, v, call.padding_mask):
        rows = []
        for row, i in enumerate(head.queries):
            keys = head.seen(i, call.causal)
            if i not in head.real:
                rows.append(torch.zeros(q.shape[-1], dtype=torch.float64))
                continue
            rows.append(output(head, i, keys, scores_of_query(head, row, i, keys, call)))
        outputs.append(rows)
    return together(outputs, q)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, sees: Sees, call: Call) -> Tensor:
    """softmax(Q Kᵀ · scale) V over the keys for which ``sees(b, h, i, j)``; a number n counts the key n times (weight
    n · exp(score)).

    Padding is never seen, and in the causal form no key after the query.
    """
    outputs = []
    for head in heads(q, k, v, call.padding_mask):
        rows = []
        for row, i in enumerate(head.queries):
            allowed = head.seen(i, call.causal) if i in head.real else []
            counted = [(j, int(sees(head.b, head.h, i, j))) for j in allowed]
            keys = [j for j, times in counted if times]
            if not keys:
                rows.append(torch.zeros(q.shape[-1], dtype=torch.float64))
                continue
            scores = scores_of_query(head, row, i, keys, call)
            times = torch.tensor([float(times) for _, times in counted if times], dtype=torch.float64)
            weights = times * torch.exp(scores - scores.max())
            rows.append(weights / weights.sum() @ head.v[keys])
        outputs.append(rows)
    return together(outputs, q)
