"""Every base has a small config without being named anywhere."""

from __future__ import annotations

import pytest
import transformers

from hf_longattn.families import FAMILIES
from scripts.dev.tools.small_models import TEXT_FAMILIES, Shape, language_model, small_config, small_values
from tests.cells import every_cell


@pytest.mark.thorough
@every_cell("base", list(TEXT_FAMILIES))
def test_every_base_has_a_small_config(base: str) -> None:
    shape = Shape(width=24, layers=3, heads=2, inner=40, tokens=50, vocabulary=70)
    config, tables = small_config(base, shape, pad_token_id=1, max_2d_position_embeddings=100), FAMILIES[base].position_tables
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.vocab_size) == (24, 3, 2, 70)
    assert {table.tokens(config) for table in tables if not table.decoder} == ({50} if tables else set())
    assert config.pad_token_id == 1
    assert getattr(transformers, language_model(base))(config).num_parameters() < 60_000


def test_small_config_takes_values_that_the_architecture_has() -> None:
    assert "sliding_window" not in small_values("bert", sliding_window=8)
    assert small_values("mistral", sliding_window=8)["sliding_window"] == 8
    assert small_values("llama", num_key_value_heads=1)["num_key_value_heads"] == 1
