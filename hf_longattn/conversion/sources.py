"""Where checkpoints come from: a folder as transformers or sentence-transformers saves it, or a repository of the Hub.

Quantised checkpoints are refused, since packed weights can be neither extended nor compared.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from ..files import (
    EMBEDDINGS,
    MODULES,
    RERANKER,
    SENTENCE_LIMIT,
    SETTINGS_FILE,
    TOKEN_VECTORS,
    TRANSFORMER_SETTINGS,
    check_files,
    copy_folder,
    read_json_object,
    sentence_kind,
    sentence_modules,
    sentence_values,
    write_json,
)
from ..loading import PICKLED_WEIGHTS, SMALL_FILES, fetch_model, only_pickles, read_config, refuse_adapter
from ..modeling.family.definition import tower_field

SIDECAR_FOLDERS = ("additional_chat_templates",)
SAFETENSORS = "*.safetensors"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""The file of the weights, or of the names of their shards. transformers reads one of them."""
FLOATING = re.compile(r"B?F\d")
"""The beginning of the names of floating-point types in safetensors files."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Names of floating-point types in safetensors files -> the dtypes."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
KINDS = {EMBEDDINGS: (), RERANKER: ("--reranker",), TOKEN_VECTORS: ("--multi-vector",)}
"""Kinds of models that `longattn train embed` trains, and the options for it."""
CROSS_ENCODER_FIELDS = ("sentence_transformers", "sbert_ce_default_activation_function")
"""Fields of a cross-encoder's config in versions without modules."""


@dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    name: what the user typed.
    folder: with its config, its tokenizer and its weights; without the weights if only a plan is made.
    config: its config.json.
    pickled: whether transformers reads the weights from .bin files.
    root: the folder of sentence-transformers whose first module this is; ``None`` for other checkpoints.
    dtypes: of floating-point tensors by their names in the files; empty for .bin files and for a plan.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    pickled: bool = False
    root: Path | None = None
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def protected(self) -> tuple[Path, ...]:
        """Everything that belongs to the source and must not be written to."""
        return (self.folder,) if self.root is None else (self.folder, self.root)

    @property
    def card_folder(self) -> Path:
        """The folder with its README.md."""
        return self.root or self.folder

    def training_hint(self, max_length: int) -> str | tuple[str, ...] | None:
        """How to train a result. A task of ``longattn train`` with its arguments, or advice with ``{model}`` for the result's name.
        ``None`` means that the model's head determines the task."""
        if self.root is None:
            return None
        kind = sentence_kind(self.root)
        if kind not in KINDS:
            return f"fine-tune {{model}} with sentence-transformers' trainer on texts of up to {max_length} tokens"
        return ("embed", *KINDS[kind], "--data", "YOUR_PAIRS.jsonl", "--max-length", str(max_length))


def tower_prefix(name: str) -> str:
    """Prefix of a tower's tensors in the whole model, such as "text_model."."""
    return f"{name}_model."


def tower_of(source: Source, name: str, class_name: str) -> Source:
    """The config of the tower ``name`` of a source, as a model of the class ``class_name``."""
    return replace(source, config={**(source.config.get(tower_field(name)) or {}), "architectures": [class_name]})


def open_source(
    source: str | Path, *, revision: str | None = None, token: str | bool | None = None, weights: bool = True, allow_pickle: bool = False
) -> Source:
    """Open a checkpoint, and read its config.

    Args:
        source: a folder, or a Hub repository id such as "google-bert/bert-base-uncased".
        revision, token: of the Hub repository, which is downloaded into the Hub cache.
        weights: whether the weights are needed; a plan needs the config alone.
        allow_pickle: whether .bin files are read where there are no safetensors. Only tensors are read from them.

    Raises:
        CheckpointError: missing, without config or weights, only pickle files, an adapter, damaged, quantised, or unreachable.
    """
    name = str(source)
    path = fetch_model(source, revision, token, weights=[SAFETENSORS] * weights)
    if weights and allow_pickle and path != Path(source).expanduser() and not any(path.glob(SAFETENSORS)):
        path = fetch_model(source, revision, token, weights=[PICKLED_WEIGHTS])
    check_files(path, (*SMALL_FILES, SAFETENSORS, PICKLED_WEIGHTS), SIDECAR_FOLDERS)
    root, folder = None, path
    if (path / MODULES).is_file():
        root, first = path, sentence_modules(path)[0]
        if not first["type"].endswith(".Transformer"):
            raise CheckpointError(
                f"{str(root)!r} begins with a {first['type']!r}, but only models whose first module is Transformer can be converted; "
                "give another."
            )
        check_files(root, (), [inner.name for inner in root.iterdir() if inner.is_dir() and not inner.name.startswith(".")])
        folder = root / first["path"]
    refuse_adapter(folder, name)
    config = read_config(folder)
    if _quantisation(config) is not None and "long_attention" not in config:  # a quantised long checkpoint can be inspected
        refuse_quantised(Source(name, folder, config))
    pickled = not any((folder / file).is_file() for file in WEIGHTS)
    dtypes = _checked_dtypes(folder) if weights and not pickled else {}
    if weights and pickled and not (allow_pickle and any(folder.glob(PICKLED_WEIGHTS))):
        raise CheckpointError(only_pickles(name))
    return Source(name, folder, config, pickled, root, dtypes)


