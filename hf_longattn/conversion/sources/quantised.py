"""Quantised checkpoints, which are refused: packed weights can be neither extended nor compared. The message says what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError
from ...reading import read_json_object
from .base import Source, SourceFormat, SourceRequest, register_source

UNPACK = "AutoModelForCausalLM.from_pretrained(folder, quantization_config={}).save_pretrained(new_folder)"
UNPACKING = {
    "bitsandbytes": "AutoModelForCausalLM.from_pretrained(folder).dequantize().save_pretrained(new_folder)",
    "fp8": UNPACK.format("FineGrainedFP8Config(dequantize=True)"),
    "mxfp4": UNPACK.format("Mxfp4Config(dequantize=True)"),
}
"""Method -> code with which transformers unpacks its weights. transformers cannot unpack other methods."""


@register_source("quantised")
class Quantised(SourceFormat):
    """A config.json with a quantization_config."""

    priority = 40

    def recognises(self, request: SourceRequest) -> bool:
        if not (request.path / "config.json").is_file():
            return False
        config = read_json_object(request.path / "config.json")
        return _settings(config) is not None and "long_attention" not in config  # a converted model that was quantised can be inspected

    def open(self, request: SourceRequest) -> Source:
        config = read_json_object(request.path / "config.json")
        method = _method(_settings(config))
        named = config.get("architectures")
        class_name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else "AutoModel"
        unpacking = UNPACKING.get(method, "").replace("AutoModelForCausalLM", class_name)
        raise CheckpointError(
            f"{request.name!r} holds quantised weights ({method}): convert the checkpoint that it was quantised from, and quantise the"
            " result" + (f"; or unpack it first with {unpacking}." if unpacking else ".")
        )


def refuse_quantised(source: Source) -> None:
    """Refuse to change a long checkpoint that was quantised.

    Raises:
        CheckpointError: the checkpoint was quantised.
    """
    if (settings := _settings(source.config)) is not None:
        raise CheckpointError(
            f"{source.name!r} holds quantised weights ({_method(settings)}), which can only be loaded; give the checkpoint that it was "
            "quantised from."
        )


def _settings(config: Mapping[str, Any]) -> Any:
    return config.get("quantization_config") or config.get("compression_config") or None


def _method(settings: Any) -> str:
    """Name of the quantisation method, such as "gptq". Old bitsandbytes configs give only load_in_4bit or load_in_8bit."""
    if not isinstance(settings, Mapping):
        return "an unnamed method"
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    return str(settings.get("quant_method") or "an unnamed method")
