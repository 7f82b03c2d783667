"""Linear attention that overwrites: the gated delta rule (Yang et al. 2024, Gated Delta Networks, eq. 10).

    S_t = α_t (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ        o_t = e^c · scale · S_tᵀ q_t

with q and k of norm 1, β_t = σ(x_t W_β) and log α_t = -exp(A) softplus(x_t W_α + b) for each head (the parametrisation of Mamba2, as in
transformers' Qwen3-Next). x_t is the layer's input or the head's key, and c one learned number per head. Unrolled, o = W v with

    W = e^c · scale · tril(Q Kᵀ ⊙ Γ) (I + tril(diag(β) K Kᵀ ⊙ Γ, -1))⁻¹ diag(β)        Γ_ij = α_{j+1} … α_i

so the weights may be negative and their sum is not 1. With ``expand`` > 1, q and k are SiLU(q W_q) and SiLU(k W_k), of expand · D
features, and ``scale`` is (expand · D)^-½, the usual one for keys of that width. Only the rule is taken from the paper. Its layer's short
convolution, SiLU of the values and gated output norm are left out, so that a checkpoint's projections keep their meaning.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.common.call import AttentionCall, State
from ..engines.common.dense import at_least_fp32, repeat_heads
from ..engines.linear import gated_delta_rule
from ..errors import OptionError
from ..options import Options, option
from .common.base import Mechanism
from .common.feature_map import HeadwiseLinear
from .common.layout import full_pairs
from .common.registry import register_mechanism
from .common.scores import drop_keys
from .common.traits import Handling

INITIAL_STEPS = (1e-3, 1e-1)
"""Initial range of softplus(b), as in Mamba2."""


@dataclasses.dataclass(frozen=True)
class DeltaOptions(Options):
    expand: int = option(1, "state rows per dimension of the head; above 1, learned maps with SiLU compute them", "times", least=1, most=64)
    gate: bool = option(True, "let the state decay by α; otherwise this is the plain delta rule")
    gate_input: str = option(
        "hidden_states", "what β and α are computed from: 'hidden_states' (the layer's input) or 'key' (the head's key)",
        choices=("hidden_states", "key"),
    )  # fmt: skip
    normalise: bool = option(True, "scale queries and keys to norm 1")


@register_mechanism("delta")
class Delta(Mechanism):
    """A linear state in which a key's new value replaces its old one."""

    summary = "a linear state that decays by a gate and overwrites a key's old value (gated delta rule)"
    paper = "Yang et al. 2024, Gated Delta Networks, eq. 10"
    when = "you linearise a decoder that has to recall; its state has a constant size, and new values overwrite old ones"
    engine = "linear (chunked WY)"
    cost = "N·D²"
    causal = True
    traits = Mechanism.traits.but(trains=True, stateful=True, takes_score_mod=False)
    handling = Handling(position_dependent=False)
    sample: ClassVar[dict[str, Any]] = {"gate_input": "key"}
    options: DeltaOptions

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: DeltaOptions) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        self.traits = self.traits.but(takes_hidden_states=options.gate_input == "hidden_states")
        self.log_gain = nn.Parameter(torch.empty(num_heads))
        rates = ["beta", "decay"] if options.gate else ["beta"]
        self.rates = nn.ModuleDict({name: self._rate() for name in rates})
        if options.gate:
            self.log_a = nn.Parameter(torch.empty(num_heads))
            self.bias = nn.Parameter(torch.empty(num_heads))
        if options.expand > 1:
            self.query_map = HeadwiseLinear(num_heads, head_dim, options.expand * head_dim)
            self.key_map = HeadwiseLinear(num_heads, head_dim, options.expand * head_dim)
        if not self.traits.takes_hidden_states:
            self.per_head_tensors = tuple(name for name, _ in self.named_parameters())
        self.reset_parameters()

    def _rate(self) -> nn.Module:
        if self.traits.takes_hidden_states:
            return nn.Linear(self.hidden_size, self.num_heads, bias=False)
        return HeadwiseLinear(self.num_heads, self.head_dim, 1)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw exp(A) from U(1, 16) and softplus(b) log-uniformly from [0.001, 0.1] (Mamba2). Projections: N(0, 0.02²), maps: N(0, 1/D)."""
        super().reset_parameters(generator)
        nn.init.zeros_(self.log_gain)
        for rate in self.rates.values():
            nn.init.normal_(rate.get_parameter("weight"), std=0.02, generator=generator)
        if self.options.gate:
            drawn = torch.empty_like(self.log_a, dtype=torch.float32)  # rounded to the parameter's dtype once, at the end
            self.log_a.copy_(drawn.uniform_(1, 16, generator=generator).log())
            self._set_steps(torch.empty_like(drawn).uniform_(*(math.log(end) for end in INITIAL_STEPS), generator=generator).exp())
        if self.options.expand > 1:
            for projection in (self.query_map, self.key_map):
                nn.init.normal_(projection.weight, std=self.head_dim**-0.5, generator=generator)

    def _set_steps(self, steps: Tensor) -> None:
        """Set softplus(b) of every head."""
        self.bias.copy_(steps + (-torch.expm1(-steps)).log())

    @torch.no_grad()
    def start_from(self, softmax: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> None:
        """Set A, b and c from softmax attention in closed form, after Zhou et al. 2026, Taylor-Calibrate, arXiv 2606.16429.

        A head's state loses half in the mean distance of what ``softmax`` attends to. e^c is the factor that brings its outputs closest to
        those of ``softmax`` by least squares. The paper also sets gates of its layer that have no counterpart here.
        """
        real, (q, k, v) = call.real(k)[:, None, :, None], map(at_least_fp32, (q, k, v))
        if self.options.gate:
            places = torch.arange(k.shape[2], dtype=v.dtype, device=v.device)[:, None].expand_as(v).contiguous()
            distances = (places[:, :1] - softmax(q, k, places, call)) * real
            self.log_a.zero_()
            self._set_steps(math.log(2) / (distances[..., 0].sum((0, 2)) / real.sum()).clamp(min=1.0))
        self.log_gain.zero_()
        wanted, found = softmax(q, k, v, call), self(q, k, v, call) * real
        factors = (wanted * found).sum((0, 2, 3)) / found.square().sum((0, 2, 3)).clamp(min=1e-12)
        self.log_gain.copy_(factors.clamp(min=0.1).log())  # positive, even where a head's outputs are unlike those of softmax

    def labels_documents(self, k: Tensor, v: Tensor, call: AttentionCall) -> bool:
        return True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output. Unless ``gate_input`` is "key", ``call.hidden_states (B, N, hidden_size)`` must be the layer's input."""
        return self.advance(q, k, v, None, call)[0]

    def advance(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall) -> tuple[Tensor, State]:
        """The state is ``kv (B, H, F, D)``."""
        with torch.autocast(q.device.type, enabled=False):
            g, beta = self._rates(k, call, torch.promote_types(q.dtype, torch.float32))
            phi_q, phi_k, v = self._queries(q, call), self._keys(k), drop_keys(repeat_heads(v, self.num_heads), call.dropout)
            kv = None if state is None else state["kv"]
            first = k.shape[2] - q.shape[2]
            if first:
                before = slice(0, first)
                keys = phi_k[:, :, before]
                _, kv = gated_delta_rule(keys, keys, v[:, :, before], g[:, :, before], beta[:, :, before], kv)
            documents = None if call.documents is None else call.batch
            out, kv = gated_delta_rule(phi_q, phi_k[:, :, first:], v[:, :, first:], g[:, :, first:], beta[:, :, first:], kv, documents)
            return out.to(q.dtype), {"kv": kv}

    def pairs(self, length: int, causal: bool = False) -> int:
        """Every token reads the state of expand·D·D numbers twice and writes it once."""
        return min(full_pairs(length, causal), 2 * length * self.options.expand * self.head_dim)

    def _queries(self, q: Tensor, call: AttentionCall) -> Tensor:
        scale = call.scale_for(self.head_dim) * self.options.expand**-0.5 * at_least_fp32(self.log_gain).exp()[:, None, None]
        return (self._normal(F.silu(self.query_map(q)) if self.options.expand > 1 else q) * scale).to(q.dtype)

    def _keys(self, k: Tensor) -> Tensor:
        k = repeat_heads(k, self.num_heads)
        return self._normal(F.silu(self.key_map(k)) if self.options.expand > 1 else k).to(k.dtype)

    def _normal(self, x: Tensor) -> Tensor:
        """``x`` in at least fp32. With ``normalise``, scaled to norm 1 as in transformers and flash-linear-attention."""
        x = at_least_fp32(x)
        return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt() if self.options.normalise else x

    def _rates(self, k: Tensor, call: AttentionCall, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """g = log α and β, ``(B, H, N)`` in ``dtype``. Both are 0 for padding, so padding leaves the state unchanged."""
        hidden, mask = call.hidden_states, call.key_mask
        if self.traits.takes_hidden_states:
            if hidden is None or hidden.shape[1] != k.shape[2]:
                received, advice = "none were given", "pass hidden_states to the built mechanism"
                if hidden is not None:
                    received = f"those of {hidden.shape[1]} tokens were given"
                    advice = "decode with past_key_values=DynamicCache(config=model.config), which keeps a state"
                raise OptionError(
                    f"Mechanism 'delta' computes its gates from the layer's hidden states of all {k.shape[2]} tokens, but {received}; "
                    f"{advice}, or choose gate_input='key'."
                )
            projected = {name: F.linear(hidden.to(dtype), rate.get_parameter("weight").to(dtype)).mT for name, rate in self.rates.items()}
        else:
            projected = {name: rate(k.to(dtype)).squeeze(-1) for name, rate in self.rates.items()}
        beta = projected["beta"].sigmoid()
        g = torch.zeros_like(beta)
        if self.options.gate:
            g = -self.log_a.to(dtype).exp()[:, None] * F.softplus(projected["decay"] + self.bias.to(dtype)[:, None])
        if mask is not None:
            g, beta = (x.masked_fill(~mask[:, None], 0.0) for x in (g, beta))
        return g, beta

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        g, beta = self._rates(k, call, q.dtype)
        q, k = self._queries(q, call), self._keys(k)
        total = g.cumsum(-1)
        decay = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
        system = torch.eye(k.shape[2], dtype=q.dtype, device=q.device) + (beta[..., None] * (k @ k.mT) * decay).tril(-1)
        scores = (q @ k.mT) * decay[:, :, k.shape[2] - q.shape[2] :]
        return torch.linalg.solve_triangular(system, scores, upper=False, left=False) * beta[..., None, :]
