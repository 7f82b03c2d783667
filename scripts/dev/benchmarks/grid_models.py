"""A ViT of base width on large images, layer by layer windows, pooled windows or full attention, against SDPA in every layer.

A layout is checked first, on a small image: the stock model where every layer is full, otherwise its definition in float64. The model
without attention, which is timed in the same run, bounds what any layout can gain.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, ViTConfig, ViTModel

from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.errors import LongAttentionError, OptionError
from hf_longattn.families import FAMILIES, LongViTConfig, LongViTModel
from hf_longattn.modeling.attach.attention_sites import layer_mechanisms
from hf_longattn.modeling.family.grid_rule import INTERPOLATE_ARGUMENT

from .case import DTYPES, Case
from .implementations import Implementation, build_implementation, register_implementation
from .memory import measure_memory
from .models.verify import TOLERANCE
from .report import footnote, machine, markdown_table, store_study
from .timing import time_in_turn, times_faster
from .verify import Check, difference

KIND = "image"
PATCH, TRAINED_SIDE = 16, 224
"""Pixels along a side of a patch, and of the images that the model was trained on."""
CHECKED, FIRST = (20, 36), (16, 16)
"""The grid on which layouts are checked, whose sides no window divides; and that of a first pass, after which lazy imports and threads are
there."""
POOLED = "segmented:block_size=256,integration=pooled,order=tiles:16x16"
NOTHING, NO_ATTENTION = "no attention", "benchmark-no-attention"
CROPS_AT_ONCE = 16
"""Tiles that are read in one call."""
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def clock() -> str:
    """What passes are timed by: the processor where one thread computes, which says more on a machine that others use."""
    return "processor" if torch.get_num_threads() == 1 else "wall"


def values_alone(module: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """An attention function of transformers that costs nothing: every token keeps its value."""
    return v.transpose(1, 2).contiguous(), None


AttentionInterface.register(NO_ATTENTION, values_alone)


def image_fields(case: Case) -> dict[str, Any]:
    """Base width for 12 heads, and weights that are large enough for attention to show in the outputs."""
    return {
        "hidden_size": case.hidden_size,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "intermediate_size": 4 * case.hidden_size,
        "image_size": TRAINED_SIDE,
        "patch_size": PATCH,
        "initializer_range": 0.05,
    }


LAYOUTS = {
    "windows, 4 full": "2,5,8,11=full",
    "windows, 2 full": "5,11=full",
    "windows, 4 pooled": f"2,5,8,11={POOLED}",
    "windows": "",
}
"""Name -> layers with another mechanism than the case's, as in ``--layers`` of a conversion."""
RULE: Any = FAMILIES["vit"].rule
"""How the patches lie on a grid."""


class ImageInputs:
    """Weights and an image for one case. ``stock`` is the model of transformers."""

    def __init__(self, case: Case) -> None:
        self.case = case
        torch.manual_seed(case.seed)
        self.stock = self.place(ViTModel(ViTConfig(**image_fields(case), attn_implementation="sdpa"), add_pooling_layer=False))
        self.pixels = self.values(case.grid)

    def values(self, grid: Sequence[int]) -> Tensor:
        """Random pixels ``(B, 3, height, width)`` with this many patches along each axis."""
        generator = torch.Generator().manual_seed(self.case.seed)
        shape = (self.case.batch, 3, *(PATCH * patches for patches in grid))
        return torch.randn(shape, generator=generator).to(self.case.device, self.case.torch_dtype)

    def place(self, model: Any) -> Any:
        """On the case's device, in its dtype, ready for inference."""
        return model.to(self.case.device, self.case.torch_dtype).eval().requires_grad_(False)


class ImageModel(Implementation):
    """A model that maps an image to hidden states (B, N, E)."""

    def __init__(self, inputs: ImageInputs) -> None:
        self.inputs = inputs
        self.model = inputs.place(self.build(inputs))

    def build(self, inputs: ImageInputs) -> Any:
        """The model with the weights of ``inputs.stock``."""
        raise TypeError(f"{type(self).__name__} has no build()")

    def forward(self) -> Tensor:
        return self.states(self.inputs.pixels)

    def states(self, pixels: Tensor) -> Tensor:
        """The hidden states of an image, with positions of its size."""
        return self.model(pixels, **{INTERPOLATE_ARGUMENT: True}).last_hidden_state

    @torch.no_grad()
    def warm_up(self, backward: bool) -> None:
        self.states(self.inputs.values(FIRST))


@register_implementation(KIND, "sdpa")
class StockSdpa(ImageModel):
    summary = "the model of transformers with attn_implementation='sdpa', full attention"
    computes = "full"

    def build(self, inputs: ImageInputs) -> Any:
        return inputs.stock


@register_implementation(KIND, NOTHING)
class StockWithoutAttention(ImageModel):
    summary = "the same with nothing in the place of attention"
    computes = ""

    def build(self, inputs: ImageInputs) -> Any:
        model = copy.deepcopy(inputs.stock)
        model.set_attn_implementation(NO_ATTENTION)
        return model


