"""Where a checkpoint comes from: a folder, a GGUF file or the Hub. Reads its config and the headers of its tensors, nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import CheckpointError
from .quantised import refuse_quantised
from .reading import check_files, read_json_object
from .tensors import TensorHeader, read_headers

__all__ = ["Source", "open_source"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED_WEIGHTS = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
ADAPTER_CONFIG = "adapter_config.json"
SENTENCE_MODULES = "modules.json"
TEXTS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "LICENCE*", "NOTICE*", "README.md")
READ = (*TEXTS, "*.safetensors", "pytorch_model*.bin")
"""Names of the files of a checkpoint that may be read or copied."""
READ_FOLDERS = ("additional_chat_templates",)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Source:
    """An opened source checkpoint.

    name: what the user typed.
    folder: where its config, its tokenizer and everything else but the weights are.
    config, tensors: its config.json, and the headers of its tensors by name.
    loading: the arguments with which transformers loads its weights from ``folder``.
    finish: what has to be done to a model loaded so, to be the source (an adapter merged into it).
    origin: the file or folder that was opened, where that is not ``folder``; a conversion must not write there.
    sentence: the sentence-transformers folder that it is the transformer of.
    adapter: the folder of a PEFT adapter on it, which goes into the result as it is.
    held: kept for as long as the source is, such as a temporary folder.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorHeader]
    loading: Mapping[str, Any] = field(default_factory=lambda: {"use_safetensors": True})
    finish: Callable[[nn.Module], nn.Module] | None = None
    origin: Path | None = None
    sentence: Path | None = None
    adapter: Path | None = None
    held: object = None

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def places(self) -> tuple[Path, ...]:
        """Everything that belongs to the source and must not be written."""
        return tuple(path for path in (self.folder, self.origin, self.adapter) if path is not None)


def open_source(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    headers_only: bool = False,
    allow_pickle: bool = False,
    merge_adapter: bool = False,
) -> Source:
    """Open a local folder, a GGUF file, or a repository of the Hub (downloaded into its cache first).

    Args:
        source: a folder, a .gguf file, or a repository id such as "google-bert/bert-base-uncased".
        revision, token: of the Hub repository.
        headers_only: of a Hub repository, fetch the headers of the weight files instead of the files.
        allow_pickle: read torch's .bin files where there is no safetensors file, with ``weights_only=True``.
        merge_adapter: of a PEFT adapter, add it to the weights of its base instead of keeping it beside them.

    Raises:
        CheckpointError: missing, without config or weights, only pickle files, damaged, quantised, or unreachable.
    """
    place = find_place(source, revision=revision, token=token, headers_only=headers_only, allow_pickle=allow_pickle)
    if (place.folder / ADAPTER_CONFIG).is_file() and place.file is None:
        from .peft_source import open_adapter

        return open_adapter(place, merge=merge_adapter)
    if merge_adapter:
        raise CheckpointError(f"{str(source)!r} has no {ADAPTER_CONFIG}, so that there is no adapter to merge; leave --merge-adapter out.")
    return open_place(place)


@dataclass(frozen=True)
class Place:
    """Where a source is, and how it may be read.

    name: what the user typed.
    folder: a folder of this machine.
    file: in it, where a file was typed.
    remote: the arguments with which the Hub gives the headers of the weights, where they have not been downloaded.
    token: of the Hub.
    allow_pickle: whether torch's .bin files may be read.
    """

    name: str
    folder: Path
    file: Path | None = None
    remote: tuple[str | None, str | bool | None] | None = None
    token: str | bool | None = None
    allow_pickle: bool = False


def find_place(source: str | Path, *, revision: str | None, token: str | bool | None, headers_only: bool, allow_pickle: bool) -> Place:
    """The folder of a source, downloaded where it is on the Hub; arguments as for ``open_source``."""
    path, name = Path(source).expanduser(), str(source)
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(f"{name!r} is a file; give the folder that holds config.json and {WEIGHTS}, or a .gguf file.")
        return Place(name, path.parent, path)
    if path.is_dir():
        check_files(path, READ, READ_FOLDERS)
        return Place(name, path, token=token, allow_pickle=allow_pickle)
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(f"There is no folder {name!r}; give a checkpoint folder or a Hub repository id.")
    from .hub_source import fetch_source

    headers_only = headers_only and not allow_pickle  # the headers of pickled files cannot be had without the files
    folder = fetch_source(name, revision, token, headers_only=headers_only, allow_pickle=allow_pickle)
    return Place(name, folder, None, (revision, token) if headers_only else None, token, allow_pickle)


def open_place(place: Place) -> Source:
    """What is there, which is no adapter."""
    folder, sentence = place.folder, None
    files = [place.file] if place.file is not None else sorted(folder.glob("*.gguf"))
    if files and not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        from .gguf_source import open_gguf

        return open_gguf(place.name, files)
    if (folder / SENTENCE_MODULES).is_file():
        from .sentence import transformer_folder

        folder, sentence = transformer_folder(folder), folder
        check_files(folder, READ, READ_FOLDERS)
        check_files(sentence, (), [path.name for path in sentence.iterdir() if path.is_dir() and not path.name.startswith(".")])
    config = _read_json(folder / "config.json", folder)
    refuse_quantised(place.name, config)
    if place.remote is None:
        tensors = _local_headers(folder, allow_pickle=place.allow_pickle)
    else:
        from .hub_source import fetch_headers

        tensors = fetch_headers(place.name, folder, *place.remote)
    pickled = any(header.file.suffix == ".bin" for header in tensors.values())
    loading = {"use_safetensors": False, "weights_only": True} if pickled else {"use_safetensors": True}
    return Source(place.name, folder, config, tensors, loading, origin=sentence, sentence=sentence)


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{str(folder)!r} has no {path.name}, so it is not a transformers checkpoint folder.")
    return read_json_object(path)


def _local_headers(folder: Path, *, allow_pickle: bool) -> dict[str, TensorHeader]:
    """The headers of the safetensors files of a folder; where there are none, of its pickled ones, if that is allowed."""
    if any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        return _headers(folder, WEIGHTS, INDEX, read_headers)
    pickled = any((folder / name).is_file() for name in (PICKLED_WEIGHTS, PICKLED_INDEX))
    if not (pickled and allow_pickle):
        raise CheckpointError(_no_weights(folder, pickled))
    from .pickled import read_pickled_headers

    return _headers(folder, PICKLED_WEIGHTS, PICKLED_INDEX, read_pickled_headers)


def _headers(folder: Path, weights: str, index: str, read: Callable[[Path], dict[str, TensorHeader]]) -> dict[str, TensorHeader]:
    if (folder / weights).is_file():
        return read(folder / weights)
    ending = Path(weights).suffix
    weight_map = _read_json(folder / index, folder).get("weight_map")
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
    others = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if others:
        return (
            f"{str(folder)!r} holds no {WEIGHTS}, but {others[0]!r}; where you trust that file, load it and save the model with"
            " save_pretrained first."
        )
    return f"{str(folder)!r} has no weights: expected {WEIGHTS} or {INDEX}."
