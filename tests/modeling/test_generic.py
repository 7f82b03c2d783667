"""`enable_long_attention` on architectures that have no Long class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hf_longattn.errors import BackendError, OptionError
from hf_longattn.families import LongGPT2Config, LongGPT2LMHeadModel, enable_long_attention
from hf_longattn.modeling.attach.attention_sites import attention_sites
from scripts.dev.tools.every_config import model_class, other_inputs, small_config
from tests.cases import every_case
from tests.reference.small_models import plain_model, tokens

CASES = ("bert", "albert", "modernbert", "gpt2", "mistral", "bart", "t5", "vit", "whisper", "wav2vec2")


def build(case: str) -> tuple[Any, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = model_class(case)(small_config(case)).eval()
    if case in ("vit", "whisper", "wav2vec2"):
        return model, {name: value.float() if value.is_floating_point() else value for name, value in other_inputs(model).items()}
    return model, {"input_ids": tokens(2, 40)} | ({"decoder_input_ids": tokens(2, 30)} if case in ("bart", "t5") else {})


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


def test_layers_of_vit_may_have_different_mechanisms() -> None:
    model, _ = build("vit")
    enable_long_attention(model, {"mechanism": "full", "layers": {1: {"mechanism": "window", "window": 4}}})
    assert [site.module.long_attention.name for site in attention_sites(model)] == ["full", "window"]


def test_auto_classes_load_saved_enabled_models(tmp_path: Path) -> None:
    """Mechanisms with and without parameters; a head that the folder lacks is new; a config alone gives random weights."""
    for case, mechanism in (("vit", "window"), ("bert", "linformer:rank=16"), ("whisper", "window"), ("wav2vec2", "nystrom")):
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


def test_an_enabled_gpt2_generates_as_without_a_cache() -> None:
    model = enable_long_attention(plain_model("gpt2", "GPT2LMHeadModel"), {"mechanism": "window", "window": 8})
    how = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(tokens(2, 20), **how), model.generate(tokens(2, 20), use_cache=False, **how))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_decoding_refuses_a_mechanism_that_sees_more_than_the_sliding_cache(cache: str) -> None:
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "cache_implementation": cache, "disable_compile": True}
    without_cache = {**settings, "use_cache": False, "cache_implementation": None}
    for window, plan in (
        (16, {"mechanism": "window", "window": 16}),
        (16, {"mechanism": "window", "window": 5}),
        (64, {"mechanism": "full"}),
    ):
        model = enable_long_attention(plain_model("mistral", "MistralForCausalLM", sliding_window=window), plan)
        assert torch.equal(model.generate(tokens(2, 30), **settings), model.generate(tokens(2, 30), **without_cache)), plan
    for plan in ({"mechanism": "window", "window": 17}, {"mechanism": "window", "window": 8, "num_sinks": 2}, {"mechanism": "full"}):
        model = enable_long_attention(plain_model("mistral", "MistralForCausalLM", sliding_window=16), plan)
        with pytest.raises(
            BackendError, match=r"keeps the last 16 tokens of this layer .*choose a window of at most 16, or pass use_cache"
        ):
            model.generate(tokens(2, 30), **settings)
        model.generate(tokens(2, 30), **without_cache)


@pytest.mark.parametrize(
    ("keyword", "meaning"), [("sinks", "sinks of each query"), ("indices", "keys chosen"), ("block_indices", "blocks chosen")]
)
def test_a_keyword_of_attention_that_no_mechanism_computes_is_refused(keyword: str, meaning: str) -> None:
    model = enable_long_attention(plain_model("llama"), {"mechanism": "window", "window": 8})
    with pytest.raises(BackendError, match=f"LlamaAttention of layer 0 attends with {meaning}"):
        model(tokens(1, 20), **{keyword: torch.zeros(1)})


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
    with pytest.raises(BackendError, match="AttentionInterface"):
        enable_long_attention(torch.nn.Linear(2, 2), {"mechanism": "window"})  # type: ignore[type-var]
    off = transformers.DebertaModel(
        transformers.DebertaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    )
    with pytest.raises(BackendError, match="DebertaModel"):
        enable_long_attention(off, {"mechanism": "window"})
    long = LongGPT2LMHeadModel(LongGPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, long_attention={"mechanism": "full"}))
    with pytest.raises(BackendError, match="LongGPT2LMHeadModel has its mechanisms from its config"):
        enable_long_attention(long, {"mechanism": "window"})
