# Written by `make format` with transformers 5.23.0; do not edit.
"""LongMT5: mT5 (Xue et al. 2021), T5 v1.1 over a hundred languages.
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
from transformers.models.mt5.configuration_mt5 import MT5Config
from transformers.models.mt5.modeling_mt5 import MT5EncoderModel, MT5ForConditionalGeneration, MT5ForQuestionAnswering, MT5ForSequenceClassification, MT5ForTokenClassification, MT5Model, MT5Stack
from typing import Any, Literal
import torch

FAMILY: Family

class LongMT5Config(BucketedConfig, MT5Config):
    """MT5Config with ``long_attention``, ``decoder_long_attention`` and lengths."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, is_encoder_decoder: bool = True, vocab_size: int = 250112, d_model: int = 512, d_kv: int = 64, d_ff: int = 1024, num_layers: int = 8, num_decoder_layers: int | None = None, num_heads: int = 6, relative_attention_num_buckets: int = 32, relative_attention_max_distance: int = 128, dropout_rate: float | int = 0.1, layer_norm_epsilon: float = 1e-06, initializer_factor: float = 1.0, feed_forward_proj: str = 'gated-gelu', use_cache: bool = True, tie_word_embeddings: bool = True, bos_token_id: int | None = None, pad_token_id: int | None = 0, eos_token_id: int | list[int] | None = 1, decoder_start_token_id: int | None = 0, classifier_dropout: float | int = 0.0, is_decoder: bool = False, hidden_size: int = 512, num_attention_heads: int = 6, num_hidden_layers: int = 8, head_dim: int = 64, encoder_layers: int = 8, decoder_layers: int | None = None, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ..., decoder_long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., max_decoder_position_embeddings: int | None = ..., max_position_embeddings: int = ...) -> None: ...

class LongMT5EncoderModel(LongAttentionMixin, MT5EncoderModel):
    """MT5EncoderModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MT5EncoderModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MT5EncoderModel instead.
    """
    config: LongMT5Config
    def __init__(self, config: LongMT5Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutput: ...
    __call__ = forward

class LongMT5ForConditionalGeneration(LongGenerationMixin, LongAttentionMixin, MT5ForConditionalGeneration, GenerationMixin):
    """MT5ForConditionalGeneration with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MT5ForConditionalGeneration, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MT5ForConditionalGeneration instead.
    """
    config: LongMT5Config
    def __init__(self, config: LongMT5Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: tuple[tuple[Tensor]] | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqLMOutput: ...
    __call__ = forward

class LongMT5ForQuestionAnswering(LongAttentionMixin, MT5ForQuestionAnswering):
    """MT5ForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MT5ForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MT5ForQuestionAnswering instead.
    """
    config: LongMT5Config
    def __init__(self, config: LongMT5Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: tuple[tuple[Tensor]] | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqQuestionAnsweringModelOutput: ...
    __call__ = forward

class LongMT5ForSequenceClassification(LongAttentionMixin, MT5ForSequenceClassification):
    """MT5ForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MT5ForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MT5ForSequenceClassification instead.
    """
    config: LongMT5Config
    def __init__(self, config: LongMT5Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: list[Tensor] | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqSequenceClassifierOutput: ...
    __call__ = forward

class LongMT5ForTokenClassification(LongAttentionMixin, MT5ForTokenClassification):
    """MT5ForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MT5ForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MT5ForTokenClassification instead.
    """
    config: LongMT5Config
    def __init__(self, config: LongMT5Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongMT5Model(LongAttentionMixin, MT5Model):
    """MT5Model with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MT5Model, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MT5Model instead.
    """
    config: LongMT5Config
    def __init__(self, config: LongMT5Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: tuple[tuple[Tensor]] | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqModelOutput: ...
    __call__ = forward

class LongMT5Stack(LongStackMixin, MT5Stack):
    """MT5Stack with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MT5Stack, and ``global_attention_mask (B, N)`` of the encoder, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MT5Stack instead.
    """
    config: LongMT5Config
    def __init__(self, config: LongMT5Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Any = None, attention_mask: Any = None, encoder_hidden_states: Any = None, encoder_attention_mask: Any = None, inputs_embeds: Any = None, past_key_values: Any = None, use_cache: Any = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Any: ...
    __call__ = forward

LongMT5Attention: Any
MT5OnTheBackend: Any
