"""Stage 2 against the original: what it learns, at which length, and with everything that stage 2 does otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerBase

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import OptionError
from hf_longattn.training.linearise.teacher import Teacher, check_original, predictions_at
from hf_longattn.training.loading import frozen_teacher
from hf_longattn.training.old_trainer import DivergenceError
from hf_longattn.training.tasks.linearise import linearise_attention
from scripts.dev.tools.small_models import TEXT_FAMILIES, language_model, predicts_tokens, small_config
from tests.grids import grid, quickly
from tests.hub_state import Hub, Repository
from tests.training.conftest import checkpoint
from tests.training.linearise.conftest import Start


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "full"), grid([("mlm", False), ("clm", True), ("llama", False)], lambda kind, full: full))
def test_linearise_with_kl_brings_predictions_closer_to_the_original(kind: str, full: bool, start: Start, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "kind": kind,
        "certain": True,
        "stage": "2",
        "finetune_loss": "kl",
        "finetune_steps": 20,
        "use_peft": not full,
    }
    source = Path(start(**settings)[0].model) / "model.safetensors"
    original = load_file(source)
    report = linearise_attention(*start(**settings, finetune_learning_rate=5e-3))
    assert report["kl"]["after"] < 0.97 * report["kl"]["before"]
    assert report["kl"]["input_length"] == 64
    after = load_file(source)
    assert all(torch.equal(original[name], after[name]) for name in original)
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(load_file(tmp_path / "out" / "converted" / "model.safetensors"))
    second = [line for line in report["history"]["stage2"] if "loss" in line]
    assert all(line["loss"] == pytest.approx(line["kl"], rel=1e-3) for line in second)
    assert "KL divergence of its predictions" in (tmp_path / "out" / "distillation_report.md").read_text()


@pytest.mark.parametrize("converted_before", quickly([True, False], [True]))
def test_linearise_teacher_reads_no_more_than_its_own_length(converted_before: bool, start: Start, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_length": 128, "finetune_loss": "kl", "finetune_steps": 2, "transfer_steps": 1}
    if converted_before:
        plain = start()[0].model
        convert_checkpoint(plain, tmp_path / "long", mechanism="hedgehog", max_length=128, verify=False)
        settings |= {"model": str(tmp_path / "long"), "mechanism": ""}
    report = linearise_attention(*start(**settings))
    assert report["input_length"] == 128
    assert report["kl"]["input_length"] == 64
    assert report["tokens"] == {"stage1": 4 * 128, "stage2": 2 * 4 * 64}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 128


def test_linearise_refuses_a_fine_tuned_hub_model_as_its_own_teacher(server: Hub, start: Start) -> None:
    for name, report in (("tuned", b'{"stage1": {}, "stage2": {}}'), ("transferred", b'{"stage1": {}}')):
        files = {"config.json": b"{}", "distillation_report.json": report}
        server.repos[f"writer/{name}"] = Repository("writer", branches={"main": files})
    with pytest.raises(OptionError, match="Stage 2 has changed the weights of 'writer/tuned'"):
        check_original(start(mechanism="", model="writer/tuned")[0])
    check_original(start(mechanism="", model="writer/transferred")[0])


def test_linearise_loss_is_the_weighted_sum_of_its_parts(start: Start) -> None:
    model_args, _, args = start(certain=True, finetune_loss="mixed", kl_factor=3.0, temperature=2.0)
    teacher = Teacher.of(model_args, args, "mlm", "cpu")
    student = AutoModelForMaskedLM.from_pretrained(model_args.model).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    ids = torch.randint(10, 1000, (2, 64))
    labels = ids.masked_fill(torch.rand(2, 64) > 0.3, -100)
    mask = torch.ones_like(ids)
    mask[1, 40:] = 0
    labels[1, 40:] = -100
    inputs = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    losses, parts, _ = teacher.loss(student, inputs, torch.no_grad())
    original = AutoModelForMaskedLM.from_pretrained(model_args.model).eval()
    with torch.no_grad():
        own, theirs = (model(**inputs) for model in (student, original))
    at = labels != -100
    wanted, found = ((outputs.logits[at].double() / 2).log_softmax(-1) for outputs in (theirs, own))
    assert float(parts["kl"]) == pytest.approx(4 * float((wanted.exp() * (wanted - found)).sum(-1).mean()), rel=1e-4)
    assert float(parts["lm"]) == pytest.approx(float(own.loss), rel=1e-5)
    assert float(losses.detach().sum()) == pytest.approx(float(parts["lm"] + 3 * parts["kl"]), rel=1e-5)


@pytest.mark.parametrize("kind", ["mlm", "clm", "llama"])
def test_predictions_at_equal_the_logits_at_these_tokens(kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    loader: Any = AutoModelForMaskedLM if kind == "mlm" else AutoModelForCausalLM
    model = frozen_teacher(loader.from_pretrained(checkpoint(kind, tmp_path / kind, tokenizer)))
    ids, at = torch.randint(10, 1000, (2, 30)), torch.rand(2, 30) > 0.5
    with predictions_at(model, at):
        some = model(input_ids=ids).logits
    torch.testing.assert_close(some, model(input_ids=ids).logits[at])


@pytest.mark.thorough
def test_predictions_at_works_for_the_heads_of_all_families() -> None:
    ids, at = torch.randint(10, 60, (2, 12)), torch.rand(2, 12) > 0.5
    for base in TEXT_FAMILIES:
        config = small_config(base, pad_token_id=0, mask_token_id=5)
        if not config.is_encoder_decoder and predicts_tokens(base):
            model = getattr(transformers, language_model(base))(config).eval()
            with torch.no_grad(), predictions_at(model, at):
                some = model(input_ids=ids).logits
            with torch.no_grad():
                torch.testing.assert_close(some, model(input_ids=ids).logits[at], msg=base)


def test_linearise_with_a_teacher_ends_at_nan_in_the_loss(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Teacher.loss

    def spoilt(self: Teacher, student: Any, inputs: Any, autocast: Any) -> Any:
        total, parts, outputs = loss(self, student, inputs, autocast)
        return total * float("nan"), parts, outputs

    monkeypatch.setattr(Teacher, "loss", spoilt)
    with pytest.raises(DivergenceError, match=re.escape("The loss is not a finite number at step 1; no checkpoint")):
        linearise_attention(*start(stage="2", finetune_loss="kl"))


def test_linearise_refuses_losses_and_teachers_that_do_not_fit(start: Start, tmp_path: Path) -> None:
    linearise_attention(*start("done", transfer_steps=1, finetune_steps=1))
    cases: list[tuple[str, dict[str, Any]]] = [
        ("--finetune-loss must be one of lm, kl, mixed, not 'js'", {"finetune_loss": "js"}),
        ("add --finetune-loss kl or mixed", {"kl_factor": 2.0}),
        ("add --finetune-loss mixed, or leave it out", {"finetune_loss": "kl", "kl_factor": 2.0}),
        ("cannot be its own teacher; add --teacher", {"finetune_loss": "kl", "model": str(tmp_path / "done"), "mechanism": ""}),
    ]
    for words, changes in cases:
        with pytest.raises(OptionError, match=re.escape(words)):
            linearise_attention(*start(**{"stage": "2", **changes}))
