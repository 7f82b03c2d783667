"""A short checkpoint becomes a long one: same names, same values, loaded by transformers' Auto classes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import hf_longattn
from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.errors import OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.training.tasks import task_names
from tests.cases import every_case
from tests.reports import tensor_counts

from .conftest import CLASSES, LENGTH

Checkpoint = Callable[..., Path]
WINDOW = {"mechanism": "window", "window": 16}


def statuses(report: hf_longattn.ConversionReport) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


@pytest.mark.thorough
@every_case("name", CLASSES, of=4)
def test_every_head_is_converted_and_verified(name: str, built: Callable[[str], Path], tmp_path: Path) -> None:
    report = convert_checkpoint(built(name), tmp_path / "long", mechanism="window", window=16, max_length=200)
    assert report.verified
    found = statuses(report)
    assert found["tensors"] == found["padding changes nothing"] == found["finite at the new length"] == "passed"
    assert found["equal where the mechanism covers the input"] == "passed"
    assert found["equal at the old length with full attention"] == "passed"
    config = json.loads((tmp_path / "long" / "config.json").read_text())
    assert config["architectures"] == [f"Long{name}"]
    assert config["model_type"].startswith("long_")
    assert config["long_attention"].items() >= WINDOW.items()
    in_full = "exact_length" in config["long_attention"]
    assert found["at the old length"] == ("measured" if in_full else "needs training")
    assert json.loads((tmp_path / "long" / "conversion_report.json").read_text())["verified"]


@every_case("name", ["BertForQuestionAnswering", "LlamaForCausalLM"])
def test_full_attention_needs_training_only_beyond_the_old_length(name: str, built: Callable[[str], Path], tmp_path: Path) -> None:
    positions = "rope:none" if name.startswith("Llama") else "auto"
    report = convert_checkpoint(built(name), tmp_path / name / "same", mechanism="full")
    assert report.verified
    assert not report.needs_training
    assert report.train_command is None
    report = convert_checkpoint(built(name), tmp_path / name / "long", mechanism="full", max_length=200, positions=positions)
    assert {check.name for check in report.checks if check.status == "needs training"} == {"positions at the new length"}
    assert report.verified
    assert report.train_command


@every_case(
    ("name", "mechanism", "command"),
    [
        ("BertForMaskedLM", {"mechanism": "hedgehog"}, "longattn train linearise --model {} --data YOUR_TEXTS"),
        ("BertForMaskedLM", WINDOW, "longattn train mlm --model {} --data YOUR_TEXTS"),
        ("GPT2LMHeadModel", WINDOW, "longattn train clm --model {} --data YOUR_TEXTS"),
        ("RobertaForSequenceClassification", WINDOW, "longattn train classify --model {} --data YOUR_TEXTS"),
        ("ElectraForPreTraining", WINDOW, "fine-tune "),
    ],
)
def test_report_names_the_training_of_each_head(
    name: str, mechanism: dict[str, Any], command: str, built: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / f"{name}-{mechanism['mechanism']}"
    report = convert_checkpoint(built(name), folder, long_attention=mechanism, max_length=200)
    assert (report.train_command or "").startswith(command.format(folder))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_memory_tokens_need_training_though_one_segment_holds_the_text(name: str, built: Callable[[str], Path], tmp_path: Path) -> None:
    report = convert_checkpoint(built(name), tmp_path / "long", mechanism="recurrent_memory", segment_length=120, max_length=200)
    assert report.verified
    assert report.needs_training
    assert ("train mlm" if name == "BertForMaskedLM" else "train clm") in (report.train_command or "")


@pytest.mark.thorough
def test_training_command_of_a_report_can_be_typed_as_it_stands(built: Callable[[str], Path], tmp_path: Path) -> None:
    place = tmp_path / "mon modèle"
    report = convert_checkpoint(built("BertForMaskedLM"), place, mechanism="window", window=16, max_length=200)
    words = shlex.split(report.train_command or "")
    assert (words[words.index("--model") + 1], words[-1]) == (str(place), f"{place}-trained")
    assert words[:2] == ["longattn", "train"]
    assert words[2] in task_names()


def test_layers_with_different_exact_lengths_read_the_shortest_exactly(built: Callable[[str], Path]) -> None:
    layers = "0=window:window=8,exact_length=12;1=window:window=8,exact_length=20"
    plan = plan_conversion(built("BertForMaskedLM"), mechanism="window", window=8, layers=layers, max_length=100)
    assert plan.short_texts.length == 12


def test_plan_refuses_to_stretch_a_table_that_is_too_short(built: Callable[[str], Path]) -> None:
    with pytest.raises(OptionError, match=f"keep fewer with stretch:{LENGTH - 2}"):
        plan_conversion(built("BertForMaskedLM"), max_length=4 * LENGTH, positions=f"stretch:{LENGTH}")


def test_two_special_rows_of_roberta_are_kept_once(built: Callable[[str], Path], tmp_path: Path) -> None:
    convert_checkpoint(built("RobertaForMaskedLM"), tmp_path / "long", max_length=4 * LENGTH, verify=False)
    name = "roberta.embeddings.position_embeddings.weight"
    old = load_file(built("RobertaForMaskedLM") / "model.safetensors")[name]
    new = load_file(tmp_path / "long" / "model.safetensors")[name]
    assert new.shape[0] == 4 * LENGTH + 2
    assert torch.equal(new, torch.cat([old[:2], *[old[2:]] * 4]))
    assert json.loads((tmp_path / "long" / "config.json").read_text())["max_position_embeddings"] == 4 * LENGTH + 2


@pytest.mark.parametrize(
    ("name", "options"), [("BertForMaskedLM", {"mechanism": "full"}), ("RobertaForMaskedLM", {"mechanism": "window", "window": 8})]
)
def test_stretched_positions_are_equal_for_short_texts_and_change_longer_ones(
    name: str, options: dict[str, Any], built: Callable[[str], Path], tmp_path: Path
) -> None:
    report = convert_checkpoint(built(name), tmp_path / "long", max_length=200, positions="stretch", **options)
    assert report.verified
    assert report.needs_training
    checks = {check.name: check for check in report.checks}
    equal = checks["equal where positions are unchanged"]
    assert (equal.status, equal.values["length"]) == ("passed", 21)
    changed = [check for check in report.checks if check.status == "needs training"]
    assert changed
    assert all("stretch:20 changes the old positions after the first 21" in check.detail for check in changed)
    assert json.loads((tmp_path / "long" / "config.json").read_text())["position_extension"] == "stretch:20"


ROTARY = [name for name, (config, _) in CLASSES.items() if FAMILIES[getattr(transformers, config).model_type].rope]


@pytest.mark.thorough
@every_case("name", ROTARY, of=4)
def test_yarn_is_written_for_every_rotary_family(name: str, built: Callable[[str], Path], tmp_path: Path) -> None:
    convert_checkpoint(built(name), tmp_path / "long", mechanism="full", max_length=256, positions="rope:yarn")
    model = transformers.AutoModel.from_pretrained(tmp_path / "long")
    kinds = model.config.rope_parameters
    old = transformers.AutoConfig.from_pretrained(built(name)).rope_parameters
    written = kinds.get("full_attention", kinds)
    assert written | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": LENGTH} == written
    assert written.items() >= {key: value for key, value in old.get("full_attention", old).items() if key != "rope_type"}.items()
    assert kinds.get("sliding_attention") == old.get("sliding_attention")  # a layer with a window never looks beyond the old length
    report = json.loads((tmp_path / "long" / "conversion_report.json").read_text())
    assert "rope:yarn changes the old positions too" in json.dumps(report["checks"])


def test_tied_weights_stay_tied_and_are_stored_once_by_a_conversion(built: Callable[[str], Path], tmp_path: Path) -> None:
    convert_checkpoint(built("BertForMaskedLM"), tmp_path / "long", max_length=128, verify=False)
    assert "cls.predictions.decoder.weight" not in load_file(tmp_path / "long" / "model.safetensors")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "long")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.thorough
def test_conversion_leaves_out_buffers_of_the_old_length(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("GPT2LMHeadModel")
    tensors = load_file(source / "model.safetensors")
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    tensors["transformer.position_ids"] = torch.arange(LENGTH)[None]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=128)
    assert report.verified
    assert "transformer.h.0.attn.bias" not in load_file(tmp_path / "long" / "model.safetensors")


def renamed(source: Path, rename: Callable[[str], str]) -> None:
    """Store the tensors of a checkpoint under other names."""
    tensors = load_file(source / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in tensors.items()}, source / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "rename"),
    [
        ("BertForMaskedLM", lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")),
        ("GPT2LMHeadModel", lambda name: name.removeprefix("transformer.")),
    ],
    ids=["gamma and beta", "no prefix"],
)
def test_conversion_understands_tensor_names_of_old_checkpoints(
    name: str, rename: Callable[[str], str], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint(name)
    renamed(source, rename)
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=200)
    assert report.verified
    assert tensor_counts(report)["extended"] == 1
    assert "equal" in next(check.detail for check in report.checks if check.name == "equal at the old length with full attention")


def test_causal_bert_is_planned_and_verified_as_a_decoder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("BertForMaskedLM")
    config = json.loads((source / "config.json").read_text())
    changed = {**config, "architectures": ["BertLMHeadModel"], "is_decoder": True, "add_cross_attention": False}
    (source / "config.json").write_text(json.dumps(changed))
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=200)
    assert report.verified
    assert report.plan["costs"][0]["cache_bytes"] is not None


def test_rotary_positions_of_esm_cannot_be_scaled(built: Callable[[str], Path], tmp_path: Path) -> None:
    source = built("EsmForTokenClassification")
    with pytest.raises(OptionError, match="has rotary positions that transformers cannot scale"):
        convert_checkpoint(source, tmp_path / "long", mechanism="full", max_length=200, positions="rope:yarn")
    report = convert_checkpoint(source, tmp_path / "long", mechanism="full", max_length=200)
    assert (report.verified, report.plan["positions"]) == (True, "rope:none")
    assert [check.name for check in report.checks if check.status == "needs training"] == ["positions at the new length"]


def test_converted_esm_predicts_the_contacts_of_its_source(built: Callable[[str], Path], tmp_path: Path) -> None:
    """ESM's contact head reads the attention weights of all layers."""
    convert_checkpoint(built("EsmForMaskedLM"), tmp_path / "long", mechanism="window", window=2 * LENGTH, max_length=200, verify=False)
    short, long = (transformers.AutoModelForMaskedLM.from_pretrained(folder) for folder in (built("EsmForMaskedLM"), tmp_path / "long"))
    short.set_attn_implementation("eager")
    ids = torch.randint(4, 24, (2, 30))
    ids[:, 0], ids[0, -1], ids[1, 19], ids[1, 20:] = 0, 2, 2, 1
    mask = (ids != 1).long()
    with torch.no_grad():
        assert (short.predict_contacts(ids, mask) - long.predict_contacts(ids, mask)).abs().max() < 1e-5


