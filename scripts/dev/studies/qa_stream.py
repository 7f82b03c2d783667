"""An endless training stream that mixes tasks, with curricula for those whose documents are made as they are needed.

An item is a group of features that together hold about ``tokens_per_group`` tokens, so that steps cost the same whether
documents have 40 tokens or 4,000. Item i is a function of the seed, i and the curricula's stages alone.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from hf_longattn.data.qa_features import QAFormat
from hf_longattn.errors import LengthError
from scripts.dev.studies.qa_packing import PackedFeature, encode_packed
from scripts.dev.studies.variable_tracking import NAMES, VALUES, DocumentShape, Filler, make_document, question_of

_TOKENS_PER_LINE = 5.0  # of a lookup line, where the curriculum's lengths fit; a wordier tokenizer stretches them


@dataclass(frozen=True)
class Stage:
    """One step of the lookup curriculum: documents of ``shortest`` … ``longest`` tokens with so many inserted lines."""

    shortest: int
    longest: int
    pairs: int
    chains: int
    min_gap: int = 0


LOOKUPS = (
    Stage(40, 48, 2, 2),
    Stage(56, 96, 3, 3),
    Stage(88, 160, 4, 4),
    Stage(120, 300, 4, 4),
    Stage(160, 500, 4, 4),
)
"""From 40 tokens to the full length of a 512-position model."""


@dataclass
class Curriculum:
    """The current stage; one step up whenever a task's recent accuracy reaches ``step_up``."""

    stages: Sequence[Any] = LOOKUPS
    step_up: float = 0.8
    stage: int = 0

    @property
    def current(self) -> Any:
        """The stage in force."""
        return self.stages[self.stage]

    def report(self, accuracy: float) -> bool:
        """Take note of a recent accuracy; return True when it led to the next stage."""
        if accuracy < self.step_up or self.stage + 1 >= len(self.stages):
            return False
        self.stage += 1
        return True


class Source(Protocol):
    """A task of the stream; ``curriculum`` may have a single stage."""

    curriculum: Curriculum

    def documents(self, rng: random.Random) -> Iterator[list[dict[str, Any]]]:
        """Yield documents of about the same length for ever: per document, the records of the questions to ask in one input."""
        ...


class QAStream(Dataset):
    """Groups of features.

    Args:
        tokenizer: a fast tokenizer.
        form: format of the inputs.
        sources: tasks by name.
        shares: their shares of the groups.
        tokens_per_group: about the number of tokens of a group.
        groups: the length of the stream (an epoch).
        seed: decides everything but the stages.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        form: QAFormat,
        sources: Mapping[str, Source],
        shares: Sequence[float],
        *,
        tokens_per_group: int = 8192,
        groups: int = 1_000_000,
        seed: int = 0,
    ) -> None:
        self.tokenizer, self.form, self.sources, self.shares = tokenizer, form, sources, shares
        self.tokens_per_group, self.groups, self.seed = tokens_per_group, groups, seed

    def __len__(self) -> int:
        return self.groups

    def __getitem__(self, index: int) -> list[PackedFeature]:
        rng = random.Random(f"{self.seed}:{index}")
        name = rng.choices(list(self.sources), self.shares)[0]
        features: list[PackedFeature] = []
        longest = 0
        for records in self.sources[name].documents(rng):
            feature = encode_packed(records, self.tokenizer, self.form)
            feature.task = name
            longest = max(longest, len(feature))
            if features and (len(features) + 1) * longest > self.tokens_per_group:
                break
            features.append(feature)
        return features


class Lookups:
    """Variable tracking; ``pack`` = most questions of one input."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, filler: Filler, curriculum: Curriculum, max_length: int, pack: int = 4) -> None:
        self.tokenizer, self.filler, self.curriculum, self.max_length, self.pack = tokenizer, filler, curriculum, max_length, pack
        line = "\n".join(f"{question_of(name)} {value}" for name, value in zip(NAMES, VALUES, strict=False))
        cost = len(tokenizer(line, add_special_tokens=False)["input_ids"]) / min(len(NAMES), len(VALUES))
        self._scale = max(1.0, cost / _TOKENS_PER_LINE)

    def documents(self, rng: random.Random) -> Iterator[list[dict[str, Any]]]:
        """Yield documents of a length drawn from the current stage's."""
        stage: Stage = self.curriculum.current
        length = min(int(rng.randint(stage.shortest, stage.longest) * self._scale), self.max_length)
        shape = DocumentShape(stage.pairs, stage.chains, stage.min_gap)
        while True:
            try:
                made = make_document(self.filler, length, shape, rng, self.tokenizer)
            except LengthError:  # chance drew words of many pieces
                if length >= self.max_length:
                    raise
                length = min(length * 5 // 4, self.max_length)
                continue
            yield self._choose(made, rng)

    def _choose(self, made: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
        """Return some of a document's questions: one that has no answer now and then, otherwise up to ``self.pack``."""
        if rng.random() < 0.08:
            return made[-1:]
        count = rng.randint(1, max(1, min(self.pack, (len(made) - 1) // 2)))  # not all, or the question would not matter
        two_hops, one_hop = [r for r in made if r["hops"] == 2], [r for r in made if r["hops"] == 1]
        rng.shuffle(two_hops)
        rng.shuffle(one_hop)
        half = (count + rng.randint(0, 1)) // 2 if count > 1 else int(rng.random() < 0.6)
        chosen = two_hops[:half] + one_hop[: count - min(half, len(two_hops))]
        rng.shuffle(chosen)
        return chosen


class Records:
    """Questions of a file, over documents that are read whole; those of the same document in one input, up to ``pack``."""

    def __init__(self, records: Sequence[Mapping[str, Any]], max_tokens: int, pack: int = 4) -> None:
        self.curriculum, self.pack = Curriculum((None,)), pack
        by_document: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for record in records:
            if record["tokens"] <= max_tokens:
                by_document[record["context"]].append({key: value for key, value in record.items() if key != "links"})
        if not by_document:
            raise LengthError(f"no document of the data is within {max_tokens} tokens; give shorter ones, or a longer model")
        self.groups = sorted(by_document.values(), key=lambda group: (group[0]["tokens"], group[0]["id"]))
        self.tokens = [group[0]["tokens"] for group in self.groups]

    def documents(self, rng: random.Random) -> Iterator[list[dict[str, Any]]]:
        """Yield documents of a similar length, each length as often as documents have it."""
        tokens = self.tokens[rng.randrange(len(self.tokens))]
        first, last = bisect_left(self.tokens, 0.85 * tokens), bisect_left(self.tokens, 1.1 * tokens + 1)
        while True:
            group = self.groups[rng.randrange(first, last)]
            yield distinct(rng.sample(group, rng.randint(1, min(self.pack, len(group)))))


def distinct(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without those whose trail ends at the same definition (import) as that of an earlier one: it could not tell for which
    of two questions it is asked."""
    return list({record["trail"][2] if record["trail"] else -1: record for record in reversed(records)}.values())[::-1]
