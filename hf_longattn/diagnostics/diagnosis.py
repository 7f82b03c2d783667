"""The result of a diagnosis: numbers per length, layer and head, conclusion, recommendation and JSON form.

docs/api/measure.md describes the JSON object of :meth:`Diagnosis.to_dict`. Its key ``format`` is the version of that format.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..engines.common.grid import Grid
from ..evaluation.token_loss import LossChange
from ..mechanisms.common.layout import full_pairs
from ..mechanisms.common.locality import needs_training_by
from ..staging import unused_name
from .candidates import Candidate
from .layer_attention import MEANS, SINK
from .texts import Needle

FORMAT = 1
"""Version of the JSON form. It changes when a key is removed or changes its meaning."""
ENOUGH = 0.9
"""Minimum share of the mass that a recommended mechanism keeps, if one that costs less than full attention keeps so much."""
ALIKE = 1e-4
"""Maximum difference of two masses that count as equal."""
NOTHING_FITS = "no mechanism compared is cheaper than full attention and sees only distances that positions were trained for."
WIDTH = 80
"""Columns of a report on a terminal."""
DIGITS = 5
"""Number of significant digits in JSON."""


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer at one length; every tensor is float64, with the heads first.

    name: of the attention module.
    mechanism: name of the mechanism that runs in the layer.
    numbers: :data:`~hf_longattn.diagnostics.layer_attention.MEANS` by name, ``(H,)``.
    distance: mass in each bin of distances, ``(H, bins)``.
    captured: mass that each candidate keeps, ``(H, candidates)``; nan for a candidate that is not applicable.
    needle: mass on the needle, mean over the question's tokens, ``(H, depths)``; nan without a needle.
    """

    name: str
    mechanism: str
    numbers: Mapping[str, Tensor]
    distance: Tensor
    captured: Tensor
    needle: Tensor


@dataclass(frozen=True)
class LengthDiagnosis:
    """All layers at one length.

    queries: number of measured queries.
    bins: first and last distance of each bin.
    pairs: number of query–key products per head for each candidate, the unit of cost. full_pairs: for full attention.
    needle_tokens: number of tokens of the needle; 0 without a needle.
    needle_uniform: share of the mass on the needle if all keys had equal weights.
    seconds: duration of the measurement, all forward passes included.
    """

    length: int
    queries: int
    bins: tuple[tuple[int, int], ...]
    layers: tuple[LayerDiagnosis, ...]
    pairs: tuple[int, ...]
    full_pairs: int
    needle_tokens: int
    needle_uniform: float
    seconds: float

    def captured(self) -> Tensor:
        """Mass that each candidate keeps, ``(layers, H, candidates)``; nan if not applicable, and for heads that a layer lacks."""
        return stack_heads([layer.captured for layer in self.layers])

    def number(self, name: str) -> Tensor:
        """One of :data:`~hf_longattn.diagnostics.layer_attention.MEANS`, ``(layers, H)``; nan for heads that a layer does not have."""
        return stack_heads([layer.numbers[name] for layer in self.layers])

    def needle(self) -> Tensor:
        """Mass on the needle, mean over depths, ``(layers, H)``; nan for heads that a layer does not have."""
        return stack_heads([layer.needle for layer in self.layers]).mean(-1)


@dataclass(frozen=True)
class Target:
    """The conversion that a diagnosis recommends.

    source: name of the checkpoint to convert, as in a command; ``None`` if unknown, for example for a model in memory.
    destination: a folder that does not exist.
    length: maximum length of the result in tokens.
    positions: how positions are extended; ``None``: as a conversion chooses by itself.
    generic: whether the model has no Long class, so that it is converted with ``--generic``.
    tower: name of the diagnosed tower; empty for a model without towers.
    audio_seconds: for a sound model, the duration for which it is converted.
    compare_at: duration in seconds at which a search compares mechanisms, if recordings are shorter than ``audio_seconds``.
    """

    source: str | None
    destination: str
    length: int
    positions: str | None = None
    generic: bool = False
    tower: str = ""
    audio_seconds: float | None = None
    compare_at: int | None = None

    def flags(self, candidate: Candidate) -> list[str]:
        """The flags of ``longattn convert``."""
        chosen = ["--towers", f"{self.tower}={candidate}"] if self.tower else candidate.flags
        return [*chosen, *(["--generic"] if self.generic else self.size_flags("--max-length"))]

    def size_flags(self, length_flag: str) -> list[str]:
        """The flags for the input size of the result. length_flag: the flag for a number of tokens."""
        if self.audio_seconds is not None:
            return ["--audio-seconds", f"{self.audio_seconds:g}"]
        positions = [] if self.positions is None else ["--positions", self.positions]
        return [length_flag, str(self.length), *positions]


