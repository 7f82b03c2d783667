"""Run source and result on the same picture at the old and the new size, and compare what they return."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.videos import frames_as_pixels
from ..engines.common.grid import Grid
from ..errors import CheckpointError, in_a_line
from ..mechanisms import Mechanism
from ..mechanisms.common.on_grid import grid_blocks, on_grid
from ..modeling.family.config import attention_implementation
from ..modeling.family.definition import without_head
from ..modeling.family.grid_config import INTERPOLATE, TILE
from ..modeling.family.grid_rule import FRAMES_PER_SECOND, PIXELS, GridRule
from .differences import Difference
from .flops import cost_on, mechanisms_on
from .grid_sizes import GridPlan, GridSize, pixels
from .model_loading import load_result, load_source, newly_initialised
from .pictures import COLOURS, VerificationPictures
from .plan import ConversionPlan
from .plan_tensors import ResultPlan
from .processors import picture_size, place_on_grid, processor_of
from .report import FAILED, PASSED, SKIPPED, Check, equality
from .verify_outputs import FLOPS_AT_NEW_LENGTH, part_to_compare
from .verify_sizes import SizeChecks, run_model

PROCESSED_PIXELS = 2**25
"""Maximum pixels of an input that the processor is run on; for larger ones its settings are compared."""
PHOTO_SIZE = (427, 640)
"""Height and width of a picture that the image processor has to resize."""


def check_processor(plan: ResultPlan, result: Path, inputs: VerificationPictures) -> list[Check]:
    """The written image processor or feature extractor makes inputs of the new size, from any picture or sound."""
    grid = plan.grid
    assert grid is not None
    rule, size, place = grid.rule, grid.new.size, place_on_grid(grid.rule, result)
    name = "image processor" if rule.reads_photographs else "feature extractor"
    if place is None:
        return [Check(name, SKIPPED, f"the source has no {name}, so make inputs of {rule.describe(size)} as it was trained")]
    try:
        processor = processor_of(rule, result)
        fixed: Any = picture_size(processor) if rule.reads_photographs else size
        if math.prod(size) > PROCESSED_PIXELS:
            return [_check_settings(name, rule, fixed, size)]
        sizes = _processed_sizes(processor, rule, size, resizes=fixed is not None)
    except (CheckpointError, ValueError, TypeError, KeyError, RuntimeError) as error:
        return [Check(name, FAILED, f"the {name} of the result does not run: {in_a_line(error).rstrip('.')}")]
    wrong = next((after for after in sizes.values() if after != size and (rule.checks_processor or grid.grows)), None)
    if wrong is not None:
        problem = f"the {name} makes inputs of {rule.describe(wrong)} instead of {rule.describe(size)}; correct the size in {place.file}"
        return [Check(name, FAILED, problem)]
    processed = next(iter(sizes.values()))
    values = {rule.size_name: None if fixed is None else list(processed)}
    return [Check(name, PASSED, f"{' and '.join(sizes)} become inputs of {rule.describe(processed)}", values)]


def _check_settings(name: str, rule: GridRule, fixed: tuple[int, ...] | None, size: tuple[int, ...]) -> Check:
    """What a processor is set to, for inputs that are too large to make."""
    if fixed in (None, size[-2:]):
        return Check(name, SKIPPED, f"it was not run, since inputs of {rule.describe(size)} are large; its settings are for this size")
    return Check(name, FAILED, f"the {name} is set to {pixels(fixed)} instead of {pixels(size[-2:])}")


def _processed_sizes(processor: Any, rule: GridRule, size: tuple[int, ...], *, resizes: bool) -> dict[str, tuple[int, ...]]:
    """Data in words -> the size of the processor's output: for the new size and, if it resizes, for another."""
    sizes: dict[str, tuple[int, ...]] = {}
    if not rule.reads_photographs:
        rate = processor.sampling_rate
        for seconds in (1, 2 + size[-1] // FRAMES_PER_SECOND):
            values = processor(torch.zeros(rate * seconds).numpy(), sampling_rate=rate, return_tensors="pt")
            sizes[f"sounds of {seconds} s"] = rule.size_of(torch.as_tensor(values[rule.input]))
    for sides in [PHOTO_SIZE] * resizes + [size[-2:]] if rule.reads_photographs else ():
        picture = torch.zeros(*sides, COLOURS, dtype=torch.uint8).numpy()
        if rule.reads_pictures:
            values = torch.as_tensor(processor(picture, return_tensors="pt")[PIXELS])
        else:
            values = frames_as_pixels(processor, [picture] * size[0])
        sizes[f"{rule.noun}s of {pixels(sides)}"] = rule.size_of(values)
    return sizes


def check_on_grid(plan: ConversionPlan, result: Path, inputs: VerificationPictures, scratch: Path | None = None) -> list[Check]:
    """All checks of outputs; the two models are never in memory together.

    `scratch`: if given, the weights stay in their files, see `load_source`.
    """
    sizes = plan.grid
    assert sizes is not None
    old, (new, layers, why_no_crops) = sizes.old, affordable_size(plan)
    grows = new.size != old.size
    source: Any
    source, missing = load_source(plan.source, plan.architecture, plan.cast, scratch)
    checks = SizeChecks(plan, sizes, newly_initialised(missing, source))
    at_old, at_new = inputs.at(old), inputs.at(new)
    expected = run_model(part_to_compare(source, checks.headless), at_old)
    expected_new: dict[str, Tensor] = {}
    if grows:
        with sizes.resized(without_head(source), new) as resized:
            expected_new = _cells(run_model(without_head(source), {**at_new, **resized}))
    crops = {} if why_no_crops else _crops_of_source(without_head(source), at_new, sizes, new)
    del source

    model: Any = load_result(result, plan.architecture, plan.config, scratch=scratch)[0]
    covered = checks.computes_source(mechanisms_on(old, plan.attention, plan.shape), [grid.length for grid in old.layers])
    outputs = run_model(part_to_compare(model, checks.headless), at_old)
    states = _cells(run_model(without_head(model), at_new) if grows else outputs)
    model.use_base_attention()
    full = {} if covered else run_model(part_to_compare(model, checks.headless), at_old)
    tiled = grows and plan.positions == TILE
    full_new = {} if not grows or tiled else _cells(run_model(without_head(model), at_new))
    model.set_attn_implementation(attention_implementation(plan.config) or "longattn")
    del model
    if tiled:
        full_new = _cells(run_model(_interpolating(plan, result, scratch), at_new))

    at_new_size = []
    if grows:
        exact = checks.computes_source(layers, [grid.length for grid in new.layers]) and not tiled
        whys = [checks.why_not_exact] * (not exact) + ["positions are tiled"] * tiled
        at_new_size = checks.at_new(new, expected_new, states, full_new, " and ".join(whys))
        at_new_size.append(_check_crops(crops, states, sizes, new, why_no_crops))
    return [*checks.at_old(expected, outputs, full), *at_new_size, checks.finite(new, states)]


class _NewSize(NamedTuple):
    """The size at which the larger inputs are compared, the mechanism of every layer on its grid, and why crops are not compared."""

    size: GridSize
    layers: list[Mechanism]
    why_no_crops: str


def affordable_size(plan: ConversionPlan) -> _NewSize:
    """The new size, or a smaller one between it and the old one, if a large model would take too long."""
    sizes = plan.grid
    assert sizes is not None
    config, rule, size = plan.architecture.source_config, sizes.rule, sizes.new.size
    while True:
        reduced = GridSize.of(rule, config, size)
        layers = mechanisms_on(reduced, plan.attention, plan.shape)
        why_no_crops = _why_no_crops(plan, reduced.grid, layers)
        cost = cost_on(reduced, plan.attention, plan.shape)
        full = cost.full_attention_flops + cost.other_flops
        flops = 2 * full + (1 if why_no_crops else 2) * cost.total_flops
        smaller = tuple(
            max(old, side // 2 // patch * patch) for side, old, patch in zip(size, sizes.old.size, rule.patch(config), strict=True)
        )
        if flops <= FLOPS_AT_NEW_LENGTH or smaller == size:
            return _NewSize(reduced, layers, why_no_crops)
        size = smaller


def _cells(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The states of the tokens; every base model returns them, and some a pooled one that follows from them."""
    states = {name: value for name, value in tensors.items() if name == "last_hidden_state"}
    return states or dict(tensors)


def _interpolating(plan: ConversionPlan, result: Path, scratch: Path | None) -> Any:
    """The base model of a result with tiled positions, with interpolated ones and full attention."""
    config = copy.deepcopy(plan.config)
    config.position_extension = INTERPOLATE
    model: Any = load_result(result, plan.architecture, plan.config, scratch=scratch, config_instead=config)[0]
    model.use_base_attention()
    return without_head(model)


# Windows of the old size with tiled positions, and no token that sees several of them: each is what the source computes of it alone.

CROPS = "patch features equal to the source's on each crop of the old size"


def _why_no_crops(plan: ConversionPlan, grid: Grid, layers: Sequence[Mechanism]) -> str:
    """Why the definition of these layers does not make patch features on `grid` equal to the source's on crops; empty if it does."""
    sizes = plan.grid
    assert sizes is not None
    if sizes.rule.why_no_crops:
        return sizes.rule.why_no_crops
    if not sizes.rule.adds_positions:
        return "positions are more than a table that is added to the patches"
    if plan.positions != TILE:
        return f"positions are not tiled ({plan.positions})"
    if any(grid_blocks(layer, grid) != sizes.old.grid.sizes for layer in layers):
        return f"some layers have other windows than {' × '.join(map(str, sizes.old.grid.sizes))} cells"
    if any(_reads_prefix(layer, grid) for layer in layers):
        return "patches see the class token or registers, which see the whole picture (with --option prefix_tokens=none they do not)"
    return ""


def _reads_prefix(layer: Mechanism, grid: Grid) -> bool:
    """Whether cells see tokens before the grid."""
    if not grid.prefix:
        return False
    call = on_grid(layer, Grid((1,) * grid.rank, grid.prefix))
    q = torch.zeros(1, layer.num_heads, grid.prefix + 1, layer.head_dim)
    return bool(call.weights(q, q)[0, 0, -1, : grid.prefix].any())


def _crops_of_source(base: Any, inputs: Mapping[str, Tensor], sizes: GridPlan, new: GridSize) -> dict[tuple[int, ...], Tensor]:
    """The place of every whole window, such as row and column -> the patches' features that the source without prefix tokens computes of
    it."""
    prefix = new.grid.prefix

    def cells_only(module: Any, args: Any, output: Any) -> Any:
        return output[:, prefix:] if isinstance(output, Tensor) else (output[0][:, prefix:], *output[1:])

    rule, (name, pixels_of_all) = sizes.rule, next(iter(inputs.items()))
    sides = [cells * step for cells, step in zip(sizes.old.grid.sizes, rule.step(base.config), strict=True)]
    hooks = [base.embeddings.register_forward_hook(cells_only)] if prefix else []
    try:
        crops: dict[tuple[int, ...], Tensor] = {}
        windows = [range(after // before) for after, before in zip(new.grid.sizes, sizes.old.grid.sizes, strict=True)]
        for place in itertools.product(*windows):
            corner = tuple(number * side for number, side in zip(place, sides, strict=True))
            crop = rule.crop(pixels_of_all, corner, sizes.old.size)
            crops[place] = run_model(base, {name: crop})["last_hidden_state"]
        return crops
    finally:
        for hook in hooks:
            hook.remove()


def _check_crops(
    crops: Mapping[tuple[int, ...], Tensor], states: Mapping[str, Tensor], sizes: GridPlan, new: GridSize, why_not: str
) -> Check:
    if why_not:
        return Check(CROPS, SKIPPED, f"does not apply: {why_not}")
    if "last_hidden_state" not in states:
        raise CheckpointError(f"The result returns no last_hidden_state, but {', '.join(states)}; add --no-verify.")
    cells = states["last_hidden_state"][:, new.grid.prefix :].unflatten(1, new.grid.sizes)
    measured = {}
    for place in crops:
        window = cells
        for axis, (number, side) in enumerate(zip(place, sizes.old.grid.sizes, strict=True), 1):
            window = window.narrow(axis, number * side, side)
        measured[place] = window.flatten(1, -2)
    difference = Difference.of(*({str(place): features for place, features in each.items()} for each in (crops, measured)))
    detail = (
        f"patch features at {new.describe()} and the source's, without tokens before its patches, on {len(crops)} crops of "
        f"{sizes.old.words}: largest difference"
    )
    return equality(CROPS, detail, difference, {"crops": len(crops), sizes.rule.size_name: list(new.size)})
