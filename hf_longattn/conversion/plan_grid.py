"""The plan of a model that reads pictures: sizes, mechanisms on the grid of patches, positions, and the file of the image processor.

No tensor changes. A position table is interpolated or tiled by the model when it runs, so that it stays as it was trained, and the result
computes at the old size what the source does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..choice_text import write_choice, write_numbers
from ..configuration import LongAttentionConfig
from ..engines.common.grid import Grid
from ..errors import CheckpointError, GridError, OptionError, PositionError, nearest
from ..mechanisms import Mechanism
from ..mechanisms.common.on_grid import grid_blocks, on_grid
from ..mechanisms.common.registry import prototype
from ..modeling.family.grid_config import INTERPOLATE, TILE, refuse_line
from .architectures import Architecture
from .config import AUTO, ConversionConfig
from .flops import ModelShape, mechanisms_on
from .grid_sizes import GridPlan, GridSize, pixels, read_size
from .plan_inputs import InputPlan
from .plan_positions import PositionWarning
from .processors import picture_size, place_on_grid, processor_of, values_of_size, values_with
from .sources.base import Source


def plan_grid(source: Source, architecture: Architecture, request: ConversionConfig) -> InputPlan:
    """What is decided for a model whose inputs lie on a grid, such as pictures."""
    sizes = grid_sizes(architecture, request)
    attention = grid_attention(architecture, request, sizes)
    base_shape = ModelShape.of(architecture.source_config, causal=False, matrix_parameters=0, element_bytes=4)
    layers = mechanisms_on(sizes.new, attention, base_shape)
    positions = grid_positions(request.positions, sizes, layers)
    unchanged = computes_source(architecture, positions, attention, sizes)
    return InputPlan(
        sizes=sizes,
        attention=attention,
        positions=positions,
        extension=positions,
        fields=sizes.rule.fields_of_size(sizes.new.size) if sizes.grows else {},
        warnings=() if unchanged else tuple(grid_warnings(positions, attention, layers, sizes)),
        files=processor_files(source, architecture, sizes),
    )


def grid_sizes(architecture: Architecture, request: ConversionConfig) -> GridPlan:
    """The sizes of source and result.

    Raises:
        GridError: a size that is not a multiple of the patch, or is smaller than the source's.
        PositionError: the source's table has another shape than a square, and the result another size.
    """
    rule, config = architecture.family.grid, architecture.source_config
    assert rule is not None
    if rule.shapes is not None:
        raise GridError(
            f"A {architecture.source_class} reads pictures of any size as lists of patches, so that there is no size to convert; load it "
            f"with hf_longattn.{architecture.long_class}.from_pretrained, which takes long_attention."
        )
    old, read = rule.sizes(config)
    new = rule.enlarged(read, None if request.image_size is None else read_size(request.image_size), request.frames)
    if request.audio_seconds is not None:
        new = rule.of_seconds(config, request.audio_seconds)
    sizes = GridPlan(rule, GridSize.of(rule, config, old), GridSize.of(rule, config, new))
    if any(after < before for after, before in zip(new, old, strict=True)):
        raise GridError(
            f"The source reads {rule.noun}s of {rule.describe(old)} and conversion only enlarges them: {rule.describe(new)} are too few, "
            f"give at least {rule.size_flag} {rule.typed(old)}."
        )
    if sizes.grows and rule.has_positions and rule.resizes == "square" and len(set(sizes.old.grid.sizes)) > 1:
        raise PositionError(
            f"The position table of {architecture.source_class} has {' × '.join(map(str, sizes.old.grid.sizes))} positions, and "
            "transformers resizes square ones only; leave --image-size out."
        )
    return sizes


def grid_attention(architecture: Architecture, request: ConversionConfig, sizes: GridPlan) -> LongAttentionConfig:
    """The attention that was asked for; without any, that of the source where it is not full attention, or windows of the source's size,
    which the family's mechanism has wherever no window is given.

    Raises:
        OptionError, GridError: a layer's mechanism is for texts, or its options make no sense on the grid.
    """
    kind: Any = architecture.family.config_class
    name, sides = kind.default_mechanism, sizes.old.grid.sizes
    default = {"window": list(sides) if len(set(sides)) > 1 else sides[0]}
    named, base_attention = request.mechanism is not None or bool(request.layers), architecture.family.own_attention
    if request.long_attention is not None:
        attention = request.attention()
    elif base_attention is not None and not named:
        attention = request.attention(base_attention(architecture.source_config))
    else:
        values = (request if named else replace(request, mechanism=name)).attention().to_dict()
        attention = LongAttentionConfig.from_dict(_with_defaults(values, name, default))
    attention.check_layers(len(sizes.new.layers))
    for layer, grid in enumerate(sizes.new.layers):
        name, options = attention.for_layer(layer)
        _check_layer(architecture, name, options, grid, layer)
    return attention


def _with_defaults(value: Any, name: str, default: Mapping[str, Any]) -> Any:
    """A configuration in which every choice of the mechanism ``name`` has these options, unless it says another value."""
    if isinstance(value, Mapping):
        inside = {key: _with_defaults(inner, name, default) for key, inner in value.items()}
        return (
            {**inside, **{key: option for key, option in default.items() if key not in inside}}
            if inside.get("mechanism") == name
            else inside
        )
    return [_with_defaults(inner, name, default) for inner in value] if isinstance(value, list) else value


def _check_layer(architecture: Architecture, name: str, options: Mapping[str, Any], grid: Grid, layer: int) -> None:
    refuse_line(name, dict(options))
    mechanism = prototype(name, options)
    if not grid.prefix and options.get("prefix_tokens") is not None:
        raise OptionError(
            f"prefix_tokens={options['prefix_tokens']} is about tokens before the patches, and a {architecture.source_class} has none; "
            "leave it out."
        )
    on_grid(mechanism, grid, check=True)


def grid_positions(positions: str, sizes: GridPlan, layers: Sequence[Mechanism]) -> str:
    """The rule for positions: as asked for, or tiled where every layer has windows that one repetition of the table holds.

    Args:
        positions: of the request.
        sizes: of source and result.
        layers: the mechanism of each layer, for the result's grid.

    Raises:
        PositionError: an unknown rule, or one of texts.
    """
    known = (AUTO, TILE, INTERPOLATE)
    if positions not in known:
        raise PositionError(
            f"{positions!r} does not apply to the positions of {sizes.rule.noun}s; expected one of {', '.join(known)}."
            f"{nearest(positions, known)}"
        )
    if not sizes.rule.has_positions:
        if positions != AUTO:
            raise PositionError(
                f"--positions {positions} says what positions larger {sizes.rule.noun}s have, but this model has none; leave it out."
            )
        return INTERPOLATE
    if positions != AUTO:
        return positions
    return TILE if sizes.grows and all(fits_tiles(layer, sizes) for layer in layers) else INTERPOLATE


def fits_tiles(layer: Mechanism, sizes: GridPlan) -> bool:
    """Whether no cell sees a cell of another repetition of the tiled table."""
    blocks = grid_blocks(layer, sizes.new.grid)
    return blocks is not None and all(side % block == 0 for side, block in zip(sizes.old.grid.sizes, blocks, strict=True))


def grid_warnings(rule: str, attention: LongAttentionConfig, layers: Sequence[Mechanism], sizes: GridPlan) -> list[PositionWarning]:
    """One warning for each mechanism for which the positions of larger pictures do not hold without training."""
    if not sizes.grows or not sizes.rule.has_positions:
        return []
    old = " × ".join(map(str, sizes.old.grid.sizes))
    numbers: dict[tuple[str, bool], list[int]] = {}
    for number, layer in enumerate(layers):
        name, options = attention.for_layer(number)
        windowed = grid_blocks(layer, sizes.new.grid) is not None or sizes.rule.counts_places
        if windowed if rule == INTERPOLATE else not fits_tiles(layer, sizes):
            numbers.setdefault((write_choice({"mechanism": name, **options}), windowed), []).append(number)
    warnings = []
    for (name, _), at in numbers.items():
        where = "every layer" if len(at) == len(layers) else f"layer{'s' if len(at) > 1 else ''} {write_numbers(at)}"
        if rule == TILE:
            problem = f"{name} in {where} sees cells of several windows of {old} cells, and tiled positions repeat every {old} cells"
            advice = "use --positions interpolate, or train the result"
        elif sizes.rule.counts_places:
            problem = f"{name} in {where} sees positions that the source did not meet, beyond its {old} cells"
            advice = f"use windows of {old} cells in every layer, whose positions are tiled, or train the result"
        else:
            problem = (
                f"{name} in {where} has windows, in which interpolated positions lie closer than those that it was trained with (Bolya et "
                "al. 2023, Window Attention is Bugged)"
            )
            advice = f"use windows of {old} cells in every layer, whose positions are tiled, or train the result"
        warnings.append(PositionWarning(problem, advice))
    return warnings


def computes_source(architecture: Architecture, positions: str, attention: LongAttentionConfig, sizes: GridPlan) -> bool:
    """Whether the result has the source's own attention and positions at the size of the pictures that the source reads."""
    base_attention, config = architecture.family.own_attention, architecture.source_config
    if base_attention is None or positions != INTERPOLATE or sizes.new.size != sizes.rule.sizes(config)[1]:
        return False
    return attention.same_layers(base_attention(config), len(sizes.new.layers))


