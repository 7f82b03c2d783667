"""Choose tokens to replace, so that few runs test many (output, token) pairs, and evaluate the runs.

If replacing a set of tokens changes no bit of an output, the output depends on none of them. A set therefore tests all its tokens at once,
for outputs that may depend on none of them. The declared reach gives two kinds of sets:

- **isolated** tokens, so far apart that no output may depend on two of them. Every output that may depend on one must change. This
  detects a window that is one key too narrow, or too wide, anywhere in the text.
- **runs** of s consecutive tokens, repeated with gaps that are wider than the reach. They detect dependence on tokens that are s or more
  tokens out of reach. Runs of 2s, 4s … tokens follow, until a set has one run. For a reach of b tokens there are b/s + 3 sets per run
  length, or fewer. Runs of one token test every pair.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .declared import Reach
from .targets import Changes, TokenChanges

MAX_RUN_SETS = 16
"""Maximum number of sets of runs, unless the audit is exhaustive."""
HUBS_TRIED = 2
"""Maximum number of global tokens to replace, unless the audit is exhaustive."""
LEAST_INFLUENCE = 1e-4
"""Minimum influence of a token on an output, through all layers, for which a change is required."""
ROWS_CHECKED = 8
"""Maximum number of outputs per stage to check by gradients, after a required change was missing."""
PROBED_TOKENS = 16
"""Number of tokens, spread over the text, to replace for an embedding, unless the audit is exhaustive."""
CONFIRMATIONS = 2
"""Number of further runs in which a change out of reach must recur, if bits are not compared."""
CHUNKED = 1e-3
"""Maximum :meth:`~.targets.TokenChanges.interaction` of tokens in different chunks. all-MiniLM-L6-v2 has 5e-7, and 0.4 without chunks."""
LEAST_COMMON = 1e-2
"""Minimum influence of two parts of a text on the same outputs, relative to that of either, for which an interaction is required."""
MAX_PANELS = 3
"""Number of sets whose changes are stored for plots."""


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement.

    tolerance: largest change that counts as none, relative to the largest change of the stage.
    exhaustive: whether to test every pair.
    runs: maximum number of sets of runs, unless exhaustive.
    layers: whether each stage is a single layer, instead of the output after all layers.
    """

    tolerance: float = 0.0
    exhaustive: bool = False
    runs: int = MAX_RUN_SETS
    layers: bool = True


@dataclass(frozen=True, eq=False)
class Replacement:
    """A set of tokens to replace in one run of the target.

    tokens: ``(N,)`` bool, the set.
    allowed, required: ``(N,)`` bool, the outputs that may change, and the outputs that must change.
    isolated: whether no output, except at hubs, may depend on two tokens of the set.
    """

    tokens: Tensor
    allowed: Tensor
    required: Tensor
    isolated: bool


def replacements(reach: Reach, settings: Settings) -> Iterator[Replacement]:
    """The sets of tokens to replace for one stage, without duplicates."""
    least = 0 if settings.layers else LEAST_INFLUENCE
    drawn: set[bytes] = set()
    for number, (tokens, isolated) in enumerate(_sets(reach, settings)):
        key = tokens.numpy().tobytes()
        if key in drawn or not tokens.any():
            continue
        drawn.add(key)
        influence = reach.influence(tokens)
        allowed = influence > 0
        exact = isolated and reach.certain and not settings.tolerance  # changes at a distance may be smaller than a tolerance
        required = allowed & (influence >= least) & exact
        if number < MAX_PANELS or required.any() or not allowed.all():
            yield Replacement(tokens, allowed, required, isolated)