@dataclass(frozen=True)
class Recommendation:
    """The candidate that keeps most for its cost.

    mass: mass that the candidate keeps at ``judged_at`` tokens, mean over layers and heads.
    cost: query–key products at the longest length, divided by the products of full attention.
    lowest: minimum over layers of the kept mass at ``judged_at`` tokens (mean over heads), and the number of that layer.
    enough: whether ``mass`` is at least :data:`ENOUGH`.
    loss: change of the held-out loss at the longest length if every layer runs the candidate; ``None`` if it was not measured.
    flags: flags of ``longattn convert`` that choose the candidate.
    command: command that converts the checkpoint with the candidate; empty if the checkpoint's name is unknown.
    """

    candidate: Candidate
    mass: float
    cost: float
    lowest: tuple[float, int]
    judged_at: int
    enough: bool
    loss: LossChange | None
    flags: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class CandidateRow:
    """A row of the table of candidates.

    place: rank by kept mass, from 1.
    mass: mass kept at the judged length, mean over layers and heads. least, least_layer: minimum over layers, and the layer's number.
    cost: query–key products at the longest length, divided by the products of full attention.
    on_front: whether no candidate of the same or lower cost keeps more. recommended: whether it is the recommended candidate.
    """

    place: int
    candidate: Candidate
    mass: float
    least: float
    least_layer: int
    cost: float
    on_front: bool
    recommended: bool


