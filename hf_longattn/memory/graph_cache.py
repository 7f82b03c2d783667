"""Decode caches inside a traced graph. Each layer's state tensors are inputs and outputs of the graph.

A graph for all lengths cannot branch on values or lengths. These layers therefore compute attention themselves, with the methods that
mechanisms offer to the caches of eager decoding:

- :class:`KeysLayer` holds the keys and values (``key``, ``value``) of the last tokens that the mechanism sees. It attends by the
  mechanism's definition, with a matrix of new tokens × keys;
- :class:`SparseKeysLayer` holds the keys that :meth:`MaskedMechanism.kept` selects, with their positions;
- :class:`RecurrentLayer` holds the state of :meth:`~hf_longattn.Mechanism.advance`, which runs token by token (ONNX: Scan).

Before the first token every state is zeros, of size 0 along an axis that grows.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ..attend import run_batch
from ..engines.common.batch import Batch
from ..engines.common.call import AttentionCall, State
from ..engines.common.global_rows import assume_in_graph
from ..errors import ExportError
from ..mechanisms.common.base import Mechanism
from ..mechanisms.common.locality import keys_per_query
from ..mechanisms.common.masked import MaskedMechanism, kept_of
from ..positions.relative import QueryDependent
from ..private_apis import missing
from .cache_layer import AttentionCacheLayer, refuse_restricted_pairs
from .state_cache import StateLayer

KEY, VALUE, POSITION, SEEN = "key", "value", "position", "seen"
"""Tensor names in layers that hold keys. A recurrent layer takes the names from its mechanism."""
MIN_KEYS = 2
"""Minimum of ``StateTensor.most`` for keys. PyTorch cannot trace a dynamic axis of at most one entry."""


@dataclass(frozen=True)
class StateTensor:
    """One tensor of a layer's state.

    shape: without the batch axis, which comes first. Size 0 marks the axis that grows.
    most: maximum size of that axis; ``None`` if it has no maximum, or if no axis grows.
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

    state: the tensors before the step. :meth:`attend` replaces them with the tensors after it.
    before: the number of earlier tokens, padding included.
    """

    is_croppable = False

    def __init__(self, state: State, before: int) -> None:
        super().__init__()
        self.state, self.before = state, before

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Return only the new keys and values. :meth:`attend` reads the earlier tokens from the state."""
        return key_states, value_states

    def computes_attention(self, mechanism: Mechanism, q: Tensor, call: AttentionCall) -> bool:
        return True

    def note_padding(self, mask: Tensor | None) -> None:
        """Do nothing: :meth:`attend` reads the mask."""

    def get_seq_length(self) -> int:
        return self.before

    def attend(
        self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, weights_wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The output of the step, and ``None``. A graph returns no weights."""
        out, self.state = self.step(mechanism, q, k, v, call)
        return out, None

    @abstractmethod
    def step(self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> tuple[Tensor, State]:
        """The output ``(B, H, n, D)`` of the new tokens and the state after them. ``call.key_mask (B, tokens so far)`` is not ``None``."""


class KeysLayer(GraphLayer):
    """``key, value (B, H_kv, P, D)`` of the last P tokens, at most ``most`` (``None``: all tokens)."""

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


class SparseKeysLayer(GraphLayer):
    """``key, value (B, H_kv, P, D)`` of the keys that later queries can see.
    ``position (B, P)`` is each key's position in its sequence, -1 for padding and empty slots. ``seen (B,)``: positions so far."""

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
        # Before the first real token, the state stays empty (zeros).
        started = _last(mask.long().cumsum(1) > 0, q.shape[2], 1)
        inputs = [x.movedim(2, 0) for x in tokens.values()] + [x.movedim(1, 0) for x in (_last(mask, q.shape[2], 1), started)]
        # Contiguous: PyTorch compares the layout with the previous layer's, and cannot trace a comparison that depends on the length.
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
    """``new (B, …)`` where ``rows (B,)`` is true, ``old`` elsewhere. onnxruntime cannot select between booleans."""
    rows = rows.view(-1, *[1] * (old.dim() - 1))
    return (rows & new) | (~rows & old) if old.dtype == torch.bool else torch.where(rows, new, old)


def _last(x: Tensor, count: int, dim: int) -> Tensor:
    """The last ``count`` entries along an axis. They are indexed, because a slice would add a check of the axis's size."""
    return x.index_select(dim, torch.arange(count, device=x.device) + (x.shape[dim] - count))


def _packed(selected: Tensor, k: Tensor, v: Tensor, position: Tensor) -> State:
    """The slots ``selected (B, S)``, packed to the left in order. The row with the most slots sets the width. Empty slots are last."""
    counts = selected.long().cumsum(1)
    size: Any = counts[:, -1].max().item()
    assume_in_graph(size >= 0)
    assume_in_graph(size <= selected.shape[1])
    places = torch.where(selected, counts - 1, size)  # unselected slots go to one extra slot at the end, which is cut off
    order = counts.new_zeros(selected.shape[0], size + 1).scatter(
        1, places, torch.arange(selected.shape[1], device=k.device).expand(selected.shape)
    )
    order = order.narrow(1, 0, size)
    filled = torch.arange(size, device=k.device) < counts[:, -1:]
    at = order[:, None, :, None].expand(-1, k.shape[1], -1, -1)
    keys, values = (x.gather(2, at.expand(-1, -1, -1, x.shape[3])) for x in (k, v))
    return {KEY: keys, VALUE: values, POSITION: torch.where(filled, position.gather(1, order), -1)}


def graph_state(mechanism: Mechanism, held: DynamicLayer, plain_scores: bool) -> tuple[StateTensor, ...]:
    """The tensors of a layer's state in a graph.

    Args:
        mechanism: the layer's mechanism, causal.
        held: the layer's cache in eager decoding, after one token.
        plain_scores: whether the model leaves the scores q·k unchanged.
    Raises:
        ExportError: the mechanism's state, or its choice of past keys, cannot be expressed as tensors.
    """
    state = held.state if isinstance(held, StateLayer) else None
    if mechanism.traits.exports and mechanism.traits.stateful and state is not None:
        return tuple(StateTensor(name, state[name].dtype, tuple(state[name].shape[1:])) for name in sorted(state))
    by_query = isinstance(mechanism.relative, QueryDependent)  # its table has a row per distance, and a graph does not know how many
    if mechanism.traits.exports and not mechanism.traits.stateful and not by_query:
        assert held.keys is not None
        assert held.values is not None
        reach, none = keys_per_query(mechanism), torch.zeros(1, 1, dtype=torch.long)
        scattered = plain_scores and not mechanism.traits.takes_globals and reach is None
        keeps_some_keys = scattered and kept_of(mechanism, none, none) is not None
        if keeps_some_keys or (mechanism.traits.takes_fewer_queries and not mechanism.handling.position_dependent):
            most = None if reach is None else max(reach - 1, MIN_KEYS)
            keys = tuple(
                StateTensor(name, x.dtype, (x.shape[1], 0, x.shape[3]), most) for name, x in ((KEY, held.keys), (VALUE, held.values))
            )
            return (*keys, StateTensor(POSITION, torch.long, (0,)), StateTensor(SEEN, torch.long, ())) if keeps_some_keys else keys
    raise ExportError(
        f"Mechanism {mechanism.name!r} with these options keeps or chooses past keys in a way that a graph with a cache cannot express; "
        "export one pass over the text (--task text-generation), or convert with another mechanism, for example window or linear."
    )


def graph_layer(tensors: tuple[StateTensor, ...], mechanism: Mechanism, state: State, before: int) -> GraphLayer:
    """The layer for the tensors of :func:`graph_state`, with the state before a step."""
    if mechanism.traits.stateful:
        return RecurrentLayer(state, before)
    if any(tensor.name == POSITION for tensor in tensors):
        return SparseKeysLayer(state, before)
    return KeysLayer(state, before, tensors[0].most)


def scan_in_graph(
    step: Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], Tensor]], first: list[Tensor], inputs: list[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Run ``state, out = step(state, entries)`` along axis 0 of ``inputs``; return the last state, and all ``out`` along axis 0."""
    scan = getattr(importlib.import_module("torch._higher_order_ops"), "scan", None)
    if not callable(scan):
        raise missing("scan_in_graph")
    state, out = scan(step, first, inputs)
    return list(state), out
