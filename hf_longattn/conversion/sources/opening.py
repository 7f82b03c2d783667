"""Open a source, whatever it is: find its folder, then read its config and the headers of its tensors, nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import CheckpointError
from ...reading import check_counts, check_files, check_name
from ..tensor_files import INDEX, WEIGHTS
from .base import SIDECARS, Place, Source
from .gguf import open_gguf
from .hub import fetch_headers, fetch_source
from .peft import ADAPTER_CONFIG, base_of, with_adapter
from .quantised import refuse_quantised
from .sentence import SENTENCE_MODULES, transformer_folder
from .weights import read_json, weight_headers

READ = (*SIDECARS, "README.md", "*.safetensors", "pytorch_model*.bin")
"""Names of the files of a checkpoint that may be read or copied."""
READ_FOLDERS = ("additional_chat_templates",)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


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
    place = _find_place(source, revision=revision, token=token, headers_only=headers_only, allow_pickle=allow_pickle)
    if (place.folder / ADAPTER_CONFIG).is_file() and place.file is None:
        return _open_adapter(place, merge=merge_adapter)
    if merge_adapter:
        raise CheckpointError(f"{str(source)!r} has no {ADAPTER_CONFIG}, so that there is no adapter to merge; leave --merge-adapter out.")
    return _open_place(place)


def _find_place(source: str | Path, *, revision: str | None, token: str | bool | None, headers_only: bool, allow_pickle: bool) -> Place:
    """The folder of a source, downloaded where it is on the Hub; arguments as for ``open_source``."""
    path, name = Path(source).expanduser(), str(source)
    check_name(name)
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(f"{name!r} is a file; give the folder that holds config.json and {WEIGHTS}, or a .gguf file.")
        return Place(name, path.parent, path)
    if path.is_dir():
        check_files(path, READ, READ_FOLDERS)
        return Place(name, path, token=token, allow_pickle=allow_pickle)
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(f"There is no folder {name!r}; give a checkpoint folder or a Hub repository id.")
    headers_only = headers_only and not allow_pickle  # the headers of pickled files cannot be had without the files
    folder = fetch_source(name, revision, token, headers_only=headers_only, allow_pickle=allow_pickle)
    return Place(name, folder, None, (revision, token) if headers_only else None, token, allow_pickle)


def _open_place(place: Place) -> Source:
    """What is there, which is no adapter."""
    folder, sentence = place.folder, None
    files = [place.file] if place.file is not None else sorted(folder.glob("*.gguf"))
    if files and not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        return open_gguf(place.name, files)
    if (folder / SENTENCE_MODULES).is_file():
        folder, sentence = transformer_folder(folder), folder
        check_files(folder, READ, READ_FOLDERS)
        check_files(sentence, (), [path.name for path in sentence.iterdir() if path.is_dir() and not path.name.startswith(".")])
    config = read_json(folder / "config.json", folder)
    refuse_quantised(place.name, config)
    if place.remote is None:
        tensors = weight_headers(folder, allow_pickle=place.allow_pickle)
    else:
        tensors = fetch_headers(place.name, folder, *place.remote)
    check_counts(config, place.name, len(tensors))
    pickled = any(header.file.suffix == ".bin" for header in tensors.values())
    loading = {"use_safetensors": False, "weights_only": True} if pickled else {"use_safetensors": True}
    return Source(place.name, folder, config, tensors, loading, origin=sentence, sentence=sentence)


def _open_adapter(place: Place, *, merge: bool) -> Source:
    """The base that an adapter was trained on, with the adapter; arguments as for ``with_adapter``."""
    name, revision = base_of(place)
    headers_only = place.remote is not None
    try:
        found = _find_place(name, revision=revision, token=place.token, headers_only=headers_only, allow_pickle=place.allow_pickle)
        if (found.folder / ADAPTER_CONFIG).is_file():
            raise CheckpointError(f"{name!r} is itself an adapter.")
        base = _open_place(found)
    except CheckpointError as error:
        raise CheckpointError(f"The base of the adapter {place.name!r} cannot be opened: {error}") from error
    return with_adapter(base, place, merge=merge)
