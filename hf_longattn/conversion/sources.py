"""Where checkpoints come from: a folder as transformers or sentence-transformers saves it, or a repository of the Hub.

Quantised checkpoints are refused: packed weights can be neither extended nor compared. The message says what to do instead.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

from ..errors import CheckpointError
from ..files import (
    EMBEDDINGS,
    MODULES,
    RERANKER,
    SENTENCE_LIMIT,
    SETTINGS_FILE,
    TOKEN_VECTORS,
    TRANSFORMER_SETTINGS,
    check_counts,
    check_files,
    check_format,
    check_name,
    copy_folder,
    read_json_object,
    sentence_kind,
    sentence_modules,
    sentence_values,
)
from ..loading import (
    DOWNLOAD,
    HUB_ID,
    NO_FOLDER,
    check_revision,
    has_pickles,
    load_weights,
    loading_errors,
    only_pickles,
    refuse_adapter,
    translated_errors,
)
from ..modeling.family.definition import tower_field
from .tensor_files import INDEX, TORCH_DTYPES, WEIGHTS, TensorHeader, read_headers, read_tensor, write_json

SIDECARS = (
    "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.codes", "LICENSE*", "LICENCE*", "NOTICE*",
)  # fmt: skip
"""Names of the files beside the weights that belong to a model: config, tokenizer, templates, licence."""
SIDECAR_FOLDERS = ("additional_chat_templates",)
SMALL, SAFETENSORS = (*SIDECARS, "README.md"), "*.safetensors"
UNPACK = "AutoModelForCausalLM.from_pretrained(folder, quantization_config={}).save_pretrained(new_folder)"
UNPACKING = {
    "bitsandbytes": "AutoModelForCausalLM.from_pretrained(folder).dequantize().save_pretrained(new_folder)",
    "fp8": UNPACK.format("FineGrainedFP8Config(dequantize=True)"),
    "mxfp4": UNPACK.format("Mxfp4Config(dequantize=True)"),
}
"""Method -> code with which transformers unpacks its weights. transformers cannot unpack other methods."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
KINDS = {EMBEDDINGS: (), RERANKER: ("--reranker",), TOKEN_VECTORS: ("--multi-vector",)}
"""Kinds of models that `longattn train embed` trains, and the options for it."""
CROSS_ENCODER_FIELDS = ("sentence_transformers", "sbert_ce_default_activation_function")
"""Fields of a cross-encoder's config in versions without modules."""


@dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    name: what the user typed.
    folder: with its config, its tokenizer and everything else but the weights.
    config: its config.json. tensors: the headers of its tensors, by name.
    pickled: whether transformers reads the weights from .bin files; the headers are those of a copy.
    root: the folder of sentence-transformers whose first module this is; ``None`` for other checkpoints.
    tower: the name of the tower that this source is; ``None`` for a whole model.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorHeader]
    pickled: bool = False
    root: Path | None = None
    tower: str | None = None

    @property
    def protected(self) -> tuple[Path, ...]:
        """Everything that belongs to the source and must not be written to."""
        return (self.folder,) if self.root is None else (self.folder, self.root)

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def card_folder(self) -> Path:
        """The folder with its README.md."""
        return self.root or self.folder

    def load(self, model_class: Any, **arguments: Any) -> Any:
        """Load the weights into ``model_class``, and return what ``from_pretrained`` returns.

        transformers' own reader reads them, so that a mistake in `tensors` shows in a comparison. A tower's are the values of `tensors`.
        """
        if self.tower is None:
            return load_weights(model_class, self.folder, local_files_only=True, allow_pickle=self.pickled, **arguments)
        config = arguments.pop("config", None) or model_class.config_class.from_dict(self.config)
        values = {name: read_tensor(header) for name, header in self.tensors.items()}
        with loading_errors(self.name):
            return load_weights(model_class, None, config=config, state_dict=values, **arguments)

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
    """Prefix of a tower's tensors in the files of the whole model, such as "text_model."."""
    return f"{name}_model."


def tower_of(source: Source, name: str, class_name: str) -> Source:
    """The tower ``name`` of a source, as a model of the class ``class_name``."""
    prefix, config = tower_prefix(name), source.config.get(tower_field(name)) or {}
    tensors = {key.removeprefix(prefix): header for key, header in source.tensors.items() if key.startswith(prefix)}
    return replace(source, config={**config, "architectures": [class_name]}, tensors=tensors, tower=name)


