"""RoBERTa checkpoints that carry Longformer's global projections, as made from RoBERTa by replacing its self-attention in place.

They are saved under RobertaConfig (model_type "roberta") with a longer position table and, mostly, ``attention_window`` in the config;
what tells them from a plain RoBERTa are the tensors ``query_global``, ``key_global`` and ``value_global``. transformers' Longformer
computes what they mean, so they are compared with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...configuration import LongAttentionConfig
from ..sources.base import Source
from .base import Probe, layer_options
from .longformer import GLOBAL_PROJECTION, LongformerAdopter

if TYPE_CHECKING:
    from ..text import VerificationText

WINDOW = 512
"""Where the config does not name one: the window of Longformer's own checkpoints."""


class LongformerRobertaAdopter(LongformerAdopter):
    """A RoBERTa with Longformer's self-attention; no head marks global tokens itself."""

    def recognises(self, source: Source) -> bool:
        return source.config.get("model_type") == "roberta" and any(GLOBAL_PROJECTION.search(name) for name in source.tensors)

    def read_config(self, values: dict[str, Any]) -> Any:
        return super().read_config({"attention_window": WINDOW, "sep_token_id": values.get("eos_token_id", 2), **values})

    def base_class(self, source_class: str) -> str | None:
        for own in ("RobertaLong", "Roberta"):
            if source_class.startswith(own):
                return source_class.replace(own, "Roberta", 1)
        return None

    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        return layer_options("longformer", "window", config.attention_window, global_tokens=(), separate_global=True)

    def source_model(self, config: Any, source_class: str) -> tuple[type[Any], dict[str, Any]]:
        import transformers

        base = self.base_class(source_class) or "RobertaModel"
        model_class = getattr(transformers, base.replace("Roberta", "Longformer", 1))
        return model_class, {"config": config, "key_mapping": {r"^roberta\.": "longformer."}}

    def probes(self, config: Any, source_class: str, text: VerificationText, length: int) -> list[Probe]:
        """Always with a global mask: without one, Longformer's heads would mark tokens that these models do not."""
        found = []
        for probe in super().probes(config, source_class, text, length):
            none = torch.zeros_like(probe.inputs["input_ids"])
            found.append(Probe(probe.name, {"global_attention_mask": none, **probe.inputs}, probe.real))
        return found


ADOPTER = LongformerRobertaAdopter()
