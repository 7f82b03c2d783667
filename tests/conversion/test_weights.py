"""The weights of a result: loaded and written by transformers, complete, in shards and dtypes as asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import hf_longattn
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import CheckpointError
from hf_longattn.families import FAMILIES
from tests.cases import every_case

from .every_family import source_config

Checkpoint = Callable[..., Path]
WINDOW = {"mechanism": "window", "window": 16, "max_length": 128}


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        convert_checkpoint(folder, folder.parent / "long", mechanism="full", verify=False)
    assert not (folder.parent / "long").exists()
    return str(refused.value)


LAYERS = [
    ("bert", "BertForMaskedLM", "num_hidden_layers"),
    ("llama", "LlamaForCausalLM", "num_hidden_layers"),
    ("gpt2", "GPT2LMHeadModel", "n_layer"),
    ("bart", "BartForConditionalGeneration", "encoder_layers"),
    ("t5", "T5ForConditionalGeneration", "num_decoder_layers"),
    ("mixtral", "MixtralForCausalLM", "num_hidden_layers"),
    ("vit", "ViTForImageClassification", "num_hidden_layers"),
]


@pytest.mark.thorough
@every_case(("base", "head", "field"), LAYERS)
def test_conversion_refuses_more_or_fewer_layers_than_the_config_says(base: str, head: str, field: str, tmp_path: Path) -> None:
    folder, config = tmp_path / "short", source_config(base)
    count = max(2, getattr(config, field))
    setattr(config, field, count)
    FAMILIES[base].base_class(head)(config).save_pretrained(folder)
    change_config(folder, **{field: count + 2})
    assert re.match(r"\d+ tensors that a \w+ needs are missing in ", refusal(folder))
    change_config(folder, **{field: count - 1})
    assert "has tensors of layers that its config.json does not have" in refusal(folder)


def test_conversion_refuses_a_config_with_other_shapes_or_layers(checkpoint: Checkpoint) -> None:
    source = checkpoint("BertForMaskedLM")
    change_config(source, num_hidden_layers=4)
    assert refusal(source).startswith("32 tensors that a LongBertForMaskedLM needs are missing in ")
    change_config(source, num_hidden_layers=1)
    assert "has tensors of layers that its config.json does not have, the first is 'bert.encoder.layer.1." in refusal(source)
    change_config(source, num_hidden_layers=2, intermediate_size=96)
    assert re.search(r"intermediate\.dense\.\w+' of .* has the shape \(.*, but its config requires \(", refusal(source))


@pytest.mark.parametrize(
    ("body", "head", "settings"),
    [
        ("BertModel", "BertForQuestionAnswering", WINDOW),
        ("ViTModel", "ViTForImageClassification", {"mechanism": "full"}),
        ("LongformerModel", "LongformerForTokenClassification", {}),
    ],
)
def test_head_without_weights_stays_without_and_hidden_states_are_compared(
    body: str, head: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config_class = getattr(transformers, body).config_class
    more = {"BertModel": {"max_position_embeddings": 64}, "LongformerModel": {"attention_window": 16, "vocab_size": 100}}
    config = config_class(**sizes, **more.get(body, {}))
    getattr(transformers, body)(config).save_pretrained(tmp_path / "short")
    change_config(tmp_path / "short", architectures=[head])
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", **settings)
    assert any("the source has no weights for its head" in check.detail for check in report.checks)
    written = load_file(tmp_path / "long" / "model.safetensors")
    assert not [name for name in written if re.match(r"(qa_outputs|classifier)\.", name)]


def test_no_part_of_a_tied_head_without_weights_is_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The bias of BERT's decoder is tied to that of the head, and both are missing."""
    source = checkpoint("BertForMaskedLM")
    tensors = load_file(source / "model.safetensors")
    body = {name: value for name, value in tensors.items() if not name.startswith("cls.")}
    save_file(body, source / "model.safetensors", {"format": "pt"})
    convert_checkpoint(source, tmp_path / "long", **WINDOW)
    assert load_file(tmp_path / "long" / "model.safetensors").keys() == body.keys()


def test_tensors_that_the_class_does_not_read_are_left_out(tmp_path: Path) -> None:
    """Beside a masked language model, a head of next sentences."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
    config = transformers.BertConfig(**sizes, max_position_embeddings=64)
    transformers.BertForPreTraining(config).save_pretrained(tmp_path / "short")
    change_config(tmp_path / "short", architectures=["BertForMaskedLM"])
    convert_checkpoint(tmp_path / "short", tmp_path / "long", **WINDOW)
    written, expected = load_file(tmp_path / "long" / "model.safetensors"), load_file(tmp_path / "short" / "model.safetensors")
    assert expected.keys() - written.keys() == {name for name in expected if re.search(r"seq_relationship|pooler", name)}


def test_conversion_reads_a_source_in_shards_and_refuses_a_missing_shard(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("BertModel")
    transformers.BertModel.from_pretrained(source).save_pretrained(source, max_shard_size="400KB")
    (source / "model.safetensors").unlink(missing_ok=True)
    assert convert_checkpoint(source, tmp_path / "long", **WINDOW).verified
    next(source.glob("model-00002*")).unlink()
    with pytest.raises(CheckpointError, match=r"cannot be loaded|has no weights"):
        convert_checkpoint(source, tmp_path / "other", **WINDOW)


@pytest.mark.parametrize("narrow", [("bert.embeddings.",), ("bert.encoder.", "cls."), ("",), ()], ids=["table", "layers", "all", "none"])
@pytest.mark.parametrize("named", ["float32", "bfloat16"])
def test_every_tensor_keeps_its_dtype_and_the_config_the_one_that_it_names(
    named: str, narrow: tuple[str, ...], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint("BertForMaskedLM")
    tensors = load_file(source / "model.safetensors")
    tensors = {name: value.bfloat16() if name.startswith(narrow) else value for name, value in tensors.items()}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    change_config(source, dtype=named)
    assert convert_checkpoint(source, tmp_path / "long", **WINDOW).verified
    written = load_file(tmp_path / "long" / "model.safetensors")
    assert {name: value.dtype for name, value in written.items()} == {name: value.dtype for name, value in tensors.items()}
    assert all(torch.equal(written[name][: len(value)], value) for name, value in tensors.items())
    assert json.loads((tmp_path / "long" / "config.json").read_text())["dtype"] == named


def test_experts_of_a_mixture_are_those_of_the_source(tmp_path: Path) -> None:
    """A file holds every expert's matrices, which the class has as one tensor."""
    config = source_config("mixtral")
    short = transformers.MixtralForCausalLM(config)
    short.save_pretrained(tmp_path / "short")
    assert convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="full").verified
    long = hf_longattn.LongMixtralForCausalLM.from_pretrained(tmp_path / "long").state_dict()
    assert all(torch.equal(long[name], value) for name, value in short.state_dict().items())


def test_checkpoint_without_the_name_of_its_class_becomes_the_base_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("BertModel")
    change_config(source, architectures=None)
    convert_checkpoint(source, tmp_path / "long", **WINDOW)
    assert json.loads((tmp_path / "long" / "config.json").read_text())["architectures"] == ["LongBertModel"]
    tensors = load_file(source / "model.safetensors")
    save_file({name: value * float("nan") for name, value in tensors.items()}, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        convert_checkpoint(source, tmp_path / "nan", **WINDOW)


def test_conversion_refuses_a_config_of_a_far_larger_model_before_it_takes_memory(checkpoint: Checkpoint) -> None:
    source = checkpoint("BertForMaskedLM")
    change_config(source, intermediate_size=40_000_000)
    assert "bytes; is it that of another model?" in refusal(source)