def tensor_headers(folder: Path) -> Iterator[tuple[Path, str, str, tuple[int, ...]]]:
    """File, name, dtype (such as "F32") and shape of each tensor in the safetensors files of a folder.

    A damaged file is left out; loading refuses it.
    """
    for path in folder.glob(SAFETENSORS):
        with contextlib.suppress(SafetensorError), safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                part = tensors.get_slice(name)
                yield path, name, part.get_dtype(), tuple(part.get_shape())


def _checked_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """The dtypes of floating-point tensors in the files that transformers reads, by name.

    Refuses what transformers does not check: an index that leads out of its folder or to pickles, pointers of Git LFS, and integers.

    Raises:
        CheckpointError: there is such a file.
    """
    single, dtypes = folder / WEIGHTS[0], dict[str, torch.dtype]()
    if not single.is_file():
        shards = read_json_object(folder / WEIGHTS[1]).get("weight_map")
        for file in shards.values() if isinstance(shards, dict) and shards else [None]:
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise CheckpointError(
                    f"The index {str(folder / WEIGHTS[1])!r} must map tensors to .safetensors files of the same folder, and not to "
                    f"{file!r:.99}; download it again."
                )
    for path in folder.glob(SAFETENSORS):
        with open(path, "rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise CheckpointError(f"{str(path)!r} is a pointer of Git LFS and not the weights; type `git lfs pull` in its folder.")
    for path, name, dtype, _ in tensor_headers(folder):
        if name.endswith("weight") and not FLOATING.match(dtype):
            raise CheckpointError(
                f"Tensor {name!r} of {str(path)!r} holds {dtype} numbers, and its model floating-point ones; give the checkpoint "
                "that it was quantised from."
            )
        if dtype in DTYPES and (path == single or not single.is_file()):
            dtypes[name] = DTYPES[dtype]
    return dtypes


def fetch_config(model: str | Path, revision: str | None = None, token: str | bool | None = None) -> dict[str, Any]:
    """The config.json in :func:`fetch_model`'s folder; of sentence-transformers, that of its first module. Weights are not read."""
    folder = fetch_model(model, revision, token)
    if (folder / MODULES).is_file():
        folder /= sentence_modules(folder)[0]["path"]
    check_files(folder, ("config.json",))
    return read_config(folder)


def refuse_quantised(source: Source) -> None:
    """Refuse to change a checkpoint that was quantised.

    Raises:
        CheckpointError: the checkpoint was quantised.
    """
    if (settings := _quantisation(source.config)) is not None:
        method = settings.get("quant_method") if isinstance(settings, Mapping) else None
        raise CheckpointError(
            f"{source.name!r} holds quantised weights ({method or 'an unnamed method'}), which can only be loaded; give the checkpoint "
            "that it was quantised from."
        )


def _quantisation(config: Mapping[str, Any]) -> Any:
    return config.get("quantization_config") or config.get("compression_config") or None


def write_modules(root: Path, folder: Path, max_length: int = 0, *, longer: bool = False) -> list[str]:
    """Write all modules of ``root`` except the transformer. Its files are in ``folder`` itself, for AutoModel.

    Args:
        max_length: maximum tokens that the result takes; 0 leaves ``max_seq_length`` as it is.
        longer: ``max_seq_length`` becomes ``max_length``; otherwise the smaller of the two.
    """
    written = [MODULES]
    modules = sentence_modules(root)
    transformer = root / modules[0]["path"]
    write_json(folder / MODULES, [{**modules[0], "path": ""}, *modules[1:]])
    for settings in sorted(transformer.glob(TRANSFORMER_SETTINGS)):
        values = sentence_values(settings)
        if (limit := values.get(SENTENCE_LIMIT)) is not None and max_length:
            values[SENTENCE_LIMIT] = max_length if longer else min(limit, max_length)
        write_json(folder / settings.name, values)
        written.append(settings.name)
    if (root / SETTINGS_FILE).is_file():
        shutil.copyfile(root / SETTINGS_FILE, folder / SETTINGS_FILE)
        written.append(SETTINGS_FILE)
    for module in modules[1:]:
        if module["path"] and (root / module["path"]).is_dir():
            copy_folder(root / module["path"], folder / module["path"])
            written.append(module["path"])
    return written


def scores_pairs(folder: Path, config: Any) -> bool:
    """Whether ``folder`` holds a cross-encoder. config: of its transformer."""
    return sentence_kind(folder) == RERANKER or any(hasattr(config, name) for name in CROSS_ENCODER_FIELDS)