class StockOnTiles(ImageModel):
    """The model of transformers on crops of the size that it was trained with, each by itself, as anyone reads a large image."""

    computes = ""
    share = 1

    def build(self, inputs: ImageInputs) -> Any:
        return inputs.stock

    def states(self, pixels: Tensor) -> Tensor:
        return in_tiles(self.tile, pixels, PATCH, TRAINED_SIDE, TRAINED_SIDE // self.share).flatten(1, 2)

    def tile(self, pixels: Tensor) -> Tensor:
        """The patches' states ``(B, N, C)`` of images of the trained size."""
        return self.model(pixels).last_hidden_state[:, 1:]


TILES = {"tiles": 1, "overlapping tiles": 2}
"""Ways to read an image in tiles -> tiles that cover a patch along each axis."""
for _name, _share in TILES.items():
    _summary = f"the model of transformers on tiles of {TRAINED_SIDE} pixels, {'half overlapping' if _share > 1 else 'next to each other'}"
    register_implementation(KIND, _name)(type("StockOnTiles", (StockOnTiles,), {"summary": _summary, "share": _share}))


@torch.no_grad()
def in_tiles(read: Callable[[Tensor], Tensor], pixels: Tensor, patch: int, side: int, stride: int) -> Tensor:
    """States ``(B, rows, columns, C)`` of ``pixels (B, 3, H, W)`` in tiles, each patch from the tile whose middle is nearest to it.

    Tiles are ``side`` pixels wide and ``stride`` apart; the last one ends with the image. ``read`` maps some to states ``(n, N, C)``.
    """
    width, cells = side // patch, [length // patch for length in pixels.shape[2:]]
    rows, columns = (tile_starts(count, width, stride // patch) for count in cells)
    crops = [
        pixels[:, :, patch * row : patch * row + side, patch * column : patch * column + side]
        for row in rows.tolist()
        for column in columns.tolist()
    ]
    read_at_once = max(1, CROPS_AT_ONCE // len(pixels))
    states = torch.cat([read(torch.cat(crops[at : at + read_at_once])) for at in range(0, len(crops), read_at_once)])
    states = states.unflatten(1, (width, width)).unflatten(0, (len(rows), len(columns), len(pixels)))
    (row_tile, row), (column_tile, column) = (nearest_tile(cells[axis], starts, width) for axis, starts in enumerate((rows, columns)))
    return states[row_tile[:, None], column_tile, :, row[:, None], column].permute(2, 0, 1, 3)


def tile_starts(count: int, width: int, stride: int) -> Tensor:
    """The first of ``count`` cells in each tile of ``width`` cells."""
    return torch.arange(0, count - width + stride, stride).clamp_max(count - width)


def nearest_tile(count: int, starts: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """``(count,)`` twice: the tile in whose middle each cell lies, as nearly as in any, and the cell's place in it."""
    cell = torch.arange(count)
    place = cell[:, None] - starts
    from_middle = (2 * place - (width - 1)).abs().masked_fill((place < 0) | (place >= width), 2 * count)
    tile = from_middle.argmin(1)
    return tile, cell - starts[tile]


class LongModel(ImageModel):
    """The model of this package with a mechanism for each layer."""

    def build(self, inputs: ImageInputs) -> Any:
        case = inputs.case
        chosen = {} if self.name == EVERY_LAYER_FULL else {"layers": LAYOUTS[self.name] or None, **case.options}
        attention = LongAttentionConfig(case.mechanism if chosen else "full", **chosen)
        model = LongViTModel(LongViTConfig(**image_fields(case), long_attention=attention.to_dict()), add_pooling_layer=False)
        model.load_state_dict(inputs.stock.state_dict())
        return model


EVERY_LAYER_FULL = "full"
for _name in (EVERY_LAYER_FULL, *LAYOUTS):
    _fields = {"summary": f"the model of this package, {_name}", "computes": "full" if _name == EVERY_LAYER_FULL else "mechanism"}
    register_implementation(KIND, _name)(type("LayoutOfLayers", (LongModel,), _fields))


def check_layouts(case: Case) -> list[Check]:
    """Every layout in the case's dtype on a small input, against its definition in float64.

    Raises:
        LongAttentionError: a layout differs.
    """
    inputs = ImageInputs(case.on_grid(CHECKED))
    checks = []
    for name in (EVERY_LAYER_FULL, *LAYOUTS):
        candidate: Any = build_implementation(KIND, name, inputs)
        error = difference(candidate.run(False), _defined(candidate, inputs))
        check = Check(name, inputs.case.length, f"hidden states, {case.dtype}", error, TOLERANCE[case.dtype])
        if not check.passed:
            raise LongAttentionError(
                f"{name!r} differs from its definition by {error:.1e} in {case.dtype}, so nothing was timed; run the tests of its engine."
            )
        checks.append(check)
    return checks


@torch.no_grad()
def _defined(candidate: Any, inputs: ImageInputs) -> Tensor:
    """The hidden states in float64: of the stock model, or by the N×N weights of every layer's mechanism."""
    defined = copy.copy(candidate)
    if candidate.computes == "full":
        defined.model = copy.deepcopy(inputs.stock).double()
        return defined.states(inputs.pixels.double())
    defined.model = copy.deepcopy(candidate.model).double()
    mechanisms: list[Any] = layer_mechanisms(defined.model)
    for mechanism in mechanisms:
        mechanism.forward = mechanism.defined
    return defined.states(inputs.pixels.double())


def time_layouts(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Seconds of every layout in turns, and its speed-up over SDPA."""
    inputs = ImageInputs(case)
    candidates = [build_implementation(KIND, name, inputs) for name in ("sdpa", NOTHING, *TILES, *LAYOUTS)]
    for candidate in candidates:
        candidate.warm_up(False)
    timed = time_in_turn(candidates, case.length, backward=False, repeats=repeats, clock=CLOCKS[clock()], warm=False)
    sdpa = next(timing for timing in timed if timing.implementation == "sdpa")
    return [
        {
            "layout": timing.implementation,
            "seconds": [round(value / 1e3, 3) for value in timing.rounds],
            "times_faster": round(times_faster(timing, sdpa), 3),
        }
        for timing in timed
    ]


def run_grid_models(
    sizes: Sequence[int], dtypes: Sequence[str], case: Case, output: Path, *, repeats: int, memory: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Check and time every layout on square images.

    Args:
        sizes: pixels along each side.
        case: window, layers, heads and their width, batch; dtype and grid are replaced.
        output: path without suffix, at which the record is stored after every size.
        repeats: timed rounds; the median over them counts.
        memory: measure the memory of a pass as well, each in a fresh process.
    Returns:
        The record that is stored: for each dtype and size seconds, times as fast as SDPA, and MiB on top of weights and image.
    Raises:
        GridError: a size that is not a multiple of the patch.
        OptionError: no dtype, or an unknown one.
        LongAttentionError: a layout differs from its definition.
    """
    if not dtypes:
        raise OptionError(f"No dtype was given; choose from {', '.join(DTYPES)}, for example --dtypes fp32,bf16.")
    about = {key: getattr(case, key) for key in ("base", "mechanism", "options", "layers", "heads", "head_dim", "batch", "seed")}
    record: dict[str, Any] = {"machine": machine(), "kind": "grid models", "clock": clock(), "case": about, "checks": [], "results": []}
    cases = {dtype: case.at(dtype=dtype) for dtype in dtypes}
    config = ViTConfig(**image_fields(case))
    grids = {size: RULE.of_size(config, (size, size)) for size in sizes}
    for dtype, at_dtype in cases.items():
        record["checks"] += [dataclasses.asdict(check) for check in check_layouts(at_dtype)]
        log(f"{dtype}: every layout equals its definition")
        for size, grid in grids.items():
            entry: dict[str, Any] = {"size": size, "dtype": dtype, "layouts": time_layouts(at_dtype.on_grid(grid.sizes), repeats)}
            record["results"].append(entry)
            for layout in entry["layouts"]:
                if memory:
                    layout["mebibytes"] = round(measure_memory(KIND, layout["layout"], at_dtype.on_grid(grid.sizes)).extra, 1)
                log(f"{dtype} {size:,} px: {layout}")
            store_study(output, record, grid_model_table(record))
    return record


def grid_model_table(record: dict[str, Any]) -> str:
    """Layouts × sizes and dtypes: seconds, speed-up, memory."""
    case, rows = record["case"], []
    for entry in sorted(record["results"], key=lambda entry: (entry["dtype"] != "fp32", entry["size"])):
        for layout in entry["layouts"]:
            memory = f"{layout['mebibytes']:,.0f}" if "mebibytes" in layout else "–"
            seconds = f"{statistics.median(layout['seconds']):.2f}"
            rows.append([f"{entry['size']:,} px, {entry['dtype']}", layout["layout"], seconds, f"{layout['times_faster']:.2f}×", memory])
    worst = ", ".join(
        f"{dtype} {max(check['error'] for check in record['checks'] if check['what'].endswith(dtype)):.0e}"
        for dtype in dict.fromkeys(check["what"].rpartition(" ")[2] for check in record["checks"])
    )
    window = case["options"]["window"]
    return (
        f"A ViTModel with {case['layers']} layers, {case['heads']} heads of {case['head_dim']} and patches of {PATCH} pixels, random "
        f"weights, batch {case['batch']}, inference. *sdpa*: transformers' `ViTModel` with full attention; *no attention*: the same model "
        f"without it, the bound of all speed-ups; *windows*: `window2d` of {window}×{window} patches in the other layers; *pooled*: "
        f"`{POOLED}`; *tiles*: the stock model reads tiles of {TRAINED_SIDE} pixels, *overlapping* ones every {TRAINED_SIDE // 2}. *MiB*: "
        "memory of a pass, on top of weights and image.\n\n"
        f"{markdown_table(['image', 'layout', 'seconds', 'times as fast', 'MiB'], rows)}\n\n"
        f"Largest differences from the definition in float64, before timing: {worst}.\n\n"
        + footnote(record["machine"], f", {record['clock']} time")
    )
