"""Texts longer than the position table, and configs shorter than the checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import hf_longattn.families as families
from hf_longattn.errors import InputError, OptionError
from hf_longattn.modeling.family.definition import known_length, longest_input
from tests.reference.small_models import long_config, long_model, plain_model, tokens

WINDOW = {"mechanism": "window", "window": 8}


@pytest.mark.parametrize(
    ("base", "name", "limit"),
    [("bert", "LongBertModel", 512), ("roberta", "LongRobertaModel", 512), ("gpt2", "LongGPT2Model", 512)],
)
def test_a_text_longer_than_the_position_table_is_refused(base: str, name: str, limit: int) -> None:
    model = getattr(families, name)(long_config(base, WINDOW)).eval()
    with torch.no_grad():
        model(tokens(1, limit))
        with pytest.raises(InputError, match=f"needs {limit + 1} positions, but this model has {limit}") as caught:
            model(tokens(1, limit + 1))
        assert "\n" not in str(caught.value)
        assert f"truncation=True, max_length={limit}" in str(caught.value)
        with pytest.raises(InputError):
            model(inputs_embeds=torch.zeros(1, limit + 1, 64))


@pytest.mark.parametrize(
    ("base", "pad", "filled"), [("roberta", 1, 1), ("roberta", 0, 0), ("roberta", 4, 4), ("mpnet", 0, 1)]
)
def test_padding_of_roberta_and_mpnet_takes_no_position(base: str, pad: int, filled: int) -> None:
    model = long_model(base, None, WINDOW, pad_token_id=pad)
    length = 512 if base == "mpnet" else 513 - pad  # the table has 514 rows
    ids = tokens(1, length).clamp(min=5)
    padded = torch.cat([ids, torch.full((1, 10), filled)], 1)
    with torch.no_grad():
        out = model(padded, attention_mask=(padded != filled).long()).last_hidden_state
        assert torch.allclose(out[:, :length], model(ids).last_hidden_state, atol=1e-5)
    with pytest.raises(InputError, match=f"needs {length + 1} positions, but this model has {length};"):
        model(torch.cat([padded, ids[:, :1]], 1))


def test_generation_beyond_the_position_table_is_refused() -> None:
    model = families.LongGPT2LMHeadModel(long_config("gpt2", WINDOW)).eval()
    with pytest.raises(InputError, match="this model has 512"):
        model.generate(tokens(1, 500), max_new_tokens=20, do_sample=False, eos_token_id=None)
    left_padded = torch.cat([torch.full((1, 30), 3), tokens(1, 490)], 1)
    mask = (torch.arange(520) >= 30).long()[None]
    model.generate(left_padded, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=None)


def test_rotary_positions_have_no_end() -> None:
    model = families.LongLlamaModel(long_config("llama", WINDOW)).eval()
    with torch.no_grad():
        assert model(tokens(1, 600)).last_hidden_state.shape == (1, 600, 64)


def test_a_config_shorter_than_the_checkpoint_is_refused(tmp_path: Path) -> None:
    plain_model("bert").save_pretrained(tmp_path)
    config = families.LongBertConfig.from_pretrained(tmp_path, max_position_embeddings=256)
    with pytest.raises(OptionError, match="has 512 positions and the config asks for 256"):
        families.LongBertModel.from_pretrained(tmp_path, config=config)


@pytest.mark.parametrize(("architecture", "longest"), [("Longformer", 98), ("XLMRoberta", 98), ("Bert", 100)])
def test_known_length_leaves_out_rows_that_are_no_positions(architecture: str, longest: int) -> None:
    """Longformer's table of 514 rows is for 512 tokens."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 50,
        "pad_token_id": 1,
    }
    config = getattr(transformers, f"{architecture}Config")(max_position_embeddings=100, **sizes)
    model = getattr(transformers, f"{architecture}Model")(config).eval()
    assert known_length(config, None, model) == longest
    with torch.no_grad():
        model(torch.full((1, longest), 5))


def test_the_longest_input_of_led_mpt_and_bloom() -> None:
    led = transformers.LEDConfig(max_encoder_position_embeddings=64, max_decoder_position_embeddings=32)
    assert longest_input(led) == 64
    assert longest_input(transformers.MptConfig(max_seq_len=96)) == 96
    assert longest_input(transformers.BloomConfig()) is None
