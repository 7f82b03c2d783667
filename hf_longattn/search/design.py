"""Candidates of a search, which are mechanisms that any layer may run, and designs, which have a candidate for each layer.

A design is written as a configuration, as a recipe for `longattn convert --config`, and in words, and has costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..configuration import LongAttentionConfig
from ..errors import LongAttentionError, OptionError
from ..inputs.modality import InputSizes
from ..inspect import Candidate
from ..inspect.candidates import USUAL_CAUSAL, built_in_candidates, unique_candidates
from ..inspect.candidates import read_candidates as candidates_from
from ..mechanisms.common.options import write_numbers
from ..mechanisms.common.registry import list_mechanisms, prototype
from .budget import Budget
from .costs import LayerCost

USUAL = (
    "window:window=32", "window:window=64", "window:window=96", "window:window=128", "window:window=192", "window:window=256",
    "window:window=320", "window:window=384", "window:window=512", "window:window=768", "window:window=1024", "longformer:window=128",
    "longformer:window=256", "longformer:window=384", "longformer:window=512", "bigbird", "block_top_k:num_blocks=4",
    "block_top_k:num_blocks=8",
)  # fmt: skip
"""Tried by default, besides full attention."""
USUAL_ON_GRIDS = (
    "window2d:window=7", "window2d:window=8", "window2d:window=16", "window2d:window=32", "window2d:window=16,shift=alternate",
    "window:window=256,order=hilbert", "window:window=512,order=hilbert",
    "segmented:block_size=64,integration=pooled,order=tiles:8x8", "segmented:block_size=256,integration=pooled,order=tiles:16x16",
    "bigbird:block_size=64,order=tiles:8x8", "block_top_k:block_size=64,num_blocks=4,order=tiles:8x8",
    "block_top_k:block_size=64,num_blocks=8,order=tiles:8x8",
)  # fmt: skip
"""Tried by default for images, besides windows of the source's size, every other mechanism on a grid, and full attention."""
FULL = Candidate("full")


def usual_candidates(sizes: InputSizes, causal: bool = False) -> list[Candidate]:
    """The candidates by default for what the model reads, full attention among them. Decoders also try windows with sinks."""
    if not sizes.modality.drawn:
        return unique_candidates([*built_in_candidates((*USUAL, *USUAL_CAUSAL * causal)), FULL])
    side = min(sizes.old.grid.sizes)
    own_windows = (f"window2d:window={side}", f"segmented:block_size={side * side},integration=pooled,order=tiles:{side}x{side}")
    named = built_in_candidates((*own_windows, *USUAL_ON_GRIDS))
    mechanisms = {candidate.mechanism for candidate in named}
    others = [Candidate(name) for name in ("full", *list_mechanisms(grid=True)) if name not in mechanisms]
    return unique_candidates([*named, *others, FULL])


def read_candidates(texts: Iterable[str | Candidate]) -> list[Candidate]:
    """Candidates from texts such as ``window:window=512``, without repetitions.

    Raises:
        OptionError: there is none, or an option that does not exist.
        OptionError: a mechanism that does not exist.
    """
    candidates = candidates_from(texts)
    if not candidates:
        raise OptionError("There is no candidate; give for example --candidate window:window=256, or leave --candidate out.")
    return candidates


