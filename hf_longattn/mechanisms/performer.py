"""FAVOR+: random features whose products estimate the softmax kernel (Choromanski et al. 2021, Rethinking Attention with Performers).

    softmax:  φ(x) = exp(w_m·x' - |x'|²/2) / √m      E[φ(q)·φ(k)] = exp(scale · q·k)      x' = √scale · x     (lemma 1)
    relu:     φ(x) = max(w_m·x', 0)                                                                          (section 2.2)

for m random directions w_m, Gaussian and orthogonal in blocks. Exponents are taken relative to the row's largest for queries, and for keys
to the largest that the feature had so far; both cancel in the quotient, so that pieces of a text, one token at a time too, give what the
whole gives, whatever the size of q and k: what remains is the rounding of the exponents in fp32, which are about -scale |k|² / 2. A
graph (torch.compile, export) computes the causal form in float64 and holds exponents of keys that are up to some 700 apart; rows that see
only keys further below the largest of the text are zeros there. Nothing is added to features (the authors' code adds 10⁻³ to those of
relu, 10⁻⁶ to those of softmax): a row whose relu features meet none of its keys' is zeros. The directions are a buffer of the checkpoint.
In training they are drawn anew every ``redraw_interval`` passes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engines.call import AttentionCall
from ..private_apis import in_backward, tensor_version
from .base import State
from .feature_map import LinearMechanism, added, log_products
from .options import Options, not_negative, one_of, option, positive
from .registry import register_mechanism

KERNELS = ("softmax", "relu")


@dataclasses.dataclass(frozen=True)
class PerformerOptions(Options):
    num_features: int = option(256, "m, how many random directions; the error falls with its root", "features", most=65536)
    kernel: str = option("softmax", "softmax: positive features that estimate it; relu: ReLU of the random projections")
    redraw_interval: int = option(
        1000, "training passes between new draws, 0 for none; a compiled model keeps its draw until redraw() is called", "passes"
    )
    seed: int = option(0, "seed of the directions; layers and draws differ")

    def check(self) -> None:
        positive("performer", "num_features", self)
        one_of("performer", "kernel", self.kernel, KERNELS)
        not_negative("performer", "redraw_interval", self.redraw_interval, 1000)


@register_mechanism("performer")
class Performer(LinearMechanism):
    """An unbiased estimate of softmax attention's weights, before they are normalised."""

    summary = "orthogonal random features that estimate softmax attention (FAVOR+)"
    paper = "Choromanski et al. 2021, Rethinking Attention with Performers, lemma 1, §2.4"
    cost = "N·m·D"
    exact_when = "never; the expected weights are those of softmax, before normalising"
    same_bits = False
    logarithms = True
    options_type = PerformerOptions
    sample: ClassVar[dict[str, Any]] = {"num_features": 32}
    options: PerformerOptions
    projection: Tensor
    """``(m, D)``, the random directions."""
    passes: Tensor
    """Number of training passes so far, which determines the number of draws."""

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: PerformerOptions) -> None:
        super().__init__(num_heads, head_dim, hidden_size, max_length, options)
        self.logarithms = options.kernel == "softmax"
        self._layer = 0
        self._known = (0, -1, 0)
        """Identity and version of ``passes`` when it was last read, and what it said: reading would wait for the device."""
        self.register_buffer("projection", torch.empty(options.num_features, head_dim))
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The first draw, which follows the option ``seed`` and the layer."""
        super().reset_parameters(generator)
        self._draw(0)
        self.passes = torch.zeros_like(self.passes)

    @property
    def layer(self) -> int:
        """Its layer: each draws different directions."""
        return self._layer

    @layer.setter
    def layer(self, layer: int) -> None:
        self._layer = layer
        self.reset_parameters()

    @property
    def whole_batch(self) -> bool:  # type: ignore[override]
        return self.training and self.options.redraw_interval > 0

    def redraw(self) -> None:
        """Draw new directions: those of the next interval."""
        interval = max(self.options.redraw_interval, 1)
        draws = int(self.passes) // interval + 1
        self.passes = torch.full_like(self.passes, draws * interval)
        self._draw(draws)

    def _draw(self, draws: int) -> None:
        drawn = orthogonal_gaussian(*self.projection.shape, self.options.seed, self._layer, draws)
        # A new tensor, since a backward pass that is still to come may need the old one.
        self.projection = drawn.to(self.projection)

    def directions(self, seed: int) -> Tensor:
        """``(m, D)``: the buffer, or for a seed other than 0 a draw that follows it."""
        if seed == 0:
            return self.projection
        return orthogonal_gaussian(*self.projection.shape, self.options.seed, self._layer, 0, seed).to(self.projection)

    def features_per_head(self) -> int:
        return self.options.num_features

    def _run(self, *arguments: Any) -> tuple[Tensor, State]:
        if self.training and self.options.redraw_interval and not torch.compiler.is_compiling() and not in_backward():
            self._count()
        return super()._run(*arguments)

    def _count(self) -> None:
        """One training pass; a new draw at the end of an interval."""
        known, tensor = self._known, self.passes
        value = known[2] if known[:2] == (id(tensor), tensor_version(tensor)) else int(tensor)
        self.passes.add_(1)
        self._known = id(tensor), tensor_version(tensor), value + 1
        if (value + 1) % self.options.redraw_interval == 0:
            self._draw((value + 1) // self.options.redraw_interval)

    def queries(self, q: Tensor, call: AttentionCall) -> Tensor:
        projected = self._projected(q, call)
        return projected if self.logarithms else projected.relu()  # |x'|²/2 is a factor of the row, which cancels

    def keys(self, k: Tensor, call: AttentionCall) -> Tensor:
        projected = self._projected(k, call)
        return (
            added(projected, call.scale_for(self.head_dim) / 2 * k.square().sum(-1, keepdim=True), -1)
            if self.logarithms
            else projected.relu()
        )

    def _projected(self, x: Tensor, call: AttentionCall) -> Tensor:
        """w_m·x'."""
        return x @ (self.directions(call.seed).to(x.dtype) * call.scale_for(self.head_dim) ** 0.5).mT

    def kernel(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        directions = self.directions(call.seed).to(q.dtype)
        left, right = (call.scale_for(self.head_dim) ** 0.5 * x @ directions.mT for x in (q, k))
        if self.options.kernel == "relu":
            return left.clamp(min=0) @ right.clamp(min=0).mT
        lengths = [call.scale_for(self.head_dim) * x.square().sum(-1, keepdim=True) / 2 for x in (q, k)]
        left, right = left - lengths[0], right - lengths[1]
        return log_products(left, right)


def orthogonal_gaussian(rows: int, columns: int, *seeds: int) -> Tensor:
    """``(rows, columns)`` fp32: each row is distributed as N(0, I), and rows of one block of ``columns`` are orthogonal.

    Drawn on the CPU from ``seeds``, so that it is the same for every device.
    """
    generator = torch.Generator().manual_seed(mixed(*seeds))
    blocks = []
    for _ in range(0, rows, columns):
        q, r = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64, device="cpu"))
        blocks.append((q * r.diagonal().sign()).mT)  # with the signs that make Q uniform, whichever library factorised
    lengths = torch.randn(rows, columns, generator=generator, dtype=torch.float64, device="cpu").norm(dim=1, keepdim=True)
    return (torch.cat(blocks)[:rows] * lengths).float()


def mixed(*seeds: int) -> int:
    """One seed from several, without collisions among small ones (the golden ratio's multiples, modulo 2**63)."""
    value = 0
    for seed in seeds:
        value = ((value ^ (seed % (1 << 31))) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % (1 << 63)
    return value
