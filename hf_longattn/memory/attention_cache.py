"""Cache layers that store less than all keys, and compute the attention of a decoding step themselves.

A :class:`SparseCacheLayer` is for mechanisms that see scattered keys, such as sinks and a window. It stores the keys
that a later token can still see, each with its column in the padded batch. It drops the keys that
:meth:`MaskedMechanism.retained` excludes. Positions count from each sequence's first real token, so that rows with
different padding store different columns. A row with fewer keys has empty slots (column -1).

A :class:`StateLayer` is for mechanisms with a state of constant size: linear states, ring buffers, segment memories.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, StaticLayer

from ..engines.batch import Batch, first_real, has_values, in_graph, transformed
from ..engines.call import AttentionCall, State
from ..engines.sequences import advanced
from ..errors import BackendError, InputError
from ..mechanisms.common.base import Mechanism, attention_weights
from ..mechanisms.common.masked import NO_TOKEN, RETAINED, Columns
from ..mechanisms.common.registry import prototype
from ..names import BACKEND, TESTED, warn_missing
from .key_cache import ReservedLayer, compact

STATE_LAYER = f"{BACKEND}_state"
"""The cache layer type of a state in ``config.layer_types``."""
NOT_STARTED = 1 << 40
"""Value of ``starts`` for a sequence without a real token so far. Larger than every column."""
SLACK = 64
"""Number of new tokens after which unneeded keys are removed."""


class AttentionCacheLayer(DynamicLayer):
    """A cache layer that can compute a step's attention instead of the mechanism.

    The layer reads from padding masks in which column each sequence starts.
    """

    keeps: ClassVar[str]
    """Description of the cached data, for :func:`hf_longattn.explain`."""
    computes_attention: bool
    """Whether :meth:`attend` must compute this step's attention. If not, ``update`` has returned all past keys and
    values, and the mechanism computes the attention."""
    record_past = False
    """Whether tokens may be removed again. transformers resets this attribute when it returns a cache."""
    cumulative_length: Any = 0
    """The number of tokens so far: a Python number, or in a static cache a tensor ``()`` on its device."""
    keys: Tensor
    values: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.starts: Any = None
        """``(B,)``: column of the first real token; :data:`NOT_STARTED` if there is none yet. ``None`` if unknown."""
        self._all_started = False
        """Whether every sequence has started."""

    @abstractmethod
    def attend(
        self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, weights_wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of the queries ``(B, H, Nq, D)`` of this step.

        Args:
            k, v: the keys and values that this layer's ``update`` returned.
            call: with the padding mask of all tokens seen so far. Its score term, if any, is a four-dimensional mask,
                a bias or a cap.
        Returns:
            ``(B, H, Nq, D)``, and the weights ``(B, H, Nq, tokens seen so far)`` if ``weights_wanted``.
        """

    def note_padding(self, mask: Tensor | None) -> None:
        """Read the padding mask ``(B, tokens seen so far)``. Called before every step.

        Raises:
            InputError: values of the mask cannot be read under ``torch.func.vmap``.
        """
        if self._all_started:
            return
        if mask is not None and not torch.compiler.is_compiling() and transformed() and in_graph():
            raise InputError(
                "This model's decode cache must read where each text starts, which torch.func.vmap hides; pass "
                "use_cache=False."
            )
        if self.starts is None:
            # on the layer's device, which stays the same if keys are offloaded
            self.starts = torch.full((len(self.keys),), NOT_STARTED, device=self.device)
        first = torch.zeros_like(self.starts)
        if mask is not None:
            first = torch.where(mask.bool().any(1), first_real(mask), NOT_STARTED)
        if not has_values(first):  # without values, every text counts as unpadded
            self.starts = None
            self._all_started = True
            return
        self.starts = torch.where(self.starts == NOT_STARTED, first, self.starts)
        self._all_started = bool((self.starts != NOT_STARTED).all())

    def get_seq_length(self) -> Any:
        return self.cumulative_length if self.is_initialized else 0

    def activate_past_recording(self) -> None:
        """From now on, keep what :meth:`crop` needs to remove tokens. Assisted decoding calls both methods."""
        self.record_past = True

    def check_crop(self, tokens_to_remove: int, removable: int) -> None:
        """Raise :class:`InputError` unless ``tokens_to_remove`` is between ``-removable`` and 0."""
        if not -removable <= tokens_to_remove <= 0:
            raise InputError(
                f"crop({tokens_to_remove}) was called on a cache that can remove its last {removable} tokens at most "
                f"(crop({-removable})); call its activate_past_recording() before you add tokens that may have to be "
                "removed, or copy the cache before (copy.deepcopy)."
            )

    def restart(self, rows: Tensor) -> None:
        """Start new sequences in the rows that are True in ``rows (B,)``. The mask must hide the old sequences."""
        if self.starts is not None:
            self.starts = self.starts.masked_fill(rows.to(self.starts.device), NOT_STARTED)
            self._all_started = False

    def renumber(self, count: int) -> None:
        """Renumber the columns, so that column ``count`` becomes column 0."""
        self.cumulative_length -= count
        if self.starts is not None:
            self.starts = torch.where(self.starts == NOT_STARTED, NOT_STARTED, self.starts - count)

    def change_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply ``change`` to every tensor of the layer with a batch dimension, that is, all except scalars."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.dim():
                setattr(self, name, change(value))
            elif isinstance(value, dict):
                setattr(self, name, {key: change(tensor) for key, tensor in value.items()})

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.change_rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.change_rows(lambda tensor: tensor[indices.to(tensor.device)])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def reset(self) -> None:
        super().reset()
        self.starts, self._all_started = None, False


