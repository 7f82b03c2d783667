"""The plan of every tensor: where its values come from, or why it is dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, nearest
from ..inputs.common.base import InputKind, InputSizes
from ..inputs.towers import WithTowers
from ..modeling.attach.attention_sites import MECHANISM_ATTRIBUTE, copied_parameters
from .architectures import Architecture, attached_mechanisms, attached_memory
from .long_models import TensorRename, rename
from .sources import Source, tower_prefix
from .tensor_files import TensorHeader
from .tensor_names import ModelName, check_complete, check_layers, converted, names_in_model


@dataclass(frozen=True)
class RenamedTensor:
    """A tensor of the source with its name and shape in the family's model."""

    header: TensorHeader
    target: str
    shape: tuple[int, ...]
    change: Callable[[Tensor], Tensor] | None = None


def renamed_tensors(source: Source, architecture: Architecture) -> list[RenamedTensor]:
    """Every tensor of the source, renamed by the checkpoint converter if there is one.

    Raises:
        CheckpointError: two tensors get the same name.
    """
    renamed: list[RenamedTensor] = []
    targets: dict[str, str] = {}
    for name, header in source.tensors.items():
        converter = architecture.converter
        renaming = TensorRename(name) if converter is None else rename(converter, name)
        shape = header.shape
        if renaming.change is not None:
            shape = tuple(renaming.change(torch.empty(shape, dtype=header.dtype, device="meta")).shape)
        if targets.setdefault(renaming.target, name) != name:
            raise CheckpointError(
                f"The tensors {targets[renaming.target]!r} and {name!r} of {source.name!r} both become {renaming.target!r}; save it again."
            )
        renamed.append(RenamedTensor(header, renaming.target, shape, renaming.change))
    return renamed


def dtype_of(header: TensorHeader, cast: torch.dtype | None) -> torch.dtype:
    """The dtype of a tensor in the result. ``cast`` for floating-point tensors, unless it is ``None``."""
    return cast if cast is not None and header.dtype.is_floating_point else header.dtype


