"""Models of sound in the modes and ways of texts: every sound gives what it gives alone, or the call is refused in one sentence."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import hf_longattn
from hf_longattn import sequence_parallel
from hf_longattn.errors import LongAttentionError, MemoryMismatchError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.private_apis import cpu_computes_bf16
from scripts.dev.tools.small_models import small_audio_config
from tests.modeling.audio_models import BASES, SECONDS, SHAPE, base_model, inputs_of
from tests.modes.cells import fields_of
from tests.modes.ways import COARSE, WAYS

BAND = {"mechanism": "window", "left": 9, "right": 4}
NAMES = (*("packed fp32", "packed bf16", "packed int8", "hidden states", "inference mode", "autocast", "tuples", "save and reload"),)
"""The ways that have a meaning for sound and no tests of their own in tests/modeling."""
PRECISIONS = ("packed fp32", "packed bf16", "packed int8")
REFUSED = {
    ("packed int8", "save and reload"): "rounded and cannot be saved; save the model before",
    **dict.fromkeys(itertools.combinations(PRECISIONS, 2), "optimised for inference already"),
}
PAIRS = list(itertools.combinations(NAMES, 2))
ROTATED = [(BASES[number % len(BASES)], *pair) for number, pair in enumerate(PAIRS)]


def built(base: str) -> Any:
    torch.manual_seed(0)
    values = {name: value for name, value in small_audio_config(base, SHAPE).to_dict().items() if name != "model_type"}
    family = FAMILIES[base]
    return family.model_class(base_model(base))(family.config_class(**values, long_attention=BAND)).eval()


def check(base: str, *names: str) -> None:
    """Each sound of a batch gives what the batch gives a plain model, row by row."""
    if not cpu_computes_bf16() and {"packed bf16", "packed int8"} & {*names}:
        pytest.skip("this processor computes no bf16")
    ways, inputs = [WAYS[name] for name in names], inputs_of(base, (0.6, 0.6))
    inputs[FAMILIES[base].audio.input] = torch.cat([inputs[FAMILIES[base].audio.input][:1], -inputs[FAMILIES[base].audio.input][1:]])

    def called(model: Any, inputs: dict[str, Any], *, baseline: bool = False) -> Any:
        run = fields_of
        for way in sorted(ways, key=lambda way: way.name != "tuples"):  # which calls the model itself
            run = way.baseline(run) if baseline else way.call(run)
        arguments = {name: value for way in ways for name, value in way.arguments.items()}
        with torch.no_grad():
            return run(model, {**inputs, **arguments})

    def prepared(baseline: bool) -> Any:
        model = built(base)
        for way in ways:
            model = way.prepare(model) if way.in_baseline or not baseline else model
        return model

    if names in REFUSED:
        with pytest.raises(LongAttentionError, match=REFUSED[names]):
            called(prepared(baseline=False), inputs)
        return
    together, plain = called(prepared(baseline=False), inputs), prepared(baseline=True)
    tolerance = max(way.tolerance for way in ways)
    for row in range(2):
        alone = called(plain, {name: value[row : row + 1] for name, value in inputs.items()}, baseline=True)
        assert alone.keys() == together.keys()
        for name, expected in alone.items():
            found, of_row = together[name][row].double(), expected[0].double()
            assert found.isfinite().all()
            off = (found - of_row).norm() / of_row.norm() if tolerance == COARSE else (found - of_row).abs().max()
            assert off <= max(tolerance, 1e-4), f"{name} of sound {row} is off by {off:.1e}"


@pytest.mark.parametrize("base", BASES)
def test_each_way_alone(base: str) -> None:
    for name in NAMES:
        check(base, name)


@pytest.mark.parametrize(("base", "first", "second"), ROTATED)
def test_two_ways_together(base: str, first: str, second: str) -> None:
    check(base, first, second)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    place = Path(tmp_path_factory.mktemp("group")) / "store"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("base", BASES)
class TestModesThatArePartsOfTexts:
    def test_sharding(self, base: str) -> None:
        with pytest.raises(OptionError, match="which cannot be split along a sequence"), sequence_parallel(built(base)):
            pass

    def test_packing(self, base: str) -> None:
        with pytest.raises(OptionError, match="leave it out"):
            built(base).optimize_for_inference("fp32", pack=True)

    def test_memory(self, base: str) -> None:
        with pytest.raises(MemoryMismatchError, match="a memory holds past tokens only"):
            built(base).new_memory()

    def test_explain_names_the_path_of_every_layer(self, base: str) -> None:
        model = built(base)
        paths = hf_longattn.explain(model, inputs_of(base, SECONDS[:1]))
        assert [path.mechanism for path in paths] == ["window"] * model.config.num_hidden_layers
