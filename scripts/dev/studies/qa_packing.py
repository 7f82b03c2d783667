"""Several questions about one document in one training input.

A step on a document with one question gives one answer to learn from; with four questions it gives four. The model stays
a plain question-answering model: its start scores must be high at the starts of all answers asked for (their share of
the softmax is the target), and a single question is the case that inference uses.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_longattn.data.qa_features import QAFeature, QAFormat, cut_question, encode_qa


@dataclass(frozen=True)
class Asked:
    """One of the questions of an input: the token ``ask`` of what it asks about, its answer's ``start`` and ``end``, its ``trail``."""

    ask: int
    start: int
    end: int
    trail: tuple[int, ...]


@dataclass
class PackedFeature(QAFeature):
    """An input with several questions.

    Attributes:
        task: a name under which accuracies are counted.
        packed: one :class:`Asked` per question.
        guides: (kind, token, token to look at); see :mod:`qa_guides`.
        places: (stage, token, place).
    """

    task: str = "qa"
    packed: list[Asked] = field(default_factory=list)
    guides: list[tuple[str, int, int]] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)


def encode_packed(records: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, form: QAFormat) -> PackedFeature:
    """Encode questions about the same context as one feature; its ``packed`` holds one :class:`Asked` per record.

    Args:
        records: SQuAD-shaped, all with the same context; the first may have ``guides``, ``regions`` and ``places`` of the whole
            document, as :class:`code_labels.Code` gives them, or ``links`` of variable tracking.
        tokenizer: a fast tokenizer.
        form: a single input (no stride).
    """
    questions = [cut_question(record["question"].strip(), tokenizer, form.max_question_tokens) for record in records]
    joined = {**records[0], "question": "\n".join(questions)}
    (whole,) = encode_qa(joined, tokenizer, dataclasses.replace(form, max_question_tokens=len(joined["question"])))
    feature = PackedFeature(**vars(whole))
    in_question = tokenizer(joined["question"], return_offsets_mapping=True)["offset_mapping"]
    first, last = feature.document_start, max((place for place, span in enumerate(feature.offsets) if span is not None), default=0)
    starts = [span[0] for span in feature.offsets[first : last + 1] if span is not None]
    stop = (feature.offsets[last] or (0, 0))[1]

    def at(character: int) -> int:
        """The token of a character of the document; -1 outside this input."""
        return -1 if character < 0 or character >= stop else first + bisect_right(starts, character) - 1

    def asked_at(character: int) -> int:
        """The token of a character of the questions."""
        return max(place for place, (start, end) in enumerate(in_question) if start < end and start <= character)

    begin, sought, hubs = 0, [], {}
    for record, question in zip(records, questions, strict=True):
        kind, asked, caller = _asked_about(record, question)
        ask = asked_at(begin + asked)
        trail = tuple(at(int(character)) for character in record.get("trail") or ())
        feature.packed.append(Asked(ask, *feature.locate(record)[0], trail))
        if trail:
            sought += _trail_guides(kind, ask, trail)
            hubs[trail[2]] = ask
            for token in dict.fromkeys((feature.packed[-1].start, feature.packed[-1].end)):  # an answer's last token has to know it as well
                sought.append(("answer", token, ask) if kind != "base" else ("fetch", token, trail[2]))
                if kind == "argument":
                    sought.append(("fetch", token, trail[2]))
            if kind == "argument" and record.get("place", -1) >= 0:
                feature.places += [(1, ask, record["place"]), (2, trail[2], record["place"])]
        if caller:
            method, owner = (asked_at(begin + place) for place in caller)
            sought.append(("inside", ask, method))
            if owner != method:
                sought.append(("class", method, owner))
        begin += len(question) + 1
    named: list[int] = []
    within: dict[tuple[str, int], int] = {}
    for kind, pairs in (records[0].get("guides") or {}).items():
        if kind == "named":
            named = [at(pair[0]) for pair in pairs]
        else:
            sought += [(kind, at(one), at(other)) for one, other in pairs]
    for kind, start, stop, target in sorted(records[0].get("regions") or (), key=lambda one: one[1] - one[2]):  # inner ones are later
        tokens = range(bisect_left(starts, start) + first, bisect_left(starts, stop) + first)
        within.update({(kind, token): at(target) for token in tokens})
    sought += [(kind, token, target) for (kind, token), target in within.items() if token != target]
    if any("hops" in record for record in records):
        links = [(at(word), at(name)) for word, name in records[0].get("links") or ()]
        named = [name for _, name in links]
        sought += [(kind, *pair) for word, name in links for kind, pair in _line_guides(word, name)]
    sought += [("other", name, 0) for name in named if name not in hubs]
    right = {one for kind, one, _ in sought if kind == "answer"}
    if right:
        sought += [("rest", one, 0) for kind, one, _ in sought if kind == "fetch" and one not in right]
    feature.guides = [guide for guide in dict.fromkeys(sought) if min(guide[1:]) >= 0]
    feature.places = [(stage, token, place) for stage, token, place in feature.places if token >= 0]
    feature.places += [(0, token, place) for character, place in records[0].get("places") or () if (token := at(character)) >= 0]
    return feature


def _asked_about(record: Mapping[str, Any], question: str) -> tuple[str, int, tuple[int, int] | None]:
    """The kind of question, the character of what it asks about, and those of the function's name and of its class's, where it has one."""
    quotes = [place for place, character in enumerate(question) if character == "`"]
    if "hops" in record or len(quotes) < 2:
        return "lookup", question.rindex(" ") + 1 if " " in question else 0, None
    if len(quotes) < 4:
        return "base", quotes[0] + 1, None
    dot = question.rfind(".", quotes[0], quotes[1])
    return "argument", quotes[2] + 1, (dot + 1 if dot >= 0 else quotes[0] + 1, quotes[0] + 1)


def _trail_guides(kind: str, ask: int, trail: tuple[int, ...]) -> list[tuple[str, int, int]]:
    """The guides of a question: from what it asks about along its trail, and back from the last hop."""
    guides = [("asked", ask, trail[0]), ("found", ask, trail[2]), ("match", trail[2], ask)]
    if kind != "lookup":
        guides.append(("fetch", trail[3], trail[2]))
        guides.append(("callee", trail[0], trail[1]) if kind == "argument" else ("base", trail[0], trail[1]))
    return guides


def _line_guides(word: int, name: int) -> list[tuple[str, tuple[int, int]]]:
    return [("callee", (word, name)), ("base", (name, word)), ("fetch", (word, name))]


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
