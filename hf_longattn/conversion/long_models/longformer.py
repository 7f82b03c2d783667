"""transformers' Longformer (Beltagy et al. 2020) becomes LongRoberta: RoBERTa's layers and positions, a window, separate projections for
global tokens.

Some heads choose global tokens if no ``global_attention_mask`` is given; the mechanism's options keep this: the first token for
classification, the question for question answering, the answer for multiple choice.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from ...configuration import LongAttentionConfig
from ...inputs.text import VerificationText
from ..sources import Source
from .base import CheckpointConverter, Probe, TensorRename, layer_options, register_checkpoint_converter

NOT_ROBERTAS = ("attention_window", "attention_mode", "attention_dilation", "autoregressive", "ignore_attention_mask", "onnx_export")
"""Settings of the source's attention; some were never used by transformers."""
GLOBAL_PROJECTION = re.compile(r"\.attention\.self\.(query|key|value)_global\.")
QUESTION = 16
"""Position of the first separator in the compared texts, or a quarter of a shorter text."""


@register_checkpoint_converter("longformer")
class LongformerConverter(CheckpointConverter):
    """LongformerModel and all its heads."""

    model_type = "longformer"
    family = "roberta"

    def base_class(self, source_class: str) -> str | None:
        return source_class.replace("Longformer", "Roberta", 1) if source_class.startswith("Longformer") else None

    def config_values(self, config: Any) -> dict[str, Any]:
        windows = config.attention_window
        if not isinstance(windows, int) and len(windows) != config.num_hidden_layers:
            raise ValueError(f"attention_window names {len(windows)} layers, but the model has {config.num_hidden_layers}")
        return {name: value for name, value in config.to_dict().items() if name not in NOT_ROBERTAS}

    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        options: dict[str, Any] = {"global_tokens": (), "separate_global": True}
        if source_class.endswith("ForSequenceClassification"):
            options["global_tokens"] = (0,)
        elif source_class.endswith("ForQuestionAnswering"):
            options |= {"global_first_segment": True, "separator_token_id": config.sep_token_id}
        elif source_class.endswith("ForMultipleChoice"):
            options |= {"global_second_segment": True, "separator_token_id": config.sep_token_id}
        return layer_options("longformer", "window", config.attention_window, **options)

    def rename(self, name: str, config: Any) -> TensorRename:
        name = re.sub(r"^longformer\.", "roberta.", name)
        return TensorRename(GLOBAL_PROJECTION.sub(r".attention.self.long_attention.separate.\1.", name))

    def segmented(self, ids: Tensor, real: Tensor, config: Any, source_class: str) -> Tensor:
        """A question and a text as the tokenizer formats them. Exactly three separators, two of them between the segments."""
        question = min(QUESTION, ids.shape[1] // 4)
        if not source_class.endswith(("ForQuestionAnswering", "ForMultipleChoice")) or not question:
            return ids
        ids = ids.masked_fill(ids == config.sep_token_id, config.bos_token_id)
        for row, count in enumerate(real.sum(-1).tolist()):
            ids[row, [question, question + 1, count - 1]] = config.sep_token_id
        return ids


WINDOW = 512
"""Window of Longformer's checkpoints, used if the config has none."""


@register_checkpoint_converter("longformer_roberta")
class LongformerRobertaConverter(LongformerConverter):
    """A RoBERTa with Longformer's self-attention; no head marks global tokens itself."""

    def recognises(self, source: Source) -> bool:
        return source.config.get("model_type") == "roberta" and any(GLOBAL_PROJECTION.search(name) for name in source.tensors)

    def read_config(self, values: dict[str, Any]) -> Any:
        return super().read_config({"attention_window": WINDOW, "sep_token_id": values.get("eos_token_id", 2), **values})

    def base_class(self, source_class: str) -> str | None:
        for prefix in ("RobertaLong", "Roberta"):
            if source_class.startswith(prefix):
                return source_class.replace(prefix, "Roberta", 1)
        return None

    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        return layer_options("longformer", "window", config.attention_window, global_tokens=(), separate_global=True)

    def source_model(self, config: Any, source_class: str) -> tuple[type[Any], dict[str, Any]]:
        import transformers

        base = self.base_class(source_class) or "RobertaModel"
        model_class = getattr(transformers, base.replace("Roberta", "Longformer", 1))
        return model_class, {"config": config, "key_mapping": {r"^roberta\.": "longformer."}}

    def probes(self, config: Any, source_class: str, text: VerificationText, length: int) -> list[Probe]:
        """Always with a global mask. Without one, Longformer's heads would mark tokens that these models do not."""
        probes_with_mask = []
        for probe in super().probes(config, source_class, text, length):
            none = torch.zeros_like(probe.inputs["input_ids"])
            probes_with_mask.append(Probe(probe.name, {"global_attention_mask": none, **probe.inputs}, probe.real))
        return probes_with_mask
