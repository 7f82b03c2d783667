"""Candidates and designs of a search. A candidate is a mechanism for single layers, a design has one for each layer.

A design can be written as a configuration, as a recipe for `longattn convert --config`, and in words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..configuration import LongAttentionConfig
from ..errors import LongAttentionError
from ..inspect import Candidate
from ..inspect.candidates import USUAL_CAUSAL, read_candidates
from ..mechanisms.common.options import write_numbers
from ..mechanisms.common.registry import list_mechanisms, prototype
from ..modeling.family.input_spec import InputSizes

USUAL = (
    "window:window=32",
    "window:window=64",
    "window:window=96",
    "window:window=128",
    "window:window=192",
    "window:window=256",
    "window:window=320",
    "window:window=384",
    "window:window=512",
    "window:window=768",
    "window:window=1024",
    "longformer:window=128",
    "longformer:window=256",
    "longformer:window=384",
    "longformer:window=512",
    "bigbird",
    "block_top_k:num_blocks=4",
    "block_top_k:num_blocks=8",
)
"""Default candidates for texts, besides full attention."""
USUAL_ON_GRIDS = (
    "window2d:window=7",
    "window2d:window=8",
    "window2d:window=16",
    "window2d:window=32",
    "window2d:window=16,shift=alternate",
)
"""Default candidates for images, besides windows of the source's size, every other mechanism on a grid, and full
attention."""
FULL = Candidate("full")


def usual_candidates(sizes: InputSizes, causal: bool = False) -> list[Candidate]:
    """The default candidates for a model. Decoders (``causal``) get windows with sinks, too.

    sizes: the inputs of the model, which may be on a grid.
    """
    if not sizes.spec.on_grid:
        return read_candidates((*USUAL, *USUAL_CAUSAL * causal, FULL), by_user=False)
    side = min(sizes.old.grid.sizes)
    named = read_candidates((f"window2d:window={side}", *USUAL_ON_GRIDS), by_user=False)
    mechanisms = {candidate.mechanism for candidate in named}
    others = [Candidate(name) for name in list_mechanisms(grid=True) if name not in mechanisms]
    return read_candidates([*named, FULL, *others])


def unsuitable(candidate: Candidate, causal: bool, sizes: InputSizes) -> str:
    """Why a candidate cannot run in single layers of a model, as one sentence. Empty if it can.

    Args:
        causal: whether the model's layers are causal.
        sizes: sizes of the model's inputs.

    Raises:
        LongAttentionError: the candidate's options contradict one another.
    """
    mechanism = prototype(candidate.mechanism, candidate.options)
    if mechanism.causal not in ("both", causal):
        return f"{candidate} has no {'causal' if causal else 'bidirectional'} form, which the model's layers need."
    if mechanism.capabilities.recursion is not None:
        return f"{candidate} reads a text segment by segment, which all layers do together."
    try:
        sizes.check(mechanism)
    except LongAttentionError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class Design:
    """A candidate for each layer.

    Attributes:
        layers: the candidates, from the first layer to the last.
        named: layers in which the base has a sliding window. A configuration has to name the mechanism of these
            layers. Otherwise, a conversion would keep the window.
    """

    layers: tuple[Candidate, ...]
    named: frozenset[int] = field(default=frozenset(), compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates as text. Designs with the same names are the same."""
        return tuple(map(str, self.layers))

    def attention(self) -> LongAttentionConfig:
        """The design as a configuration: a default mechanism, and overrides for single layers."""
        default, overridden = self.split()
        overrides = {
            layer: {"mechanism": self.layers[layer].mechanism, **self.layers[layer].options} for layer in overridden
        }
        return LongAttentionConfig(default.mechanism, layers=overrides or None, **default.options)

    def split(self) -> tuple[Candidate, list[int]]:
        """The default candidate of the configuration, and the numbers of the layers with an override.

        The default is the most common candidate. Among equally common ones, it is the one in the earliest layer. A
        layer has an override if it runs another candidate, or is in :attr:`named`.
        """
        names = self.names
        default = Counter(names).most_common(1)[0][0]
        overridden = [layer for layer, name in enumerate(names) if layer in self.named or name != default]
        return self.layers[names.index(default)], overridden

    def groups(self, layers: Iterable[int]) -> list[tuple[str, Candidate]]:
        """Group ``layers`` by candidate.

        Returns the numbers of each group as text, such as ``0-2,5``, with the candidate. Groups are in the order of
        their first layers.
        """
        groups: dict[str, list[int]] = {}
        for number in layers:
            groups.setdefault(self.names[number], []).append(number)
        return [(write_numbers(numbers), self.layers[numbers[0]]) for numbers in groups.values()]

    def recipe(self, **settings: Any) -> dict[str, Any]:
        """A recipe for `longattn convert --config`: name of a flag -> value. ``settings``: other flags; those with
        ``None`` are left out."""
        default, overridden = self.split()
        values: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        values["mechanism"] = default.mechanism
        if default.options:
            values["option"] = [f"{name}={value}" for name, value in default.options.items()]
        if overridden:
            values["layers"] = [f"{numbers}={candidate}" for numbers, candidate in self.groups(overridden)]
        return values

    def __str__(self) -> str:
        groups = self.groups(range(len(self.layers)))
        if len(groups) == 1:
            return f"{groups[0][1]} in every layer"
        return "; ".join(f"{numbers}={candidate}" for numbers, candidate in groups)


@dataclass(frozen=True)
class CostedDesign:
    """A design with its time and its score."""

    design: Design
    seconds: float  # time of the attention of all layers, for one input of the target size
    score: float  # captured mass, as the mean over layers

    def to_dict(self, full_seconds: float) -> dict[str, Any]:
        """JSON-serialisable form, with six digits of each number. ``full_seconds``: time of full attention in every
        layer."""
        numbers = {
            "seconds": self.seconds,
            "share_of_full_time": self.seconds / full_seconds,
            "score": self.score,
        }
        rounded = {name: float(f"{value:.6g}") for name, value in numbers.items()}
        return {"layers": list(self.design.names), **rounded}
