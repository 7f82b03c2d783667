"""Which layers keep the checkpoint's attention, when all others run one cheap mechanism (Li et al. 2025, Distilling to Hybrid Attention
Models via KL-Guided Layer Selection, arXiv 2512.20569).

The importance of a layer is what restoring it alone gains: KL(checkpoint ‖ all cheap) - KL(checkpoint ‖ all cheap but this layer). The K
layers with the greatest importance keep their attention. In the paper the cheap layers are linear and are trained a little by distillation
before; `transfer_steps` is that training here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..diagnostics import Candidate
from ..errors import OptionError
from .design import Design

NEGLIGIBLE = 1e-6
"""Nats; a divergence below it is no difference."""


@dataclass(frozen=True)
class FullLayers:
    """The choice.

    kept: numbers of the layers that keep their attention. design: with them.
    importance: of every layer, in nats.
    divergence: of the design; ``nothing``, with the cheap mechanism in every layer.
    compared: KL divergence of other choices of as many layers, by name.
    """

    kept: tuple[int, ...]
    design: Design
    importance: list[float]
    divergence: float
    nothing: float
    compared: dict[str, float]


def choose_full_layers(
    divergence: Callable[[Design], float], cheap: Candidate, own: Design, count: int, model: str, progress: Callable[[str], None]
) -> FullLayers:
    """The ``count`` most important layers.

    Args:
        divergence: KL of a design from the checkpoint.
        cheap: what the other layers run.
        own: the checkpoint's attention.
    Raises:
        OptionError: as many layers as the model has, or a mechanism that changes nothing at the length compared.
    """
    layers = len(own.layers)
    if not 0 < count < layers:
        raise OptionError(
            f"{model!r} has {layers} layers, so 1 to {layers - 1} of them can keep full attention; give --budget {layers // 2 or 1}."
        )

    def restored(kept: set[int]) -> Design:
        return Design(tuple(own.layers[one] if one in kept else cheap for one in range(layers)))

    progress(f"{cheap} in every layer")
    nothing = divergence(restored(set()))
    if nothing < NEGLIGIBLE:
        raise OptionError(
            f"With {cheap} in every layer the predictions are those of {model!r}, so no layer is more important than another; give a "
            "cheaper --candidate."
        )
    importance = []
    for layer in range(layers):
        progress(f"layer {layer} of {layers} restored")
        importance.append(nothing - divergence(restored({layer})))
    kept = set(sorted(range(layers), key=lambda one: (-importance[one], one))[:count])
    others = {
        "chosen": kept,
        "evenly spaced": {(2 * one + 1) * layers // (2 * count) for one in range(count)},
        "the first": set(range(count)),
        "the last": set(range(layers - count, layers)),
    }
    compared: dict[str, float] = {}
    for name, some in others.items():
        progress(f"full layers: {name}")
        compared[name] = divergence(restored(some))
    compared["none"] = nothing
    return FullLayers(tuple(sorted(kept)), restored(kept), importance, compared["chosen"], nothing, compared)
