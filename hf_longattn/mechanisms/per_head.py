"""Different mechanisms in the heads of one layer (Child et al. 2019, Sparse Transformers, section 5.1, equation 8).

    output = concatenation over heads h of  Attention_{m(h)}(Q_h, K_h, V_h)

where m(h) is the mechanism of head h. Members with head numbers apply to those heads. The others take turns over the remaining heads, so
that a single member without numbers applies to all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engines.common.call import AttentionCall
from ..engines.common.score_terms import take_heads
from ..errors import OptionError
from ..options import Options, option
from ..positions.distances import Locality
from .common.composite import Composite, HeadSpec
from .common.decoding import AttendStep, Columns
from .common.locality import joined
from .common.ordered import KeysOrWeights
from .common.registry import register_mechanism
from .common.scores import softmax_over
from .common.traits import FitsActivations, Handling
from .window import WindowOptions

EXAMPLE = "heads='0-5=window:window=256;6-11=full', or heads='window:window=256,full' to take turns"


@dataclasses.dataclass(frozen=True)
class PerHeadOptions(Options):
    heads: tuple[HeadSpec, ...] = option(
        (HeadSpec("window", WindowOptions()), HeadSpec("full", Options())),
        "the mechanism of each head: 0-5=window:window=64;6-11=full by number, or window:window=64,full in turn over unnumbered heads",
    )

    def check(self) -> None:
        if not self.heads:
            raise OptionError(f"Mechanism 'per_head' needs the mechanisms of its heads, for example {EXAMPLE}.")
        named = self.named()
        twice = sorted({head for head in named if named.count(head) > 1})
        if twice:
            raise OptionError(f"Option 'heads' of mechanism 'per_head' names head {twice[0]} twice; for example {EXAMPLE}.")

    def min_heads(self) -> int:
        named, turns = self.named(), sum(choice.heads is None for choice in self.heads)
        each = max(choice.options.min_heads() for choice in self.heads)
        return max([len(named) + turns * each, *(head + 1 for head in named), each])

    def named(self) -> list[int]:
        """All head numbers that the members list."""
        return [head for choice in self.heads for head in choice.heads or ()]

    def assign(self, num_heads: int) -> list[tuple[HeadSpec, list[int]]]:
        """The members that get at least one of ``num_heads`` heads, each with its heads."""
        groups = [list(choice.heads or ()) for choice in self.heads]
        named = self.named()
        if named and max(named) >= num_heads:
            raise OptionError(
                f"Option 'heads' of mechanism 'per_head' names head {max(named)}, but the layer has {num_heads} heads: "
                f"use 0 to {num_heads - 1}."
            )
        turns = [group for group, choice in zip(groups, self.heads, strict=True) if choice.heads is None]
        left = [head for head in range(num_heads) if head not in named]
        if left and not turns:
            raise OptionError(
                f"Option 'heads' of mechanism 'per_head' has no mechanism for head {left[0]} of {num_heads}; "
                "add one mechanism without numbers for the rest, for example '0-5=window:window=64;full'."
            )
        for number, head in enumerate(left):
            turns[number % len(turns)].append(head)
        return [(choice, group) for choice, group in zip(self.heads, groups, strict=True) if group]


@register_mechanism("per_head")
class PerHead(Composite, FitsActivations):
    """A different mechanism for each head or group of heads."""

    summary = "a different mechanism for each head or group of heads"
    paper = "Child et al. 2019, Sparse Transformers, §5.1, eq. 8"
    when = "the heads of a layer have different tasks, some near and some far"
    engine = "its members'"
    cost = "its members'"
    traits = Composite.traits.but(takes_globals=True)
    sample: ClassVar[dict[str, Any]] = {"heads": "window:window=32,longformer:window=16"}

    @classmethod
    def covering(cls, length: int, causal: bool) -> dict[str, Any]:
        return {"heads": f"window:window={2 * length},full"}

    options: PerHeadOptions

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: PerHeadOptions) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        assigned = options.assign(num_heads)
        self.groups = [heads for _, heads in assigned]
        self.adopt(choice.build(len(heads), head_dim, hidden_size, max_length) for choice, heads in assigned)
        self.engine = ", ".join(dict.fromkeys(member.engine for member in self.mechanisms))
        projecting = next((member.name for member in self.mechanisms if member.traits.takes_hidden_states), None)
        if projecting is not None:
            raise OptionError(
                f"With these options, mechanism {projecting!r} needs the layer's input, which a member of 'per_head' does not get; choose "
                f"separate_global=False (longformer) or gate_input=key (delta), or use {projecting!r} for the whole layer."
            )

    @property
    def handling(self) -> Handling:  # type: ignore[override]
        members = [member.handling for member in self.mechanisms]
        return Handling(
            position_dependent=any(member.position_dependent for member in members),
            is_plain_band=self.relative is None and all(member.is_plain_band for member in members),
            exports_definition=self.traits.exports,
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        return self._in_order([member(*inputs, part) for member, inputs, part in self._parts(k.shape[2], call, q, k, v)])

    @property
    def attend_step(self) -> AttendStep | None:
        by_mask = all(member.attend_step is not None for member in self.mechanisms)
        return self._attend_step if by_mask and self.relative is None and self.options.order is None else None

    def _attend_step(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, columns: Columns | None = None) -> Tensor:
        outs = []
        for member, inputs, part in self._parts(k.shape[2], call, q, k, v):
            assert member.attend_step is not None
            outs.append(member.attend_step(*inputs, part, columns))
        return self._in_order(outs)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        return self._in_order([member.dense_weights(*inputs, part) for member, inputs, part in self._parts(k.shape[2], call, q, k)])

    def attended_keys(self, q: Tensor, k: Tensor, call: AttentionCall) -> KeysOrWeights | None:
        keep = [member.attended_keys(*inputs, part) for member, inputs, part in self._parts(k.shape[2], call, q, k)]
        keeps = [of_member for of_member in keep if of_member is not None]
        if len(keeps) < len(keep):
            return None

        def of_all(rows: Tensor, scores: Tensor) -> Tensor:
            of_heads = [take_heads(scores, heads) for heads in self.groups]
            parts = [of_member(rows, own).expand(own.shape) for of_member, own in zip(keeps, of_heads, strict=True)]
            if len({part.dtype for part in parts}) > 1:  # some heads give weights, others keys
                parts = [softmax_over(own, x) if x.dtype == torch.bool else x for own, x in zip(of_heads, parts, strict=True)]
            return self._in_order(parts)

        return of_all

    def _parts(self, length: int, call: AttentionCall, q: Tensor, *keys: Tensor) -> Iterator[tuple[Any, list[Tensor], AttentionCall]]:
        """Every member, the tensors of its heads, and its call, for a text of ``length`` tokens."""
        for member, heads in zip(self.mechanisms, self.groups, strict=True):
            detached = None
            if call.detached_kv is not None and member.traits.stops_gradients(length):
                _, detached_k, detached_v = self._of_heads(heads, q, *call.detached_kv)
                detached = detached_k, detached_v
            yield member, self._of_heads(heads, q, *keys), call.of_heads(heads, q.device).replace(detached_kv=detached)

    def _of_heads(self, heads: list[int], q: Tensor, *keys: Tensor) -> list[Tensor]:
        """Queries of ``heads`` with their key and value heads, which stay grouped if ``heads`` consists of whole groups."""
        each = self.num_heads // keys[0].shape[1]
        shared = [head // each for head in heads]
        whole_groups = len(heads) % each == 0 and all(shared[n : n + each].count(shared[n]) == each for n in range(0, len(heads), each))
        return [take_heads(q, heads), *(take_heads(x, shared[::each] if whole_groups else shared) for x in keys)]

    def _in_order(self, parts: list[Tensor]) -> Tensor:
        """The results ``(B, group, …)`` of all groups as ``(B, H, …)``, in the order of the heads."""
        order = [head for heads in self.groups for head in heads]
        return take_heads(torch.cat(parts, 1), sorted(range(len(order)), key=order.__getitem__))

    def init_from_activations(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None = None, *, causal: bool = False) -> bool:
        done = []
        for member, heads in zip(self.mechanisms, self.groups, strict=True):
            if isinstance(member, FitsActivations):
                queries, keys, values = (take_heads(x, heads) for x in (q, k, v))
                done.append(member.init_from_activations(queries, keys, values, real, causal=causal))
        return any(done)

    def locality(self, causal: bool) -> Locality | None:
        return joined((member.locality(causal) for member in self.mechanisms), one_softmax=False)

    def covers(self, length: int, causal: bool = False) -> bool:
        return all(member.covers(length, causal) for member in self.mechanisms)

    def pairs(self, length: int, causal: bool = False) -> int:
        members = zip(self.mechanisms, self.groups, strict=True)
        return -(-sum(len(heads) * member.pairs(length, causal) for member, heads in members) // self.num_heads)
