"""The auxiliary loss of mechanisms is part of a model's loss while it trains, and Trainer optimises it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from hf_longattn.mechanisms.adaptive_span import AdaptiveSpan
from hf_longattn.modeling.losses import auxiliary_loss
from tests.modeling.test_mixin import long_model
from tests.reference.small_models import tokens

SPANS = {"mechanism": "adaptive_span", "max_span": 32, "ramp": 8, "init_span": 16, "span_loss_weight": 0.01}


def still(model: Any) -> Any:
    """In training mode, without dropout."""
    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("by_tuple", [False, True])
def test_the_loss_has_the_auxiliary_loss_in_training_only(by_tuple: bool) -> None:
    model = long_model("bert", "BertForMaskedLM", SPANS)
    inputs: dict[str, Any] = {"input_ids": tokens(), "labels": tokens(), "return_dict": not by_tuple}
    added = auxiliary_loss(model)
    assert added is not None
    torch.testing.assert_close(added, torch.tensor(3 * 0.01 * 16.0))
    with torch.no_grad():
        plain = model(**inputs)[0]
        training = still(model)(**inputs)[0]
        without = model(**{**inputs, "labels": None})
    torch.testing.assert_close(training, plain + added)
    assert without[0].dim() == 3
    model.use_base_attention()
    with torch.no_grad():
        assert abs(model(**inputs)[0] - training) > 0.1, "the plain base has no spans"


def test_accumulated_batches_count_the_auxiliary_loss_once() -> None:
    model = still(long_model("gpt2", "GPT2LMHeadModel", SPANS))
    ids = torch.randint(5, 90, (4, 40))
    with torch.no_grad():
        whole = model(input_ids=ids, labels=ids, num_items_in_batch=160).loss
        parts = [model(input_ids=ids[n : n + 1], labels=ids[n : n + 1], num_items_in_batch=160).loss for n in range(4)]
    torch.testing.assert_close(sum(parts), whole)


class Lines(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(5, 90, (40,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


def test_trainer_shortens_adaptive_spans(tmp_path: Path) -> None:
    model = long_model("gpt2", "GPT2LMHeadModel", {**SPANS, "span_loss_weight": 1.0})
    modules = [module for module in model.modules() if isinstance(module, AdaptiveSpan)]
    before = [module.spans.clone() for module in modules]
    arguments = TrainingArguments(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=2, learning_rate=0.05, report_to=[], use_cpu=True,
        save_strategy="no", lr_scheduler_type="constant",
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=Lines()).train()
    after = [module.spans for module in modules]
    assert all((b < a).all() for a, b in zip(before, after, strict=True)), "the loss term shortens them"
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved")
    kept = [module.spans for module in again.modules() if isinstance(module, AdaptiveSpan)]
    assert all(torch.equal(a, b) for a, b in zip(after, kept, strict=True))
