"""What linear mechanisms share: features of queries and keys, run by the linear engine (Katharopoulos et al. 2020, equations 4 to 12).

    o_i = Σ_j κ(q_i, k_j) v_j / Σ_j κ(q_i, k_j)        κ(q, k) = φ_q(q) · φ_k(k)

A mechanism gives φ for the fast path and κ, written without φ, for the definition. Features are computed for a few hundred tokens at a
time, so that they stay in the cache and, where no gradient is needed, never exist for the whole text.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ...engines.common.batch import in_graph
from ...engines.common.call import AttentionCall, State
from ...engines.common.dense import repeat_heads, wide
from ...engines.common.shards import Shard
from ...engines.linear import CHUNK, absorb, empty_state, linear_attention, masked, read
from ...engines.topk import exact_dtype
from .base import Mechanism
from .options import Options
from .scores import drop_keys, normalised, softmax_over, visible_to_all


class HeadwiseLinear(nn.Module):
    """``weight (H, D, F)``; maps ``(B, H or H_kv, n, D)`` to ``(B, H, n, F)``, in the dtype of the input."""

    def __init__(self, num_heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, in_features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        return repeat_heads(x, self.weight.shape[0]) @ self.weight.to(x.dtype)

    def extra_repr(self) -> str:
        return "heads={}, in_features={}, out_features={}".format(*self.weight.shape)


PIECE = 1 << 18
"""Features of one tensor computed at a time, per thread: with fewer, threads wait for one another; with more, the cache overflows."""
NOTHING = -1e30
"""Logarithm of the scale of a feature without keys so far: finite, so that differences are numbers."""
RISE = 60.0
"""How far the logarithm of a key's feature may exceed the largest before its piece: fp32 still holds exp(60) and its products."""


