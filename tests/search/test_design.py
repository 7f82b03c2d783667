"""Costs of a layer, the best choice within a budget, and designs as configurations and recipes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from hf_longattn import LongAttentionConfig, convert_checkpoint
from hf_longattn.errors import LongAttentionError
from hf_longattn.files import read_json
from hf_longattn.inspect import Candidate
from hf_longattn.modeling.costs import ModelShape
from hf_longattn.search import costs
from hf_longattn.search.choice import best_under_total
from hf_longattn.search.costs import layer_seconds
from hf_longattn.search.design import Design
from tests.cli.test_commands import output

CPU = torch.device("cpu")


def shape() -> ModelShape:
    return ModelShape(
        layers=2,
        heads=2,
        kv_heads=1,
        head_dim=16,
        hidden=32,
        intermediate=64,
        causal=False,
        matrix_parameters=0,
        element_bytes=4,
    )


def read(*texts: str) -> list[Candidate]:
    return [Candidate.read(text) for text in texts]


def test_a_window_is_cheaper_than_full_attention() -> None:
    result, _ = layer_seconds(read("window:window=64", "full"), shape(), 2048, CPU)
    assert 0 < result["window:window=64"] < result["full"]


def test_candidates_that_cannot_run_are_left_out_unless_the_user_gave_them() -> None:
    wrong = Candidate("window", {"window": 64, "relative": "no_such"})
    with pytest.raises(LongAttentionError):
        layer_seconds([Candidate(wrong.mechanism, wrong.options, by_user=True)], shape(), 256, CPU)
    seconds, refused = layer_seconds([wrong, Candidate("full")], shape(), 256, CPU)
    assert set(seconds) == {"full"}
    assert list(refused) == [str(wrong)]


@pytest.mark.parametrize(("threads", "expected"), [(1, 2.0), (2, 5.0)])
def test_one_thread_is_timed_by_its_processor_time(
    threads: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes lengthen only the time that passes."""
    monkeypatch.setattr(costs.torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(costs.torch.accelerator, "is_available", lambda: False)
    for clock, seconds in (("process_time", (1.0, 3.0)), ("perf_counter", (1.0, 6.0))):
        monkeypatch.setattr(costs.time, clock, iter(seconds).__next__)
    assert costs._timed(lambda: torch.zeros(1)) == expected


def all_choices(values: np.ndarray, costs: np.ndarray) -> list[tuple[float, float, tuple[int, ...]]]:
    """(value, cost, candidates) of every possible design."""
    layers = range(len(values))
    return [
        (
            float(sum(values[layer, number] for layer, number in zip(layers, numbers, strict=True))),
            float(sum(costs[layer, number] for layer, number in zip(layers, numbers, strict=True))),
            numbers,
        )
        for numbers in itertools.product(range(values.shape[1]), repeat=len(values))
    ]


@pytest.mark.parametrize("seed", range(8))
def test_the_best_choice_is_found_under_every_budget(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, costs = rng.random((4, 5)), rng.integers(1, 60, (4, 5)).astype(float)
    everything = all_choices(values, costs)
    for budget in (costs.min(1).sum(), 50.0, 100.0, 150.0, 240.0):
        possible = [choice for choice in everything if choice[1] <= budget]
        result = best_under_total(values, costs, budget)
        if not possible:
            assert result is None
            continue
        assert result is not None
        value, _, _ = next(choice for choice in possible if choice[2] == tuple(result))
        assert math.isclose(value, max(possible)[0], rel_tol=1e-9)


def test_a_design_that_costs_exactly_the_budget_is_within_it() -> None:
    values, costs = np.array([[0.1, 0.9]] * 6), np.array([[0.01, 0.0371]] * 6)
    assert best_under_total(values, costs, 6 * 0.0371) == [1] * 6


WIDE, NARROW, FULL = (Candidate.read(text) for text in ("window:window=32", "window:window=8", "full"))
NESTED = Candidate.read("union:of=[window:window=8,dilation=2+strided:stride=4]")
GLOBALS = Candidate.read("longformer:window=8,global_tokens=0+3")


def test_the_candidate_of_most_layers_is_the_default() -> None:
    design = Design((NARROW, WIDE, FULL, WIDE))
    assert design.attention() == LongAttentionConfig(
        "window", window=32, layers={0: {"mechanism": "window", "window": 8}, 2: {"mechanism": "full"}}
    )
    assert str(design) == "0=window:window=8; 1,3=window:window=32; 2=full"
    assert str(Design((FULL,) * 3)) == "full in every layer"


@pytest.mark.thorough
@pytest.mark.parametrize(
    "layers", [(NARROW, WIDE, FULL), (NESTED, NESTED, GLOBALS), (GLOBALS, NESTED, NESTED), (FULL, FULL, FULL)], ids=str
)
def test_a_recipe_converts_to_the_same_attention(
    layers: tuple[Candidate, ...], encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    design = Design(layers)
    file = tmp_path / "design.yaml"
    file.write_text(yaml.safe_dump(design.recipe(max_length=128)), encoding="utf-8")
    output(capsys, "convert", encoder, tmp_path / "long", "--config", file, "--no-verify")
    written = read_json(tmp_path / "long" / "config.json")
    assert written["max_position_embeddings"] == 128
    typed = LongAttentionConfig.from_dict(written["long_attention"])
    convert_checkpoint(encoder, tmp_path / "same", long_attention=design.attention(), max_length=128, verify=False)
    config = read_json(tmp_path / "same" / "config.json")
    assert typed == LongAttentionConfig.from_dict(config["long_attention"])
