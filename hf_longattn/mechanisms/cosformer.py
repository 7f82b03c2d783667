"""cosFormer: ReLU features re-weighted by the cosine of the distance (Qin et al. 2022, cosFormer, equations 10 to 13).

    κ(q_i, k_j) = (ReLU(q_i)·ReLU(k_j)) cos(π/2 · (i - j) / M)

and by the addition theorem its features are ReLU(x) cos(π i / 2M) and ReLU(x) sin(π i / 2M). Positions count from the first real token.
M is at least the length, so that no weight is negative. The authors' code takes the length of the text itself, and so does the
bidirectional form here, for each sequence of a batch by its own real tokens. A causal row must not change with the tokens after it, and a
decoder does not know how long its text will be, so the causal form takes the longest text of the model. ``max_length`` sets M in both. A
``scaling`` of q·k is a positive factor, which cancels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.batch import last_real
from ..engines.topk import exact_dtype
from ..errors import LengthError, OptionError
from .feature_map import At, LinearMechanism
from .options import Options, option, positive
from .registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class CosformerOptions(Options):
    max_length: int | None = option(
        None,
        "M, the longest text and the distance at which weights reach 0; none takes each text's own length, as in the authors' code, or, "
        "causal, the model's longest text",
        "tokens",
    )

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

    def features_per_head(self) -> int:
        return 2 * self.head_dim

    def placed(self, at: At, mask: Tensor | None, positions: Tensor, *, causal: bool, counted: bool) -> At:
        longest = self.options.max_length
        if longest is None:
            if not causal:
                return at._replace(positions=positions, horizon=_length(mask, positions.shape[1]))
            longest = self.max_length
        if longest is None:
            raise OptionError(
                "Mechanism 'cosformer' weighs by distance relative to the longest text in its causal form, and the model does not say how "
                "long that is; give it, for example max_length=4096."
            )
        known = torch.compiler.is_compiling() or (not counted and positions.shape[1] <= longest)
        if not known and int(positions.max()) >= longest:
            raise LengthError(
                f"The text has more than {longest} tokens, the max_length of mechanism 'cosformer', beyond which its weights would be "
                f"negative; build it with a larger one, for example max_length={2 * longest}."
            )
        return at._replace(positions=positions, horizon=longest)

    def queries(self, q: Tensor, at: At) -> Tensor:
        assert at.positions is not None
        angle = at.positions.to(q.dtype)[:, None, :, None] * _quarter(at.horizon, q)
        x = F.relu(q)
        return torch.cat((x * angle.cos(), x * angle.sin()), -1)

    def keys(self, k: Tensor, at: At) -> Tensor:
        return self.queries(k, at)

    def kernel(self, q: Tensor, k: Tensor, of_q: At, of_k: At) -> Tensor:
        assert of_q.positions is not None
        assert of_k.positions is not None
        distance = (of_q.positions[:, :, None] - of_k.positions[:, None, :])[:, None].to(q.dtype)
        return q.clamp(min=0) @ k.clamp(min=0).mT * (distance * _quarter(of_k.horizon, q)).cos()


def _length(mask: Tensor | None, length: int) -> Tensor | int:
    """Tokens up to the last real one of ``mask (B, N)``, ``(B,)``; all where there is no mask."""
    if mask is None:
        return length
    return last_real(mask) + 1


def _quarter(horizon: Tensor | int, like: Tensor) -> Tensor | float:
    """π / 2M: one number, or ``(B, 1, 1, 1)`` in the dtype of ``like``, with the same bits."""
    if not isinstance(horizon, Tensor):
        return math.pi / 2 / horizon
    return (math.pi / 2 / horizon.to(exact_dtype(like.device))).to(like.dtype).view(-1, 1, 1, 1)
