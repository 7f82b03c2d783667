"""Turn a plan into the tensors to write, each made when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...families.memory_tokens import MemoryTokens
from ...mechanisms.base import Mechanism
from ...mechanisms.registry import mechanism_from
from ...positions import extend_table
from ..architectures.base import attached_mechanisms, attached_memory
from ..files.tensors import read_tensor
from ..files.writing import WEIGHTS, OutputTensor, split_by_size
from ..planning.plan import ConversionPlan
from ..planning.result import ResultPlan, TensorPlan

SEED = 0
"""What the initial values of added parameters are drawn from."""

__all__ = ["added_values", "built_mechanisms", "files_of", "named_values", "source_values"]


def files_of(plan: ResultPlan, added: Mapping[str, Tensor]) -> dict[str, list[OutputTensor]]:
    """The weight files of the result: those of the source, or shards of the size asked for.

    added: values of the mechanisms' own parameters.
    """
    outputs = {
        tensor.name: OutputTensor(tensor.name, tensor.dtype, tensor.new_shape, _loader(tensor, plan, added), tensor.streamed)
        for tensor in plan.tensors
        if tensor.new_shape is not None
    }
    if plan.max_shard_size is not None:
        return split_by_size(list(outputs.values()), plan.max_shard_size)
    names = _file_names(plan)
    files: dict[str, list[OutputTensor]] = {}
    for tensor in plan.tensors:
        if tensor.name in outputs and tensor.header is not None and tensor.new_shape is not None:
            files.setdefault(names[tensor.header.file], []).append(outputs[tensor.name])
    new = [outputs[tensor.name] for tensor in plan.tensors if tensor.action == "added"]
    files.setdefault(next(reversed(files), WEIGHTS), []).extend(new)
    return files


def _file_names(plan: ResultPlan) -> dict[Path, str]:
    """Every file of the source, and that of the result; a file of another format gets the name that a safetensors file has in its place."""
    files = dict.fromkeys(header.file for header in plan.source.tensors.values())
    if len(files) == 1 and not any(file.suffix == ".safetensors" for file in files):
        return dict.fromkeys(files, WEIGHTS)
    return {file: Path(file.name.replace("pytorch_model", "model")).with_suffix(".safetensors").name for file in files}


def source_values(tensor: TensorPlan, plan: ResultPlan) -> Tensor:
    """A tensor that comes from the source with the values it must have in the result."""
    assert tensor.header is not None
    values = read_tensor(tensor.header)
    if tensor.change is not None:
        values = tensor.change(values)
    if tensor.action in ("extended", "zeroed") and tensor.new_shape is not None:
        values = extend_table(values, tensor.new_shape[0], offset=tensor.offset, strategy=plan.positions)
    return values.to(tensor.dtype)


def _loader(tensor: TensorPlan, plan: ResultPlan, added: Mapping[str, Tensor]) -> Callable[[], Tensor]:
    if tensor.action == "added":
        return lambda: added[tensor.name].to(tensor.dtype)
    return lambda: source_values(tensor, plan)


def added_values(plan: ConversionPlan) -> dict[str, Tensor]:
    """Initial values of the mechanisms' own parameters and of memory tokens, the same on every run."""
    if not any(tensor.action == "added" for tensor in plan.tensors):
        return {}
    return named_values({**built_mechanisms(plan), **begun_memory(plan)})


def named_values(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of modules by their names in the result."""
    return {f"{prefix}.{name}": value for prefix, one in modules.items() for name, value in one.state_dict().items()}


def built_mechanisms(plan: ConversionPlan) -> dict[str, Mechanism]:
    """Every mechanism of the result by its name there, with the parameters that it begins with."""
    found, generator = {}, torch.Generator().manual_seed(SEED)
    for prefix, planned in attached_mechanisms(plan.architecture.skeleton(plan.config)).items():
        found[prefix] = mechanism_from(
            planned.name,
            planned.options.to_dict(),
            num_heads=planned.num_heads,
            head_dim=planned.head_dim,
            hidden_size=planned.hidden_size,
            max_length=planned.max_length,
            generator=generator,
        )
        found[prefix].layer = planned.layer
    return found


def begun_memory(plan: ConversionPlan) -> dict[str, MemoryTokens]:
    """The memory tokens of the result by their module's name, as they begin."""
    generator = torch.Generator().manual_seed(SEED)
    return {name: one.begun(generator) for name, one in attached_memory(plan.architecture.skeleton(plan.config)).items()}
