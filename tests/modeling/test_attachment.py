"""Mechanisms on the attention modules of a model: which modules, their widths, rotations and sinks."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, Wav2Vec2Config
from transformers.generation import stopping_criteria
from transformers.models.glm.modeling_glm import GlmAttention
from transformers.models.glm4v.modeling_glm4v import Glm4vTextAttention, Glm4vVisionAttention
from transformers.models.llama import modeling_llama

import hf_longattn
import hf_longattn.families as families
from hf_longattn import enable_long_attention, list_mechanisms
from hf_longattn.errors import OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.modeling import rotation as rotations
from hf_longattn.modeling.attach.attention_sites import attention_sites, copied_parameters
from hf_longattn.positions.relative import SinkPositions
from scripts.dev.tools.check_derived import LONG, TOKENS, decoded, small_model
from scripts.dev.tools.small_models import Shape, small_values
from tests.cases import every_case
from tests.reference.small_models import BASES, OFF_THE_INTERFACE, long_model, plain_config, plain_model, tokens

ROTATED = [base for base in BASES if families.FAMILIES[base].rope]


@every_case("base", [base for base in BASES if base not in OFF_THE_INTERFACE])
def test_own_projections_make_the_queries_keys_and_values_of_attention(base: str) -> None:
    model = families.enable_long_attention(plain_model(base), {"mechanism": "full"})
    site = attention_sites(model)[0]
    seen: dict[str, Tensor] = {}
    site.module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(input=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    site.module.long_attention.register_forward_pre_hook(
        lambda module, args: seen.update(zip(("query", "key", "value"), args[:3], strict=True))
    )
    with torch.no_grad():
        model(tokens(2, 9))
    kinds = ("value",) if base in ROTATED else ("query", "key", "value")
    names = [f"{kind}.{part}" for kind in kinds for part in ("weight", "bias")]
    own = copied_parameters(site.module, dict(zip(names, names, strict=True)))
    assert own or base in ("gpt_neox", "modernbert", "phi3"), "those that rotate are never copied"
    for kind in kinds if own else ():
        weight, bias = (
            own[name](site.module.get_parameter(own[name].name)) if name in own else None
            for name in (f"{kind}.weight", f"{kind}.bias")
        )
        made = (
            torch.nn.functional.linear(seen["input"], weight, bias)
            .unflatten(-1, (seen[kind].shape[1], -1))
            .transpose(1, 2)
        )
        # they scale their queries themselves
        scale = made.shape[-1] ** -0.5 if base in ("opt", "esm") and kind == "query" else 1.0
        assert (scale * made - seen[kind]).abs().max() < 1e-5, kind


def test_a_fused_projection_in_another_layout_is_not_guessed() -> None:
    attention = torch.nn.Module()
    attention.c_attn = torch.nn.Linear(16, 24)
    assert copied_parameters(attention, {"query.weight": "query.weight"}) == {}


SHAPE = Shape(width=32, heads=4, tokens=128)
WIDE_HEADS = {"qwen3": "LongQwen3ForCausalLM", "gemma": "LongGemmaForCausalLM", "gemma3_text": "LongGemma3ForCausalLM"}
MECHANISMS = [
    *((name, mechanism_class(name).about.sample) for name in list_mechanisms(causal=True, grid=False)),
    ("window", {"window": 16, "relative": "transformer_xl"}),
]


@pytest.mark.thorough
@every_case(
    ("base", "name", "options"),
    [(base, *mechanism) for mechanism in MECHANISMS for base in WIDE_HEADS],
    of=len(WIDE_HEADS) + 1,
)
def test_mechanisms_train_and_generate_with_heads_wider_than_hidden_states(
    base: str, name: str, options: dict[str, Any]
) -> None:
    values = small_values(base, SHAPE, pad_token_id=1, initializer_range=0.2)
    values |= {"head_dim": 12, "layer_types": ["full_attention"] * 2} if "layer_types" in values else {"head_dim": 12}
    config = FAMILIES[base].config_class(**values, long_attention={"mechanism": name, **options})
    model = FAMILIES[base].model_class(WIDE_HEADS[base])(config)
    for site in attention_sites(model):
        assert (site.mechanism.num_heads * site.mechanism.head_dim, site.mechanism.sizes.hidden_size) == (48, 32)
    ids = torch.randint(5, 90, (2, 70))
    model(ids, labels=ids).loss.backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for n, p in model.named_parameters() if "long_attention" in n
    )
    if attention_sites(model)[0].mechanism.capabilities.recursion is not None:
        return  # decoding in segments is tested in tests/modeling/test_memories.py
    model.eval()
    with torch.no_grad():
        written = model.generate(ids[:1], max_new_tokens=6, do_sample=False, pad_token_id=1, eos_token_id=None)
        assert torch.equal(model(written).logits[0, 69:-1].argmax(-1), written[0, 70:])


def test_separate_projections_read_hidden_states_of_their_width() -> None:
    config = AutoConfig.for_model("t5", d_model=32, d_kv=12, num_heads=4, d_ff=48, num_layers=1, vocab_size=50)
    model = AutoModel.from_config(config)
    enable_long_attention(model, {"mechanism": "full"})
    assert {site.mechanism.sizes.hidden_size for site in attention_sites(model)} == {32}


def test_a_module_with_a_class_that_was_made_for_it_is_pickled() -> None:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_conv_pos_embeddings": 16,
    }
    config = FAMILIES["wav2vec2"].config_class.from_dict(Wav2Vec2Config(**sizes).to_dict())
    module = FAMILIES["wav2vec2"].model_class("LongWav2Vec2Model")(config).eval().encoder.layers[0].feed_forward
    assert (type(module).__name__, type(module).__module__) == (
        "LongWav2Vec2FeedForward",
        "hf_longattn.families.wav2vec2",
    )
    states = torch.randn(1, 3, 32)
    torch.testing.assert_close(pickle.loads(pickle.dumps(module))(states), module(states), rtol=0, atol=0)


LENGTH, FURTHER = 20, 7
ROTARY = [base for base in BASES if families.FAMILIES[base].scales_rotations(plain_config(base)) and base != "esm"]
SOME_LAYERS = ("smollm3",)
"""Bases that rotate in some layers only."""


def met(base: str, relative: str) -> list[tuple[Mechanism, torch.Tensor, torch.Tensor]]:
    """Each mechanism with the queries and keys that it gets for one token, repeated, so that they differ by their
    positions only."""
    torch.manual_seed(0)
    model = long_model(base, None, {"mechanism": "full", "relative": relative}).eval()
    found = list[Any]()
    for mechanism in model.modules():
        if isinstance(mechanism, Mechanism) and mechanism.relative is not None:
            mechanism.register_forward_pre_hook(lambda module, args: found.append((module, *args[:2])), prepend=True)
    with torch.no_grad():
        model(torch.full((1, LENGTH), 50))
    assert found
    return found


@pytest.mark.thorough
@every_case("base", [base for base in ROTARY if base not in SOME_LAYERS])
def test_a_further_rotation_gives_the_queries_and_keys_of_later_tokens(base: str) -> None:
    for mechanism, *vectors in met(base, "self_extend:window=64,group=4"):
        rotation = mechanism.relative.rotation()  # type: ignore[union-attr, operator]
        for x in vectors:
            turned = rotation.turned(x[:, :, :-FURTHER], torch.full((1, LENGTH - FURTHER), FURTHER))
            torch.testing.assert_close(turned, x[:, :, FURTHER:], atol=1e-4, rtol=0)
            assert (x[:, :, FURTHER:] - x[:, :, :-FURTHER]).abs().max() > 0.01


@every_case("base", ["bert", "gpt2", "esm", *SOME_LAYERS])
def test_self_extend_is_refused_for_bases_that_do_not_rotate_every_layer(base: str) -> None:
    with pytest.raises(
        OptionError, match=r"does not rotate queries and keys by their positions in a way that can be followed"
    ):
        long_model(base, None, {"mechanism": "full", "relative": "self_extend"})


@every_case(
    ("base", "turned", "warns"),
    [("llama", 3, False), ("gpt_neox", 3, False), ("gpt2", 0, False), ("bert", 0, False), ("smollm3", 0, True)],
)
def test_sinks_are_turned_where_the_rotation_can_be_followed(
    base: str, turned: int, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(rotations.logger, "warning_once", messages.append)
    model = long_model(base, None, {"mechanism": "window", "window": 8, "num_sinks": 2})
    assert sum(isinstance(module, SinkPositions) for module in model.modules()) == turned
    assert all("sinks keep their positions in the text" in message for message in messages)
    assert bool(messages) == warns


def turned_back(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **_: Any) -> Any:
    """transformers' ``apply_rotary_pos_emb``, in the other direction."""
    cos = cos.unsqueeze(1)
    sin = sin.unsqueeze(1)
    return tuple(x * cos - modeling_llama.rotate_half(x) * sin for x in (q, k))


