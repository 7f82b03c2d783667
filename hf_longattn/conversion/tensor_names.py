"""Names in a model for tensors in a file. With a check that the file has all tensors that the model needs.

transformers saves the tensors of many architectures under the names of older versions (a ViT's layers, a mixture's experts one by one), and
renames, merges and splits them while it loads them. Code that compares a file with a model uses this module.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from ..errors import CheckpointError, checkpoint_errors
from ..modeling.attach.weights import Unchanged
from ..modeling.family.definition import Family


@dataclass(frozen=True)
class ModelName:
    """The name in a model of a tensor in a file.

    name: in the model, with the base model's prefix if the model has one. For a tensor that is split, the name of the first part.
    exists: whether the model has a parameter or buffer of this name.
    converter: transformers' converter of this tensor, or of several tensors with it; ``None`` for a tensor that is taken unchanged, and
        for a position table, which only grows.
    pattern: the converter's source pattern that matches the tensor; set for position tables, too.
    """

    name: str
    exists: bool
    converter: WeightConverter | None = None
    pattern: str = ""

    @property
    def key(self) -> str | None:
        """The parameter or buffer that takes the tensor's values directly; ``None`` if there is none."""
        return self.name if self.exists and self.converter is None else None

    @property
    def keys(self) -> tuple[str, ...]:
        """All parameters and buffers computed from the tensor, alone or with other tensors."""
        if not self.exists or self.converter is None:
            return (self.name,) if self.exists else ()
        first, *_ = self.converter.target_patterns
        return tuple(self.name.replace(first, part) for part in self.converter.target_patterns)


def names_in_model(names: Collection[str], model: Any, mapping: Sequence[Any] | None = None) -> dict[str, ModelName]:
    """The names in ``model`` of tensors in a file, as transformers finds them.

    Args:
        names: all tensors of the file, since some old names are recognised by the presence of others.
        model: can be on the meta device.
        mapping: the renamings and converters; by default those of the model's class.
    """
    entries = get_model_conversion_mapping(model) if mapping is None else mapping
    renamings = [entry for entry in entries if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in entries if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix
    tensors: dict[str, ModelName] = {}
    for name in sorted(names):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:  # the file already has the model's name
            target, pattern = name, None
        converter = None if pattern is None else by_pattern[pattern]
        if converter is not None and all(isinstance(operation, Unchanged) for operation in converter.operations):
            converter = None
        tensors[name] = ModelName(target, target in state, converter, pattern or "")
    return {name: tensors[name] for name in names}


def converted(
    tensors: Mapping[str, Tensor], names: Mapping[str, ModelName], model: Any, file: str
) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
    """Run transformers' converters on tensors of a file. Yields the names of source tensors, and the computed tensors by name.

    Args:
        tensors: by their names in the file; on the meta device, only shapes are computed.
        names: from :func:`names_in_model`; tensors without a converter are left out.
        file: for messages.

    Raises:
        CheckpointError: tensors that belong together do not fit together.
    """
    groups: dict[str, list[str]] = {}
    for name in tensors:
        if names[name].exists and names[name].converter is not None:
            groups.setdefault(names[name].name, []).append(name)
    for target, sources in groups.items():
        converter: Any = deepcopy(names[sources[0]].converter)
        for name in sources:
            converter.add_tensor(target, name, names[name].pattern, tensors[name])
        with checkpoint_errors(f"transformers cannot make {target!r} from {sources[0]!r} and what belongs to it in {file!r}"):
            values = converter.convert(target, model=model, config=model.config)
        yield sources, {name: value[0] if isinstance(value, list) else value for name, value in values.items()}


def check_complete(missing: Collection[str], model: nn.Module, file: str, family: Family | None, class_name: str = "") -> None:
    """Refuse missing weights, except of a pooler, a computed table or a head. A head's list of layers must not be present only in part.

    Args:
        missing: the parameters of ``model`` that ``file`` lacks, by their names in the model.
        class_name: for the message; the model's by default.

    Raises:
        CheckpointError: other weights are missing.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    in_base = [name for name in missing if name.startswith(prefix) or getattr(model, "base_model", model) is model]
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    tables = {name: None if family is None else family.table(name) for name in in_base}
    computed = {name for name, table in tables.items() if table is not None and not table.learned}
    lost = {name for name in {*in_base} - tied - computed if "pooler" not in name}
    there = [name for name in model.state_dict() if name not in {*missing} - tied]
    for path, module in model.named_modules():  # lists of layers that the file has in part, such as the decoder of a ViT-MAE
        if isinstance(module, nn.ModuleList) and any(name.startswith(f"{path}.") for name in there):
            lost |= {name for name in {*missing} - tied if name.startswith(f"{path}.")}
    if lost:
        raise CheckpointError(
            f"{len(lost)} tensors that a {class_name or type(model).__name__} needs are missing in {file!r}, the first is {min(lost)!r};"
            " is every weight file there, and does its config.json belong to it?"
        )


def check_layers(names: Iterable[ModelName], model: Any, file: str) -> None:
    """Refuse tensors of layers that the model does not have. Other surplus tensors do no harm (a pooler, a head of pretraining).

    Args:
        names: of tensors of ``file``.

    Raises:
        CheckpointError: there are such tensors. The message names the config's field.
    """
    modules = dict(model.named_modules())
    surplus: dict[tuple[str, int], set[int]] = {}
    for tensor in names:
        parts = tensor.name.split(".")
        for at, part in enumerate(parts):
            path = ".".join(parts[:at])
            candidates = (path, f"{model.base_model_prefix}.{path}", path.removeprefix(f"{model.base_model_prefix}."))
            layers = next((module for name in candidates if isinstance(module := modules.get(name), nn.ModuleList)), None)
            if part.isdecimal() and layers is not None and not tensor.exists and int(part) >= len(layers):
                surplus.setdefault((path, len(layers)), set()).add(int(part))
    for (path, count), indices in surplus.items():
        which = f"layer {min(indices)}" if len(indices) == 1 else f"the layers {min(indices)} to {max(indices)}"
        field = _layers_field(model.config, path, count)
        raise CheckpointError(
            f"{file!r} has tensors of {which} ({path}), but {field} is {count}; correct its config.json, or save it again without them."
        )


def _layers_field(config: Any, path: str, count: int) -> str:
    """Name of the config field with the number of layers at ``path``, for a message. A description if no field matches."""
    fields = {
        "decoder": ("decoder_layers", "num_decoder_layers", "decoder_num_hidden_layers"),
        "encoder": ("encoder_layers",),
        "albert_layers": ("inner_group_num",),
        "layer_groups": ("num_hidden_groups",),
        "": ("num_hidden_layers",),
    }
    values = config.to_dict()
    names = [config.attribute_map.get(name, name) for part, candidates in fields.items() if part in path for name in candidates]
    return next((name for name in names if values.get(name) == count), "the number of layers that its config gives")
