"""Rotary positions for more tokens, in transformers' own terms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hf_longattn.errors import OptionError
from hf_longattn.positions.rope import rope_parameters
from tests.cases import every_case

PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


def rotary(parameters: dict, max_length: int) -> LlamaRotaryEmbedding:
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=max_length, rope_parameters=dict(parameters))
    return LlamaRotaryEmbedding(config)


def cosines(module: LlamaRotaryEmbedding, positions: torch.Tensor) -> torch.Tensor:
    return module(torch.zeros(1), positions[None].float())[0]


@every_case("kind", ["none", "linear", "dynamic", "yarn"])
def test_a_rope_plan_is_exact_where_the_old_length_is_unchanged(kind: str) -> None:
    plan = rope_parameters(f"rope:{kind}", PLAIN, old_length=64, new_length=256)
    new = cosines(rotary(plan.parameters, plan.max_position_embeddings), torch.arange(256))
    assert new.isfinite().all()
    new = cosines(rotary(plan.parameters, plan.max_position_embeddings), torch.arange(64))
    assert torch.allclose(new, cosines(rotary(PLAIN, 64), torch.arange(64)), atol=1e-6) == plan.exact


def test_linear_rope_stretches_the_old_range_over_the_new_one() -> None:
    plan = rope_parameters("rope:linear", PLAIN, old_length=64, new_length=256)
    new = cosines(rotary(plan.parameters, 256), torch.arange(0, 256, 4))
    torch.testing.assert_close(new, cosines(rotary(PLAIN, 64), torch.arange(64)))


def test_dynamic_rope_grows_beyond_the_old_length() -> None:
    plan = rope_parameters("rope:dynamic", PLAIN, old_length=64, new_length=256)
    module = rotary(plan.parameters, plan.max_position_embeddings)
    assert not torch.allclose(cosines(module, torch.arange(256)), cosines(rotary(PLAIN, 64), torch.arange(256)))


def test_a_rope_base_replaces_the_old_one() -> None:
    plan = rope_parameters("rope:base:8e6", {**PLAIN, "partial_rotary_factor": 0.5}, old_length=64, new_length=256)
    assert plan.parameters == {"rope_type": "default", "rope_theta": 8e6, "partial_rotary_factor": 0.5}
    assert (plan.scaling, plan.max_position_embeddings, plan.exact) == ("base", 256, False)
    again = rope_parameters("rope:base:128000000", plan.parameters, old_length=256, new_length=512)
    assert again.parameters["rope_theta"] == 1.28e8
    assert rope_parameters("rope:base:10000", PLAIN, old_length=64, new_length=256).exact


@every_case("value", ["", ":", ":-1", ":0", ":many", ":inf", ":nan"])
def test_a_rope_base_is_a_positive_number(value: str) -> None:
    with pytest.raises(OptionError, match="rope:base:8000000"):
        rope_parameters(f"rope:base{value}", PLAIN, old_length=64, new_length=256)


def test_auto_rope_changes_nothing_where_no_layer_looks_beyond_the_old_length() -> None:
    assert rope_parameters("auto", PLAIN, old_length=64, new_length=256, reach=64).scaling == "none"
    assert rope_parameters("auto", PLAIN, old_length=64, new_length=256, reach=65).scaling == "yarn"
    assert rope_parameters("auto", PLAIN, old_length=64, new_length=256, reach=None).scaling == "yarn"


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_extending_rope_twice_equals_extending_once(kind: str) -> None:
    once = rope_parameters(f"rope:{kind}", PLAIN, old_length=64, new_length=512)
    half = rope_parameters(f"rope:{kind}", PLAIN, old_length=64, new_length=128)
    assert rope_parameters("auto", half.parameters, old_length=128, new_length=512).parameters == once.parameters


def test_longrope_reads_its_factors_from_a_file(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    file = tmp_path / "factors.json"
    file.write_text(json.dumps(factors))
    plan = rope_parameters(f"rope:longrope:{file}", PLAIN, old_length=64, new_length=256)
    assert plan.parameters["long_factor"] == factors["long_factor"]
    assert cosines(rotary(plan.parameters, 256), torch.arange(256)).isfinite().all()


@every_case(
    ("positions", "old", "sentence"),
    [
        ("rope:longrope", PLAIN, "short_factor and long_factor are missing"),
        ("rope:longrope:nowhere.json", PLAIN, "Cannot read the rotary factors"),
        ("rope:yarm", PLAIN, "Did you mean 'rope:yarn'"),
        ("tile", PLAIN, "does not fit a model with rotary positions"),
        ("rope:yarn", {"rope_type": "llama3", "factor": 8.0}, "already scales its rotary positions with 'llama3'"),
    ],
)
def test_rope_refuses_rules_files_and_scalings_that_do_not_fit(positions: str, old: dict, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        rope_parameters(positions, old, old_length=64, new_length=256)


def test_rope_refuses_a_shorter_length() -> None:
    with pytest.raises(OptionError, match="can only grow"):
        rope_parameters("auto", PLAIN, old_length=64, new_length=32)


def test_a_yarn_entry_keeps_its_factor_up_to_the_length_that_it_covers() -> None:
    """Some checkpoints declare a factor of 4 beside the trained length alone."""
    entry = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
    for length, factor in ((64, 4.0), (128, 4.0), (256, 4.0), (512, 8.0)):
        plan = rope_parameters("auto", entry, old_length=64, new_length=length, reach=None)
        assert (plan.parameters["factor"], plan.exact) == (factor, length <= 256)
