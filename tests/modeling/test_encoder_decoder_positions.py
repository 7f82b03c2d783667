"""Two position tables: each side grows by itself, while a checkpoint is read, and the config says how long either
is."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers

import hf_longattn.families as families
from hf_longattn.errors import InputError, OptionError
from hf_longattn.positions.tables import extend_table, sinusoids
from tests.modeling.encoder_decoder_contract import WINDOW
from tests.modeling.two_stacks import (
    BASES,
    COVERING,
    GENERATING,
    ROWS,
    inputs_of,
    long_config,
    on_the_fly,
    plain_model,
)
from tests.reference.small_models import tokens
from tests.saved import read_json


@pytest.mark.thorough
@pytest.mark.parametrize("base", BASES)
def test_a_plain_checkpoint_grows_on_the_encoder_s_side(base: str, tmp_path: Path) -> None:
    plain = plain_model(base, GENERATING[base])
    plain.save_pretrained(tmp_path / "short")
    model = on_the_fly(tmp_path / "short", base, max_position_embeddings=400, long_attention=COVERING)
    assert (model.config.max_position_embeddings, model.config.max_decoder_position_embeddings) == (400, ROWS)
    offset = families.FAMILIES[base].position_tables[0].offset
    rows = {
        side: getattr(model.model, side).embed_positions.weight.shape[0] - offset for side in ("encoder", "decoder")
    }
    assert rows == {"encoder": 400, "decoder": ROWS}
    inputs = inputs_of()
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = plain(**inputs)
        found = model(**inputs)
        long = model(tokens(1, 390), decoder_input_ids=tokens(1, 5))
    assert (expected.logits - found.logits).abs().max() < 1e-5
    assert (expected.encoder_last_hidden_state - found.encoder_last_hidden_state)[real].abs().max() < 1e-5
    assert long.logits.isfinite().all()
    model.save_pretrained(tmp_path / "long")
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "long")
    assert type(again) is type(model)
    again.save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "long" / name).read_bytes()


@pytest.mark.thorough
@pytest.mark.parametrize("base", BASES)
def test_a_decoder_may_have_another_length_than_the_encoder(base: str, tmp_path: Path) -> None:
    plain_model(base, GENERATING[base]).save_pretrained(tmp_path)
    model = on_the_fly(
        tmp_path, base, max_position_embeddings=200, max_decoder_position_embeddings=150, long_attention=COVERING
    )
    with torch.no_grad():
        assert model(tokens(1, 200), decoder_input_ids=tokens(1, 150)).logits.isfinite().all()
    with pytest.raises(InputError, match=r"needs 201 positions, but this model has 200.*--max-length 201"):
        model(tokens(1, 201), decoder_input_ids=tokens(1, 5))
    with pytest.raises(InputError, match=r"needs 151 positions, but this decoder has 150.*--max-decoder-length 151"):
        model(tokens(1, 20), decoder_input_ids=tokens(1, 151))
    with pytest.raises(InputError, match="this model has 200"):
        model.generate(tokens(1, 201), max_new_tokens=3)


@pytest.mark.parametrize("base", BASES)
def test_a_config_has_the_lengths_of_both_sides_when_it_is_read(base: str, tmp_path: Path) -> None:
    config = long_config(base, WINDOW, decoder_long_attention={"mechanism": "window", "window": 6})
    assert config.max_decoder_position_embeddings == ROWS
    config.save_pretrained(tmp_path)
    written = read_json(tmp_path)
    assert written["decoder_long_attention"] == {"mechanism": "window", "window": 6}
    for read in (
        type(config).from_pretrained(tmp_path),
        transformers.AutoConfig.from_pretrained(tmp_path),
        copy.deepcopy(config),
    ):
        assert read.to_json_string() == config.to_json_string()
    assert not hasattr(config, "layer_types")  # the encoder's keys are kept in a cache made from the same config


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", ["tile", "interpolate"])
def test_barts_two_special_rows_are_kept_once(strategy: str, tmp_path: Path) -> None:
    plain = plain_model("bart", "BartForConditionalGeneration")
    plain.save_pretrained(tmp_path)
    model = on_the_fly(
        tmp_path, "bart", max_position_embeddings=300, position_extension=strategy, long_attention=COVERING
    )
    old = plain.model.encoder.embed_positions.weight
    new = model.model.encoder.embed_positions.weight
    assert torch.equal(new, extend_table(old, 302, offset=2, strategy=strategy))
    assert torch.equal(model.model.decoder.embed_positions.weight, plain.model.decoder.embed_positions.weight)
    with pytest.raises(
        OptionError, match=r"96 positions and the config asks for 50.*max_decoder_position_embeddings=96"
    ):
        on_the_fly(tmp_path, "bart", max_decoder_position_embeddings=50, long_attention=COVERING)


def test_sinusoids_of_a_longer_pegasus_are_computed(tmp_path: Path) -> None:
    plain = plain_model("pegasus", "PegasusForConditionalGeneration")
    plain.save_pretrained(tmp_path)
    model = on_the_fly(tmp_path, "pegasus", max_position_embeddings=300, long_attention=COVERING)
    expected = plain_model("pegasus", max_position_embeddings=300).encoder.embed_positions.weight
    assert torch.equal(model.model.encoder.embed_positions.weight, expected)
    assert torch.equal(sinusoids(300, 64), expected)
    assert not model.model.encoder.embed_positions.weight.requires_grad
    with pytest.raises(OptionError, match=r"differs by up to .* from the sinusoids"):
        extend_table(torch.randn(10, 64), 20, offset=0, strategy="sinusoidal")
