"""Which layers keep the checkpoint's attention, when all others run one candidate: :mod:`hf_longattn.evaluation.layer_choice` for designs.

In the paper (Li et al. 2025, arXiv 2512.20569) the cheap layers are linear and are trained a little by distillation before;
`transfer_steps` is that training here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..errors import OptionError
from ..evaluation.layer_choice import KeptLayers, choose_layers
from ..inspect import Candidate
from .design import Design


def choose_full_layers(
    divergence: Callable[[Design], float], cheap: Candidate, base: Design, count: int, model: str, progress: Callable[[str], None]
) -> tuple[KeptLayers, Design]:
    """The ``count`` layers that need their attention most, and the design in which they keep it.

    Args:
        divergence: KL of a design from the checkpoint.
        cheap: what the other layers run.
        base: the checkpoint's attention.
    Raises:
        OptionError: as many layers as the model has, or a mechanism that changes nothing at the length compared.
    """
    layers = len(base.layers)
    if not 0 < count < layers:
        raise OptionError(
            f"{model!r} has {layers} layers, so 1 to {layers - 1} of them can keep full attention; give --budget {layers // 2 or 1}."
        )

    def restored(full_layers: frozenset[int]) -> Design:
        return replace(base, layers=tuple(base.layers[layer] if layer in full_layers else cheap for layer in range(layers)))

    def divergences(sets: Sequence[frozenset[int]]) -> list[float]:
        values = []
        for full_layers in sets:
            progress(f"{cheap}, full attention in {', '.join(map(str, sorted(full_layers))) or 'no layer'}")
            values.append(divergence(restored(full_layers)))
        return values

    chosen = choose_layers(divergences, range(layers), count)
    if chosen is None:
        raise OptionError(
            f"With {cheap} in every layer the predictions are those of {model!r}, so no layer is more important than another; give a "
            "cheaper --candidate."
        )
    return chosen, restored(frozenset(chosen.kept))
