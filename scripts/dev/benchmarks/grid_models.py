"""Models of base width on large images and videos, layer by layer windows, pooled windows or full attention, against SDPA in every layer.

A layout is checked first, on a small input: the stock model where every layer is full, otherwise its definition in float64. Speed is then
stated next to two bounds: what the operations allow, and what they allow at the rates of this machine, at which attention is slower than
matrix products. The latter needs a model without attention, which is timed in the same run:

    bound = T / (T₀ + (T - T₀) · pairs of the layout / pairs of full attention),   T: full attention, T₀: none
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    VideoMAEConfig,
    VideoMAEModel,
    ViTConfig,
    ViTModel,
    VJEPA2Config,
    VJEPA2Model,
)

from hf_longattn.choice_text import read_choice
from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.conversion.flops import cost_of, matrix_speed, model_shape
from hf_longattn.errors import LongAttentionError, OptionError, nearest
from hf_longattn.families import FAMILIES
from hf_longattn.inputs.common.base import LengthCost, kind_of
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
PATCH, TUBELET, TRAINED_SIDE = 16, 2, 224
"""Pixels along a side of a patch, frames of a tubelet of videos, and pixels along a side of what the models were trained on."""
POOLED = "segmented:block_size=256,integration=pooled,order=tiles:16x16"
NOTHING, NO_ATTENTION = "no attention", "benchmark-no-attention"
MATRIX = 2048
"""Side of the matrices whose product measures the machine."""
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


def video_fields(case: Case) -> dict[str, Any]:
    """The same for VideoMAE."""
    return {**image_fields(case), "num_frames": 16, "tubelet_size": TUBELET}


def jepa_fields(case: Case) -> dict[str, Any]:
    """The same for V-JEPA 2, with a predictor of one layer, which no pass runs."""
    left_out = {"pred_num_hidden_layers": 1, "num_pooler_layers": 1}
    fields = {name: value for name, value in video_fields(case).items() if name not in ("image_size", "num_frames", "intermediate_size")}
    return {**fields, **left_out, "crop_size": TRAINED_SIDE, "frames_per_clip": 16, "mlp_ratio": 4}


class Layout(NamedTuple):
    """The mechanism of every layer, the case's if none is named, and layers with another one, as in ``--layers`` of a conversion."""

    mechanism: str = ""
    layers: str = ""


@dataclasses.dataclass(frozen=True)
class GridBase:
    """A model of transformers that reads images or videos.

    fields: the arguments of its config in a case, built for the images or videos that ``window`` cells along each axis cover.
    layouts: name -> what is measured beside full attention.
    checked: the grid on which layouts are checked, whose sides no window divides; ``first`` is that of a first pass, after which lazy
        imports and threads are there.
    sizes, layers: what is measured unless something else is asked for: pixels of a side, layers.
    built, called: arguments of the model's class, and of its ``forward``.
    frames: of the videos that are measured; ``None``: images.
    """

    config: Any
    model: Any
    fields: Callable[[Case], dict[str, Any]]
    window: str
    layouts: Mapping[str, Layout]
    checked: tuple[int, ...]
    first: tuple[int, ...]
    sizes: str
    layers: int
    built: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    called: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    frames: int | None = None

    def patch(self) -> tuple[int, ...]:
        """What a token covers along each axis."""
        return (PATCH, PATCH) if self.frames is None else (TUBELET, PATCH, PATCH)

    def size(self, side: int, frames: int | None) -> tuple[int, ...]:
        """The size of a square image, or of a video of square frames."""
        return (side, side) if self.frames is None else (frames or self.frames, side, side)


IMAGE_LAYOUTS = {
    "windows, 4 full": Layout(layers="2,5,8,11=full"),
    "windows, 2 full": Layout(layers="5,11=full"),
    "windows, 4 pooled": Layout(layers=f"2,5,8,11={POOLED}"),
    "windows": Layout(),
}
"""The first are those of ViTDet."""
VIDEO_LAYOUTS = {
    "windows, 1 full": Layout(layers="3=full"),
    "windows": Layout(),
}
"""*windows* are what a conversion gives where no mechanism is named: of the size of the videos that the base was trained with."""
_VIDEOS: dict[str, Any] = {
    "window": "8+14+14", "layouts": VIDEO_LAYOUTS, "checked": (9, 15, 10), "first": (6, 8, 8), "sizes": "448", "layers": 4, "frames": 32,
}  # fmt: skip
BASES = {
    "vit": GridBase(
        ViTConfig, ViTModel, image_fields, "14", IMAGE_LAYOUTS, checked=(20, 36), first=(16, 16), sizes="1024,2048", layers=12,
        built={"add_pooling_layer": False},
    ),
    "videomae": GridBase(VideoMAEConfig, VideoMAEModel, video_fields, **_VIDEOS),
    "vjepa2": GridBase(VJEPA2Config, VJEPA2Model, jepa_fields, **_VIDEOS, called={"skip_predictor": True}),
}  # fmt: skip


