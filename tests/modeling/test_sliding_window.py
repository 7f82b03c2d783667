"""Bases with windows keep them in layers that are not named, and transformers' FlashAttention computes plain
windows."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    CwmConfig,
    DynamicCache,
    MistralConfig,
)

import hf_longattn.families as families
from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.engines.dense import repeat_heads
from hf_longattn.errors import BackendError, CheckpointError, InputError, OptionError
from hf_longattn.modeling.family.long_config import LongConfig
from hf_longattn.modeling.family.sliding_window import own_windows
from scripts.dev.tools.small_models import small_values
from tests.cases import every_case
from tests.reference.small_models import LANGUAGE_MODELS, long_config, long_like, padding, plain_model, tokens
from tests.saved import change_json, read_json

from .test_mixin import IDS, built, config_of, hidden

WIDTH = 24
LAST = {"sliding_window": WIDTH, "use_sliding_window": True, "max_window_layers": 1}
GEMMA = {"sliding_window": WIDTH, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
SOME: dict[str, tuple[dict[str, Any], list[int]]] = {
    "qwen2": (LAST, [1, 2]),
    "qwen3": (LAST, [1, 2]),
    "gemma2": (GEMMA, [0, 2]),
    "gemma3_text": (GEMMA, [0, 2]),
    "smollm3": ({"sliding_window": WIDTH, "use_sliding_window": True, "no_rope_layer_interval": 2}, [1]),
}
"""Base -> what gives some of its layers a window, and which."""
ALL = ("mistral", "phi3")
CASES = {**{base: changes for base, (changes, _) in SOME.items()}, **{base: {"sliding_window": WIDTH} for base in ALL}}
GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 12}


def both(base: str, long_attention: Any = None, **changes: Any) -> tuple[Any, Any]:
    """The plain language model, and the Long one whose layers without a window have full attention."""
    plain = plain_model(base, LANGUAGE_MODELS[base], **CASES[base], **changes)
    chosen = long_attention or (None if base in ALL else {"mechanism": "full"})
    return plain, long_like(plain, base, chosen, **CASES[base], **changes)


@every_case("base", CASES, of=2)
class TestEveryBase:
    @every_case("left", [False, True], ids=["right-padded", "left-padded"])
    def test_bases_with_windows_equal_their_own(self, base: str, left: bool) -> None:
        plain, longer = both(base)
        ids = tokens(3, 100)
        mask = padding(3, 100, left=left)
        with torch.no_grad():
            expected, found = (model(ids, attention_mask=mask).logits for model in (plain, longer))
        assert (expected - found)[mask.bool()].abs().max() < 2e-5

    def test_bases_with_windows_generate_the_same(self, base: str) -> None:
        plain, longer = both(base)
        ids = tokens(2, 40)
        mask = padding(2, 40, left=True)
        expected = plain.generate(ids, attention_mask=mask, **GREEDY)
        for how in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
            assert torch.equal(longer.generate(ids, attention_mask=mask, **GREEDY, **how), expected)

    def test_caches_are_as_wide_as_the_mechanisms_say(self, base: str) -> None:
        _, longer = both(base, {"layers": "window:window=8"})
        cache = DynamicCache(config=longer.config)
        with torch.no_grad():
            longer(tokens(1, 60), past_key_values=cache)
        assert [layer.keys.shape[2] for layer in cache.layers] == [7] * 3
        longer.use_base_attention("eager")
        own = DynamicCache(config=longer.config)
        with torch.no_grad():
            longer(tokens(1, 60), past_key_values=own)
        assert min(layer.keys.shape[2] for layer in own.layers) == WIDTH - 1

    def test_gradients_of_bases_with_windows_equal_their_own(self, base: str) -> None:
        models = both(base)
        ids = tokens(2, 60)
        gradients = [torch.autograd.grad(model(ids, labels=ids).loss, list(model.parameters())) for model in models]
        assert all((a - b).abs().max() < 1e-5 for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("base", SOME)
def test_a_layer_keeps_its_window_unless_it_is_named(base: str) -> None:
    changes, sliding = SOME[base]
    kept = {"mechanism": "window", "window": WIDTH}

    def attention(value: Any) -> list[tuple[str, dict[str, Any]]]:
        chosen = long_config(base, value, **changes).long_attention
        return [chosen.for_layer(layer) for layer in range(3)]

    chosen = ("longformer", {"window": 10})
    assert attention({"mechanism": "longformer", "window": 10}) == [
        ("window", {"window": WIDTH}) if layer in sliding else chosen for layer in range(3)
    ]
    first = sliding[0]
    assert attention({"mechanism": "longformer", "window": 10, "layers": {first: {"mechanism": "full"}}})[first] == (
        "full",
        {},
    )
    assert attention({"layers": "full"}) == [("full", {})] * 3
    config = long_config(base, {"mechanism": "full"}, **changes)
    assert config.to_dict()["long_attention"]["layers"] == {str(layer): kept for layer in sliding}
    config.long_attention = {"mechanism": "window", "window": 6}
    assert config.long_attention.for_layer(first) == ("window", {"window": WIDTH})


@pytest.mark.parametrize("base", ALL)
def test_a_chosen_mechanism_replaces_windows_that_all_layers_have(base: str) -> None:
    assert long_config(base, None, sliding_window=WIDTH).long_attention.to_dict() == {
        "mechanism": "window",
        "window": WIDTH,
    }
    assert long_config(base, {"mechanism": "full"}, sliding_window=WIDTH).long_attention.to_dict() == {
        "mechanism": "full"
    }
    assert long_config(base, None, sliding_window=None).long_attention.to_dict() == {"mechanism": "longformer"}


def test_a_wider_window_than_the_base_has_is_not_called_equal(tmp_path: Path) -> None:
    plain_model("mistral", "MistralForCausalLM", **CASES["mistral"]).save_pretrained(tmp_path / "short")
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="window", window=256)
    found = {check.name: (check.status, check.values.get("length")) for check in report.checks}
    assert found["equal where the mechanism covers the input"] == ("passed", WIDTH)
    # transformers' own, with its window
    assert found["equal at the old length with full attention"] == ("passed", 512)
    assert found["at the old length"] == ("needs training", 512)


def test_windows_of_a_long_config_outlast_changes_of_base_fields() -> None:
    """They are in long_attention, which says what runs, whatever the base's fields are changed to afterwards."""
    shape = {"num_hidden_layers": 2, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
    config = families.LongQwen2Config(**shape, long_attention={"mechanism": "full"})
    written = {name: value for name, value in config.to_dict().items() if name != "layer_types"}
    again = families.LongQwen2Config(**{**written, "use_sliding_window": False})
    assert again.long_attention.for_layer(1) == config.long_attention.for_layer(1) == ("window", {"window": 3})
    chosen = families.LongQwen2Config(
        **{**written, "use_sliding_window": False, "long_attention": {"mechanism": "full"}}
    )
    assert chosen.long_attention.for_layer(1) == ("full", {})


class TestCappedScores:
    def test_gemma2_caps_its_scores(self) -> None:
        plain, longer = both("gemma2")
        with torch.no_grad():
            expected = plain(tokens()).logits
            capped = longer(tokens()).logits
            longer.config.attn_logit_softcapping = None
            for layer in longer.model.layers:
                layer.self_attn.attn_logit_softcapping = None
            uncapped = longer(tokens()).logits
        assert (expected - capped).abs().max() < 2e-5
        assert (expected - uncapped).abs().max() > 1e-2

    def test_a_cap_refuses_mechanisms_without_scores(self) -> None:
        with pytest.raises(
            OptionError, match=r"caps its attention scores \(attn_logit_softcapping=3.0\), but mechanism 'hedgehog'"
        ):
            both("gemma2", {"mechanism": "hedgehog"})
        plain = plain_model("gemma2", attn_logit_softcapping=None)
        long_like(plain, "gemma2", {"mechanism": "hedgehog"}, attn_logit_softcapping=None)
        enabled = families.enable_long_attention(plain_model("gemma2"), {"mechanism": "hedgehog"})
        with pytest.raises(InputError, match="A cap on the scores was given, but mechanism 'hedgehog' has no"):
            enabled(tokens(1, 10))

    @pytest.mark.thorough
    @pytest.mark.parametrize("global_tokens", [[], [0, 1]])
    def test_generation_with_a_cap_and_global_tokens_equals_that_without_a_cache(
        self, global_tokens: list[int]
    ) -> None:
        chosen = {"mechanism": "longformer", "window": 8, "global_tokens": global_tokens}
        _, longer = both("gemma2", {"layers": [chosen]})
        whole = longer.generate(tokens(2, 20), use_cache=False, **GREEDY)
        assert torch.equal(longer.generate(tokens(2, 20), **GREEDY), whole)


@pytest.mark.parametrize("base", CASES)
def test_the_text_config_that_caches_see_is_the_config_itself(base: str) -> None:
    config = long_config(base, {"layers": "window:window=8"}, **CASES[base])
    seen = config.get_text_config(decoder=True)
    assert isinstance(seen, type(config))
    assert seen.layer_types == ["longattn_window_8"] * 3
    assert seen.get_text_config(decoder=True) is seen
    assert seen.to_dict() == config.to_dict()
    seen.hidden_act = "relu"
    assert config.hidden_act == "relu"
    config.long_attention = {"layers": "window:window=9"}
    assert copy.deepcopy(seen).layer_types == ["longattn_window_9"] * 3
    assert config.get_text_config() is config


MIXED = {"sliding_window": None, "use_sliding_window": False}
TOLD: dict[str, tuple[str, dict[str, Any], Any, dict[str, Any]]] = {
    "one width": ("mistral", {"sliding_window": 24}, {"mechanism": "window", "window": 8}, {"sliding_window": 8}),
    "another mechanism": (
        "mistral",
        {"sliding_window": 24},
        {"mechanism": "longformer", "window": 8},
        {"sliding_window": None},
    ),
    "full": ("phi3", {"sliding_window": 24}, {"mechanism": "full"}, {"sliding_window": None}),
    "no field in the base": (
        "llama",
        {},
        {"mechanism": "window", "window": 8, "layers": {1: {"mechanism": "full"}}},
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True},
    ),
    "last layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
        {"layers": "0=full;1=window:window=6"},
        {"sliding_window": 6, "max_window_layers": 1, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "two widths": (
        "qwen2",
        LAST,
        {"mechanism": "window", "window": 8},
        {**MIXED, "max_window_layers": 2, "layer_types": None},
    ),
    "sinks": ("qwen3", LAST, {"layers": "window:window=24,num_sinks=1"}, {**MIXED, "layer_types": None}),
    "an encoder": ("roberta", {}, {"mechanism": "longformer", "window": 9}, {"attention_window": [8, 8]}),
    "an encoder with two": (
        "bert",
        {},
        {"layers": "window:window=4,longformer:window=6"},
        {"attention_window": [4, 6]},
    ),
    "another encoder": ("bert", {}, {"mechanism": "bigbird"}, {}),
}


@every_case("case", TOLD)
def test_a_file_tells_serving_engines_what_the_mechanisms_compute(case: str, tmp_path: Path) -> None:
    base, changes, attention, told = TOLD[case]
    config = families.FAMILIES[base].config_class(**{**small_values(base), "long_attention": attention, **changes})
    config.save_pretrained(tmp_path)
    written = read_json(tmp_path)
    assert {name: written.get(name) for name in told} == told
    if not told:
        assert not {"attention_window", "base_windows", "sliding_window"} & written.keys()
    read = AutoConfig.from_pretrained(tmp_path)
    for name in ("sliding_window", "use_sliding_window", "max_window_layers"):
        assert getattr(read, name, ...) == getattr(config, name, ...), "the base's own in memory"
    assert read.__dict__.get("layer_types") == config.__dict__.get("layer_types")
    assert read.long_attention == config.long_attention
    assert not hasattr(read, "attention_window")
    assert {**read.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
    again = type(config).from_dict(read.to_dict())
    assert again.to_diff_dict() == read.to_diff_dict()


class LongCwmConfig(LongConfig, CwmConfig):
    """Of a base whose ``sliding_window`` is a number of tokens, never null."""

    model_type = "long_cwm"


def test_a_width_that_cannot_be_null_stays_and_no_layer_has_it(tmp_path: Path) -> None:
    for mechanism in ("full", "longformer", "window"):
        config = LongCwmConfig(num_hidden_layers=2, long_attention={"layers": f"{mechanism},{mechanism}"})
        config.save_pretrained(tmp_path)
        written = read_json(tmp_path)
        types = ["sliding_attention" if mechanism == "window" else "full_attention"] * 2
        assert (isinstance(written["sliding_window"], int), written["layer_types"]) == (True, types), mechanism
        assert LongCwmConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_layers_of_different_sizes_are_refused(tmp_path: Path) -> None:
    """transformers' ``per_layer_config``, whose windows are read, and which Long classes refuse."""
    layers = {0: {"sliding_window": 8}, 1: {"sliding_window": None}}
    assert own_windows(MistralConfig(num_hidden_layers=2, per_layer_config=layers)) == [8, None]
    plain_model("llama", "LlamaForCausalLM").save_pretrained(tmp_path)
    change_json(tmp_path, per_layer_config={"0": {"intermediate_size": 64}})
    with pytest.raises(
        CheckpointError, match="has per_layer_config: its layers differ in size, which no Long class supports; give a"
    ):
        plan_conversion(tmp_path)


FLASH = "flash_attention_2"
FLASHES = (FLASH, "flash_attention_3", "kernels-community/flash-attn2")
MASK = torch.ones_like(IDS)
MASK[0, :9] = 0
WINDOWS: list[int | None] = []


def attend_by_sizes(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """``flash_attention_forward``: the queries are the last of the keys, the window ``sliding_window - 1`` keys to
    either side."""
    assert attention_mask is None or attention_mask.dim() == 2
    WINDOWS.append(sliding_window)
    causal = module.is_causal if is_causal is None else is_causal
    key = repeat_heads(key, query.shape[1])
    value = repeat_heads(value, query.shape[1])
    q_len = query.shape[2]
    kv_len = key.shape[2]
    distance = torch.arange(kv_len - q_len, kv_len)[:, None] - torch.arange(kv_len)
    size = kv_len if sliding_window is None else sliding_window - 1
    seen = (distance <= size) & (distance >= (0 if causal else -size))
    seen = seen if attention_mask is None else seen & attention_mask[:, None, None].bool()
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen.expand(len(query), 1, q_len, kv_len), scale=scaling
    )
    return out.nan_to_num().transpose(1, 2), None


@pytest.fixture(autouse=True)
def flash() -> Iterator[None]:
    before = AttentionInterface._global_mapping[FLASH]
    AttentionInterface.register(FLASH, attend_by_sizes)
    WINDOWS.clear()
    yield
    AttentionInterface.register(FLASH, before)


def chosen(model: Any) -> Any:
    """As ``set_attn_implementation``, which looks for the package."""
    model.config._attn_implementation = FLASH
    return model


@pytest.mark.parametrize(
    ("base", "attention", "windows"),
    [
        ("bert", {"mechanism": "window", "window": 6}, {4}),
        ("bert", {"mechanism": "window", "window": 6, "layers": {1: {"mechanism": "full"}}}, {4, None}),
        ("gpt2", {"mechanism": "window", "window": 6}, {6}),
        ("llama", {"mechanism": "window", "window": 6, "layers": {0: {"mechanism": "window", "window": 9}}}, {6, 9}),
        ("mistral", {"mechanism": "window", "window": 12, "layers": {0: {"mechanism": "full"}}}, {12, None}),
    ],
)
def test_flash_attention_is_told_the_window_of_each_layer(
    base: str, attention: dict[str, Any], windows: set[int | None]
) -> None:
    model = built(base, long_attention=attention)
    expected = hidden(model)
    padded = MASK[..., None] * model(IDS, attention_mask=MASK).last_hidden_state
    assert model.config._attn_implementation == "longattn"
    chosen(model)
    assert model.config._attn_implementation == FLASH
    torch.testing.assert_close(hidden(model), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        MASK[..., None] * model(IDS, attention_mask=MASK).last_hidden_state, padded, atol=1e-4, rtol=0
    )
    assert set(WINDOWS) == windows
    model.set_attn_implementation("longattn")
    assert torch.equal(hidden(model), expected)
    model.config._base_attention = True  # model.use_base_attention(), where the package is installed
    WINDOWS.clear()
    other = hidden(chosen(model))
    assert set(WINDOWS) == {model.config.sliding_window if base == "mistral" else None}
    assert (other - expected).abs().max() > 1e-3


@pytest.mark.parametrize("base", ["gpt2", "mistral"])
def test_generation_by_flash_attention_keeps_what_the_widest_layer_sees(base: str) -> None:
    """Mistral's own window, by which its caches would be cropped, is narrower."""
    head = {"gpt2": "LongGPT2LMHeadModel", "mistral": "LongMistralForCausalLM"}[base]
    changes = {"sliding_window": 8} if base == "mistral" else {}
    attention = {"mechanism": "window", "window": 20, "layers": {1: {"mechanism": "full"}}}
    model = families.FAMILIES[base].model_class(head)(config_of(base, long_attention=attention, **changes)).eval()
    arguments = {**GREEDY, "pad_token_id": 1, "attention_mask": MASK}
    expected = model.generate(IDS, **arguments)
    assert torch.equal(chosen(model).generate(IDS, **arguments), expected)
    assert 20 in WINDOWS


@every_case(
    ("base", "attention"),
    [
        ("bert", {"mechanism": "longformer", "window": 6}),
        ("bert", {"mechanism": "window", "window": 6, "num_sinks": 2}),
        ("bert", {"mechanism": "window", "window": 6, "relative": "alibi"}),
        ("bert", {"mechanism": "window", "left": 3, "right": 1}),
        ("bert", {"mechanism": "window", "window": 6, "dilation": 2}),
        ("bert", {"mechanism": "window", "window": 6, "exact_length": 20}),
        ("t5", {"mechanism": "window", "window": 6}),
        ("albert", {"mechanism": "window", "window": 6}),
        ("bart", {"mechanism": "window", "window": 6}),
    ],
)
def test_flash_attention_is_refused_for_more_than_plain_windows(base: str, attention: dict[str, Any]) -> None:
    for implementation in FLASHES:
        with pytest.raises(
            BackendError, match=f"'{implementation}' does not compute the mechanism .*use_base_attention"
        ):
            config_of(base, long_attention=attention, attn_implementation=implementation)


def test_mechanisms_changed_under_flash_attention_are_checked_again() -> None:
    model = chosen(built("bert", long_attention={"mechanism": "window", "window": 6}))
    model.config.long_attention = {"mechanism": "window", "window": 8}
    with pytest.raises(BackendError, match="does not compute the mechanism 'longformer'"):
        model.config.long_attention = {"mechanism": "longformer", "window": 6}


def test_flash_attention_of_a_stock_model_is_left_as_it_is() -> None:
    chosen(built("bert", long_attention={"mechanism": "window", "window": 6}))
    chosen(plain_model("bert", num_hidden_layers=1))(IDS)
    assert WINDOWS == [None]