def test_converted_modernbert_keeps_its_own_attention_by_default(built: Callable[[str], Path], tmp_path: Path) -> None:
    """Its local layers keep their window and the others attend to everything; rotary positions go on."""
    source = built("ModernBertForMaskedLM")
    report = convert_checkpoint(source, tmp_path / "long", max_length=256, positions="rope:none")
    assert [check.name for check in report.checks if check.status == "needs training"] == ["positions at the new length"]
    local = {"mechanism": "window", "window": 10}
    assert report.plan["long_attention"] == {"mechanism": "full", "layers": {"1": local, "2": local}}
    plain = transformers.AutoModelForMaskedLM.from_pretrained(source, max_position_embeddings=256)
    long = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "long")
    ids = torch.randint(5, 1000, (2, 200))
    mask = torch.ones_like(ids)
    mask[1, 150:] = 0
    with torch.no_grad():
        difference = plain(ids, attention_mask=mask).logits - long(ids, attention_mask=mask).logits
    assert difference[mask.bool()].abs().max() < 1e-5


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["MPNetForMaskedLM", "DebertaV2ForTokenClassification"])
def test_bases_with_terms_in_their_scores_get_a_window_by_default(name: str, built: Callable[[str], Path], tmp_path: Path) -> None:
    report = convert_checkpoint(built(name), tmp_path / "long", max_length=128)
    assert report.verified
    assert report.plan["long_attention"]["mechanism"] == "window"
