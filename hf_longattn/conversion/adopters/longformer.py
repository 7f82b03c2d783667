"""transformers' Longformer (Beltagy et al. 2020) becomes LongRoberta: RoBERTa's layers and positions, a window, global rows of their own.

The heads that mark global tokens themselves when no ``global_attention_mask`` is given keep doing so, through the mechanism's options:
classification the first token, question answering the question, multiple choice the answer.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ...configuration import LongAttentionConfig
from .base import Adopter, Move, layer_options

NOT_ROBERTAS = ("attention_window", "attention_mode", "attention_dilation", "autoregressive", "ignore_attention_mask", "onnx_export")
"""Settings of the source's own attention; the old ones were never used by transformers."""
GLOBAL_PROJECTION = re.compile(r"\.attention\.self\.(query|key|value)_global\.")
QUESTION = 16
"""Tokens before the first separator in a text to compare on."""


class LongformerAdopter(Adopter):
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

    def move(self, name: str, config: Any) -> Move:
        name = re.sub(r"^longformer\.", "roberta.", name)
        return Move(GLOBAL_PROJECTION.sub(r".attention.self.long_attention.separate.\1.", name))

    def segmented(self, ids: Tensor, real: Tensor, config: Any, source_class: str) -> Tensor:
        """A question and a text, as the tokenizer puts them: exactly three separators, two of them between the segments."""
        if not source_class.endswith(("ForQuestionAnswering", "ForMultipleChoice")) or ids.shape[1] < 2 * QUESTION:
            return ids
        ids = ids.masked_fill(ids == config.sep_token_id, config.bos_token_id)
        for row, count in enumerate(real.sum(-1).tolist()):
            ids[row, [QUESTION, QUESTION + 1, count - 1]] = config.sep_token_id
        return ids


ADOPTER = LongformerAdopter()
