"""The engine path that each attention layer of a model or a checkpoint runs, and why paths of higher priority do not run."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion.source_models import chosen_device
from ..engines.dispatch import GPU_RECORD, PathChoice, observe
from ..errors import BackendError, LongAttentionError
from ..functional import attend
from ..mechanisms.common.base import Mechanism
from .checkpoint import Inspection

COLUMNS = ("layer", "mechanism", "path", "reason")
FIRST_CHOICE = "the path of highest priority"
LONGEST = 2048
"""Tokens of the input of :func:`planned_paths` that show a mechanism at work."""
MAX_PLANNED = 16384
"""Maximum tokens of that input where short texts are attended in full. Above, it shows the path of short texts."""


@dataclasses.dataclass(frozen=True)
class LayerPath:
    """One path that ran in one layer.

    layer: name of the attention module in the model.
    mechanism: registered name of the mechanism.
    path: the engine's path, such as ``cpu-band``, or the layout of the batch, such as ``split``.
    reason: why each path of higher priority did not run, or :data:`FIRST_CHOICE`; then what was not yet verified on a GPU, if anything.
    """

    layer: str
    mechanism: str
    path: str
    reason: str


class Explanation(list[LayerPath]):
    """The paths of all layers, in the order in which they ran. Printed as a table with one line for equal layers."""

    def rows(self) -> list[tuple[str, ...]]:
        """One row for equal layers, and one more for every further path in them."""
        lines: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
        for layer, group in itertools.groupby(self, lambda entry: entry.layer):
            lines.setdefault(tuple((entry.mechanism, entry.path, entry.reason) for entry in group), []).append(layer)
        rows: list[tuple[str, ...]] = []
        for cells, layers in lines.items():
            name = layers[0] if len(layers) == 1 else f"{layers[0]} and {len(layers) - 1} more"
            rows += [(name if number == 0 else "", *row) for number, row in enumerate(cells)]
        return rows

    def __str__(self) -> str:
        rows = [COLUMNS, *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def explain(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> Explanation:
    """Run ``model`` once, without gradients, and list the paths of its attention layers.

        print(hf_longattn.explain(model, tokenizer(texts, return_tensors="pt", padding=True)))

    For an image model: ``explain(model, image_processor(images, return_tensors="pt"))``. ``HF_LONGATTN_LOG=paths`` logs the paths while a
    program runs.

    Args:
        model: a Long model, a model after :func:`hf_longattn.enable_long_attention`, or another model that contains mechanisms.
        inputs: the keyword arguments of ``model.forward``, or only the main input: ``input_ids``, or ``pixel_values`` for images.
    Returns:
        One entry per layer and distinct path. ``print`` shows it as a table.
    Raises:
        BackendError: no mechanism ran.
    """
    names = {id(module): name for name, module in model.named_modules() if isinstance(module, Mechanism)}
    with torch.no_grad(), _noting(names) as paths:
        model(**({getattr(model, "main_input_name", "input_ids"): inputs} if isinstance(inputs, Tensor) else inputs))
    if not paths:
        raise BackendError(
            f"No attention mechanism ran in {type(model).__name__}; load a Long class, or call "
            'hf_longattn.enable_long_attention(model, {"mechanism": "window", "window": 512}) and keep attn_implementation="longattn".'
        )
    return Explanation(paths.values())


def planned_paths(checkpoint: Inspection) -> Explanation:
    """The paths that the layers of a checkpoint run on this machine for one input of :func:`planned_length` tokens in fp32.

    No weights are loaded: each mechanism runs once on random queries and keys, without the terms that a base adds to its scores.
    """
    generator, grid, found = torch.Generator().manual_seed(0), _grid(checkpoint), list[LayerPath]()
    ran: dict[int, list[LayerPath]] = {}
    for layer, mechanism in enumerate(checkpoint.mechanisms):
        if id(mechanism) not in ran:
            shape = 1, mechanism.num_heads, planned_length(checkpoint), mechanism.head_dim
            q, k, v = torch.randn(3, *shape, generator=generator).to(chosen_device(None))
            hidden = q.transpose(1, 2).flatten(2) if mechanism.traits.takes_hidden_states else None
            bound = {"grid": grid} if mechanism.traits.needs_grid or mechanism.options.order is not None else {}
            try:
                with torch.no_grad(), _noting({}) as paths:
                    attend(q, k, v, mechanism.to(q.device).eval(), causal=checkpoint.causal, hidden_states=hidden, **bound)
                ran[id(mechanism)] = list(paths.values())
            except LongAttentionError as error:  # it runs in a whole model only
                ran[id(mechanism)] = [LayerPath("", mechanism.name, "–", str(error))]
        found += [dataclasses.replace(path, layer=f"layer {layer}") for path in ran[id(mechanism)]]
    return Explanation(found)


def planned_length(checkpoint: Inspection) -> int:
    """Number of tokens for :func:`planned_paths`: the longest input, but no more than shows every layer's mechanism at work.

    These are :data:`LONGEST` or, if short texts are attended in full, one token more than the longest of them, up to :data:`MAX_PLANNED`.
    A grid has one size.
    """
    grid = _grid(checkpoint)
    if grid is not None:
        return int(grid.length)
    in_full = max((getattr(mechanism.options, "exact_length", None) or 0 for mechanism in checkpoint.mechanisms), default=0)
    enough = in_full + 1 if LONGEST <= in_full < MAX_PLANNED else LONGEST
    return min(checkpoint.max_length or enough, enough)


def _grid(checkpoint: Inspection) -> Any:
    return checkpoint.inputs.new.grid


@contextlib.contextmanager
def _noting(names: Mapping[int, str]) -> Iterator[dict[tuple[int, PathChoice], LayerPath]]:
    """Context in which the yielded dictionary collects every path that runs. names: id of a mechanism -> its name in the model."""
    paths: dict[tuple[int, PathChoice], LayerPath] = {}

    def note(mechanism: Any, choice: PathChoice) -> None:
        reason = "; ".join(f"no {path}: {reason}" for path, reason in choice.refused) or FIRST_CHOICE
        record = GPU_RECORD.get((choice.pattern_type, choice.path))
        reason += f"; {record}" if record is not None else ""
        layer = names.get(id(mechanism), "").partition(".long_attention")[0]
        paths.setdefault((id(mechanism), choice), LayerPath(layer, getattr(mechanism, "name", ""), choice.path, reason))

    with observe(note):
        yield paths
