"""Several questions about one document in one training input.

A step on a document with one question gives one answer to learn from; with four questions it gives four. The model stays
a plain question-answering model: its start scores must be high at the starts of all answers asked for (their share of
the softmax is the target), and a single question is the case that inference uses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_longattn.evaluation.qa_features import QAFeature, QAFormat, cut_question, encode_qa, token_at


@dataclass(frozen=True)
class Asked:
    """One of the questions of an input: its last token ``ask``, its answer's ``start`` and ``end``, its ``trail``."""

    ask: int
    start: int
    end: int
    trail: tuple[int, ...]


@dataclass
class PackedFeature(QAFeature):
    """An input with several questions.

    Attributes:
        task: a name under which accuracies are counted.
        links: pairs of tokens: the last word of a lookup line and the line's name, an argument or parameter and its function's name.
        places: pairs of an argument's or parameter's token and its place in the list.
        packed: one :class:`Asked` per question.
    """

    task: str = "qa"
    links: list[tuple[int, int]] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    packed: list[Asked] = field(default_factory=list)


def encode_packed(records: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, form: QAFormat) -> PackedFeature:
    """Encode questions about the same context as one feature; its ``packed`` holds one :class:`Asked` per record.

    Args:
        records: SQuAD-shaped, all with the same context.
        tokenizer: a fast tokenizer.
        form: a single input (no stride).
    """
    questions = [cut_question(record["question"].strip(), tokenizer, form.max_question_tokens) for record in records]
    joined = {**records[0], "question": "\n".join(questions)}
    (whole,) = encode_qa(joined, tokenizer, dataclasses.replace(form, max_question_tokens=len(joined["question"])))
    feature = PackedFeature(**vars(whole))
    offsets = tokenizer(joined["question"], return_offsets_mapping=True)["offset_mapping"]
    end = -1
    for record, question in zip(records, questions, strict=True):
        end += len(question) + 1
        ask = max(place for place, (start, stop) in enumerate(offsets) if start < stop <= end)
        found = feature.locate(record)[0]
        trail = tuple(token_at(feature.offsets, int(character)) for character in record.get("trail") or ())  # -1 outside this input
        feature.packed.append(Asked(ask, *found, trail))
    links = [(token_at(feature.offsets, word), token_at(feature.offsets, name)) for word, name in records[0].get("links") or ()]
    places = [(token_at(feature.offsets, character), place) for character, place in records[0].get("places") or ()]
    feature.places = [place for place in places if place[0] >= 0]
    feature.links = [link for link in links if min(link) >= 0]
    return feature


def packed_loss(start_logits: Tensor, end_logits: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Return the mean cross-entropy of all answers asked for.

    Args:
        start_logits, end_logits: (B, L).
        starts, ends: (B, K) tokens; -1 = fewer than K questions.
    """
    losses = []
    for logits, places in ((start_logits, starts), (end_logits, ends)):
        scores = torch.log_softmax(logits.float(), dim=-1).gather(1, places.clamp(min=0))
        asked = places >= 0
        losses.append(-((scores * asked).sum(1) / asked.sum(1).clamp(min=1)).mean())
    return torch.stack(losses).mean()


def share_found(start_logits: Tensor, starts: Tensor) -> Tensor:
    """Return per row the share of its K answers among the K highest start scores: (B,)."""
    counts = (starts >= 0).sum(1, keepdim=True)
    order = start_logits.argsort(dim=-1, descending=True).argsort(dim=-1)  # 0 = the highest
    found = (order.gather(1, starts.clamp(min=0)) < counts) & (starts >= 0)
    return found.float().sum(1) / counts.squeeze(1).clamp(min=1)
