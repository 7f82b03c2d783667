"""Decode caches inside a traced graph: what a layer keeps comes in as tensors and goes out as tensors.

A graph for all lengths can neither look at values nor ask how long anything is, so these layers attend themselves, by what mechanisms offer
the caches of eager decoding:

- :class:`KeysLayer` holds the last keys and values (``key``, ``value``), as many as the mechanism reaches, or all; scores are masked by
  the mechanism's definition, in memory new tokens × keys;
- :class:`KeptKeysLayer` holds the keys that :meth:`~hf_longattn.Mechanism.kept` keeps, with their positions;
- :class:`RecurrentLayer` holds the state of :meth:`~hf_longattn.Mechanism.advance`, which runs token by token (ONNX: Scan).

Zeros are every state before the first token, with no tokens along an axis that grows.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ..attend import run_batch
from ..engines.common.batch import Batch
from ..engines.common.call import AttentionCall, State
from ..errors import ExportError
from ..mechanisms.common.base import Mechanism
from ..mechanisms.common.masked import MaskedMechanism
from ..positions.relative import QueryDependent
from ..private_apis import assume_in_graph, scan_in_graph
from .cache_layer import AttentionCacheLayer, refuse_restricted_pairs
from .state_cache import StateLayer

KEY, VALUE, POSITION, SEEN = "key", "value", "position", "seen"
"""Names of the tensors of layers that keep keys; those of a recurrent layer are the mechanism's."""
MIN_KEPT_KEYS = 2
"""Fewest keys that a layer keeps once it is full: PyTorch traces no free axis of up to one entry."""


