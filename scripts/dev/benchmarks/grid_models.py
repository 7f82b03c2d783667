"""A ViT of base shape on large pictures, layer by layer windows, pooled windows or full attention, against SDPA in every layer.

A layout is checked first, on a small picture: stock ViTModel where every layer is full, otherwise its definition in float64. Speed is then
stated next to two bounds: what the operations allow, and what they allow at the rates of this machine, at which attention is slower than
matrix products. The latter needs a model without attention, which is timed in the same run:

    bound = T / (T₀ + (T - T₀) · pairs of the layout / pairs of full attention),   T: full attention, T₀: none
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AttentionInterface, ViTConfig, ViTModel

from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.conversion.flops import SizeCost, cost_on, matrix_speed, model_shape
from hf_longattn.conversion.grid_sizes import GridSize
from hf_longattn.engines.common.grid import Grid
from hf_longattn.errors import LongAttentionError, OptionError
from hf_longattn.families import LongViTConfig, LongViTModel
from hf_longattn.families.vit import FAMILY
from hf_longattn.modeling.attach.attention_sites import layer_mechanisms

from .case import DTYPES, Case
from .implementations import Implementation, build_implementation, register_implementation
from .memory import measure_memory
from .models.verify import TOLERANCE
from .report import machine, markdown_table, store_study, stored_study
from .timing import time_in_turn, times_faster
from .verify import Check, difference

KIND = "image"
GRID_RULE: Any = FAMILY.grid
PATCH, TRAINED = 16, 224
"""Pixels of a patch, and of the pictures for which the position table is made."""
CHECKED_GRID = (20, 36)
"""The grid on which layouts are checked; no window divides its sides."""
WARM_UP = (16, 16)
"""The grid of a first pass, after which lazy imports and threads are there."""
POOLED = "segmented:block_size=256,integration=pooled,order=tiles:16x16"
NOTHING, NO_ATTENTION = "no attention", "benchmark-no-attention"
SAME_MACHINE = ("processor", "threads", "torch", "transformers")
"""What must not differ within a table."""
MATRIX = 2048
"""Side of the matrices whose product measures the machine."""


def values_alone(module: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """An attention function of transformers that costs nothing: every token keeps its value."""
    return v.transpose(1, 2).contiguous(), None


AttentionInterface.register(NO_ATTENTION, values_alone)


def sizes_of(case: Case) -> dict[str, Any]:
    """The arguments of a ViT's config: base width for 12 heads, and weights that are large enough for attention to show in the outputs."""
    return {
        "hidden_size": case.hidden_size,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "intermediate_size": 4 * case.hidden_size,
        "image_size": TRAINED,
        "patch_size": PATCH,
        "initializer_range": 0.05,
    }


class ImageInputs:
    """Weights and a picture for one case. ``vit`` is the stock model."""

    def __init__(self, case: Case) -> None:
        self.case = case
        torch.manual_seed(case.seed)
        self.vit = self.place(ViTModel(ViTConfig(**sizes_of(case), attn_implementation="sdpa"), add_pooling_layer=False))
        self.pixels = self.picture(case.grid)

    def picture(self, grid: Sequence[int]) -> Tensor:
        """Random pixels ``(B, 3, height, width)`` with this many patches along each axis."""
        generator = torch.Generator().manual_seed(self.case.seed)
        size = [PATCH * side for side in grid]
        return torch.randn(self.case.batch, 3, *size, generator=generator).to(self.case.device, self.case.torch_dtype)

    def place(self, model: Any) -> Any:
        """On the case's device, in its dtype, ready for inference."""
        return model.to(self.case.device, self.case.torch_dtype).eval().requires_grad_(False)


class ImageModel(Implementation):
    """A model that maps a picture to hidden states (B, N, E)."""

    def __init__(self, inputs: ImageInputs) -> None:
        self.inputs = inputs
        self.model = inputs.place(self.build(inputs))

    def build(self, inputs: ImageInputs) -> Any:
        """The model with the weights of ``inputs.vit``."""
        raise TypeError(f"{type(self).__name__} has no build()")

    def forward(self) -> Tensor:
        return self.states(self.inputs.pixels)

    def states(self, pixels: Tensor) -> Tensor:
        """The hidden states of a picture."""
        return self.model(pixels, interpolate_pos_encoding=True).last_hidden_state

    @torch.no_grad()
    def warm_up(self, backward: bool) -> None:
        self.states(self.inputs.picture(WARM_UP))


