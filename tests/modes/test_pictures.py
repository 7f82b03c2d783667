"""Models of pictures in the modes and ways of texts: every picture gives what it gives alone, or the call is refused in one sentence."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hf_longattn import sequence_parallel
from hf_longattn.errors import LongAttentionError, MaskError, MemoryMismatchError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.grids import TEXT_ARGUMENTS
from hf_longattn.modeling.run.modes import MEETINGS
from hf_longattn.private_apis import cpu_computes_bf16
from scripts.dev.tools.small_models import Shape, small_picture_config
from tests.modeling.grid_models import BASES, base_model, inputs_of
from tests.modes.cells import fields_of
from tests.modes.ways import COARSE, WAYS, Fields, Way

WINDOWS = {"mechanism": "window2d", "window": 3}
NAMES = (
    *("packed fp32", "packed bf16", "packed int8", "hidden states", "attentions", "inference mode", "autocast", "tuples"),
    "save and reload",
)
"""The ways that have a meaning for pictures and no tests of their own in tests/modeling."""
PRECISIONS = ("packed fp32", "packed bf16", "packed int8")
REFUSED = {
    ("packed int8", "save and reload"): "rounded and cannot be saved; save the model before",
    **dict.fromkeys(itertools.combinations(PRECISIONS, 2), "optimised for inference already"),
}
PAIRS = list(itertools.combinations(NAMES, 2))
ROTATED = [(BASES[number % len(BASES)], *pair) for number, pair in enumerate(PAIRS)]
SIZE = (40, 48)


def built(base: str, attention: Any = None) -> Any:
    torch.manual_seed(0)
    config = small_picture_config(base, Shape(layers=2, inner=64))
    values = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    family = FAMILIES[base]
    return family.model_class(base_model(base))(family.config_class(**values, long_attention=attention or WINDOWS)).eval()


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
    if not cpu_computes_bf16() and {"packed bf16", "packed int8"} & {*names}:
        pytest.skip("this processor computes no bf16")
    ways = [WAYS[name] for name in names]
    inputs = inputs_of(base, SIZE)
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
            assert off <= max(tolerance, 1e-4), f"{name} of picture {row} is off by {off:.1e}"


@pytest.mark.parametrize("base", BASES)
def test_each_way_alone(base: str) -> None:
    for name in NAMES:
        check(base, name)


@pytest.mark.parametrize(("base", "first", "second"), ROTATED)
def test_two_ways_together(base: str, first: str, second: str) -> None:
    check(base, first, second)


OF_BASE = {("dinat", "hidden states", "tuples")}
"""What transformers' own class does not do: as a tuple, a DiNAT's outputs lack the hidden states as maps."""


@pytest.mark.slow
@pytest.mark.parametrize(("base", "first", "second"), sorted({(base, *pair) for base in BASES for pair in PAIRS} - {*ROTATED} - OF_BASE))
def test_all_families(base: str, first: str, second: str) -> None:
    check(base, first, second)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("base", BASES)
def test_optimised_models_are_near_the_model(base: str, precision: str) -> None:
    if not cpu_computes_bf16():
        pytest.skip("this processor computes no bf16")
    inputs = inputs_of(base, SIZE)
    with torch.no_grad():
        expected = built(base)(**inputs).last_hidden_state
        found = built(base).optimize_for_inference(precision)(**inputs).last_hidden_state
    assert (found.float() - expected).norm() / expected.norm() < COARSE


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    place = Path(tmp_path_factory.mktemp("group")) / "store"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("base", BASES)
class TestModesThatArePartsOfTexts:
    """All modes of :data:`MEETINGS` are: a model of pictures enters none, so that no two meet."""

    def test_all_modes_are_here(self, base: str) -> None:
        assert {mode for pair in MEETINGS for mode in pair} == {"sharding", "packing", "segments", "memory"}

    def test_sharding(self, base: str) -> None:
        with (
            pytest.raises(OptionError, match=f"reads {FAMILIES[base].grid.input}, which cannot be split along a sequence"),
            sequence_parallel(built(base)),
        ):
            pass

    def test_packing(self, base: str) -> None:
        with pytest.raises(OptionError, match=f"reads {FAMILIES[base].grid.input}, which have no padding; leave it out"):
            built(base).optimize_for_inference("fp32", pack=True)

    def test_segments(self, base: str) -> None:
        attention = {"mechanism": "recurrent_memory", "segment_length": 32, "num_memory_tokens": 2, "order": "tiles:4x4"}
        with pytest.raises(OptionError, match=r"'recurrent_memory' reads one segment of a text after the other.* no such order; choose"):
            built(base, attention)

    def test_memory(self, base: str) -> None:
        with pytest.raises(MemoryMismatchError, match="a memory holds past tokens only"):
            built(base).new_memory()

    def test_arguments_of_texts(self, base: str) -> None:
        model, inputs = built(base), inputs_of(base)
        for name in TEXT_ARGUMENTS:
            with pytest.raises(MaskError, match=f"{name} is for texts, but Long.* reads {FAMILIES[base].grid.input}; leave {name} out"):
                model(**inputs, **{name: torch.zeros(2, 64, dtype=torch.long)})
            model(**inputs, **{name: None})
