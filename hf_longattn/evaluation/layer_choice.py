"""Which layers keep softmax attention, when all others run one cheap mechanism (Li et al. 2025, Distilling to Hybrid Attention Models via
KL-Guided Layer Selection, arXiv 2512.20569).

The importance of a layer is what restoring it alone gains: KL(checkpoint ‖ all cheap) - KL(checkpoint ‖ all cheap but this layer). The
paper keeps softmax attention in the most important layers. But layers depend on one another: while the first layer gives wrong inputs,
restoring the second gains nothing, and both together may gain most. So layers are restored one after another here, each time the one that
lowers the divergence most, and this choice is compared with the paper's and with simple ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_longattn.errors import OptionError

NEGLIGIBLE = 1e-6
"""Nats; a divergence below it counts as none."""
Divergences = Callable[[Sequence[frozenset[int]]], Sequence[float]]
"""Sets of layers that keep softmax attention -> KL(checkpoint ‖ model) in nats of each."""


@dataclass(frozen=True)
class KeptLayers:
    """The choice.

    kept: numbers of the layers that keep softmax attention.
    importance: of every layer that could, restored alone, in nats.
    divergence: of the choice; ``nothing``, with the cheap mechanism in every layer.
    compared: KL divergence of this and other choices of as many layers, by name.
    """

    kept: tuple[int, ...]
    importance: dict[int, float]
    divergence: float
    nothing: float
    compared: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "kept": list(self.kept), "importance": {str(layer): gain for layer, gain in self.importance.items()}, "kl": self.divergence,
            "kl_without": self.nothing, "compared": self.compared,
        }  # fmt: skip


def choose_layers(divergences: Divergences, layers: Sequence[int], count: int) -> KeptLayers | None:
    """The ``count`` of ``layers`` with which the divergence is lowest, of those that are compared: restored one after another, the most
    important alone, evenly spaced, the first, the last. ``None`` where the cheap mechanism changes nothing, so that none is more important.

    Measures up to ``count`` · ``len(layers)`` sets.
    """
    known: dict[frozenset[int], float] = {}

    def measured(sets: Sequence[frozenset[int]]) -> list[float]:
        new = [layer_set for layer_set in dict.fromkeys(sets) if layer_set not in known]
        known.update(zip(new, divergences(new) if new else [], strict=True))
        return [known[layer_set] for layer_set in sets]

    nothing, *restored = measured([frozenset(), *(frozenset({layer}) for layer in layers)])
    if nothing < NEGLIGIBLE:
        return None
    importance = {layer: nothing - divergence for layer, divergence in zip(layers, restored, strict=True)}
    in_turn: frozenset[int] = frozenset()
    while len(in_turn) < count:
        sets = [in_turn | {layer} for layer in layers if layer not in in_turn]
        in_turn = min(zip(measured(sets), sets, strict=True), key=lambda pair: pair[0])[1]
    choices = {
        "one after another": in_turn,
        "the most important alone": frozenset(sorted(layers, key=lambda layer: (-importance[layer], layer))[:count]),
        "evenly spaced": frozenset(layers[(2 * number + 1) * len(layers) // (2 * count)] for number in range(count)),
        "the first": frozenset(layers[:count]),
        "the last": frozenset(layers[-count:]),
    }
    by_choice = dict(zip(choices, measured(list(choices.values())), strict=True))
    best = min(by_choice, key=lambda name: by_choice[name])
    compared = {"chosen": by_choice[best], **by_choice, "none": nothing}
    return KeptLayers(tuple(sorted(choices[best])), importance, by_choice[best], nothing, compared)


def layers_keep(layers: Sequence[int]) -> str:
    """The beginning of a sentence, subject and verb: "Layers 0, 3 keep"."""
    return f"Layer {layers[0]} keeps" if len(layers) == 1 else f"Layers {', '.join(map(str, sorted(layers)))} keep"


def number_of_layers(number: float, layers: int, option: str) -> int:
    """Layers that keep softmax attention: ``number`` itself, or that share of them (below 1).

    Raises:
        OptionError: none or all of them.
    """
    count = max(1, round(number * layers)) if 0 < number < 1 else int(number)
    if not 0 < count < layers or (number >= 1 and count != number):
        raise OptionError(
            f"{option} is {number:g}, but the model has {layers} layers, so 1 to {layers - 1} of them can keep softmax attention; give "
            f"{option} {layers // 2 or 1}, or a share below 1."
        )
    return count
