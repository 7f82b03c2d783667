"""A folder as transformers saves it: config.json, and safetensors files with or without an index.

Quantised checkpoints are refused: packed weights can be neither extended nor compared. The message says what to do instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...loading import has_pickles, only_pickles, refuse_adapter
from ...reading import check_counts, check_format, read_json_object
from ..tensor_files import INDEX, WEIGHTS, TensorHeader, read_headers
from .base import Source, SourceFormat, SourceRequest, has_safetensors, register_source

UNPACK = "AutoModelForCausalLM.from_pretrained(folder, quantization_config={}).save_pretrained(new_folder)"
UNPACKING = {
    "bitsandbytes": "AutoModelForCausalLM.from_pretrained(folder).dequantize().save_pretrained(new_folder)",
    "fp8": UNPACK.format("FineGrainedFP8Config(dequantize=True)"),
    "mxfp4": UNPACK.format("Mxfp4Config(dequantize=True)"),
}
"""Method -> code with which transformers unpacks its weights. transformers cannot unpack other methods."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


@register_source("folder")
class Folder(SourceFormat):
    """Any folder that no other format recognises."""

    priority = 0
    files = ("*.safetensors",)

    def recognises(self, request: SourceRequest) -> bool:
        return request.path.is_dir()

    def open(self, request: SourceRequest) -> Source:
        config = read_plain_config(request)
        place = request.weights or request.path
        if request.remote_headers is not None:
            tensors = request.remote_headers()
        elif has_safetensors(place):
            tensors = indexed_headers(place)
        else:
            raise CheckpointError(_no_weights(request.path))
        check_counts(config, request.name, len(tensors))
        return Source(request.name, request.path, config, tensors, {} if request.weights is None else {"allow_pickle": True})


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


def read_plain_config(request: SourceRequest) -> dict[str, Any]:
    """The config.json of a folder, if its weights are not quantised. A quantised long checkpoint can be inspected.

    Raises:
        CheckpointError: there is no config, or the weights are quantised.
    """
    config = read_config(request.path)
    if (settings := _quantisation(config)) is None or "long_attention" in config:
        return config
    method, named = _method(settings), config.get("architectures")
    class_name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else "AutoModel"
    unpacking = UNPACKING.get(method, "").replace("AutoModelForCausalLM", class_name)
    raise CheckpointError(
        f"{request.name!r} holds quantised weights ({method}): convert the checkpoint that it was quantised from, and quantise the result"
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
        if not _is_file(folder / file):
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


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # not a possible file name
        return False


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
