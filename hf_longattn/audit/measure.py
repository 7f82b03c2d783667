"""Which tokens are replaced, so that few runs test many pairs of an output and a token, and what the runs show.

Outputs that stay the same bit for bit, whatever a set of tokens is replaced by, depend on none of the set. So a set tests all its tokens
at once, for the outputs that may depend on none of them. Two kinds of sets are made of the declared reach:

- **alone**: tokens so far apart that no output may depend on two of them. Every output that may depend on one has to change; this finds a
  window that is one key too narrow, or too wide, anywhere in the text.
- **runs** of tokens, repeated with gaps in which outputs are out of reach. Runs of s tokens find every pair that is s tokens or more out of
  reach; with those of 2s, 4s … the gaps can be so narrow that an output's whole reach just fits in. For a reach of b tokens, that is
  b/s + 3 sets for each length of run, and one run to a set where this is fewer. Runs of one token find every pair.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .declared import Reach
from .targets import Changes

MAX_RUN_SETS = 16
"""Most sets of runs, unless the audit is exhaustive."""
HUBS_TRIED = 2
"""Global tokens that are replaced, unless the audit is exhaustive."""
LEAST_INFLUENCE = 1e-4
"""The influence of a token on an output through all layers from which on a change must be seen."""
ROWS_CHECKED = 8
"""Outputs whose dependence on each token is looked up by gradients where a change was not seen."""
PROBED_TOKENS = 16
"""Tokens all over a text whose influence on an embedding is tried, unless the audit is exhaustive."""
CONFIRMATIONS = 2
"""Runs with other replacements in which an output out of reach must change, too, where bits are not compared."""
PANELS_KEPT = 3
"""Sets whose changes are kept for pictures."""


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    tolerance: largest change that counts as none, relative to the largest change of the stage.
    exhaustive: test every pair. runs: otherwise, the most sets of runs.
    layers: whether stages are single layers, or the output after all of them.
    """

    tolerance: float = 0.0
    exhaustive: bool = False
    runs: int = MAX_RUN_SETS
    layers: bool = True


@dataclass(frozen=True, eq=False)
class Replacement:
    """A set of tokens that are replaced in one run.

    tokens: ``(N,)`` bool, the set.
    allowed, required: ``(N,)`` bool, the outputs that may change, and those that must.
    alone: whether no output, hubs apart, may depend on two of the set.
    """

    tokens: Tensor
    allowed: Tensor
    required: Tensor
    alone: bool


def replacements(reach: Reach, settings: Settings) -> Iterator[Replacement]:
    """The sets for one stage."""
    least = 0 if settings.layers else LEAST_INFLUENCE
    drawn: set[bytes] = set()
    for number, (tokens, alone) in enumerate(_sets(reach, settings)):
        key = tokens.numpy().tobytes()
        if key in drawn or not tokens.any():
            continue
        drawn.add(key)
        influence = reach.influence(tokens)
        allowed = influence > 0
        exact = alone and reach.certain and not settings.tolerance  # far changes are smaller than a tolerance
        required = allowed & (influence >= least) & exact
        if number < PANELS_KEPT or required.any() or not allowed.all():
            yield Replacement(tokens, allowed, required, alone)


def _sets(reach: Reach, settings: Settings) -> Iterator[tuple[Tensor, bool]]:
    """``(N,)`` bool, and whether each of these tokens is alone."""
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
    """How many tokens two replaced tokens must be apart, so that no output may depend on both."""
    if exhaustive and reach.causal and reach.hubs.any():  # which see all tokens before them, but none after
        return reach.length
    return min(reach.length, reach.back + reach.ahead)