@register_implementation(KIND, "sdpa")
class VitSdpa(ImageModel):
    summary = "ViTModel of transformers with attn_implementation='sdpa', full attention"
    computes = "full"

    def build(self, inputs: ImageInputs) -> Any:
        return inputs.vit


@register_implementation(KIND, NOTHING)
class VitWithoutAttention(ImageModel):
    summary = "the same with nothing in the place of attention"
    computes = ""

    def build(self, inputs: ImageInputs) -> Any:
        model = copy.deepcopy(inputs.vit)
        model.set_attn_implementation(NO_ATTENTION)
        return model


class Layout(ImageModel):
    """LongViTModel with a mechanism for each layer."""

    layers: ClassVar[str | None]
    """The layers that are not windows, as in ``--layers`` of ``longattn convert``; ``None``: every layer is full."""

    def build(self, inputs: ImageInputs) -> Any:
        model = long_vit(sizes_of(inputs.case), self.attention(inputs.case))
        model.load_state_dict(inputs.vit.state_dict())
        return model

    @classmethod
    def attention(cls, case: Case) -> LongAttentionConfig:
        if cls.layers is None:
            return LongAttentionConfig("full")
        return LongAttentionConfig(case.mechanism, layers=cls.layers or None, **case.options)


def long_vit(sizes: dict[str, Any], attention: LongAttentionConfig) -> Any:
    return LongViTModel(LongViTConfig(**sizes, long_attention=attention.to_dict()), add_pooling_layer=False)


LAYOUTS = {"windows, 4 full": "2,5,8,11=full", "windows, 2 full": "5,11=full", "windows, 4 pooled": f"2,5,8,11={POOLED}", "windows": ""}
"""Name -> the layers that are not windows; the first are those of ViTDet."""
EVERY_LAYER_FULL = "full"
LAYOUT_CLASSES: dict[str, Any] = {}
for _name, _layers in {EVERY_LAYER_FULL: None, **LAYOUTS}.items():
    _fields = {"summary": f"LongViTModel, {_name}", "layers": _layers, "computes": "full" if _layers is None else "mechanism"}
    LAYOUT_CLASSES[_name] = register_implementation(KIND, _name)(type("LayoutOfLayers", (Layout,), _fields))


def check_layouts(case: Case) -> list[Check]:
    """Every layout in the case's dtype on a small picture, against its definition in float64.

    Raises:
        LongAttentionError: a layout differs.
    """
    inputs = ImageInputs(case.on_grid(CHECKED_GRID))
    checks = []
    for name in LAYOUT_CLASSES:
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
    model = copy.deepcopy(inputs.vit if candidate.computes == "full" else candidate.model).double()
    mechanisms: list[Any] = layer_mechanisms(model)
    for mechanism in mechanisms:
        mechanism.forward = mechanism.reference
    return model(inputs.pixels.double(), interpolate_pos_encoding=True).last_hidden_state


def costs(case: Case) -> dict[str, SizeCost]:
    """The operations of full attention in every layer and of every layout, for one picture of the case's size."""
    grid = Grid(tuple(case.grid), prefix=1)
    size = GridSize(tuple(PATCH * side for side in case.grid), grid, (grid,) * case.layers)
    attention = {name: LAYOUT_CLASSES[name].attention(case) for name in (EVERY_LAYER_FULL, *LAYOUTS)}
    sizes = sizes_of(case)
    with torch.device("meta"):
        shape = model_shape(LongViTConfig(**sizes), long_vit(sizes, attention[EVERY_LAYER_FULL]), [case.torch_dtype])
    return {name: cost_on(size, chosen, shape) for name, chosen in attention.items()}