def open_source(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    headers_only: bool = False,
    weights: Path | None = None,
) -> Source:
    """Open a checkpoint. Reads its config and the headers of its tensors; their values are read later, one at a time.

    Args:
        source: a folder, or a Hub repository id such as "google-bert/bert-base-uncased".
        revision, token: of the Hub repository, which is first downloaded into the Hub cache.
        headers_only: of a Hub repository, fetch the headers of the weight files instead of the files.
        weights: a folder with the weights as safetensors, if the checkpoint has only .bin files.

    Raises:
        CheckpointError: missing, without config or weights, only pickle files, an adapter, damaged, quantised, or unreachable.
    """
    name, path, remote = str(source), Path(source).expanduser(), False
    check_name(name)
    check_revision(name, revision)
    if not path.exists() and HUB_ID.fullmatch(name):
        whole, remote = weights is None and not headers_only, headers_only
        path = fetch_snapshot(name, revision, token, (*SMALL, SAFETENSORS) if whole else SMALL)
        if whole and not any(path.glob(SAFETENSORS)) and has_pickles(name, revision, token):
            raise CheckpointError(only_pickles(name))
    if path.is_file():
        raise CheckpointError(f"{name!r} is a file; give the folder that holds config.json and {WEIGHTS}.")
    if not path.is_dir():
        raise CheckpointError(NO_FOLDER.format(name))
    check_files(path, (*SMALL, SAFETENSORS), SIDECAR_FOLDERS)
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
    config, place = read_plain_config(folder, name), folder if weights is None else weights
    if remote:
        tensors = fetch_headers(name, revision, token, folder)
    elif has_safetensors(place):
        tensors = indexed_headers(place)
    else:
        raise CheckpointError(_no_weights(folder))
    check_counts(config, name)
    return Source(name, folder, config, tensors, weights is not None, root)


def has_safetensors(folder: Path) -> bool:
    """Whether a folder has weights as transformers saves them."""
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX))


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a checkpoint folder. Inner configs lose ``auto_map``, since transformers would offer to run its code."""
    refuse_adapter(folder, str(folder))
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{str(folder)!r} has no config.json, so it is not a checkpoint of transformers; give another folder.")
    values = read_json_object(folder / "config.json")
    check_format(values)
    for inner in values.values():
        _forget_code(inner)
    return values


def read_plain_config(folder: Path, name: str) -> dict[str, Any]:
    """The config.json of a folder of the source ``name``, if its weights are not quantised. A quantised long checkpoint can be inspected.

    Raises:
        CheckpointError: there is no config, or the weights are quantised.
    """
    config = read_config(folder)
    if (settings := _quantisation(config)) is None or "long_attention" in config:
        return config
    method, named = _method(settings), config.get("architectures")
    class_name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else "AutoModel"
    unpacking = UNPACKING.get(method, "").replace("AutoModelForCausalLM", class_name)
    raise CheckpointError(
        f"{name!r} holds quantised weights ({method}): convert the checkpoint that it was quantised from, and quantise the result"
        + (f"; or unpack it first with {unpacking}." if unpacking else ".")
    )


def refuse_quantised(source: Source) -> None:
    """Refuse to change a long checkpoint that was quantised.

    Raises:
        CheckpointError: the checkpoint was quantised.
    """
    if (settings := _quantisation(source.config)) is not None:
        raise CheckpointError(
            f"{source.name!r} holds quantised weights ({_method(settings)}), which can only be loaded; give the checkpoint that it was "
            "quantised from."
        )


def _quantisation(config: Mapping[str, Any]) -> Any:
    return config.get("quantization_config") or config.get("compression_config") or None


def _method(settings: Any) -> str:
    """Name of the quantisation method, such as "gptq". Old bitsandbytes configs give only load_in_4bit or load_in_8bit."""
    if not isinstance(settings, Mapping):
        return "an unnamed method"
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    return str(settings.get("quant_method") or "an unnamed method")


def _forget_code(values: Any) -> None:
    """Remove ``auto_map`` from dictionaries in a JSON value."""
    if isinstance(values, dict):
        values.pop("auto_map", None)
    for inner in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        _forget_code(inner)


def indexed_headers(folder: Path) -> dict[str, TensorHeader]:
    """Headers of a folder's single weight file, or of all shards in its index."""
    if (folder / WEIGHTS).is_file():
        return read_headers(folder / WEIGHTS)
    weight_map = read_json_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{str(folder / INDEX)!r} has no weight_map of tensor names to file names; download it again.")
    tensors: dict[str, TensorHeader] = {}
    for file in dict.fromkeys(weight_map.values()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{INDEX} names the file {file[:100]!r}, but shards are .safetensors files of the same folder; download it again."
            )
        try:
            there = (folder / file).is_file()
        except (OSError, ValueError):  # not a possible file name
            there = False
        if not there:
            raise CheckpointError(f"{INDEX} names the shard {file[:100]!r}, which is missing in {str(folder)!r}; download it again.")
        for name, header in read_headers(folder / file).items():
            if name in tensors:
                raise CheckpointError(f"Tensor {name!r} is in two shards, {tensors[name].file.name!r} and {file!r}; download them again.")
            tensors[name] = header
    lost = [name for name in weight_map if name not in tensors]
    if lost:
        raise CheckpointError(
            f"{INDEX} names {len(lost)} tensors that no shard holds, the first is {lost[0]!r}; download the shards again."
        )
    return tensors


