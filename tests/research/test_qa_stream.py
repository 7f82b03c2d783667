"""The stream: groups of bounded cost, a curriculum that moves up, crops that keep the answer where it is."""

from __future__ import annotations

import random

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_longattn.evaluation.qa_features import QAFormat
from research.qa_stream import CURRICULUM, Curriculum, QAStream, crop_range, crop_record
from research.variable_tracking import DocumentShape, Filler, make_document


@pytest.fixture
def records(filler: Filler, tokenizer: PreTrainedTokenizerBase) -> list[dict]:
    return [r for seed in range(3) for r in make_document(filler, 700, DocumentShape(), random.Random(seed), tokenizer)]


@pytest.mark.parametrize("stage", range(len(CURRICULUM)))
def test_lookup_groups(stage: int, filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    stream = QAStream(tokenizer, QAFormat(512), filler=filler, curriculum=Curriculum(stage=stage), tokens_per_group=1024)
    group = stream[5]
    assert group[0].inputs["input_ids"] == stream[5][0].inputs["input_ids"]
    assert group[0].inputs["input_ids"] != stream[6][0].inputs["input_ids"]
    lengths = [len(feature) for feature in group]
    assert max(lengths) <= 512
    if stage < 3:  # the test's tokenizer spends two or three times as many pieces on a line as one that knows the words
        assert max(lengths) <= 3 * CURRICULUM[stage].longest
    assert len(group) * max(lengths) <= 1024 + 512
    assert all(1 <= len(feature.packed) <= (CURRICULUM[stage].pairs + CURRICULUM[stage].chains) // 2 for feature in group)
    assert {feature.task for feature in group} == {"lookup"}


def test_record_groups_are_cropped(records: list[dict], tokenizer: PreTrainedTokenizerBase) -> None:
    stream = QAStream(
        tokenizer, QAFormat(512), records=Dataset.from_list(records), crop=(100, 200), tokens_per_group=2000, lookup_share=0.0
    )
    group = stream[0]
    assert len(group) >= 4
    assert max(len(feature) for feature in group) < 400
    assert max(len(feature.packed) for i in range(9) for feature in stream[i]) > 1


def test_the_curriculum_moves_up_and_stops() -> None:
    curriculum = Curriculum(step_up=0.8)
    assert not curriculum.report(0.79)
    moved = [curriculum.report(0.9) for _ in range(10)]
    assert moved.count(True) == len(CURRICULUM) - 1
    assert curriculum.current == CURRICULUM[-1]


@pytest.mark.parametrize("without_answer", [False, True])
def test_crops(without_answer: bool, records: list[dict]) -> None:
    rng, kept = random.Random(0), 0
    for record in records * 5:
        crop = crop_record(record, *crop_range(record, 150, rng, without_answer))
        assert crop["context"] in record["context"]
        for text, start in zip(crop["answers"]["text"], crop["answers"]["answer_start"], strict=True):
            assert crop["context"].startswith(text, start)
            kept += 1
    answerable = 5 * sum(bool(record["answers"]["text"]) for record in records)
    assert kept < answerable if without_answer else kept == answerable


def test_an_answer_beyond_the_length_is_not_learned_as_none(filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    """Documents that do not fit are read in stretches around the answer; the few without it do not contain it either."""
    made = [r for seed in range(3) for r in make_document(filler, 900, DocumentShape(), random.Random(seed), tokenizer)]
    records = [{**record, "answers": record["answers"]} for record in made if record["answers"]["text"]]
    stream = QAStream(tokenizer, QAFormat(256), records=Dataset.from_list(records), tokens_per_group=600, lookup_share=0.0, pack=1)
    features = [feature for index in range(30) for feature in stream[index]]
    found = 0
    for feature in features:
        start, end = feature.packed[0].start, feature.packed[0].end
        assert len(feature) <= 256
        if start:
            assert feature.offsets[start] is not None
            assert end >= start
            found += 1
    assert 0.6 * len(features) < found


def test_documents_that_fit_stay_whole(filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    records = [r for r in make_document(filler, 200, DocumentShape(), random.Random(0), tokenizer) if r["answers"]["text"]]
    stream = QAStream(tokenizer, QAFormat(512), records=Dataset.from_list(records), tokens_per_group=600, lookup_share=0.0, pack=1)
    for index in range(5):
        for feature in stream[index]:
            spans = [span for span in feature.offsets if span is not None]
            assert spans[0][0] == 0
            assert spans[-1][1] >= len(records[0]["context"].rstrip())
            assert feature.packed[0].start > 0
