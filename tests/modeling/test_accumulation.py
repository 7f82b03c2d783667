"""A plain Trainer's accumulated batches give the loss and the gradients of one large batch, whatever the head."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments

from hf_longattn import LongAttentionConfig
from hf_longattn.families import (
    FAMILIES,
    LongBartConfig,
    LongBartForConditionalGeneration,
    LongBertConfig,
    LongBertForMaskedLM,
    LongBertForQuestionAnswering,
    LongBertForSequenceClassification,
    LongBertForTokenClassification,
    LongBertLMHeadModel,
    LongGPT2Config,
    LongGPT2ForSequenceClassification,
    LongGPT2LMHeadModel,
    LongLlamaConfig,
    LongLlamaForCausalLM,
    LongLlamaForTokenClassification,
    LongModernBertConfig,
    LongModernBertForMaskedLM,
    LongRobertaConfig,
    LongRobertaForMaskedLM,
)
from hf_longattn.modeling.family.definition import LANGUAGE_MODELS
from hf_longattn.modeling.run.losses import divides_by_items
from scripts.dev.tools.small_models import TEXT_FAMILIES, Shape, small_config

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "pad_token_id": 0,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 34,
}  # fmt: skip
GPT2 = {
    "vocab_size": 32,
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 32,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
BART = {
    "vocab_size": 32, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "dropout": 0.0, "pad_token_id": 0,
}  # fmt: skip
CASES = [
    (LongBertForMaskedLM, LongBertConfig, SIZES, "tokens"),
    (LongBertLMHeadModel, LongBertConfig, {**SIZES, "is_decoder": True}, "tokens"),
    (LongBertForTokenClassification, LongBertConfig, SIZES, "tags"),
    (LongBertForSequenceClassification, LongBertConfig, SIZES, "classes"),
    (LongBertForQuestionAnswering, LongBertConfig, SIZES, "spans"),
    (LongRobertaForMaskedLM, LongRobertaConfig, SIZES, "tokens"),
    (LongGPT2LMHeadModel, LongGPT2Config, GPT2, "tokens"),
    (LongGPT2ForSequenceClassification, LongGPT2Config, {**GPT2, "pad_token_id": 0}, "classes"),
    (LongLlamaForCausalLM, LongLlamaConfig, {**SIZES, "num_key_value_heads": 2}, "tokens"),
    (LongLlamaForTokenClassification, LongLlamaConfig, {**SIZES, "num_key_value_heads": 2}, "tags"),
    (LongModernBertForMaskedLM, LongModernBertConfig, SIZES, "tokens"),
    (LongBartForConditionalGeneration, LongBartConfig, BART, "tokens"),
]


@pytest.mark.parametrize(("model_class", "config_class", "sizes", "labels"), CASES, ids=[case[0].__name__ for case in CASES])
def test_accumulated_batches_are_one_batch(model_class: Any, config_class: Any, sizes: dict[str, Any], labels: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    data = []
    for number in range(4):
        ids = torch.randint(5, 32, (12,), generator=generator)
        targets = {
            "tokens": {"labels": ids},
            "tags": {"labels": ids % 2},
            "classes": {"labels": torch.tensor(number % 2)},
            "spans": {"start_positions": torch.tensor(number), "end_positions": torch.tensor(number + 1)},
        }
        data.append({"input_ids": ids, **targets[labels]})

    def step(batch: int) -> tuple[float, torch.Tensor]:
        torch.manual_seed(0)
        model = model_class(config_class(long_attention=LongAttentionConfig(mechanism="window", window=8), **sizes))
        arguments = TrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=batch, gradient_accumulation_steps=4 // batch, max_grad_norm=0.0,
            optim="sgd", learning_rate=1.0, lr_scheduler_type="constant", report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
            logging_steps=1, bf16=False,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=data)
        trainer.train()
        return trainer.state.log_history[0]["loss"], torch.cat([p.detach().flatten() for p in model.parameters()])

    (together, whole), (apart, parts) = step(4), step(1)
    assert apart == pytest.approx(together, rel=1e-4)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


def heads_with_labels() -> Iterator[tuple[str, str]]:
    """(base, model class) of every head that predicts tokens or a class of each, which differ in what their loss is divided by."""
    for base, family in TEXT_FAMILIES.items():
        for head in family.heads:
            if head.endswith((*LANGUAGE_MODELS, "ForConditionalGeneration", "ForTokenClassification")):
                yield base, head


@pytest.mark.parametrize(("base", "head"), heads_with_labels())
def test_a_head_divides_by_the_items_that_it_is_said_to(base: str, head: str) -> None:
    torch.manual_seed(0)
    config = small_config(base, Shape(tokens=32), pad_token_id=1, decoder_start_token_id=1, mask_token_id=4)
    model = getattr(transformers, head)(config).eval()
    ids = torch.randint(5, 30, (2, 12))
    ids = ids[:, None].repeat(1, 2, 1) if head.endswith("DoubleHeadsModel") else ids
    inputs = {"input_ids": ids, "labels": ids % 2 if head.endswith("Classification") else ids}
    of_sentences = {"next_sentence_label", "sentence_order_label"} & {*inspect.signature(model.forward).parameters}
    inputs |= dict.fromkeys(of_sentences, torch.zeros(2, dtype=torch.long))
    mean, share = (model(**inputs, num_items_in_batch=items).loss.item() for items in (None, torch.tensor(10**6)))
    divides = share < mean / 100
    assert divides_by_items(type(model)) == divides
    assert FAMILIES[base].model_class(head).accepts_loss_kwargs == divides
