"""Next-token loss: by its definition, and refused where texts are short."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_longattn.errors import LengthError
from research.clm import next_token_loss
from research.mlm import first_tokens
from research.tokenizer import train_tokenizer

TEXTS = ["def f(x):\n    return x + 1\n" * 8, "x = 1", "for i in range(10):\n    print(i)\n" * 8]


def test_the_loss_is_the_models_own() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    texts = first_tokens(TEXTS, tokenizer, 20, 2)
    assert [len(text) for text in texts] == [20, 20]
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64)
    model = GPT2LMHeadModel(config).eval()
    for text, loss in zip(texts, next_token_loss(model, tokenizer, texts), strict=True):
        ids = torch.tensor([[tokenizer.cls_token_id, *text]])
        assert loss == pytest.approx(model(ids, labels=ids).loss.item(), abs=1e-5)
    with pytest.raises(LengthError, match="only 2 of the texts have 20 tokens"):
        first_tokens(TEXTS, tokenizer, 20, 3)
