"""The tokenizer and the tiny model of the training tests."""

from tests.training.conftest import filler, texts, tiny_model, tokenizer

__all__ = ["filler", "texts", "tiny_model", "tokenizer"]