@dataclass(frozen=True)
class StateTensor:
    """One tensor of a layer's state.

    shape: without the batch, which is the first axis; 0 is the axis that grows.
    most: the largest size of that axis; ``None`` where it is unbounded, or where no axis grows.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    most: int | None = None

    @property
    def grows(self) -> bool:
        return 0 in self.shape

    def zeros(self, batch: int, held: int = 0) -> Tensor:
        """The tensor before the first token, or with ``held`` entries along the axis that grows."""
        return torch.zeros(batch, *(size or held for size in self.shape), dtype=self.dtype)


class GraphLayer(AttentionCacheLayer, DynamicLayer):
    """A cache layer for one step in a graph.

    state: the tensors before the step; afterwards those that follow it.
    before: how many tokens came before, as the padding mask counts them.
    """

    is_croppable = False

    def __init__(self, state: State, before: int) -> None:
        super().__init__()
        self.state, self.before = state, before

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """The new keys and values; :meth:`attend` puts those before them in front."""
        self.count = key_states.shape[2]
        return key_states, value_states

    def computes_attention(self, mechanism: Mechanism, q: Tensor, call: AttentionCall) -> bool:
        return True

    def note_padding(self, mask: Tensor | None) -> None:
        """The mask is read by :meth:`attend`."""

    def get_seq_length(self) -> int:
        return self.before

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.before + query_length, 0

    def attend(
        self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, weights_wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The output of the step; no weights, which a graph does not return."""
        out, self.state = self.step(mechanism, q, k, v, call)
        return out, None

    @abstractmethod
    def step(self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> tuple[Tensor, State]:
        """The output ``(B, H, n, D)`` of the new tokens and the state after them; ``call.key_mask (B, tokens so far)`` is given."""


class KeysLayer(GraphLayer):
    """``key, value (B, H_kv, P, D)``: those of the last tokens, P of at most ``most``."""

    keeps = "keys of a graph"

    def __init__(self, state: State, before: int, most: int | None) -> None:
        super().__init__(state, before)
        self.most = most

    def step(self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> tuple[Tensor, State]:
        k, v = torch.cat([self.state[KEY], k], 2), torch.cat([self.state[VALUE], v], 2)
        out = run_batch(mechanism, q, k, v, call.with_mask(_last(call.real(k), k.shape[2], 1)), mechanism.defined)
        if self.most is not None:
            keys_left = torch.sym_min(k.shape[2], self.most)
            k, v = _last(k, keys_left, 2), _last(v, keys_left, 2)
        return out, {KEY: k, VALUE: v}


class KeptKeysLayer(GraphLayer):
    """``key, value (B, H_kv, P, D)`` of the tokens at ``position (B, P)`` of their sequence, -1 for padding and empty slots, after ``seen
    (B,)`` positions."""

    keeps = "kept keys of a graph"

    def step(self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> tuple[Tensor, State]:
        assert isinstance(mechanism, MaskedMechanism)
        refuse_restricted_pairs(call)
        real, seen = _last(call.real(k), q.shape[2], 1), self.state[SEEN]
        started = (seen[:, None] > 0) | (real.long().cumsum(1) > 0)
        new = seen[:, None] + started.long().cumsum(1) - 1
        seen = seen + started.long().sum(1)
        k, v = torch.cat([self.state[KEY], k], 2), torch.cat([self.state[VALUE], v], 2)
        position = torch.cat([self.state[POSITION], torch.where(real, new, -1)], 1)
        out = mechanism.attend_kept(q, k, v, new.clamp(min=0), position, position >= 0, call.replace(causal=True))
        visible_later = mechanism.kept(position, seen[:, None])
        if visible_later is None:
            return out, {KEY: k, VALUE: v, POSITION: position, SEEN: seen}
        return out, {**_packed(visible_later & (position >= 0), k, v, position), SEEN: seen}


class RecurrentLayer(GraphLayer):
    """The state that the mechanism's :meth:`~hf_longattn.Mechanism.advance` returns."""

    keeps = "a state of a graph"

    def step(self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> tuple[Tensor, State]:
        refuse_restricted_pairs(call)
        mask, names = call.real(k), sorted(self.state)
        tokens = {"q": q, "k": k, "v": v} | ({} if call.hidden_states is None else {"hidden": call.hidden_states[:, None]})
        # A token of padding before the first real one leaves zeros, the empty state.
        started = _last(mask.long().cumsum(1) > 0, q.shape[2], 1)
        inputs = [x.movedim(2, 0) for x in tokens.values()] + [x.movedim(1, 0) for x in (_last(mask, q.shape[2], 1), started)]
        # In one layout: PyTorch compares it with that of the layer before, and would not trace a comparison that depends on the length.
        inputs = [x.contiguous() for x in inputs]

        def step(state: list[Tensor], entries: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            *values, real, has_started = entries
            token = dict(zip(tokens, (x.unsqueeze(2) for x in values), strict=True))
            token_call = call.replace(batch=Batch(real[:, None]), hidden_states=token["hidden"][:, 0] if "hidden" in token else None)
            before = dict(zip(names, state, strict=True))
            out, after = mechanism.advance(token["q"], token["k"], token["v"], before, token_call)
            return [_chosen(has_started, after[name], old) for name, old in before.items()], out[:, :, 0].clone()

        after, out = scan_in_graph(step, [self.state[name] for name in names], inputs)
        return out.movedim(0, 2), dict(zip(names, after, strict=True))


def _chosen(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new (B, …)`` in the rows ``(B,)`` and ``old`` in the others; onnxruntime chooses between numbers only."""
    rows = rows.view(-1, *[1] * (old.dim() - 1))
    return (rows & new) | (~rows & old) if old.dtype == torch.bool else torch.where(rows, new, old)


def _last(x: Tensor, count: int, dim: int) -> Tensor:
    """The last ``count`` entries along an axis, by an index: a slice would ask whether there are so many."""
    return x.index_select(dim, torch.arange(count, device=x.device) + (x.shape[dim] - count))


def _packed(selected: Tensor, k: Tensor, v: Tensor, position: Tensor) -> State:
    """The slots ``selected (B, S)`` in their order, as many as the row with most of them has; empty slots come last."""
    counts = selected.long().cumsum(1)
    size: Any = counts[:, -1].max().item()
    assume_in_graph(size >= 0)
    assume_in_graph(size <= selected.shape[1])
    places = torch.where(selected, counts - 1, size)  # the others go to one slot after the last, which is cut off
    order = counts.new_zeros(selected.shape[0], size + 1).scatter(
        1, places, torch.arange(selected.shape[1], device=k.device).expand(selected.shape)
    )
    order = order.narrow(1, 0, size)
    filled = torch.arange(size, device=k.device) < counts[:, -1:]
    at = order[:, None, :, None].expand(-1, k.shape[1], -1, -1)
    keys, values = (x.gather(2, at.expand(-1, -1, -1, x.shape[3])) for x in (k, v))
    return {KEY: keys, VALUE: values, POSITION: torch.where(filled, position.gather(1, order), -1)}


def graph_state(mechanism: Mechanism, held: DynamicLayer, plain_scores: bool) -> tuple[StateTensor, ...]:
    """The state that a layer of this mechanism keeps in a graph.

    Args:
        mechanism: of the layer, causal.
        held: the layer's cache in eager decoding, after a token.
        plain_scores: whether the model leaves the scores q·k as they are.
    Raises:
        ExportError: what the mechanism keeps, or how it chooses among it, cannot be expressed as tensors.
    """
    state = held.state if isinstance(held, StateLayer) else None
    if mechanism.exports and mechanism.stateful and state is not None:
        return tuple(StateTensor(name, state[name].dtype, tuple(state[name].shape[1:])) for name in sorted(state))
    by_query = isinstance(mechanism.relative, QueryDependent)  # its table is as wide as the distances, which a graph does not know
    if mechanism.exports and not mechanism.stateful and not by_query:
        assert held.keys is not None
        assert held.values is not None
        none = torch.zeros(1, 1, dtype=torch.long)
        masked = isinstance(mechanism, MaskedMechanism) and not mechanism.takes_globals and plain_scores
        keeps_some_keys = masked and mechanism.kept(none, none) is not None
        if keeps_some_keys or (mechanism.takes_fewer_queries and not mechanism.position_dependent):
            reach = mechanism.reach(causal=True)
            most = None if reach is None else max(reach - 1, MIN_KEPT_KEYS)
            keys = tuple(
                StateTensor(name, x.dtype, (x.shape[1], 0, x.shape[3]), most) for name, x in ((KEY, held.keys), (VALUE, held.values))
            )
            return (*keys, StateTensor(POSITION, torch.long, (0,)), StateTensor(SEEN, torch.long, ())) if keeps_some_keys else keys
    raise ExportError(
        f"Mechanism {mechanism.name!r} with these options keeps or chooses past keys in a way that a graph with a cache cannot express; "
        "export one pass over the text (--task text-generation), or convert with another mechanism, for example window or linear."
    )


def graph_layer(tensors: tuple[StateTensor, ...], mechanism: Mechanism, state: State, before: int) -> GraphLayer:
    """The layer of these tensors, see :func:`graph_state`, with the state before a step."""
    if mechanism.stateful:
        return RecurrentLayer(state, before)
    if any(tensor.name == POSITION for tensor in tensors):
        return KeptKeysLayer(state, before)
    return KeysLayer(state, before, tensors[0].most)
