"""The files of a result: weights, each tensor computed when it is written, and the config, tokenizer and licence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..mechanisms.base import Mechanism
from ..mechanisms.registry import mechanism_from
from ..modeling.recurrence import MemoryTokens
from ..positions import extend_table
from ..reading import read_json_object
from .architectures import attached_mechanisms, attached_memory
from .plan import ConversionPlan
from .plan_positions import StackLength
from .plan_tensors import ResultPlan, TensorPlan
from .report import REPORT
from .sources import SIDECAR_FOLDERS, SIDECARS
from .tensor_files import WEIGHTS, OutputTensor, read_tensor, split_by_size, write_json

SEED = 0
"""Seed of the initial values of added parameters."""


def files_of(plan: ResultPlan, added: Mapping[str, Tensor]) -> dict[str, list[OutputTensor]]:
    """The weight files of the result: as in the source, or shards of the requested size.

    added: values of the mechanisms' parameters.
    """
    outputs = {
        tensor.name: OutputTensor(tensor.name, tensor.dtype, tensor.new_shape, _loader(tensor, plan, added), tensor.streamed)
        for tensor in plan.tensors
        if tensor.new_shape is not None
    }
    if plan.max_shard_size is not None:
        return split_by_size(list(outputs.values()), plan.max_shard_size)
    names = plan.source.result_files()
    files: dict[str, list[OutputTensor]] = {}
    for tensor in plan.tensors:
        if tensor.name in outputs and tensor.header is not None and tensor.new_shape is not None:
            files.setdefault(names[tensor.header.file], []).append(outputs[tensor.name])
    new = [outputs[tensor.name] for tensor in plan.tensors if tensor.action == "added"]
    files.setdefault(next(reversed(files), WEIGHTS), []).extend(new)
    return files


def source_values(tensor: TensorPlan, plan: ResultPlan) -> Tensor:
    """The values in the result of a tensor that comes from the source."""
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
    """Initial values of the mechanisms' parameters and of memory tokens, the same on every run."""
    if not any(tensor.action == "added" for tensor in plan.tensors):
        return {}
    return named_values({**built_mechanisms(plan), **initial_memory(plan)})


def named_values(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of modules by their names in the result."""
    return {f"{prefix}.{name}": value for prefix, one in modules.items() for name, value in one.state_dict().items()}


def built_mechanisms(plan: ConversionPlan) -> dict[str, Mechanism]:
    """Every mechanism of the result by its name, with initialised parameters."""
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


def initial_memory(plan: ConversionPlan) -> dict[str, MemoryTokens]:
    """The initialised memory tokens of the result by their module's name."""
    generator = torch.Generator().manual_seed(SEED)
    return {name: one.begun(generator) for name, one in attached_memory(plan.architecture.skeleton(plan.config)).items()}


LEFT_OUT = ("config.json", REPORT, "revert_report.json", "README.md", "README.txt", "trainer_state.json", "all_results.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def write_sidecars(
    source: Path,
    folder: Path,
    config: Any,
    *,
    base_type: str,
    old_length: int,
    new_length: int,
    generated: StackLength | None = None,
) -> list[str]:
    """Write config.json and everything else that belongs to the model, except its weights and its card.

    Args:
        source: the source's folder.
        folder: where to write.
        config: the config of the result.
        base_type: the source's model_type, which determines the tokenizer class unless the source names it.
        old_length, new_length: in tokens; 0 if the config does not say.
        generated: lengths of the generated text, if it is not the same text.

    Returns:
        The names of the files written.

    Raises:
        CheckpointError: a tokenizer or generation config that is not valid JSON.
    """
    written = ["config.json"]
    decodes = generated or StackLength(old_length, new_length)
    write_json(folder / "config.json", json.loads(config.to_json_string()))
    for path in sorted({path for pattern in SIDECARS for path in source.glob(pattern) if path.is_file()}):
        if path.name in LEFT_OUT or path.name.endswith(".index.json"):
            continue
        if path.name == "tokenizer_config.json" and new_length:
            write_json(folder / path.name, _longer_tokenizer(read_json_object(path), base_type, new_length))
        elif path.name == "generation_config.json":
            write_json(folder / path.name, _longer_generation(read_json_object(path), decodes))
        else:
            shutil.copyfile(path, folder / path.name)
        written.append(path.name)
    for name in SIDECAR_FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
            written.append(name)
    if new_length and "tokenizer_config.json" not in written and any(name in written for name in TOKENIZER_FILES):
        write_json(folder / "tokenizer_config.json", _longer_tokenizer({}, base_type, new_length))
        written.append("tokenizer_config.json")
    return written


def _longer_generation(values: dict[str, Any], length: StackLength) -> dict[str, Any]:
    """`max_length` becomes the new length if it was the model's limit; a shorter one is the author's choice."""
    if values.get("max_length") == length.old:
        return {**values, "max_length": length.new}
    return values


def _longer_tokenizer(values: dict[str, Any], base_type: str, new_length: int) -> dict[str, Any]:
    """The new limit, and the class by name, since the result has another model_type."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    named = TOKENIZER_MAPPING_NAMES.get(base_type)
    default = {"tokenizer_class": named} if isinstance(named, str) else {}
    return {**default, **values, "model_max_length": new_length}
