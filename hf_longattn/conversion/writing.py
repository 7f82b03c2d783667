"""Write the weights and the config of a result. Each tensor is computed when it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..mechanisms.common.registry import mechanism_from
from ..positions.tables import extend_table
from .architectures import attached_mechanisms, attached_memory
from .plan_tensors import ResultPlan, TensorPlan
from .report import StageProgress
from .tensor_files import WEIGHTS, OutputTensor, read_tensor, split_by_size, write_json, write_weights

SEED = 0
"""Seed of the initial values of added parameters."""


def write_result(plan: ResultPlan, folder: Path, added: Mapping[str, Tensor], *, progress: StageProgress | None = None) -> list[str]:
    """Write a result's weights and config into an empty folder. Returns the names of the files.

    Args:
        plan: what is written. folder: the empty folder.
        added: values of the mechanisms' parameters.
        progress: called as progress("write", bytes so far, bytes in all).
    """
    advance = None if progress is None else partial(progress, "write")
    files = write_weights(folder, files_of(plan, added), advance)
    write_json(folder / "config.json", json.loads(plan.config.to_json_string()))
    return [*files, "config.json"]


def files_of(plan: ResultPlan, added: Mapping[str, Tensor]) -> dict[str, list[OutputTensor]]:
    """The weight files of the result. As in the source, or shards of the requested size."""
    outputs = {
        tensor.name: OutputTensor(
            tensor.name, tensor.dtype, tensor.new_shape,
            partial(added[tensor.name].to, tensor.dtype) if tensor.action == "added" else partial(source_values, tensor, plan),
            tensor.streamed,
        )
        for tensor in plan.tensors
        if tensor.new_shape is not None
    }  # fmt: skip
    if plan.max_shard_size is not None:
        return split_by_size(list(outputs.values()), plan.max_shard_size)
    files: dict[str, list[OutputTensor]] = {}
    for tensor in plan.tensors:
        if tensor.name in outputs and tensor.header is not None and tensor.new_shape is not None:
            files.setdefault(tensor.header.file.name, []).append(outputs[tensor.name])
    new = [outputs[tensor.name] for tensor in plan.tensors if tensor.action == "added"]
    files.setdefault(next(reversed(files), WEIGHTS), []).extend(new)
    return files


def source_values(tensor: TensorPlan, plan: ResultPlan) -> Tensor:
    """The result's values of a tensor that comes from the source."""
    assert tensor.header is not None
    values = read_tensor(tensor.header)
    if tensor.change is not None:
        values = tensor.change(values)
    if tensor.action in ("extended", "averaged") and tensor.new_shape is not None:
        values = extend_table(values, tensor.new_shape[0], offset=tensor.offset, strategy=plan.position_rule(tensor.name))
    return values.to(tensor.dtype)


def added_values(plan: Any) -> dict[str, Tensor]:
    """Initial values of the mechanisms' parameters and of memory tokens by their names in the result, the same on every run."""
    if not any(tensor.action == "added" for tensor in plan.tensors):
        return {}
    generator = torch.Generator().manual_seed(SEED)
    memory = {name: tokens.drawn(generator) for name, tokens in attached_memory(plan.skeleton).items()}
    mechanisms, generator = {}, torch.Generator().manual_seed(SEED)
    for prefix, planned in attached_mechanisms(plan.skeleton).items():
        mechanisms[prefix] = mechanism_from(
            planned.name,
            planned.options.to_dict(),
            num_heads=planned.num_heads,
            head_dim=planned.head_dim,
            hidden_size=planned.hidden_size,
            max_length=planned.max_length,
            generator=generator,
        )
    modules = {**mechanisms, **memory}
    return {f"{prefix}.{name}": value for prefix, module in modules.items() for name, value in module.state_dict().items()}