def unsuitable(candidate: Candidate, causal: bool, sizes: InputSizes) -> str:
    """Why a candidate cannot run in single layers of a model, as one sentence; empty if it can. ``sizes`` are those of its
    inputs.

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

    named: layers with a sliding window of the base, which they would keep if a configuration did not name them.
    """

    layers: tuple[Candidate, ...]
    named: frozenset[int] = field(default=frozenset(), compare=False)

    @classmethod
    def uniform(cls, candidate: Candidate, layers: int, named: frozenset[int] = frozenset()) -> Design:
        """The design with one candidate in every layer."""
        return cls((candidate,) * layers, named)

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates' texts, which identify a design."""
        return tuple(map(str, self.layers))

    @property
    def default(self) -> Candidate:
        """The candidate that most layers have; the first of them if several have as many."""
        most = Counter(self.names).most_common(1)[0][0]
        return self.layers[self.names.index(most)]

    def attention(self) -> LongAttentionConfig:
        """The configuration: the default, and overrides for the other layers."""
        default = self.default
        overrides = {
            number: {"mechanism": candidate.mechanism, **candidate.options}
            for number, candidate in enumerate(self.layers)
            if self._is_named(number)
        }
        return LongAttentionConfig(default.mechanism, layers=overrides or None, **default.options)

    def _is_named(self, layer: int) -> bool:
        return layer in self.named or self.names[layer] != str(self.default)

    def rules(self, layers: Iterable[int] | None = None) -> list[tuple[str, Candidate]]:
        """Layer numbers such as ``0-2,5`` and what they run, in the order of their first layers; of all layers, or of ``layers``."""
        numbers: dict[str, list[int]] = {}
        for number in range(len(self.layers)) if layers is None else layers:
            name = self.names[number]
            numbers.setdefault(name, []).append(number)
        return [(write_numbers(where), self.layers[where[0]]) for where in numbers.values()]

    def recipe(self, **settings: Any) -> dict[str, Any]:
        """Flags of `longattn convert` by name, as a recipe keeps them; ``settings`` that are not ``None`` come first."""
        default = self.default
        values: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        values["mechanism"] = default.mechanism
        if default.options:
            values["option"] = [f"{name}={value}" for name, value in default.options.items()]
        overrides = [f"{where}={candidate}" for where, candidate in self.rules(filter(self._is_named, range(len(self.layers))))]
        if overrides:
            values["layers"] = overrides
        return values

    def __str__(self) -> str:
        rules = self.rules()
        return f"{rules[0][1]} in every layer" if len(rules) == 1 else "; ".join(f"{where}={candidate}" for where, candidate in rules)


@dataclass(frozen=True)
class CostedDesign:
    """A design with what it costs and what it is worth.

    seconds: of the attention of all layers for one text of the target length.
    bytes: of a decoder, the state of all layers; of an encoder, the working memory of the largest layer; ``None`` where not measured.
    score: by which it was chosen, the greater the better: captured mass, mean over layers, or minus the sum of the layers' KL divergences;
        ``None`` where a layer's candidate has none.
    """

    design: Design
    seconds: float
    bytes: int | None
    score: float | None = None

    def to_dict(self, full_seconds: float) -> dict[str, Any]:
        """JSON-serialisable form, with six digits of each number."""
        values = {"seconds": self.seconds, "share_of_full_time": self.seconds / full_seconds, "bytes": self.bytes, "score": self.score}
        numbers = {name: value if name == "bytes" else float(f"{value:.6g}") for name, value in values.items() if value is not None}
        return {"layers": list(self.design.names), **numbers}


@dataclass(frozen=True)
class DesignCosts:
    """Costs of designs under a budget.

    by_candidate: of one layer, by the candidate's text, full attention's among them.
    layers: of the model. causal: whether it is a decoder. named: as of :class:`Design`.
    """

    by_candidate: Mapping[str, LayerCost]
    layers: int
    causal: bool
    named: frozenset[int]
    budget: Budget

    def uniform(self, candidate: Candidate) -> Design:
        """The design with one candidate in every layer."""
        return Design.uniform(candidate, self.layers, self.named)

    @property
    def full_seconds(self) -> float:
        return self.layers * self.by_candidate[str(FULL)].seconds

    @property
    def limit(self) -> float:
        """The budget in seconds or bytes."""
        return self.budget.limit(self.full_seconds)

    @property
    def peak(self) -> bool:
        """Whether the largest layer counts: memory that an encoder's layer frees before the next needs it. Otherwise costs are added."""
        return self.budget.of_memory and not self.causal

    def of_layer(self, name: str) -> float:
        """What a candidate costs in one layer, in seconds or bytes as the budget."""
        cost = self.by_candidate[name]
        return float(cost.bytes or 0) if self.budget.of_memory else cost.seconds

    def costed(self, design: Design, score: float | None = None) -> CostedDesign:
        """A design with its costs."""
        costs = [self.by_candidate[name] for name in design.names]
        sizes = [cost.bytes for cost in costs if cost.bytes is not None]
        size = None if len(sizes) < len(costs) else sum(sizes) if self.causal else max(sizes)
        return CostedDesign(design, sum(cost.seconds for cost in costs), size, score)
