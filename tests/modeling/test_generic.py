"""`enable_long_attention` and `longattn convert --generic` on architectures without a Long class: texts, towers and
speech."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import BackendError, OptionError
from hf_longattn.families import LongGPT2Config, LongGPT2LMHeadModel, enable_long_attention
from hf_longattn.modeling.attach.attention_sites import CAUSAL_BY_CALL, attention_sites, mechanisms_on
from hf_longattn.modeling.generic import towers_of
from scripts.dev.tools.every_config import model_class, other_inputs, small_config
from tests.cases import every_case
from tests.conversion.test_generic import FRAMES
from tests.generic import load_generic
from tests.reference.small_models import plain_model, tokens
from tests.reports import statuses
from tests.unsupported import SYNTHESIS

CASES = ("bert", "albert", "modernbert", "gpt2", "mistral", "bart", "t5", "vit", "whisper", "wav2vec2")


def build(case: str) -> tuple[Any, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = model_class(case)(small_config(case)).eval()
    if case in ("vit", "whisper", "wav2vec2"):
        return model, {
            name: value.float() if value.is_floating_point() else value for name, value in other_inputs(model).items()
        }
    return model, {"input_ids": tokens(2, 40)} | (
        {"decoder_input_ids": tokens(2, 30)} if case in ("bart", "t5") else {}
    )


@pytest.mark.thorough
@every_case("case", CASES)
def test_enabled_full_attention_changes_nothing_and_a_window_does(case: str) -> None:
    model, inputs = build(case)
    own_window = {
        "mistral": {"mechanism": "window", "window": 4},
        "modernbert": {"mechanism": "full", "layers": {1: {"mechanism": "window", "window": 4}}},
    }
    with torch.no_grad():
        expected = model(**inputs)[0]
        assert enable_long_attention(model, own_window.get(case, {"mechanism": "full"})) is model
        assert (model(**inputs)[0] - expected).abs().max() < 1e-5
        enable_long_attention(model, {"mechanism": "window", "window": 2})
        assert (model(**inputs)[0] - expected).abs().max() > 1e-5
        model.set_attn_implementation("sdpa")
        assert torch.equal(model(**inputs)[0], expected)


@every_case("case", CASES)
def test_every_attention_layer_of_an_architecture_is_found_and_numbered(case: str) -> None:
    model, _ = build(case)
    sites = attention_sites(model)
    encoder_decoder = case in ("bart", "t5", "whisper")
    own = sorted(site.layer for site in sites if not site.cross)
    assert own == ([0, 0, 1, 1] if encoder_decoder else [0] if case == "albert" else [0, 1])
    assert sum(site.cross for site in sites) == (2 if encoder_decoder else 0)


def test_auto_classes_load_saved_enabled_models(tmp_path: Path) -> None:
    """Mechanisms with and without parameters; a head that the folder lacks is new; a config alone gives random
    weights."""
    for case, mechanism in (
        ("vit", "window"),
        ("bert", "linformer:rank=16"),
        ("whisper", "window"),
        ("wav2vec2", "nystrom"),
    ):
        model, inputs = build(case)
        enable_long_attention(model, {"layers": mechanism})
        model.save_pretrained(tmp_path / case)
        loaded = transformers.AutoModel.from_pretrained(tmp_path / case)
        assert type(loaded) is type(model)
        with torch.no_grad():
            assert torch.equal(loaded(**inputs)[0], model(**inputs)[0]), case
        assert (tmp_path / case / "config.json").read_text() == loaded.config.to_json_string()
    config = transformers.AutoConfig.from_pretrained(tmp_path / "vit", long_attention={"mechanism": "full"})
    changed = transformers.AutoModel.from_pretrained(tmp_path / "vit", config=config)
    assert [site.module.long_attention.name for site in attention_sites(changed)] == ["full"] * 2
    config = transformers.AutoConfig.from_pretrained(tmp_path / "bert", num_labels=7)
    for classifier in (
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert", config=config),
        transformers.AutoModelForSequenceClassification.from_config(config),
    ):
        assert type(classifier) is transformers.BertForSequenceClassification
        assert classifier(tokens(2, 40)).logits.shape == (2, 7)
        assert [site.module.long_attention.name for site in attention_sites(classifier)] == ["linformer"] * 2


def test_an_enabled_gpt2_returns_attentions_and_leaves_padding_out() -> None:
    model, inputs = build("gpt2")
    enable_long_attention(model, {"mechanism": "window", "window": 4})
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, 30:] = 0
    with torch.no_grad():
        out = model(**inputs, attention_mask=mask, output_attentions=True)
        alone = model(inputs["input_ids"][1:, :30]).last_hidden_state
    assert [w.shape for w in out.attentions] == [(2, 4, 40, 40)] * 2
    assert out.attentions[0][0, 0, 20, :17].max() == 0
    assert (out.last_hidden_state[1, :30] - alone).abs().max() < 1e-5


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_decoding_refuses_a_mechanism_that_sees_more_than_the_sliding_cache(cache: str) -> None:
    settings = {
        "max_new_tokens": 8,
        "do_sample": False,
        "eos_token_id": None,
        "cache_implementation": cache,
        "disable_compile": True,
    }
    without_cache = {**settings, "use_cache": False, "cache_implementation": None}
    for window, plan in (
        (16, {"mechanism": "window", "window": 16}),
        (16, {"mechanism": "window", "window": 5}),
        (64, {"mechanism": "full"}),
    ):
        model = enable_long_attention(plain_model("mistral", "MistralForCausalLM", sliding_window=window), plan)
        assert torch.equal(
            model.generate(tokens(2, 30), **settings), model.generate(tokens(2, 30), **without_cache)
        ), plan
    for plan in (
        {"mechanism": "window", "window": 17},
        {"mechanism": "window", "window": 8, "num_sinks": 2},
        {"mechanism": "full"},
    ):
        model = enable_long_attention(plain_model("mistral", "MistralForCausalLM", sliding_window=16), plan)
        with pytest.raises(
            BackendError,
            match=r"keeps the last 16 tokens of this layer .*choose a window of at most 16, or pass use_cache",
        ):
            model.generate(tokens(2, 30), **settings)
        model.generate(tokens(2, 30), **without_cache)


@pytest.mark.parametrize("nothing", [{}, {"window": 64}])
def test_a_mapping_without_a_mechanism_is_refused(nothing: dict[str, Any]) -> None:
    """It took longformer without a word, whose default window is another one."""
    model = plain_model("bert")
    with pytest.raises(OptionError, match="long_attention names no mechanism; give for example"):
        enable_long_attention(model, nothing)


def test_enable_long_attention_refuses_unknown_mechanisms_and_models() -> None:
    model, _ = build("bert")
    with pytest.raises(OptionError):
        enable_long_attention(model, {"mechanism": "windw"})
    with pytest.raises(OptionError, match="layer 5"):
        enable_long_attention(model, {"mechanism": "window", "layers": {5: {"window": 4}}})
    with pytest.raises(BackendError, match="is not a model of transformers"):
        enable_long_attention(torch.nn.Linear(2, 2), {"mechanism": "window"})  # type: ignore[type-var]
    off = transformers.DebertaModel(
        transformers.DebertaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    )
    with pytest.raises(BackendError, match="DebertaModel"):
        enable_long_attention(off, {"mechanism": "window"})
    long = LongGPT2LMHeadModel(
        LongGPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, long_attention={"mechanism": "full"})
    )
    with pytest.raises(BackendError, match="LongGPT2LMHeadModel has its mechanisms from its config"):
        enable_long_attention(long, {"mechanism": "window"})


@pytest.mark.thorough
def test_the_backbone_of_csm_is_a_tower_beside_frame_decoder_and_codec(tmp_path: Path) -> None:
    config = getattr(transformers, f"{SYNTHESIS}Config")(**FRAMES)
    getattr(transformers, f"{SYNTHESIS}ForConditionalGeneration")(config).save_pretrained(tmp_path / "plain")
    towers = {"backbone": {"mechanism": "window", "window": 8}}
    report = convert_checkpoint(tmp_path / "plain", tmp_path / "long", generic=True, towers=towers, max_length=256)
    checks = statuses(report)
    assert checks["equal with the source's attention"] == "passed"
    assert checks["with the mechanism"] == "needs training"  # windows are shorter than the input
    model = load_generic(tmp_path / "long")
    assert tower_mechanisms(model) == {
        "backbone": {"window"},
        "depth_decoder": set(),
        "codec": set(),
    }
    assert {name: part.config._attn_implementation for name, part in towers_of(model).items()} == {
        "backbone": "longattn",
        "depth_decoder": "sdpa",
        "codec": "sdpa",
    }
    assert model.config.max_position_embeddings == 256
    assert (report.plan["old_length"], report.plan["new_length"]) == (64, 256)


TOWER_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VISION, PATCHES, IMAGE_TOKEN = {**TOWER_SIZES, "image_size": 32, "patch_size": 4}, 64, 198
TOWERS = ["clip", "llava", "pixtral", "qwen2_vl"]
TEXT = {**TOWER_SIZES, "vocab_size": 200, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 199}
NARROW = {"mechanism": "window", "window": 4}
FULL = {"mechanism": "full"}


def build_towers(case: str) -> tuple[Any, dict[str, Tensor]]:
    """A small model of a text and a vision tower, and its inputs."""
    torch.manual_seed(0)
    ids = torch.randint(5, 190, (2, 40))
    ids[:, -1] = 199
    pixels = {"pixel_values": torch.randn(2, 3, 32, 32)}
    if case == "llava":
        text = transformers.LlamaConfig(**TEXT, num_key_value_heads=2)
        config: Any = transformers.LlavaConfig(
            text_config=text, vision_config=transformers.CLIPVisionConfig(**VISION), image_token_index=IMAGE_TOKEN
        )
        ids = torch.cat([torch.full((2, PATCHES), IMAGE_TOKEN), ids], 1)
        return transformers.LlavaForConditionalGeneration(config).eval(), {"input_ids": ids, **pixels}
    if case == "pixtral":
        vision = transformers.PixtralVisionConfig(**{**VISION, "hidden_act": "silu"})
        text = transformers.MistralConfig(**TEXT, num_key_value_heads=2)
        config = transformers.LlavaConfig(
            text_config=text,
            vision_config=vision,
            image_token_index=IMAGE_TOKEN,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
        sizes = torch.tensor([[32, 24], [16, 32]])
        ids = torch.cat([torch.full((1, 8 * 6 + 4 * 8), IMAGE_TOKEN), ids[:1]], 1)
        return transformers.LlavaForConditionalGeneration(config).eval(), {
            "input_ids": ids,
            **pixels,
            "image_sizes": sizes,
        }
    if case.startswith("qwen"):
        prefix = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[case]
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        text = {**TEXT, "num_key_value_heads": 2, "rope_parameters": rope, "tie_word_embeddings": False}
        vision = {
            "depth": 2,
            "num_heads": 4,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
        }
        if case == "qwen2_vl":
            vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        else:
            vision |= {
                "hidden_size": 32,
                "out_hidden_size": 32,
                "intermediate_size": 48,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            }
        special = {
            "image_token_id": IMAGE_TOKEN,
            "video_token_id": 197,
            "vision_start_token_id": 196,
            "vision_end_token_id": 195,
        }
        config = getattr(transformers, f"{prefix}Config")(text_config=text, vision_config=vision, **special)
        grids = torch.tensor([[1, 6, 8], [1, 8, 4]])
        images = [
            part
            for patches in grids.prod(1)
            for part in (torch.full((1, int(patches) // 4), IMAGE_TOKEN), ids[:1, :3])
        ]
        ids = torch.cat([*images, ids[:1]], 1)
        pixels = {"pixel_values": torch.randn(int(grids.prod(1).sum()), 3 * 2 * 4 * 4), "image_grid_thw": grids}
        types = {"mm_token_type_ids": (ids == IMAGE_TOKEN).int()}
        model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config).eval()
        return model, {"input_ids": ids, **pixels, **types}
    prefix = {"clip": "CLIP", "siglip": "Siglip"}[case]
    text, vision = (getattr(transformers, f"{prefix}{tower}Config") for tower in ("Text", "Vision"))
    config = getattr(transformers, f"{prefix}Config")(text_config=text(**TEXT), vision_config=vision(**VISION))
    return getattr(transformers, f"{prefix}Model")(config).eval(), {"input_ids": ids, **pixels}


def tower_mechanisms(model: Any) -> dict[str, set[str]]:
    """The names of the mechanisms in each tower."""
    return {
        name: {mechanism.name for site in attention_sites(tower) for mechanism in mechanisms_on(site.module)}
        for name, tower in towers_of(model).items()
    }


@torch.no_grad()
def output(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    returned = model(**inputs)
    return returned.logits if "logits" in returned else returned.logits_per_text


@pytest.mark.thorough
@pytest.mark.parametrize("case", TOWERS)
def test_each_tower_has_its_own_mechanism(case: str, tmp_path: Path) -> None:
    model, inputs = build_towers(case)
    assert set(towers_of(model)) == {"text", "vision"}
    expected = output(model, inputs)
    enable_long_attention(model, {"towers": {"text": FULL, "vision": FULL}})
    assert torch.allclose(output(model, inputs), expected, rtol=0, atol=1e-5)
    enable_long_attention(model, {"towers": {"text": FULL, "vision": NARROW}})
    assert tower_mechanisms(model) == {
        "text": {"full"},
        "vision": {"window"},
    }
    windowed = output(model, inputs)
    assert not torch.allclose(windowed, expected, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = load_generic(tmp_path)
    assert tower_mechanisms(again) == tower_mechanisms(model)
    assert torch.allclose(output(again, inputs), windowed, rtol=0, atol=1e-6)
    model.set_attn_implementation("sdpa")
    assert torch.equal(output(model, inputs), expected)


def test_the_mechanism_of_a_tower_replaces_the_windows_of_its_base() -> None:
    text = transformers.MistralConfig(**TEXT, num_key_value_heads=2, sliding_window=4)
    config = transformers.LlavaConfig(
        text_config=text, vision_config=transformers.CLIPVisionConfig(**VISION), image_token_index=IMAGE_TOKEN
    )
    model: Any = transformers.LlavaForConditionalGeneration(config).eval()
    ids = torch.randint(5, 190, (2, 40), generator=torch.Generator().manual_seed(0))
    text.sliding_window = None
    without_windows = model(input_ids=ids, use_cache=False).logits
    text.sliding_window = 4
    assert not torch.allclose(model(input_ids=ids, use_cache=False).logits, without_windows, rtol=0, atol=1e-5)
    enable_long_attention(model, {"towers": {"text": FULL}})
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, without_windows, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        (
            {"towers": {"visoin": NARROW}},
            "A CLIPModel has no tower 'visoin'; its towers are .* Did you mean 'vision'?",
        ),
        ({"towers": {"text": NARROW}, "mechanism": "window"}, "put 'mechanism' into each tower"),
    ],
)
def test_unknown_towers_and_mechanisms_beside_towers_are_refused(chosen: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        enable_long_attention(build_towers("clip")[0], chosen)


def test_a_model_of_one_stack_has_no_towers() -> None:
    model = transformers.BertModel(transformers.BertConfig(**TOWER_SIZES, vocab_size=50))
    with pytest.raises(OptionError, match="no tower 'text'; it has one stack"):
        enable_long_attention(model, {"towers": {"text": NARROW}})


CAUSAL_TEXTS = ["CLIP", "CLIPSeg", "MetaClip2", "OwlViT", "Owlv2", "XCLIP"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", CAUSAL_TEXTS)
def test_text_towers_that_are_causal_by_each_call_are_known_to_be(name: str) -> None:
    """Their attention modules say is_causal=False; a mechanism without a causal form would be counted, diagnosed and
    attached wrongly."""
    model: Any = getattr(transformers, f"{name}TextModel")(getattr(transformers, f"{name}TextConfig")(**TEXT)).eval()
    assert all(site.causal and not site.module.is_causal for site in attention_sites(model))
    ids = torch.randint(5, 190, (1, 16))
    changed = ids.clone()
    changed[:, 8] += 1
    with torch.no_grad():
        before, after = (model(values).last_hidden_state[:, :8] for values in (ids, changed))
    assert torch.equal(before, after)
    with pytest.raises(OptionError, match="causal"):
        enable_long_attention(model, {"mechanism": "nystrom"})


def test_each_model_type_that_is_causal_by_its_calls_is_tested() -> None:
    assert {getattr(transformers, f"{name}TextConfig").model_type for name in CAUSAL_TEXTS} == CAUSAL_BY_CALL
