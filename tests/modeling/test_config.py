"""Long configs: reading, writing, validating, and what they say about the decode cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoConfig
from transformers.utils import logging

import hf_longattn
import hf_longattn.families as families
from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.modeling.family.sliding_window import own_windows, with_own_windows
from hf_longattn.names import LOGGER
from tests.cases import every_case
from tests.reference.small_models import BASES, long_config, plain_config
from tests.saved import change_json, read_json

CHOSEN = {
    "mechanism": "longformer",
    "window": 64,
    "global_tokens": [0, 1],
    "layers": {"1": {"mechanism": "window", "window": 16}},
}


@every_case("base", BASES)
class TestEveryFamily:
    @pytest.mark.thorough
    def test_a_saved_long_config_is_read_as_it_was(self, base: str, tmp_path: Path) -> None:
        config = long_config(base, CHOSEN, position_extension="interpolate")
        config.save_pretrained(tmp_path)
        written = read_json(tmp_path)
        assert written["long_attention"] == chosen_in(base).to_dict()
        assert written["model_type"] == f"long_{base}"
        for read in (type(config).from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
            assert type(read) is type(config)
            assert read.to_json_string() == config.to_json_string()
            assert read.position_extension == "interpolate"

    @pytest.mark.thorough
    def test_a_plain_folder_is_read_as_a_long_config(
        self, base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        plain_config(base, num_labels=5).save_pretrained(tmp_path)
        config = families.FAMILIES[base].config_class.from_pretrained(
            tmp_path, max_position_embeddings=4096, long_attention=CHOSEN
        )
        assert config.max_position_embeddings == 4096
        assert config.long_attention == chosen_in(base)
        assert config.model_type == f"long_{base}"
        assert config.num_labels == 5
        assert "You are using a model of type" not in caplog.text

    def test_a_config_may_ask_for_attentions(self, base: str) -> None:
        config = long_config(base, CHOSEN, output_attentions=True)
        config.validate()
        config.output_attentions = True
        config._attn_implementation = "sdpa"
        config.output_attentions = True

    @pytest.mark.thorough
    def test_long_attention_of_none_is_the_same_as_leaving_it_out(self, base: str, tmp_path: Path) -> None:
        long_class = families.FAMILIES[base].config_class
        values = plain_config(base).to_dict()
        expected = long_class(**values).long_attention
        unasked = long_class(**values, long_attention=None)
        assert unasked.long_attention == expected
        unasked.long_attention = CHOSEN
        unasked.long_attention = None
        assert unasked.long_attention == expected
        plain_config(base).save_pretrained(tmp_path / "plain")
        read = long_class.from_pretrained(tmp_path / "plain")
        assert (
            long_class.from_pretrained(tmp_path / "plain", long_attention=None).long_attention == read.long_attention
        )
        long_config(base, CHOSEN).save_pretrained(tmp_path / "long")
        assert long_class.from_pretrained(tmp_path / "long", long_attention=None).long_attention == chosen_in(base)


def chosen_in(base: str) -> LongAttentionConfig:
    """``CHOSEN`` beside the layers that keep a window of the base's own."""
    return with_own_windows(CHOSEN, own_windows(plain_config(base)))


def test_layer_types_follow_the_mechanisms() -> None:
    window = {"mechanism": "window", "window": 8, "layers": {1: {"mechanism": "full"}}}
    assert long_config("gpt2", window).layer_types == ["longattn_window_8", "full_attention", "longattn_window_8"]
    for unbounded in (
        long_config("gpt2", {"mechanism": "full"}),
        long_config("gpt2", window, add_cross_attention=True),
        long_config("bert", window),
    ):
        assert not hasattr(unbounded, "layer_types")
    assert long_config("bert", window, is_decoder=True).layer_types[0] == "longattn_window_8"


@pytest.mark.parametrize(
    ("config_class", "attention", "sentence"),
    [
        (
            "LongGPT2Config",
            {"mechanism": "bigbird", "random_pattern": "hf_eval"},
            "only with causal=False with these options, but layer 0",
        ),
        (
            "LongLlamaConfig",
            {"layers": {1: {"mechanism": "bigbird", "random_pattern": "hf_eval"}}},
            "layer 1 needs causal=True",
        ),
        (
            "LongBertConfig",
            {"mechanism": "window", "layers": {12: {"window": 8}}},
            "overrides layer 12, but the model has 12 layers",
        ),
    ],
)
def test_a_form_or_a_layer_that_is_not_there_is_refused_by_the_config(
    config_class: str, attention: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(OptionError, match=sentence):
        getattr(hf_longattn, config_class)(long_attention=attention)
    config = getattr(hf_longattn, config_class)()
    with pytest.raises(OptionError, match=sentence):
        config.long_attention = attention


def test_a_decoder_beside_an_encoder_needs_causal_forms() -> None:
    one_way = {"mechanism": "bigbird", "random_pattern": "hf_eval"}
    hf_longattn.LongBartConfig(long_attention=one_way)
    with pytest.raises(OptionError, match="layer 0 needs causal=True"):
        hf_longattn.LongBartConfig(decoder_long_attention=one_way)


def test_a_warning_about_an_implementation_names_the_model_s_mechanism(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(logging.get_logger(LOGGER), "warning_once", messages.append)
    families.LongBertModel(long_config("bert", {"mechanism": "window", "window": 8})).save_pretrained(tmp_path)
    change_json(tmp_path, attn_implementation="sdpa")
    families.LongBertModel.from_pretrained(tmp_path)
    assert messages
    assert all("would leave out the mechanism 'window'" in message for message in messages)


def test_windows_of_the_base_are_those_that_transformers_computes() -> None:
    """To either side in encoders, back only in decoders; ModernBERT's two configs name the same number."""
    sizes = {"num_hidden_layers": 3, "local_attention": 12}
    assert own_windows(transformers.ModernBertConfig(**sizes)) == [None, 12, 12]
    assert own_windows(transformers.ModernBertDecoderConfig(**sizes)) == [None, 6, 6]
    mistral = transformers.MistralConfig(num_hidden_layers=2, sliding_window=16)
    assert own_windows(mistral) == [16, 16]


@pytest.mark.parametrize("width", [0, -1])
def test_a_window_without_a_token_is_refused(width: int) -> None:
    with pytest.raises(
        CheckpointError,
        match=f"The config's sliding_window is {width}, but a window has at least 1 token; write a width, or null",
    ):
        own_windows(transformers.MistralConfig(sliding_window=width))