def grid_base(name: str) -> GridBase:
    """The base of this name.

    Raises:
        OptionError: an unknown one.
    """
    if name not in BASES:
        raise OptionError(f"There is no model {name!r} on grids; choose from {', '.join(BASES)}.{nearest(name, BASES)}")
    return BASES[name]


class ImageInputs:
    """Weights and an image or a video for one case. ``stock`` is the model of transformers."""

    def __init__(self, case: Case) -> None:
        self.case, self.base, self.rule = case, grid_base(case.base), rule_of(case.base)
        torch.manual_seed(case.seed)
        config = self.base.config(**self.base.fields(case), attn_implementation="sdpa")
        self.stock = self.place(self.base.model(config, **self.base.built))
        self.pixels = self.values(case.grid)

    def values(self, grid: Sequence[int]) -> Tensor:
        """Random pixels ``(B, 3, height, width)`` or ``(B, frames, 3, height, width)`` with this many cells along each axis."""
        generator = torch.Generator().manual_seed(self.case.seed)
        size = [side * cells for side, cells in zip(self.base.patch(), grid, strict=True)]
        shape = (self.case.batch, *size[:-2], 3, *size[-2:])
        return torch.randn(shape, generator=generator).to(self.case.device, self.case.torch_dtype)

    def place(self, model: Any) -> Any:
        """On the case's device, in its dtype, ready for inference."""
        return model.to(self.case.device, self.case.torch_dtype).eval().requires_grad_(False)

    def states_of_stock(self, model: Any, pixels: Tensor) -> Tensor:
        """The hidden states of a model of transformers, whose positions are those of the pixels' size."""
        with self.rule.resized(model, self.rule.size_of(pixels)) as arguments:
            return model(pixels, **arguments, **self.base.called).last_hidden_state


def rule_of(base: str) -> Any:
    """How the family's tokens lie on a grid."""
    return FAMILIES[base].rule


class ImageModel(Implementation):
    """A model that maps an image or a video to hidden states (B, N, E)."""

    def __init__(self, inputs: ImageInputs) -> None:
        self.inputs = inputs
        self.model = inputs.place(self.build(inputs))

    def build(self, inputs: ImageInputs) -> Any:
        """The model with the weights of ``inputs.stock``."""
        raise TypeError(f"{type(self).__name__} has no build()")

    def forward(self) -> Tensor:
        return self.states(self.inputs.pixels)

    def states(self, pixels: Tensor) -> Tensor:
        """The hidden states of an input."""
        return self.inputs.states_of_stock(self.model, pixels)

    @torch.no_grad()
    def warm_up(self, backward: bool) -> None:
        self.states(self.inputs.values(self.inputs.base.first))


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
        if pixels.dim() > 4:
            raise OptionError(f"{self.name!r} is of images, not of videos.")
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
        model = long_model(inputs.case, attention_of(inputs.case, self.name))
        model.load_state_dict(inputs.stock.state_dict())
        return model

    def states(self, pixels: Tensor) -> Tensor:
        arguments = {INTERPOLATE_ARGUMENT: True} if self.inputs.rule.interpolates else {}
        return self.model(pixels, **arguments, **self.inputs.base.called).last_hidden_state


def attention_of(case: Case, layout: str) -> LongAttentionConfig:
    """The attention of a layout."""
    if layout == EVERY_LAYER_FULL:
        return LongAttentionConfig("full")
    chosen = BASES[case.base].layouts[layout]
    options = read_choice(chosen.mechanism) if chosen.mechanism else {"mechanism": case.mechanism, **case.options}
    return LongAttentionConfig(options.pop("mechanism"), layers=chosen.layers or None, **options)


def long_model(case: Case, attention: LongAttentionConfig) -> Any:
    base, family = BASES[case.base], FAMILIES[case.base]
    config = family.config_class(**base.fields(case), long_attention=attention.to_dict())
    return family.model_class(base.model.__name__)(config, **base.built)


EVERY_LAYER_FULL = "full"
for _name in dict.fromkeys((EVERY_LAYER_FULL, *IMAGE_LAYOUTS, *VIDEO_LAYOUTS)):
    _fields = {"summary": f"the model of this package, {_name}", "computes": "full" if _name == EVERY_LAYER_FULL else "mechanism"}
    register_implementation(KIND, _name)(type("LayoutOfLayers", (LongModel,), _fields))


