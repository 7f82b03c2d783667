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
from .architecture import Architecture, find_architecture, table_offset
from .cost import LengthCost, ModelShape, cost_at, layer_mechanisms, lengths_up_to
from .quiet import quiet_libraries
from .settings import parse_dtype, resolve_attention, table_strategy
from .source import Source, open_source
from .staging import check_destination
from .tensor_plan import ACTIONS, MovedTensor, TensorPlan, moved_tensors, plan_tensors

__all__ = ["ConversionPlan", "TensorPlan", "model_shape", "plan_conversion"]


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
        return {action: found.get(action, 0) for action in ACTIONS}

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
            "adopted_from": None if self.architecture.adopter is None else self.source.config["model_type"],
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
    if mechanism is not None or long_attention is not None:  # a mistyped name is refused before anything is fetched
        resolve_attention(mechanism, long_attention, options)
    cast = parse_dtype(dtype)
    opened = source if isinstance(source, Source) else open_source(source, revision=revision, token=token, headers_only=True)
    if destination is not None:
        check_destination(Path(destination), opened.folder, overwrite=overwrite)
    architecture = find_architecture(opened)
    base = architecture.source_config
    attention = resolve_attention(mechanism, long_attention, options, architecture.adopted_attention())
    attention.check_layers(base.num_hidden_layers)

    moves = moved_tensors(opened, architecture)
    tables = {one.target: offset for one in moves if one.target and (offset := table_offset(architecture.family, one.target)) is not None}
    old_length = _old_length(opened, architecture, moves, tables)
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

    tensors = plan_tensors(opened, moves, skeleton, tables, rows, old_length, cast)
    shape = model_shape(config, skeleton, [tensor.dtype for tensor in tensors])
    mechanisms = layer_mechanisms(attention, shape, new_length)
    costs = tuple(cost_at(length, shape, mechanisms) for length in lengths_up_to(old_length, new_length))
    return ConversionPlan(
        opened, architecture, attention, config, old_length, new_length, rule, exact, tuple(tensors), shape, costs, max_shard_size
    )


def _old_length(source: Source, architecture: Architecture, moves: list[MovedTensor], tables: dict[str, int]) -> int:
    """Tokens the source takes: its position table without the special rows, or what its config says."""
    config = architecture.source_config
    if architecture.adopter is not None:
        length = architecture.adopter.max_length(architecture.adopted_config)
        if length is not None:
            return length
    for one in moves:
        if one.target in tables:
            rows = one.shape[0]
            if rows != config.max_position_embeddings:
                raise CheckpointError(
                    f"The config of {source.name!r} says max_position_embeddings={config.max_position_embeddings}, but its table"
                    f" {one.header.name!r} has {rows} rows."
                )
            return rows - tables[one.target]
    return int(config.max_position_embeddings)


def _mechanisms(attention: LongAttentionConfig, config: Any, length: int) -> list[Any]:
    shape = ModelShape.of(config, causal=True, matrix_parameters=0, element_bytes=4)
    return layer_mechanisms(attention, shape, length)


def model_shape(config: Any, skeleton: nn.Module, dtypes: Iterable[torch.dtype]) -> ModelShape:
    """The shape of a long model, given as its skeleton and the dtypes it is stored in."""
    embeddings = {id(module.weight) for module in skeleton.modules() if isinstance(module, nn.Embedding)}
    matrices = sum(p.numel() for p in skeleton.parameters() if p.ndim == 2 and id(p) not in embeddings)
    floating = [dtype.itemsize for dtype in dtypes if dtype.is_floating_point]
    causal = all(site.module.is_causal for site in attention_sites(skeleton) if not site.cross)
    return ModelShape.of(config, causal=causal, matrix_parameters=matrices, element_bytes=max(floating, default=4))
