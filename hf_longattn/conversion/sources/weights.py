"""The weights of a checkpoint folder: which files hold them, and the headers of their tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...reading import read_json_object
from ..tensor_files import INDEX, WEIGHTS, TensorHeader, read_headers
from .pickled import read_pickled_headers

PICKLED_WEIGHTS = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


def read_json(path: Path, folder: Path) -> dict[str, Any]:
    """A JSON file that the checkpoint in `folder` must have."""
    if not path.is_file():
        raise CheckpointError(f"{str(folder)!r} has no {path.name}, so it is not a transformers checkpoint folder.")
    return read_json_object(path)


def weight_headers(folder: Path, *, allow_pickle: bool) -> dict[str, TensorHeader]:
    """The headers of the safetensors files of a folder; where there are none, of its pickled ones, if that is allowed."""
    if any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        return _headers(folder, WEIGHTS, INDEX, read_headers)
    pickled = any((folder / name).is_file() for name in (PICKLED_WEIGHTS, PICKLED_INDEX))
    if not (pickled and allow_pickle):
        raise CheckpointError(_no_weights(folder, pickled))
    return _headers(folder, PICKLED_WEIGHTS, PICKLED_INDEX, read_pickled_headers)


def _headers(folder: Path, weights: str, index: str, read: Callable[[Path], dict[str, TensorHeader]]) -> dict[str, TensorHeader]:
    if (folder / weights).is_file():
        return read(folder / weights)
    ending = Path(weights).suffix
    weight_map = read_json(folder / index, folder).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{str(folder / index)!r} has no weight_map of tensor names to file names.")
    tensors: dict[str, TensorHeader] = {}
    for file in dict.fromkeys(weight_map.values()):
        if Path(file).name != file or not file.endswith(ending):
            raise CheckpointError(f"{index} names the file {file[:100]!r}, but shards are {ending} files of the same folder.")
        if not _is_file(folder / file):
            raise CheckpointError(f"{index} names the shard {file[:100]!r}, which is missing in {str(folder)!r}; download it again.")
        for name, header in read(folder / file).items():
            if name in tensors:
                raise CheckpointError(f"Tensor {name!r} is in two shards, {tensors[name].file.name!r} and {file!r}.")
            tensors[name] = header
    lost = [name for name in weight_map if name not in tensors]
    if lost:
        raise CheckpointError(f"{index} names {len(lost)} tensors that no shard holds, the first is {lost[0]!r}.")
    return tensors


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def _no_weights(folder: Path, pickled: bool) -> str:
    if pickled:
        return (
            f"{str(folder)!r} holds its weights only as pickle ({PICKLED_WEIGHTS!r}), a format that can carry code: add --allow-pickle"
            " (allow_pickle=True) to read the tensors in it, and nothing else."
        )
    variants = sorted(path.name for path in folder.glob("*.safetensors"))
    if variants:
        return f"{str(folder)!r} has no {WEIGHTS} or {INDEX}, but {variants[0]!r}; where that is the whole model, rename it to {WEIGHTS}."
    others = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if others:
        return (
            f"{str(folder)!r} holds no {WEIGHTS}, but {others[0]!r}; where you trust that file, load it and save the model with"
            " save_pretrained first."
        )
    return f"{str(folder)!r} has no weights: expected {WEIGHTS} or {INDEX}."