@dataclass(frozen=True)
class Diagnosis:
    """The attention of a model on texts of growing length.

    model, text: names. device: description.
    causal: whether the layers are causal.
    within_mechanism: whether the softmax is over the keys that each layer's own mechanism keeps, instead of over all keys.
    needle: the planted needle, or ``None``.
    candidates: the compared mechanisms. reasons: candidate as text -> why it is not applicable.
    is_long: whether the checkpoint has mechanisms already.
    trained_length: maximum length before positions were extended for the diagnosis; ``None`` if they were not.
    target: the recommended conversion.
    untrained: candidate as text -> why positions need training with it. These candidates are not recommended.
    losses: candidate as text -> change of the held-out loss if every layer runs it. no_loss: why no loss was measured.
    frame_seconds: for a sound model, whose tokens are frames: seconds per frame. ``text`` then names the recordings.
    """

    model: str
    model_class: str
    text: str
    device: str
    causal: bool
    is_long: bool
    trained_length: int | None
    within_mechanism: bool
    needle: Needle | None
    candidates: tuple[Candidate, ...]
    reasons: Mapping[str, str]
    lengths: tuple[LengthDiagnosis, ...]
    target: Target
    notes: tuple[str, ...] = ()
    untrained: Mapping[str, str] = field(default_factory=dict)
    losses: Mapping[str, LossChange] = field(default_factory=dict)
    no_loss: str = ""
    frame_seconds: float | None = None

    @property
    def unit(self) -> str:
        """The noun for tokens: "tokens", or "frames" for a sound model."""
        return "tokens" if self.frame_seconds is None else "frames"

    @property
    def input_noun(self) -> str:
        """The noun for the input: "text" or "sound"."""
        return "text" if self.frame_seconds is None else "sound"

    def in_words(self, tokens: float, *, digits: int = 0) -> str:
        """A number of tokens as text, "512 tokens", or of frames with their duration, "1,499 frames (30 s)"."""
        count = f"{tokens:,.{digits}f} {self.unit}"
        return count if self.frame_seconds is None else f"{count} ({in_seconds(tokens * self.frame_seconds)})"

    @property
    def last(self) -> LengthDiagnosis:
        """The diagnosis at the longest length."""
        return self.lengths[-1]

    def at(self, length: int | None) -> LengthDiagnosis:
        """The diagnosis at a length; the longest for ``None``."""
        return self.last if length is None else next(diagnosis for diagnosis in self.lengths if diagnosis.length == length)

    def applicable(self) -> list[int]:
        """Indices of the candidates whose mass was measured, by ascending cost at the longest length."""
        numbers = [number for number, candidate in enumerate(self.candidates) if str(candidate) not in self.reasons]
        return sorted(numbers, key=lambda number: (self.last.pairs[number], len(str(self.candidates[number]))))

    def mass(self, number: int, length: int | None = None) -> float:
        """The mass that a candidate keeps, mean over layers and heads."""
        return float(self.at(length).captured()[..., number].nanmean())

    def cost(self, number: int, length: int | None = None) -> float:
        """A candidate's query–key products, divided by the products of full attention."""
        diagnosis = self.at(length)
        return diagnosis.pairs[number] / diagnosis.full_pairs

    def front(self) -> list[int]:
        """Indices of the Pareto-optimal candidates, cheapest first: none of the same or lower cost keeps more mass.
        The mass is taken at the length :attr:`judged`, the cost at the longest length."""
        front: list[int] = []
        for number in self.applicable():
            if not front or self.mass(number, self.judged.length) > self.mass(front[-1], self.judged.length) + ALIKE:
                if front and self.cost(front[-1]) == self.cost(number):
                    front.pop()
                front.append(number)
        return front

    def candidate_rows(self) -> dict[int, CandidateRow]:
        """Index -> row in the table of applicable candidates, by descending mass."""
        best, front, captured = self.recommend(), self.front(), self.judged.captured()
        mass = {number: float(captured[..., number].nanmean()) for number in self.applicable()}
        rows = {}
        for place, number in enumerate(sorted(mass, key=lambda number: (-round(mass[number], 4), self.cost(number))), 1):
            candidate, by_layer = self.candidates[number], captured[..., number].nanmean(1)
            rows[number] = CandidateRow(
                place, candidate, mass[number], float(by_layer.min()), int(by_layer.argmin()), self.cost(number), number in front,
                best is not None and candidate is best.candidate,
            )  # fmt: skip
        return rows

    @property
    def judged(self) -> LengthDiagnosis:
        """The diagnosis at the length at which candidates are judged by the mass that they keep: the longest length or, if positions were
        extended, the longest trained length. Full attention beyond it was never trained, so keeping its mass is no merit."""
        trained = [diagnosis for diagnosis in self.lengths if self.trained_length is None or diagnosis.length <= self.trained_length]
        return trained[-1] if trained else self.last

    def recommended_order(self, enough: float = ENOUGH) -> list[int]:
        """Indices of the candidates in the order of recommendation. These keep at least ``enough`` of the mass at the length
        :attr:`judged`, cheapest first. If no candidate cheaper than full attention keeps so much, the only one is the candidate that keeps
        most for at most half of full attention's cost. Costs are taken at the longest length in whole percent; at equal cost, a larger
        mass comes first. Candidates in :attr:`untrained` are left out."""
        mass = self.judged.captured().nanmean((0, 1)).tolist()
        cheaper = [number for number in self.applicable() if self.cost(number) < 1 and str(self.candidates[number]) not in self.untrained]
        half = [number for number in cheaper if self.cost(number) <= 0.5] or cheaper
        order = sorted(cheaper, key=lambda number: (round(self.cost(number), 2), -mass[number]))
        return [number for number in order if mass[number] >= enough] or ([max(half, key=mass.__getitem__)] if half else [])

    def recommend(self, enough: float = ENOUGH) -> Recommendation | None:
        """The first candidate in :meth:`recommended_order` whose measured loss is not worse, or else the first of all.
        ``None`` if that order is empty: no candidate is cheaper than full attention and works without training positions."""
        order = self.recommended_order(enough)
        if not order:
            return None
        losses = {number: self.losses.get(str(self.candidates[number])) for number in order}
        chosen = next((number for number, loss in losses.items() if loss is not None and not loss.worse), order[0])
        by_layer = self.judged.captured()[..., chosen].nanmean(1)
        layer, candidate = int(by_layer.argmin()), self.candidates[chosen]
        mass, flags = self.mass(chosen, self.judged.length), self.target.flags(candidate)
        words = [] if self.target.source is None else ["longattn", "convert", self.target.source, self.target.destination, *flags]
        return Recommendation(
            candidate, mass, self.cost(chosen), (float(by_layer[layer]), layer), self.judged.length, mass >= enough, losses[chosen],
            tuple(flags), shlex.join(words),
        )  # fmt: skip

    def search_command(self, text: str) -> str:
        """The search command to run next, on the file or folder ``text``; empty if a search does not support the model."""
        if self.target.source is None or self.target.generic or self.target.tower:
            return ""
        folder = unused_name(f"{self.target.destination}-search")
        compared = [] if self.target.compare_at is None else ["--compare-at", str(self.target.compare_at)]
        words = ["search", self.target.source, text, *self.target.size_flags("--length"), *compared, "--output", folder]
        return shlex.join(["longattn", *words])

    def conclusion(self) -> str:
        """The conclusion from the numbers at the longest length, as one sentence."""
        spread = self.last.number("effective_tokens").nanmean(1)
        widest, narrowest = int(spread.argmax()), int(spread.argmin())
        sentence = f"At {self.in_words(self.last.length)} the heads of layer {widest} spread over {self._spread(float(spread[widest]))}"
        if widest != narrowest:
            sentence += f", those of layer {narrowest} over {self._spread(float(spread[narrowest]))}"
        best = self.recommend()
        if best is None:
            return f"{sentence}."
        where = "" if best.judged_at == self.last.length else f" at the {self.in_words(best.judged_at)} that it was trained for"
        loss = "" if best.loss is None else f"; {self.loss_sentence(best.loss)}"
        return (
            f"{sentence}; {best.candidate} keeps {percent(best.mass)} of the attention{where}, at {percent(best.cost)} of the cost{loss}."
        )

    def _spread(self, tokens: float) -> str:
        """A mean of effective tokens as text, rounded, but to no more than the length."""
        rounded = round(tokens, -2 if tokens >= 2000 else 0)
        return self.in_words(tokens, digits=1) if tokens < 10 else self.in_words(min(rounded, self.last.length))

    def loss_sentence(self, loss: LossChange) -> str:
        """How a mechanism changes the loss at the longest length, as a clause."""
        compared = "with the model" if (self.trained_length or self.last.length) >= self.last.length else "with the model in chunks of "
        chunks = "" if compared == "with the model" else f"{self.trained_length:,} tokens"
        verdict = "worse, so train after the conversion" if loss.worse else "not worse"
        return f"without training the loss at {self.last.length:,} tokens is {verdict}: {loss}, compared {compared}{chunks}"

    def dilution(self) -> str:
        """How effective tokens grow from the shortest to the longest length, as a sentence; empty for a single length."""
        first, last = self.lengths[0], self.last
        if first is last:
            return ""
        before, after = (float(diagnosis.number("effective_tokens").nanmean()) for diagnosis in (first, last))
        largest = [float(diagnosis.number("largest_weight").nanmean()) for diagnosis in (first, last)]
        growth = math.log(after / before) / math.log(last.length / first.length)
        text = f"the {self.input_noun}"
        kind = f"almost as fast as {text}" if growth > 0.8 else f"more slowly than {text}" if growth > 0.2 else "hardly grows"
        return (
            f"From {first.length:,} to {last.length:,} {self.unit} the attention of the average head widens from {before:,.0f} to "
            f"{after:,.0f} effective {self.unit} ({kind}), and its largest weight goes from {percent(largest[0])} to {percent(largest[1])}."
        )

    def reach(self) -> str:
        """Distances within which half and :data:`ENOUGH` of the attention lie at the longest length, as a sentence."""
        mass = stack_heads([layer.distance for layer in self.last.layers]).nanmean((0, 1)).cumsum(0)
        furthest = [self.last.bins[min(int((mass < share).sum()), len(mass) - 1)][1] for share in (0.5, ENOUGH)]
        half, most = (self.in_words(distance) for distance in furthest)
        return f"Half of the attention of the average head lies within {half}, {percent(ENOUGH)} within {most}."

    def needle_heads(self, count: int = 5) -> list[tuple[int, int, float]]:
        """``(layer, head, share)`` of the heads with the most mass on the needle at the longest length, mean over depths."""
        if self.needle is None:
            return []
        shares = self.last.needle().nan_to_num(-1)
        order = shares.flatten().argsort(descending=True)[:count].tolist()
        heads = [(*divmod(number, shares.shape[1]), float(shares.flatten()[number])) for number in order]
        return [(layer, head, share) for layer, head, share in heads if share >= 0]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        best = self.recommend()
        return {
            "format": FORMAT,
            "model": self.model,
            "class": self.model_class,
            "text": self.text,
            "device": self.device,
            "causal": self.causal,
            "within_mechanism": self.within_mechanism,
            "trained_length": self.trained_length,
            "first_tokens": SINK,
            **({} if self.frame_seconds is None else {"frame_seconds": self.frame_seconds, "reach": self.reach()}),
            "conclusion": self.conclusion(),
            "dilution": self.dilution(),
            "notes": list(self.notes),
            "needle": None
            if self.needle is None
            else {"text": self.needle.text, "question": self.needle.question, "depths": list(self.needle.depths)},
            "recommended": None
            if best is None
            else {
                "candidate": str(best.candidate),
                "mass": _short(best.mass),
                "judged_at": best.judged_at,
                "cost": _short(best.cost),
                "loss": None if best.loss is None else best.loss.to_dict(),
                "no_loss": self.no_loss or None,
                "flags": list(best.flags),
                "command": best.command or None,
            },
            "candidates": [
                {
                    "name": str(candidate),
                    "mechanism": candidate.mechanism,
                    "options": candidate.options,
                    "not_applicable": self.reasons.get(str(candidate)),
                    "untrained_positions": self.untrained.get(str(candidate)),
                    "loss": None if (loss := self.losses.get(str(candidate))) is None else loss.to_dict(),
                }
                for candidate in self.candidates
            ],
            "lengths": [self._length(diagnosis) for diagnosis in self.lengths],
        }

    def _length(self, diagnosis: LengthDiagnosis) -> dict[str, Any]:
        return {
            "length": diagnosis.length,
            "queries": diagnosis.queries,
            "seconds": round(diagnosis.seconds, 2),
            "distance_bins": [list(distances) for distances in diagnosis.bins],
            "needle_tokens": diagnosis.needle_tokens,
            "needle_uniform": _short(diagnosis.needle_uniform),
            "full_pairs": diagnosis.full_pairs,
            "pairs": {
                name: pairs for name, pairs in zip(map(str, self.candidates), diagnosis.pairs, strict=True) if name not in self.reasons
            },
            "layers": [
                {
                    "name": layer.name,
                    "mechanism": layer.mechanism,
                    **{name: _numbers(layer.numbers[name]) for name in MEANS},
                    "distance": _numbers(layer.distance),
                    "needle": None if self.needle is None else _numbers(layer.needle),
                    "captured": {
                        name: _numbers(layer.captured[:, number])
                        for number, name in enumerate(map(str, self.candidates))
                        if name not in self.reasons
                    },
                }
                for layer in diagnosis.layers
            ],
        }