def check_layouts(case: Case) -> list[Check]:
    """Every layout in the case's dtype on a small input, against its definition in float64.

    Raises:
        LongAttentionError: a layout differs.
    """
    base = grid_base(case.base)
    inputs = ImageInputs(case.on_grid(base.checked))
    checks = []
    for name in (EVERY_LAYER_FULL, *base.layouts):
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
    if candidate.computes == "full":
        return inputs.states_of_stock(copy.deepcopy(inputs.stock).double(), inputs.pixels.double())
    defined = copy.copy(candidate)
    defined.model = copy.deepcopy(candidate.model).double()
    mechanisms: list[Any] = layer_mechanisms(defined.model)
    for mechanism in mechanisms:
        mechanism.forward = mechanism.defined
    return defined.states(inputs.pixels.double())


def costs(case: Case) -> dict[str, LengthCost]:
    """The operations of full attention in every layer and of every layout, for one input of the case's size."""
    base = BASES[case.base]
    config = base.config(**base.fields(case))
    pixels = tuple(side * cells for side, cells in zip(base.patch(), case.grid, strict=True))
    size = kind_of(FAMILIES[case.base]).size(config, pixels)
    attention = {name: attention_of(case, name) for name in (EVERY_LAYER_FULL, *base.layouts)}
    with torch.device("meta"):
        shape = model_shape(config, long_model(case, attention[EVERY_LAYER_FULL]), [case.torch_dtype])
    return {name: cost_of(size, chosen, shape) for name, chosen in attention.items()}


