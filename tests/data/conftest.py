"""The tokenizer and the tiny model of the training tests, for features."""

from tests.training.conftest import texts, tiny_model, tokenizer

__all__ = ["texts", "tiny_model", "tokenizer"]