def _levels(length: int, band: int, size: int) -> Iterator[tuple[int, int]]:
    """Tokens in a run, and how many sets there are of such runs, from ``size`` on until there is one run to a set."""
    run = size
    while True:
        most = -(-length // run)
        count = min(most, -(-(band + 3 * run) // run))
        yield run, count
        if count == most:
            return
        run *= 2


class Stage:
    """What the runs show of a layer or of the output.

    declared, measured: the furthest distances back and ahead.
    noise: largest difference between two equal runs.
    tolerance: largest change that counts as none, relative to the largest change.
    leaks: how many outputs changed that must not, over all runs. Of the furthest, ``leak`` is the output, and ``sources (N,)`` bool holds
        the token that changed it, or all of a set of which none does so alone.
    missing: pairs of an output and a token without a change where one was required.
    tested: the share of the pairs kept apart by the config that were tested; ``None`` where that is not known.
    panels: the outputs ``(N,)`` bool that changed, and those that may, in the first runs.
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
        """Whether bits are compared."""
        return not self.noise and not self.tolerance

    def changed(self, difference: Tensor) -> Tensor:
        """Which outputs changed, ``(N,)`` bool, by more than noise and tolerance."""
        self._largest = max(self._largest, float(difference.max()))
        return difference > max(4 * self.noise, self.tolerance * self._largest)

    def record(self, replacement: Replacement, changed: Tensor) -> None:
        """Note which outputs ``(N,)`` bool a run changed."""
        members, rows = replacement.tokens.nonzero()[:, 0], torch.arange(len(changed))
        if len(self.panels) < PANELS_KEPT:
            self.panels.append((changed, replacement.allowed))
        if replacement.alone:
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
        """The token of ``members`` for each output, ``(N,)``: the last that is not after it, or the next where that is out of reach."""
        rows = torch.arange(self.reach.length)
        after = torch.searchsorted(members, rows, right=True)
        before = members[(after - 1).clamp(min=0)]
        outside = (before > rows) | (rows - before > self.reach.back)
        return torch.where(outside, members[after.clamp(max=len(members) - 1)], before)

    def suspicious_rows(self) -> list[int]:
        """Outputs of missing pairs at as many distances as possible, those first at which no output changed."""
        rows: dict[int, int] = {}
        for row, token in sorted(self.missing, key=lambda pair: (not self.never_seen(*pair), -abs(pair[0] - pair[1]))):
            rows.setdefault(row - token, row)
        return list(dict.fromkeys(rows.values()))[:ROWS_CHECKED]

    def never_seen(self, row: int, token: int) -> bool:
        """Whether no output changed with the token at the distance of this one."""
        return not self._seen[row - token + self.reach.length - 1]


def _furthest(known: tuple[int, int], distances: Tensor) -> tuple[int, int]:
    """The furthest back and ahead; outputs after a token look back."""
    if not distances.numel():
        return known
    return max(known[0], int(distances.max())), max(known[1], -int(distances.min()))


@dataclass(frozen=True)
class Measurement:
    """What the runs showed of several stages.

    runs: how many there were, with that of the original text, which is run twice; exhaustive_runs: how many would test every pair.
    """

    stages: list[Stage]
    runs: int
    exhaustive_runs: int


def measure(changes: Changes, reaches: Sequence[Reach], settings: Settings) -> Measurement:
    """Replace sets of tokens one after another."""
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
    """Replace a set in every stage that has one, note what changed, and return the number of runs: 1, or more to confirm what is out of
    reach. Where bits are not compared, a change says little by itself: every scale of an int8 graph depends on all tokens.
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
    """The share of the pairs kept apart that some set tested: its tokens with the outputs that may not depend on any of them."""
    apart = reach.apart
    if apart is None or exhaustive or not apart:
        return None if apart is None else 1.0
    bits = 2 ** torch.arange(len(sets))[:, None]  # the sets of a token, and those that an output may not depend on, as one number each
    tokens, token_counts = (torch.stack([replacement.tokens for replacement in sets]) * bits).sum(0).unique(return_counts=True)
    outputs, output_counts = (torch.stack([~replacement.allowed for replacement in sets]) * bits).sum(0).unique(return_counts=True)
    tested = 0
    for output, count in zip(outputs, output_counts.tolist(), strict=True):
        tested += count * int(token_counts[(output & tokens) != 0].sum())
    return tested / apart


def _find_sources(changes: Changes, stages: Sequence[Stage]) -> int:
    """Leave of the sets that changed a stage's furthest output the furthest token that does so alone, by halves, or all if none does;
    return the number of runs.
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
    for place in (None, 0, len(positions) - 1):  # how far the source reaches, and both ends
        alone = [stage.sources if place is None else positions == place for stage in stages]
        differences = changes.of([tokens if stage.leaks else None for stage, tokens in zip(stages, alone, strict=True)])
        for stage, tokens, difference, together in zip(stages, alone, differences, sets, strict=True):
            if stage.leaks:
                changed = stage.changed(difference)
                stage.measured = _furthest(stage.measured, (positions - tokens.nonzero()[0])[changed])
                if place is None and not changed[stage.leak]:
                    stage.sources = together
    return runs + 3


def _far_half(tokens: Tensor, row: int) -> Tensor:
    """The half of ``tokens (N,)`` bool that is further from ``row``; none of a single token."""
    members = tokens.nonzero()[:, 0]
    far = members[(members - row).abs().argsort(descending=True)[: len(members) // 2]]
    return torch.zeros_like(tokens).index_fill(0, far, True)


def _look_up(changes: Changes, stages: Sequence[Stage]) -> int:
    """Leave of the pairs without a change those of which gradients, too, say that there is no dependence; it may be too weak to be seen.
    Without gradients, those at distances at which no output changed; none where weak changes are lost in noise. Returns the number of runs.
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
    """What the runs showed of an embedding of the text.

    probes: the positions whose tokens were replaced, one in a run. changed, allowed: ``(probes,)`` bool, whether the embedding changed,
    and may.
    """

    probes: tuple[int, ...]
    changed: Tensor
    allowed: Tensor
    certain: bool
    noise: float
    runs: int
    exhaustive_runs: int


def measure_embedding(
    changes: Changes, reach: Reach, rows: Sequence[int] | None, leading: int, length: int, settings: Settings
) -> Embedding:
    """Replace tokens one after another: all over the text, and then by halves around the last one that counts.

    Args:
        rows: those of the last layer from which the embedding is pooled; ``None`` for all.
        leading: tokens before the text of ``length`` tokens, which are not replaced.
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
    allowed = []
    for position in probes:
        influence = reach.influence(torch.arange(reach.length) == position + leading)
        allowed.append(bool((influence if rows is None else influence[list(rows)]).any()))
    changed = torch.tensor([differences[position] > limit for position in probes])
    return Embedding(tuple(probes), changed, torch.tensor(allowed), reach.certain, changes.noise[0], 2 + len(probes), 2 + length)


def _next_end(counting: Sequence[int], tried: Container[int], length: int) -> int | None:
    """The next position to try: the last one, then by halves between the last token that counts and the first after it that does not."""
    if length - 1 not in tried:
        return length - 1
    last = max(counting, default=-1)
    after = next((position for position in range(last + 1, length) if position in tried), length)
    return (last + after) // 2 if after < length and after - last > 1 else None
