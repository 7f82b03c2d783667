"""A small tokenizer and a tiny model, made once."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerBase

from hf_longattn.training.lookup import Filler
from hf_longattn.training.tokenizer import train_tokenizer

SOURCES = [inspect.getsource(module) for module in (ast, inspect, json, textwrap)]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(SOURCES, vocab_size=1024)


@pytest.fixture(scope="session")
def filler(tokenizer: PreTrainedTokenizerBase) -> Filler:
    return Filler(SOURCES, tokenizer)


@pytest.fixture
def tiny_model() -> BertForQuestionAnswering:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1024,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=512,
    )
    return BertForQuestionAnswering(config)
