# Written by `make format` with transformers 5.23.0; do not edit.
"""LongEuroBert: EuroBERT (Boizard et al. 2025), an encoder with Llama's layers: grouped key/value heads, rotary positions.
"""

from ..configuration import LongAttentionConfig
from ..memory import SegmentMemory
from ..modeling.family.config import LongEncoderConfig
from ..modeling.family.definition import Family
from ..modeling.mixin import LongAttentionMixin, LongBaseModelMixin
from collections.abc import Mapping
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.models.eurobert.configuration_eurobert import EuroBertConfig
from transformers.models.eurobert.modeling_eurobert import EuroBertForMaskedLM, EuroBertForSequenceClassification, EuroBertForTokenClassification, EuroBertModel
from typing import Any, Literal
import torch

FAMILY: Family

class LongEuroBertConfig(LongEncoderConfig, EuroBertConfig):
    """EuroBertConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 128256, hidden_size: int = 768, intermediate_size: int = 3072, num_hidden_layers: int = 12, num_attention_heads: int = 12, num_key_value_heads: int | None = None, hidden_act: str = 'silu', max_position_embeddings: int = 8192, initializer_range: float = 0.02, rms_norm_eps: float = 1e-05, use_cache: bool = True, pad_token_id: int | None = 128001, bos_token_id: int | None = 128000, eos_token_id: int | list[int] | None = 128001, pretraining_tp: int = 1, tie_word_embeddings: bool = False, rope_parameters: dict[str, Any] | dict[str, Any] | None = None, attention_bias: bool = False, attention_dropout: int | float = 0.0, mlp_bias: bool = False, head_dim: int | None = None, mask_token_id: int = 128002, classifier_pooling: str = 'late', long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongEuroBertForMaskedLM(LongAttentionMixin, EuroBertForMaskedLM):
    """EuroBertForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of EuroBertForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of EuroBertForMaskedLM instead.
    """
    config: LongEuroBertConfig
    def __init__(self, config: LongEuroBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongEuroBertForSequenceClassification(LongAttentionMixin, EuroBertForSequenceClassification):
    """EuroBertForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of EuroBertForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of EuroBertForSequenceClassification instead.
    """
    config: LongEuroBertConfig
    def __init__(self, config: LongEuroBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongEuroBertForTokenClassification(LongAttentionMixin, EuroBertForTokenClassification):
    """EuroBertForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of EuroBertForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of EuroBertForTokenClassification instead.
    """
    config: LongEuroBertConfig
    def __init__(self, config: LongEuroBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongEuroBertModel(LongBaseModelMixin, EuroBertModel):
    """EuroBertModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of EuroBertModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of EuroBertModel instead.
    """
    config: LongEuroBertConfig
    def __init__(self, config: LongEuroBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutput: ...
    __call__ = forward
