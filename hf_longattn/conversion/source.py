"""Open the source of a conversion, and refuse a checkpoint that cannot be read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from ..files import PICKLED_WEIGHTS, SAFETENSORS, read_json_object, sentence_modules
from ..loading import WEIGHTS, fetch_model, no_weights, read_config, refuse_adapter
from ..modeling.family.definition import tower_field

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Name of a floating-point type in safetensors files -> its dtype."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""Start of a small text file that stands for a large file which Git LFS has not fetched."""


@dataclass(frozen=True)
class Source:
    """An opened checkpoint."""

    name: str  # as the user typed it
    folder: Path  # has config, tokenizer and weights
    config: dict[str, Any]  # its config.json
    root: Path | None = None  # outermost folder of a sentence-transformers model; None for other checkpoints
    has_weights: bool = False  # whether the weights are there and were checked; a plan of a conversion needs none
    pickled: bool = False  # whether transformers reads the weights from .bin files
    # name -> dtype of each floating-point tensor; empty for .bin files, and if the weights were not checked
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def card_folder(self) -> Path:
        """The outermost folder of the source, with its README.md."""
        return self.root or self.folder


def tower_of(source: Source, name: str, class_name: str) -> Source:
    """One tower of a source, such as "vision", as a separate source with the class ``class_name``."""
    return replace(source, config={**(source.config.get(tower_field(name)) or {}), "architectures": [class_name]})


def open_source(
    source: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    *,
    weights: bool = True,
) -> Source:
    """Open a checkpoint, and read its config.

    Args:
        source: a folder, or a Hub repository id, which is downloaded into the Hub cache.
        revision, token: branch, tag or commit of a Hub repository, and a token for access.
        weights: whether the weights are needed. A plan needs only the config.

    Raises:
        CheckpointError: the checkpoint is missing, unreachable or damaged, is an adapter, or has no config. If weights
            are needed, a checkpoint without weights or with quantised weights is refused, too.
    """
    name = str(source)
    folder = fetch_model(source, revision, token)
    root = None
    modules = sentence_modules(folder)
    if modules:
        root = folder
        first = modules[0]
        if not first["type"].endswith(".Transformer"):
            raise CheckpointError(
                f"{str(root)!r} begins with a {first['type']!r}, but only models whose first module is Transformer "
                "can be converted; give another."
            )
        folder = root / first["path"]
    refuse_adapter(folder, name)
    opened = Source(name, folder, read_config(folder), root)
    if weights:
        opened = with_weights(opened, token)
    return opened


def with_weights(source: Source, token: str | bool | None = None, *, allow_pickle: bool = False) -> Source:
    """An opened source whose weights are downloaded and checked.

    Raises:
        CheckpointError: there are no weights, or they are quantised or damaged.
    """
    if source.has_weights:
        return source
    if "long_attention" not in source.config:  # a long checkpoint may be quantised, since it is only loaded
        refuse_quantised(source)
    if not Path(source.name).expanduser().exists():
        commit = source.card_folder.name  # the folder in the Hub cache has the name of the commit
        path = fetch_model(source.name, commit, token, weights=[SAFETENSORS])
        if allow_pickle and not any(path.glob(SAFETENSORS)):
            fetch_model(source.name, commit, token, weights=[PICKLED_WEIGHTS])
    folder, dtypes = source.folder, dict[str, torch.dtype]()
    pickled = not any((folder / file).is_file() for file in WEIGHTS)
    if not pickled:
        dtypes = _checked_dtypes(folder)
    elif not (allow_pickle and any(folder.glob(PICKLED_WEIGHTS))):
        raise CheckpointError(no_weights(source.name, folder))
    return replace(source, has_weights=True, pickled=pickled, dtypes=dtypes)


def tensor_headers(folder: Path) -> Iterator[tuple[Path, str, str, tuple[int, ...]]]:
    """For each tensor in a folder's safetensors files: the file, the name, the dtype (such as "F32") and the shape."""
    for path in folder.glob(SAFETENSORS):
        # a damaged file is left out here, because loading refuses it
        with contextlib.suppress(SafetensorError), safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                header = tensors.get_slice(name)
                yield path, name, header.get_dtype(), tuple(header.get_shape())


def _checked_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Name -> dtype of each floating-point tensor in the safetensors files that transformers reads.

    Raises:
        CheckpointError: the index names a file outside of its folder or a pickle, a file is a pointer of Git LFS, or
            weights are integers. transformers does not check these cases.
    """
    single = folder / WEIGHTS[0]
    dtypes: dict[str, torch.dtype] = {}
    if not single.is_file():
        shards = read_json_object(folder / WEIGHTS[1]).get("weight_map")
        for file in shards.values() if isinstance(shards, dict) and shards else [None]:
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise CheckpointError(
                    f"The index {str(folder / WEIGHTS[1])!r} must map tensors to .safetensors files of the same "
                    "folder, and not to "
                    f"{file!r:.99}; download it again."
                )
    for path in folder.glob(SAFETENSORS):
        with open(path, "rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise CheckpointError(
                    f"{str(path)!r} is a pointer of Git LFS and not the weights; type `git lfs pull` in its folder."
                )
    for path, name, dtype, _ in tensor_headers(folder):
        if name.endswith("weight") and dtype not in DTYPES:
            raise CheckpointError(
                f"Tensor {name!r} of {str(path)!r} holds {dtype} numbers, and its model has none of these; give the "
                "checkpoint that it was quantised from."
            )
        if dtype in DTYPES and (path == single or not single.is_file()):
            dtypes[name] = DTYPES[dtype]
    return dtypes


def refuse_quantised(source: Source) -> None:
    """Raise :class:`CheckpointError` for a quantised checkpoint, because packed weights can be neither extended nor
    compared."""
    settings = source.config.get("quantization_config") or source.config.get("compression_config")
    if settings:
        method = settings.get("quant_method") if isinstance(settings, Mapping) else None
        raise CheckpointError(
            f"{source.name!r} holds quantised weights ({method or 'an unnamed method'}), which can only be loaded; "
            "give the checkpoint that it was quantised from."
        )
