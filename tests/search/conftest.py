"""Small checkpoints with tokenizers, and a text, for searches that take a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ..trained import REAL_TEXT, tokenizer_of

LENGTH = 64
"""Tokens that the checkpoints read."""


SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": LENGTH}
DECODER = {"num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def saved(
    folders: pytest.TempPathFactory,
    model: type[transformers.PreTrainedModel],
    config: type[transformers.PreTrainedConfig],
    kind: str,
    **values: Any,
) -> Path:
    """The folder of a model with weights large enough that attention is not uniform and matters for the
    predictions."""
    folder, tokenizer = folders.mktemp("search") / config.model_type, tokenizer_of(kind, LENGTH)
    torch.manual_seed(0)
    made: Any = model(config(vocab_size=len(tokenizer), **SMALL, **values))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10.0)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT with three layers."""
    return saved(tmp_path_factory, transformers.BertForMaskedLM, transformers.BertConfig, "bert", num_hidden_layers=3)


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama with two layers."""
    return saved(
        tmp_path_factory,
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig,
        "gpt2",
        num_hidden_layers=2,
        **DECODER,
    )


@pytest.fixture(scope="session")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 2 with three layers, of which the first and the last have a window of 16 tokens."""
    shape = {"num_hidden_layers": 3, "head_dim": 8, "sliding_window": 16, **DECODER}
    return saved(tmp_path_factory, transformers.Gemma2ForCausalLM, transformers.Gemma2Config, "gpt2", **shape)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some thousand tokens of English."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(REAL_TEXT, encoding="utf-8")
    return file
