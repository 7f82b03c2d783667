"""Small checkpoints with tokenizers, and a text, for searches that take a second."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from ..trained import REAL_TEXT, tokenizer_of

LENGTH = 64
"""Tokens that the checkpoints read."""


def seeded(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """With weights large enough that attention is not uniform and matters for the predictions."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10.0)
    return model


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT with three layers."""
    folder, tokenizer = tmp_path_factory.mktemp("search") / "bert", tokenizer_of("bert", LENGTH)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=LENGTH,
    )  # fmt: skip
    seeded(transformers.BertForMaskedLM(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama with two layers."""
    folder, tokenizer = tmp_path_factory.mktemp("search") / "llama", tokenizer_of("gpt2", LENGTH)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16,
        max_position_embeddings=LENGTH, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    seeded(transformers.LlamaForCausalLM(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 2 with three layers, of which the first and the last have a window of 16 tokens."""
    folder, tokenizer = tmp_path_factory.mktemp("search") / "gemma2", tokenizer_of("gpt2", LENGTH)
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        intermediate_size=16, max_position_embeddings=LENGTH, sliding_window=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    seeded(transformers.Gemma2ForCausalLM(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some thousand tokens of English."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(REAL_TEXT, encoding="utf-8")
    return file
