"""Packed questions: each has its own place, answer and trail; one question is the plain case."""

from __future__ import annotations

import random

import torch
from transformers import PreTrainedTokenizerBase

from hf_longattn.data.qa_features import QAFormat, encode_qa
from scripts.dev.studies.qa_packing import encode_packed, packed_loss, share_found
from scripts.dev.studies.variable_tracking import DocumentShape, Filler, make_document


def test_every_question_keeps_its_own(filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    records = make_document(filler, 400, DocumentShape(), random.Random(1), tokenizer)[2:6]
    feature = encode_packed(records, tokenizer, QAFormat(1024))
    assert len(feature.packed) == 4
    for record, asked in zip(records, feature.packed, strict=True):
        (alone,) = encode_qa(record, tokenizer, QAFormat(1024))
        shift = len(feature) - len(alone)
        assert (asked.start, asked.end) == (alone.start + shift, alone.end + shift)
        single = encode_packed([record], tokenizer, QAFormat(1024)).packed[0]
        assert list(asked.trail) == [place + shift for place in single.trail]
        assert feature.inputs["input_ids"][asked.ask] == alone.inputs["input_ids"][single.ask]
        asks = [other.ask for other in feature.packed]
        assert asks == sorted(set(asks))


def test_guides_lead_along_the_trail(filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    records = make_document(filler, 400, DocumentShape(), random.Random(1), tokenizer)
    feature = encode_packed(records[:1], tokenizer, QAFormat(1024))
    (asked,) = feature.packed
    assert ("asked", asked.ask, asked.trail[0]) in feature.guides
    assert ("found", asked.ask, asked.trail[2]) in feature.guides
    assert ("match", asked.trail[2], asked.ask) in feature.guides
    lines = [(word, name) for kind, word, name in feature.guides if kind == "callee"]
    assert len(lines) == DocumentShape().lines
    assert len([guide for guide in feature.guides if guide[0] == "other"]) == len(lines) - 1
    for word, name in lines:
        line = records[0]["context"][feature.offsets[name][0] : feature.offsets[word][1]]
        assert "\n" not in line
        assert " " in line


def test_guides_of_code(tokenizer: PreTrainedTokenizerBase) -> None:
    context = "class A:\n    def f(self, x, y):\n        return x\n    def g(self):\n        self.f(1, 22)\n"
    here, callee, there, answer = context.index("22"), context.index("f(1"), context.index("f(self"), context.index("y)")
    record = {
        "context": context,
        "question": "In `A.g`, which parameter receives `22`?",
        "answers": {"text": ["y"], "answer_start": [answer]},
        "trail": [here, callee, there, answer],
        "place": 1,
        "places": [(answer, 1)],
        "regions": [("inside", there + 1, len(context), there), ("inside", callee + 1, callee + 9, callee)],
        "guides": {"owner": [(answer, there)], "named": [(there, -1), (context.index("g(self"), -1)]},
    }
    feature = encode_packed([record], tokenizer, QAFormat(256))
    tokens = tokenizer.convert_ids_to_tokens(feature.inputs["input_ids"])
    found = {(kind, one): other for kind, one, other in feature.guides}
    ask = feature.packed[0].ask
    assert tokens[ask].endswith("2")
    assert feature.offsets[found["asked", ask]][0] <= here < feature.offsets[found["asked", ask]][1]
    method = found["inside", ask]
    assert tokens[method].endswith("g")
    assert tokens[found["class", method]].endswith("A")
    assert len([guide for guide in feature.guides if guide[0] == "other"]) == 1
    inner = found["inside", feature.packed[0].trail[0]]
    assert feature.offsets[inner][0] <= callee < feature.offsets[inner][1]
    assert ("answer", feature.packed[0].start, ask) in feature.guides
    assert {(stage, place) for stage, _, place in feature.places} == {(0, 1), (1, 1), (2, 1)}


def test_one_question_is_the_plain_loss() -> None:
    torch.manual_seed(0)
    starts, ends = torch.randn(3, 9), torch.randn(3, 9)
    places = torch.tensor([[1], [4], [0]])
    plain = (torch.nn.functional.cross_entropy(starts, places[:, 0]) + torch.nn.functional.cross_entropy(ends, places[:, 0])) / 2
    assert torch.allclose(packed_loss(starts, ends, places, places), plain)
    padded = torch.cat([places, -torch.ones_like(places)], 1)
    assert torch.allclose(packed_loss(starts, ends, padded, padded), plain)


def test_share_found() -> None:
    scores = torch.tensor([[0.0, 3.0, 2.0, 1.0], [0.0, 3.0, 2.0, 1.0]])
    assert share_found(scores, torch.tensor([[1, 3], [1, -1]])).tolist() == [0.5, 1.0]