def _no_weights(folder: Path) -> str:
    variants = sorted(path.name for path in folder.glob("*.safetensors"))
    if variants:
        return f"{str(folder)!r} has no {WEIGHTS} or {INDEX}, but {variants[0]!r}; where that is the whole model, rename it to {WEIGHTS}."
    if has_pickles(str(folder)):
        return only_pickles(str(folder))
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{str(folder)!r} holds no {WEIGHTS}, but {pickles[0]!r}; where you trust that file, load it and save the model with"
            " save_pretrained first."
        )
    return f"{str(folder)!r} has no weights: expected {WEIGHTS} or {INDEX}."


def fetch_snapshot(name: str, revision: str | None, token: str | bool | None, patterns: Sequence[str]) -> Path:
    """Download matching files of a repository into the Hub cache. Returns their folder.

    Raises:
        CheckpointError: no such repository, no access, or no connection.
    """
    with translated_errors(name, token, DOWNLOAD):
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=list(patterns)))


def fetch_model(model: str | Path, revision: str | None = None, token: str | bool | None = None, *, weights: bool = False) -> Path:
    """The folder ``model``, or that of a Hub repository in the cache, with its weights if requested.

    Raises:
        CheckpointError: no such folder or repository, no access, or no connection.
    """
    name, folder = str(model), Path(model).expanduser()
    check_name(name)
    check_revision(name, revision)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{name!r} is a file; give the folder of a checkpoint, or a Hub repository id.")
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(NO_FOLDER.format(name))
    return fetch_snapshot(name, revision, token, (*SMALL, SAFETENSORS) if weights else SMALL)


def fetch_config(model: str | Path, revision: str | None = None, token: str | bool | None = None) -> dict[str, Any]:
    """The config.json in :func:`fetch_model`'s folder; of sentence-transformers, that of its first module. Weights are not read."""
    folder = fetch_model(model, revision, token)
    if (folder / MODULES).is_file():
        folder /= sentence_modules(folder)[0]["path"]
    check_files(folder, ("config.json",))
    return read_config(folder)


def fetch_headers(name: str, revision: str | None, token: str | bool | None, folder: Path) -> dict[str, TensorHeader]:
    """The headers of a repository's safetensors files, by range requests of some kilobytes each."""
    with translated_errors(name, token, DOWNLOAD):
        try:
            metadata = HfApi(token=token).get_safetensors_metadata(name, revision=revision)
        except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
            if isinstance(error, NotASafetensorsRepoError) and has_pickles(name, revision, token):
                raise CheckpointError(only_pickles(name)) from error
            raise CheckpointError(f"{name!r} has no readable safetensors weights on the Hub; download it and give its folder.") from error
    headers = {}
    for file, content in metadata.files_metadata.items():
        for tensor, info in content.tensors.items():
            if info.dtype not in TORCH_DTYPES:
                raise CheckpointError(
                    f"Tensor {tensor!r} of {name!r} has the dtype {info.dtype}, which is not supported; save it in another dtype."
                )
            headers[tensor] = TensorHeader(tensor, folder / file, TORCH_DTYPES[info.dtype], tuple(info.shape))
    return headers


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
