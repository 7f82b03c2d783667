"""T5 with one window in all layers of its encoder becomes transformers' LongT5. Its attention is local; the decoder has full attention."""

from __future__ import annotations

import re
from typing import Any

from ...mechanisms.window import Window
from ..long_models.base import TensorRename
from .base import LongModel, NativeTwin, band_refusal, decoder_refusal, one_width, register_twin

ENCODER = re.compile(r"^(encoder\..*)\.SelfAttention\.")


@register_twin("longt5")
class LongT5(NativeTwin):
    """LongT5, for long models of T5 and mT5, which have the same tensor names."""

    model_type = "longt5"
    families = frozenset(("t5", "mt5"))
    computes = (Window,)

    def refusal(self, model: LongModel) -> str | None:
        reason, lookbacks = band_refusal(model)
        reason = reason or (decoder_refusal(model) if model.two_stacks else None) or one_width(lookbacks)[0]
        if reason is None and not all(lookbacks):
            layer = next(index for index, back in enumerate(lookbacks) if not back)
            kind = "full attention" if lookbacks[layer] is None else "a window of one token"
            return f"Layer {layer} has {kind}, and all encoder layers of a LongT5 have one window of three tokens or more."
        return reason

    def config_values(self, model: LongModel) -> dict[str, Any]:
        scaled = getattr(model.config, "scale_decoder_outputs", False)  # mT5 never does
        values = {**model.values(), "scale_decoder_outputs": scaled, "tie_word_embeddings": scaled}
        return {**values, "encoder_attention_type": "local", "local_radius": band_refusal(model)[1][0], "n_positions": model.length}

    def rename(self, name: str, model: LongModel) -> tuple[TensorRename, ...]:
        return (TensorRename(ENCODER.sub(r"\1.LocalSelfAttention.", name)),)
