"""cosFormer: ReLU features re-weighted by the cosine of the distance (Qin et al. 2022, cosFormer, equations 10 to 13).

    κ(q_i, k_j) = (ReLU(q_i)·ReLU(k_j)) cos(π/2 · (i - j) / M)

and by the addition theorem its features are ReLU(x) cos(π i / 2M) and ReLU(x) sin(π i / 2M). Positions count from the first real token;
M is at least the length, so that no weight is negative. A ``scaling`` of q·k is a positive factor, which cancels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LengthError, OptionError
from .feature_map import At, LinearMechanism
from .options import Options, option, positive
from .registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class CosformerOptions(Options):
    max_length: int | None = option(None, "M, the longest text and the distance at which weights reach 0; none takes the model's", "tokens")

    def check(self) -> None:
        if self.max_length is not None:
            positive("cosformer", "max_length", self)


@register_mechanism("cosformer")
class Cosformer(LinearMechanism):
    """Near keys weigh more than far ones, without parameters."""

    summary = "ReLU features whose products are re-weighted by the cosine of the distance"
    paper = "Qin et al. 2022, cosFormer: Rethinking Softmax in Attention, eq. 10-13"
    counts_positions = True
    options_type = CosformerOptions
    sample: ClassVar[dict[str, Any]] = {"max_length": 640}
    options: CosformerOptions

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: CosformerOptions) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        longest = options.max_length or max_length
        if longest is None:
            raise OptionError(
                "Mechanism 'cosformer' weighs by distance relative to the longest text, and the model does not say how long that is; "
                "give it, for example max_length=4096."
            )
        self.longest = longest

    def features_per_head(self) -> int:
        return 2 * self.head_dim

    def check_positions(self, positions: Tensor, counted: bool) -> None:
        if not counted and positions.shape[1] <= self.longest:
            return
        if torch.compiler.is_compiling() or int(positions.max()) < self.longest:
            return
        raise LengthError(
            f"The text has more than {self.longest} tokens, the max_length of mechanism 'cosformer', beyond which its weights would be "
            f"negative; build it with a larger one, for example max_length={2 * self.longest}."
        )

    def queries(self, q: Tensor, at: At) -> Tensor:
        assert at.positions is not None
        angle = at.positions.to(q.dtype)[:, None, :, None] * (math.pi / 2 / self.longest)
        x = F.relu(q)
        return torch.cat((x * angle.cos(), x * angle.sin()), -1)

    def keys(self, k: Tensor, at: At) -> Tensor:
        return self.queries(k, at)

    def kernel(self, q: Tensor, k: Tensor, of_q: At, of_k: At) -> Tensor:
        assert of_q.positions is not None
        assert of_k.positions is not None
        distance = (of_q.positions[:, :, None] - of_k.positions[:, None, :])[:, None].to(q.dtype)
        return q.clamp(min=0) @ k.clamp(min=0).mT * (math.pi / 2 * distance / self.longest).cos()
