"""The path that each layer of a model runs, and the reasons against faster ones."""

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
    path: the engine's path, such as ``cpu-band``, or how the batch was passed to it, such as ``split``.
    reason: why each path of higher priority did not run, or that this path has the highest. Then, if a GPU never ran or timed the path, so
        it says.
    """

    layer: str
    mechanism: str
    path: str
    reason: str


class Explanation(list[LayerPath]):
    """The paths of all layers, in the order in which they ran. Prints as a table, with equal layers as one line."""

    def __str__(self) -> str:
        lines: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
        for layer, group in itertools.groupby(self, lambda answer: answer.layer):
            lines.setdefault(tuple((answer.mechanism, answer.path, answer.reason) for answer in group), []).append(layer)
        rows = [COLUMNS]
        for answers, layers in lines.items():
            name = layers[0] if len(layers) == 1 else f"{layers[0]} and {len(layers) - 1} more"
            for number, answer in enumerate(answers):
                rows.append((name if number == 0 else "", *answer))
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def explain(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> Explanation:
    """Run ``model`` once, without gradients, and list the paths of its attention layers.

        print(hf_longattn.explain(model, tokenizer(texts, return_tensors="pt", padding=True)))

    For a model of pictures: ``explain(model, image_processor(pictures, return_tensors="pt"))``. ``HF_LONGATTN_LOG=paths`` logs the same
    while a program runs.

    Args:
        model: a Long model, a model changed by :func:`hf_longattn.enable_long_attention`, or another model that contains a mechanism.
        inputs: the keyword arguments of its ``forward``, or its main input alone: ``input_ids``, or ``pixel_values`` for a model of
            pictures.
    Returns:
        One entry per layer and distinct path. ``print`` shows a table.
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