def time_layouts(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Seconds of every layout in turns, its speed-up over SDPA, the bounds of that, and the rate at which it computes."""
    inputs = ImageInputs(case)
    candidates = [build_implementation(KIND, name, inputs) for name in ("sdpa", NOTHING, *LAYOUTS)]
    for candidate in candidates:
        candidate.warm_up(False)
    timed = time_in_turn(candidates, case.length, backward=False, repeats=repeats, warm=False)
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
    sizes: Sequence[int], dtypes: Sequence[str], case: Case, output: Path, *, repeats: int, memory: bool = False, again: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Check and time every layout on square pictures; what ``output`` has of the same case on this machine is not measured again.

    Args:
        sizes: pixels along each axis.
        case: window, layers, heads and their width, batch; dtype and grid are replaced.
        output: path without suffix, at which the record is stored after every size.
        repeats: timed rounds; the median over them counts.
        memory: measure the memory of a pass as well, each in a fresh process.
        again: measure everything anew.
    Returns:
        The record that is stored: for each dtype and size seconds, times as fast as SDPA, two bounds of it, the share of the machine's
        matrix product, and MiB on top of weights and input.
    Raises:
        GridError: a size that is not a multiple of the patch.
        OptionError: no dtype, or an unknown one.
        LongAttentionError: a layout differs from its definition.
    """
    if not dtypes:
        raise OptionError(f"No dtype was given; choose from {', '.join(DTYPES)}, for example --dtypes fp32,bf16.")
    about = {key: getattr(case, key) for key in ("mechanism", "options", "layers", "heads", "head_dim", "batch", "seed")}
    fresh: dict[str, Any] = {"machine": machine(), "kind": "grid models", "case": about, "checks": [], "results": []}
    stored = {} if again else stored_study(output)
    unchanged = stored and stored["case"] == about and all(stored["machine"][name] == fresh["machine"][name] for name in SAME_MACHINE)
    record = stored if unchanged else fresh
    cases = {dtype: case.at(dtype=dtype) for dtype in dtypes}
    grids = {size: GRID_RULE.of_size(ViTConfig(patch_size=PATCH), (size, size)) for size in sizes}
    for dtype, at_dtype in cases.items():
        if not any(check["what"].endswith(dtype) for check in record["checks"]):
            record["checks"] += [dataclasses.asdict(check) for check in check_layouts(at_dtype)]
            log(f"{dtype}: every layout equals its definition")
        for size, grid in grids.items():
            entry = next((entry for entry in record["results"] if (entry["size"], entry["dtype"]) == (size, dtype)), None)
            if entry is None:
                entry = {"size": size, "dtype": dtype, "layouts": time_layouts(at_dtype.on_grid(grid.sizes), repeats)}
                record["results"].append(entry)
            for layout in entry["layouts"]:
                if memory and "mebibytes" not in layout:
                    layout["mebibytes"] = round(measure_memory(KIND, layout["layout"], at_dtype.on_grid(grid.sizes)).extra, 1)
                log(_line(entry, layout))
            store_study(output, record, grid_model_table(record))
    return record


def _line(entry: dict[str, Any], layout: dict[str, Any]) -> str:
    bounds = f", bounds {layout['flop_bound']:.2f}× and {layout['rate_bound']:.2f}×" if "flop_bound" in layout else ""
    memory = f", {layout['mebibytes']:.0f} MiB" if "mebibytes" in layout else ""
    median = statistics.median(layout["seconds"])
    return f"{entry['dtype']} {entry['size']:>5} px {layout['layout']:<20} {median:8.2f} s {layout['times_faster']:6.2f}×{bounds}{memory}"


def grid_model_table(record: dict[str, Any]) -> str:
    """Layouts × sizes and dtypes: seconds, speed-up, both bounds with the share that is reached, share of the matrix product, memory."""
    header = ["picture", "layout", "seconds", "times as fast", "bound by operations", "bound at measured rates", "of matrix peak", "MiB"]
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
            rows.append([f"{entry['size']:,} px, {entry['dtype']}", layout["layout"], seconds, f"{faster:.2f}×", *bounds, share, memory])
    about, case = record["machine"], record["case"]
    window = "×".join([str(case["options"].get("window", 14))] * 2)
    worst = ", ".join(
        f"{dtype} {max(check['error'] for check in record['checks'] if check['what'].endswith(dtype)):.0e}"
        for dtype in dict.fromkeys(check["what"].rpartition(" ")[2] for check in record["checks"])
    )
    return (
        f"A ViT with {case['layers']} layers, {case['heads']} heads of {case['head_dim']} and patches of {PATCH} pixels, random weights, "
        f"batch {case['batch']}, inference. *sdpa*: transformers' `ViTModel` with full attention; *no attention*: the same with nothing "
        f"in its place; *windows*: `window2d` of {window} patches in the other layers; *pooled*: `{POOLED}`. The bounds are the speed-up "
        "that the operations allow, and what they allow if attention runs at the rate of SDPA and everything else at that of the model "
        "without attention; in brackets, the share of it that is reached. *MiB*: memory of a pass on top of weights and picture.\n\n"
        f"{markdown_table(header, rows)}\n\nLargest differences from the definition in float64, before timing: {worst}.\n\n"
        f"*{about['processor']}, {about['threads']} threads, torch {about['torch']}, transformers {about['transformers']}, "
        f"{about['date']}*\n"
    )
