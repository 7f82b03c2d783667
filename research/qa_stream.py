"""An endless training stream that mixes tasks, with a curriculum for lookup documents.

An item is a group of features that together hold about ``tokens_per_group`` tokens, so that steps cost the same whether
documents have 40 tokens or 4,000. Item i is a function of the seed, i and the curriculum's stage alone.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import LengthError
from hf_longattn.evaluation.qa_features import QAFormat
from research.qa_packing import PackedFeature, encode_packed
from research.variable_tracking import NAMES, VALUES, DocumentShape, Filler, make_document, question_of

LEAST_CROP = 44
"""Tokens below which a stretch around an answer is not shortened further."""
_TOKENS_PER_LINE = 5.0  # of a lookup line, where the curriculum's lengths fit; a wordier tokenizer stretches them
_CHARACTERS_PER_TOKEN = 3.2  # of source text; an estimate that keeps most crops within their budget


@dataclass(frozen=True)
class Stage:
    """One step of the lookup curriculum: documents of ``shortest`` … ``longest`` tokens with so many inserted lines."""

    shortest: int
    longest: int
    pairs: int
    chains: int
    min_gap: int = 0


CURRICULUM = (
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

    stages: Sequence[Stage] = CURRICULUM
    step_up: float = 0.8
    stage: int = 0

    @property
    def current(self) -> Stage:
        """The stage in force."""
        return self.stages[self.stage]

    def report(self, accuracy: float) -> bool:
        """Take note of a recent accuracy; return True when it led to the next stage."""
        if accuracy < self.step_up or self.stage + 1 >= len(self.stages):
            return False
        self.stage += 1
        return True


class QAStream(Dataset):
    """Groups of features from SQuAD-shaped records (cropped to ``form.max_length``) and from fresh lookup documents.

    Args:
        tokenizer: a fast tokenizer.
        form: format of the inputs.
        records: a ``datasets.Dataset`` of SQuAD-shaped records; may be None when ``lookup_share`` is 1.
        filler: source text for lookup documents; may be None when ``lookup_share`` is 0.
        curriculum: stages of the lookup documents.
        lookup_share: probability that a group is of lookup documents.
        tokens_per_group: about the number of tokens of a group.
        groups: the length of the stream (an epoch).
        seed: decides everything but the stage.
        crop: (shortest, longest) crops of long documents in tokens; None = whole documents, and crops of those beyond ``form.max_length``.
        without_answer: probability that a crop is taken from elsewhere in the document, so that windows learn to refuse.
        pack: most questions that one input asks; see qa_packing.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        form: QAFormat,
        *,
        records: Any = None,
        filler: Filler | None = None,
        curriculum: Curriculum | None = None,
        lookup_share: float = 0.5,
        tokens_per_group: int = 8192,
        groups: int = 1_000_000,
        seed: int = 0,
        crop: tuple[int, int] | None = None,
        without_answer: float = 0.15,
        pack: int = 4,
    ) -> None:
        self.tokenizer, self.form, self.records, self.filler = tokenizer, form, records, filler
        self.curriculum = curriculum or Curriculum()
        self.lookup_share, self.tokens_per_group, self.groups, self.seed = lookup_share, tokens_per_group, groups, seed
        self.crop, self.without_answer = crop, without_answer
        line = "\n".join(f"{question_of(name)} {value}" for name, value in zip(NAMES, VALUES, strict=False))
        cost = len(tokenizer(line, add_special_tokens=False)["input_ids"]) / min(len(NAMES), len(VALUES))
        self.pack = pack
        self._same_document: dict[str, list[int]] = defaultdict(list)
        for place, context in enumerate(records["context"] if records is not None else ()):
            self._same_document[context].append(place)
        self._scale = max(1.0, cost / _TOKENS_PER_LINE)

    def __len__(self) -> int:
        return self.groups

    def __getitem__(self, index: int) -> list[PackedFeature]:
        rng = random.Random(f"{self.seed}:{index}")
        if self.filler is not None and (self.records is None or rng.random() < self.lookup_share):
            return self._lookup_group(self.filler, rng)
        return self._record_group(rng)

    def _lookup_group(self, filler: Filler, rng: random.Random) -> list[PackedFeature]:
        stage = self.curriculum.current
        length = min(int(rng.randint(stage.shortest, stage.longest) * self._scale), self.form.max_length)
        shape = DocumentShape(stage.pairs, stage.chains, stage.min_gap)
        features: list[PackedFeature] = []
        while not features or (len(features) + 1) * length <= self.tokens_per_group:
            made, length = self._make(filler, length, shape, rng)
            features.append(encode_packed(self._choose(made, rng), self.tokenizer, self.form))
            features[-1].task = "lookup"
        return features

    def _make(self, filler: Filler, length: int, shape: DocumentShape, rng: random.Random) -> tuple[list[dict[str, Any]], int]:
        """Make a document; where chance drew words of many pieces, a somewhat longer one."""
        while True:
            try:
                return make_document(filler, length, shape, rng, self.tokenizer), length
            except LengthError:
                if length >= self.form.max_length:
                    raise
                length = min(length * 5 // 4, self.form.max_length)

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

    def _record_group(self, rng: random.Random) -> list[PackedFeature]:
        longest = min(self.form.max_length, self.crop[1]) if self.crop else self.form.max_length
        length = rng.randint(self.crop[0], longest) if self.crop else longest
        features: list[PackedFeature] = []
        total = 0
        while not features or total + max(length, len(features[-1])) <= self.tokens_per_group:
            record = self.records[rng.randrange(len(self.records))]
            features.append(self._encode(record, length, rng))
            total = len(features) * max(len(feature) for feature in features)
        return features

    def _encode(self, record: dict[str, Any], tokens: int, rng: random.Random) -> PackedFeature:
        """The document whole, or a stretch of it where it is cropped or does not fit. An answer that the stretch has is in the input: one
        that is cut off at the end would be learned as "no answer"."""
        if not self.crop:
            feature = encode_packed(self._with_neighbours(record, None, False, rng), self.tokenizer, self.form)
            if _reaches_the_end(feature, record["context"]):
                return feature
        without_answer = rng.random() < self.without_answer
        while True:
            records = self._with_neighbours(record, tokens, without_answer, rng)
            feature = encode_packed(records, self.tokenizer, self.form)
            found = all(asked.start > 0 for asked, one in zip(feature.packed, records, strict=True) if one["answers"]["text"])
            if found or tokens <= LEAST_CROP:
                return feature
            tokens = max(LEAST_CROP, tokens * 3 // 4)

    def _with_neighbours(
        self, record: dict[str, Any], tokens: int | None, without_answer: bool, rng: random.Random
    ) -> list[dict[str, Any]]:
        """Crop the record's document to about ``tokens``; add up to ``self.pack`` - 1 other questions that the stretch answers."""
        others = [self.records[place] for place in self._same_document[record["context"]]] if self.pack > 1 else []
        if tokens is not None:
            start, stop = crop_range(record, tokens, rng, without_answer)
            record = crop_record(record, start, stop)
            others = [crop_record(other, start, stop) for other in others]
        others = [other for other in others if other["answers"]["text"] and other["question"] != record["question"]]
        if not record["answers"]["text"] or not others:
            return [record]
        chosen = [record, *rng.sample(others, min(len(others), rng.randint(0, self.pack - 1)))]
        rng.shuffle(chosen)
        return chosen


def _reaches_the_end(feature: PackedFeature, context: str) -> bool:
    """Whether the input holds the document's last word."""
    ends = [span[1] for span in feature.offsets if span is not None]
    return not context.strip() or (bool(ends) and max(ends) >= len(context.rstrip()))


def crop_range(record: Mapping[str, Any], tokens: int, rng: random.Random, without_answer: bool = False) -> tuple[int, int]:
    """Choose a stretch of about ``tokens`` tokens of the context, from the start of a line, around the answer or anywhere.

    Returns:
        The first character and the one after the last.
    """
    context, answers = record["context"], record["answers"]
    size = max(64, int((tokens - 24) * _CHARACTERS_PER_TOKEN))
    if len(context) <= size:
        return 0, len(context)
    if without_answer or not answers["text"]:
        start = rng.randrange(len(context) - size + 1)
    else:
        at, width = answers["answer_start"][0], len(answers["text"][0])
        start = rng.randint(max(0, at + width - size), max(0, min(at, len(context) - size)))
    stop = min(len(context), start + size)
    line = context.rfind("\n", 0, start) + 1
    return (line if start - line < size // 2 else start), stop


def crop_record(record: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Cut characters ``start`` … ``stop`` out of the context; answers move along, those outside are dropped."""
    answers = record["answers"]
    moved = [
        (text, place - start)
        for text, place in zip(answers["text"], answers["answer_start"], strict=True)
        if place >= start and place + len(text) <= stop
    ]
    kept = {"text": [text for text, _ in moved], "answer_start": [place for _, place in moved]}
    return {**record, "context": record["context"][start:stop], "answers": kept}