def turned_twice(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **_: Any) -> Any:
    """transformers' ``apply_rotary_pos_emb``, by twice the angle."""
    cos, sin = (2 * cos * cos - 1).unsqueeze(1), (2 * sin * cos).unsqueeze(1)
    return tuple(x * cos + modeling_llama.rotate_half(x) * sin for x in (q, k))


@every_case(
    ("attention", "planes"),
    [
        (modeling_llama.LlamaAttention, rotations.HALVES),
        (GlmAttention, rotations.INTERLEAVED),
        (Glm4vTextAttention, None),  # its text rotates otherwise than the rotate_half of its file
        (Glm4vVisionAttention, None),
    ],
    ids=["llama", "glm", "glm4v", "glm4v-vision"],
)
def test_planes_are_those_in_which_queries_are_turned(attention: type[Any], planes: list[float] | None) -> None:
    assert rotations._right_angle(attention) == planes


@every_case("rotate", [turned_back, turned_twice])
def test_a_rotation_of_another_meaning_is_not_followed(rotate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr(rotations.logger, "warning_once", messages.append)
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rotate)
    rotations._right_angle.cache_clear()
    try:
        model = long_model("llama", None, {"mechanism": "window", "window": 8, "num_sinks": 2})
        with pytest.raises(OptionError, match="in a way that can be followed"):
            long_model("llama", None, {"mechanism": "full", "relative": "self_extend"})
    finally:
        rotations._right_angle.cache_clear()
    assert not any(isinstance(module, SinkPositions) for module in model.modules())
    assert "sinks keep their positions in the text" in messages[0]


