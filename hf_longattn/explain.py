"""The engine path that each attention layer of a model runs, and why paths of higher priority do not."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .engines.common.paths import GPU_RECORD, PathChoice, observe
from .errors import BackendError
from .mechanisms.common.base import Mechanism

COLUMNS = ("layer", "mechanism", "path", "reason")
FIRST_CHOICE = "the path of highest priority"


@dataclasses.dataclass(frozen=True)
class LayerPath:
    """One path that ran in one layer.

    layer: name of the attention module in the model.
    mechanism: its registered name.
    path: the engine's path, such as ``cpu-band``, or the layout of the batch, such as ``split``.
    reason: why each path of higher priority did not run, or :data:`FIRST_CHOICE`; then what was not yet verified on a GPU, if anything.
    """

    layer: str
    mechanism: str
    path: str
    reason: str


class Explanation(list[LayerPath]):
    """The paths of all layers, in the order in which they ran. Printed as a table with one line for equal layers."""

    def __str__(self) -> str:
        lines: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
        for layer, group in itertools.groupby(self, lambda entry: entry.layer):
            lines.setdefault(tuple((entry.mechanism, entry.path, entry.reason) for entry in group), []).append(layer)
        rows = [COLUMNS]
        for cells, layers in lines.items():
            name = layers[0] if len(layers) == 1 else f"{layers[0]} and {len(layers) - 1} more"
            for number, row in enumerate(cells):
                rows.append((name if number == 0 else "", *row))
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def explain(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> Explanation:
    """Run ``model`` once, without gradients, and list the paths of its attention layers.

        print(hf_longattn.explain(model, tokenizer(texts, return_tensors="pt", padding=True)))

    For an image model: ``explain(model, image_processor(images, return_tensors="pt"))``. ``HF_LONGATTN_LOG=paths`` logs the paths while a
    program runs.

    Args:
        model: a Long model, a model after :func:`hf_longattn.enable_long_attention`, or another model that contains mechanisms.
        inputs: the keyword arguments of its ``forward``, or only its main input: ``input_ids``, or ``pixel_values`` for images.
    Returns:
        One entry per layer and distinct path. ``print`` shows it as a table.
    Raises:
        BackendError: no mechanism ran.
    """
    names = {id(module): name for name, module in model.named_modules() if isinstance(module, Mechanism)}
    paths: dict[tuple[int, PathChoice], LayerPath] = {}

    def layer_of(mechanism: Any) -> str:
        return names.get(id(mechanism), "").partition(".long_attention")[0]

    def note(mechanism: Any, choice: PathChoice) -> None:
        reason = "; ".join(f"no {path}: {reason}" for path, reason in choice.refused) or FIRST_CHOICE
        reason += f"; {GPU_RECORD[choice.path]}" if choice.path in GPU_RECORD else ""
        paths.setdefault((id(mechanism), choice), LayerPath(layer_of(mechanism), getattr(mechanism, "name", ""), choice.path, reason))

    with torch.no_grad(), observe(note):
        model(**({getattr(model, "main_input_name", "input_ids"): inputs} if isinstance(inputs, Tensor) else inputs))
    if not paths:
        raise BackendError(
            f"No attention mechanism ran in {type(model).__name__}; load a Long class, or call "
            'hf_longattn.enable_long_attention(model, {"mechanism": "window", "window": 512}) and keep attn_implementation="longattn".'
        )
    return Explanation(paths.values())
