"""Input sizes and costs of a plain class with mechanisms, or of a tower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..configuration import LongAttentionConfig
from ..engines.common.grid import Grid
from ..inputs.common.base import InputSizes, LengthCost, kind_of_model
from ..inputs.text import text_length, text_sizes
from ..modeling.attach.patch_places import packs_images
from ..modeling.family.definition import TOWER_CONFIG, tower_field
from ..modeling.generic import towers_of
from .flops import ModelShape, cost_at, cost_with, generic_shape, layer_mechanisms
from .tensor_names import names_in_model

ANY_SIZE = "images of any size"
"""Description of the input of a tower that packs images of any size into one row."""
EXAMPLES = (448, 896, 1792)
"""Sides in pixels of the square images for which the cost of such a tower is counted."""


@dataclass(frozen=True)
class PlainPart:
    """A plain model, or one of its towers, with its planned attention.

    module: on the meta device, with its mechanisms.
    shape: of its layers.
    tensors: the file's tensors of this part, by name.
    old_length, new_length: maximum tokens of source and result; 0 if no config states them.
    """

    module: Any
    attention: LongAttentionConfig
    shape: ModelShape
    tensors: Mapping[str, Any]
    old_length: int
    new_length: int

    @classmethod
    def of(cls, module: Any, attention: LongAttentionConfig, tensors: Mapping[str, Any], lengths: tuple[int, int] | None) -> PlainPart:
        """`lengths`: of source and result; `None` takes them from the config of `module`."""
        said = text_length(module.config)
        shape = generic_shape(module, [tensor.dtype for tensor in tensors.values()])
        part = cls(module, attention, shape, tensors, *((said, said) if lengths is None else lengths))
        if lengths is None and (sizes := part.sizes) is not None:
            return replace(part, old_length=sizes.old.tokens, new_length=sizes.new.tokens)
        return part

    @property
    def packs(self) -> bool:
        """Whether images of any size are packed into one row."""
        return packs_images(self.module)

    @property
    def sizes(self) -> InputSizes | None:
        """The sizes of inputs that are not texts and have a fixed size. ``None`` for other inputs."""
        kind = None if self.packs else kind_of_model(self.module.config)
        return None if kind is None else kind.fixed_sizes(self.module.config)

    @property
    def inputs(self) -> InputSizes:
        """The sizes of inputs, with their descriptions."""
        kind, sizes = kind_of_model(self.module.config), self.sizes or text_sizes(self.old_length, self.new_length)
        if not (self.packs or (kind is not None and kind.any_size)):
            return sizes
        words: dict[str, Any] = {"old_words": ANY_SIZE, "new_words": ANY_SIZE, "longest": ANY_SIZE, "noun": "image", "units": "pixels"}
        return replace(sizes, **words, of_model={"input": ANY_SIZE}, report={"input": ANY_SIZE})

    def costs(self) -> tuple[LengthCost, ...]:
        """The cost at each size, for packed images at example sizes; empty if no size is known."""
        config = self.module.config
        if self.packs:  # sides of square images, multiples of the base's windows, or else of its merged patches
            multiple = getattr(config, "window_size", None) or config.patch_size * getattr(config, "spatial_merge_size", 1)
            most = getattr(config, "image_size", None) or EXAMPLES[-1]
            sides = [side for side in EXAMPLES if side <= most] or [most]
            return tuple(self._cost_of_image(side) for side in sorted({max(1, side // multiple) * multiple for side in sides}))
        sizes = self.sizes or text_sizes(self.old_length, self.new_length)
        if not sizes.old.tokens:
            return ()
        layers = layer_mechanisms(self.attention, self.shape, sizes.new.tokens)
        costs = [cost_with(size, layers, self.shape) for size in sizes.steps(config)]
        caches = (self.shape.layers * cost.length * self.shape.token_bytes for cost in costs)  # a plain class keeps every token
        return tuple(
            cost if cost.cache_bytes is None else replace(cost, cache_bytes=cache) for cost, cache in zip(costs, caches, strict=True)
        )

    def _cost_of_image(self, side: int) -> LengthCost:
        """The cost of a square image, with full attention or the base's windows in each layer."""
        config = self.module.config
        cells = side // config.patch_size
        window = getattr(config, "window_size", None)
        whole = set(getattr(config, "fullatt_block_indexes", ())) if window else set(range(self.shape.layers))
        costs = []
        for number, mechanism in enumerate(layer_mechanisms(self.attention, self.shape, None)):
            inner = cells if number in whole else window // config.patch_size
            windows, grid = (cells // inner) ** 2, Grid((inner, inner))
            cost = cost_at(grid.length, self.shape, [mechanism.on_grid(grid)])
            costs.append((windows * cost.attention_flops, windows * cost.full_attention_flops))
        of_row = vars(cost_at(cells**2, self.shape, []))
        of_row["attention_flops"], of_row["full_attention_flops"] = (sum(column) for column in zip(*costs, strict=True))
        return LengthCost(**{**of_row, "cache_bytes": None, "size": (side, side), "size_name": "size"})


def text_tower(config: Any, names: Iterable[str]) -> str:
    """Name of the tower that reads texts, or "". If the text config is the model's config: the first of ``names`` without a sub-config."""
    text = config.get_text_config()
    if text is config:
        return next((name for name in names if tower_field(name) not in config.sub_configs), "")
    return next((field.removesuffix(TOWER_CONFIG) for field in config.sub_configs if getattr(config, field, None) is text), "")


def parts_with_mechanisms(
    skeleton: Any, attention: Mapping[str, LongAttentionConfig], tensors: Mapping[str, Any], lengths: tuple[int, int]
) -> dict[str, PlainPart]:
    """The part of each tower in `attention`, by name. The tower that reads texts has the `lengths` of source and result.

    Args:
        tensors: the file's tensors by name; these names may be older than the model's (LLaVA).
    """
    towers, in_model = towers_of(skeleton), names_in_model([*tensors], skeleton)
    prefixes = {id(module): f"{prefix}." for prefix, module in skeleton.named_modules()}
    parts = {}
    for tower, chosen in attention.items():
        prefix = prefixes[id(towers[tower])]
        of_tower = {name: tensor for name, tensor in tensors.items() if in_model[name].name.startswith(prefix)}
        said = lengths if tower == text_tower(skeleton.config, [tower]) and any(lengths) else None
        parts[tower] = PlainPart.of(towers[tower], chosen, of_tower, said)
    return parts
