"""BART with windows and global tokens in its encoder becomes transformers' LED. The decoder has full attention."""

from __future__ import annotations

import re
from typing import Any

from ...mechanisms.longformer import Longformer
from ...mechanisms.window import Window
from ...modeling.family.sliding_window import band_around
from ..long_models.base import TensorRename
from .base import LongModel, NativeTwin, decoder_refusal, register_twin
from .encoders import with_leading
from .longformer import NO_GLOBALS, globals_refusal, window_refusal

ENCODER = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.")
PROJECTION = {"q": "query", "k": "key", "v": "value"}


@register_twin("led")
class LED(NativeTwin):
    """LED, for long models of BART."""

    model_type = "led"
    families = frozenset(("bart",))
    computes = (Longformer, Window)
    takes_globals = True

    def refusal(self, model: LongModel) -> str | None:
        if not model.two_stacks:
            return f"Layer 0 of a {model.head} is a decoder's, and LED has windows in its encoder only."
        if model.config.scale_embedding:
            return "The embeddings before layer 0 are scaled (scale_embedding=True), and LED's are not."
        reason = window_refusal(model.layers) or decoder_refusal(model)
        widest = max((band_around(mechanism) or 0 for mechanism in model.layers), default=0)
        if reason is None and model.length % widest:
            layer = next(index for index, layer in enumerate(model.layers) if band_around(layer) == widest)
            return (
                f"Layer {layer} has the widest window, {widest}, which does not "
                f"divide the {model.length} positions, and LED pads its input to a multiple of it; convert with another --max-length."
            )
        return reason or globals_refusal(model, model.layers, NO_GLOBALS, self.class_name(model))

    def config_values(self, model: LongModel) -> dict[str, Any]:
        config = model.config
        return {
            **model.values(),
            "max_encoder_position_embeddings": config.max_position_embeddings,
            "max_decoder_position_embeddings": config.max_decoder_position_embeddings,
            "attention_window": [band_around(mechanism) for mechanism in model.layers],
        }

    def rename(self, name: str, model: LongModel) -> tuple[TensorRename, ...]:
        target = re.sub(r"^model\.", "led.", name)
        if target.endswith("embed_positions.weight"):
            return (TensorRename(target, with_leading(2, 0)),)
        match = ENCODER.search(target)
        if match is None:
            return (TensorRename(target),)
        start, rest = target[: match.end()], target[match.end() :]
        if rest.startswith("out_proj."):
            return (TensorRename(start + rest.replace("out_proj.", "output.", 1)),)
        inner = f"{start}longformer_self_attn."
        if rest.startswith("long_attention.separate."):
            kind, last = rest.removeprefix("long_attention.separate.").split(".", 1)
            return (TensorRename(f"{inner}{kind}_global.{last}"),)
        kind, last = PROJECTION[rest[0]], rest.split(".", 1)[1]
        local = TensorRename(f"{inner}{kind}.{last}")
        separate = getattr(model.layers[int(match[1])].options, "separate_global", False)
        return (local,) if separate else (local, TensorRename(f"{inner}{kind}_global.{last}"))

    def note(self, model: LongModel) -> str:
        return "every call must be given the global_attention_mask" if model.masked else ""
