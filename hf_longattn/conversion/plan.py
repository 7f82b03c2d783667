"""The plan of a conversion: what becomes of every tensor, and what the result costs. Reads headers only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..configuration import LongAttentionConfig
from ..errors import CheckpointError, LengthError
from ..families.attachment import attention_sites
from ..positions import keeps_old_rows, rope_parameters
from .architecture import Architecture, attached_mechanisms, find_architecture, table_offset
from .cost import LengthCost, ModelShape, cost_at, layer_mechanisms, lengths_up_to
from .quiet import quiet_libraries
from .settings import parse_dtype, resolve_attention, table_strategy
from .source import Source, open_source
from .staging import check_destination
from .tensors import TensorHeader

__all__ = ["ConversionPlan", "TensorPlan", "model_shape", "plan_conversion"]


@dataclass(frozen=True)
class TensorPlan:
    """What becomes of one tensor."""

    name: str
    action: str  # "kept", "extended", "added" or "dropped"
    dtype: torch.dtype  # as written
    old_shape: tuple[int, ...] | None
    new_shape: tuple[int, ...] | None
    header: TensorHeader | None = None
    offset: int = 0

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
        }


@dataclass(frozen=True)
class ConversionPlan:
    """Everything that is decided before a byte is written."""

    source: Source
    architecture: Architecture
    attention: LongAttentionConfig
    config: Any  # the config of the result
    old_length: int  # tokens the source takes
    new_length: int  # tokens the result takes
    positions: str  # "tile", "interpolate", "random" or "rope:<kind>"
    positions_exact: bool  # positions below the old length give what they gave
    tensors: tuple[TensorPlan, ...]
    shape: ModelShape
    costs: tuple[LengthCost, ...]
    max_shard_size: str | int | None

    def counts(self) -> dict[str, int]:
        """Tensors per action."""
        found = Counter(tensor.action for tensor in self.tensors)
        return {action: found.get(action, 0) for action in ("kept", "extended", "added", "dropped")}

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        return sum(torch.Size(tensor.new_shape).numel() for tensor in self.tensors if tensor.new_shape is not None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "source": self.source.name,
            "source_class": self.architecture.source_class,
            "long_class": self.architecture.long_class,
            "model_type": self.config.model_type,
            "long_attention": self.attention.to_dict(),
            "old_length": self.old_length,
            "new_length": self.new_length,
            "positions": self.positions,
            "source_bytes": self.source.total_bytes,
            "result_bytes": self.total_bytes,
            "parameters": self.parameters,
            "tensor_counts": self.counts(),
            "changed_tensors": [tensor.to_dict() for tensor in self.tensors if tensor.action != "kept"],
            "costs": [asdict(cost) for cost in self.costs],
        }


@quiet_libraries()
def plan_conversion(
    source: str | Path | Source,
    destination: str | Path | None = None,
    *,
    mechanism: str | None = None,
    long_attention: LongAttentionConfig | dict[str, Any] | None = None,
    max_length: int | None = None,
    positions: str = "auto",
    dtype: str | torch.dtype | None = None,
    max_shard_size: str | int | None = None,
    overwrite: bool = False,
    verify: bool = True,
    verify_text: str | Path | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: object = None,
    **options: Any,
) -> ConversionPlan:
    """Say what a conversion would do, from the source's config and the headers of its tensors.

    Args:
        source: a folder or a Hub repository id.
        destination, overwrite: when given, checked as a conversion would.
        mechanism, options: a mechanism and its options, `layers` among them.
        long_attention: or a whole configuration instead.
        max_length: tokens the result takes; None keeps the source's.
        positions: "auto", "tile", "interpolate", "random" (learned tables) or "rope:<kind>" (rotary).
        dtype: cast floating tensors to it; None keeps each tensor's own.
        max_shard_size: bytes or "5GB"; None keeps the files of the source.
        revision, token: of a Hub repository.
        verify, verify_text, progress: taken so that the arguments of a conversion can be planned as they are.

    Raises:
        LongAttentionError: with one sentence, for anything that would make the conversion fail later.
    """
    attention = resolve_attention(mechanism, long_attention, options)
    cast = parse_dtype(dtype)
    opened = source if isinstance(source, Source) else open_source(source, revision=revision, token=token, headers_only=True)
    if destination is not None:
        check_destination(Path(destination), opened.folder, overwrite=overwrite)
    architecture = find_architecture(opened)
    base = architecture.source_config
    attention.check_layers(base.num_hidden_layers)

    tables = {name: offset for name in opened.tensors if (offset := table_offset(architecture.family, name)) is not None}
    old_length = _old_length(opened, base, tables)
    new_length = old_length if max_length is None else int(max_length)
    if new_length < old_length:
        raise LengthError(
            f"The source takes {old_length} tokens and conversion only extends: --max-length {new_length} is too small,"
            f" give at least {old_length}."
        )
    offset = max(tables.values(), default=0)
    if architecture.family.rope:
        reaches = [layer.reach(True) for layer in _mechanisms(attention, base, new_length)]
        reach = None if None in reaches else max(filter(None, reaches), default=None)
        rope = rope_parameters(positions, base.rope_parameters, old_length=old_length, new_length=new_length, reach=reach)
        rule, exact, rows, parameters = f"rope:{rope.kind}", rope.exact, rope.max_position_embeddings, rope.parameters
    else:
        rule = table_strategy(positions)
        exact, rows, parameters = keeps_old_rows(rule) or new_length == old_length, new_length + offset, None
    config = architecture.long_config(attention, rows, parameters, rule)
    if cast is not None:
        config.dtype = cast
    skeleton = architecture.skeleton(config)

    tensors = _plan_tensors(opened, skeleton, tables, rows, old_length, cast)
    shape = model_shape(config, skeleton, [tensor.dtype for tensor in tensors])
    mechanisms = layer_mechanisms(attention, shape, new_length)
    costs = tuple(cost_at(length, shape, mechanisms) for length in lengths_up_to(old_length, new_length))
    return ConversionPlan(
        opened, architecture, attention, config, old_length, new_length, rule, exact, tuple(tensors), shape, costs, max_shard_size
    )


def _old_length(source: Source, config: Any, tables: dict[str, int]) -> int:
    """Tokens the source takes: its position table without the special rows, or what its config says."""
    for name, offset in tables.items():
        rows = source.tensors[name].shape[0]
        if rows != config.max_position_embeddings:
            raise CheckpointError(
                f"The config of {source.name!r} says max_position_embeddings={config.max_position_embeddings}, but its table"
                f" {name!r} has {rows} rows."
            )
        return rows - offset
    return int(config.max_position_embeddings)


def _mechanisms(attention: LongAttentionConfig, config: Any, length: int) -> list[Any]:
    shape = ModelShape.of(config, causal=True, matrix_parameters=0, element_bytes=4)
    return layer_mechanisms(attention, shape, length)


def _plan_tensors(
    source: Source, skeleton: nn.Module, tables: dict[str, int], rows: int, old_length: int, cast: torch.dtype | None
) -> list[TensorPlan]:
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    planned, met = [], set()
    old_rows = max((source.tensors[name].shape[0] for name in tables), default=old_length)
    for name, header in source.tensors.items():
        dtype = cast if cast is not None and header.torch_dtype.is_floating_point else header.torch_dtype
        key = _model_key(name, expected, skeleton)
        if key is None and _is_length_buffer(header.shape, {old_length, old_rows}):
            planned.append(TensorPlan(name, "dropped", dtype, header.shape, None, header))
            continue
        new_shape = (rows, *header.shape[1:]) if name in tables else header.shape
        if key is not None and expected[key] != new_shape:
            raise CheckpointError(
                f"Tensor {name!r} of {source.name!r} has the shape {header.shape}, but its config asks for"
                f" {expected[key] if name not in tables else (header.shape[0], *expected[key][1:])}."
            )
        action = "extended" if new_shape != header.shape else "kept"
        planned.append(TensorPlan(name, action, dtype, header.shape, new_shape, header, tables.get(name, 0)))
        met.add(key)
    own = tuple(f"{name}." for name in attached_mechanisms(skeleton))
    for name, shape in expected.items():
        if name not in met and name.startswith(own):
            planned.append(TensorPlan(name, "added", cast or torch.float32, None, shape))
    return planned


def _model_key(name: str, expected: dict[str, Any], skeleton: nn.Module) -> str | None:
    """The model's own name for a tensor: as it is, or with the base model's prefix put in front or taken away."""
    prefix = getattr(skeleton, "base_model_prefix", "")
    for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        if candidate in expected:
            return candidate
    return None


def _is_length_buffer(shape: tuple[int, ...], lengths: set[int]) -> bool:
    """Old checkpoints store position ids (1, P) and causal masks (1, 1, P, P), which today's models build themselves."""
    return any(shape in ((1, length), (1, 1, length, length)) for length in lengths)


def model_shape(config: Any, skeleton: nn.Module, dtypes: Iterable[torch.dtype]) -> ModelShape:
    """The shape of a long model, given as its skeleton and the dtypes it is stored in."""
    embeddings = {id(module.weight) for module in skeleton.modules() if isinstance(module, nn.Embedding)}
    matrices = sum(p.numel() for p in skeleton.parameters() if p.ndim == 2 and id(p) not in embeddings)
    floating = [dtype.itemsize for dtype in dtypes if dtype.is_floating_point]
    causal = all(site.module.is_causal for site in attention_sites(skeleton) if not site.cross)
    return ModelShape.of(config, causal=causal, matrix_parameters=matrices, element_bytes=max(floating, default=4))
