"""The stream: groups of bounded cost, curricula that move up, code and files beside variable tracking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from hf_longattn.data.qa_features import QAFormat
from hf_longattn.errors import LengthError
from scripts.dev.studies.code_labels import Code, Names, label_files
from scripts.dev.studies.code_qa import build_code_qa
from scripts.dev.studies.corpus import Module
from scripts.dev.studies.qa_stream import LOOKUPS, Curriculum, Lookups, QAStream, Records, Source
from scripts.dev.studies.variable_tracking import Filler
from tests.scripts.dev.studies.test_code_qa import ONE


@pytest.fixture(scope="module")
def code(repository: Path) -> Code:
    files = label_files(
        Module("a", path.name, path.read_text()) for path in sorted((repository / "scripts" / "dev" / "studies").glob("*.py"))
    )
    return Code(files, Names(files), base=0.0, tokens=(100, 200))


def stream(tokenizer: PreTrainedTokenizerBase, source: Source, name: str = "task", **options: Any) -> QAStream:
    return QAStream(tokenizer, QAFormat(512), {name: source}, [1.0], tokens_per_group=1024, **options)


@pytest.mark.parametrize("stage", range(len(LOOKUPS)))
def test_lookup_groups(stage: int, filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    found = stream(tokenizer, Lookups(tokenizer, filler, Curriculum(stage=stage), 512), "lookup")
    group = found[5]
    assert group[0].inputs["input_ids"] == found[5][0].inputs["input_ids"]
    assert group[0].inputs["input_ids"] != found[6][0].inputs["input_ids"]
    lengths = [len(feature) for feature in group]
    assert max(lengths) <= 512
    if stage < 3:  # the test's tokenizer spends two or three times as many pieces on a line as one that knows the words
        assert max(lengths) <= 3 * LOOKUPS[stage].longest
    assert len(group) * max(lengths) <= 1024 + 512
    assert all(1 <= len(feature.packed) <= (LOOKUPS[stage].pairs + LOOKUPS[stage].chains) // 2 for feature in group)
    assert {feature.task for feature in group} == {"lookup"}


def test_the_curriculum_moves_up_and_stops() -> None:
    curriculum = Curriculum(step_up=0.8)
    assert not curriculum.report(0.79)
    moved = [curriculum.report(0.9) for _ in range(10)]
    assert moved.count(True) == len(LOOKUPS) - 1
    assert curriculum.current == LOOKUPS[-1]


def test_code_groups(code: Code, tokenizer: PreTrainedTokenizerBase) -> None:
    group = stream(tokenizer, code)[1]
    assert all(feature.places and feature.guides for feature in group)
    assert all(asked.start > 0 and len(asked.trail) == 4 for feature in group for asked in feature.packed)


def test_records_are_read_whole_and_questions_of_one_document_together(tokenizer: PreTrainedTokenizerBase) -> None:
    records = build_code_qa("argument", "test", tokenizer, modules=[Module("a", "a/one.py", ONE)], short=(200, 300), variants=3)
    features = [feature for index in range(5) for feature in stream(tokenizer, Records(records, 400))[index]]
    assert all(asked.start > 0 for feature in features for asked in feature.packed)
    whole = build_code_qa("argument", "test", tokenizer, modules=[Module("a", "a/one.py", ONE)], min_tokens=10, min_distance=0)
    assert len(whole) == 3
    assert len(Records(whole, 10_000).groups) == 1
    with pytest.raises(LengthError, match="within 100 tokens"):
        Records(whole, 100)


def test_shares(filler: Filler, code: Code, tokenizer: PreTrainedTokenizerBase) -> None:
    sources = {"lookup": Lookups(tokenizer, filler, Curriculum(), 512), "code": code}
    mixed = QAStream(tokenizer, QAFormat(512), sources, [0.8, 0.2], tokens_per_group=100)
    tasks = [mixed[index][0].task for index in range(60)]
    assert 35 < tasks.count("lookup") < 60
