"""Top-k attention (Gupta et al. 2021, Memory-efficient Transformers via Top-k Attention, section 2): each query sees
its k best keys.

With the scores s_ij = scale · q_i · k_j (and a score term, if there is one) over the keys that query i may see,

    o_i = Σ_{j ∈ T_i} softmax_{j ∈ T_i}(s_ij) v_j,      T_i = the num_keys keys with the highest s_ij

Ties go to the earlier key. The choice is that of float64 scores (:mod:`hf_longattn.engines.topk`). As in the paper, no
gradient flows through the choice. All N² scores are computed, for a few queries at a time. Time and memory of softmax,
values and the backward pass grow with N·k.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..engines.call import AttentionCall
from ..engines.dense import dense_attention, repeat_heads
from ..engines.dispatch import choose
from ..engines.topk import search_keys, selected_attention, topk, topk_keys
from .common.base import Mechanism, scaled_scores, softmax_over, visible_in_full_attention
from .common.capabilities import About
from .common.options import Options, option
from .common.registry import register_mechanism
from .common.shared_options import AttendedKeys


@dataclasses.dataclass(frozen=True)
class TopKOptions(Options):
    num_keys: int = option(64, "k, keys that each query selects", "keys", least=1)


@register_mechanism("top_k")
class TopK(Mechanism):
    about = About(
        summary="each query attends to the k keys of the whole sequence with the highest scores",
        paper="Gupta et al. 2021, Memory-efficient Transformers via Top-k Attention, §2",
        when="you want exactly the best keys; the time is quadratic, the memory is not",
        engine="selected",
        cost="N² for the scores, N·k for softmax and memory",
        sample={"num_keys": 8},
        covering=lambda length, causal: {"num_keys": length},
    )
    per_head_tensors = ()
    capabilities = Mechanism.capabilities.but(takes_sinks=True, position_dependent=False, images="any")
    options: TopKOptions

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.options.num_keys >= length

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output ``(B, H, Nq, D)``: the keys of each query are searched without gradients, then attended to."""
        if choose("pairs", q, k, call, covered=self.covers(k.shape[2], call.causal), maskable=False) == "dense":
            return dense_attention(q, k, v, call)
        scale = call.scale_for(q.shape[-1])
        keys = repeat_heads(k, q.shape[1])
        with torch.no_grad():
            if call.score_mod is None:
                index = topk_keys(q, k, call.key_mask, self.options.num_keys, call.causal, scale)
            else:
                index = search_keys(q, keys, call.key_mask, self.options.num_keys, call.causal, scale, call.score_mod)
        return selected_attention(q, keys, repeat_heads(v, q.shape[1]), index, call)

    def attended_keys(self, q: Tensor, k: Tensor, call: AttentionCall) -> AttendedKeys:
        return lambda rows, scores: self.best_keys(scores)

    def best_keys(self, scores: Tensor) -> Tensor:
        """Mask of the keys that are chosen by ``scores (…, N)``, which are -inf for hidden keys."""
        chosen, length = topk(scores, self.options.num_keys), scores.shape[-1]
        # Slots without a key, -1, set an extra column, which is cut off.
        empty = torch.zeros(*scores.shape[:-1], length + 1, dtype=torch.bool, device=scores.device)
        return empty.scatter_(-1, torch.where(chosen < 0, length, chosen), True)[..., :-1]

    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        scores = scaled_scores(q.double(), k.double(), call)
        hidden = ~visible_in_full_attention(q, k, call)
        best = self.best_keys(scores.detach().masked_fill(hidden, float("-inf")))
        return softmax_over(scores, best, call.sink_scores).to(q.dtype)
