"""Conversions of classes that have no Long class (--generic), and of models in which mechanisms were enabled."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import hf_longattn
from hf_longattn.cli.app import app
from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.conversion.seeded_inputs import seeded_inputs
from hf_longattn.errors import BackendError, CheckpointError, LongAttentionError, OptionError
from hf_longattn.export import compress_checkpoint, export_checkpoint, export_native
from hf_longattn.inspect import inspect_checkpoint
from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.modeling.attach.attention_sites import attention_sites
from scripts.dev.tools.every_config import small_config
from tests.cases import every_case
from tests.damage import edit_json
from tests.generic import load_generic
from tests.reports import statuses, tensor_counts
from tests.saved import change_json, read_json
from tests.trained import tokenizer_of
from tests.unsupported import (
    CHANNELS,
    DECODER,
    ENCODER_DECODER,
    IMAGES,
    LAGS,
    OWN_ATTENTION,
    ROTARY,
    SERIES,
    SLIDING,
    SPECTROGRAMS,
    SPEECH,
    SYNTHESIS,
    TEXT_AND_IMAGES,
    WITHOUT_WINDOWS,
)

pytestmark = pytest.mark.usefixtures("families_hidden")

TEXT = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
STEPS = {
    "patch_length": 8,
    "context_length": 128,
    "horizon_length": 8,
    "output_quantile_len": 8,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "head_dim": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
CODES = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CODEC = {
    **CODES,
    "num_key_value_heads": 4,
    "model_type": "mimi",
    "num_filters": 8,
    "num_residual_layers": 1,
    "upsampling_ratios": [4, 2],
    "codebook_size": 64,
    "vector_quantization_hidden_dimension": 16,
    "codebook_dim": 16,
    "num_quantizers": 4,
    "num_semantic_quantizers": 1,
    "head_dim": 8,
    "sliding_window": 20,
    "upsample_groups": 32,
    "max_position_embeddings": 200,
}
FRAMES = {
    **CODES,
    "num_codebooks": 4,
    "vocab_size": 68,
    "text_vocab_size": 100,
    "max_position_embeddings": 64,
    "pad_token_id": 90,
    "bos_token_id": 91,
    "audio_token_id": 92,
    "audio_eos_token_id": 93,
    "codebook_pad_token_id": 66,
    "codebook_eos_token_id": 0,
    "depth_decoder_config": {
        **CODES,
        "num_codebooks": 4,
        "vocab_size": 68,
        "backbone_hidden_size": 32,
        "max_position_embeddings": 5,
    },
    "codec_config": CODEC,
}
DETECTOR = f"{IMAGES}ForObjectDetection"
IMAGE_TYPE, OWN_ATTENTION_TYPE = (
    getattr(transformers, f"{name}Config").model_type for name in (IMAGES, OWN_ATTENTION)
)
CASES = {
    DETECTOR: 2,
    f"{TEXT_AND_IMAGES}Model": 4,
    f"{ENCODER_DECODER}ForConditionalGeneration": 6,
    SPECTROGRAMS: 2,
    f"{SPEECH}Model": 6,
    f"{DECODER}ForCausalLM": 2,
    f"{ROTARY}ForCausalLM": 2,
    f"{SERIES}ModelForPrediction": 2,
    f"{CHANNELS}ForPrediction": 2,
    f"{LAGS}ForPrediction": 6,
    f"{SYNTHESIS}ForConditionalGeneration": 8,
}
"""Class -> how many attention modules it has."""
VALUES: dict[str, dict[str, Any]] = {
    f"{ROTARY}ForCausalLM": {**TEXT, "num_key_value_heads": 2, "max_position_embeddings": 64},
    f"{SERIES}ModelForPrediction": STEPS,
    f"{SYNTHESIS}ForConditionalGeneration": FRAMES,
}


def saved(name: str, folder: Path, **changes: Any) -> Path:
    model_class = getattr(transformers, name)
    if name in CASES and name not in VALUES:
        config: Any = small_config(model_class.config_class.model_type)
    else:
        config = model_class.config_class(**{**VALUES.get(name, TEXT), **changes})
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    return folder


def run(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return next(
            value for value in model.eval()(**seeded_inputs(model)).values() if isinstance(value, torch.Tensor)
        )


@pytest.mark.thorough
@every_case("name", CASES, of=4)
def test_generic_result_has_the_mechanism_with_its_parameters(name: str, tmp_path: Path) -> None:
    source = saved(name, tmp_path / "plain")
    report = convert_checkpoint(source, tmp_path / "long", generic=True, mechanism="hedgehog")
    assert statuses(report)["equal with the source's attention"] == "passed"
    assert report.plan["generic"]
    assert tensor_counts(report)["new"] >= 4
    config = read_json(tmp_path / "long")
    plain_type = read_json(source)["model_type"]
    assert (config["model_type"], config["architectures"]) == (f"long_generic_{plain_type}", [f"LongGeneric{name}"])
    assert config["long_attention"] == {"mechanism": "hedgehog"}
    config = transformers.AutoConfig.from_pretrained(tmp_path / "long")
    assert (type(config).__name__, config.model_type) == (f"LongGeneric{type(config).__mro__[2].__name__}", plain_type)

    model = load_generic(tmp_path / "long")
    assert type(model) is getattr(transformers, name)
    assert model.config.model_type == plain_type  # transformers looks up weight conversions by it
    assert sum(isinstance(module, Mechanism) for module in model.modules()) == CASES[name]
    written = load_file(tmp_path / "long" / "model.safetensors")
    own = {key: values for key, values in written.items() if ".long_attention." in key}
    assert own

    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == written.keys()
    assert all(torch.equal(again[key], values) for key, values in written.items())
    assert read_json(tmp_path / "again")["model_type"] == f"long_generic_{plain_type}"
    read = load_generic(tmp_path / "again").state_dict()
    assert all(torch.equal(read[key], values) for key, values in model.state_dict().items())

    # transformers renames its weights by the model type, which is another one in this folder
    if name.startswith(SERIES):
        return
    # the class asked for by its name; transformers warns
    plain = getattr(transformers, name).from_pretrained(tmp_path / "long")
    assert torch.allclose(run(plain), run(getattr(transformers, name).from_pretrained(source)), atol=1e-6)
    assert (run(plain) - run(model)).abs().max() > 0


@every_case("name", CASES, of=2)
def test_generic_full_attention_equals_the_source(name: str, tmp_path: Path) -> None:
    report = convert_checkpoint(saved(name, tmp_path / "plain"), tmp_path / "long", generic=True, mechanism="full")
    assert not report.needs_training
    assert statuses(report)["with the mechanism"] == "passed"
    files = [(folder / "model.safetensors") for folder in (tmp_path / "plain", tmp_path / "long")]
    assert all(torch.equal(load_file(files[1])[key], values) for key, values in load_file(files[0]).items())


@pytest.mark.thorough
def test_generic_conversion_extends_rotary_positions_and_keeps_windows(tmp_path: Path) -> None:
    sizes = {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    source = saved(f"{SLIDING}ForCausalLM", tmp_path / "plain", sliding_window=20, **sizes)
    report = convert_checkpoint(source, tmp_path / "long", generic=True, max_length=256)
    assert not report.needs_training
    config = load_generic(tmp_path / "long").config
    assert (config.max_position_embeddings, config.long_attention) == (256, {"mechanism": "window", "window": 20})
    convert_checkpoint(
        source, tmp_path / "yarn", generic=True, mechanism="full", max_length=256, positions="rope:yarn"
    )
    scaled = load_generic(tmp_path / "yarn")
    assert scaled.config.rope_parameters["rope_type"] == "yarn"
    assert scaled(torch.randint(5, 200, (1, 200))).logits.isfinite().all()


def test_refusal_of_swin_does_not_send_to_generic(tmp_path: Path) -> None:
    config = transformers.SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    transformers.SwinModel(config).save_pretrained(tmp_path / "plain")
    with pytest.raises(CheckpointError, match="needs none: it attends within windows, so") as refusal:
        plan_conversion(tmp_path / "plain")
    assert "--generic" not in str(refusal.value)


@pytest.mark.thorough
def test_generic_conversion_ignores_windows_that_are_off(tmp_path: Path) -> None:
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    }
    source = saved(
        f"{WITHOUT_WINDOWS}ForCausalLM",
        tmp_path / "plain",
        num_key_value_heads=2,
        max_position_embeddings=64,
        **experts,
    )
    report = convert_checkpoint(source, tmp_path / "long", generic=True, mechanism="full", max_length=64)
    assert not report.needs_training
    model = load_generic(tmp_path / "long")
    assert (model.config.sliding_window, model.config.long_attention["mechanism"]) == (0, "full")
    assert not model.config.long_attention.get("layers")


@every_case(
    ("name", "arguments", "error", "sentence"),
    [
        (
            f"{SERIES}ModelForPrediction",
            {"max_length": 256},
            OptionError,
            f"cannot change the positions of a {SERIES}",
        ),
        (f"{CHANNELS}ForPrediction", {"max_length": 256}, OptionError, f"cannot change the positions of a {CHANNELS}"),
        (DETECTOR, {"max_length": 4096}, OptionError, f"cannot change the positions of a {DETECTOR}"),
        (DETECTOR, {"remote_code": True}, OptionError, "--generic and --remote-code exclude each other"),
        (DETECTOR, {"max_decoder_length": 9}, OptionError, "keeps its other sizes with --generic; leave it out"),
        (DETECTOR, {"mechanism": "recurrent_memory"}, BackendError, "which only Long classes do"),
        (f"{ROTARY}ForCausalLM", {"max_length": 8}, LongAttentionError, "a maximum length of 8 is too small"),
        ("LlamaForCausalLM", {}, CheckpointError, "has Long classes; leave --generic out"),
        (
            f"{OWN_ATTENTION}ForCausalLM",
            {},
            BackendError,
            "ForCausalLM does not take its attention from transformers' AttentionInterface",
        ),
    ],
)
def test_generic_conversion_refuses_settings_that_do_not_apply(
    name: str, arguments: dict[str, Any], error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    changes = {"hidden_size": 32, "n_layer": 1, "n_head": 4} if name.startswith("Bloom") else {}
    source = saved(name, tmp_path / "plain", **changes)
    with pytest.raises(error, match=sentence) as caught:
        convert_checkpoint(source, tmp_path / "long", generic=True, **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "long").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            DETECTOR,
            f"'{IMAGE_TYPE}' model, which has no Long classes; --generic may add mechanisms to its plain class; Long",
        ),
        (
            f"{OWN_ATTENTION}ForCausalLM",
            f"'{OWN_ATTENTION_TYPE}' model, which has no Long classes, not even with --generic, since "
            f"{OWN_ATTENTION}ForCausalLM does not",
        ),
    ],
)
def test_refusal_of_a_class_without_long_classes_names_generic(name: str, sentence: str, tmp_path: Path) -> None:
    changes = {"hidden_size": 32, "n_layer": 1, "n_head": 4} if name.startswith("Bloom") else {}
    with pytest.raises(CheckpointError, match=sentence):
        plan_conversion(saved(name, tmp_path / "plain", **changes), mechanism="window")


def test_conversion_refuses_layers_of_timm(tmp_path: Path) -> None:
    """By the config alone: timm need not be installed."""
    config = {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperForImageClassification"],
        "architecture": "vit_base_patch16_224",
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"timm_model.cls_token": torch.zeros(1, 1, 8)}, tmp_path / "model.safetensors", {"format": "pt"})
    sentence = "not even with --generic, since TimmWrapperForImageClassification does not take its attention from"
    with pytest.raises(CheckpointError, match=sentence):
        plan_conversion(tmp_path, mechanism="window2d", image_size=448)
    with pytest.raises(BackendError, match="TimmWrapperForImageClassification does not take its attention from"):
        plan_conversion(tmp_path, mechanism="window2d", generic=True)


class TestLoading:
    def test_loading_refuses_a_generic_folder_without_a_mechanism(self, tmp_path: Path) -> None:
        broken = saved(DETECTOR, tmp_path / "plain")
        change_json(
            broken,
            model_type=f"long_generic_{IMAGE_TYPE}",
            architectures=[f"LongGeneric{IMAGES}Model"],
            long_attention=None,
        )
        with pytest.raises(OptionError, match="long_attention names no mechanism"):
            transformers.AutoModel.from_pretrained(broken)

    def test_loading_info_of_a_generic_folder_is_that_of_any_model(self, tmp_path: Path) -> None:
        convert_checkpoint(
            saved(DETECTOR, tmp_path / "plain"), tmp_path / "long", generic=True, mechanism="hedgehog", verify=False
        )
        load = transformers.AutoModelForObjectDetection.from_pretrained
        model, info = load(tmp_path / "long", output_loading_info=True, dtype="bfloat16")
        assert (type(model).__name__, model.dtype) == (DETECTOR, torch.bfloat16)
        assert not any(info.values())


def test_generic_conversion_by_command_loads_and_is_inspected(tmp_path: Path) -> None:
    source = saved(DETECTOR, tmp_path / "plain")
    arguments = [
        "convert",
        str(source),
        str(tmp_path / "long"),
        "--generic",
        "--mechanism",
        "window",
        "--option",
        "window=8",
    ]
    planned = CliRunner().invoke(app, ["plan", str(source), *arguments[3:]])
    assert planned.exit_code == 0
    assert "inputs as its class reads them" in planned.output
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0
    loads = f'model = AutoModelForObjectDetection.from_pretrained("{tmp_path / "long"}").eval()'
    assert loads in (tmp_path / "long" / "README.md").read_text()
    assert json.loads(done.stdout)["train_command"] == f"fine-tune {tmp_path / 'long'} with transformers' Trainer"
    assert load_generic(tmp_path / "long").config.long_attention == {"mechanism": "window", "window": 8}
    inspected = inspect_checkpoint(tmp_path / "long")
    assert (inspected.generic, inspected.attention.mechanism, inspected.class_name) == (True, "window", DETECTOR)
    with pytest.raises(CheckpointError, match=rf"is already a long checkpoint \(long_generic_{IMAGE_TYPE}\)"):
        plan_conversion(tmp_path / "long", mechanism="window")


@pytest.mark.slow
def test_compress_takes_a_generic_folder_and_export_refuses_its_decoder(tmp_path: Path) -> None:
    sizes = {
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    source = saved(f"{ROTARY}ForCausalLM", tmp_path / "plain", **sizes)
    convert_checkpoint(source, tmp_path / "long", generic=True, mechanism="window", window=8, verify=False)
    model = load_generic(tmp_path / "long").eval()
    ids = torch.arange(5, 53)[None]
    with torch.no_grad():
        before, after = (model(input_ids=row).logits[0] for row in (ids, ids.where(ids != 15, 90)))
    assert (before != after).any(-1).nonzero().flatten().tolist() == list(range(10, 18))
    with pytest.raises(CheckpointError, match=r"A graph is an encoder, and a .* has a decoder"):
        export_checkpoint(tmp_path / "long", tmp_path / "graph")
    compress_checkpoint(tmp_path / "long", tmp_path / "small", method="bf16", length=48, documents=1)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert (model.dtype, {site.mechanism.name for site in attention_sites(model)}) == (torch.bfloat16, {"window"})
    with pytest.raises(CheckpointError, match="has no stock form: A LongGenericArceeForCausalLM has none"):
        export_native(tmp_path / "long", tmp_path / "stock")


def test_tokenizer_of_a_generic_folder_is_found_without_the_model_type(tmp_path: Path) -> None:
    source = saved(f"{ROTARY}ForCausalLM", tmp_path / "plain", vocab_size=900)
    tokenizer_of("gpt2").save_pretrained(source)
    edit_json("tokenizer_config.json", tokenizer_class=...)(source)
    convert_checkpoint(source, tmp_path / "long", generic=True, mechanism="full", verify=False)
    before, after = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "long"))
    assert type(after) is type(before)
    assert after("long documents")["input_ids"] == before("long documents")["input_ids"]


def test_enabled_model_is_saved_and_loaded_with_its_mechanisms(tmp_path: Path) -> None:
    saved(f"{ROTARY}ForCausalLM", tmp_path / "plain")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    plain_type = model.config.model_type
    hf_longattn.enable_long_attention(model, {"mechanism": "hedgehog"})
    ids = torch.randint(5, 200, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids).logits
    for config in (copy.deepcopy(model).config, pickle.loads(pickle.dumps(model.config))):
        assert json.loads(config.to_json_string())["model_type"] == f"long_generic_{plain_type}"
        assert config.to_dict() == model.config.to_dict()
    model.save_pretrained(tmp_path / "long")
    for load in (load_generic, transformers.AutoModelForCausalLM.from_pretrained):
        with torch.no_grad():
            assert torch.equal(load(tmp_path / "long")(ids).logits, expected)
