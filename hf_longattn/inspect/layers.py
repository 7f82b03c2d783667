"""Describe the layers of a converted checkpoint or of a model.

:func:`inspect_checkpoint` reads mechanisms, decode caches and costs from the config of a checkpoint. :func:`explain`
runs a model, and says by which path of the engines each layer was computed.
"""

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
    """A converted checkpoint.

    A tower is one of several stacks of a model, such as CLIP's for texts and for images. In a generic checkpoint, a
    class of transformers has mechanisms in place of its attention, because this package has no Long class for it.

    Attributes:
        attention, inputs, shape, costs: the mechanisms, input sizes, numbers of layers and heads, and costs. If there
            are several towers, those of the text tower.
        kept_heads: number of a layer with pruned heads -> number of its remaining heads (under grouped-query
            attention: of its key-value heads).
        towers: name of a tower -> its inspection, if there are several towers. In a generic checkpoint, only the
            towers with mechanisms.
        other_towers: names of the towers of a generic checkpoint that have their own attention.
        generic: whether the checkpoint is generic.
        look_back: number of positions that a query looks back, if texts have no maximum length.
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
        """The maximum input in words, such as "up to 4,096 tokens"."""
        size = self.inputs.new
        if not size.tokens:
            return size.words
        if size.name:
            return f"up to {size}"
        return f"up to {size.tokens:,} tokens"

    @property
    def max_length(self) -> int:
        """The maximum input in tokens; 0 if the config has no maximum."""
        return self.inputs.new.tokens

    @cached_property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The mechanism of each layer. Layers with equal options share one."""
        return tuple(layer_mechanisms(self.attention, self.shape, self.max_length or None))

    @cached_property
    def states(self) -> tuple[DecodeState, ...]:
        """The decode cache of each layer after ``max_length`` tokens; empty for a model that does not decode."""
        return self.states_at(self.max_length)

    def states_at(self, length: int) -> tuple[DecodeState, ...]:
        """The decode cache of each layer after ``length`` tokens; empty for a model that does not decode."""
        if not self.shape.causal or length == 0:
            return ()
        if self.generic:  # the class of transformers caches all tokens
            return (DecodeState(length * self.shape.token_bytes, self.shape.token_bytes),) * self.shape.layers
        return tuple(decode_states(self.mechanisms, self.shape, length))

    def costs_at(self, lengths: Sequence[int]) -> list[LengthCost]:
        """The costs of a text of each length."""
        return [cost_at(length, self.shape, self.mechanisms) for length in lengths]

    def to_dict(self) -> dict[str, Any]:
        """The facts as a dictionary for JSON."""
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
    """Describe a converted checkpoint. For other checkpoints, see :func:`hf_longattn.inspect.inspect_stock`.

    Raises:
        CheckpointError: the checkpoint cannot be read, or was not converted.
    """
    source = open_source(model, revision=revision, token=token, weights=False)
    if not is_long(source.config):
        raise CheckpointError(
            f"{source.name!r} is a short checkpoint; convert it first (longattn convert {source.name} DST)."
        )
    return _inspect(source)


def _inspect(source: Source) -> Inspection:
    """The inspection of a converted checkpoint that was opened."""
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
    return Inspection(
        **facts,
        attention=config.long_attention,
        inputs=sizes,
        shape=shape,
        costs=costs_of(sizes, config.long_attention, shape),
        kept_heads=getattr(config, KEPT_HEADS, None) or {},
        look_back=positions_without_end(family, config),
    )


def _facts(source: Source, module: Any) -> dict[str, Any]:
    """The fields of an :class:`Inspection` that depend only on the class: names and number of parameters."""
    return {
        "source": source,
        "class_name": type(module).__name__,
        "model_type": module.config.model_type,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
    }


def _inspect_plain(source: Source, config: Any, skeleton: Any) -> Inspection:
    """The inspection of a generic checkpoint (see :class:`Inspection`). ``skeleton``: its model without weights."""
    longest = text_length(config)
    attention = read_attention(config.long_attention)
    if not isinstance(attention, Mapping):  # one attention for the whole model
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
    text_facts = towers.get(text_tower(config, attention), next(iter(towers.values())))
    return replace(
        text_facts,
        **_facts(source, skeleton),
        towers=towers,
        other_towers=tuple(name for name in towers_of(skeleton) if name not in attention),
    )


