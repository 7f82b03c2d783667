# Written by `make format` with transformers 5.23.0; do not edit.
"""LongModernBert: ModernBERT (Warner et al. 2024), rotary positions (``rope_parameters`` of its global and of its local layers).

Two of three layers are local: they see ``local_attention`` tokens around them, and stay so
(:mod:`hf_longattn.modeling.family.sliding_window`). Without ``long_attention`` the others attend to everything, and all
is as in ModernBERT.
"""

from ..configuration import LongAttentionConfig
from ..memory import SegmentMemory
from ..modeling.family.config import LongEncoderConfig
from ..modeling.family.definition import Family
from ..modeling.mixin import LongAttentionMixin, LongBaseModelMixin
from collections.abc import Mapping
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, MultipleChoiceModelOutput, QuestionAnsweringModelOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.models.modernbert.configuration_modernbert import ModernBertConfig
from transformers.models.modernbert.modeling_modernbert import ModernBertForMaskedLM, ModernBertForMultipleChoice, ModernBertForQuestionAnswering, ModernBertForSequenceClassification, ModernBertForTokenClassification, ModernBertModel
from typing import Any, Literal
import torch

FAMILY: Family

class LongModernBertConfig(LongEncoderConfig, ModernBertConfig):
    """ModernBertConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 50368, hidden_size: int = 768, intermediate_size: int = 1152, num_hidden_layers: int = 22, num_attention_heads: int = 12, hidden_activation: str = 'gelu', max_position_embeddings: int = 8192, initializer_range: float = 0.02, initializer_cutoff_factor: float = 2.0, norm_eps: float = 1e-05, norm_bias: bool = False, pad_token_id: int | None = 50283, eos_token_id: int | list[int] | None = 50282, bos_token_id: int | None = 50281, cls_token_id: int | None = 50281, sep_token_id: int | None = 50282, attention_bias: bool = False, attention_dropout: float | int = 0.0, layer_types: list[str] | None = None, rope_parameters: dict[Literal['full_attention', 'sliding_attention'], dict[str, Any]] | None = None, local_attention: int = 128, embedding_dropout: float | int = 0.0, mlp_bias: bool = False, mlp_dropout: float | int = 0.0, decoder_bias: bool = True, classifier_pooling: Literal['cls', 'mean'] = 'cls', classifier_dropout: float | int = 0.0, classifier_bias: bool = False, classifier_activation: str = 'gelu', deterministic_flash_attn: bool = False, sparse_prediction: bool = False, sparse_pred_ignore_index: int = -100, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongModernBertForMaskedLM(LongAttentionMixin, ModernBertForMaskedLM):
    """ModernBertForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ModernBertForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ModernBertForMaskedLM instead.
    """
    config: LongModernBertConfig
    def __init__(self, config: LongModernBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongModernBertForMultipleChoice(LongAttentionMixin, ModernBertForMultipleChoice):
    """ModernBertForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ModernBertForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ModernBertForMultipleChoice instead.
    """
    config: LongModernBertConfig
    def __init__(self, config: LongModernBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> MultipleChoiceModelOutput: ...
    __call__ = forward

class LongModernBertForQuestionAnswering(LongAttentionMixin, ModernBertForQuestionAnswering):
    """ModernBertForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ModernBertForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ModernBertForQuestionAnswering instead.
    """
    config: LongModernBertConfig
    def __init__(self, config: LongModernBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongModernBertForSequenceClassification(LongAttentionMixin, ModernBertForSequenceClassification):
    """ModernBertForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ModernBertForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ModernBertForSequenceClassification instead.
    """
    config: LongModernBertConfig
    def __init__(self, config: LongModernBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongModernBertForTokenClassification(LongAttentionMixin, ModernBertForTokenClassification):
    """ModernBertForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ModernBertForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ModernBertForTokenClassification instead.
    """
    config: LongModernBertConfig
    def __init__(self, config: LongModernBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongModernBertModel(LongBaseModelMixin, ModernBertModel):
    """ModernBertModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of ModernBertModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of ModernBertModel instead.
    """
    config: LongModernBertConfig
    def __init__(self, config: LongModernBertConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutput: ...
    __call__ = forward