def time_layouts(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Seconds of every layout in turns, its speed-up over SDPA, the bounds of that, and the rate at which it computes."""
    inputs = ImageInputs(case)
    tiles = () if inputs.base.frames else TILES
    candidates = [build_implementation(KIND, name, inputs) for name in ("sdpa", NOTHING, *tiles, *inputs.base.layouts)]
    for candidate in candidates:
        candidate.warm_up(False)
    timed = time_in_turn(candidates, case.length, backward=False, repeats=repeats, clock=CLOCKS[clock()], warm=False)
    timings = {timing.implementation: timing for timing in timed}
    operations, peak = costs(case), matrix_speed(MATRIX, dtype=case.torch_dtype)
    full, free = operations[EVERY_LAYER_FULL], timings[NOTHING].median
    entries = []
    for name, timing in timings.items():
        cost = operations.get(EVERY_LAYER_FULL if name == "sdpa" else name)
        entry: dict[str, Any] = {"layout": name, "seconds": [round(value / 1e3, 3) for value in timing.rounds]}
        entry["times_faster"] = round(times_faster(timing, timings["sdpa"]), 3)
        if cost is not None:
            share = cost.attention_flops / full.attention_flops
            entry["gflop"] = round(case.batch * cost.total_flops / 1e9, 1)
            entry["matrix_share"] = round(case.batch * cost.total_flops / (timing.median / 1e3) / peak, 3)
            entry["flop_bound"] = round(full.total_flops / cost.total_flops, 3)
            entry["rate_bound"] = round(timings["sdpa"].median / (free + (timings["sdpa"].median - free) * share), 3)
        entries.append(entry)
    return entries


def run_grid_models(
    sizes: Sequence[int], dtypes: Sequence[str], case: Case, output: Path, *, repeats: int, frames: int | None = None,
    memory: bool = False, log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Check and time every layout on square images or videos.

    Args:
        sizes: pixels along each side.
        case: base, window, layers, heads and their width, batch; dtype and grid are replaced.
        output: path without suffix, at which the record is stored after every size.
        repeats: timed rounds; the median over them counts.
        frames: of a video; ``None``: the base's.
        memory: measure the memory of a pass as well, each in a fresh process.
    Returns:
        The record that is stored: for each dtype and size seconds, times as fast as SDPA, two bounds of it, the share of the machine's
        matrix product, and MiB on top of weights and input.
    Raises:
        GridError: a size that is not a multiple of the patch.
        OptionError: no dtype, or an unknown dtype or base, or frames of images.
        LongAttentionError: a layout differs from its definition.
    """
    if not dtypes:
        raise OptionError(f"No dtype was given; choose from {', '.join(DTYPES)}, for example --dtypes fp32,bf16.")
    base = grid_base(case.base)
    if frames is not None and base.frames is None:
        raise OptionError(f"{frames} frames were given, and {base.model.__name__} reads images; leave --frames out.")
    about = {key: getattr(case, key) for key in ("base", "mechanism", "options", "layers", "heads", "head_dim", "batch", "seed")}
    record: dict[str, Any] = {"machine": machine(), "kind": "grid models", "clock": clock(), "case": about, "checks": [], "results": []}
    cases = {dtype: case.at(dtype=dtype) for dtype in dtypes}
    config, rule = base.config(**base.fields(case)), rule_of(case.base)
    grids = {size: rule.of_size(config, base.size(size, frames)) for size in sizes}
    for dtype, at_dtype in cases.items():
        record["checks"] += [dataclasses.asdict(check) for check in check_layouts(at_dtype)]
        log(f"{dtype}: every layout equals its definition")
        for size, grid in grids.items():
            of_what = {"size": size, **({} if base.frames is None else {"frames": frames or base.frames}), "dtype": dtype}
            entry: dict[str, Any] = {**of_what, "layouts": time_layouts(at_dtype.on_grid(grid.sizes), repeats)}
            record["results"].append(entry)
            for layout in entry["layouts"]:
                if memory:
                    layout["mebibytes"] = round(measure_memory(KIND, layout["layout"], at_dtype.on_grid(grid.sizes)).extra, 1)
                log(_line(entry, layout))
            store_study(output, record, grid_model_table(record))
    return record


def _line(entry: dict[str, Any], layout: dict[str, Any]) -> str:
    bounds = f", bounds {layout['flop_bound']:.2f}× and {layout['rate_bound']:.2f}×" if "flop_bound" in layout else ""
    memory = f", {layout['mebibytes']:.0f} MiB" if "mebibytes" in layout else ""
    median = statistics.median(layout["seconds"])
    return f"{entry['dtype']} {_words(entry):>8} {layout['layout']:<20} {median:8.2f} s {layout['times_faster']:6.2f}×{bounds}{memory}"


def _words(entry: dict[str, Any]) -> str:
    """The size of an input."""
    return f"{entry['frames']} frames of {entry['size']:,} px" if "frames" in entry else f"{entry['size']:,} px"


def grid_model_table(record: dict[str, Any]) -> str:
    """Layouts × sizes and dtypes: seconds, speed-up, both bounds with the share that is reached, share of the matrix product, memory."""
    about, case = record["machine"], record["case"]
    base = BASES[case["base"]]
    noun = "image" if base.frames is None else "video"
    header = [noun, "layout", "seconds", "times as fast", "bound by operations", "bound at measured rates", "of matrix peak", "MiB"]
    rows = []
    for entry in sorted(record["results"], key=lambda entry: (entry["dtype"] != "fp32", entry["size"])):
        for layout in entry["layouts"]:
            faster, bounds, share = layout["times_faster"], ["–", "–"], "–"
            if "flop_bound" in layout:
                share = f"{layout['matrix_share']:.0%}"
                if layout["layout"] != "sdpa":
                    bounds = [f"{bound:.2f}× ({faster / bound:.0%})" for bound in (layout["flop_bound"], layout["rate_bound"])]
            memory = f"{layout['mebibytes']:,.0f}" if "mebibytes" in layout else "–"
            seconds = f"{statistics.median(layout['seconds']):.2f}"
            rows.append([f"{_words(entry)}, {entry['dtype']}", layout["layout"], seconds, f"{faster:.2f}×", *bounds, share, memory])
    worst = ", ".join(
        f"{dtype} {max(check['error'] for check in record['checks'] if check['what'].endswith(dtype)):.0e}"
        for dtype in dict.fromkeys(check["what"].rpartition(" ")[2] for check in record["checks"])
    )
    patch = base.patch()[-1] if base.frames is None else "×".join(map(str, base.patch()))
    return (
        f"A {base.model.__name__} with {case['layers']} layers, {case['heads']} heads of {case['head_dim']} and patches of {patch} pixels, "
        f"random weights, batch {case['batch']}, inference. *sdpa*: transformers' `{base.model.__name__}` with full attention; *no "
        f"attention*: the same model without it; *windows*: {_windows(record)}.\n\n"
        "*Bound by operations*: the speed-up that the operation count allows. *Bound at measured rates*: the same, if attention runs as "
        "fast per operation as SDPA, and everything else as fast as the model without attention. In brackets: the share of the bound that "
        "is reached. *Of matrix peak*: the rate of operations, as a share of a large matrix product's. *MiB*: memory of a pass, on top of "
        f"weights and {noun}.\n\n"
        f"{markdown_table(header, rows)}\n\nLargest differences from the definition in float64, before timing: {worst}.\n\n"
        + footnote(about, f", {record['clock']} time")
    )


def _windows(record: dict[str, Any]) -> str:
    """What the layouts of a table are."""
    case = record["case"]
    base, sides = BASES[case["base"]], str(case["options"]["window"]).split("+")
    sides = sides if len(sides) == len(base.checked) else sides * len(base.checked)
    if base.frames is None:
        return (
            f"`window2d` of {'×'.join(sides)} patches in the other layers; *pooled*: `{POOLED}`; *tiles*: the stock model reads tiles of "
            f"{TRAINED_SIDE} pixels, *overlapping* ones every {TRAINED_SIDE // 2}"
        )
    return f"`window2d` of {'×'.join(sides)} cells in the other layers, as a conversion has where none is named"