def unread_cache(name: str) -> BackendError:
    """The error for a model whose attention does not read the cache. ``name``: class of the cache layer or attention
    module."""
    lowest, highest = TESTED["transformers"]
    return BackendError(
        f"{name} stored tokens in a decode cache that its attention never read; pass use_cache=False, or install "
        f"transformers {lowest} to {highest}, with which this is tested."
    )


def refuse_restricted_pairs(call: AttentionCall) -> None:
    """Raise :class:`InputError` if the call has a score term, because the cache has dropped keys."""
    if call.score_mod is not None:
        raise InputError(
            "A four-dimensional mask, a position bias or a cap on the scores (softcap) was given together with a "
            "cache that keeps only what the mechanism needs; pass a padding mask (batch, tokens) alone, or "
            "use_cache=False."
        )


class SparseCacheLayer(AttentionCacheLayer):
    """The keys and values ``(B, H, S, D)``, at ``columns (B, S)``, that later tokens can still see.

    The keys depend on ``mechanism`` and ``options`` (JSON). Unneeded keys are removed after every :data:`SLACK`
    tokens. After the first removal, the layer computes the attention.
    """

    keeps = "retained keys"

    def __init__(self, mechanism: str, options: str, **kwargs: Any) -> None:
        """``options``: JSON of the mechanism's options."""
        super().__init__()
        self.mechanism = mechanism
        self.options = options
        self.cumulative_length = 0
        self.columns: Any = None
        """``(B, S)``, the column of each stored key; -1 in empty slots. ``None`` until the first tokens."""
        self.step = Batch()
        """Caches columns, positions and masks of this step, for all layers of the cache with equal options."""
        self.computes_attention = False
        self._clean_size = 0
        """Number of slots after keys were last dropped."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new tokens, and return all keys and values of the layer. Before that, drop unneeded keys if
        :data:`SLACK` tokens have been added since the last time."""
        if self.columns is None:
            self.columns = torch.empty(key_states.shape[0], 0, dtype=torch.long, device=key_states.device)
        if not self.record_past:
            self._drop_unneeded()
        columns, first, count = self.columns, self.cumulative_length, key_states.shape[2]

        def with_new_columns() -> Tensor:
            new = torch.arange(first, first + count, device=columns.device)
            return torch.cat([columns, new.expand(len(columns), -1)], 1)

        self.columns = self.step.cached((first, *columns.shape, columns.device), with_new_columns)
        self.cumulative_length += count
        return super().update(key_states, value_states)

    def share_step(self, layers: list[Any]) -> None:
        """Reuse in this step what the first of the cache's ``layers`` with the same mechanism and options computes.

        The first of them starts a new step.
        """
        first = next(
            layer
            for layer in layers
            if isinstance(layer, SparseCacheLayer)
            and (layer.mechanism, layer.options) == (self.mechanism, self.options)
        )
        self.step = Batch() if first is self and not in_graph() else first.step

    def _drop_unneeded(self) -> None:
        """Drop the keys that later tokens do not see, if :data:`SLACK` tokens have been added since the last time."""
        if self.columns.shape[1] < self._clean_size + SLACK:
            return
        if not self._all_started:  # positions count from the starts
            return
        key = ("pruned", self.cumulative_length, *self.columns.shape, self.columns.device)
        order, self.columns = self.step.cached(key, self._pruned)
        slots = order[:, None, :, None].expand(-1, self.keys.shape[1], -1, -1)
        self.keys = self.keys.gather(2, slots.expand(-1, -1, -1, self.keys.shape[3]))
        self.values = self.values.gather(2, slots.expand(-1, -1, -1, self.values.shape[3]))
        self.computes_attention = True
        self._clean_size = self.columns.shape[1]

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens, then drop unneeded keys as in :meth:`update`.

        Raises:
            InputError: keys have been dropped since these tokens were added. While the past is recorded, only this
                method drops keys.
        """
        if self.columns is None:
            return
        self.check_crop(tokens_to_remove, self.columns.shape[1] - self._clean_size)
        super().crop(tokens_to_remove)
        self.columns = self.columns[:, : self.columns.shape[1] + tokens_to_remove]
        self.cumulative_length += tokens_to_remove
        self._drop_unneeded()

    def positions(self) -> Tensor:
        """Position of each key in its own sequence, ``(B, S)``; negative for padding and empty slots."""
        return torch.where(self.columns < 0, -1, self.columns - self.starts[:, None])

    def _pruned(self) -> tuple[Tensor, Tensor]:
        """The slots of the keys that later tokens can see, ``(B, S)`` in their order, and the columns of these keys.

        A row with fewer keys is filled up at the end, with columns of -1.
        """
        positions = self.positions()
        upcoming = (self.cumulative_length - self.starts[:, None]).clamp(min=0)
        mechanism: Any = prototype(self.mechanism, self.options)
        selected = mechanism.retained(positions, upcoming) & (positions >= 0)  # (B, S)
        size = int(selected.sum(1).max())
        order = (~selected).to(torch.uint8).argsort(dim=1, stable=True)[:, :size]
        return order, torch.where(selected.gather(1, order), self.columns.gather(1, order), -1)

    def attend(
        self, mechanism: Any, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, weights_wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attention over the retained keys, by their positions. The weights are ``(B, H, Nq, all tokens so far)``."""
        refuse_restricted_pairs(call)
        mask, total = call.key_mask, self.cumulative_length

        def find() -> tuple[Tensor, Tensor]:
            """Positions of the queries, ``(B, Nq)``, and of the keys, ``(B, S)``."""
            keys = self.positions()
            real = keys >= 0
            if mask is not None:
                real = real & mask.gather(1, self.columns.clamp(min=0))
            queries = torch.arange(total - q.shape[2], total, device=q.device) - self.starts[:, None]
            return queries, torch.where(real, keys, NO_TOKEN)

        columns = Columns((RETAINED, k.shape[2]), find)
        call = call.replace(causal=True, batch=self.step, global_mask=None)
        out = mechanism.attend_rows(q, k, v, call, columns)
        if not weights_wanted:
            return out, None

        # If each key's value is the one-hot vector of its column, the outputs are the weights.
        _, keys = find()
        real = keys < NO_TOKEN
        one_hot = torch.eye(total, dtype=v.dtype, device=v.device)[self.columns.clamp(min=0)] * real[..., None]
        one_hot = one_hot[:, None].expand(-1, k.shape[1], -1, -1)
        return out, mechanism.attend_rows(q, k, one_hot, call.replace(dropout=0.0), columns)

    def unused(self) -> int:
        """Number of leading columns without a stored key."""
        if self.columns is None or not (self.columns >= 0).any():
            return self.cumulative_length
        return int(self.columns[self.columns >= 0].min())

    def renumber(self, count: int) -> None:
        super().renumber(count)
        if self.columns is not None:
            self.columns = torch.where(self.columns < 0, -1, self.columns - count)

    def reset(self) -> None:
        self.__init__(self.mechanism, self.options)  # type: ignore[misc]