def plan_tensors(
    source: Source,
    architecture: Architecture,
    renamed: list[RenamedTensor],
    skeleton: Any,
    tables: dict[str, tuple[int, int]],
    old_length: int,
    cast: torch.dtype | None,
    *,
    averaged: bool = False,
) -> list[TensorPlan]:
    """Plan every tensor.

    Args:
        source, architecture: the source and its classes. renamed: its tensors from ``renamed_tensors``.
        skeleton: the result on the meta device.
        tables: name of a position table in the result -> (special rows, total rows).
        old_length: tokens the source takes.
        cast: the dtype of floating-point tensors; ``None`` keeps each one's.
        averaged: leave only the mean row of position tables.

    Raises:
        CheckpointError: tensors and config do not belong together: a shape, missing tensors, or layers that the config does not have.
    """
    state = skeleton.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    floating = {name: tensor.is_floating_point() for name, tensor in state.items()}
    attached_prefixes = tuple(f"{name}." for name in (*attached_mechanisms(skeleton), *attached_memory(skeleton)))
    names = names_in_model([tensor.target for tensor in renamed], skeleton)
    old_rows = max((tensor.shape[0] for tensor in renamed if tensor.target in tables), default=old_length)
    planned: list[TensorPlan] = []
    sources: dict[str, RenamedTensor] = {}
    unused: list[ModelName] = []
    for tensor in renamed:
        header = tensor.header
        dtype = dtype_of(header, cast)
        key, exists, reason = names[tensor.target].key, names[tensor.target].exists, ""
        if not exists and any(tensor.shape in ((1, length), (1, 1, length, length)) for length in (old_length, old_rows)):
            reason = "current models compute it"  # position ids or a causal mask, which old checkpoints store
        elif not exists and ".long_attention." in tensor.target:
            reason = "not a parameter of the chosen mechanism"
        if reason:
            planned.append(TensorPlan.dropped(header, reason, cast))
            continue
        offset, rows = tables.get(tensor.target, (0, 0))
        new_shape = (rows, *tensor.shape[1:]) if tensor.target in tables else tensor.shape
        if key is not None and expected[key] != new_shape:
            as_table = tensor.shape[:1] == (old_rows,) and tensor.shape[1:] == expected[key][1:]
            for table in architecture.family.position_tables if as_table else ():
                if table.learned and not any(table.matches(other.target) for other in renamed):
                    raise CheckpointError(
                        f'No tensor matches PositionTable(r"{table.pattern}") of the family {architecture.family.base_model_type!r}; if '
                        f"{header.name!r} is that table, correct the pattern in {architecture.family.module}."
                    )
            raise CheckpointError(
                f"Tensor {header.name!r} of {source.name!r} has the shape {header.shape}, but its config requires"
                f" {expected[key] if tensor.target not in tables else (header.shape[0], *expected[key][1:])}."
            )
        if any(floating[name] for name in names[tensor.target].keys if name in floating) and not header.dtype.is_floating_point:
            raise CheckpointError(
                f"Tensor {header.name!r} of {source.name!r} holds {str(header.dtype).removeprefix('torch.')} numbers,"
                " but its model requires floating-point ones; convert the checkpoint that it was quantised from."
            )
        renamed_or_kept = "renamed" if tensor.target != header.name else "kept"
        action = "extended" if new_shape != tensor.shape else "changed" if tensor.change else renamed_or_kept
        action = "averaged" if averaged and tensor.target in tables else action
        planned.append(TensorPlan(tensor.target, action, dtype, header.shape, new_shape, header, offset, tensor.change))
        if key is not None:
            sources[key] = tensor
        elif not exists:
            unused.append(names[tensor.target])
    check_layers(unused, skeleton, source.name)
    matched = {*sources, *_computed(source, renamed, names, skeleton, expected)}
    tied = skeleton.all_tied_weights_keys
    added = {name for name in expected if name.startswith(attached_prefixes) and name not in matched and name not in tied}
    of_tied = {name for target, name in tied.items() if target in matched}
    missing = {*expected} - matched - added - of_tied - {name for name, _ in skeleton.named_buffers()}
    check_complete(missing, skeleton, source.name, architecture.family, architecture.source_class)
    for name, shape in expected.items():
        if name in added:
            dtype = cast or torch.float32 if floating[name] else state[name].dtype  # counters stay integers
            planned.append(_added(name, shape, dtype, skeleton, sources, cast))
    return planned


def tensors_with_towers(
    source: Source, architecture: Architecture, skeleton: Any, towers: Mapping[str, ResultPlan], cast: torch.dtype | None
) -> list[TensorPlan]:
    """Plan every tensor of a model with several towers. A tower's tensors follow its plan; all others keep name and shape.

    Raises:
        CheckpointError: a tensor outside the towers has the wrong shape or is missing.
    """
    planned = []
    for tower, plan in towers.items():
        for tensor in plan.tensors:
            action = "kept" if tensor.action == "renamed" else tensor.action  # in the tower's plan, names have no prefix
            planned.append(replace(tensor, name=f"{tower_prefix(tower)}{tensor.name}", action=action))
    of_towers = tuple(map(tower_prefix, towers))
    expected = {name: tuple(value.shape) for name, value in skeleton.state_dict().items() if not name.startswith(of_towers)}
    for name, header in source.tensors.items():
        if name.startswith(of_towers):
            continue
        if expected.get(name, header.shape) != header.shape:
            raise CheckpointError(
                f"Tensor {name!r} of {source.name!r} has the shape {header.shape}, but its config requires {expected[name]}."
            )
        planned.append(TensorPlan.kept(name, header, cast))
    check_complete(expected.keys() - source.tensors.keys(), skeleton, source.name, architecture.family, architecture.source_class)
    return planned


