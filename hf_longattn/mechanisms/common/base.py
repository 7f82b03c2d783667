"""What every mechanism is: a small module with documented options, a fast forward and a float64 definition."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...engines.common.call import UNBOUNDED, AttentionCall, ScoreMod, State, TokenTerm, mod_of_heads, weights_per_sequence
from ...engines.common.dense import grid_of, index_grid, repeat_heads
from ...engines.common.global_rows import put_rows
from ...engines.common.shards import GlobalTokens, Locality, Shard, cut_evenly, in_turn, softmax_rows
from ...errors import LengthError, MaskError, OptionError
from ...positions.distances import Extent, untrained_distances
from ...positions.relative import RelativePositions, Span, build_relative
from .options import Options
from .token_rules import TokenRule

KeptKeys = Callable[[Tensor, Tensor], Tensor]
"""``(rows, scores) -> kept``: which keys the queries at ``rows (n,)`` keep, ``(B, H, n, N)`` bool (broadcastable). Their scores are
``(B, H, n, N)``, -inf for keys that causality or padding hides; such keys may be among those kept."""
DENSE_LIMIT = 4096
"""Longest input, in tokens, for which dense attention weights are returned."""


@dataclasses.dataclass(frozen=True)
class Recursion:
    """How a model processes a text segment by segment, with memory tokens passed from each to the next.

    length: tokens of a segment, memory included.
    memory: memory tokens.
    depth: how many segments back gradients flow; ``None`` is all of them.
    """

    length: int
    memory: int
    depth: int | None = None

    def text(self, causal: bool) -> int:
        """Tokens of text in a segment: a causal one has its memory twice, to read in front and to write at the end."""
        return self.length - self.memory * (2 if causal else 1)


class Mechanism(nn.Module, ABC):
    """One attention mechanism, built for one layer by :func:`hf_longattn.build_mechanism`.

    Tensors are ``q (B, H, Nq, D)`` and ``k, v (B, H_kv, Nk, D)`` with ``H_kv`` dividing ``H``. With ``Nq < Nk`` the queries are the
    last ``Nq`` positions of the keys' sequence (decoding with a cache).
    """

    name: ClassVar[str]
    """Set by :func:`hf_longattn.register_mechanism`."""
    summary: ClassVar[str] = ""
    """One line for lists of mechanisms."""
    paper: ClassVar[str] = ""
    """Author, year, title, section or equation."""
    engine: ClassVar[str] = "its own"
    cost: ClassVar[str] = "not stated"
    """How time grows with the length N, such as ``"N·w"``."""
    exact_when: ClassVar[str] = "not stated"
    """The options with which it equals full softmax attention."""
    causal: bool | str = "both"
    """``"both"``, or ``True``/``False`` for a mechanism that exists in the causal/bidirectional form only."""
    trains: bool = False
    """Whether the mechanism adds parameters, so that a converted checkpoint needs training."""
    bitwise_causal: ClassVar[bool] = True
    """Whether a causal row is bitwise unchanged when later tokens change; otherwise it is unchanged up to rounding (1e-6)."""
    takes_globals: bool = False
    """Whether the mechanism uses ``global_mask``."""
    exports: str = "engine"
    """What ``torch.export`` writes as one graph for all lengths: the ``"engine"``; the ``"definition"``, which takes N×N memory, if the
    layout of the work depends on the length or the data; or nothing, ``""``."""
    takes_score_mod: bool = True
    """Whether there are scores to which a term (``score_mod``, a position bias, a dense mask) can be added."""
    takes_fewer_queries: ClassVar[bool] = True
    """Whether there may be fewer queries than keys; otherwise that raises LengthError."""
    position_dependent: bool = True
    """Whether the output depends on where a sequence starts, as with blocks, columns and counted positions; otherwise left padding needs
    no more than a key mask."""
    trims_padding: bool = False
    """Whether the engine for long inputs cuts the outer padding off every row by itself, so that rows need not be split."""
    takes_documents: ClassVar[bool] = False
    """Whether ``forward`` keeps packed documents apart on the CPU, each as if it were alone, so that rows need not be split."""
    is_cross_attention: bool = False
    """Whether the queries belong to another sequence than the keys, so that they are not cut where the keys have padding: set on the
    mechanism of a cross-attention module."""
    shard: Shard | None = None
    """The part of the sequence that a call is given, where it is cut over processes (:func:`hf_longattn.sequence_parallel`)."""
    needs_whole_batch: bool = False
    """Whether the rows of a batch must be one call because the mechanism draws or learns something once per call."""
    stateful: bool = False
    """Whether decoding keeps a state of constant size in place of the keys; see :meth:`advance`."""
    takes_hidden_states: bool = False
    """Whether this mechanism needs its layer's input, ``call.hidden_states (B, Nk, hidden_size)``."""
    per_head_tensors: tuple[str, ...] | None = None
    """Names, below the mechanism, of the tensors whose first axis is the heads, where heads are independent of each other and nothing else
    depends on which or how many they are: a process can then compute some of the heads (:meth:`of_heads`). ``None``: not so."""
    head_range: tuple[int, int] | None = None
    """Of a part that :meth:`of_heads` made, its first head and the number of all."""
    fits_activations: bool = False
    """Whether :meth:`init_from_activations` has parameters to set."""
    copies: Mapping[str, str] = MappingProxyType({})
    """Parameters initialised as copies of the layer's own: name below the mechanism -> "query", "key" or "value" with ".weight"/".bias"."""
    shared_by_layers: tuple[str, ...] = ()
    """Parameters tied across all layers of a model whose mechanisms have equal options."""
    options_type: ClassVar[type[Options]] = Options
    ignores_padding: bool = True
    """Whether padding changes nothing. False only where an option reproduces another implementation that counts it."""
    layer: int = 0
    """Index of its layer, by which the layers of a seeded mechanism differ; set when it is attached to a model."""
    sample: ClassVar[dict[str, Any]] = {}
    """Options that suit inputs of some hundred tokens, for tests and pictures."""

    @classmethod
    def covering(cls, length: int, causal: bool) -> dict[str, Any] | None:
        """Options by which the mechanism equals full softmax attention up to ``length`` tokens; ``None`` where none are known."""
        return None

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: Options) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.hidden_size, self.max_length = num_heads, head_dim, hidden_size, max_length
        self.options = options
        self.relative: RelativePositions | None = None
        if options.relative is not None:
            self.relative = build_relative(options.relative, num_heads, head_dim, hidden_size)
            self.register_forward_pre_hook(_with_relative)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Set every parameter and buffer, those of relative positions and of members included, to its initial value.

        A mechanism that owns tensors extends this. Nothing else may initialise them: a mechanism built without storage and then filled by
        this method must equal a newly built one, since this is how models are loaded.

        Args:
            generator: source of random values, on the tensors' device; torch's default generator if None.
        """
        inside: set[int] = set()
        for part in _parts(self):
            reset(part, generator)
            inside |= {id(tensor) for tensor in (*part.parameters(), *part.buffers())}
        own = next((name for name, tensor in (*self.named_parameters(), *self.named_buffers()) if id(tensor) not in inside), None)
        if own is not None and type(self).reset_parameters is Mechanism.reset_parameters:
            raise OptionError(
                f"Mechanism {self.name!r} owns a tensor, {own!r}, that nothing initialises; "
                "define reset_parameters(self, generator=None) in its class."
            )

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The attention output ``(B, H, Nq, D)`` in the dtype of ``q``, for sequences that start at index 0.

        Padding comes after a sequence or between its tokens, as ``call.key_mask``; only a mechanism whose output does not depend on where
        a sequence starts (:attr:`position_dependent`) may be given padding before it.
        """

    @abstractmethod
    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The definition: the N×N matrix ``(B, H, Nq, Nk)`` that multiplies the values, in the dtype of ``q``.

        Relative positions come in by ``call.score_mod``, as in the engines: :meth:`defined` and :meth:`weights` put them there.
        """

    def per_sequence(self, call: AttentionCall) -> bool:
        """Whether the sequences of a call are brought to index 0 before the mechanism runs."""
        return call.batch is not None and (self.ignores_padding or call.batch.documents is not None)

    def defined(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The definition in the inputs' dtype, without dropout; exported where the engine cannot be."""
        return self._weights(q, k, call) @ repeat_heads(v, q.shape[1])

    def reference(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The definition in float64, with the N×N matrix: ``(B, H, Nq, D)``."""
        return self.defined(q.double(), k.double(), v.double(), call)

    def weights(self, q: Tensor, k: Tensor, call: AttentionCall | None = None, **arguments: Any) -> Tensor:
        """The attention weights, ``(B, H, Nq, Nk)``, for ``output_attentions=True`` and plots; zeros for padding.

        Raises:
            LengthError: above :data:`DENSE_LIMIT` tokens, where the dense matrix would not fit.
        """
        if k.shape[2] > DENSE_LIMIT:
            raise LengthError(
                f"Attention weights were asked for {k.shape[2]} tokens, but the dense matrix is returned up to {DENSE_LIMIT} only; "
                "pass shorter inputs or output_attentions=False."
            )
        if 0 in q.shape:
            return q.new_zeros(*q.shape[:3], k.shape[2])
        precise = torch.promote_types(q.dtype, torch.float32)
        call = AttentionCall.of(**arguments) if call is None else call
        run = functools.partial(weights_per_sequence, self._weights) if self.per_sequence(call) else self._weights
        return run(q.to(precise), k.to(precise), call).to(q.dtype)

    def _weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        return self.dense_weights(q, k, self._with_dense_terms(q, k, call))

    def _with_dense_terms(self, q: Tensor, k: Tensor, call: AttentionCall) -> AttentionCall:
        """The call whose score term includes the relative positions, taken from their N×N definition."""
        if self.relative is None:
            return call
        q_len, kv_len = q.shape[2], k.shape[2]
        places = torch.arange(kv_len, device=q.device)
        distance = places[None, kv_len - q_len :, None] - places
        term = self.relative.term(q, k, distance, call.causal, call.scale_for(self.head_dim))

        def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return score + term[b.clamp(max=len(term) - 1), h, (q_idx - (kv_len - q_len)).clamp(min=0), kv_idx]

        return call.replace(score_mod=both(mod, call.score_mod))

    def with_relative(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> AttentionCall:
        """The call of ``forward`` whose score term includes the relative positions; a hook calls this."""
        mod = self.relative_mod(q, k, call)
        return call if mod is None else call.replace(score_mod=both(mod, call.score_mod))

    def relative_mod(self, q: Tensor, k: Tensor, call: AttentionCall) -> ScoreMod | None:
        """The relative positions' term for ``q (B, H, Nq, D)``, the last queries of ``k (B, H_kv, Nk, D)``; ``None`` where there are none.

        ``forward`` is given it by a hook. Whoever attends without ``forward`` (a decode cache) passes it on.
        """
        if self.relative is None:
            return None
        span = self.span(q.shape[2], k.shape[2], call.causal)
        return self.relative.score_mod(q, k, call.causal, call.scale_for(self.head_dim), span)

    def span(self, q_len: int, kv_len: int, causal: bool) -> Span:
        """The furthest distances query - key that some query sees, back and ahead."""
        reach = self.reach() if causal else None
        return (kv_len if reach is None else min(reach, kv_len)) - 1, 0 if causal else q_len - 1

    @property
    def recursion(self) -> Recursion | None:
        """How the whole model runs in segments; ``None`` where it does not."""
        return None

    @property
    def token_rule(self) -> TokenRule | None:
        """Which tokens are global by their ids, where no global mask is given; the model applies it. ``None`` where ids play no part."""
        return None

    def wrong_form(self, causal: bool, where: str) -> OptionError:
        """The refusal of a form that ``where`` needs and that does not exist with these options, see :attr:`causal`."""
        chosen = "" if type(self).causal == self.causal else " with these options"
        return OptionError(
            f"Mechanism {self.name!r} exists only with causal={self.causal}{chosen}, but {where} needs causal={causal}; "
            f"choose {'others, or ' if chosen else ''}one of hf_longattn.list_mechanisms(causal={causal})."
        )

    def band(self, causal: bool) -> tuple[int, int] | None:
        """``(back, ahead)``, where the mechanism is softmax attention to all keys of these distances at any length, as a model's own window
        and full attention are; ``None`` for anything else."""
        everything = self.relative is None and self.covers(UNBOUNDED, causal)
        return (UNBOUNDED, 0 if causal else UNBOUNDED) if everything else None

    def reach(self, causal: bool = True) -> int | None:
        """How many past keys a causal query sees, its own included; ``None`` when unbounded. Sizes the decode cache."""
        return None

    def kept_keys(self, q: Tensor, k: Tensor, call: AttentionCall) -> KeptKeys | None:
        """Which keys of full attention each query keeps, where the mechanism is softmax over some of them; ``None`` for anything else.

        For some rows at a time, in memory linear in N, without the values and for any queries: :mod:`hf_longattn.diagnostics` measures how
        much of the softmax's mass is kept.

        Args:
            q, k: ``(B, H, N, D)``, ``(B, H_kv, N, D)`` of whole sequences, by which data-dependent mechanisms select.
        """
        return None

    def kept(self, positions: Tensor, upcoming: Tensor) -> Tensor | None:
        """Which of the keys at ``positions (B, S)`` some causal query at or after ``upcoming (B, 1)`` can see: ``(B, S)`` bool.

        ``None`` when every key stays within reach. Positions count from each sequence's first real token. Where this keeps fewer keys
        than :meth:`reach`, the decode cache keeps just these, and :meth:`attend_kept` runs on them.
        """
        return None

    def advance(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall) -> tuple[Tensor, State]:
        """Causal attention of new tokens, given the state after the past ones; for ``stateful`` mechanisms.

        Args:
            q, k, v: of the new tokens only, ``(B, H, n, D)`` and ``(B, H_kv, n, D)``.
            state: what :meth:`advance` returned before, or ``None`` at the beginning.
            call: its ``key_mask (B, n)`` is that of the new tokens.
        Returns:
            The output ``(B, H, n, D)`` and the new state: tensors with the batch first, of a size that does not depend on the text. A row
            of zeros is the state before its first real token, so that single rows of a batch can be reset.
        """
        raise OptionError(f"Mechanism {self.name!r} decodes from the keys and values of earlier tokens, not from a state.")

    def locality(self, causal: bool) -> Locality | None:
        """How far a token sees, global tokens apart; ``None`` when that is not bounded. A bounded mechanism can be cut over processes."""
        return None

    def extent(self, causal: bool) -> Extent | None:
        """Where the keys of one query lie, global tokens and sinks apart; ``None`` if that is not bounded, or decided by content."""
        local = self.locality(causal)
        if local is None:
            return None
        counted = local.period - 1 if local.ahead else 0  # the further a query is into its block, the less of it lies ahead
        return Extent(local.back, local.ahead, local.back + local.ahead - counted)

    def untrained_distances(self, rule: str, trained: int, length: int, causal: bool) -> str:
        """Why positions that are extended by ``rule`` do not hold for this mechanism without training, as
        :func:`~hf_longattn.positions.untrained_distances` says; empty if they do."""
        return untrained_distances(rule, trained, length, self.extent(causal), self.reach())

    def resolve_globals(self, k: Tensor, call: AttentionCall) -> Tensor | None:
        """The global tokens ``(B, Nk)`` bool of this call, for keys ``k (B, H_kv, Nk, D)``; ``None`` without global tokens."""
        return None

    def attend_sharded(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, shard: Shard) -> Tensor:
        """This process's rows of a sequence that is cut over processes; all of them call it.

        A bounded mechanism takes the neighbouring tokens' keys and values, and those of the global tokens; the rows of global tokens are
        made of every process's sums. A recurrence runs in one process after the other. What needs whole sequences gets those of some
        heads, see :meth:`attend_by_heads`.

        Args:
            q: ``(B, H, n, D)``, this process's own tokens; k, v: ``(B, H_kv, n, D)``.
            call: without batch and global tokens, which the shard knows.
        Raises:
            OptionError: every token's output depends on the whole sequence in a way that cannot be cut.
            MaskError: left padding or packed documents, where tokens are counted.
        """
        local = self.locality(call.causal)
        if local is None:
            return self._in_turn(q, k, v, call, shard)
        mask = self.resolve_globals(k.new_empty(1).expand(len(k), 1, shard.length, 1), shard.call(call, 0, shard.length))
        counted = (local.period > 1 or mask is not None) and not shard.starts_at_first
        if counted or (mask is not None and isinstance(call.score_mod, TokenTerm)):
            return self.attend_by_heads(q, k, v, call, shard)
        if mask is None:
            return shard.attend(functools.partial(shard.run, self), q, k, v, call, local)
        if self.relative is not None:
            raise OptionError(
                f"Mechanism {self.name!r} with relative positions and global tokens cannot be cut over processes; leave out one of the two."
            )
        tokens = GlobalTokens.of(mask)
        out = shard.attend(self.attend_resolved, q, k, v, call, local, tokens)
        index, real = tokens.index, tokens.real
        if not self.global_rows(call.causal) or not index.shape[1]:
            return out
        rows = softmax_rows(*self.of_global_rows(q, k, v, call, index, shard), index, call.scale_for(q.shape[-1]), call, shard)
        return put_rows(out, rows.to(out.dtype), (index - shard.start).clamp(min=0), real & shard.owns(index))

    def attend_resolved(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """:meth:`forward` where the global tokens are those of ``call.global_mask`` and nothing else; their rows may be anything."""
        return self(q, k, v, call)

    def global_rows(self, causal: bool) -> bool:
        """Whether global tokens see every key."""
        return True

    def of_global_rows(
        self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, index: Tensor, shard: Shard
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(B, H, g, D)`` of the global tokens ``index (B, g)``, and the keys and values ``(B, H, n, D)`` that they see here."""
        return shard.tokens(q, index), repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])

    def _in_turn(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, shard: Shard) -> Tensor:
        """:meth:`advance` in one process after the other."""
        if not (self.stateful and call.causal):
            return self.attend_by_heads(q, k, v, call, shard)
        self.check_shard(shard)
        own = shard.own_call(call)
        return in_turn(lambda state: self.advance(q, k, v, state, own), q, shard)

    def attend_by_heads(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, shard: Shard) -> Tensor:
        """This process's rows, by computing whole sequences of some of the heads and exchanging heads for tokens before and after.

        For mechanisms whose tokens depend on the whole sequence, and for documents and left padding where tokens are counted.

        Raises:
            OptionError: the mechanism cannot be divided by heads, or there are fewer heads than processes.
            MaskError: the same, where another padding would do.
        """
        heads, processes = q.shape[1], len(shard.bounds)
        if self.per_head_tensors is None or self.relative is not None or self.takes_hidden_states or heads < processes:
            self.check_shard(shard)
            if self.per_head_tensors is not None and heads < processes:
                raise OptionError(
                    f"Mechanism {self.name!r} needs whole sequences, so that processes divide its heads, but {heads} heads cannot be "
                    f"divided over {processes} processes; use at most {heads}, or a local mechanism, for example longformer."
                )
            with_relative = "relative positions" if self.relative is not None else "these options"
            raise OptionError(
                f"Mechanism {self.name!r} with {with_relative} looks at the whole sequence, which cannot be cut over processes; "
                "choose a local or a linear one, for example window, longformer or linear, or leave sequence parallelism out."
            )
        if k.shape[1] < processes:
            k, v = repeat_heads(k, heads), repeat_heads(v, heads)
        groups, each = cut_evenly(k.shape[1], processes), heads // k.shape[1]
        divided = [(first * each, last * each) for first, last in groups]
        first, last = divided[shard.rank]
        q, k, v = shard.whole(divided, groups, q, k, v)
        term = call.score_mod
        term = term.of(q, k, range(first, last)) if isinstance(term, TokenTerm) else mod_of_heads(term, range(first, last), q.device)
        named = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        tensors = {f"mechanism.{name}": named[name][first:last] for name in self.per_head_tensors}
        whole = shard.call(call.replace(score_mod=term), 0, shard.length)
        out = torch.func.functional_call(_SomeHeads(self), tensors, (shard.run, self.of_heads(first, last), q, k, v, whole))
        return shard.own(divided, out)

    def of_heads(self, first: int, last: int) -> Mechanism:
        """This mechanism as one of the heads ``first … last - 1``. It shares all tensors; a call replaces :attr:`per_head_tensors`."""
        part = copy.copy(self)
        part.num_heads, part.head_range = last - first, (first, self.num_heads)
        return part

    def check_shard(self, shard: Shard) -> None:
        """Refuse a batch whose sequences do not all start at the first token, where that is cut over processes and tokens are counted."""
        if not shard.starts_at_first:
            raise MaskError(
                f"Mechanism {self.name!r} counts tokens from the first one of each sequence, which another process may have where rows are "
                "padded on the left or hold several documents; pad on the right, with one document in each row."
            )

    def init_from_activations(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None = None, *, causal: bool = False) -> bool:
        """Set the parameters from what a trained layer of full attention computes on some text; returns whether there was anything to set.

        Args:
            q, k, v: ``(S, H, N, D)`` of S sequences, at least two.
            real: ``(S, N)`` bool, True = real token; ``None`` where all are.
            causal: whether the layer looks back only.
        """
        return False

    def stops_gradients(self, length: int) -> bool:
        """Whether, in a text of ``length`` tokens, gradients must stop at the hidden states that some keys and values are made from.

        A model then makes the keys and values of a call twice while gradients are computed, the second time from hidden states that are
        constants, and hands these to ``forward`` as ``detached_kv``, a pair ``(B, H_kv, n, D)`` of the call's own n tokens: what flows into
        them reaches the layer's projections, but not the hidden states.
        """
        return False

    def auxiliary_loss(self) -> Tensor | None:
        """A term, weighted already, that a model adds to its loss while it trains; ``None`` when there is none."""
        return None

    def covers(self, length: int, causal: bool = False) -> bool:
        """Whether the mechanism equals full softmax attention for every input of up to ``length`` tokens."""
        return False

    def fused_mask(self, key: Tensor, causal: bool) -> Tensor | bool:
        """How calling this module for whole rows of real tokens, with keys ``key (B, H_kv, N, D)``, runs one fused call and nothing else:
        ``True`` without a mask, besides causality, or with an additive mask ``(1, 1, N, N)``; ``False`` where it does not."""
        return False

    def pairs(self, length: int, causal: bool = False) -> int:
        """Query–key products of one head for an input of ``length`` tokens, the unit in which costs are compared."""
        return length * (length + 1) // 2 if causal else length * length

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.to_dict().items())


