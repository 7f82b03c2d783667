"""Where a checkpoint comes from: a folder or the Hub. Reads its config and the headers of its tensors, nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .tensors import TensorHeader, read_headers

__all__ = ["Source", "open_source"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
HUB_PATTERNS = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "*.safetensors"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Source:
    """An opened source checkpoint."""

    name: str  # what the user typed
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorHeader]

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def open_source(source: str | Path, *, revision: str | None = None, token: str | bool | None = None, headers_only: bool = False) -> Source:
    """Open a local folder, or a repository of the Hub (downloaded into its cache first).

    Args:
        source: a folder, or a repository id such as "google-bert/bert-base-uncased".
        revision, token: of the Hub repository.
        headers_only: of a Hub repository, fetch the headers of the weight files instead of the files.

    Raises:
        CheckpointError: missing, without config or weights, only pickle files, damaged, or unreachable.
    """
    folder = Path(source).expanduser()
    headers: dict[str, TensorHeader] | None = None
    if not folder.is_dir():
        if folder.exists():
            raise CheckpointError(f"{str(source)!r} is a file; give the folder that holds config.json and {WEIGHTS}.")
        if not HUB_ID.fullmatch(str(source)):
            raise CheckpointError(f"There is no folder {str(source)!r}; give a checkpoint folder or a Hub repository id.")
        from .hub_source import fetch_headers, fetch_snapshot

        patterns = [pattern for pattern in HUB_PATTERNS if not (headers_only and pattern == "*.safetensors")]
        folder = fetch_snapshot(str(source), patterns, revision, token)
        if headers_only:
            headers = fetch_headers(str(source), folder, revision, token)
    config = _read_json(folder / "config.json", folder)
    return Source(str(source), folder, config, _local_headers(folder) if headers is None else headers)


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{str(folder)!r} has no {path.name}, so it is not a transformers checkpoint folder.")
    return read_json_object(path)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; :class:`CheckpointError` when it is not JSON or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{str(path)!r} must hold a JSON object, but holds {type(value).__name__}.")
    return value


def _local_headers(folder: Path) -> dict[str, TensorHeader]:
    if (folder / WEIGHTS).is_file():
        return read_headers(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        raise CheckpointError(_no_weights(folder))
    weight_map = _read_json(folder / INDEX, folder).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{str(folder / INDEX)!r} has no weight_map of tensor names to file names.")
    tensors: dict[str, TensorHeader] = {}
    for file in dict.fromkeys(weight_map.values()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{INDEX} names the file {file!r}, but shards are .safetensors files of the same folder.")
        if not (folder / file).is_file():
            raise CheckpointError(f"{INDEX} names the shard {file!r}, which is missing in {str(folder)!r}; download it again.")
        for name, header in read_headers(folder / file).items():
            if name in tensors:
                raise CheckpointError(f"Tensor {name!r} is in two shards, {tensors[name].file.name!r} and {file!r}.")
            tensors[name] = header
    lost = [name for name in weight_map if name not in tensors]
    if lost:
        raise CheckpointError(f"{INDEX} names {len(lost)} tensors that no shard holds, the first is {lost[0]!r}.")
    return tensors


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{str(folder)!r} holds its weights only as pickle ({pickles[0]!r}), which can run code when opened; save it as"
            " safetensors first: AutoModel.from_pretrained(folder).save_pretrained(new_folder) where you trust the file."
        )
    return f"{str(folder)!r} has no weights: expected {WEIGHTS} or {INDEX}."
