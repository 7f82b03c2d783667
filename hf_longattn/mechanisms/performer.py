"""FAVOR+: random features whose products estimate the softmax kernel (Choromanski et al. 2021, Rethinking Attention
with Performers).

    softmax:  φ(x) = exp(w_m·x' - |x'|²/2) / √m      E[φ(q)·φ(k)] = exp(scale · q·k)      x' = √scale · x    (lemma 1)
    relu:     φ(x) = max(w_m·x', 0)                                                                     (section 2.2)

for m random directions w_m, Gaussian and orthogonal in blocks. The checkpoint stores the directions. Training draws
new ones after every ``redraw_interval`` passes.

Against overflow, the largest exponent of a query is subtracted from all its exponents. From the exponents of a key
feature, the largest one so far in the text is subtracted. Both offsets cancel in the quotient. A text that is read in
pieces, or token by token, therefore gives the same output as in one pass, for any size of q and k. Only the rounding
of exponents differs: they are in fp32, and those of keys are about -scale |k|² / 2.

In a graph (torch.compile, export), the causal form is computed in float64, where exp() covers differences of some 700.
There, a query outputs zeros if the exponents of all its keys lie further than that below the largest exponent.

The authors' code adds 10⁻³ to relu features and 10⁻⁶ to softmax features. Here nothing is added. A query therefore
outputs zeros if no feature is positive for both the query and one of its keys (relu).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..engines.batch import in_graph
from ..engines.byte_cache import tensor_version
from ..engines.call import AttentionCall, State
from ..names import warn_missing
from .common.base import LayerSizes
from .common.capabilities import About, NeedsWholeBatch
from .common.feature_map import LinearMechanism, log_products
from .common.options import Options, option
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class PerformerOptions(Options):
    num_features: int = option(
        256, "m, the number of random directions; the error falls as 1/√m", "features", least=1, most=4096
    )
    kernel: str = option(
        "softmax",
        "softmax: positive features that estimate it; relu: ReLU of the random projections",
        choices=("softmax", "relu"),
    )
    redraw_interval: int = option(
        1000,
        "training passes between draws, 0 for a single draw; a compiled model keeps its draw until redraw() is called",
        "passes",
        least=0,
    )
    seed: int = option(0, "seed of the directions, which differ from layer to layer and draw to draw")


@register_mechanism("performer")
class Performer(LinearMechanism, NeedsWholeBatch):
    about = About(
        summary="orthogonal random features that estimate softmax attention (FAVOR+)",
        paper="Choromanski et al. 2021, Rethinking Attention with Performers, lemma 1, §2.4",
        when="you train a model, and want an estimate of softmax attention at linear cost, without learned features",
        engine="linear",
        cost="N·m·D",
        sample={"num_features": 32},
    )
    sums_beside_softmax = False
    capabilities = LinearMechanism.capabilities.but(images="any")
    per_head_tensors = ()
    options: PerformerOptions
    projection: Tensor
    """``(m, D)``, the random directions."""
    passes: Tensor
    """Number of training passes so far, which determines the number of draws."""

    def __init__(self, sizes: LayerSizes, options: PerformerOptions) -> None:
        super().__init__(sizes, options)
        self.logarithms = options.kernel == "softmax"
        self.features_per_head = options.num_features
        self._known = (0, -1, 0)
        """Identity, version and value of ``passes`` when last read. Saves reading the value from the device again."""
        self.register_buffer("projection", torch.empty(options.num_features, sizes.head_dim))
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Make the first draw, which the option ``seed`` and the layer determine."""
        super().reset_parameters(generator)
        self._draw(0)
        self.passes = torch.zeros_like(self.passes)

    def _enter(self, layer: int) -> None:
        self.reset_parameters()

    def needs_one_call(self) -> bool:
        return self.training and self.options.redraw_interval > 0  # a pass counts once, and may draw new directions

    def redraw(self) -> None:
        """Draw new directions now, as at the end of a redraw interval."""
        interval = max(self.options.redraw_interval, 1)
        draws = int(self.passes) // interval + 1
        self.passes = torch.full_like(self.passes, draws * interval)
        self._draw(draws)

    def _draw(self, draws: int) -> None:
        """Set the directions to the draw with number ``draws``."""
        drawn = orthogonal_gaussian(*self.projection.shape, self.options.seed, self.layer, draws)
        # A new tensor: a pending backward pass may need the old one.
        self.projection = drawn.to(self.projection)

    def directions(self, seed: int) -> Tensor:
        """Directions ``(m, D)``: the buffer if the call's ``seed`` is 0, otherwise the draw of that seed."""
        if seed == 0:
            return self.projection
        return orthogonal_gaussian(*self.projection.shape, self.options.seed, self.layer, 0, seed).to(self.projection)

    def run(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, call: AttentionCall) -> tuple[Tensor, State]:
        """The output and the state. A training pass is counted first, and new directions are drawn at the end of an
        interval."""
        interval = self.options.redraw_interval
        if self.training and interval and not in_graph() and not in_backward():
            identity, version, passes = self._known
            if (identity, version) != (id(self.passes), tensor_version(self.passes)):
                passes = int(self.passes)
            self.passes.add_(1)
            passes += 1
            self._known = id(self.passes), tensor_version(self.passes), passes
            if passes % interval == 0:
                self._draw(passes // interval)
        return super().run(q, k, v, state, call)

    def queries(self, q: Tensor, call: AttentionCall) -> Tensor:
        projected = q @ self._scaled_directions(q, call).mT
        return projected if self.logarithms else projected.relu()  # exp(-|x'|²/2) of a query cancels

    def keys(self, k: Tensor, call: AttentionCall) -> Tensor:
        directions, scale = self._scaled_directions(k, call), call.scale_for(self.head_dim)
        if not self.logarithms:
            return (k @ directions.mT).relu()
        squares = k.square().sum(-1, keepdim=True)
        return torch.add(k @ directions.mT, squares, alpha=-scale / 2)

    def _scaled_directions(self, x: Tensor, call: AttentionCall) -> Tensor:
        """√scale w_m ``(m, D)``. The product with x is then w_m·x'."""
        return self.directions(call.seed).to(x.dtype) * call.scale_for(self.head_dim) ** 0.5

    def kernel(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        q, k = (x * call.scale_for(self.head_dim) ** 0.5 for x in (q, k))
        left, right = (x @ self.directions(call.seed).to(x.dtype).mT for x in (q, k))
        if self.options.kernel == "relu":
            return left.relu() @ right.relu().mT
        left, right = (y - x.square().sum(-1, keepdim=True) / 2 for x, y in ((q, left), (k, right)))
        return log_products(left, right)


def orthogonal_gaussian(rows: int, columns: int, *seeds: int) -> Tensor:
    """``(rows, columns)`` fp32, with rows from N(0, I). In each block of ``columns`` rows, the rows are orthogonal.

    Drawn from ``seeds`` on the CPU, so that it is the same on every device.
    """
    mixed = 0
    for seed in seeds:  # multiples of the golden ratio, modulo 2**63, so that small seeds do not collide
        mixed = ((mixed ^ (seed % (1 << 31))) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % (1 << 63)
    generator = torch.Generator().manual_seed(mixed)

    blocks = []
    for _ in range(0, rows, columns):
        q, r = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64, device="cpu"))
        blocks.append((q * r.diagonal().sign()).mT)  # the signs make Q uniform, independent of the QR library
    lengths = torch.randn(rows, columns, generator=generator, dtype=torch.float64, device="cpu").norm(
        dim=1, keepdim=True
    )
    return (torch.cat(blocks)[:rows] * lengths).float()


def in_backward() -> bool:
    """Whether a backward pass is running. Activation checkpointing then runs forward passes a second time."""
    if not hasattr(torch._C, "_current_graph_task_id"):
        warn_missing("in_backward")
        return False
    return torch._C._current_graph_task_id() != -1
