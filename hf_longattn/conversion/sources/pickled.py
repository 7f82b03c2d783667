"""A folder with torch's .bin files, read if that is allowed. Only tensors, by torch's restricted unpickler; no code is run."""

from __future__ import annotations

import pickle
import sys
import zipfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...loading import only_pickles
from ...private_apis import missing
from ...reading import check_counts
from ..tensor_files import TensorHeader, read_span
from .base import Source, SourceFormat, SourceRequest, register_source
from .folder import indexed_headers, read_plain_config

WEIGHTS = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class PickledSource(Source):
    """Tensors of .bin files."""

    def result_files(self) -> dict[Path, str]:
        return {file: name.replace("pytorch_model", "model") for file, name in super().result_files().items()}


@register_source("pickled")
class Pickled(SourceFormat):
    """A folder with pytorch_model.bin, or shards of it, and no safetensors file."""

    priority = 20
    files = ("pytorch_model*.bin",)
    markers = (WEIGHTS, INDEX)
    after_safetensors = True

    def open(self, request: SourceRequest) -> Source:
        config = read_plain_config(request)
        if not request.allow_pickle:
            raise CheckpointError(only_pickles(str(request.path)))
        tensors = indexed_headers(request.path, WEIGHTS, INDEX, read_pickled_headers)
        check_counts(config, request.name, len(tensors))
        return PickledSource(request.name, request.path, config, tensors, {"allow_pickle": True})


def read_pickled_headers(file: Path) -> dict[str, TensorHeader]:
    """The headers of all tensors of a state dict. No code of the file is run (`weights_only=True`).

    A zip archive, as torch writes it since 1.6, is read one tensor at a time. A file in the older format must be loaded whole.

    Raises:
        CheckpointError: damaged, or not a flat dictionary of tensors.
    """
    archive = zipfile.is_zipfile(file)
    if archive:
        _check_archive(file)
    state = _load(file, "meta" if archive else "cpu")
    if not isinstance(state, dict) or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise CheckpointError(
            f"{str(file)!r} holds no flat dictionary of tensors, but {_described(state)}; save model.state_dict() alone, or use"
            " save_pretrained."
        )
    size = file.stat().st_size
    headers = {name: _header(name, file, value, size if archive else None) for name, value in state.items()}
    shared = _shared(state)
    return {name: replace(header, shared=shared[name]) for name, header in headers.items()}


def _shared(state: dict[str, Tensor]) -> dict[str, str]:
    """Name of a tensor -> the first one with the same memory. Empty if there is no other."""
    groups: dict[Any, list[str]] = {}
    for name, value in state.items():
        groups.setdefault((_offset(value), value.storage_offset(), value.shape, value.stride()), []).append(name)
    return {name: names[0] if len(names) > 1 else "" for names in groups.values() for name in names}


def _check_archive(file: Path) -> None:
    """Refuse an archive whose bytes cannot be read in place. It is compressed, or of another byte order."""
    try:
        with zipfile.ZipFile(file) as opened:
            records = opened.infolist()
            orders = {opened.read(record).decode("latin-1") for record in records if record.filename.endswith("/byteorder")}
    except (zipfile.BadZipFile, OSError, RuntimeError) as error:
        raise CheckpointError(_damaged(file, error)) from error
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(f"{str(file)!r} is a compressed archive, which torch.save does not write; save it again with torch.save.")
    if orders - {sys.byteorder}:
        raise CheckpointError(f"{str(file)!r} was written on a {orders.pop()}-endian machine; load it with torch and save it again here.")


def _load(file: Path, device: str) -> Any:
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{str(file)!r} holds more than tensors, or is damaged, and torch refuses it with weights_only=True; "
            "save it again with save_pretrained."
        ) from error
    except Exception as error:  # torch.load raises any type of error
        raise CheckpointError(_damaged(file, error)) from error


def _header(name: str, file: Path, value: Tensor, size: int | None) -> TensorHeader:
    """size: of the file in bytes; `None` if the values are in memory."""
    if value.layout != torch.strided:
        raise CheckpointError(
            f"Tensor {name!r} of {str(file)!r} is {value.layout}, which safetensors cannot hold; save it as a dense tensor."
        )
    described = TensorHeader(name, file, value.dtype, tuple(value.shape))
    if size is None:
        return replace(described, values=lambda: value.detach().contiguous())
    span = sum((length - 1) * stride for length, stride in zip(value.shape, value.stride(), strict=True)) + 1 if value.numel() else 0
    start = int(_offset(value) + value.storage_offset() * value.dtype.itemsize)
    if start + span * value.dtype.itemsize > size:
        raise CheckpointError(f"Tensor {name!r} lies beyond the end of {str(file)!r}; download or copy the file again.")
    if value.is_contiguous():
        return replace(described, start=start)
    return replace(described, values=partial(_strided, described, start, int(span), tuple(value.stride())))


def _offset(value: Tensor) -> int:
    """Offset of a tensor's storage in its file. torch.load records it on the meta device. Else its memory address."""
    return storage_offset(value) if value.is_meta else value.untyped_storage().data_ptr()


def _strided(header: TensorHeader, start: int, span: int, stride: tuple[int, ...]) -> Tensor:
    values = read_span(header, start, span * header.dtype.itemsize).view(header.dtype)
    return values.as_strided(header.shape, stride).contiguous()


def _described(state: Any) -> str:
    if not isinstance(state, dict):
        return f"a {type(state).__name__}"
    key = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    return f"{key!r}, which is a {type(state[key]).__name__}" if key is not None else "names that are not text"


def _damaged(file: Path, error: Exception) -> str:
    return f"{str(file)!r} is not a whole file of torch.save ({' '.join(str(error).split())[:200]}); download or copy it again."


def storage_offset(tensor: Tensor) -> int:
    """Byte offset of a meta tensor's storage in its checkpoint file."""
    offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if offset is None:
        raise missing("storage_offset")
    return offset
