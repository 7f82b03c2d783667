"""The losses of long texts: the same masked places for all, pieces that add up to the whole, the model's own next-token loss."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from hf_longattn.errors import LengthError
from scripts.dev.studies.text_loss import first_tokens, masked_loss, masked_texts, mlm_markdown, mlm_table, next_token_loss, shortened
from scripts.dev.studies.tokenizer import train_tokenizer

TEXTS = [f"word{i} and then some more words of text number {i} " * 12 for i in range(4)] + ["short"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, vocab_size=300)


@pytest.fixture(scope="module")
def model() -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64
    )
    return BertForMaskedLM(config).eval()


def test_masked_places_are_the_same_every_time(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = masked_texts(TEXTS, tokenizer, 64, 4)
    assert texts == masked_texts(TEXTS, tokenizer, 64, 4)
    assert all(len(text.tokens) == 62 and len(text.places) == 9 for text in texts)
    for text, cut in zip(texts, shortened(texts, 32), strict=True):
        assert cut.tokens == text.tokens[:30]
        assert cut.places == tuple(place for place in text.places if place < 30)


def test_too_few_long_texts_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(LengthError, match="only 4 of the texts"):
        masked_texts(TEXTS, tokenizer, 64, 5)


def test_loss_of_an_untrained_model_is_that_of_chance(model: BertForMaskedLM, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = masked_texts(TEXTS, tokenizer, 64, 2)
    for chunk in (None, 32):
        for loss in masked_loss(model, tokenizer, texts, chunk):
            assert loss == pytest.approx(math.log(300), abs=0.5)


def test_one_chunk_is_the_whole(model: BertForMaskedLM, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = masked_texts(TEXTS, tokenizer, 64, 2)
    assert masked_loss(model, tokenizer, texts) == pytest.approx(masked_loss(model, tokenizer, texts, chunk=64))


def test_next_token_loss_is_the_model_s_own(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = first_tokens(TEXTS, tokenizer, 20, 2)
    assert [len(text) for text in texts] == [20, 20]
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64)
    model = GPT2LMHeadModel(config).eval()
    for text, loss in zip(texts, next_token_loss(model, tokenizer, texts), strict=True):
        ids = torch.tensor([[tokenizer.cls_token_id, *text]])
        assert loss == pytest.approx(model(ids, labels=ids).loss.item(), abs=1e-5)
    with pytest.raises(LengthError, match="only 4 of the texts have 20 tokens"):
        first_tokens(TEXTS, tokenizer, 20, 5)


def test_table(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = masked_texts(TEXTS, tokenizer, 64, 2)
    table = mlm_table({"row": lambda cut: [1.0 for _ in cut], "other": lambda cut: [2.0, 3.0]}, texts, [32, 64])
    assert table["other"]["64"]["loss"] == 2.5
    assert table["other"]["64"]["loss_se"] == pytest.approx(0.5)
    assert table["row"]["64"]["tokens"] == 18
    assert "| row | 1.000 ± 0.000 | 1.000 ± 0.000 |" in mlm_markdown(table)
