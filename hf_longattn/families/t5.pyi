# Written by `make format` with transformers 5.23.0; do not edit.
"""LongAttentionT5: T5, T5 v1.1 and FLAN-T5 (Raffel et al. 2020), an encoder and a decoder with relative positions on the scores, which take
any mechanism over scores. transformers' LongT5 has its own classes, of other names.
"""

from ..configuration import LongAttentionConfig
from ..memory import SegmentMemory
from ..modeling.attach.t5_attention import BucketedConfig
from ..modeling.family.definition import Family
from ..modeling.mixin import LongAttentionMixin, LongGenerationMixin, LongStackMixin
from collections.abc import Mapping
from torch import Tensor
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput, Seq2SeqQuestionAnsweringModelOutput, Seq2SeqSequenceClassifierOutput, TokenClassifierOutput
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel, T5ForConditionalGeneration, T5ForQuestionAnswering, T5ForSequenceClassification, T5ForTokenClassification, T5Model, T5Stack
from typing import Any, Literal
import torch

FAMILY: Family

class LongAttentionT5Config(BucketedConfig, T5Config):
    """T5Config with ``long_attention``, ``decoder_long_attention`` and lengths."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, is_encoder_decoder: bool = True, vocab_size: int = 32128, d_model: int = 512, d_kv: int = 64, d_ff: int = 2048, num_layers: int = 6, num_decoder_layers: int | None = None, num_heads: int = 8, relative_attention_num_buckets: int = 32, relative_attention_max_distance: int = 128, dropout_rate: float | int = 0.1, layer_norm_epsilon: float = 1e-06, initializer_factor: float = 1.0, feed_forward_proj: str = 'relu', use_cache: bool = True, pad_token_id: int | None = 0, eos_token_id: int | list[int] | None = 1, classifier_dropout: float | int = 0.0, is_decoder: bool = False, hidden_size: int = 512, num_attention_heads: int = 8, num_hidden_layers: int = 6, head_dim: int = 64, encoder_layers: int = 6, decoder_layers: int | None = None, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ..., decoder_long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., max_decoder_position_embeddings: int | None = ..., max_position_embeddings: int = ...) -> None: ...

class LongAttentionT5EncoderModel(LongAttentionMixin, T5EncoderModel):
    """T5EncoderModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of T5EncoderModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of T5EncoderModel instead.
    """
    config: LongAttentionT5Config
    def __init__(self, config: LongAttentionT5Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutput: ...
    __call__ = forward

class LongAttentionT5ForConditionalGeneration(LongGenerationMixin, LongAttentionMixin, T5ForConditionalGeneration, GenerationMixin):
    """T5ForConditionalGeneration with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of T5ForConditionalGeneration, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of T5ForConditionalGeneration instead.
    """
    config: LongAttentionT5Config
    def __init__(self, config: LongAttentionT5Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: tuple[tuple[Tensor]] | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqLMOutput: ...
    __call__ = forward

class LongAttentionT5ForQuestionAnswering(LongAttentionMixin, T5ForQuestionAnswering):
    """T5ForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of T5ForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of T5ForQuestionAnswering instead.
    """
    config: LongAttentionT5Config
    def __init__(self, config: LongAttentionT5Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: tuple[tuple[Tensor]] | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqQuestionAnsweringModelOutput: ...
    __call__ = forward

class LongAttentionT5ForSequenceClassification(LongAttentionMixin, T5ForSequenceClassification):
    """T5ForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of T5ForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of T5ForSequenceClassification instead.
    """
    config: LongAttentionT5Config
    def __init__(self, config: LongAttentionT5Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqSequenceClassifierOutput: ...
    __call__ = forward

class LongAttentionT5ForTokenClassification(LongAttentionMixin, T5ForTokenClassification):
    """T5ForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of T5ForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of T5ForTokenClassification instead.
    """
    config: LongAttentionT5Config
    def __init__(self, config: LongAttentionT5Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongAttentionT5Model(LongAttentionMixin, T5Model):
    """T5Model with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of T5Model, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of T5Model instead.
    """
    config: LongAttentionT5Config
    def __init__(self, config: LongAttentionT5Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: tuple[tuple[Tensor]] | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqModelOutput: ...
    __call__ = forward

class LongAttentionT5Stack(LongStackMixin, T5Stack):
    """T5Stack with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of T5Stack, and ``global_attention_mask (B, N)`` of the encoder, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of T5Stack instead.
    """
    config: LongAttentionT5Config
    def __init__(self, config: LongAttentionT5Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Any = None, attention_mask: Any = None, encoder_hidden_states: Any = None, encoder_attention_mask: Any = None, inputs_embeds: Any = None, past_key_values: Any = None, use_cache: Any = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Any: ...
    __call__ = forward

LongT5Attention: Any
T5OnTheBackend: Any
