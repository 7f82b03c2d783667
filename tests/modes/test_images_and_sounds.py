"""Models of images and of sound in the modes and ways of texts: every row of a batch gives what it gives alone, or the call is refused in
one sentence."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_longattn
from hf_longattn.engines.cpu.onednn import cpu_computes_bf16
from hf_longattn.errors import LongAttentionError, MaskError, MemoryMismatchError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.grids import REFUSED_ARGUMENTS
from scripts.dev.tools.small_models import Shape, small_audio_config, small_image_config
from tests.cells import every_cell
from tests.grids import ONLY_QUICK
from tests.modeling import audio_models, grid_models
from tests.modeling.grid_models import base_model
from tests.modes.cells import fields_of
from tests.modes.ways import COARSE, WAYS, Fields, Way

IMAGES, SOUNDS = grid_models.BASES, audio_models.BASES
BASES = [*IMAGES, *SOUNDS]
NAMES = (
    *("optimised fp32", "optimised bf16", "optimised int8", "hidden states", "attentions", "inference mode", "autocast", "tuples"),
    "save and reload",
)
"""The ways that have a meaning for them and no tests of their own in tests/modeling."""
PRECISIONS = ("optimised fp32", "optimised bf16", "optimised int8")
REFUSED = {
    ("optimised int8", "save and reload"): "rounded and cannot be saved; save the model before",
    **dict.fromkeys(itertools.combinations(PRECISIONS, 2), "optimised for inference already"),
}
PAIRS = list(itertools.combinations(NAMES, 2))
ROTATED = [(bases[number % len(bases)], *pair) for bases in (IMAGES, SOUNDS) for number, pair in enumerate(PAIRS)]
SHAPE = Shape(layers=2, inner=64)
PIXELS, SECONDS = (40, 48), (0.6, 0.6)
"""Size of each image of a batch, and durations of its sounds."""


def built(base: str) -> Any:
    return copy.deepcopy(_built(base))


@functools.lru_cache(maxsize=2)  # a copy takes a third of the time, and tests of one base follow one another
def _built(base: str) -> Any:
    return small_model(base)


def small_model(base: str, attention: dict[str, Any] | None = None) -> Any:
    torch.manual_seed(0)
    if base in IMAGES:
        config, default = small_image_config(base, SHAPE), {"mechanism": "window2d", "window": 3}
    else:
        config, default = small_audio_config(base, SHAPE), {"mechanism": "window", "left": 9, "right": 4}
    values = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    family = FAMILIES[base]
    return family.model_class(base_model(base))(family.config_class(**values, long_attention=attention or default)).eval()


def two_rows(base: str) -> dict[str, Tensor]:
    return grid_models.inputs_of(base, PIXELS) if base in IMAGES else audio_models.inputs_of(base, SECONDS)


def prepared(base: str, ways: list[Way]) -> Any:
    model = built(base)
    for way in ways:
        model = way.prepare(model)
    return model


def called(model: Any, ways: list[Way], inputs: dict[str, Any], *, baseline: bool = False) -> Fields:
    run = fields_of
    for way in sorted(ways, key=lambda way: way.name != "tuples"):  # which calls the model itself
        run = way.baseline(run) if baseline else way.call(run)
    arguments = {name: value for way in ways for name, value in way.arguments.items()}
    with torch.no_grad():
        return run(model, {**inputs, **arguments})


def check(base: str, *names: str) -> None:
    """Each row of a batch gives what a plain model gives for it alone, or the ways are refused together."""
    if not cpu_computes_bf16() and {"optimised bf16", "optimised int8"} & {*names}:
        pytest.skip("this processor computes no bf16")
    ways = [WAYS[name] for name in names]
    inputs = two_rows(base)
    if names in REFUSED:
        with pytest.raises(LongAttentionError, match=REFUSED[names]):
            called(prepared(base, ways), ways, inputs)
        return
    together = called(prepared(base, ways), ways, inputs)
    plain = prepared(base, [way for way in ways if way.in_baseline])
    tolerance = max(way.tolerance for way in ways)
    for row in range(2):
        alone = called(plain, ways, {name: value[row : row + 1] for name, value in inputs.items()}, baseline=True)
        assert alone.keys() == together.keys()
        for name, expected in alone.items():
            found, expected = together[name][row].double(), expected[0].double()
            assert found.isfinite().all()
            off = (found - expected).norm() / expected.norm() if tolerance == COARSE else (found - expected).abs().max()
            assert off <= max(tolerance, 1e-4), f"{name} of row {row} is off by {off:.1e}"


@pytest.mark.thorough
@every_cell("base", BASES)
def test_each_way_alone(base: str) -> None:
    """The quick tests run the ways in turn."""
    for name in NAMES[BASES.index(base) % 5 :: 5] if ONLY_QUICK else NAMES:
        check(base, name)


@pytest.mark.thorough
@every_cell(("base", "first", "second"), ROTATED, by="base", of=5)
def test_two_ways_together(base: str, first: str, second: str) -> None:
    check(base, first, second)


@pytest.mark.slow
@every_cell(("base", "first", "second"), sorted({(base, *pair) for base in BASES for pair in PAIRS} - {*ROTATED}), by="base")
def test_all_families(base: str, first: str, second: str) -> None:
    check(base, first, second)


@every_cell("precision", ["bf16", "int8"])
@every_cell("base", IMAGES, of=2)
def test_optimised_models_are_near_the_model(base: str, precision: str) -> None:
    if not cpu_computes_bf16():
        pytest.skip("this processor computes no bf16")
    inputs = two_rows(base)
    with torch.no_grad():
        expected = built(base)(**inputs).last_hidden_state
        found = built(base).optimize_for_inference(precision)(**inputs).last_hidden_state
    assert (found.float() - expected).norm() / expected.norm() < COARSE


@every_cell("base", BASES)
class TestModesThatArePartsOfTexts:
    @pytest.mark.thorough
    def test_memory(self, base: str) -> None:
        with pytest.raises(MemoryMismatchError, match="a memory holds past tokens only"):
            built(base).new_memory()


@every_cell("base", IMAGES)
class TestImages:
    def test_segments(self, base: str) -> None:
        attention = {"mechanism": "recurrent_memory", "segment_length": 32, "num_memory_tokens": 2, "order": "tiles:4x4"}
        with pytest.raises(OptionError, match=r"'recurrent_memory' reads one segment of a text after the other.* no such order; choose"):
            small_model(base, attention)

    @pytest.mark.thorough
    def test_arguments_of_texts(self, base: str) -> None:
        model, inputs = built(base), grid_models.inputs_of(base)
        for name in REFUSED_ARGUMENTS:
            with pytest.raises(MaskError, match=f"{name} is for texts, but Long.* reads {FAMILIES[base].rule.input}; leave {name} out"):
                model(**inputs, **{name: torch.zeros(2, 64, dtype=torch.long)})
        model(**inputs, **dict.fromkeys(REFUSED_ARGUMENTS))


@pytest.mark.thorough
@every_cell("base", SOUNDS)
def test_explain_names_the_path_of_every_layer(base: str) -> None:
    model = built(base)
    paths = hf_longattn.explain(model, audio_models.inputs_of(base, (1.2,)))
    assert [path.mechanism for path in paths] == ["window"] * model.config.num_hidden_layers