def _sets(reach: Reach, settings: Settings) -> Iterator[tuple[Tensor, bool]]:
    """Sets ``(N,)`` bool, each with whether its tokens are isolated."""
    length, hubs, band = reach.length, reach.hubs, _band(reach, settings.exhaustive)
    positions, size = torch.arange(length), 1
    if not settings.exhaustive:
        while size < length / 2 and sum(count for _, count in _levels(length, band, size)) > settings.runs:
            size *= 2
        period = min(length, band + 1 + max(8, band // 4))
        for start in (0, period // 2, (length - 1) % period):
            yield (positions % period == start) & ~hubs, True
    for hub in hubs.nonzero()[: None if settings.exhaustive else HUBS_TRIED]:
        yield positions == hub, True
    for run, count in _levels(length, band, size):
        for number in range(count):
            yield (positions // run % count == number) & ~hubs, run == 1


def _band(reach: Reach, exhaustive: bool) -> int:
    """Minimum distance of two replaced tokens, so that no output may depend on both."""
    if exhaustive and reach.causal and reach.hubs.any():  # a hub sees all tokens before it
        return reach.length
    return min(reach.length, reach.back + reach.ahead)


def _levels(length: int, band: int, size: int) -> Iterator[tuple[int, int]]:
    """(run length, number of sets) for run lengths ``size``, 2·``size``, …, until each set has a single run."""
    run = size
    while True:
        most = -(-length // run)
        count = min(most, -(-(band + 3 * run) // run))
        yield run, count
        if count == most:
            return
        run *= 2


class Stage:
    """Results for one layer, or for the output.

    declared, measured: maximum distances (back, ahead) at which an output may depend on a token, and did.
    noise: largest difference between two equal runs.
    tolerance: largest change that counts as none, relative to the largest change.
    leaks: number of outputs, over all runs, that changed although they must not.
    leak: the output of the leak with the largest distance.
    sources: ``(N,)`` bool, the token that changed ``leak``; several if no single token does.
    missing: (output, token) pairs without the required change.
    tested: fraction tested of the pairs that must be independent; ``None`` if unknown.
    panels: for the first runs, the outputs ``(N,)`` bool that changed, and the outputs that may change.
    """

    def __init__(self, name: str, reach: Reach, noise: float, tolerance: float) -> None:
        self.name, self.reach, self.noise, self.tolerance = name, reach, noise, tolerance
        self.declared = self.measured = (0, 0)
        self.leaks, self.leak, self.sources = 0, 0, torch.zeros(reach.length, dtype=torch.bool)
        self.missing: list[tuple[int, int]] = []
        self.tested: float | None = None
        self.panels: list[tuple[Tensor, Tensor]] = []
        self._seen = torch.zeros(2 * reach.length - 1, dtype=torch.bool)
        """Distances, from ``1 - N`` on, at which some output changed."""
        self._largest = 0.0
        self._furthest_leak = -1

    @property
    def responds(self) -> bool:
        """Whether any output changed in any run."""
        return self._largest > 4 * self.noise

    @property
    def exact(self) -> bool:
        """Whether outputs are compared bit by bit."""
        return not self.noise and not self.tolerance

    def changed(self, difference: Tensor) -> Tensor:
        """``(N,)`` bool, True for outputs that changed by more than noise and tolerance."""
        self._largest = max(self._largest, float(difference.max()))
        return difference > max(4 * self.noise, self.tolerance * self._largest)

    def record(self, replacement: Replacement, changed: Tensor) -> None:
        """Record the outputs ``changed (N,)`` bool of a run."""
        members, rows = replacement.tokens.nonzero()[:, 0], torch.arange(len(changed))
        if len(self.panels) < MAX_PANELS:
            self.panels.append((changed, replacement.allowed))
        if replacement.isolated:
            source = self._within_reach(members)
            distance = rows - source
            of_source = torch.ones_like(changed) if len(members) == 1 else replacement.allowed & ~self.reach.hubs
            self.declared = _furthest(self.declared, distance[replacement.allowed & of_source])
            self.measured = _furthest(self.measured, distance[changed & of_source])
            self._seen[distance[changed & of_source] + self.reach.length - 1] = True
            missing = (replacement.required & ~changed).nonzero()[:, 0]
            self.missing += zip(missing.tolist(), source[missing].tolist(), strict=True)
        beyond = changed & ~replacement.allowed
        if beyond.any():
            self.leaks += int(beyond.sum())
            furthest = torch.maximum((rows - members[0]).abs(), (rows - members[-1]).abs()) * beyond
            if int(furthest.max()) > self._furthest_leak:
                self._furthest_leak, self.leak, self.sources = int(furthest.max()), int(furthest.argmax()), replacement.tokens

    def _within_reach(self, members: Tensor) -> Tensor:
        """The last member at or before each output, ``(N,)``. If it is out of reach, the next member."""
        rows = torch.arange(self.reach.length)
        after = torch.searchsorted(members, rows, right=True)
        before = members[(after - 1).clamp(min=0)]
        outside = (before > rows) | (rows - before > self.reach.back)
        return torch.where(outside, members[after.clamp(max=len(members) - 1)], before)

    def suspicious_rows(self) -> list[int]:
        """Outputs of missing pairs, one per distance. Distances at which no output ever changed come first."""
        rows: dict[int, int] = {}
        for row, token in sorted(self.missing, key=lambda pair: (not self.never_seen(*pair), -abs(pair[0] - pair[1]))):
            rows.setdefault(row - token, row)
        return list(dict.fromkeys(rows.values()))[:ROWS_CHECKED]

    def never_seen(self, row: int, token: int) -> bool:
        """Whether no output ever changed with a token at this distance."""
        return not self._seen[row - token + self.reach.length - 1]


def _furthest(known: tuple[int, int], distances: Tensor) -> tuple[int, int]:
    """Update the maximum distances (back, ahead) by ``distances`` (output - token)."""
    if not distances.numel():
        return known
    return max(known[0], int(distances.max())), max(known[1], -int(distances.min()))


@dataclass(frozen=True)
class Measurement:
    """Results for several stages.

    runs: number of runs, including two runs of the original text.
    exhaustive_runs: number of runs that a test of every pair would take.
    """

    stages: list[Stage]
    runs: int
    exhaustive_runs: int


def measure(changes: Changes, reaches: Sequence[Reach], settings: Settings) -> Measurement:
    """Replace sets of tokens, one set per run, and collect the changes of every stage."""
    tolerances = [max(settings.tolerance, rounding) for rounding in changes.rounding]
    stages = [Stage(*parts) for parts in zip(changes.stages, reaches, changes.noise, tolerances, strict=True)]
    plans = {reach: replacements(reach, settings) for reach in reaches}
    drawn: dict[Reach, list[Replacement]] = {reach: [] for reach in reaches}
    runs = 2
    while any((sets := {reach: next(plan, None) for reach, plan in plans.items()}).values()):
        runs += _run(changes, stages, [sets[stage.reach] for stage in stages])
        if not settings.exhaustive:
            for reach, replacement in sets.items():
                drawn[reach] += [] if replacement is None else [replacement]
    shares = {reach: _tested(reach, drawn[reach], settings.exhaustive) for reach in plans}
    for stage in stages:
        stage.tested = shares[stage.reach]
    if any(stage.leaks for stage in stages):
        runs += _find_sources(changes, stages)
    runs += _look_up(changes, stages)
    every = (int(reach.hubs.sum()) + sum(count for _, count in _levels(reach.length, _band(reach, True), 1)) for reach in plans)
    return Measurement(stages, runs, 2 + max(every))


def _run(changes: Changes, stages: Sequence[Stage], sets: Sequence[Replacement | None]) -> int:
    """Replace each stage's set of tokens, if it has one, and record the changes. Returns the number of runs.

    If bits are not compared, further runs must confirm changes out of reach: a scale of an int8 graph, for example, depends on all tokens.
    """

    def changed(replacements: Sequence[Replacement | None]) -> list[Tensor]:
        differences = changes.of([None if replacement is None else replacement.tokens for replacement in replacements])
        return [stage.changed(difference) for stage, difference in zip(stages, differences, strict=True)]

    outputs, runs = changed(sets), 1
    while runs <= CONFIRMATIONS:
        suspects = [
            replacement if replacement is not None and not stage.exact and bool((rows & ~replacement.allowed).any()) else None
            for stage, replacement, rows in zip(stages, sets, outputs, strict=True)
        ]
        if not any(suspects):
            break
        runs += 1
        outputs = [
            rows if suspect is None else rows & (again | suspect.allowed)
            for rows, again, suspect in zip(outputs, changed(suspects), suspects, strict=True)
        ]
    for stage, replacement, rows in zip(stages, sets, outputs, strict=True):
        if replacement is not None:
            stage.record(replacement, rows)
    return runs


def _tested(reach: Reach, sets: Sequence[Replacement], exhaustive: bool) -> float | None:
    """Fraction of the independent pairs that are tested. A set tests the outputs that depend on none of its tokens."""
    apart = reach.apart
    if apart is None or exhaustive or not apart:
        return None if apart is None else 1.0
    bits = 2 ** torch.arange(len(sets))[:, None]  # bits of one number: sets with a token, sets that an output is independent of
    tokens, token_counts = (torch.stack([replacement.tokens for replacement in sets]) * bits).sum(0).unique(return_counts=True)
    outputs, output_counts = (torch.stack([~replacement.allowed for replacement in sets]) * bits).sum(0).unique(return_counts=True)
    tested = 0
    for output, count in zip(outputs, output_counts.tolist(), strict=True):
        tested += count * int(token_counts[(output & tokens) != 0].sum())
    return tested / apart


def _find_sources(changes: Changes, stages: Sequence[Stage]) -> int:
    """Find the single token that causes a stage's furthest leak, by bisection. Returns the number of runs.

    If no token of the set causes the leak by itself, the whole set remains.
    """
    runs, sets = 0, [stage.sources for stage in stages]
    while any(stage.sources.sum() > 1 for stage in stages):
        runs += 1
        halves = [_far_half(stage.sources, stage.leak) for stage in stages]
        differences = changes.of([half if half.any() else None for half in halves])
        for stage, half, difference in zip(stages, halves, differences, strict=True):
            if half.any():
                stage.sources = half if stage.changed(difference)[stage.leak] else stage.sources & ~half
    positions = torch.arange(stages[0].reach.length)
    for place in (None, 0, len(positions) - 1):  # the reach of the source, and of both ends
        replaced = [stage.sources if place is None else positions == place for stage in stages]
        differences = changes.of([tokens if stage.leaks else None for stage, tokens in zip(stages, replaced, strict=True)])
        for stage, tokens, difference, together in zip(stages, replaced, differences, sets, strict=True):
            if stage.leaks:
                changed = stage.changed(difference)
                stage.measured = _furthest(stage.measured, (positions - tokens.nonzero()[0])[changed])
                if place is None and not changed[stage.leak]:
                    stage.sources = together
    return runs + 3


def _far_half(tokens: Tensor, row: int) -> Tensor:
    """The half of ``tokens (N,)`` bool that is further from ``row``; empty for a single token."""
    members = tokens.nonzero()[:, 0]
    far = members[(members - row).abs().argsort(descending=True)[: len(members) // 2]]
    return torch.zeros_like(tokens).index_fill(0, far, True)


def _look_up(changes: Changes, stages: Sequence[Stage]) -> int:
    """Remove missing pairs whose dependence may be too weak to be measured. Returns the number of runs.

    A pair remains if its gradient is 0. Without a gradient, it remains if bits are compared and no output changed at its distance.
    """
    rows = {number: stage.suspicious_rows() for number, stage in enumerate(stages) if stage.missing}
    dependence = changes.dependence(rows) if rows else {}
    for number, checked in rows.items():
        stage = stages[number]
        depends = {row: tokens.tolist() for row, tokens in zip(checked, dependence.get(number, ()), strict=False)}
        weak = {row - token for row, tokens in depends.items() for token, is_weak in enumerate(tokens) if is_weak}
        stage.missing = [
            (row, token)
            for row, token in stage.missing
            if (not depends[row][token] if row in depends else stage.exact and stage.never_seen(row, token) and row - token not in weak)
        ]
    return bool(dependence)


@dataclass(frozen=True, eq=False)
class Embedding:
    """Results for an embedding of the text.

    probes: positions whose tokens were replaced, one per run.
    changed, allowed: ``(probes,)`` bool, whether the embedding changed, and whether it may change.
    chunk: number of tokens of the chunks that are embedded by themselves and averaged; 0 if none were found.
    """

    probes: tuple[int, ...]
    changed: Tensor
    allowed: Tensor
    certain: bool
    noise: float
    runs: int
    exhaustive_runs: int
    chunk: int = 0


def measure_embedding(
    changes: TokenChanges, reach: Reach, rows: Sequence[int] | None, leading: int, length: int, settings: Settings
) -> Embedding:
    """Replace one token per run, and bisect for the last one that changes the embedding.

    Args:
        rows: rows of the last layer from which the embedding is pooled; ``None`` for all.
        leading: number of special tokens before the text of ``length`` tokens.
    """

    def difference(position: int) -> float:
        return float(changes.of([torch.arange(length) == position])[0].max())

    count = length if settings.exhaustive else min(PROBED_TOKENS, length)
    probes = [int((number + 0.5) * length / count) for number in range(count)]
    differences = {position: difference(position) for position in probes}
    limit = max(4 * changes.noise[0], settings.tolerance * max(differences.values()))
    while (position := _next_end([probe for probe, value in differences.items() if value > limit], differences, length)) is not None:
        differences[position] = difference(position)
    probes = sorted(differences)

    positions = torch.arange(length)

    def influence(tokens: Tensor) -> Tensor:
        """The influence of ``tokens (length,)`` bool on each output from which the embedding is pooled."""
        influence = reach.influence(nn.functional.pad(tokens, (leading, reach.length - leading - length)))
        return influence if rows is None else influence[list(rows)]

    allowed = torch.tensor([bool(influence(positions == position).any()) for position in probes])
    changed = torch.tensor([differences[position] > limit for position in probes])
    first, last = influence(positions < length // 8), influence(positions >= length - length // 8)
    common = float((first * last).mean() / torch.minimum(first.mean(), last.mean()))
    checked = changed.all() and reach.certain and not settings.tolerance and common >= LEAST_COMMON
    chunk, runs = _chunk(changes, length) if checked else (0, 0)
    runs += 2 + len(probes)
    return Embedding(tuple(probes), changed, allowed, reach.certain, changes.noise[0], runs, 2 + length, chunk)


def _chunk(changes: TokenChanges, length: int) -> tuple[int, int]:
    """Number of tokens of chunks that a target embeds by themselves and averages, and number of runs.

    It is 0 if the first and last eighth of the text interact. Otherwise, the first chunk ends where the tokens after it begin to change the
    embedding independently of its first ones.
    """
    positions, runs, part = torch.arange(length), 0, length // 8

    def apart(stop: int, start: int) -> bool:
        nonlocal runs
        runs += 3
        return changes.interaction(positions < stop, positions >= start) < CHUNKED

    if not apart(part, length - part):
        return 0, runs
    chunk = 2
    while chunk < length - part and not apart(chunk // 2, chunk):
        chunk *= 2
    low, high = chunk // 2, min(chunk, length - part)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if apart(chunk // 2, middle) else (middle, high)
    return high, runs


def _next_end(counting: Sequence[int], tried: Container[int], length: int) -> int | None:
    """The next position to try: the text's end, then a bisection for the last token that changes the embedding."""
    if length - 1 not in tried:
        return length - 1
    last = max(counting, default=-1)
    after = next((position for position in range(last + 1, length) if position in tried), length)
    return (last + after) // 2 if after < length and after - last > 1 else None
