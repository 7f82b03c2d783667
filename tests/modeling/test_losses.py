"""Losses of Long models in training: terms of mechanisms, and steps of several batches."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from hf_longattn.errors import InputError
from hf_longattn.families import (
    FAMILIES,
)
from hf_longattn.mechanisms.adaptive_span import AdaptiveSpan
from hf_longattn.modeling import losses, mixin
from hf_longattn.modeling.family.definition import CAUSAL_LANGUAGE_MODELS, LANGUAGE_MODELS
from hf_longattn.modeling.losses import auxiliary_loss
from hf_longattn.training.arguments import LongTrainingArguments
from hf_longattn.training.trainer import LongTrainer
from scripts.dev.tools.small_models import TEXT_FAMILIES
from tests.cases import every_case
from tests.reference.small_models import long_model, plain_model, tokens
from tests.shared_code import kind_of_family

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


def arguments(folder: Path, batch: int, accumulated: int, **settings: Any) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulated,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        lr_scheduler_type="constant",
        **settings,
    )


def test_trainer_shortens_adaptive_spans(tmp_path: Path) -> None:
    model = long_model("gpt2", "GPT2LMHeadModel", {**SPANS, "span_loss_weight": 1.0})
    modules = [module for module in model.modules() if isinstance(module, AdaptiveSpan)]
    before = [module.spans.clone() for module in modules]
    Trainer(model, arguments(tmp_path, 2, 2, max_steps=2, learning_rate=0.05), train_dataset=Lines()).train()
    after = [module.spans for module in modules]
    assert all((b < a).all() for a, b in zip(before, after, strict=True)), "the loss term shortens them"
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved")
    kept = [module.spans for module in again.modules() if isinstance(module, AdaptiveSpan)]
    assert all(torch.equal(a, b) for a, b in zip(after, kept, strict=True))


@pytest.mark.thorough
@every_case(
    ("base", "head"),
    [("bert", "BertForMaskedLM"), ("bert", "BertForSequenceClassification"), ("gpt2", "GPT2LMHeadModel")],
)
def test_trainer_with_accumulated_batches_steps_as_with_one_batch(base: str, head: str, tmp_path: Path) -> None:
    data = []
    for number, ids in enumerate(torch.randint(5, 32, (4, 12), generator=torch.Generator().manual_seed(0))):
        labels = ids.where(torch.arange(12) > 3 * number, -100)  # each row has another number of them
        if head.endswith("SequenceClassification"):
            labels = torch.tensor(number % 2)
        data.append({"input_ids": ids, "labels": labels})

    def step(batch: int) -> tuple[float, torch.Tensor]:
        model = still(long_model(base, head, {"mechanism": "window", "window": 8}))
        settings = {"max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 1.0, "logging_steps": 1}
        trainer = Trainer(model, arguments(tmp_path, batch, 4 // batch, max_steps=1, **settings), train_dataset=data)
        trainer.train()
        return trainer.state.log_history[0]["loss"], torch.cat([p.detach().flatten() for p in model.parameters()])

    (together, whole) = step(4)
    (apart, parts) = step(1)
    assert apart == pytest.approx(together, rel=1e-4)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


def heads_with_labels() -> Iterator[tuple[str, str]]:
    """(base, model class) of every head that predicts tokens or a class of each, which differ in what their loss is
    divided by."""
    for base, family in TEXT_FAMILIES.items():
        for head in family.model_classes:
            if head.endswith((*LANGUAGE_MODELS, "ForConditionalGeneration", "ForTokenClassification")):
                yield base, head


@pytest.mark.thorough
@every_case(
    ("base", "head"),
    list(heads_with_labels()),
    of=9,
    code=lambda base, head: (kind_of_family(base), head.rpartition("For")[2]),
)
def test_the_loss_of_a_head_is_the_batch_s_share_of_a_step(base: str, head: str) -> None:
    """Of a step with ten times as many labels it is a tenth; Trainer, which adds the batches up, is told so."""
    start = {"decoder_start_token_id": 1} if FAMILIES[base].two_stacks else {}
    model = long_model(base, head, {"mechanism": "window", "window": 8}, **start).eval()
    ids = torch.randint(5, 30, (2, 12))
    labels = (ids % 2 if head.endswith("Classification") else ids).clone()
    labels[1, 4:] = -100
    ids, labels = (x[:, None].repeat(1, 2, 1) if head.endswith("DoubleHeadsModel") else x for x in (ids, labels))
    count = int((labels[:, 1:] if head.endswith(CAUSAL_LANGUAGE_MODELS) else labels).ne(-100).sum())
    inputs = {"input_ids": ids, "labels": labels}
    of_sentences = {"next_sentence_label", "sentence_order_label"} & {*inspect.signature(model.forward).parameters}
    inputs |= dict.fromkeys(of_sentences, torch.zeros(2, dtype=torch.long))
    mean, share = (model(**inputs, num_items_in_batch=items).loss.item() for items in (None, torch.tensor(10 * count)))
    assert share == pytest.approx(mean / 10, rel=1e-5)
    assert model.accepts_loss_kwargs


def refuse_all_logits(patch: pytest.MonkeyPatch) -> None:
    """Losses in pieces of five tokens; reading all logits is an error."""
    patch.setattr(losses, "LOGITS_AT_ONCE", 5 * 4 * 200)
    patch.setattr(losses.Logits, "dense", lambda self: pytest.fail("all logits were computed"))


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_all_logits(monkeypatch)


def assert_same_steps(model: Any, *, rtol: float = 1e-4, items: int | None = None) -> None:
    """The loss in training, in pieces, and its gradients are those of all logits, as transformers computes them."""
    ids = torch.randint(5, 30, (2, 12), generator=torch.Generator().manual_seed(0))
    labels = torch.stack([ids[0], torch.full_like(ids[1], -100)])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = []
    for context in (mixin.deferred_logits, lambda model: nullcontext()):
        torch.manual_seed(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mixin, "deferred_logits", context)
            loss = model.train()(input_ids=ids, labels=labels, num_items_in_batch=items).loss
        steps.append(
            (loss.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
        )
    largest = max(float(gradient.abs().max()) for gradient in steps[1][1:])
    torch.testing.assert_close(*steps, rtol=rtol, atol=rtol * largest)


HEADS = [(base, head) for base, head in heads_with_labels() if head.endswith(CAUSAL_LANGUAGE_MODELS)]


@every_case(("base", "head"), HEADS, of=9, code=lambda base, head: kind_of_family(base))
def test_a_decoder_s_loss_in_pieces_is_that_of_all_logits(base: str, head: str) -> None:
    model = long_model(base, head, {"mechanism": "window", "window": 8})
    with pytest.MonkeyPatch.context() as patch:
        if getattr(model.config, "final_logit_softcapping", None) is None:  # caps need all logits
            refuse_all_logits(patch)
        assert_same_steps(model)


@pytest.mark.parametrize(
    "case", ["tied", "float64", "bfloat16", "autocast", "share", "checkpointing", "frozen", "saved", "low rank"]
)
@pytest.mark.usefixtures("unread")
def test_losses_in_pieces_keep_types_adapters_and_shares(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = long_model(
        "llama", "LlamaForCausalLM", {"mechanism": "window", "window": 8}, tie_word_embeddings=case == "tied"
    )
    half = case in ("bfloat16", "autocast")
    if case in ("frozen", "saved", "low rank"):
        peft = pytest.importorskip("peft")
        chosen = {
            "saved": {"modules_to_save": ["lm_head"]},
            "low rank": {"target_modules": ["q_proj", "lm_head"]},
        }.get(case, {})
        model = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **chosen))
        if case == "low rank":
            monkeypatch.undo()
    elif case == "checkpointing":
        model.gradient_checkpointing_enable()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "autocast"):
        model = model.to({"float64": torch.float64, "bfloat16": torch.bfloat16}.get(case, torch.float32))
        assert_same_steps(model, rtol=0.02 if half else 1e-5, items=44 if case == "share" else None)


@pytest.mark.usefixtures("unread")
def test_trainings_and_evaluations_of_a_stock_decoder_compute_no_logits(tmp_path: Path) -> None:
    model = plain_model("llama", "LlamaForCausalLM")
    arguments = LongTrainingArguments(
        str(tmp_path), max_steps=1, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = LongTrainer(model, arguments, train_dataset=Lines(), eval_dataset=Lines())
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry) == pytest.approx(
        before, rel=0.1
    )
    assert trainer.predict(Lines()).predictions.shape == (8, 40, 200), "what asks for logits gets them"


def test_logits_of_training_are_computed_when_they_are_read() -> None:
    model = still(long_model("llama", "LlamaForCausalLM", {"mechanism": "window", "window": 8}))
    ids = torch.randint(5, 30, (2, 12))
    for arguments in ({}, {"return_dict": False}):
        loss, logits = model(input_ids=ids, labels=ids, **arguments)[:2]
        expected = model(input_ids=ids).logits
        assert torch.equal(logits[:, :-1], expected[:, :-1])
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))
        assert torch.equal(torch.log_softmax(logits, -1), expected.log_softmax(-1))
        with pytest.raises(InputError, match="has no second derivatives"):
            torch.autograd.grad(loss, [model.lm_head.weight], create_graph=True)
        loss.backward(retain_graph=True)
        loss.backward()
        for written in (
            "x + 1",
            "1 - x",
            "-x",
            "2 * x",
            "x ** 2",
            "x > 0",
            "x * torch.arange(200)",
            "len(x)",
            "torch.stack([x, x])",
        ):
            assert str(eval(written, {"x": logits, "torch": torch})) == str(
                eval(written, {"x": expected, "torch": torch})
            )
        assert type(copy.copy(logits)) is type(pickle.loads(pickle.dumps(logits))) is torch.Tensor
        for change in (lambda logits: logits.retain_grad(), lambda logits: logits.zero_()):
            with pytest.raises(AttributeError, match="would change a copy"):
                change(logits)
    smoothed = torch.nn.functional.cross_entropy(logits.view(-1, 200), ids.flatten(), label_smoothing=0.1)
    torch.testing.assert_close(
        smoothed, torch.nn.functional.cross_entropy(expected.flatten(0, 1), ids.flatten(), label_smoothing=0.1)
    )
    without = model(input_ids=ids, labels=torch.full_like(ids, -100), num_items_in_batch=5).loss
    assert float(without) == 0.0
    assert all(
        not gradient.any() for gradient in torch.autograd.grad(without, [*model.parameters()], allow_unused=True)
    )
    compiled = torch.compile(model, backend="eager", fullgraph=True)(input_ids=ids, labels=ids, use_cache=False)
    torch.testing.assert_close(compiled.loss, loss)
    assert isinstance(compiled.logits, torch.Tensor)
    model.lm_head.register_forward_hook(lambda *_: None)
    assert isinstance(model(input_ids=ids, labels=ids).logits, torch.Tensor)


def test_trainings_on_several_devices_by_data_parallel_compute_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LongTrainingArguments, "n_gpu", 2)
    trainer = LongTrainer(
        plain_model("llama", "LlamaForCausalLM"), LongTrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    )
    ids = torch.randint(5, 30, (2, 12))
    assert isinstance(
        trainer.mean_loss(trainer.model.train(), {"input_ids": ids, "labels": ids})[1].logits, torch.Tensor
    )


def test_a_connectionist_loss_is_left_to_trainer_s_mean_over_batches() -> None:
    """It is a mean over recordings, which Trainer does not count."""
    labels = {"labels": torch.tensor([[5, 6, 7], [8, -100, -100]])}
    for base, head, divides in (
        ("wav2vec2", "LongWav2Vec2ForCTC", False),
        ("vit", "LongViTForImageClassification", True),
    ):
        assert FAMILIES[base].model_class(head).accepts_loss_kwargs == divides
        assert (losses.label_count(head, labels) is not None) == divides
