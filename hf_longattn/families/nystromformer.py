"""LongNystromformer: Nyströmformer (Xiong et al. 2021), with its attention on transformers' AttentionInterface, so that it takes any
mechanism without global tokens. The position table starts with two rows that are not positions. ``max_position_embeddings`` excludes them.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.models.nystromformer.configuration_nystromformer import NystromformerConfig
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

from ..errors import CheckpointError
from ..modeling.attach.custom_attention import OnTheInterface, attend_by_config, split_heads
from ..modeling.classes import Family
from ..modeling.family.config import LongEncoderConfig
from ..modeling.family.definition import PositionTable


class LongNystromformerConfig(LongEncoderConfig, NystromformerConfig):
    """NystromformerConfig with ``long_attention``; by default ``nystrom`` with options from the config (:func:`nystrom_of`)."""

    model_type = "long_nystromformer"

    def _attention_without_choice(self) -> dict[str, Any]:
        return nystrom_of(self)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the config, as in every Long config.

        Raises:
            CheckpointError: the checkpoint is transformers' Nyströmformer, whose convolutions have other names.
        """
        values, kwargs = super().get_config_dict(*args, **kwargs)
        if "long_attention" not in values:
            raise CheckpointError(
                f"{str(args[0])!r} is a Nyströmformer of transformers, whose convolutions have other names; "
                "convert it with `longattn convert SRC DST` and load DST."
            )
        return values, kwargs


def nystrom_of(config: Any) -> dict[str, Any]:
    """The mechanism that computes the same as transformers' Nyströmformer with this config.

    That model has landmarks unless ``num_landmarks`` equals ``segment_means_seq_len``. With landmarks, it takes only texts of
    ``segment_means_seq_len`` tokens and no padding mask. Without, it takes texts of any length, and its convolution includes padding.

    Raises:
        CheckpointError: transformers cannot run a model with this config.
    """
    exact = config.num_landmarks == config.segment_means_seq_len
    if not exact and config.segment_means_seq_len % config.num_landmarks:
        raise CheckpointError(
            f"A Nyströmformer with {config.num_landmarks} landmarks for {config.segment_means_seq_len} tokens does not run in "
            "transformers, which cuts equal segments; set segment_means_seq_len in its config.json to a multiple of num_landmarks."
        )
    if config.inv_coeff_init_option:
        raise CheckpointError(
            "A Nyströmformer with inv_coeff_init_option=true does not run in transformers; set it to false in its config.json, "
            "and choose the option inv_coeff_init_option=exact of mechanism 'nystrom'."
        )
    return {
        "mechanism": "nystrom",
        "num_landmarks": config.max_position_embeddings if exact else config.num_landmarks,
        "conv_kernel": config.conv_kernel_size,
        "inv_coeff_init_option": "original",
        "landmarks_over": "input" if exact else "text",
    }


class LongNystromformerSelfAttention(NystromformerSelfAttention):
    """The projections of NystromformerSelfAttention with the attention function that the config names. The mechanism, not this module,
    convolves the values.
    """

    config: Any
    is_causal: bool

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False, **kwargs: Any
    ) -> tuple[Tensor | None, ...]:
        query, key, value = (split_heads(self, projection(hidden_states)) for projection in (self.query, self.key, self.value))
        output, weights = attend_by_config(
            self, eager_attention_forward, query, key, value, attention_mask, output_attentions=output_attentions, **kwargs
        )
        return (output, weights) if output_attentions else (output,)


class NystromformerOnTheInterface(OnTheInterface):
    """Replaces the base's attention by :class:`LongNystromformerSelfAttention`."""

    _no_split_modules: ClassVar[list[str]] = ["NystromformerLayer"]
    hands_globals_down: ClassVar[bool] = False
    replaced = {NystromformerSelfAttention: LongNystromformerSelfAttention}

    def adapt_module(self, name: str, module: Any) -> None:
        module.is_causal = False
        if module.conv_kernel_size is not None:
            del module.conv


FAMILY = Family(
    LongNystromformerConfig,
    position_tables=(PositionTable(r"position_embeddings\.weight$", offset=2, counted=False),),
    mixin=NystromformerOnTheInterface,
)
