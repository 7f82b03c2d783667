"""The class of a source and the long class that takes its weights: configs, models without storage, mechanisms in them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ...configuration import LongAttentionConfig
from ...errors import CheckpointError, LongAttentionError, in_a_line
from ...families.memory_tokens import MemoryTokens
from ...families.registry import Family
from ...mechanisms import Mechanism
from ...positions import DROPPED, STRATEGIES
from ..adopters import Adopter

__all__ = ["Architecture", "attached_mechanisms", "attached_memory"]

NAMES = ("model_type", "architectures", "transformers_version", "_name_or_path", "auto_map")
"""Fields of a config that say whose it is."""
OWN_FIELDS = (
    "long_attention",
    "decoder_long_attention",
    "position_extension",
    "question_separator_id",
    "max_decoder_position_embeddings",
    "extended_from",
)
"""Fields that only a Long config has."""


@dataclass(frozen=True)
class Architecture:
    """The family of a source and the class of its weights, before and after."""

    family: Family
    source_config: Any  # the family's base config with the source's values
    source_class: str  # "BertForQuestionAnswering"
    long_class: str  # "LongBertForQuestionAnswering"
    adopter: Adopter | None = None  # for a source that is no plain model of the family
    adopted_config: Any = None  # the source's own config then

    def adopted_attention(self) -> LongAttentionConfig | None:
        """The attention that does what an adopted source does; ``None`` for a plain model."""
        return None if self.adopter is None else self.adopter.attention(self.adopted_config, self.source_class)

    @property
    def encoder_decoder(self) -> bool:
        """Whether the source is an encoder and a decoder, and not the decoder of such a base alone."""
        return self.family.two_stacks and not self.long_class.endswith("ForCausalLM")

    @property
    def decoder_reads_text(self) -> bool:
        """Whether the head looks at the decoder's output for every token of the text, so that the decoder is as long as the encoder."""
        return self.encoder_decoder and self.long_class.endswith(("ForQuestionAnswering", "ForSequenceClassification"))

    def long_config(
        self,
        attention: LongAttentionConfig,
        lengths: dict[str, int],
        rope: dict[str, Any] | None,
        rule: str,
        decoder_attention: LongAttentionConfig | None = None,
    ) -> Any:
        """The config of the result: everything of the source's, the attention, and the new positions.

        Args:
            attention, decoder_attention: of the model, and of its decoder beside an encoder.
            lengths: field of the config -> its new value.
            rope: rotary parameters; ``None`` for position tables.
            rule: how position tables are extended.
        """
        values = self.source_config.to_dict()
        for name in NAMES:
            values.pop(name, None)
        if decoder_attention is not None:
            values["decoder_long_attention"] = decoder_attention.to_dict()
        try:
            config = self.family.config_class.from_dict({**values, "long_attention": attention.to_dict()})
        except LongAttentionError:
            raise
        except Exception as error:  # the config classes raise what their validators happen to raise
            raise CheckpointError(f"The source's config does not make a {self.long_class}: {in_a_line(error)}.") from error
        for field, value in lengths.items():
            setattr(config, field, value)
        if rope is None:
            config.position_extension = rule if rule in STRATEGIES else "none" if rule in DROPPED else "tile"
        else:
            config.rope_parameters = dict(rope)
            trained = rope.get("original_max_position_embeddings")
            if trained is not None and hasattr(config, "original_max_position_embeddings"):
                config.original_max_position_embeddings = trained  # Phi-3 has it here as well, and this one is believed
        config.architectures = [self.long_class]
        result = config.to_dict()
        config.extended_from = {
            name: value for name, value in values.items() if name not in (*OWN_FIELDS, "dtype") and result.get(name, ...) != value
        }
        return config

    @cached_property
    def model_class(self) -> type[nn.Module]:
        return self.family.model_class(self.long_class)

    def skeleton(self, config: Any) -> nn.Module:
        """The long model without storage, for its names and shapes.

        Raises:
            CheckpointError: the config contradicts itself, so that no model can be made from it.
        """
        try:
            with torch.device("meta"):
                return self.model_class(config)
        except LongAttentionError:
            raise
        except Exception as error:  # the constructors raise what they happen to raise
            raise CheckpointError(f"The source's config does not make a {self.source_class}: {in_a_line(error)}.") from error


def attached_mechanisms(model: nn.Module) -> dict[str, Mechanism]:
    """Module name -> mechanism, in layer order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Mechanism)}


def attached_memory(model: nn.Module) -> dict[str, MemoryTokens]:
    """Module name -> memory tokens."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MemoryTokens)}
