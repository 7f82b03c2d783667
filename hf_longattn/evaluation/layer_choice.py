"""Choose the layers that keep softmax attention beside a cheap mechanism (Li et al. 2025, Distilling to Hybrid Attention Models via
KL-Guided Layer Selection, arXiv 2512.20569).

A layer's importance is the gain of restoring only this layer: KL(checkpoint ‖ all cheap) - KL(checkpoint ‖ all cheap but this layer). The
paper keeps softmax attention in the most important layers. But layers depend on one another. While the first layer gives wrong inputs,
restoring the second gains nothing, though both together may gain most. So layers are restored one after another, always the one that lowers
the divergence most. The result is compared with the paper's choice and with simple ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_longattn.errors import OptionError

NEGLIGIBLE = 1e-6
"""Minimum divergence in nats; smaller ones count as 0."""
Divergences = Callable[[Sequence[frozenset[int]]], Sequence[float]]
"""Sets of layers that keep softmax attention -> KL(checkpoint ‖ model) in nats of each."""


@dataclass(frozen=True)
class KeptLayers:
    """The choice.

    kept: numbers of the layers that keep softmax attention.
    importance: gain of restoring only this layer, in nats, for every candidate layer.
    divergence: of the choice; ``nothing``, with the cheap mechanism in every layer.
    compared: Name -> KL divergence, for this and other choices of the same size.
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
    """The best of several choices of ``count`` layers: greedy, the most important ones, evenly spaced, the first, the last. ``None`` if the
    cheap mechanism changes nothing.

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
    """Layers that keep softmax attention: ``number`` layers, or this share of ``layers`` if it is below 1.

    Raises:
        OptionError: the number is 0 or that of all layers.
    """
    count = max(1, round(number * layers)) if 0 < number < 1 else int(number)
    if not 0 < count < layers or (number >= 1 and count != number):
        raise OptionError(
            f"{option} is {number:g}, but the model has {layers} layers, so 1 to {layers - 1} of them can keep softmax attention; give "
            f"{option} {layers // 2 or 1}, or a share below 1."
        )
    return count
