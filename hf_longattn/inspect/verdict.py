"""The verdict of an audit: for every layer and the output, whether measured and declared reach agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from .declared import DeclaredReach
from .replacing import Embedding, Measurement, Settings, Stage
from .targets import EMBEDDING, OUTPUT, AuditTarget

CUT_OFF = "the input is cut off"


@dataclass(frozen=True)
class StageReach:
    """The comparison of one layer, or of the output, with the config.

    stage: "layer 1", "output" or "embedding".
    mechanism: mechanism of the config; empty for the output of several layers.
    declared, measured: maximum distances (back, ahead), among those tested, at which an output may depend on a token, and did.
    beyond: number of outputs, over all runs, that changed although the config does not allow it.
    unreached: ranges of distances (from, to), negative for later tokens, at which outputs should have changed and did not.
    tested: fraction tested of the (output, token) pairs that must be independent; ``None`` if unknown.
    problem: one sentence; empty if model and config agree.
    """

    stage: str
    mechanism: str
    declared: tuple[int, int]
    measured: tuple[int, int]
    beyond: int
    unreached: tuple[tuple[int, int], ...]
    tested: float | None
    problem: str


@dataclass(frozen=True)
class ReachAudit:
    """A finished audit.

    Attributes:
        runs: number of runs of the model, graph or server.
        seconds: duration of these runs.
        exhaustive_runs: number of runs that a test of all pairs would take.
        probes: for an embedding, the positions whose tokens were replaced.
        noise: largest difference between the outputs of two equal runs.
        note: what these runs cannot detect, or "".
        notes: of a server, what else it was asked. unit: what ``length`` counts, "tokens" or "frames".
        changed: ``(panels, stages, N)`` bool, the outputs that changed in the first runs; for an embedding ``(probes, 1, 1)``.
        expected: the outputs that may change, in the shape of ``changed``.
    """

    model: str
    subject: str
    length: int
    runs: int
    seconds: float
    exhaustive: bool
    exhaustive_runs: int
    probes: tuple[int, ...]
    stages: tuple[StageReach, ...]
    noise: float
    note: str
    changed: Tensor
    expected: Tensor
    notes: tuple[str, ...] = ()
    unit: str = "tokens"

    @property
    def agrees(self) -> bool:
        """Whether nothing contradicts the config."""
        return not any(stage.problem for stage in self.stages)

    @property
    def parts(self) -> Mapping[str, ReachAudit]:
        """This audit under an empty name, for a model of one stack."""
        return {"": self}

    @property
    def tested(self) -> float:
        """Minimum of :attr:`StageReach.tested` over the stages where it is known."""
        return min((stage.tested for stage in self.stages if stage.tested is not None), default=1.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        fields = ("model", "subject", "length", "runs", "seconds", "exhaustive", "exhaustive_runs", "noise", "agrees", "note", "notes")
        values = {name: getattr(self, name) for name in fields}
        return {**values, "probes": list(self.probes), "stages": [asdict(stage) for stage in self.stages]}


@dataclass(frozen=True)
class TowersAudit:
    """Audits of the towers of a model, by tower name.

    notes: towers that were not audited, and why.
    """

    towers: Mapping[str, ReachAudit]
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> Mapping[str, ReachAudit]:
        return self.towers

    @property
    def agrees(self) -> bool:
        """Whether nothing contradicts the config."""
        return all(audit.agrees for audit in self.towers.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        towers = {name: audit.to_dict() for name, audit in self.towers.items()}
        return {"agrees": self.agrees, "towers": towers, "notes": list(self.notes)}


def audited(
    model: str, target: AuditTarget, declared: DeclaredReach, parts: Sequence[Measurement | Embedding], seconds: float, settings: Settings
) -> ReachAudit:
    """Combine measurements, the output last, into an audit.

    Raises:
        OptionError: no output changed in any run.
    """
    stages = [stage for part in parts if isinstance(part, Measurement) for stage in part.stages]
    embedding = next((part for part in parts if isinstance(part, Embedding)), None)
    if not any(stage.responds for stage in stages) and (embedding is None or not embedding.changed.any()):
        noise = max([stage.noise for stage in stages], default=0.0)
        what = f"changes by {noise:.1g} when nothing is replaced, and by no more otherwise" if noise else "returns the same for every input"
        raise OptionError(f"{target.name} {what}, so its reach cannot be measured.")
    if embedding is None:
        panels = min(len(stage.panels) for stage in stages)
        changed, expected = (
            torch.stack([torch.stack([stage.panels[number][which] for stage in stages]) for number in range(panels)]) for which in (0, 1)
        )
        verdicts = [of_stage(stage) for stage in stages]
        noise = max(stage.noise for stage in stages)
    else:
        changed, expected = embedding.changed[:, None, None], embedding.allowed[:, None, None]
        verdicts, noise = [of_embedding(embedding, target.refusal)], embedding.noise
    return ReachAudit(
        model, target.name, declared.length, sum(part.runs for part in parts), seconds, settings.exhaustive,
        parts[0].exhaustive_runs + sum(part.runs for part in parts[1:]), () if embedding is None else embedding.probes, tuple(verdicts),
        noise, _note(stages, embedding, declared, settings), changed, expected, unit=getattr(declared.inputs, "unit", "tokens"),
    )  # fmt: skip


def of_stage(stage: Stage) -> StageReach:
    """The verdict on a layer, or on the output at every token."""
    problem = ""
    if stage.leaks:
        sources = stage.sources.nonzero()[:, 0].tolist()
        several = f"{len(sources):,} tokens from {sources[0]:,} to {sources[-1]:,} together change"
        what = f"token {sources[0]:,} changes" if len(sources) == 1 else several
        further = f" ({stage.leaks:,} such outputs)" if stage.leaks > 1 else ""
        problem = f"{what} the output at {stage.leak:,}, which the config keeps apart{further}"
    elif stage.missing:
        row, token = max(stage.missing, key=lambda pair: abs(pair[0] - pair[1]))
        problem = f"the output at {row:,} does not change with token {token:,}, which the config lets it see"
        never = [pair for pair in stage.missing if stage.never_seen(*pair)]
        if never:
            problem += f"; nothing changes at the distances {_spans(_ranges(row - token for row, token in never))}"
    unreached = tuple(_ranges(row - token for row, token in stage.missing))
    return StageReach(stage.name, stage.reach.name, stage.declared, stage.measured, stage.leaks, unreached, stage.tested, problem)


def of_embedding(embedding: Embedding, refusal: str = "") -> StageReach:
    """The verdict on the embedding of a text. refusal: what is answered to longer ones."""
    probes = torch.tensor(embedding.probes)
    beyond, lost = embedding.changed & ~embedding.allowed, embedding.allowed & ~embedding.changed
    problem = ""
    if embedding.chunk:
        problem = f"chunks of some {embedding.chunk:,} tokens are embedded by themselves and averaged"
    elif beyond.any():
        problem = f"token {int(probes[beyond][0]):,} changes the embedding, which no layer of the config lets it reach"
    elif lost.any() and embedding.certain:
        first = int(probes[lost].min())
        if first > int(probes[embedding.changed].max()):
            problem = f"no token from {first:,} on changes the embedding: {CUT_OFF}"
        else:
            problem = f"tokens {', '.join(f'{token:,}' for token in probes[lost][:4].tolist())} do not change the embedding"
    problems = "; ".join(filter(None, (problem, refusal)))
    return StageReach(EMBEDDING, "", (0, 0), (0, 0), int(beyond.sum()), (), None, problems)


def _note(stages: Sequence[Stage], embedding: Embedding | None, declared: DeclaredReach, settings: Settings) -> str:
    """A sentence about what these runs cannot detect, or an empty string."""
    layered = len(stages) > 1 or (bool(stages) and stages[0].name != OUTPUT)
    if embedding is not None and bool(embedding.allowed.all()):
        return (
            "By the config, every token tried reaches the embedding, so this detects inputs that are cut off, but not a dropped window; "
            "the layers of the model itself do, or a graph with an output for each token."
        )
    if not layered and embedding is None and all(bool(allowed.all()) for _, allowed in stages[0].panels):
        return (
            "Through all layers, the config lets every token tried reach every output at this length, so a dropped window cannot be "
            "detected; a longer input may show it, or the layers of the model itself."
        )
    if not all(stage.reach.certain for stage in stages) or (embedding is not None and not embedding.certain):
        return "Where keys are chosen by their content, or the config does not determine them, only outputs out of all reach can disagree."
    noise = max((stage.noise for stage in stages), default=0.0)
    if noise:
        return f"Two equal runs differ by up to {noise:.1g}, so smaller changes than {4 * noise:.1g} cannot be seen."
    if settings.tolerance and stages:
        return "Changes within reach may be smaller than the tolerance, so only outputs out of reach can disagree."
    return ""


def _ranges(distances: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The distances as ranges (from, to) of consecutive numbers."""
    known = set(distances)
    starts = sorted(distance for distance in known if distance - 1 not in known)
    stops = sorted(distance for distance in known if distance + 1 not in known)
    return zip(starts, stops, strict=True)


def _spans(ranges: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{low:,}" if low == high else f"{low:,} to {high:,}" for low, high in ranges)
