"""Models of images and of sound in the ways of texts: every row of a batch gives what it gives alone, or the call is refused."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn.engines.cpu.onednn import cpu_computes_bf16
from hf_longattn.errors import InputError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.grids import REFUSED_ARGUMENTS
from scripts.dev.tools.small_models import Shape, small_audio_config, small_image_config
from tests.cases import every_case
from tests.grids import ONLY_QUICK
from tests.modeling import audio_models, grid_models
from tests.modeling.grid_models import base_model
from tests.modes.crossings import fields_of
from tests.modes.ways import COARSE, WAYS, Fields, Way

IMAGES, SOUNDS = grid_models.BASES, audio_models.BASES
BASES = [*IMAGES, *SOUNDS]
NAMES = (
    *("optimised fp32", "optimised bf16", "optimised int8", "hidden states", "attentions", "inference mode", "autocast", "tuples"),
    "save and reload",
)
"""The ways that have a meaning for them and no tests of their own in tests/modeling."""
SHAPE = Shape(layers=2, inner=64)
PIXELS, SECONDS = (40, 48), (0.6, 0.6)
"""Size of each image of a batch, and durations of its sounds."""


@functools.lru_cache(maxsize=2)  # a copy takes a third of the time, and tests of one base follow one another
def built(base: str) -> Any:
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


@torch.no_grad()
def outputs_of(base: str, way: Way, inputs: dict[str, Tensor], *, alone: bool = False) -> Fields:
    model = copy.deepcopy(built(base))
    if way.in_baseline or not alone:
        model = way.prepare(model)
    run = way.baseline(fields_of) if alone else way.call(fields_of)
    return run(model, {**inputs, **way.arguments})


@pytest.mark.thorough
@every_case("base", BASES)
def test_rows_of_images_and_sounds_are_those_alone_in_every_way_of_calling(base: str) -> None:
    """The quick tests run the ways in turn."""
    inputs = grid_models.inputs_of(base, PIXELS) if base in IMAGES else audio_models.inputs_of(base, SECONDS)
    for name in NAMES[BASES.index(base) % 5 :: 5] if ONLY_QUICK else NAMES:
        way = WAYS[name]
        if name in ("optimised bf16", "optimised int8") and not cpu_computes_bf16():
            continue
        together = outputs_of(base, way, inputs)
        for row in range(2):
            alone = outputs_of(base, way, {name: value[row : row + 1] for name, value in inputs.items()}, alone=True)
            assert alone.keys() == together.keys()
            for field, expected in alone.items():
                found, expected = together[field][row].double(), expected[0].double()
                assert found.isfinite().all()
                off = (found - expected).norm() / expected.norm() if way.tolerance == COARSE else (found - expected).abs().max()
                assert off <= max(way.tolerance, 1e-4), f"{name}: {field} of row {row} is off by {off:.1e}"


@pytest.mark.thorough
@every_case("base", BASES)
def test_images_and_sounds_have_no_memory(base: str) -> None:
    with pytest.raises(InputError, match="a memory holds past tokens only"):
        built(base).new_memory()


@every_case("base", IMAGES)
def test_images_refuse_segments(base: str) -> None:
    attention = {"mechanism": "recurrent_memory", "segment_length": 32, "num_memory_tokens": 2, "order": "tiles:4x4"}
    with pytest.raises(OptionError, match=r"'recurrent_memory' reads one segment of a text after the other.* no such order; choose"):
        small_model(base, attention)


@pytest.mark.thorough
@every_case("base", IMAGES)
def test_images_refuse_arguments_of_texts(base: str) -> None:
    model, inputs = built(base), grid_models.inputs_of(base)
    for name in REFUSED_ARGUMENTS:
        with pytest.raises(InputError, match=f"{name} is for texts, but Long.* reads {model.main_input_name}; leave {name} out"):
            model(**inputs, **{name: torch.zeros(2, 64, dtype=torch.long)})
    model(**inputs, **dict.fromkeys(REFUSED_ARGUMENTS))
