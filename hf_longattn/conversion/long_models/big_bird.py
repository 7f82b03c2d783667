"""transformers' BigBird and BigBird-Pegasus (Zaheer et al. 2020) become Long models.

Layers, heads and tensors stay the same. The attention of BigBird, and of BigBird-Pegasus' encoder, is the mechanism `bigbird` with
``random_pattern="hf_eval"`` and ``blocks_over="input"``. With the latter, outputs of a text depend on the padding of its batch, as in
transformers; with ``blocks_over="text"``, outputs are transformers' for the text without padding.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...configuration import LongAttentionConfig
from ...errors import CheckpointError
from .base import CheckpointConverter, register_checkpoint_converter

QUESTION = 16
"""Position of the separator in the compared texts."""


class BlockSparseConverter(CheckpointConverter):
    """A BigBird of any kind."""

    takes_globals = False

    def config_values(self, config: Any) -> dict[str, Any]:
        return {name: value for name, value in {**config.to_dict(), **self._settings(config)}.items() if name != "long_attention"}

    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        return LongAttentionConfig.from_dict(self._settings(config)["long_attention"])

    def _settings(self, config: Any) -> dict[str, Any]:
        from ...families import FAMILIES

        settings: dict[str, Any] = FAMILIES[self.family].config_class.equivalent_settings(config.to_dict())
        return settings


@register_checkpoint_converter("bigbird_pegasus")
class BigBirdPegasusConverter(BlockSparseConverter):
    """BigBirdPegasusModel and all its heads."""

    model_type = family = "bigbird_pegasus"


@register_checkpoint_converter("big_bird")
class BigBirdConverter(BlockSparseConverter):
    """BigBirdModel and all its heads."""

    model_type = family = "big_bird"

    def base_class(self, source_class: str) -> str | None:
        return source_class if source_class.startswith("BigBird") else None

    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        if config.is_decoder and config.attention_type != "original_full":
            raise CheckpointError(
                f"A {source_class} with attention_type={config.attention_type!r} sees future tokens in long texts, so it is not a "
                "decoder; set attention_type to 'original_full' in its config.json to convert it with full causal attention."
            )
        return super().attention(config, source_class)

    def segmented(self, ids: Tensor, real: Tensor, config: Any, source_class: str) -> Tensor:
        """A question and a text. To the head, the tokens before the first separator are the question."""
        if not source_class.endswith("ForQuestionAnswering") or ids.shape[1] <= QUESTION:
            return ids
        ids = ids.clone()
        ids[:, QUESTION] = config.sep_token_id
        return ids