class LinearMechanism(Mechanism):
    """A mechanism whose weights are products of features."""

    engine = "linear"
    cost = "N·D²"
    stateful = True
    takes_score_mod = False
    counts_positions: ClassVar[bool] = False
    """Whether the features depend on the tokens' positions, counted from the first real token."""
    estimates_exp: ClassVar[bool] = False
    """Whether κ estimates exp(scale · q·k) itself, so that it can be added to softmax terms."""
    logarithms: bool = False
    """Whether :meth:`queries`, :meth:`keys` and :meth:`kernel` return logarithms. They are exponentiated here, each feature relative to its
    largest value among the past keys, so that no score overflows and no future key changes a row."""

    @property
    def position_dependent(self) -> bool:  # type: ignore[override]
        return self.counts_positions

    @classmethod
    def sums_beside_softmax(cls, options: Options) -> bool:
        """Whether, with these options, sums of the features can be added to softmax terms."""
        return not (cls.counts_positions or cls.logarithms)

    @abstractmethod
    def queries(self, q: Tensor, call: AttentionCall) -> Tensor:
        """φ_q of ``q (B, H, n, D)``, or its logarithm: ``(B, H, n, F)``. A factor per row changes nothing."""

    @abstractmethod
    def keys(self, k: Tensor, call: AttentionCall) -> Tensor:
        """φ_k of ``k (B, H_kv, n, D)``, or its logarithm: ``(B, H_kv or H, n, F)``."""

    @abstractmethod
    def kernel(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The definition: κ ``(B, H, Nq, Nk)``, or its logarithm, of ``q (B, H, Nq, D)`` and ``k (B, H, Nk, D)``, up to a factor per row;
        the queries are the last Nq positions."""

    def read_positions(self, positions: Tensor, call: AttentionCall, *, resumed: bool) -> Tensor:
        """``call.positions`` for tokens at ``positions (B or 1, n)``, where the features depend on positions.

        Args:
            resumed: whether tokens came before these.
        Raises:
            LengthError: for positions beyond those that the features can represent.
        """
        return positions

    def scaled(self, x: Tensor, call: AttentionCall) -> Tensor:
        """Queries or keys times (scale · √D)^½ each, so that a product q·k is scaled relative to the usual D^-½."""
        scale = call.scale_for(self.head_dim)
        return x if scale == self.head_dim**-0.5 else x * (scale * self.head_dim**0.5) ** 0.5

    def features_per_head(self) -> int:
        """F, which sizes the state and the pieces."""
        return self.head_dim

    def pairs(self, length: int, causal: bool = False) -> int:
        """Writing and reading a state of F·D numbers costs a token as much as F pairs; causal chunks add their own triangles."""
        chunk = min(length, CHUNK) if causal else 0
        return min(super().pairs(length, causal), length * self.features_per_head() + length * (chunk + 1) // 2)

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        if self.counts_positions:
            positions = torch.arange(k.shape[2], device=q.device)[None]
            call = call.replace(positions=self.read_positions(positions, call, resumed=False))
        weights = self.kernel(q, repeat_heads(k, q.shape[1]), call)
        seen = visible_to_all(q, k, call).expand_as(weights)
        if self.logarithms:
            return softmax_over(weights, seen)
        return normalised(weights.masked_fill(~seen, 0.0))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            return self._run(q, k, v, None, call)[0]

    def advance(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall) -> tuple[Tensor, State]:
        """The state is the sums ``kv (B, heads, F, D)`` and ``z (B, heads, F)``; where features depend on positions ``seen (B,)``, the
        number of positions so far; for logarithms ``log (B, heads, F)``, the largest of each feature, which the sums are relative to."""
        with torch.autocast(q.device.type, enabled=False):
            return self._run(q, k, v, state, call if call.causal else call.replace(causal=True))

    def _run(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall) -> tuple[Tensor, State]:
        batch, kv_len = q.shape[0], k.shape[2]
        v = drop_keys(v, call.dropout) if call.dropout else v
        seen = None
        if self.counts_positions:
            positions = torch.arange(kv_len, device=q.device)[None]
            before = torch.zeros(batch, dtype=torch.long, device=q.device) if state is None else state["seen"]
            positions, seen = (positions if state is None else positions + before[:, None]), before + kv_len
            call = call.replace(positions=self.read_positions(positions, call, resumed=state is not None))
        out, state = self._attended(q, _Keys(self, k, v, call), state)
        return out, state if seen is None else {**state, "seen": seen}

    def _attended(self, q: Tensor, source: _Keys, state: State | None) -> tuple[Tensor, State]:
        """The output of ``q`` over the keys, and the state after them."""
        if self.logarithms and source.call.causal and q.shape[2] > 1:
            return self._run_logarithms(q, source, state)
        return self._pass(q, source, state, None)

    def attend_sharded(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, shard: Shard) -> Tensor:
        """Every process sums its own keys; the sums of the earlier ones, or of all, are what a process adds to."""
        if shard.documents is not None or (self.counts_positions and not shard.starts_at_first):
            return self.attend_by_heads(q, k, v, call, shard)
        with torch.autocast(q.device.type, enabled=False):
            own = shard.own_call(call)
            v = drop_keys(v, call.dropout)
            if self.counts_positions:
                positions = torch.arange(shard.length, device=q.device)[None]
                angles = self.read_positions(positions, shard.call(call, 0, shard.length), resumed=False)
                own = own.replace(positions=angles[:, shard.start : shard.stop])
            source, state = _Keys(self, k, v, own), None
            for piece in self._pieces(0, k.shape[2], q):
                state = self._absorbed(state, *source.take(piece))
            assert state is not None
            state = self._summed(state, call.causal, shard)
            if call.causal:
                return self._attended(q, source, state)[0]
            outs = [self._read(self.queries(wide(q[:, :, at]), source.of_tokens(at)), state) for at in self._pieces(0, q.shape[2], q)]
            return torch.cat(outs, 2).to(q.dtype)

    def _summed(self, state: State, causal: bool, shard: Shard) -> State:
        """The sums of the processes before this one, or of all, from each one's own."""
        found = {name: shard.stacked(state[name]) for name in ("kv", "z")}
        if causal:
            found = {name: shard.before(x) for name, x in found.items()}
        if not self.logarithms:
            return {name: x.sum(0) for name, x in found.items()}
        with torch.no_grad():
            scale = torch.where(found["z"] == 0, NOTHING, shard.stacked(_scale_of(state)))
            top = scale.amax(0)
            factor = (scale - top).exp()
        return {"kv": (found["kv"] * factor[..., None]).sum(0), "z": (found["z"] * factor).sum(0), "log": top}

    def _run_logarithms(self, q: Tensor, source: _Keys, state: State | None) -> tuple[Tensor, State]:
        """A causal pass over features that are exponentials: a piece ends where a key exceeds the ones before it by :data:`RISE`.

        In a graph, pieces cannot depend on the data. It computes in float64 instead, which holds logarithms some 700 apart (on devices
        without float64 in float32, some 80).
        """
        if _in_graph(q):
            exact = exact_dtype(q.device)
            wider = None if state is None else {name: x.to(exact) for name, x in state.items()}
            out, after = self._pass(q.to(exact), source._replace(k=source.k.to(exact), v=source.v.to(exact)), wider, None)
            return out.to(q.dtype), {name: wide(x.to(q.dtype)) if x.is_floating_point() else x for name, x in after.items()}
        if q.device.type == "cpu":
            return self._pass(q, source, state, _Rises(look=True))
        rises = _Rises(look=False)
        found = self._pass(q, source, state, rises)
        if rises.exceeded():  # read once, at the end: reading after every piece would wait for the device each time
            return self._pass(q, source, state, _Rises(look=True))
        return found

    def _pass(self, q: Tensor, source: _Keys, state: State | None, rises: _Rises | None) -> tuple[Tensor, State]:
        """All pieces of a call; ``rises`` watches the exponential features of a causal one."""
        (batch, _, q_len, _), kv_len = q.shape, source.k.shape[2]
        first, causal = kv_len - q_len, source.call.causal and q_len > 1  # a single query sees every key
        outs: list[Tensor] = []
        whole: Tensor | None = None
        for piece in self._pieces(0, first if causal else kv_len, q):
            phi_k, values = source.take(piece)
            state = self._absorbed(state, phi_k, values)
        for piece in self._pieces(0, q_len, q):
            tokens = slice(piece.start + first, piece.stop + first)
            phi_q = self.queries(wide(q[:, :, piece]), source.of_tokens(tokens))
            if not causal:
                assert state is not None
                out = self._read(phi_q, state)
            elif self.logarithms:
                out, state = self._causal_logarithms(phi_q, *source.take(tokens), source.real(tokens), state, rises)
            else:
                phi_k, values = source.take(tokens)
                out, state = linear_attention(phi_q, phi_k, values, causal=True, initial_state=state)
            outs.append(out.to(q.dtype))
            if not torch.is_grad_enabled() and out.shape[2] < q_len:  # written to its place while it is in the cache
                whole = q.new_empty(batch, q.shape[1], q_len, source.v.shape[3]) if whole is None else whole
                whole[:, :, piece] = outs.pop()
        assert state is not None
        if whole is not None:
            return whole, state
        return (outs[0] if len(outs) == 1 else torch.cat(outs, 2)), state

    def _absorbed(self, state: State | None, phi_k: Tensor, values: Tensor) -> State:
        """The state after adding keys, given as features or their logarithms ``phi_k (B, heads, n, F)``."""
        if not self.logarithms:
            return absorb(empty_state(phi_k, values) if state is None else state, phi_k, values)
        state = _of_logarithms(state, phi_k, values)
        top = _largest(phi_k, state["log"])
        return {**absorb(_rescaled(state, top), exp_of(added(phi_k, top[:, :, None], -1)), values), "log": top}

    def _read(self, phi_q: Tensor, state: State) -> Tensor:
        """The output of queries that see the whole state."""
        return read(_relative_queries(phi_q, _scale_of(state)) if self.logarithms else phi_q, state)

    def _causal_logarithms(
        self, logs_q: Tensor, logs_k: Tensor, values: Tensor, real: Tensor | None, state: State | None, rises: _Rises | None
    ) -> tuple[Tensor, State]:
        """Causal attention of the next tokens, given logarithms of their features ``(B, H, n, F)`` and ``(B, heads, n, F)``.

        With A the largest logarithm of each feature before the piece (or that of the first real key), the weights exp(b_im + a_jm) are
        exp(b_im + A_m - c_i) exp(a_jm - A_m) up to a factor per row, c_i being the row's largest. Every row sees the keys that A is taken
        from, so its weights sum to 1 or more.
        """
        outs, begin, length = [], 0, logs_q.shape[2]
        while begin < length:
            state = _of_logarithms(state, logs_k, values)
            rest, count = logs_k[:, :, begin:], length - begin
            anchor = _anchor(rest, None if real is None else real[:, begin:], state)
            top = _largest(rest, anchor)
            if rises is None:
                anchor = top
            elif count > 1 and rises.exceeds(top - anchor):
                over = (rest.detach() - anchor[:, :, None]).amax((0, 1, 3)) > RISE
                count = max(int(over.int().argmax()), 1)
                rest = rest[:, :, :count]
                top = _largest(rest, anchor)
            piece = slice(begin, begin + count)
            if count == 1 and rises is not None:  # its own key may be far above all before it
                state = self._absorbed(state, rest, values[:, :, piece])
                outs.append(self._read(logs_q[:, :, piece], state))
            else:
                phi_q, phi_k = _relative_queries(logs_q[:, :, piece], anchor), exp_of(added(rest, anchor[:, :, None], -1))
                out, sums = linear_attention(phi_q, phi_k, values[:, :, piece], causal=True, initial_state=_rescaled(state, anchor))
                state = {**_rescaled({**sums, "log": anchor}, top), "log": top}
                outs.append(out)
            begin += count
        assert state is not None
        return (outs[0] if len(outs) == 1 else torch.cat(outs, 2)), state

    def _pieces(self, start: int, stop: int, like: Tensor) -> Iterator[slice]:
        """Runs of tokens, each with :data:`PIECE` features or two chunks; a single one in compiled graphs."""
        if in_graph():
            size = stop - start
        else:
            features = like.shape[0] * like.shape[1] * self.features_per_head()
            size = max(2 * CHUNK, PIECE * torch.get_num_threads() // features // CHUNK * CHUNK)
        at = start
        while at < stop:
            yield slice(at, min(at + size, stop))
            at += size


class _Keys(NamedTuple):
    """The keys and values of one call, whose features are computed piece by piece."""

    mechanism: LinearMechanism
    k: Tensor
    v: Tensor
    call: AttentionCall

    def of_tokens(self, tokens: slice) -> AttentionCall:
        """The call with the positions of these tokens."""
        positions = self.call.positions
        return self.call if positions is None else self.call.replace(positions=positions[:, tokens])

    def real(self, tokens: slice) -> Tensor | None:
        """Which of these tokens are not padding, ``(B, n)``; ``None`` if all are."""
        return None if self.call.key_mask is None else self.call.key_mask[:, tokens]

    def take(self, tokens: slice) -> tuple[Tensor, Tensor]:
        """Features of these keys, or their logarithms, and their values; the features of padding are 0."""
        phi_k = self.mechanism.keys(wide(self.k[:, :, tokens]), self.of_tokens(tokens))
        values = repeat_heads(wide(self.v[:, :, tokens]), phi_k.shape[1])
        mask = self.real(tokens)
        if mask is None:
            return phi_k, values
        if self.mechanism.logarithms:
            return phi_k.masked_fill(~mask[:, None, :, None], float("-inf")), values
        return masked(phi_k, mask), values


class _Rises:
    """Whether keys exceed those before their piece by more than :data:`RISE`: read after every piece (``look``), or once at the end."""

    def __init__(self, look: bool) -> None:
        self.look = look
        self.largest: list[Tensor] = []

    def exceeds(self, rise: Tensor) -> bool:
        """Whether some feature rises too far; always False without ``look``."""
        if self.look:
            return bool(rise.max() > RISE)
        self.largest.append(rise.max())
        return False

    def exceeded(self) -> bool:
        """Whether a rise was too large that has not been read yet."""
        return bool(self.largest) and bool(torch.stack(self.largest).max() > RISE)


def _in_graph(x: Tensor) -> bool:
    """Whether operations are recorded, so that none may depend on the data."""
    return in_graph() or (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _of_logarithms(state: State | None, logs: Tensor, values: Tensor) -> State:
    """The state, or an empty one, whose ``log`` is :data:`NOTHING` for features without keys so far."""
    if state is None:
        state = empty_state(logs, values)
        return {**state, "log": state["z"] + NOTHING}
    return {**state, "log": _scale_of(state)}


@torch.no_grad()
def _scale_of(state: State) -> Tensor:
    """The logarithms that the sums of a state are relative to, ``(B, heads, F)``. A state of zeros is empty."""
    return torch.where(state["z"] == 0, NOTHING, state["log"])


@torch.no_grad()
def _largest(logs: Tensor, scale: Tensor) -> Tensor:
    """The largest of ``scale (B, heads, F)`` and the logarithms ``(B, heads, n, F)``."""
    return torch.maximum(logs.amax(2), scale)


@torch.no_grad()
def _anchor(logs: Tensor, real: Tensor | None, state: State) -> Tensor:
    """The scale of the state, or the logarithms of the first real key where the state is empty."""
    if real is None:
        first = logs[:, :, 0]
    else:
        index = real.int().argmax(1)[:, None, None, None].expand(-1, logs.shape[1], 1, logs.shape[3])
        first = logs.gather(2, index)[:, :, 0].clamp(min=NOTHING)
    return torch.where(state["log"] == NOTHING, first, state["log"])


def _rescaled(state: State, scale: Tensor) -> State:
    """The sums ``kv`` and ``z`` relative to ``scale (B, heads, F)`` instead of the state's ``log``."""
    factor = (state["log"] - scale).clamp(max=0).exp()
    return {"kv": state["kv"] * factor[..., None], "z": state["z"] * factor}


def _relative_queries(logs: Tensor, scale: Tensor) -> Tensor:
    """Features of queries with logarithms ``logs (B, H, n, F)``, for keys relative to ``scale (B, heads, F)``, up to a factor per row."""
    logs = added(logs, scale.repeat_interleave(logs.shape[1] // scale.shape[1], 1)[:, :, None])
    return exp_of(added(logs, logs.detach().amax(-1, keepdim=True), -1))


def added(fresh: Tensor, term: Tensor, sign: int = 1) -> Tensor:
    """``fresh ± term``, in place where no gradient is needed; nothing else may use ``fresh``."""
    return torch.add(fresh, term, alpha=sign) if torch.is_grad_enabled() else fresh.add_(term, alpha=sign)


def exp_of(fresh: Tensor) -> Tensor:
    """exp, in place where no gradient is needed; nothing else may use ``fresh``."""
    return fresh.exp() if torch.is_grad_enabled() else fresh.exp_()


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1, as exp(x) below zero, where the sum would lose digits."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def log_products(left: Tensor, right: Tensor) -> Tensor:
    """log Σ_m exp(left_im + right_jm), each row and column relative to its largest term, so that float64 holds them."""
    rows, columns = left.amax(-1, keepdim=True), right.amax(-1, keepdim=True)
    products = (left - rows).exp() @ (right - columns).exp().mT
    return products.clamp(min=torch.finfo(products.dtype).tiny).log() + rows + columns.mT
