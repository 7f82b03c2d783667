"""The tokenizer and the tiny model of the training tests, and sources to fill documents with."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from scripts.dev.studies.variable_tracking import Filler
from tests.training.conftest import SOURCES, texts, tiny_model, tokenizer

__all__ = ["texts", "tiny_model", "tokenizer"]


@pytest.fixture(scope="session")
def filler(tokenizer: PreTrainedTokenizerBase) -> Filler:
    return Filler(SOURCES, tokenizer)