@every_case(
    ("base", "head", "endless"), [("llama", "LlamaForCausalLM", True), ("smollm3", "SmolLM3ForCausalLM", False)]
)
def test_texts_have_an_end_where_sinks_keep_the_positions_of_the_text(
    base: str, head: str, endless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(stopping_criteria.logger, "warning_once", warnings.append)
    model = long_model(base, head, {"mechanism": "window", "window": 8, "num_sinks": 2}).eval()
    model.config.max_position_embeddings = 16
    model.generate(torch.full((1, 20), 50), max_new_tokens=2, eos_token_id=None)
    assert any("maximum length (16)" in warning for warning in warnings) == (not endless)


def test_sinks_keep_the_positions_of_the_text_if_a_further_rotation_gives_others() -> None:
    sizes = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    text = {**sizes, "intermediate_size": 32, "head_dim": 8, "pad_token_id": 0}
    sections = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2}
    images = AutoConfig.for_model("qwen2_vl", text_config={**text, **sections}, vision_config=vision)
    with_images = AutoModelForImageTextToText.from_config(images)
    norms_after = AutoModelForCausalLM.from_config(AutoConfig.for_model("hunyuan_v1_dense", **text))
    for model, turned in ((with_images, 0), (with_images.model.language_model, 1), (norms_after, 0)):
        enable_long_attention(model, {"mechanism": "window", "window": 8, "num_sinks": 2})
        assert sum(isinstance(module, SinkPositions) for module in model.modules()) == turned


