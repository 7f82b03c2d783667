"""Quantised sources: what is refused, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError

UNPACK = "AutoModelForCausalLM.from_pretrained(folder, quantization_config={}).save_pretrained(new_folder)"
WAYS_BACK = {
    "bitsandbytes": "AutoModelForCausalLM.from_pretrained(folder).dequantize().save_pretrained(new_folder)",
    "fp8": UNPACK.format("FineGrainedFP8Config(dequantize=True)"),
    "mxfp4": UNPACK.format("Mxfp4Config(dequantize=True)"),
}
"""How transformers itself turns weights of a method into plain ones; for the other methods it cannot."""


def refuse_quantised(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose weights are packed: they can be neither extended nor compared.

    Args:
        name: of the source.
        config: its config.json.

    Raises:
        CheckpointError: it is quantised; the sentence says how to come by plain weights.
    """
    found = config.get("quantization_config") or config.get("compression_config")
    if not found or "long_attention" in config:  # a converted model that was quantised afterwards can be looked at
        return
    method = _method(found)
    saved = config.get("architectures")
    own = saved[0] if isinstance(saved, list) and saved and isinstance(saved[0], str) else "AutoModel"
    way = WAYS_BACK.get(method, "").replace("AutoModelForCausalLM", own)
    instead = "convert the checkpoint that it was quantised from, and quantise the result"
    raise CheckpointError(f"{name!r} holds quantised weights ({method}): {instead}" + (f"; or unpack it first with {way}." if way else "."))


def _method(found: Any) -> str:
    """ "gptq", "bitsandbytes", …; old configs name bitsandbytes by its own switches only."""
    if not isinstance(found, Mapping):
        return "an unnamed method"
    if found.get("load_in_4bit") or found.get("load_in_8bit"):
        return "bitsandbytes"
    return str(found.get("quant_method") or "an unnamed method")
