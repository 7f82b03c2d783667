"""Probes: a text with a question and its answer, or a row of tokens with known continuations."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...data.tokenization import IGNORED
from ...errors import LengthError, LongAttentionError, nearest

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DISTRACTORS = 63
"""Wrong answers that a sample offers at most."""


@dataclass(frozen=True)
class ProbeSample:
    """A text, a question and its answers.

    before: instruction and examples, in front of the context.
    context: the text that holds the answers.
    question: after the context.
    prefix: the beginning of the answer, which the model continues.
    answers: the model must give all of them.
    distractors: wrong answers of the same kind, if possible from the same text.
    lead: stands between prefix and answer where candidates are compared (" 1." in a numbered list).
    new_tokens: that a model may generate, the paper's number.
    depth: where the needle lies, 0 at the beginning, 1 at the end of the context.
    score: of generated or marked text, by its name in :data:`.scoring.SCORES`.
    """

    before: str
    context: str
    question: str
    prefix: str
    answers: tuple[str, ...]
    distractors: tuple[str, ...]
    new_tokens: int
    lead: str = ""
    depth: float | None = None
    score: str = "string_match_all"

    @property
    def prompt(self) -> str:
        """The input of a language model."""
        return f"{self.before}{self.context}{self.question}{self.prefix}"

    def continuations(self, most: int) -> tuple[list[str], int]:
        """Candidate continuations of :attr:`prompt`, answers first, and the number of answers. At most ``most`` in all, but at least as
        many distractors as answers, so that guessing is right at most half of the time."""
        wrong = max(len(self.answers), most - len(self.answers))
        return [f"{self.lead} {text}" for text in (*self.answers, *self.distractors[:wrong])], len(self.answers)


CountTokens = Callable[[str], int]


class ProbeTask(ABC):
    """A task by name.

    summary: in one line.
    paper: its source.
    placed: whether :attr:`ProbeSample.depth` can be chosen.
    modes: of asking.
    """

    name: str
    summary: str
    paper: str
    placed: bool = False
    modes: tuple[str, ...] = ("generate", "likelihood", "span")


class TextTask(ProbeTask):
    """A task in words. :meth:`build` makes a text of a size in the task's own unit, ``smallest`` or more."""

    smallest: int = 1
    new_tokens: int = 128

    @abstractmethod
    def build(self, size: int, rng: random.Random, length: int, count: CountTokens, depth: float | None) -> ProbeSample:
        """A text of ``size`` units for a budget of ``length`` tokens."""

    def sample(self, length: int, rng: random.Random, count: CountTokens, depth: float | None = None) -> ProbeSample:
        """The largest text whose prompt leaves :attr:`ProbeSample.new_tokens` of ``length`` to the answer, as RULER measures length.

        Args:
            count: tokens of a text, special ones included.
            depth: place of the needle; default: random.

        Raises:
            LengthError: not even the smallest text fits.
        """
        seed = rng.getrandbits(64)

        def built(size: int) -> tuple[ProbeSample, int]:
            sample = self.build(size, random.Random(seed), length, count, depth)
            longest = max(sample.answers + sample.distractors, key=len)
            return sample, count(sample.prompt) + max(sample.new_tokens, count(f" {longest}."))

        tokens = built(self.smallest)[1]
        if tokens > length:
            raise LengthError(
                f"The probe {self.name!r} does not fit into {length:,} tokens: with this tokenizer its shortest text and answer have "
                f"{tokens:,}; give greater --lengths."
            )
        low, high = self.smallest, max(1, self.smallest) * 2
        while built(high)[1] <= length:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            if built(middle)[1] <= length:
                low = middle
            else:
                high = middle
        return built(low)[0]


@dataclass(frozen=True)
class TokenSample:
    """A row of tokens, and the next tokens at some places.

    ids: the row, without the tokenizer's special tokens.
    places: in ascending order. The token after each is the target.
    targets: the right one for each place.
    candidates: ids among which a model chooses.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...]
    targets: tuple[int, ...]
    candidates: tuple[int, ...]
    depth: float | None = None

    @property
    def is_tail(self) -> bool:
        """Whether the targets are the last tokens of the row, so that a model can generate them."""
        return self.places == tuple(range(self.places[0], self.places[0] + len(self.places))) and self.places[-1] + 1 >= len(self.ids) - 1


@dataclass
class TokenTask(ProbeTask):
    """A task over tokens that mean nothing: any tokenizer's ids serve as its symbols.

    least: the fewest tokens that hold it.
    make: from ``length``, ``vocab`` and, if it is placed, ``depth``, the generator of rows, with ``batch(size, generator) -> (tokens,
        labels)``, both ``(B, N)``.
    """

    name: str
    summary: str
    paper: str
    least: int
    make: Callable[..., Any]
    placed: bool = False
    modes: tuple[str, ...] = ("generate", "likelihood")

    def sample(self, length: int, ids: Tensor, seed: int, choices: int, depth: float | None = None) -> TokenSample:
        """A row of ``length`` tokens, whose symbols are ``ids (V,)``, shuffled.

        Raises:
            LengthError: the length is too small.
        """
        if length < self.least:
            raise LengthError(f"The probe {self.name!r} needs {self.least} tokens besides the special ones; give greater --lengths.")
        generator = torch.Generator().manual_seed(seed)
        task = self.make(length=length, vocab=len(ids), **({"depth": depth} if self.placed else {}))
        tokens, labels = (batch[0] for batch in task.batch(1, generator))
        names = ids[torch.randperm(len(ids), generator=generator)]
        places = (labels != IGNORED).nonzero().flatten()
        targets = labels[places]
        candidates = targets.unique()
        if len(candidates) == 1:  # one question: the wrong candidates are tokens of the same text
            wrong = tokens[(tokens != candidates) & (tokens != tokens[places[0]])].unique()
            wrong = wrong[torch.randperm(len(wrong), generator=generator)[: choices - 1]]
            candidates = torch.cat([wrong, candidates])  # argmax takes the first of equal scores
        return TokenSample(
            tuple(names[tokens].tolist()), tuple(places.tolist()), tuple(names[targets].tolist()), tuple(names[candidates].tolist()), depth
        )


_TASKS: dict[str, ProbeTask] = {}


Registered = TypeVar("Registered", bound=ProbeTask | type[ProbeTask])


def register_probe(task: Registered) -> Registered:
    """Enter a task, or the only task of a class, under its name."""
    _TASKS[task.name] = task() if isinstance(task, type) else task
    return task


def list_probes() -> list[str]:
    """The names of all probes."""
    return list(_TASKS)


def probe_task(name: str) -> ProbeTask:
    """The task of this name.

    Raises:
        LongAttentionError: an unknown probe.
    """
    if name not in _TASKS:
        raise LongAttentionError(f"There is no probe {name!r}; the probes are {', '.join(_TASKS)}.{nearest(name, _TASKS)}")
    return _TASKS[name]