class StateLayer(AttentionCacheLayer):
    """The state that :meth:`Stateful.advance` returned, and the number of tokens that the state contains."""

    _layer_type = STATE_LAYER
    keeps = "a state"
    computes_attention = True  # the layer holds no keys
    is_unread = False
    """Whether tokens were added that the attention function has not read yet."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.state: State | None = None
        self._latest = NOT_STARTED
        """The largest of ``starts``; :data:`NOT_STARTED` until all sequences have started."""
        self._before: State | None = None
        """The state before the recorded steps. :meth:`crop` starts from it."""
        self._steps: list[tuple[int, Callable[[State | None, int], State | None]]] = []
        """Recorded steps: number of tokens, and a function that adds the first n of them to a state."""

    @property
    def is_croppable(self) -> bool:
        return self.record_past

    def activate_past_recording(self) -> None:
        if not self.record_past:
            self._forget_steps()
        super().activate_past_recording()

    def _forget_steps(self) -> None:
        """Record steps from the current state on."""
        self._before = self.state
        self._steps = []

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens: add the recorded tokens before them to the state before all
        recorded steps.

        Raises:
            InputError: these tokens were not recorded.
        """
        recorded = sum(count for count, _ in self._steps)
        self.check_crop(tokens_to_remove, recorded)
        remaining = recorded + tokens_to_remove
        if tokens_to_remove:
            self.state = self._before
            for count, add in self._steps:
                self.state = add(self.state, min(count, remaining))
                remaining -= min(count, remaining)
            self.cumulative_length += tokens_to_remove
        self._forget_steps()

    def change_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        super().change_rows(change)
        self._forget_steps()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (x.new_empty(*x.shape[:2], 0, x.shape[3]) for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Count the new tokens and return their keys and values; :meth:`attend` adds them to the state.

        Raises:
            BackendError: earlier tokens were never read by the attention function.
        """
        if self.is_unread and not torch.compiler.is_exporting():
            raise unread_cache(type(self).__name__)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cumulative_length += key_states.shape[2]  # a tensor is updated in place
        self.is_unread = True
        return key_states, value_states

    def note_padding(self, mask: Tensor | None) -> None:
        self.is_unread = False
        # A static cache's first call is not compiled. Every sequence starts in that call.
        if self.is_compileable and torch.compiler.is_compiling():
            return
        super().note_padding(mask)
        if self.starts is not None and self._all_started and self._latest == NOT_STARTED:
            self._latest = int(self.starts.max())

    def attend(
        self, mechanism: Any, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, weights_wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Add the new tokens to the state, and return their outputs. Weights are available in the first step only."""
        refuse_restricted_pairs(call)
        total = int(self.cumulative_length)
        before = total - q.shape[2]
        if call.key_mask is not None:
            call = call.with_mask(call.key_mask[:, before:total])
        weights = None
        if weights_wanted:
            if before:
                raise InputError(
                    f"Attention weights were requested while decoding, but {mechanism.name!r} keeps a state in place "
                    "of the earlier keys; pass use_cache=False or output_attentions=False."
                )
            weights = attention_weights(mechanism, q, k, call.replace(causal=True))
        padding: list[int] = []  # tokens before each row's first real one, if there are any
        if self.starts is not None and self._latest > before:
            padding = (self.starts - before).clamp(0, q.shape[2]).tolist()

        def add(state: State | None, count: int) -> tuple[Tensor, State | None]:
            """The outputs of the first ``count`` new tokens, and the state after them."""
            tokens = slice(count)
            tokens_call = call if call.key_mask is None else call.with_mask(call.key_mask[:, tokens])
            out, after = advanced(
                mechanism.advance,
                q[:, :, tokens],
                k[:, :, tokens],
                v[:, :, tokens],
                state,
                tokens_call,
                [min(skipped, count) for skipped in padding],
            )
            if after is not None:
                after = {name: compact(x.detach()) for name, x in after.items()}
            return out, after

        if self.record_past:
            self._steps.append((q.shape[2], lambda state, count: add(state, count)[1] if count else state))
        out, self.state = add(self.state, q.shape[2])
        return out, weights

    def unused(self) -> int:
        """Number of columns that the mask may drop: all, because the state contains their tokens."""
        return int(self.cumulative_length)

    def restart(self, rows: Tensor) -> None:
        """Start new sequences in the batch rows that are True in ``rows (B,)``. Their state becomes zeros, the state
        before the first token."""
        super().restart(rows)
        self._latest = NOT_STARTED
        if self.state is not None:
            state = {}
            for name, x in self.state.items():
                restarts = rows.to(x.device).view(-1, *[1] * (x.dim() - 1))
                state[name] = torch.where(restarts, torch.zeros_like(x), x)
            self.state = state
        self._forget_steps()

    def renumber(self, count: int) -> None:
        super().renumber(count)
        if self._all_started:
            self._latest -= count

    def reset(self) -> None:
        super().reset()
        self.state = None
        self._latest = NOT_STARTED
        self.is_unread = False
        self._forget_steps()


class StaticStateLayer(ReservedLayer, StateLayer, StaticLayer):
    """The state layer for :class:`transformers.StaticCache`. The state never moves in memory, so all decoding steps
    are one graph."""

    is_compileable = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.cumulative_length = self.cumulative_length.to(self.device)
        stays_in_place(self.cumulative_length)

    def attend(
        self, mechanism: Any, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, weights_wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`StateLayer.attend`.

        Once all sequences have started, the new state is copied into the old one's memory.
        """
        # Until every sequence has started, the state may be replaced. Its tensors then stay where they are.
        if not self.started or self.state is None or not self._all_started or weights_wanted:
            out, weights = super().attend(mechanism, q, k, v, call, weights_wanted)
            self.started = True
            for tensor in (self.state or {}).values():
                stays_in_place(tensor)
            return out, weights
        refuse_restricted_pairs(call)
        if call.batch is not None and (mask := call.batch.mask) is not None:
            count, total = q.shape[2], self.cumulative_length

            def mask_of_new() -> Tensor:
                return mask.index_select(1, torch.arange(count, device=total.device) + (total - count))

            call = call.with_mask(call.batch.cached(("new tokens", count), mask_of_new))
        out, state = mechanism.advance(q, k, v, self.state, call)
        for name, tensor in state.items():
            self.state[name].copy_(tensor)
        return out, None


def stays_in_place(tensor: Tensor) -> None:
    """Tell compiled graphs that ``tensor`` keeps its address, as CUDA graphs need. Does nothing while a graph is
    compiled."""
    import torch._dynamo

    if torch.compiler.is_compiling():
        return
    mark = getattr(torch._dynamo, "mark_static_address", None)
    if mark is None:
        warn_missing("stays_in_place")
        return
    mark(tensor)
