"""A plan compares every tensor of a file with the model's class, whatever name the file gives it, and refuses what does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.conversion.tensor_names import names_in_model
from hf_longattn.errors import CheckpointError
from hf_longattn.families import FAMILIES
from scripts.dev.tools.small_models import IN_FULL, NAMES
from tests.cases import every_case
from tests.shared_code import code_of_family

from .every_family import config_of, source_config

ANY_SIZE = ("siglip2", "siglip2_vision_model")
"""Bases that are not converted, since their images have any size; test_towers.py and test_images.py have the sentences."""
HEADS = [(base, head) for base in IN_FULL if base not in ANY_SIZE for head in FAMILIES[base].model_classes]
FIRST_HEADS = dict(reversed(HEADS))
INNER = (*NAMES["inner"], "n_inner", "mlp_ratio")
"""What configs call the width of the feed-forward layers, or its ratio to the model's."""


def saved(base: str, head: str, folder: Path) -> Path:
    FAMILIES[base].base_class(head)(source_config(base)).save_pretrained(folder)
    return folder


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def full_attention(base: str) -> dict[str, Any]:
    """The settings for full attention, of every tower in a model of several."""
    towers = FAMILIES[base].towers
    return {"towers": {name: {"mechanism": "full"} for name in towers}} if towers else {"mechanism": "full"}


def refusal(folder: Path) -> str:
    """The sentence of the plan, which a conversion says as well."""
    with pytest.raises(CheckpointError) as planned:
        plan_conversion(folder, mechanism="full")
    with pytest.raises(CheckpointError) as converted:
        convert_checkpoint(folder, folder.parent / "long", mechanism="full")
    assert str(converted.value) == str(planned.value)
    return str(planned.value)


@pytest.mark.thorough
@every_case(
    ("base", "head"),
    [pytest.param(base, head, marks=() if FIRST_HEADS[base] == head else pytest.mark.slow) for base, head in HEADS],
    of=9,
    code=code_of_family,
)
def test_plan_compares_every_tensor_of_a_file_with_the_class(base: str, head: str, tmp_path: Path) -> None:
    """Every one becomes a parameter or buffer, is a part of one, or is dropped for a reason; none is compared with nothing."""
    folder = saved(base, head, tmp_path / "short")
    plan = plan_conversion(folder, **full_attention(base))
    from_file = [tensor for tensor in plan.tensors if tensor.action not in ("added", "copied")]
    assert {tensor.header.name for tensor in from_file if tensor.header is not None} == plan.source.tensors.keys()
    assert all(tensor.reason for tensor in from_file if tensor.action == "dropped")
    written = [tensor.name for tensor in from_file if tensor.action != "dropped"]
    names = names_in_model(written, plan.architecture.skeleton(plan.config))
    assert [name for name in written if not names[name].exists] == []

    file = json.loads((folder / "config.json").read_text())
    part = next((name for name in ("encoder_config", "text_config") if name in file), "")
    values = file.get(part, file)  # of the layers with attention
    sizes = {name: values[name] for name in INNER if name in values} or {"n_inner": None}
    width = values.get("n_embd", values.get("hidden_size"))  # without a size of their own, inner layers are four times as wide
    changed = {name: 8 * width if size is None else 2 * size for name, size in sizes.items()}
    change_config(folder, **(changed if values is file else {part: {**values, **changed}}))
    with pytest.raises(CheckpointError, match=r"^(Tensor|The \d+ tensors from) '.* shape .*, but its config requires \("):
        plan_conversion(folder, **full_attention(base))


LAYERS = [
    ("bert", "BertForMaskedLM", "num_hidden_layers"),
    ("llama", "LlamaForCausalLM", "num_hidden_layers"),
    ("gpt2", "GPT2LMHeadModel", "n_layer"),
    ("bart", "BartForConditionalGeneration", "encoder_layers"),
    ("bart", "BartForConditionalGeneration", "decoder_layers"),
    ("t5", "T5ForConditionalGeneration", "num_layers"),
    ("t5", "T5ForConditionalGeneration", "num_decoder_layers"),
    ("opt", "OPTForCausalLM", "num_hidden_layers"),
    ("mixtral", "MixtralForCausalLM", "num_hidden_layers"),
    ("vit", "ViTForImageClassification", "num_hidden_layers"),
    ("albert", "AlbertForMaskedLM", "num_hidden_groups"),
    ("albert", "AlbertForMaskedLM", "inner_group_num"),
]


