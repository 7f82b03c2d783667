"""Tensors in safetensors files: their headers, and one at a time from the memory-mapped file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError

__all__ = ["SAFETENSORS_DTYPES", "TORCH_DTYPES", "TensorHeader", "read_headers", "read_tensor"]

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


@dataclass(frozen=True)
class TensorHeader:
    """One tensor as the file's header describes it."""

    name: str
    file: Path
    dtype: str  # as in the header: "F32", "BF16", …
    shape: tuple[int, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        return TORCH_DTYPES[self.dtype]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.torch_dtype.itemsize


def read_headers(file: Path) -> dict[str, TensorHeader]:
    """The headers of all tensors of a safetensors file, in the order of their bytes. No tensor is read.

    Raises:
        CheckpointError: the file is truncated, damaged, or holds a dtype that torch does not have.
    """
    headers = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.offset_keys():
                part = opened.get_slice(name)
                if part.get_dtype() not in TORCH_DTYPES:
                    raise CheckpointError(
                        f"Tensor {name!r} of {str(file)!r} has the dtype {part.get_dtype()}, which is not supported;"
                        f" expected one of {', '.join(TORCH_DTYPES)}."
                    )
                headers[name] = TensorHeader(name, file, part.get_dtype(), tuple(part.get_shape()))
    except SafetensorError as error:
        raise CheckpointError(_damaged(file, error)) from error
    return headers


def read_tensor(header: TensorHeader) -> Tensor:
    """One tensor, backed by the memory-mapped file: no copy, and its pages are released with it.

    The file is opened anew for every tensor, so that the pages of the ones before do not stay resident.
    """
    try:
        with safe_open(header.file, framework="pt") as opened:
            return opened.get_tensor(header.name)
    except SafetensorError as error:
        raise CheckpointError(_damaged(header.file, error)) from error


def _damaged(file: Path, error: SafetensorError) -> str:
    return f"{str(file)!r} is not a whole safetensors file ({str(error).rstrip('.')}); download or copy it again."