def processor_files(source: Source, architecture: Architecture, sizes: GridPlan) -> dict[str, dict[str, Any]]:
    """The file of the image processor or the feature extractor for inputs of the new size; none where the source has none.

    Raises:
        CheckpointError: it makes inputs that the source cannot read, or of no certain size.
    """
    rule, place = sizes.rule, place_on_grid(sizes.rule, source.folder)
    if place is None:
        return {}
    processor = processor_of(rule, source.folder)
    for name, value in rule.extractor_fields(sizes.old.size).items():
        if getattr(processor, name, value) != value:
            raise CheckpointError(
                f"The feature extractor of {source.name!r} says {name}={getattr(processor, name)}, but its config.json says {value}; "
                f"correct {name} in {place.file}, or in config.json."
            )
    processed, (old, new) = picture_size(processor), (size.size[-2:] for size in (sizes.old, sizes.new))
    if processed is not None and processed != old and rule.checks_processor:
        raise CheckpointError(
            f"The image processor of {source.name!r} makes pictures of {pixels(processed)}, but its config.json says "
            f"{rule.side}={getattr(architecture.source_config, rule.side)}; correct the size in {place.file}, or {rule.side}."
        )
    if new == old:
        return {}
    changed = rule.extractor_fields(sizes.new.size)
    return place.with_values(values_with(place, processor, changed) if changed else values_of_size(place, processor, new))
