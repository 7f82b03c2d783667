"""Packed questions: each has its own place, answer and trail; one question is the plain case."""

from __future__ import annotations

import random

import torch
from transformers import PreTrainedTokenizerBase

from hf_longattn.evaluation.qa_features import QAFormat, encode_qa
from research.qa_packing import encode_packed, packed_loss, share_found
from research.variable_tracking import DocumentShape, Filler, make_document


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


def test_links_join_the_words_of_a_line(filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    records = make_document(filler, 400, DocumentShape(), random.Random(1), tokenizer)
    feature = encode_packed(records[:1], tokenizer, QAFormat(1024))
    assert len(feature.links) == DocumentShape().lines
    for word, name in feature.links:
        line = records[0]["context"][feature.offsets[name][0] : feature.offsets[word][1]]
        assert "\n" not in line
        assert " " in line


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
