"""Candidates of a search (mechanisms for single layers), and designs with a candidate for each layer.

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
    """The default candidates for the model's inputs, including full attention. For decoders, also windows with
    sinks."""
    if not sizes.spec.on_grid:
        return read_candidates((*USUAL, *USUAL_CAUSAL * causal, FULL), by_user=False)
    side = min(sizes.old.grid.sizes)
    named = read_candidates((f"window2d:window={side}", *USUAL_ON_GRIDS), by_user=False)
    mechanisms = {candidate.mechanism for candidate in named}
    others = [Candidate(name) for name in list_mechanisms(grid=True) if name not in mechanisms]
    return read_candidates([*named, FULL, *others])


def unsuitable(candidate: Candidate, causal: bool, sizes: InputSizes) -> str:
    """Why a candidate cannot run in single layers of a model, as one sentence; empty if it can. ``sizes`` are those of
    its inputs.

    Raises:
        LongAttentionError: options that contradict one another.
    """
    built = prototype(candidate.mechanism, candidate.options)
    if built.causal not in ("both", causal):
        return f"{candidate} has no {'causal' if causal else 'bidirectional'} form, which the model's layers need."
    if built.capabilities.recursion is not None:
        return f"{candidate} reads a text segment by segment, which all layers do together."
    try:
        sizes.check(built)
    except LongAttentionError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class Design:
    """A candidate for each layer, from the first to the last.

    named: layers in which the base has a sliding window. A configuration names them, since a conversion would retain
        the window otherwise.
    """

    layers: tuple[Candidate, ...]
    named: frozenset[int] = field(default=frozenset(), compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates' texts, which identify a design."""
        return tuple(map(str, self.layers))

    def attention(self) -> LongAttentionConfig:
        """The configuration: the default, and overrides for the other layers."""
        default, overridden = self.split()
        overrides = {
            layer: {"mechanism": self.layers[layer].mechanism, **self.layers[layer].options} for layer in overridden
        }
        return LongAttentionConfig(default.mechanism, layers=overrides or None, **default.options)

    def split(self) -> tuple[Candidate, list[int]]:
        """The default candidate of a configuration, and the layers that it overrides.

        The default is the most common candidate; a tie goes to the earlier layer. A layer is overridden if it runs
        another candidate or is in :attr:`named`.
        """
        names = self.names
        default = Counter(names).most_common(1)[0][0]
        overridden = [layer for layer, name in enumerate(names) if layer in self.named or name != default]
        return self.layers[names.index(default)], overridden

    def groups(self, layers: Iterable[int]) -> list[tuple[str, Candidate]]:
        """Group ``layers`` by candidate: their numbers as text such as ``0-2,5``, and the candidate. Ordered by first
        layer."""
        numbers: dict[str, list[int]] = {}
        for number in layers:
            numbers.setdefault(self.names[number], []).append(number)
        return [(write_numbers(same), self.layers[same[0]]) for same in numbers.values()]

    def recipe(self, **settings: Any) -> dict[str, Any]:
        """The recipe: flags of `longattn convert` by name, after the ``settings`` that are not ``None``."""
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
    """A design with its time and its score.

    seconds: duration of the attention of all layers, for one text of the target length.
    score: the mean over layers of the captured mass.
    """

    design: Design
    seconds: float
    score: float

    def to_dict(self, full_seconds: float) -> dict[str, Any]:
        """JSON-serialisable form, with six digits of each number."""
        numbers = {
            "seconds": self.seconds,
            "share_of_full_time": self.seconds / full_seconds,
            "score": self.score,
        }
        rounded = {name: float(f"{value:.6g}") for name, value in numbers.items()}
        return {"layers": list(self.design.names), **rounded}
