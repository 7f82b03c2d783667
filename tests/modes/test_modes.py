"""Ways to call a model give together what its sequences give alone, or a refusal: pair by pair as the stored table
says."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn.engines.cpu.onednn import cpu_computes_bf16
from hf_longattn.errors import InputError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.memory.decode_cache import CACHE
from hf_longattn.modeling.grids import REFUSED_ARGUMENTS
from hf_longattn.modeling.mixin import LongBaseModelMixin
from scripts.dev.tools.small_models import TEXT_FAMILIES, Shape, small_audio_config, small_image_config
from tests.cases import every_case
from tests.grids import ONLY_QUICK
from tests.modeling import audio_models, grid_models
from tests.modeling.grid_models import base_model
from tests.modes.crossings import ROWS, Crossing, fields_of
from tests.modes.stored import stored_cells
from tests.modes.ways import COARSE, EXACT_LENGTH, WAYS, Fields, Way, decodes
from tests.reference.small_models import long_model
from tests.shared_code import kind_of_family

STORED = stored_cells()
QUICK = [name for name, way in WAYS.items() if not way.slow]
ALONE = [(row, name, name) for row in ROWS for name in QUICK]
ALL = [(row, *pair) for row in ROWS for pair in itertools.combinations_with_replacement(WAYS, 2)]


def rotated() -> Iterator[tuple[str, str, str]]:
    """Every pair on one row that has it, the rows in turn."""
    for number, (first, second) in enumerate(itertools.combinations(QUICK, 2)):
        rows = [row for row in ROWS if not STORED.get(row, {}).get(f"{first} × {second}", "").startswith("none")]
        if rows:
            yield rows[number % len(rows)], first, second


ROTATED = [*rotated()]
"""Slow tests have every pair on every row."""


def check(row: str, first: str, second: str) -> None:
    outcome = Crossing(row, first, second).outcome()
    stored = STORED.get(row, {}).get(f"{first} × {second}")
    assert stored == str(outcome), (
        "the table says something else; after a change that is meant, run python -m tests.modes"
    )


@every_case(
    ("row", "first", "second"),
    ALONE + ROTATED,
    by="row",
    of=6,
    code=lambda row, first, second: first if first == second else "",
)
def test_two_ways_of_calling_together_give_the_stored_outcome(row: str, first: str, second: str) -> None:
    check(row, first, second)


@every_case("row", [row for row in ROWS if not decodes(row)])
def test_a_text_within_exact_length_is_attended_in_full(row: str) -> None:
    """As by a model of full attention with the same weights, and a longer one beside it is not."""
    batch, in_full = Crossing(row, "right padded", "exact length"), Crossing(row, "right padded")
    in_full.attention = {"mechanism": "full"}
    for found, expected, sequence in zip(batch.run()[0], in_full.expected()[0], batch.sequences(), strict=True):
        equal = [torch.allclose(found[name], expected[name], rtol=0, atol=1e-8) for name in expected]
        assert all(equal) if len(sequence) <= EXACT_LENGTH else not any(equal)


@pytest.mark.slow
@every_case(("row", "first", "second"), sorted({*ALL} - {*ALONE} - {*ROTATED}), by="row")
def test_every_pair_of_ways_on_every_row_gives_the_stored_outcome(row: str, first: str, second: str) -> None:
    check(row, first, second)


@pytest.mark.slow
@every_case("base", sorted({*TEXT_FAMILIES} - {*ROWS}))
def test_each_way_of_calling_every_other_family_is_equal_or_refused(base: str) -> None:
    """No stored outcome: equal, refused, or not there."""
    for name in QUICK:
        Crossing(base, name).outcome()


WINDOW = {"mechanism": "window", "window": 16}
HEADS = [(base, head) for base, family in TEXT_FAMILIES.items() for head in family.model_classes]
LENGTH, FIRST = 20, 8


def small(base: str, head: str) -> Any:
    alone = (
        {"is_decoder": True, "is_encoder_decoder": False}
        if FAMILIES[base].two_stacks and head.endswith("ForCausalLM")
        else {}
    )
    start = {"decoder_start_token_id": 2} if FAMILIES[base].two_stacks else {}
    return long_model(base, head, WINDOW, **alone, **start)


def inputs_of(model: Any, head: str) -> dict[str, Any]:
    shape = (1, 2, LENGTH) if head.endswith(("MultipleChoice", "DoubleHeadsModel")) else (1, LENGTH)
    ids = torch.randint(5, 200, shape)
    if model.config.eos_token_id is not None:
        ids[..., -1] = model.config.eos_token_id  # sequence classification of BART reads it
    decoder = (
        {"decoder_input_ids": ids}
        if model.config.is_encoder_decoder and not head.endswith(("Classification", "EncoderModel"))
        else {}
    )
    return {"input_ids": ids, **decoder}


def runs_of(model: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """The arguments of every run of a base model."""
    runs: list[dict[str, Any]] = []
    with torch.no_grad(), contextlib.ExitStack() as hooks:
        for base in model.modules():
            if isinstance(base, LongBaseModelMixin):
                hooks.enter_context(
                    base.register_forward_pre_hook(lambda module, args, kwargs: runs.append(kwargs), with_kwargs=True)
                )
        model(**inputs)
    return runs


@pytest.mark.thorough
@every_case(("base", "head"), HEADS, of=9, code=kind_of_family)
def test_every_head_runs_its_base_with_documents_and_positions(base: str, head: str) -> None:
    """A head that calls a module inside its base instead, or drops an argument, would leave out what the base does,
    without a word.

    A base that takes no positions would read on after those that restart, with the documents kept apart at best.
    """
    model = small(base, head)
    inputs = inputs_of(model, head)
    bases = [module for module in model.modules() if isinstance(module, LongBaseModelMixin)]
    assert len(runs_of(model, inputs)) == len(bases)
    check_documents(model, inputs)
    check_positions(model, inputs, bases)


def check_documents(model: Any, inputs: dict[str, Any]) -> None:
    documents = torch.zeros_like(inputs["input_ids"])
    documents[..., FIRST:] = 1
    for name, value in {"documents": documents, "seq_idx": documents}.items():
        try:
            seen = [name in run for run in runs_of(model, {**inputs, name: value, **uncached(model)})]
        except InputError:
            continue
        assert seen
        assert all(seen), f"{name} did not reach the base"


def check_positions(model: Any, inputs: dict[str, Any], bases: list[LongBaseModelMixin]) -> None:
    positions = torch.cat([torch.arange(FIRST), torch.arange(LENGTH - FIRST)])[None]
    first = bases[0].first_position_id
    try:
        runs = runs_of(model, {**inputs, "position_ids": positions + first, **uncached(model)})
    except InputError:
        return
    assert all("position_ids" in run for run in runs), "position_ids did not reach the base"
    assert all(module.position_table is None or module.takes_positions for module in bases)


def uncached(model: Any) -> dict[str, Any]:
    return (
        {"use_cache": False}
        if getattr(model.config, "is_decoder", False) or getattr(model.config, "use_cache", False)
        else {}
    )


@pytest.mark.thorough
@every_case("base", TEXT_FAMILIES, of=4, code=kind_of_family)
def test_segments_know_every_field_of_a_base_s_output(base: str) -> None:
    """Segments give back these fields, and refuse others."""
    joined = {"last_hidden_state", "hidden_states", "pooler_output", "router_logits", CACHE}
    family = FAMILIES[base]
    names: set[str] = set()
    head = next(head for head in family.model_classes if head.endswith("Model"))
    model = long_model(base, head, WINDOW)
    for module in model.modules():
        if isinstance(module, LongBaseModelMixin):
            module.register_forward_hook(lambda module, args, outputs: names.update(outputs))
    routers = {"output_router_logits": True} if hasattr(model.config, "output_router_logits") else {}
    with torch.no_grad():
        model(**inputs_of(model, head), output_hidden_states=True, **routers)
    assert names <= joined


IMAGES, SOUNDS = grid_models.BASES, audio_models.BASES
BASES = [*IMAGES, *SOUNDS]
NAMES = (
    *(
        "optimised fp32",
        "optimised int8",
        "hidden states",
        "attentions",
        "inference mode",
        "autocast",
        "tuples",
    ),
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
    return family.model_class(base_model(base))(
        family.config_class(**values, long_attention=attention or default)
    ).eval()


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
        if name == "optimised int8" and not cpu_computes_bf16():
            continue
        together = outputs_of(base, way, inputs)
        for row in range(2):
            alone = outputs_of(base, way, {name: value[row : row + 1] for name, value in inputs.items()}, alone=True)
            assert alone.keys() == together.keys()
            for field, expected in alone.items():
                found, expected = together[field][row].double(), expected[0].double()
                assert found.isfinite().all()
                off = (
                    (found - expected).norm() / expected.norm()
                    if way.tolerance == COARSE
                    else (found - expected).abs().max()
                )
                assert off <= max(way.tolerance, 1e-4), f"{name}: {field} of row {row} is off by {off:.1e}"


@pytest.mark.thorough
@every_case("base", BASES)
def test_images_and_sounds_have_no_memory(base: str) -> None:
    with pytest.raises(InputError, match="a memory holds past tokens only"):
        built(base).new_memory()


@every_case("base", IMAGES)
def test_images_refuse_segments(base: str) -> None:
    attention = {"mechanism": "recurrent_memory", "segment_length": 32, "num_memory_tokens": 2}
    with pytest.raises(
        OptionError, match=r"'recurrent_memory' reads one segment of a text after the other.* no such order; choose"
    ):
        small_model(base, attention)


@pytest.mark.thorough
@every_case("base", IMAGES)
def test_images_refuse_arguments_of_texts(base: str) -> None:
    model, inputs = built(base), grid_models.inputs_of(base)
    for name in REFUSED_ARGUMENTS:
        with pytest.raises(
            InputError, match=f"{name} is for texts, but Long.* reads {model.main_input_name}; leave {name} out"
        ):
            model(**inputs, **{name: torch.zeros(2, 64, dtype=torch.long)})
    model(**inputs, **dict.fromkeys(REFUSED_ARGUMENTS))