def stack_heads(layers: Sequence[Tensor]) -> Tensor:
    """Stack one tensor ``(heads, ...)`` per layer to ``(layers, H, ...)``; nan for heads that a layer lacks, for example after pruning."""
    return pad_sequence(list(layers), batch_first=True, padding_value=math.nan)


def costs(
    candidates: Sequence[Candidate], reasons: Mapping[str, str], length: int, causal: bool, heads: int, width: int, grid: Grid | None = None
) -> list[int]:  # fmt: skip
    """Number of query–key products per head for each candidate; for one that is not applicable, the number of full attention."""
    everything = full_pairs(length, causal)
    return [everything if str(candidate) in reasons else candidate.pairs(length, causal, heads, width, grid) for candidate in candidates]


def untrained(
    candidates: Sequence[Candidate], reasons: Mapping[str, str], rule: str, lengths: tuple[int, int], causal: bool, heads: int, width: int
) -> dict[str, str]:
    """Candidate as text -> why positions need training with it. Candidates that are not applicable, or need none, are left out.

    Args:
        rule: how positions are extended.
        lengths: maximum lengths in tokens of the checkpoint, as it was trained, and of the result.
    """
    problems = {}
    for candidate in candidates:
        if str(candidate) in reasons:
            continue
        if why := needs_training_by(candidate.sized(lengths[1], heads, width), rule, *lengths, causal):
            problems[str(candidate)] = f"{why}."
    return problems


def in_seconds(seconds: float) -> str:
    """A duration for readers: ``0.02 s``, ``30 s``, ``3,600 s``."""
    return f"{seconds:,.0f} s" if seconds >= 99.5 else f"{seconds:.3g} s"


def percent(share: float) -> str:
    """A share for readers: ``71 %``, ``0.4 %``."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 9.95 or value == 0 else f"{value:.1f} %" if value >= 0.095 else f"{value:.1g} %"


def thousands(value: float) -> str:
    """A number of tokens as a short text: 512, 2K, 2.3K, 64K."""
    if value < 1000:
        return f"{value:.0f}"
    kilo = value / 1024
    return f"{kilo:.0f}K" if kilo >= 9.95 or abs(kilo - round(kilo)) < 0.05 else f"{kilo:.1f}K"


def _short(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.{DIGITS}g}")


def _numbers(values: Tensor) -> Any:
    """Nested lists of numbers with :data:`DIGITS` significant digits; ``None`` for nan."""
    return [_numbers(row) for row in values] if values.dim() else _short(float(values))