def reset(module: Any, generator: torch.Generator | None) -> None:
    """``module.reset_parameters(generator)``; without the argument where a class from outside does not take it, as torch's own do not."""
    takes = "generator" in inspect.signature(module.reset_parameters).parameters
    module.reset_parameters(*([generator] if takes else []))


def _parts(module: nn.Module) -> Iterator[Mechanism | RelativePositions]:
    """The mechanisms and relative positions directly inside a module, whatever containers they are in."""
    for child in module.children():
        if isinstance(child, Mechanism | RelativePositions):
            yield child
        else:
            yield from _parts(child)


def _with_relative(module: Mechanism, args: tuple[Tensor, Tensor, Tensor, AttentionCall]) -> tuple[Any, ...]:
    """Forward pre-hook: the relative positions join the score term of the call."""
    q, k, v, call = args
    return q, k, v, module.with_relative(q, k, v, call)


def both(first: ScoreMod, second: ScoreMod | None) -> ScoreMod:
    """One score term after the other."""
    if second is None:
        return first
    return lambda score, b, h, q_idx, kv_idx: second(first(score, b, h, q_idx, kv_idx), b, h, q_idx, kv_idx)


def scaled_scores(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
    """``q·k · scale`` of all pairs and the call's score term, ``(B, H, Nq, Nk)``."""
    scores = (q @ repeat_heads(k, q.shape[1]).transpose(-1, -2)) * call.scale_for(q.shape[-1])
    return scores if call.score_mod is None else call.score_mod(scores, *grid_of(q, k))


def visible_to_all(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
    """The pairs that causality and padding leave, ``(B or 1, 1, Nq, Nk)`` bool."""
    _, _, q_idx, kv_idx = index_grid(1, 1, q.shape[2], k.shape[2], q.device)
    seen = (kv_idx <= q_idx) if call.causal else (kv_idx >= 0).expand(1, 1, q.shape[2], -1)
    return seen if call.key_mask is None else seen & call.key_mask[:, None, None, :]


def pad_queries(q: Tensor, length: int) -> Tensor:
    """``q (B, H, Nq, D)``, the last queries of a sequence of ``length`` tokens, after rows of zeros for the others."""
    missing = length - q.shape[2]
    return F.pad(q, (0, 0, missing, 0)) if missing else q


def drop_keys(v: Tensor, dropout_p: float) -> Tensor:
    """Values ``(B, H, Nk, D)`` after dropout of whole keys, for mechanisms without a matrix of weights that dropout could act on."""
    return v * F.dropout(v.new_ones(*v.shape[:3], 1), dropout_p) if dropout_p else v


def normalised(weights: Tensor) -> Tensor:
    """Non-negative ``weights (…, Nk)`` divided by their row sums; rows of zeros stay zeros."""
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total == 0, 1.0, total)


def softmax_over(scores: Tensor, visible: Tensor) -> Tensor:
    """Softmax over the last axis of ``scores`` where ``visible``; rows that see nothing are zeros."""
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.where(visible.any(-1, keepdim=True), weights, torch.zeros((), dtype=weights.dtype, device=weights.device))


class _SomeHeads(nn.Module):
    """Holds a mechanism whose tensors ``torch.func.functional_call`` replaces by those of some heads while a part of it runs."""

    def __init__(self, mechanism: Mechanism) -> None:
        super().__init__()
        self.mechanism = mechanism

    def forward(self, run: Callable[..., Tensor], part: Mechanism, *args: Any) -> Tensor:
        return run(part, *args)