def _computed(
    source: Source, renamed: list[RenamedTensor], names: Mapping[str, ModelName], skeleton: Any, expected: Mapping[str, tuple[int, ...]]
) -> set[str]:
    """Names of the result's tensors that transformers merges or splits from tensors of the source.

    Raises:
        CheckpointError: a merged or split tensor has another shape than the config requires.
    """
    shapes = {tensor.target: torch.empty(tensor.shape, dtype=tensor.header.dtype, device="meta") for tensor in renamed}
    computed: set[str] = set()
    for parts, values in converted(shapes, names, skeleton, source.name):
        for name, value in values.items():
            if name in expected and tuple(value.shape) != expected[name]:
                which = f"Tensor {parts[0]!r}" if len(parts) == 1 else f"The {len(parts)} tensors from {parts[0]!r} to {parts[-1]!r}"
                raise CheckpointError(
                    f"{which} of {source.name!r} become {name!r} with the shape {tuple(value.shape)}, but its config requires"
                    f" {expected[name]}."
                )
        computed |= values.keys()
    return computed


def _added(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, skeleton: nn.Module, sources: dict[str, RenamedTensor], cast: torch.dtype | None
) -> TensorPlan:
    """Plan a mechanism's parameter or memory tokens. A parameter is copied from its layer if the mechanism says so and the source has
    it."""
    added = TensorPlan(name, "added", dtype, None, shape)
    owner = next(((at, mechanism) for at, mechanism in attached_mechanisms(skeleton).items() if name.startswith(f"{at}.")), None)
    if owner is None:  # memory tokens
        return added
    prefix, mechanism = owner
    layer = prefix.partition(f".{MECHANISM_ATTRIBUTE}")[0]
    copied = copied_parameters(skeleton.get_submodule(layer), mechanism.traits.copies).get(name.removeprefix(f"{prefix}."))
    stored = None if copied is None else sources.get(f"{layer}.{copied.name}")
    if copied is None or stored is None:
        return added
    before, part = stored.change, copied

    def change(values: Tensor) -> Tensor:
        return part(values if before is None else before(values)).reshape(shape)

    return TensorPlan(name, "copied", cast or stored.header.dtype, stored.header.shape, shape, stored.header, change=change)


ACTIONS = ("kept", "renamed", "changed", "extended", "averaged", "copied", "added", "dropped")
"""What happens to a tensor. "changed": renamed, with its values rearranged. "averaged": a position table
that keeps its mean row alone. "copied": a mechanism's parameter, initialised from its layer. "added": a newly initialised parameter."""


@dataclass(frozen=True)
class TensorPlan:
    """The plan of one tensor."""

    name: str
    action: str  # one of ACTIONS
    dtype: torch.dtype  # in the result
    old_shape: tuple[int, ...] | None
    new_shape: tuple[int, ...] | None
    header: TensorHeader | None = None  # the source's tensor that supplies the values
    offset: int = 0
    change: Callable[[Tensor], Tensor] | None = None  # applied to the source's values
    reason: str = ""  # why it was dropped

    @classmethod
    def kept(cls, name: str, header: TensorHeader, cast: torch.dtype | None) -> TensorPlan:
        """The plan of a tensor that is at most cast."""
        return cls(name, "kept", dtype_of(header, cast), header.shape, header.shape, header)

    @classmethod
    def dropped(cls, header: TensorHeader, reason: str, cast: torch.dtype | None = None) -> TensorPlan:
        """The plan of a tensor that the result does not have."""
        return cls(header.name, "dropped", dtype_of(header, cast), header.shape, None, header, reason=reason)

    @property
    def streamed(self) -> TensorHeader | None:
        """The source's tensor if it can be copied, or cast, block by block; else ``None``."""
        return self.header if self.action in ("kept", "renamed") else None

    @property
    def nbytes(self) -> int:
        return 0 if self.new_shape is None else torch.Size(self.new_shape).numel() * self.dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "action": self.action,
            "dtype": str(self.dtype).removeprefix("torch."),
            "old_shape": self.old_shape,
            "new_shape": self.new_shape,
            **({"from": self.header.name} if self.header is not None and self.header.name != self.name else {}),
            **({"reason": self.reason} if self.reason else {}),
        }


