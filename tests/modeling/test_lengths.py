"""Maximum lengths: texts longer than the position table, configs shorter than the checkpoint, and models without positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import hf_longattn
import hf_longattn.families as families
from hf_longattn.errors import InputError, OptionError
from hf_longattn.modeling.family.definition import known_length
from scripts.dev.tools.check_derived import LONG, TOKENS, decoded, small_model
from scripts.dev.tools.derived import WITHOUT_POSITIONS
from tests.cases import every_case
from tests.reference.small_models import long_config, long_like, plain_model, tokens

WINDOW = {"mechanism": "window", "window": 8}


@pytest.mark.parametrize(
    ("base", "name", "limit"), [("bert", "LongBertModel", 512), ("roberta", "LongRobertaModel", 512), ("gpt2", "LongGPT2Model", 512)]
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


@pytest.mark.parametrize(("base", "pad", "filled"), [("roberta", 1, 1), ("roberta", 0, 0), ("roberta", 4, 4), ("mpnet", 0, 1)])
def test_padding_of_roberta_and_mpnet_takes_no_position(base: str, pad: int, filled: int) -> None:
    model = long_like(plain_model(base, pad_token_id=pad), base, WINDOW, pad_token_id=pad)
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
    left_padded, mask = torch.cat([torch.full((1, 30), 3), tokens(1, 490)], 1), (torch.arange(520) >= 30).long()[None]
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


def test_known_length_reads_the_fields_of_led_mpt_and_bloom() -> None:
    assert known_length(transformers.LEDConfig(max_encoder_position_embeddings=64, max_decoder_position_embeddings=32), None) == 64
    assert known_length(transformers.MptConfig(max_seq_len=96), None) == 96
    assert known_length(transformers.BloomConfig(), None) is None


def short(base: str, folder: Path, **config: Any) -> Any:
    auto, model = small_model(base)
    if config:
        for name, value in config.items():
            setattr(model.config, name, value)
        model = auto.from_config(model.config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.thorough
@every_case("base", WITHOUT_POSITIONS, of=2)
def test_models_without_positions_read_longer_texts_as_the_stock_model(base: str, tmp_path: Path) -> None:
    stock = short(base, tmp_path / "short")
    report = hf_longattn.convert_checkpoint(
        tmp_path / "short", tmp_path / "long", mechanism="window", options={"window": 2 * LONG}, max_length=LONG, verify=False
    )
    assert report.plan["positions"] == "absent"
    long = AutoModelForCausalLM.from_pretrained(tmp_path / "long").eval()
    assert long.config.max_position_embeddings == LONG
    ids = torch.randint(5, 150, (2, LONG), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = stock(ids).logits, long(ids).logits
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
        assert decoded(long, ids[:, :90], found[:, :90], prompt=70) < 1e-3


def test_positions_are_refused_for_models_without_them(tmp_path: Path) -> None:
    short("jamba", tmp_path / "short")
    with pytest.raises(OptionError, match=r"'rope:yarn' does not apply: a JambaForCausalLM has no positions"):
        hf_longattn.convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="window", positions="rope:yarn", max_length=LONG)


@pytest.mark.thorough
@every_case(("base", "chosen"), [("granitemoehybrid", {"position_embedding_type": "rope"}), ("zamba2", {"use_mem_rope": True})])
def test_a_config_may_choose_rotary_positions_for_granite_and_zamba(base: str, chosen: dict[str, Any], tmp_path: Path) -> None:
    stock = short(base, tmp_path / "short", **chosen, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    report = hf_longattn.convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="full", max_length=LONG)
    assert report.plan["positions"] == "rope:yarn"
    long = AutoModelForCausalLM.from_pretrained(tmp_path / "long").eval()
    kept = hf_longattn.convert_checkpoint(
        tmp_path / "short", tmp_path / "kept", mechanism="window", options={"window": 16}, max_length=LONG
    )
    assert kept.plan["positions"] == "rope:none"
    ids = torch.randint(5, 150, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert not torch.allclose(stock(ids).logits, long(ids).logits, atol=1e-6)


def test_packed_documents_are_refused_for_recurrent_layers(tmp_path: Path) -> None:
    short("jamba", tmp_path / "short")
    hf_longattn.convert_checkpoint(
        tmp_path / "short", tmp_path / "long", mechanism="window", options={"window": 16}, max_length=LONG, verify=False
    )
    long = AutoModelForCausalLM.from_pretrained(tmp_path / "long").eval()
    ids, documents = torch.randint(5, 150, (1, 60)), (torch.arange(60) > 30).long()[None]
    with pytest.raises(InputError, match="recurrent layers of this model read across their borders; give each document its own row"):
        long(ids, documents=documents)
