"""transformers' BigBird (Zaheer et al. 2020) becomes LongBigBird: the same layers, heads and tensors, with the attention on the interface.

Its attention is said by ``random_pattern="hf"`` and ``blocks_over="input"`` of the mechanism `bigbird`. The latter makes a text depend
on the padding of its batch, as it does in transformers; ``blocks_over="text"`` gives every text what transformers gives it alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...configuration import LongAttentionConfig
from ...errors import CheckpointError
from .base import CheckpointConverter, WeightRenaming, register_checkpoint_converter

QUESTION = 16
"""Tokens before the separator in a text to compare on."""


@register_checkpoint_converter("big_bird")
class BigBirdConverter(CheckpointConverter):
    """BigBirdModel and all its heads."""

    model_type = "big_bird"
    family = "big_bird"
    takes_globals = False

    def base_class(self, source_class: str) -> str | None:
        return source_class if source_class.startswith("BigBird") else None

    def config_values(self, config: Any) -> dict[str, Any]:
        values = {**config.to_dict(), **self._adopted(config)}
        del values["long_attention"]
        return values

    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        if config.is_decoder and config.attention_type != "original_full":
            raise CheckpointError(
                f"A {source_class} with attention_type={config.attention_type!r} looks ahead in long texts, so it is no decoder that "
                "could be adopted; set attention_type to 'original_full' in its config.json to adopt it with full causal attention."
            )
        return LongAttentionConfig.from_dict(self._adopted(config)["long_attention"])

    @staticmethod
    def _adopted(config: Any) -> dict[str, Any]:
        from ...families.big_bird import adopted

        return adopted(config.to_dict())

    def rename(self, name: str, config: Any) -> WeightRenaming:
        return WeightRenaming(name)

    def segmented(self, ids: Tensor, real: Tensor, config: Any, source_class: str) -> Tensor:
        """A question and a text: the head takes what stands before the first separator for the question."""
        if not source_class.endswith("ForQuestionAnswering") or ids.shape[1] <= QUESTION:
            return ids
        ids = ids.clone()
        ids[:, QUESTION] = config.sep_token_id
        return ids
