"""Write tensors into safetensors files as they come, holding one at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from ...errors import CheckpointError
from .tensors import BLOCK, SAFETENSORS_DTYPES, TensorHeader, read_blocks

__all__ = ["OutputTensor", "Progress", "split_by_size", "write_json", "write_weights"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Progress = Callable[[int, int], None]
"""`progress(bytes written so far, bytes in all)`."""


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write: what its header says, and how to get its values when its turn comes.

    streamed: where its values stand in their order, so that they are copied or cast block by block and `load` is not called.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], Tensor]
    streamed: TensorHeader | None = None

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def split_by_size(tensors: Sequence[OutputTensor], max_shard_size: str | int) -> dict[str, list[OutputTensor]]:
    """Distribute tensors over files of at most `max_shard_size` (bytes, or "5GB"), in their order.

    Raises:
        CheckpointError: the size cannot be read.
    """
    if isinstance(max_shard_size, str) and max_shard_size.isascii() and max_shard_size.isdigit():
        max_shard_size = int(max_shard_size)
    by_name = {tensor.name: tensor for tensor in tensors}
    try:
        split = split_state_dict_into_shards_factory(
            by_name,
            get_storage_size=lambda tensor: tensor.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise CheckpointError(f"{max_shard_size!r} is not a shard size; give bytes, or for example 500MB or 5GB.") from error
    return {file: [by_name[name] for name in names] for file, names in split.filename_to_tensors.items()}


def write_weights(folder: Path, files: dict[str, list[OutputTensor]], progress: Progress | None = None) -> list[str]:
    """Write each file, and an index when there are several; everything is on the disk (fsync) when this returns.

    Args:
        folder: an existing folder.
        files: file name -> its tensors.
        progress: called after each block of bytes.

    Returns:
        The names of the files written.
    """
    total = sum(tensor.nbytes for tensors in files.values() for tensor in tensors)
    written = 0

    def advance(count: int) -> None:
        nonlocal written
        written += count
        if progress is not None:
            progress(written, total)

    for file, tensors in files.items():
        _write_file(folder / file, tensors, advance)
    names = list(files)
    if names != [WEIGHTS]:
        weight_map = {tensor.name: file for file, tensors in files.items() for tensor in tensors}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        names.append(INDEX)
    return names


def write_json(path: Path, value: object) -> None:
    """Write indented JSON and have it on the disk."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _write_file(path: Path, tensors: Iterable[OutputTensor], advance: Callable[[int], None]) -> None:
    # Wide dtypes first keeps every tensor aligned, as safetensors itself does.
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    with open(path, "wb") as file:
        file.write(_header(ordered))
        for tensor in ordered:
            if tensor.streamed is not None:
                for block in read_blocks(tensor.streamed, tensor.dtype):
                    file.write(block)
                    advance(len(block))
                continue
            values = tensor.load()
            if values.dtype != tensor.dtype or tuple(values.shape) != tensor.shape:
                raise CheckpointError(
                    f"Tensor {tensor.name!r} came as {values.dtype} {tuple(values.shape)}, but was planned as"
                    f" {tensor.dtype} {tensor.shape}; the source changed while it was read."
                )
            _write_bytes(file, values, advance)
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: Sequence[OutputTensor]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.nbytes
        header[tensor.name] = {
            "dtype": SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_bytes(file: BinaryIO, values: Tensor, advance: Callable[[int], None]) -> None:
    if values.numel() == 0:
        return
    raw = values.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    for start in range(0, len(raw), BLOCK):
        block = raw[start : start + BLOCK]
        file.write(block)
        advance(len(block))
