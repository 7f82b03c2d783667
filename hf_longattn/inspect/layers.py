"""Describe the layers of a long checkpoint or model: mechanisms, decode state, cost, and the engine path of each
layer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration import LongAttentionConfig
from ..conversion.architecture import read_long
from ..conversion.load import quiet_libraries
from ..conversion.plain import plain_parts
from ..conversion.plan import StackLength, WithTowers
from ..conversion.source import Source, open_source, tower_of
from ..engines.dispatch import PathChoice, observe
from ..errors import BackendError, CheckpointError, LongAttentionError
from ..files import is_generic, is_long
from ..functional import attend
from ..inspect.device import chosen_device
from ..mechanisms import Mechanism
from ..mechanisms.common.shared_options import full_of
from ..modeling.costs import (
    DecodeState,
    LengthCost,
    ModelShape,
    cost_at,
    costs_of,
    decode_states,
    layer_mechanisms,
    model_shape,
)
from ..modeling.family.input_spec import USUAL_LENGTH, InputSizes
from ..modeling.family.plain_spec import text_length, text_tower
from ..modeling.family.rotary import positions_without_end
from ..modeling.generic import read_attention, towers_of
from ..modeling.pruning import KEPT_HEADS


@dataclass(frozen=True)
class Inspection(WithTowers):
    """A long checkpoint.

    attention, inputs, shape, costs: facts about its layers; with several towers, about the text tower.
    kept_heads: number of remaining heads in each layer with pruned heads (key-value heads under grouped-query
        attention).
    towers: each tower by name, if there are several. For a plain class with mechanisms, only the towers with a
        mechanism.
    other_towers: names of the towers of a plain class that run its own attention.
    generic: whether the model is a plain class with mechanisms.
    look_back: positions that a query looks back if texts have no maximum length.
    """

    source: Source
    class_name: str
    model_type: str
    parameters: int
    attention: LongAttentionConfig
    inputs: InputSizes
    shape: ModelShape
    costs: tuple[LengthCost, ...]
    kept_heads: Mapping[str, int] = field(default_factory=dict)
    towers: Mapping[str, Inspection] = field(default_factory=dict)
    other_towers: tuple[str, ...] = ()
    generic: bool = False
    look_back: int | None = None

    @property
    def longest_input(self) -> str:
        size = self.inputs.new
        if not size.tokens:
            return size.words
        return f"up to {size}" if size.name else f"up to {size.tokens:,} tokens"

    @property
    def max_length(self) -> int:
        """The maximum input in tokens; 0 if the config does not say."""
        return self.inputs.new.tokens

    @cached_property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        return tuple(layer_mechanisms(self.attention, self.shape, self.max_length or None))

    @cached_property
    def states(self) -> tuple[DecodeState, ...]:
        """Decode cache of each layer after ``max_length`` tokens; empty for a model that does not decode."""
        return self.states_at(self.max_length)

    def states_at(self, length: int) -> tuple[DecodeState, ...]:
        """Decode cache of each layer after ``length`` tokens; empty for a model that does not decode, and for 0."""
        if not (self.shape.causal and length):
            return ()
        if self.generic:  # a plain class caches every token
            return (DecodeState(length * self.shape.token_bytes, self.shape.token_bytes),) * self.shape.layers
        return tuple(decode_states(self.mechanisms, self.shape, length))

    def costs_at(self, lengths: Sequence[int]) -> list[LengthCost]:
        """Costs of texts of these lengths."""
        return [cost_at(length, self.shape, self.mechanisms) for length in lengths]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        facts: dict[str, Any] = {"model": self.source.name, "class": self.class_name, "model_type": self.model_type}
        if self.generic:
            facts["generic"] = True
        return {
            **facts,
            "long_attention": self.attention.to_dict(),
            "layers": [{"mechanism": mechanism.name, **mechanism.options.to_dict()} for mechanism in self.mechanisms],
            "decode_states": [asdict(state) for state in self.states],
            "kept_heads": self.kept_heads,
            "causal": self.shape.causal,
            "max_length": self.max_length,
            "look_back": self.look_back,
            **self.inputs.new.values,
            "parameters": self.parameters,
            "bytes": self.parameters * self.shape.element_bytes,
            "costs": [cost.to_dict() for cost in self.costs],
            **self.by_tower(lambda tower: tower.to_dict()),
        }


@quiet_libraries()
def inspect_checkpoint(
    model: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> Inspection:
    """Describe a long checkpoint. :func:`hf_longattn.inspect.inspect_stock` describes others.

    Raises:
        CheckpointError: not a readable long checkpoint of a supported family.
    """
    source = open_source(model, revision=revision, token=token, weights=False)
    if not is_long(source.config):
        raise CheckpointError(
            f"{source.name!r} is a short checkpoint; convert it first (longattn convert {source.name} DST)."
        )
    return _inspect(source)


def _inspect(source: Source) -> Inspection:
    config, _, family, skeleton = read_long(source)
    if is_generic(source.config):
        return _inspect_plain(source, config, skeleton)
    facts = _facts(source, skeleton)
    towers = {
        name: _inspect(tower_of(source, name, tower.model_classes[tower.base_model_name]))
        for name, tower in family.towers.items()
    }
    if towers:
        return replace(towers[family.text_tower[0]], **facts, towers=towers)
    shape = model_shape(config, skeleton)
    sizes = family.spec.sizes(family, config)
    attention = config.long_attention
    costs = costs_of(sizes, attention, shape)
    kept = getattr(config, KEPT_HEADS, None) or {}
    back = positions_without_end(family, config)
    return Inspection(
        **facts, attention=attention, inputs=sizes, shape=shape, costs=costs, kept_heads=kept, look_back=back
    )


def _facts(source: Source, module: Any) -> dict[str, Any]:
    return {
        "source": source,
        "class_name": type(module).__name__,
        "model_type": module.config.model_type,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
    }


def _inspect_plain(source: Source, config: Any, skeleton: Any) -> Inspection:
    longest = text_length(config)
    attention = read_attention(config.long_attention)
    if not isinstance(attention, Mapping):
        attention = {"": attention}
    parts = plain_parts(skeleton, attention, StackLength(min(USUAL_LENGTH, longest), longest))
    towers = {
        name: Inspection(
            **_facts(source, part.module),
            attention=part.attention,
            inputs=part.inputs,
            shape=part.shape,
            costs=part.costs,
            generic=True,
        )
        for name, part in parts.items()
    }
    if "" in towers:
        return towers[""]
    return replace(
        towers.get(text_tower(config, attention), next(iter(towers.values()))),
        **_facts(source, skeleton),
        towers=towers,
        other_towers=tuple(name for name in towers_of(skeleton) if name not in attention),
    )


COLUMNS = ("layer", "mechanism", "path", "reason")
FIRST_CHOICE = "the path of highest priority"
LONGEST = 2048
"""Default number of tokens for :func:`planned_paths`. Enough for every mechanism to differ from full attention."""
MAX_PLANNED = 16384
"""Maximum tokens for :func:`planned_paths` if short texts get full attention. Beyond it, the path of short texts is
shown."""


@dataclass(frozen=True)
class LayerPath:
    """One path that ran in one layer.

    layer: name of the attention module in the model.
    mechanism: registered name of the mechanism.
    path: the engine's path, such as ``cpu-band``, or the layout of the batch, such as ``split``.
    reason: why each path of higher priority did not run, or :data:`FIRST_CHOICE`.
    """

    layer: str
    mechanism: str
    path: str
    reason: str


class Explanation(list[LayerPath]):
    """The paths of all layers, in the order in which they ran. Printed as a table with one line for equal layers."""

    def rows(self) -> list[tuple[str, ...]]:
        """Table rows. Layers with equal paths share their rows, one per path."""
        lines: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
        for layer, group in itertools.groupby(self, lambda entry: entry.layer):
            lines.setdefault(tuple((entry.mechanism, entry.path, entry.reason) for entry in group), []).append(layer)
        rows: list[tuple[str, ...]] = []
        for cells, layers in lines.items():
            name = layers[0]
            if len(layers) > 1:
                name += f" and {len(layers) - 1} more"
            for row in cells:
                rows.append((name, *row))
                name = ""
        return rows

    def __str__(self) -> str:
        rows = [COLUMNS, *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def explain(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> Explanation:
    """Run ``model`` once, without gradients, and list the paths of its attention layers.

        print(hf_longattn.explain(model, tokenizer(texts, return_tensors="pt", padding=True)))

    For an image model: ``explain(model, image_processor(images, return_tensors="pt"))``.

    Args:
        model: a Long model, a model after :func:`hf_longattn.enable_long_attention`, another model that contains
            mechanisms, a stock model under ``attn_implementation="longattn"``, or a model of sentence-transformers
            with one inside.
        inputs: the keyword arguments of ``model.forward``, or only the main input: ``input_ids``, or ``pixel_values``
            for images.
    Returns:
        One entry per layer and distinct path. ``print`` shows it as a table.
    Raises:
        BackendError: no mechanism ran.
    """
    network = getattr(model, "transformers_model", None)  # of sentence-transformers
    if isinstance(network, nn.Module):
        model = network
    if isinstance(inputs, Tensor):
        inputs = {getattr(model, "main_input_name", "input_ids"): inputs}
    mechanisms = {name: module for name, module in model.named_modules() if isinstance(module, Mechanism)}
    names = {id(part): name for name, module in mechanisms.items() for part in (module, full_of(module))}
    with torch.no_grad(), _noting(names) as paths:
        model(**inputs)
    if not paths:
        raise BackendError(
            f"No attention of hf_longattn ran in {type(model).__name__}; load it with "
            'attn_implementation="longattn", which computes what the model declares, or load a Long class, whose '
            "mechanism changes outputs."
        )
    return Explanation(paths.values())


def planned_paths(checkpoint: Inspection) -> Explanation:
    """The paths that the layers of a checkpoint run on this machine.

    The input has :func:`planned_length` tokens in fp32. No weights are loaded: each mechanism runs once on random
    queries and keys, without the terms that a base adds to its scores.
    """
    generator = torch.Generator().manual_seed(0)
    paths: list[LayerPath] = []
    ran: dict[int, list[LayerPath]] = {}
    for layer, mechanism in enumerate(checkpoint.mechanisms):
        if id(mechanism) not in ran:
            shape = 1, mechanism.num_heads, planned_length(checkpoint), mechanism.head_dim
            q, k, v = torch.randn(3, *shape, generator=generator).to(chosen_device(None))
            arguments: dict[str, Any] = {"causal": checkpoint.shape.causal}
            if mechanism.capabilities.takes_hidden_states:
                arguments["hidden_states"] = q.transpose(1, 2).flatten(2)
            if mechanism.capabilities.needs_grid:
                arguments["grid"] = checkpoint.inputs.new.grid
            try:
                with torch.no_grad(), _noting({}) as noted:
                    attend(q, k, v, mechanism.to(q.device).eval(), **arguments)
                ran[id(mechanism)] = list(noted.values())
            except LongAttentionError as error:  # the mechanism runs only inside a model
                ran[id(mechanism)] = [LayerPath("", mechanism.name, "–", str(error))]
        paths += [replace(path, layer=f"layer {layer}") for path in ran[id(mechanism)]]
    return Explanation(paths)


def planned_length(checkpoint: Inspection) -> int:
    """Number of tokens for :func:`planned_paths`, at most the longest input.

    :data:`LONGEST` tokens by default. If texts of that length get full attention, one token more than the limit of
    full attention, up to :data:`MAX_PLANNED`. A grid has one size.
    """
    grid: Any = checkpoint.inputs.new.grid
    if grid is not None:
        return int(grid.length)
    exact = (getattr(mechanism.options, "exact_length", None) or 0 for mechanism in checkpoint.mechanisms)
    in_full = max(exact, default=0)
    enough = LONGEST
    if LONGEST <= in_full < MAX_PLANNED:
        enough = in_full + 1
    return min(checkpoint.max_length or enough, enough)


@contextlib.contextmanager
def _noting(names: Mapping[int, str]) -> Iterator[dict[tuple[int, PathChoice], LayerPath]]:
    """Context in which the yielded dictionary collects every path that runs.

    names: id of a mechanism -> its name in the model.
    """
    paths: dict[tuple[int, PathChoice], LayerPath] = {}

    def note(mechanism: Any, choice: PathChoice) -> None:
        reason = "; ".join(f"no {path}: {reason}" for path, reason in choice.refused) or FIRST_CHOICE
        layer = names.get(id(mechanism), "").partition(".long_attention")[0]
        paths.setdefault(
            (id(mechanism), choice), LayerPath(layer, getattr(mechanism, "name", ""), choice.path, reason)
        )

    with observe(note):
        yield paths