@torch.no_grad()
def test_hooks_of_turned_sinks_run_in_decoding() -> None:
    model = long_model("llama", "LlamaForCausalLM", {"mechanism": "window", "window": 8, "num_sinks": 2}).eval()
    shapes = list[int]()
    mechanism = next(module for module in model.modules() if isinstance(module, Mechanism))
    mechanism.register_forward_hook(lambda module, args, output: shapes.append(output.shape[2]))
    model.generate(torch.full((1, 20), 50), max_new_tokens=2, eos_token_id=None)
    assert shapes == [20, 1]


WITH_SINKS = [
    base
    for base in ("flint", "gpt_oss", "granite_swa", "granitemoe_swa", "mimo_v2_flash")
    if base in FAMILIES  # transformers 5.20 has no Flint
]


def with_large_sinks(model: nn.Module) -> nn.Module:
    """The model with sinks that take a good part of the softmax; random ones are near 0."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, sinks in model.named_parameters():
            if name.endswith(".sinks"):
                sinks.copy_(2 * torch.randn(sinks.shape, generator=generator) + 1)
    return model


def converted(base: str, folder: Path, **attention: Any) -> tuple[Any, Any]:
    """A small stock model, and what it was converted to."""
    _, stock = small_model(base)
    with_large_sinks(stock).save_pretrained(folder / "short")
    hf_longattn.convert_checkpoint(
        folder / "short", folder / "long", max_length=LONG, verify=False, positions="rope:none", **attention
    )
    return stock, AutoModelForCausalLM.from_pretrained(folder / "long").eval()


def ids(length: int = TOKENS) -> torch.Tensor:
    return torch.randint(5, 150, (2, length), generator=torch.Generator().manual_seed(1))


@every_case("base", WITH_SINKS)
def test_models_with_sinks_and_the_windows_of_their_source_equal_the_stock_model(base: str, tmp_path: Path) -> None:
    stock, long = converted(base, tmp_path, mechanism="window", options={"window": 2 * LONG})
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, :9] = 0
    with torch.no_grad():
        expected, found = (model(ids(), attention_mask=mask).logits[mask.bool()] for model in (stock, long))
        without = with_large_sinks(stock).requires_grad_(False)
        for name, sinks in without.named_parameters():
            if name.endswith(".sinks"):
                sinks.fill_(-30)
        changed = without(ids(), attention_mask=mask).logits[mask.bool()]
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (changed - expected).abs().max() > 1e-3 * expected.abs().max()


@every_case("mechanism", ["window", "longformer", "strided", "top_k", "block_top_k", "bigbird"], of=2)
def test_decoding_with_sinks_equals_one_pass(mechanism: str, tmp_path: Path) -> None:
    options = {"window": {"window": 16, "num_sinks": 2}, "longformer": {"window": 16}, "top_k": {"num_keys": 9}}.get(
        mechanism, {}
    )
    _, long = converted(
        "gpt_oss", tmp_path, mechanism=mechanism, options=options, layers={"0": {"mechanism": mechanism, **options}}
    )
    texts = ids(200)
    with torch.no_grad():
        assert decoded(long, texts, long(texts).logits, prompt=175) < 1e-4


def test_gradients_of_sinks_equal_those_of_the_stock_model(tmp_path: Path) -> None:
    stock, long = converted("gpt_oss", tmp_path, mechanism="window", options={"window": 2 * LONG})
    for model in (stock, long):
        model(ids(), labels=ids()).loss.backward()
    expected = {name: parameter.grad for name, parameter in stock.named_parameters() if "sinks" in name}
    found = {name: parameter.grad for name, parameter in long.named_parameters() if "sinks" in name}
    assert len(expected) == 2
    for name, grad in expected.items():
        assert grad.abs().max() > 0
        assert (found[name] - grad).abs().max() < 1e-4 * grad.abs().max()


def test_a_mechanism_without_softmax_is_refused_for_models_with_sinks(tmp_path: Path) -> None:
    _, stock = small_model("gpt_oss")
    stock.save_pretrained(tmp_path / "short")
    with pytest.raises(OptionError, match=r"LongGptOssForCausalLM has sinks.*'linear'"):
        hf_longattn.convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="linear", max_length=LONG)
    with pytest.raises(OptionError, match=r"GptOssForCausalLM has sinks.*'linear'"):
        hf_longattn.enable_long_attention(stock, {"mechanism": "linear"})
