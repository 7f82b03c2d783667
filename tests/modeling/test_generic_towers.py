"""`enable_long_attention` on models of several towers, each with mechanisms of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hf_longattn.errors import OptionError
from hf_longattn.families import enable_long_attention
from hf_longattn.modeling.attach.attention_sites import CAUSAL_BY_CALL, attention_sites, mechanisms_on
from hf_longattn.modeling.generic import towers_of
from tests.generic import load_generic

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VISION, PATCHES, IMAGE_TOKEN = {**SIZES, "image_size": 32, "patch_size": 4}, 64, 198
CASES = ["clip", "llava", "pixtral", "qwen2_vl"]
TEXT = {**SIZES, "vocab_size": 200, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 199}
WINDOW = {"mechanism": "window", "window": 4}
FULL = {"mechanism": "full"}


def build(case: str) -> tuple[Any, dict[str, Tensor]]:
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
            text_config=text, vision_config=vision, image_token_index=IMAGE_TOKEN,
            vision_feature_layer=-1, vision_feature_select_strategy="full",
        )  # fmt: skip
        sizes = torch.tensor([[32, 24], [16, 32]])
        ids = torch.cat([torch.full((1, 8 * 6 + 4 * 8), IMAGE_TOKEN), ids[:1]], 1)
        return transformers.LlavaForConditionalGeneration(config).eval(), {"input_ids": ids, **pixels, "image_sizes": sizes}
    if case.startswith("qwen"):
        prefix = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[case]
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        text = {**TEXT, "num_key_value_heads": 2, "rope_parameters": rope, "tie_word_embeddings": False}
        vision = {"depth": 2, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}
        if case == "qwen2_vl":
            vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        else:
            vision |= {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "window_size": 16, "fullatt_block_indexes": [1]}
        special = {"image_token_id": IMAGE_TOKEN, "video_token_id": 197, "vision_start_token_id": 196, "vision_end_token_id": 195}
        config = getattr(transformers, f"{prefix}Config")(text_config=text, vision_config=vision, **special)
        grids = torch.tensor([[1, 6, 8], [1, 8, 4]])
        images = [part for patches in grids.prod(1) for part in (torch.full((1, int(patches) // 4), IMAGE_TOKEN), ids[:1, :3])]
        ids = torch.cat([*images, ids[:1]], 1)
        pixels = {"pixel_values": torch.randn(int(grids.prod(1).sum()), 3 * 2 * 4 * 4), "image_grid_thw": grids}
        types = {"mm_token_type_ids": (ids == IMAGE_TOKEN).int()}
        model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config).eval()
        return model, {"input_ids": ids, **pixels, **types}
    prefix = {"clip": "CLIP", "siglip": "Siglip"}[case]
    text, vision = (getattr(transformers, f"{prefix}{tower}Config") for tower in ("Text", "Vision"))
    config = getattr(transformers, f"{prefix}Config")(text_config=text(**TEXT), vision_config=vision(**VISION))
    return getattr(transformers, f"{prefix}Model")(config).eval(), {"input_ids": ids, **pixels}


def mechanisms(tower: Any) -> set[str]:
    return {mechanism.name for site in attention_sites(tower) for mechanism in mechanisms_on(site.module).values()}


@torch.no_grad()
def output(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    returned = model(**inputs)
    return returned.logits if "logits" in returned else returned.logits_per_text


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES)
def test_each_tower_has_its_own_mechanism(case: str, tmp_path: Path) -> None:
    model, inputs = build(case)
    assert set(towers_of(model)) == {"text", "vision"}
    expected = output(model, inputs)
    enable_long_attention(model, {"towers": {"text": FULL, "vision": FULL}})
    assert torch.allclose(output(model, inputs), expected, rtol=0, atol=1e-5)
    enable_long_attention(model, {"towers": {"text": FULL, "vision": WINDOW}})
    assert {name: mechanisms(tower) for name, tower in towers_of(model).items()} == {"text": {"full"}, "vision": {"window"}}
    windowed = output(model, inputs)
    assert not torch.allclose(windowed, expected, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = load_generic(tmp_path)
    assert {name: mechanisms(tower) for name, tower in towers_of(again).items()} == {"text": {"full"}, "vision": {"window"}}
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


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES)
def test_a_tower_that_is_not_named_keeps_its_attention(case: str) -> None:
    model, inputs = build(case)
    text = towers_of(model)["text"]
    expected = output(model, inputs)
    enable_long_attention(model, {"towers": {"vision": WINDOW}})
    assert not mechanisms(text)
    assert text.config._attn_implementation == "sdpa"
    assert not torch.equal(output(model, inputs), expected)


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"towers": {"visoin": WINDOW}}, "A CLIPModel has no tower 'visoin'; its towers are .* Did you mean 'vision'?"),
        ({"towers": {"text": WINDOW}, "mechanism": "window"}, "put 'mechanism' into each tower"),
    ],
)
def test_unknown_towers_and_mechanisms_beside_towers_are_refused(chosen: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        enable_long_attention(build("clip")[0], chosen)


def test_a_model_of_one_stack_has_no_towers() -> None:
    model = transformers.BertModel(transformers.BertConfig(**SIZES, vocab_size=50))
    with pytest.raises(OptionError, match="no tower 'text'; it has one stack"):
        enable_long_attention(model, {"towers": {"text": WINDOW}})


TEXT_GLOBAL = {"towers": {"text": {"mechanism": "longformer", "window": 4}}, "text_global": True}


@pytest.mark.parametrize("case", ["llava", "qwen2_vl"])
def test_text_tokens_are_global_to_image_tokens(case: str) -> None:
    model, inputs = build(case)
    model = model.double()
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    ids = inputs["input_ids"]
    text, places = ids != IMAGE_TOKEN, torch.arange(ids.shape[1])
    back = places[:, None] - places
    seen = (back >= 0) & ((back < 4) | text[:, :, None] | text[:, None])
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -1e9)[:, None]
    language_model, passed = towers_of(model)["text"], {}
    hook = language_model.register_forward_pre_hook(lambda module, args, kwargs: passed.update(kwargs), with_kwargs=True)
    output(model, inputs)
    hook.remove()
    with torch.no_grad():
        states = language_model(
            inputs_embeds=passed["inputs_embeds"], position_ids=passed["position_ids"], attention_mask=mask, use_cache=False
        )[0]
        expected = model.lm_head(states)
    enable_long_attention(model, TEXT_GLOBAL)
    assert torch.allclose(output(model, inputs), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ["llava", "qwen2_vl"])
def test_global_text_tokens_are_known_while_decoding_and_after_loading(case: str, tmp_path: Path) -> None:
    model, inputs = build(case)
    inputs = {name: value[:1] if case == "llava" else value for name, value in inputs.items()}
    enable_long_attention(model, TEXT_GLOBAL)
    model.save_pretrained(tmp_path)
    again: Any = load_generic(tmp_path)
    length = inputs["input_ids"].shape[1]
    new = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    decoded = again.generate(**inputs, **new)
    ids = decoded[:, :-1]
    whole = {**inputs, "input_ids": ids}
    if "mm_token_type_ids" in inputs:
        whole["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int()
    assert torch.equal(output(model, whole)[:, length - 1 :].argmax(-1), decoded[:, length:])


@pytest.mark.parametrize(
    ("case", "chosen", "sentence"),
    [
        ("clip", TEXT_GLOBAL, "text_global is for models that read images in place of a token, and a CLIPModel has none"),
        ("llava", {"towers": {"text": WINDOW}, "text_global": True}, "text_global needs a mechanism with global tokens"),
    ],
)
def test_text_global_is_refused_without_images_or_global_tokens(case: str, chosen: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        enable_long_attention(build(case)[0], chosen)


CAUSAL_TEXTS = ["CLIP", "CLIPSeg", "MetaClip2", "OwlViT", "Owlv2", "XCLIP"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", CAUSAL_TEXTS)
def test_text_towers_that_are_causal_by_each_call_are_known_to_be(name: str) -> None:
    """Their attention modules say is_causal=False; a mechanism without a causal form would be counted, diagnosed and attached wrongly."""
    torch.manual_seed(0)
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
