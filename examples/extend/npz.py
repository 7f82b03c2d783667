"""A folder with config.json and weights.npz, as numpy.savez writes it."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_longattn.conversion.sources.base import Source, SourceFormat, SourceRequest, register_source
from hf_longattn.conversion.sources.folder import read_config
from hf_longattn.conversion.tensor_files import TensorHeader
from hf_longattn.errors import CheckpointError

FILE = "weights.npz"


@register_source("npz")
class Npz(SourceFormat):
    """One array per tensor."""

    files = markers = (FILE,)

    def open(self, request: SourceRequest) -> Source:
        file = request.path / FILE
        try:
            with np.load(file, allow_pickle=False) as arrays:
                tensors = {name: _header(file, name, _tensor(file, name, arrays[name])) for name in arrays.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{str(file)!r} is not a whole .npz file ({error}); download or copy it again.") from error
        return Source(request.name, request.path, read_config(request.path), tensors)


def _header(file: Path, name: str, values: Tensor) -> TensorHeader:
    return TensorHeader(name, file, values.dtype, tuple(values.shape), values=partial(_read, file, name))


def _read(file: Path, name: str) -> Tensor:
    with np.load(file, allow_pickle=False) as arrays:
        return _tensor(file, name, arrays[name])


def _tensor(file: Path, name: str, values: np.ndarray[Any, Any]) -> Tensor:
    """A tensor in the byte order of this machine."""
    if values.dtype.kind not in "biufc":
        raise CheckpointError(f"The array {name!r} of {str(file)!r} holds {values.dtype}, not numbers; leave it out of the file.")
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("="), copy=False))