COLUMNS = ("layer", "mechanism", "path", "reason")
FIRST_CHOICE = "the path of highest priority"
"""The reason of a path if no path of higher priority was refused."""
LONGEST = 2048
"""Default number of tokens for :func:`planned_paths`. Enough for every mechanism to differ from full attention."""
MAX_PLANNED = 16384
"""Maximum number of tokens for :func:`planned_paths`. If mechanisms compute full attention up to this length, or
longer, their path for :data:`LONGEST` tokens is shown."""


@dataclass(frozen=True)
class LayerPath:
    """A path that ran in a layer.

    Attributes:
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
    """The paths of all layers, in the order in which they ran. ``print`` shows a table without repeated layers."""

    def rows(self) -> list[tuple[str, ...]]:
        """The rows of the table, in :data:`COLUMNS`. A layer has a row for each path; equal layers share them."""
        layers_by_paths: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
        for layer, group in itertools.groupby(self, lambda entry: entry.layer):
            paths = tuple((entry.mechanism, entry.path, entry.reason) for entry in group)
            layers_by_paths.setdefault(paths, []).append(layer)
        rows: list[tuple[str, ...]] = []
        for paths, layers in layers_by_paths.items():
            name = layers[0]
            if len(layers) > 1:
                name += f" and {len(layers) - 1} more"
            for path in paths:
                rows.append((name, *path))
                name = ""  # only in the first row
        return rows

    def __str__(self) -> str:
        rows = [COLUMNS, *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        lines = []
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


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
        An entry for each layer and each path that ran in it. ``print`` shows them as a table.

    Raises:
        BackendError: no mechanism ran.
    """
    network = getattr(model, "transformers_model", None)  # the attribute of a model of sentence-transformers
    if isinstance(network, nn.Module):
        model = network
    if isinstance(inputs, Tensor):
        inputs = {getattr(model, "main_input_name", "input_ids"): inputs}
    names = {}
    for name, module in model.named_modules():
        if isinstance(module, Mechanism):
            names[id(module)] = name
            names[id(full_of(module))] = name  # full attention for short texts, if the mechanism has it
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
    """The paths by which this machine computes the layers of a checkpoint.

    No weights are loaded. Each mechanism runs once on random queries, keys and values of :func:`planned_length` tokens
    in fp32, without the terms that a base model may add to the scores.
    """
    generator = torch.Generator().manual_seed(0)
    paths: list[LayerPath] = []
    paths_of: dict[int, list[LayerPath]] = {}  # id of a mechanism -> its paths; layers may share a mechanism
    for layer, mechanism in enumerate(checkpoint.mechanisms):
        if id(mechanism) not in paths_of:
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
                paths_of[id(mechanism)] = list(noted.values())
            except LongAttentionError as error:  # some mechanisms run only inside a model
                paths_of[id(mechanism)] = [LayerPath("", mechanism.name, "–", str(error))]
        paths += [replace(path, layer=f"layer {layer}") for path in paths_of[id(mechanism)]]
    return Explanation(paths)


def planned_length(checkpoint: Inspection) -> int:
    """Number of tokens for :func:`planned_paths`, at most the maximum of the checkpoint.

    It is :data:`LONGEST`. If a mechanism computes full attention for texts of this length (``exact_length``), it is
    one token more than the greatest ``exact_length``, up to :data:`MAX_PLANNED`. For images, it is the size of the
    grid.
    """
    grid: Any = checkpoint.inputs.new.grid
    if grid is not None:
        return int(grid.length)
    exact_lengths = [mechanism.options.exact_length or 0 for mechanism in checkpoint.mechanisms]
    exact_length = max(exact_lengths, default=0)
    length = LONGEST
    if LONGEST <= exact_length < MAX_PLANNED:
        length = exact_length + 1
    return min(checkpoint.max_length or length, length)


@contextlib.contextmanager
def _noting(names: Mapping[int, str]) -> Iterator[dict[tuple[int, PathChoice], LayerPath]]:
    """Within the context, the dictionary collects every path that runs. A path that runs again is not added.

    ``names``: id of a mechanism -> its name in the model.
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
