"""Extended positions: longer tables, rotary scalings, and which distances need no training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hf_longattn import build_mechanism
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.masked import needs_training_by
from hf_longattn.positions.rope import rope_parameters
from hf_longattn.positions.tables import STRATEGIES, extend_table, keeps_old_rows, unchanged_rows
from hf_longattn.positions.trained_distances import Locality, untrained_distances
from tests.cases import every_case


def table(rows: int = 10, width: int = 4) -> torch.Tensor:
    return torch.arange(rows * width, dtype=torch.float32).reshape(rows, width)


def test_tile_repeats_the_whole_position_table() -> None:
    old = table(5)
    assert torch.equal(extend_table(old, 12, offset=0, strategy="tile"), torch.cat([old, old, old[:2]]))


def test_special_rows_of_a_position_table_are_kept_once() -> None:
    old = torch.randn(514, 8)
    new = extend_table(old, 4098, offset=2, strategy="tile")
    assert torch.equal(new[:514], old)
    assert torch.equal(new[514:1026], old[2:])
    assert new.shape == (4098, 8)


def test_interpolation_of_a_position_table_keeps_the_ends_and_is_linear() -> None:
    new = extend_table(table(5), 9, offset=0, strategy="interpolate")
    assert torch.equal(new[::2], table(5))
    assert torch.equal(new[1::2], (table(5)[:-1] + table(5)[1:]) / 2)


def test_interpolation_leaves_special_rows_of_a_position_table_alone() -> None:
    old = table(7)
    new = extend_table(old, 12, offset=2, strategy="interpolate")
    assert torch.equal(new[:3], old[:3])
    assert torch.equal(new[-1], old[-1])


def test_stretching_77_positions_to_248_is_the_table_of_long_clip() -> None:
    """Zhang et al. 2024, section 3.1, row by row: four rows for each step, and the last step continued by its
    quarters."""
    old, kept = torch.randn(77, 8, dtype=torch.float64), 20
    expected = [*old[:kept]]
    for row in range(kept, 76):
        expected += [((4 - quarter) * old[row] + quarter * old[row + 1]) / 4 for quarter in range(4)]
    expected += [old[76] + quarter * (old[76] - old[75]) / 4 for quarter in range(4)]
    assert torch.allclose(
        extend_table(old, 248, offset=0, strategy="stretch"), torch.stack(expected), rtol=0, atol=1e-14
    )


@every_case(("strategy", "kept"), [("stretch", 20), ("stretch:1", 1), ("stretch:62", 62)])
@every_case("new_rows", [65, 100, 512])
def test_stretching_a_position_table_keeps_its_first_rows(strategy: str, kept: int, new_rows: int) -> None:
    old = torch.randn(66, 8)
    new = extend_table(old, new_rows + 2, offset=2, strategy=strategy)
    assert unchanged_rows(strategy, 64) == kept + 1
    assert torch.equal(new[: kept + 3], old[: kept + 3])
    assert not torch.equal(new[kept + 3], old[kept + 3])


@every_case("strategy", STRATEGIES)
@every_case("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_strategy_for_position_tables_keeps_dtype_and_source(strategy: str, dtype: torch.dtype) -> None:
    old = torch.randn(6, 4).to(dtype)
    before = old.clone()
    new = extend_table(old, 15, offset=1, strategy=strategy)
    assert new.dtype == dtype
    assert new.is_contiguous()
    assert torch.equal(old, before)
    assert torch.equal(extend_table(old, 6, offset=1, strategy=strategy), old)
    assert torch.equal(new[:6], old) == keeps_old_rows(strategy)


@every_case(
    ("arguments", "sentence"),
    [
        ({"new_rows": 9, "offset": 2}, "a maximum length of at least 8"),
        ({"new_rows": 20, "offset": 10}, "cannot start with 10 special rows"),
        ({"new_rows": 20, "offset": 0, "strategy": "tiles"}, "Did you mean 'tile'"),
        ({"new_rows": 20, "offset": 0, "strategy": "stretch"}, "keep fewer with stretch:8"),
        ({"new_rows": 20, "offset": 8, "strategy": "stretch"}, "A table of 2 positions .* choose interpolate instead"),
        ({"new_rows": 20, "offset": 0, "strategy": "stretch:few"}, "give a number of at least 1"),
    ],
)
def test_position_tables_that_cannot_be_extended_are_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        extend_table(table(10), **arguments)


PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


def rotary(parameters: dict, max_length: int) -> LlamaRotaryEmbedding:
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=2, max_position_embeddings=max_length, rope_parameters=dict(parameters)
    )
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


P = 512


@every_case(
    ("name", "options", "causal", "holds"),
    [
        ("window", {"window": 512}, False, True),
        ("window", {"window": 514}, False, False),
        ("window", {"window": 1024}, False, False),  # measured: the loss goes from 4.9 to 7.1
        ("window", {"window": 257}, True, True),
        # most queries of a decoder see keys whose positions come after their own
        ("window", {"window": 258}, True, False),
        ("window", {"window": 256, "num_sinks": 4}, True, True),
        ("window", {"window": 256, "dilation": 2}, False, True),
        ("window", {"window": 256, "dilation": (1, 4)}, False, False),
        ("longformer", {"window": 512, "global_tokens": (0,)}, False, True),
        ("segmented", {"block_size": 512, "integration": "none"}, False, True),
        ("segmented", {"block_size": 256}, False, False),
        ("bigbird", {}, False, False),
        *(
            (name, {}, False, False)
            for name in ("full", "top_k", "block_top_k", "lsh", "routing", "strided", "linear")
        ),
    ],
)
def test_tiled_positions_hold_for_keys_that_span_the_trained_length(
    name: str, options: dict, causal: bool, holds: bool
) -> None:  # type: ignore[type-arg]
    mechanism = build_mechanism(name, num_heads=2, head_dim=16, max_length=4096, **options)
    problem = needs_training_by(mechanism, "tile", P, 4096, causal)
    assert (problem == "") == holds
    assert holds or "tiled positions repeat every 512 tokens" in problem
    assert needs_training_by(mechanism, "tile", P, P, causal) == "", "nothing is tiled"


def test_untrained_distances_are_named_for_plain_rope_only() -> None:
    near, far = Locality(255, 0), Locality(900, 0)
    assert untrained_distances("rope:none", P, 4096, near, 255) == ""
    assert "distances up to 900" in untrained_distances("rope:none", P, 4096, far, 900)
    assert "any distance" in untrained_distances("rope:none", P, 4096, near, None)  # sinks
    for rule in ("interpolate", "rope:yarn", "alibi", "none", "sinusoidal", "relative"):
        assert untrained_distances(rule, P, 4096, None, None) == ""
