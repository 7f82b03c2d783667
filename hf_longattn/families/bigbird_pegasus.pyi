# Written by `make format` with transformers 5.23.0; do not edit.
"""LongBigBirdPegasus: BigBird-Pegasus (Zaheer et al. 2020, section 4), with its encoder on transformers' AttentionInterface.

Unlike in Pegasus, positions are learned and projections have no bias. A checkpoint of transformers is read as it is and computes what it
does there.
"""

from ..configuration import LongAttentionConfig
from ..memory import SegmentMemory
from ..modeling.family.config import LongEncoderDecoderConfig
from ..modeling.family.definition import Family
from ..modeling.mixin import LongAttentionMixin, LongBaseModelMixin, LongDecoderMixin, LongGenerationMixin
from collections.abc import Mapping
from torch import Tensor
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithCrossAttentions, Seq2SeqLMOutput, Seq2SeqModelOutput, Seq2SeqQuestionAnsweringModelOutput, Seq2SeqSequenceClassifierOutput
from transformers.models.bigbird_pegasus.configuration_bigbird_pegasus import BigBirdPegasusConfig
from transformers.models.bigbird_pegasus.modeling_bigbird_pegasus import BigBirdPegasusDecoder, BigBirdPegasusEncoder, BigBirdPegasusForCausalLM, BigBirdPegasusForConditionalGeneration, BigBirdPegasusForQuestionAnswering, BigBirdPegasusForSequenceClassification, BigBirdPegasusModel
from typing import Any, Literal
import torch

FAMILY: Family

class LongBigBirdPegasusConfig(LongEncoderDecoderConfig, BigBirdPegasusConfig):
    """BigBirdPegasusConfig with ``long_attention`` (``bigbird`` unless another one is given), ``decoder_long_attention`` and
    ``max_decoder_position_embeddings``.

    ``attention_type`` is always ``"original_full"``, the path of transformers' code that leaves the attention to its module.
    ``sparse_attention_dropout`` is the dropout on the encoder's weights; transformers' block-sparse attention has none.
    """
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, is_encoder_decoder: bool = True, vocab_size: int = 96103, max_position_embeddings: int = 4096, encoder_layers: int = 16, encoder_ffn_dim: int = 4096, encoder_attention_heads: int = 16, decoder_layers: int = 16, decoder_ffn_dim: int = 4096, decoder_attention_heads: int = 16, encoder_layerdrop: float | int = 0.0, decoder_layerdrop: float | int = 0.0, use_cache: bool = True, activation_function: str = 'gelu_new', d_model: int = 1024, dropout: float | int = 0.1, attention_dropout: float | int = 0.0, activation_dropout: float | int = 0.0, init_std: float = 0.02, decoder_start_token_id: int = 2, classifier_dropout: float | int = 0.0, scale_embedding: bool = True, pad_token_id: int | None = 0, bos_token_id: int | None = 2, eos_token_id: int | list[int] | None = 1, attention_type: str = 'block_sparse', block_size: int = 64, num_random_blocks: int = 3, use_bias: bool = False, is_decoder: bool = False, tie_word_embeddings: bool = True, num_attention_heads: int = 16, hidden_size: int = 1024, attention_probs_dropout_prob: float | int = 0.0, num_hidden_layers: int = 16, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ..., decoder_long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., max_decoder_position_embeddings: int | None = ...) -> None: ...

class LongBigBirdPegasusForCausalLM(LongGenerationMixin, LongAttentionMixin, BigBirdPegasusForCausalLM, GenerationMixin):
    """BigBirdPegasusForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdPegasusForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdPegasusForCausalLM instead.
    """
    config: LongBigBirdPegasusConfig
    def __init__(self, config: LongBigBirdPegasusConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithCrossAttentions: ...
    __call__ = forward

class LongBigBirdPegasusForConditionalGeneration(LongGenerationMixin, LongAttentionMixin, BigBirdPegasusForConditionalGeneration, GenerationMixin):
    """BigBirdPegasusForConditionalGeneration with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdPegasusForConditionalGeneration, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdPegasusForConditionalGeneration instead.
    """
    config: LongBigBirdPegasusConfig
    def __init__(self, config: LongBigBirdPegasusConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqLMOutput: ...
    __call__ = forward

class LongBigBirdPegasusForQuestionAnswering(LongAttentionMixin, BigBirdPegasusForQuestionAnswering):
    """BigBirdPegasusForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdPegasusForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdPegasusForQuestionAnswering instead.
    """
    config: LongBigBirdPegasusConfig
    def __init__(self, config: LongBigBirdPegasusConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqQuestionAnsweringModelOutput: ...
    __call__ = forward

class LongBigBirdPegasusForSequenceClassification(LongAttentionMixin, BigBirdPegasusForSequenceClassification):
    """BigBirdPegasusForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdPegasusForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdPegasusForSequenceClassification instead.
    """
    config: LongBigBirdPegasusConfig
    def __init__(self, config: LongBigBirdPegasusConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqSequenceClassifierOutput: ...
    __call__ = forward

class LongBigBirdPegasusModel(LongAttentionMixin, BigBirdPegasusModel):
    """BigBirdPegasusModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdPegasusModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdPegasusModel instead.
    """
    config: LongBigBirdPegasusConfig
    def __init__(self, config: LongBigBirdPegasusConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqModelOutput: ...
    __call__ = forward

class LongBigBirdPegasusEncoder(LongBaseModelMixin, BigBirdPegasusEncoder):
    """BigBirdPegasusEncoder with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdPegasusEncoder, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdPegasusEncoder instead.
    """
    config: LongBigBirdPegasusConfig
    def __init__(self, config: LongBigBirdPegasusConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutput: ...
    __call__ = forward

class LongBigBirdPegasusDecoder(LongDecoderMixin, BigBirdPegasusDecoder):
    """BigBirdPegasusDecoder with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of BigBirdPegasusDecoder, and ``global_attention_mask (B, N)`` of the encoder, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of BigBirdPegasusDecoder instead.
    """
    config: LongBigBirdPegasusConfig
    def __init__(self, config: LongBigBirdPegasusConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPastAndCrossAttentions: ...
    __call__ = forward

BigBirdPegasusOnTheInterface: Any
LongBigBirdPegasusSelfAttention: Any
equivalent_encoder_settings: Any
