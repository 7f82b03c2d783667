"""The Long model of the case's base with its mechanism."""

from __future__ import annotations

from typing import Any

from ..implementations import register_implementation
from .inputs import ModelImplementation, ModelInputs


@register_implementation("model", "longattn")
class LongEncoder(ModelImplementation):
    summary = "LongBertModel (or that of another base) of this package"

    def build(self, inputs: ModelInputs) -> Any:
        config = inputs.family.config_class(**inputs.sizes(), long_attention={"mechanism": inputs.case.mechanism, **inputs.case.options})
        long_class = inputs.family.long_class_of(type(inputs.plain))
        assert long_class is not None, "the plain model is the family's base model"
        model = long_class(config)
        model.load_state_dict(inputs.plain.state_dict(), strict=False)  # a mechanism's own parameters keep their start values
        return model

    def arguments(self) -> dict[str, Any]:
        return {} if self.inputs.global_attention_mask is None else {"global_attention_mask": self.inputs.global_attention_mask}
