"""Tensors in safetensors files. Headers are read alone, values one tensor or block at a time."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from .config import shard_bytes

BLOCK_BYTES = 2**20
"""Number of bytes copied, cast or compared at once; much larger blocks are written several times slower."""

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Names of dtypes in safetensors headers."""

SAFETENSORS_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
LARGEST_HEADER = 100_000_000
"""Maximum header size in bytes, the limit of safetensors itself."""


@dataclass(frozen=True)
class TensorHeader:
    """One tensor as the file's header describes it.

    start: offset of its bytes in the file; `None` if the file was not downloaded.
    """

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in SAFETENSORS_DTYPES:
            raise CheckpointError(
                f"Tensor {self.name!r} of {str(self.file)!r} is {self.dtype}, which safetensors cannot hold; save it in another dtype."
            )

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def read_headers(file: Path) -> dict[str, TensorHeader]:
    """The headers of all tensors of a safetensors file, in the order of their bytes. No tensor is read.

    Raises:
        CheckpointError: the file is truncated, damaged, or holds a dtype that torch does not have.
    """
    headers = {}
    try:
        start = _data_start(file)
        with safe_open(file, framework="numpy") as opened:  # checks that the tensors, in order of offsets, leave no gaps
            for name in opened.offset_keys():
                part = opened.get_slice(name)
                if part.get_dtype() not in TORCH_DTYPES:
                    raise CheckpointError(
                        f"Tensor {name!r} of {str(file)!r} has the dtype {part.get_dtype()}, which is not supported;"
                        f" expected one of {', '.join(TORCH_DTYPES)}."
                    )
                headers[name] = TensorHeader(name, file, TORCH_DTYPES[part.get_dtype()], tuple(part.get_shape()), start)
                start += headers[name].nbytes
    except SafetensorError as error:
        raise CheckpointError(
            f"{str(file)!r} is not a whole safetensors file ({str(error).rstrip('.')}); download or copy it again."
        ) from error
    return headers


def read_tensor(header: TensorHeader) -> Tensor:
    """The values of one tensor.

    The file is read, not mapped: mapped pages would count as memory of the process.

    Raises:
        CheckpointError: the file ends before the tensor does.
    """
    raw = torch.empty(header.nbytes, dtype=torch.uint8)
    with open(header.file, "rb", buffering=0) as file:
        file.seek(_start(header))
        _fill(file, raw.numpy().data, header)
    return raw.view(header.dtype).reshape(header.shape)


def read_blocks(header: TensorHeader, dtype: torch.dtype | None = None, size: int = BLOCK_BYTES) -> Iterator[memoryview]:
    """Yield the bytes of a tensor that is contiguous in its file. They are cast to `dtype` if given. A block is valid until the next one.

    `size`: bytes read at once, a multiple of 8.
    """
    buffer = memoryview(bytearray(min(size, header.nbytes)))
    with open(header.file, "rb", buffering=0) as file:
        file.seek(_start(header))
        for done in range(0, header.nbytes, size):
            block = buffer[: min(size, header.nbytes - done)]
            _fill(file, block, header)
            if dtype in (None, header.dtype):
                yield block
            else:
                yield torch.frombuffer(block, dtype=header.dtype).to(dtype).view(torch.uint8).numpy().data


def _fill(file: FileIO, block: memoryview, header: TensorHeader) -> None:
    done = 0
    while done < len(block):
        count = file.readinto(block[done:])
        if not count:
            raise CheckpointError(f"{str(header.file)!r} ends inside the tensor {header.name!r}; it was changed while it was read.")
        done += count


def _start(header: TensorHeader) -> int:
    assert header.start is not None, f"{header.name} is known by its header only"
    return header.start


def _data_start(file: Path) -> int:
    """Offset of the first tensor. Refuses duplicate names, which safetensors' reader accepts, and pointers of Git LFS.

    Raises:
        CheckpointError: a tensor twice in the header, or a pointer of Git LFS.
    """
    twice: list[str] = []

    def noted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    with open(file, "rb") as opened:
        start = opened.read(8)
        length = int.from_bytes(start, "little")
        if length <= LARGEST_HEADER:
            with contextlib.suppress(ValueError, RecursionError):  # safetensors itself refuses invalid JSON
                json.loads(opened.read(length), object_pairs_hook=noted)
    if start == LFS_POINTER[:8]:
        raise CheckpointError(f"{str(file)!r} is only a pointer of Git LFS; fetch the file itself with `git lfs pull`.")
    if twice:
        raise CheckpointError(f"The header of {str(file)!r} names {twice[0]!r} twice; download or copy the file again.")
    return 8 + length


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Progress = Callable[[int, int], None]
"""`progress(bytes written so far, bytes in all)`."""


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write: its header, and a function that gives its values.

    streamed: if given, its bytes are copied or cast block by block from here, and `load` is not called.
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
        OptionError: not a size.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    split = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes(max_shard_size),
    )
    return {file: [by_name[name] for name in names] for file, names in split.filename_to_tensors.items()}


def write_weights(folder: Path, files: dict[str, list[OutputTensor]], progress: Progress | None = None) -> list[str]:
    """Write `files` (name -> its tensors), and an index if there are several. Returns the file names.

    Everything is on disk (fsync) when this returns; `progress` is called after each block of bytes.
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
    """Write indented JSON to the disk (fsync). Bytes of a file name that are not UTF-8 become escapes of JSON."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
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
    for start in range(0, len(raw), BLOCK_BYTES):
        block = raw[start : start + BLOCK_BYTES]
        file.write(block)
        advance(len(block))