@pytest.mark.thorough
@every_case(("base", "head", "field"), LAYERS)
def test_plan_refuses_a_file_with_more_or_fewer_layers_than_its_config(base: str, head: str, field: str, tmp_path: Path) -> None:
    folder, config = tmp_path / "short", source_config(base)
    count = max(2, getattr(config, field))
    setattr(config, field, count)
    FAMILIES[base].base_class(head)(config).save_pretrained(folder)
    change_config(folder, **{field: count + 2, **({"num_hidden_layers": 12} if base == "albert" else {})})
    assert re.match(rf"\d+ tensors that a {head} needs are missing in ", refusal(folder))
    change_config(folder, **{field: count - 1})
    assert re.search(rf"has tensors of layer {count - 1} \(.*\), but {field} is {count - 1}; correct its config\.json", refusal(folder))


def test_plan_counts_layers_that_are_missing_among_others(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("BertForMaskedLM")
    change_config(folder, num_hidden_layers=4)
    assert refusal(folder).startswith("32 tensors that a BertForMaskedLM needs are missing in ")
    weights = load_file(folder / "model.safetensors")
    extra = {name.replace("layer.1.", f"layer.{number}."): value for name, value in weights.items() for number in (1, 2, 3)}
    save_file({name: value.clone() for name, value in extra.items()}, folder / "model.safetensors", {"format": "pt"})
    change_config(folder, num_hidden_layers=2)
    assert "has tensors of the layers 2 to 3 (bert.encoder.layer), but num_hidden_layers is 2;" in refusal(folder)


def test_plan_keeps_tensors_that_the_class_does_not_read(tmp_path: Path) -> None:
    """A pooler and the head of another objective, next to a class without them."""
    folder = saved("bert", "BertForPreTraining", tmp_path / "short")
    change_config(folder, architectures=["BertForMaskedLM"])
    plan = plan_conversion(folder, mechanism="full")
    assert {"bert.pooler.dense.weight", "cls.seq_relationship.weight"} <= {
        tensor.name for tensor in plan.tensors if tensor.action == "kept"
    }


@pytest.mark.parametrize(
    ("base", "body", "head"), [("bert", "BertModel", "BertForMaskedLM"), ("vit", "ViTModel", "ViTForImageClassification")]
)
def test_plan_accepts_a_head_without_weights_in_the_file(base: str, body: str, head: str, tmp_path: Path) -> None:
    folder = saved(base, body, tmp_path / "short")
    change_config(folder, architectures=[head])
    assert plan_conversion(folder, mechanism="full").architecture.source_class == head


def test_plan_counts_and_compares_the_experts_of_a_layer_one_by_one(tmp_path: Path) -> None:
    """A file holds every expert's matrices, which the class has as one tensor."""
    folder = saved("mixtral", "MixtralForCausalLM", tmp_path / "short")
    experts = config_of("mixtral").num_local_experts
    weights = load_file(folder / "model.safetensors")
    rows = next(value for name, value in weights.items() if name.endswith("experts.1.w2.weight"))
    for name, sentence in {
        "experts.1.w2.weight": rf"^The {experts - 1} tensors from .* become 'model\.layers\.0\.mlp\.experts\.down_proj' with the shape",
        "experts.0.w1.weight": r"^The \d+ tensors from .* become 'model\.layers\.0\.mlp\.experts\.gate_up_proj' with the shape|cannot make",
    }.items():
        fewer = {key: value for key, value in weights.items() if not (key.endswith(name) and ".0." in key.partition("experts")[0])}
        save_file(fewer, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=sentence):
            plan_conversion(folder, mechanism="full")
    uneven = {key: torch.zeros(rows.shape[0], 2) if key.endswith("experts.1.w2.weight") else value for key, value in weights.items()}
    save_file(uneven, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"^transformers cannot make 'model\.layers\.0\.mlp\.experts\.down_proj' from .*: "):
        plan_conversion(folder, mechanism="full")


def test_plan_finds_an_unnamed_class_by_renamed_tensors(tmp_path: Path) -> None:
    folder = saved("vit", "ViTForImageClassification", tmp_path / "short")
    change_config(folder, architectures=None)
    assert plan_conversion(folder, mechanism="full").architecture.source_class == "ViTForImageClassification"
