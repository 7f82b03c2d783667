"""The result of a diagnosis: the numbers of each length, layer and head, and the mechanism to choose.

docs/api/measure.md describes the JSON object of :meth:`Diagnosis.to_dict`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .candidates import Candidate
from .layer_attention import MEANS, SINK, LayerDiagnosis

FORMAT = 3
"""Version of the JSON object, its key ``format``. It changes when a key is removed or changes its meaning."""
ENOUGH = 0.9
"""Share of the attention mass that is enough: the cheapest mechanism that keeps it is chosen."""
DIGITS = 5
"""Number of significant digits in JSON."""


@dataclass(frozen=True)
class LengthDiagnosis:
    """The numbers of all layers at one length.

    Attributes:
        length: number of tokens.
        queries: number of measured queries.
        bins: first and last distance of each bin of distances.
        layers: the numbers of each layer.
        pairs: for each candidate, the number of products of a query and a key in a head, which is its cost.
        full_pairs: the number of these products in full attention.
        seconds: duration of the measurement, with its forward pass.
    """

    length: int
    queries: int
    bins: tuple[tuple[int, int], ...]
    layers: tuple[LayerDiagnosis, ...]
    pairs: tuple[int, ...]
    full_pairs: int
    seconds: float

    def captured(self) -> Tensor:
        """The mass that each candidate keeps, ``(layers, H, candidates)``.

        NaN for candidates that are not applicable, and for heads that a layer does not have.
        """
        return stack_heads([layer.captured for layer in self.layers])

    def number(self, name: str) -> Tensor:
        """One of the numbers in :data:`~hf_longattn.inspect.layer_attention.MEANS`, ``(layers, H)``.

        NaN for heads that a layer does not have.
        """
        return stack_heads([layer.numbers[name] for layer in self.layers])


@dataclass(frozen=True)
class Diagnosis:
    """The attention of a model on a text at growing lengths.

    Attributes:
        model, model_class, text: names of the model, its class and the text.
        device: description of the device.
        causal: whether the layers are causal.
        is_long: whether the checkpoint already has mechanisms.
        candidates: the compared mechanisms.
        reasons: candidate as text -> why it is not applicable.
        lengths: the numbers at each length, in ascending order.
        notes: sentences about lengths that were not measured.
        untrained: candidate as text -> why the positions of longer texts need training with it. Such a candidate is
            not chosen.
        tower: name of the measured tower; "" for a model without towers.
    """

    model: str
    model_class: str
    text: str
    device: str
    causal: bool
    is_long: bool
    candidates: tuple[Candidate, ...]
    reasons: Mapping[str, str]
    lengths: tuple[LengthDiagnosis, ...]
    notes: tuple[str, ...] = ()
    untrained: Mapping[str, str] = field(default_factory=dict)
    tower: str = ""

    @property
    def last(self) -> LengthDiagnosis:
        """The numbers at the longest length."""
        return self.lengths[-1]

    def applicable(self) -> list[int]:
        """Indices of the applicable candidates, in the order of their costs at the longest length."""
        numbers = [number for number, candidate in enumerate(self.candidates) if str(candidate) not in self.reasons]
        return sorted(numbers, key=lambda number: (self.last.pairs[number], len(str(self.candidates[number]))))

    def mass(self, number: int) -> float:
        """The mass that candidate ``number`` keeps at the longest length, a mean over layers and heads."""
        return float(self.last.captured()[..., number].nanmean())

    def cost(self, number: int) -> float:
        """The cost of candidate ``number`` at the longest length, as a fraction of the cost of full attention."""
        return self.last.pairs[number] / self.last.full_pairs

    def chosen(self) -> int | None:
        """Index of the chosen candidate. ``None`` if no candidate is cheaper than full attention.

        The cheapest candidate that keeps at least :data:`ENOUGH` of the mass is chosen. Costs are compared in whole
        per cent; of candidates with the same cost, the one with the largest mass is chosen. If no candidate keeps
        enough, the largest mass is chosen, if possible among candidates of at most half the cost of full attention.
        """
        trained = [number for number in self.applicable() if str(self.candidates[number]) not in self.untrained]
        cheaper = [number for number in trained if self.cost(number) < 1]
        with_enough = [number for number in cheaper if self.mass(number) >= ENOUGH]
        if with_enough:
            return min(with_enough, key=lambda number: (round(self.cost(number), 2), -self.mass(number)))
        half_cost = [number for number in cheaper if self.cost(number) <= 0.5] or cheaper
        return max(half_cost, key=self.mass, default=None)

    def flags(self, number: int) -> list[str]:
        """The flags of ``longattn convert`` that choose candidate ``number``."""
        candidate = self.candidates[number]
        if self.tower:
            return ["--towers", f"{self.tower}={candidate}"]
        options = [word for name, value in candidate.options.items() for word in ("--option", f"{name}={value}")]
        return ["--mechanism", candidate.mechanism, *options]

    def least(self, number: int) -> tuple[float, int]:
        """The least mass that candidate ``number`` keeps in a layer at the longest length, and the layer's number."""
        by_layer = self.last.captured()[..., number].nanmean(1)
        return float(by_layer.min()), int(by_layer.argmin())

    def conclusion(self) -> str:
        """The conclusion from the numbers at the longest length, as one sentence."""
        spread = self.last.number("effective_tokens").nanmean(1)
        widest = int(spread.argmax())
        narrowest = int(spread.argmin())

        def in_words(layer: int) -> str:
            """The mean of a layer's effective tokens as text, rounded, and at most the length."""
            tokens = float(spread[layer])
            if tokens < 10:
                return f"{tokens:.1f} tokens"
            rounded = round(tokens, -2 if tokens >= 2000 else 0)
            return f"{min(rounded, self.last.length):,.0f} tokens"

        sentence = f"At {self.last.length:,} tokens the heads of layer {widest} spread over {in_words(widest)}"
        if widest != narrowest:
            sentence += f", those of layer {narrowest} over {in_words(narrowest)}"
        number = self.chosen()
        if number is None:
            return f"{sentence}."
        mass = percent(self.mass(number))
        cost = percent(self.cost(number))
        return f"{sentence}; {self.candidates[number]} keeps {mass} of the attention, at {cost} of the cost."

    def dilution(self) -> str:
        """Growth of the effective tokens from the shortest to the longest length, as a sentence.

        "" if only one length was measured.
        """
        first = self.lengths[0]
        last = self.last
        if first is last:
            return ""
        before, after = (float(diagnosis.number("effective_tokens").nanmean()) for diagnosis in (first, last))
        largest = [float(diagnosis.number("largest_weight").nanmean()) for diagnosis in (first, last)]
        growth = math.log(after / before) / math.log(last.length / first.length)  # 1 = as fast as the text
        if growth > 0.8:
            pace = "almost as fast as the text"
        elif growth > 0.2:
            pace = "more slowly than the text"
        else:
            pace = "hardly grows"
        return (
            f"From {first.length:,} to {last.length:,} tokens the attention of the average head widens from "
            f"{before:,.0f} to {after:,.0f} effective tokens ({pace}), and its largest weight goes from "
            f"{percent(largest[0])} to {percent(largest[1])}."
        )

    def reach(self) -> str:
        """A sentence: within which distance half and :data:`ENOUGH` of the attention lie at the longest length."""
        by_layer = torch.stack([layer.distance.mean(0) for layer in self.last.layers])
        mass_within = by_layer.mean(0).cumsum(0)  # up to the end of each bin, (bins,)

        def distance(share: float) -> str:
            bin_number = min(int((mass_within < share).sum()), len(mass_within) - 1)
            _, furthest = self.last.bins[bin_number]
            return f"{furthest:,} tokens"

        return (
            f"Half of the attention of the average head lies within {distance(0.5)}, {percent(ENOUGH)} within "
            f"{distance(ENOUGH)}."
        )

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as a dictionary for JSON, which docs/api/measure.md describes."""
        number = self.chosen()
        chosen = None
        if number is not None:
            chosen = {
                "candidate": str(self.candidates[number]),
                "mass": _rounded(self.mass(number)),
                "cost": _rounded(self.cost(number)),
                "flags": self.flags(number),
            }
        return {
            "format": FORMAT,
            "model": self.model,
            "class": self.model_class,
            "text": self.text,
            "device": self.device,
            "causal": self.causal,
            "first_tokens": SINK,
            "conclusion": self.conclusion(),
            "dilution": self.dilution(),
            "reach": self.reach(),
            "notes": list(self.notes),
            "chosen": chosen,
            "candidates": [
                {
                    "name": str(candidate),
                    "mechanism": candidate.mechanism,
                    "options": candidate.options,
                    "not_applicable": self.reasons.get(str(candidate)),
                    "untrained_positions": self.untrained.get(str(candidate)),
                }
                for candidate in self.candidates
            ],
            "lengths": [self._length(diagnosis) for diagnosis in self.lengths],
        }

    def _length(self, diagnosis: LengthDiagnosis) -> dict[str, Any]:
        """The entry of :meth:`to_dict` for one length."""
        names = list(map(str, self.candidates))
        return {
            "length": diagnosis.length,
            "queries": diagnosis.queries,
            "seconds": round(diagnosis.seconds, 2),
            "distance_bins": [list(distances) for distances in diagnosis.bins],
            "full_pairs": diagnosis.full_pairs,
            "pairs": {
                name: pairs for name, pairs in zip(names, diagnosis.pairs, strict=True) if name not in self.reasons
            },
            "layers": [
                {
                    "name": layer.name,
                    "mechanism": layer.mechanism,
                    **{name: _rounded(layer.numbers[name]) for name in MEANS},
                    "distance": _rounded(layer.distance),
                    "captured": {
                        name: _rounded(layer.captured[:, number])
                        for number, name in enumerate(names)
                        if name not in self.reasons
                    },
                }
                for layer in diagnosis.layers
            ],
        }


def stack_heads(layers: Sequence[Tensor]) -> Tensor:
    """Stack a tensor ``(heads, ...)`` of each layer to ``(layers, H, ...)``.

    NaN for heads that a layer does not have, for example after pruning.
    """
    return pad_sequence(list(layers), batch_first=True, padding_value=math.nan)


def percent(share: float) -> str:
    """A share as text with about two digits: "71 %", "0.4 %"."""
    value = 100 * share
    if value == 0 or value >= 9.95:
        return f"{value:.0f} %"
    if value >= 0.095:
        return f"{value:.1f} %"
    return f"{value:.1g} %"


def _rounded(values: Tensor | float) -> Any:
    """A tensor as nested lists of numbers with :data:`DIGITS` significant digits. NaN becomes ``None``."""
    if isinstance(values, Tensor) and values.dim():
        return [_rounded(row) for row in values]
    number = float(values)
    return None if math.isnan(number) else float(f"{number:.{DIGITS}g}")