@dataclass(frozen=True)
class ResultPlan(WithTowers):
    """What a conversion or a native export writes."""

    source: Source
    architecture: Architecture
    config: Any  # the config of the result
    inputs: InputSizes  # sizes of the inputs of source and result
    positions: str  # the rule for positions
    tensors: tuple[TensorPlan, ...]
    max_shard_size: str | int | None
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, kw_only=True)  # new contents of copied JSON files
    towers: Mapping[str, ResultPlan] = field(default_factory=dict, kw_only=True)  # the plan of each tower, if there are several

    @property
    def kind(self) -> InputKind:
        """The kind of input that source and result read."""
        return self.architecture.kind

    @property
    def old_length(self) -> int:
        """Tokens that the source takes."""
        return self.inputs.old.tokens

    @property
    def new_length(self) -> int:
        """Tokens that the result takes."""
        return self.inputs.new.tokens

    @property
    def new_input(self) -> str:
        """The result's maximum input as text."""
        return self.inputs.new_words

    @property
    def tokenizer_length(self) -> int:
        """The limit of the result's tokenizer; 0 keeps the source's."""
        return self.kind.tokenizer_length(self)

    def position_rule(self, name: str) -> str:
        """The position rule for the tensor ``name``: its tower's rule if there are several towers."""
        return next((plan.positions for tower, plan in self.towers.items() if name.startswith(tower_prefix(tower))), self.positions)

    def counts(self) -> dict[str, int]:
        """Tensors per action."""
        counted = Counter(tensor.action for tensor in self.tensors)
        return {action: counted.get(action, 0) for action in ACTIONS}

    @property
    def cast(self) -> torch.dtype | None:
        """The dtype that tensors of the source are cast to. ``None`` if each keeps its own."""
        return self.config.dtype if any(tensor.header and tensor.dtype != tensor.header.dtype for tensor in self.tensors) else None

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        return sum(torch.Size(tensor.new_shape).numel() for tensor in self.tensors if tensor.new_shape is not None)

    @property
    def largest_tensor(self) -> int:
        """Elements of the largest tensor of source and result."""
        shapes = [shape for tensor in self.tensors for shape in (tensor.old_shape, tensor.new_shape) if shape is not None]
        return max(torch.Size(shape).numel() for shape in shapes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "source": self.source.name,
            "long_class": self.architecture.long_class,
            "class": self.architecture.source_class,
            "model_type": self.config.model_type,
            "old_length": self.old_length,
            "new_length": self.new_length,
            **self.inputs.report,
            "positions": self.positions,
            **self.sizes(),
        }

    def sizes(self) -> dict[str, Any]:
        """Sizes, and kept and changed tensors, JSON-serialisable."""
        return {
            "source_bytes": self.source.total_bytes,
            "result_bytes": self.total_bytes,
            "parameters": self.parameters,
            "tensor_counts": self.counts(),
            "kept_tensors": [tensor.name for tensor in self.tensors if tensor.action == "kept"],
            "changed_tensors": [tensor.to_dict() for tensor in self.tensors if tensor.action != "kept"],
        }


DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def set_dtype(config: Any, cast: torch.dtype | None) -> None:
    """Write the dtype that tensors are cast to into a config. ``None`` leaves it as it is."""
    if cast is not None:
        config.dtype = cast


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Parse "bf16", "float32" … or a torch dtype. ``None`` keeps each tensor's dtype.

    Raises:
        CheckpointError: not one of ``DTYPES``.
    """
    if dtype is None:
        return None
    parsed = dtype if isinstance(dtype, torch.dtype) else DTYPES.get(dtype.removeprefix("torch.").lower())
    if parsed not in DTYPES.values():
        raise CheckpointError(f"Unknown dtype {str(dtype)!r}; expected one of {', '.join(DTYPES)}.{nearest(str(dtype), DTYPES)}")
    return parsed
