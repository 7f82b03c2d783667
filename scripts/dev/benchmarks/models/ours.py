"""LongBert with the case's mechanism."""

from __future__ import annotations

from typing import Any

from hf_longattn.families import LongBertConfig, LongBertModel

from ..implementations import register_implementation
from .inputs import ModelImplementation, ModelInputs


@register_implementation("model", "longattn")
class LongBert(ModelImplementation):
    summary = "LongBertModel of this package"

    def build(self, inputs: ModelInputs) -> Any:
        config = LongBertConfig(**inputs.sizes(), long_attention={"mechanism": inputs.case.mechanism, **inputs.case.options})
        model = LongBertModel(config, add_pooling_layer=False)
        model.load_state_dict(inputs.bert.state_dict(), strict=False)  # a mechanism's own parameters keep their start values
        return model

    def arguments(self) -> dict[str, Any]:
        return {} if self.inputs.global_attention_mask is None else {"global_attention_mask": self.inputs.global_attention_mask}
