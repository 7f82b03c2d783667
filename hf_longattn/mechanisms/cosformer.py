"""cosFormer: ReLU features re-weighted by the cosine of the distance (Qin et al. 2022, cosFormer, equations 10 to 13).

    κ(q_i, k_j) = (ReLU(q_i)·ReLU(k_j)) cos(π/2 · (i - j) / M)

By the addition theorem, the features of κ are ReLU(x) cos(π i / 2M) and ReLU(x) sin(π i / 2M). Positions count from the first real token.
M is at least the length, so that no weight is negative. In the authors' code M is the length of the text. In the bidirectional form here,
it is the length of each sequence without padding. The causal form uses the longest text of the model: an output must not depend on later
tokens, and a decoder does not know how long its text will be. ``max_length`` sets M in both forms. A ``scaling`` of q·k is a positive
factor, which cancels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.common.batch import in_graph, last_real
from ..engines.common.call import AttentionCall
from ..engines.topk import exact_dtype
from ..errors import LengthError, OptionError
from ..options import Options, option
from .common.feature_map import LinearMechanism
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class CosformerOptions(Options):
    max_length: int | None = option(
        None,
        "M, the longest text, and the distance at which weights reach 0; default: the length of each text, as in the authors' code, or the "
        "model's longest text if causal",
        "tokens",
        least=1,
    )


@register_mechanism("cosformer")
class Cosformer(LinearMechanism):
    """Linear attention that weighs near keys more than far ones. It has no parameters."""

    summary = "ReLU features whose products are re-weighted by the cosine of the distance"
    paper = "Qin et al. 2022, cosFormer: Rethinking Softmax in Attention, eq. 10-13"
    when = "a model that you train, with a linear mechanism that prefers near tokens and adds no parameters"
    counts_positions = True
    per_head_tensors = ()
    sample: ClassVar[dict[str, Any]] = {"max_length": 640}
    options: CosformerOptions

    def features_per_head(self) -> int:
        return 2 * self.head_dim

    def read_positions(self, positions: Tensor, call: AttentionCall, *, resumed: bool) -> Tensor:
        """The angles π/2 · position / M."""
        longest, documents = self.options.max_length or (self.max_length if call.causal else None), call.documents
        length = positions.shape[1] if documents is None else documents.longest
        if longest is None and call.causal:
            raise OptionError(
                "The causal form of mechanism 'cosformer' weighs distances relative to the longest text, but the model does not say how "
                "long that is; set it, for example max_length=4096."
            )
        horizon: Tensor | int
        if longest is None:
            if documents is not None:
                horizon = documents.length
            else:
                horizon = length if call.key_mask is None else last_real(call.key_mask)[:, None] + 1
        else:
            horizon = longest
            real = positions if call.key_mask is None else positions * call.key_mask
            if (resumed or length > longest) and not in_graph() and int(real.max()) >= longest:
                raise LengthError(
                    f"The text has more than {longest} tokens, the max_length of mechanism 'cosformer', beyond which its weights would be "
                    f"negative; build it with a larger one, for example max_length={2 * longest}."
                )
        return positions.to(exact_dtype(positions.device)) * (math.pi / 2) / horizon

    def queries(self, q: Tensor, call: AttentionCall) -> Tensor:
        assert call.positions is not None
        angle = call.positions.to(q.dtype)
        return (F.relu(q).unsqueeze(-2) * torch.stack((angle.cos(), angle.sin()), -1)[:, None, ..., None]).flatten(-2)

    def keys(self, k: Tensor, call: AttentionCall) -> Tensor:
        return self.queries(k, call)

    def kernel(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        assert call.positions is not None
        angle = call.positions.to(q.dtype)
        difference = (angle[:, angle.shape[1] - q.shape[2] :, None] - angle[:, None, :])[:, None]
        return q.clamp(min=0) @ k.clamp(min=0).mT * difference.cos()
