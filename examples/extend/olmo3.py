"""OLMo 2 with windows becomes OLMo 3, which has the same layers and tensors, and a window in some of them."""

from __future__ import annotations

from typing import Any

from hf_longattn.conversion.twins.base import LongModel, NativeTwin, band_refusal, one_width, register_twin
from hf_longattn.mechanisms.window import Window


@register_twin("olmo3")
class Olmo3(NativeTwin):
    """A window in any layers of an OLMo 2."""

    model_type = "olmo3"
    families = frozenset(("olmo2",))
    computes = (Window,)

    def refusal(self, model: LongModel) -> str | None:
        reason, lookbacks = band_refusal(model)
        return reason or one_width(lookbacks)[0]

    def config_values(self, model: LongModel) -> dict[str, Any]:
        lookbacks = band_refusal(model)[1]
        back = one_width(lookbacks)[1]
        kinds = ["full_attention" if width is None else "sliding_attention" for width in lookbacks]
        rope = model.config.rope_parameters
        return {
            **model.values(),
            "sliding_window": None if back is None else back + 1,  # transformers counts the query
            "layer_types": kinds,
            "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
        }
