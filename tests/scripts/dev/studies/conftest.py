"""The tokenizer and the tiny model of the training tests."""

from __future__ import annotations

from tests.training.conftest import texts, tiny_model, tokenizer

__all__ = ["texts", "tiny_model", "tokenizer"]
