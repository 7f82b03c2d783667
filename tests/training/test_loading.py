"""What is told of a checkpoint that a training starts from: a sentence in place of transformers' table."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from hf_longattn.loading import load_model
from hf_longattn.naming import LOGGER
from hf_longattn.training.loading import label_config
from hf_longattn.training.tasks.qa import load_qa_model
from tests.training.conftest import checkpoint


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is logged by transformers and by this package."""
    lines: list[str] = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, note = logging.getLogger("transformers"), Note()
    assert LOGGER.startswith("transformers.")
    logger.addHandler(note)
    yield lines
    logger.removeHandler(note)


def test_new_and_unused_weights_are_a_sentence(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, said: list[str]) -> None:
    folder = checkpoint("mlm", tmp_path / "short", tokenizer)
    load_model(AutoModelForMaskedLM, folder)
    assert said == []
    model = load_model(AutoModelForSequenceClassification, folder, num_labels=3)
    assert said == [f"{folder}: bert.pooler.dense, classifier are new and trained from random values; cls is not used by this task."]
    said.clear()
    model.save_pretrained(folder)
    load_model(AutoModelForSequenceClassification, folder, ignore_mismatched_sizes=True, **label_config(list("abcde")))
    assert said == [f"{folder}: classifier is new, since it is of another size there."]


def test_heads_that_are_loaded_afterwards_are_not_called_unused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, said: list[str]
) -> None:
    from hf_longattn.evaluation.qa_heads import attach_evidence

    folder = checkpoint("mlm", tmp_path / "short", tokenizer)
    model, tokenizer = load_qa_model(folder)
    attach_evidence(model, tokenizer)
    model.save_pretrained(tmp_path / "read")
    tokenizer.save_pretrained(tmp_path / "read")
    said.clear()
    load_qa_model(str(tmp_path / "read"))
    assert said == []
