# Written by `make format` with transformers 5.23.0; do not edit.
"""LongMPNet: MPNet (Song et al. 2020), which takes any mechanism over scores that has no global tokens.

Besides a position table, which starts with two rows that are not positions, all layers share one table of T5's relative positions. All
large distances have its last bucket, so that it needs no extension.
"""

from ..configuration import LongAttentionConfig
from ..memory import SegmentMemory
from ..modeling.family.config import LongEncoderConfig
from ..modeling.family.definition import Family
from ..modeling.mixin import LongAttentionMixin, LongBaseModelMixin
from collections.abc import Mapping
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, MultipleChoiceModelOutput, QuestionAnsweringModelOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.models.mpnet.configuration_mpnet import MPNetConfig
from transformers.models.mpnet.modeling_mpnet import MPNetForMaskedLM, MPNetForMultipleChoice, MPNetForQuestionAnswering, MPNetForSequenceClassification, MPNetForTokenClassification, MPNetModel
from typing import Any, Literal
import torch

FAMILY: Family

class LongMPNetConfig(LongEncoderConfig, MPNetConfig):
    """MPNetConfig with ``long_attention``; the mechanism is ``window`` unless another one is given."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 30527, hidden_size: int = 768, num_hidden_layers: int = 12, num_attention_heads: int = 12, intermediate_size: int = 3072, hidden_act: str = 'gelu', hidden_dropout_prob: float | int = 0.1, attention_probs_dropout_prob: float | int = 0.1, max_position_embeddings: int = 512, initializer_range: float = 0.02, layer_norm_eps: float = 1e-12, relative_attention_num_buckets: int = 32, pad_token_id: int | None = 1, bos_token_id: int | None = 0, eos_token_id: int | list[int] | None = 2, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongMPNetForMaskedLM(LongAttentionMixin, MPNetForMaskedLM):
    """MPNetForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MPNetForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MPNetForMaskedLM instead.
    """
    config: LongMPNetConfig
    def __init__(self, config: LongMPNetConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongMPNetForMultipleChoice(LongAttentionMixin, MPNetForMultipleChoice):
    """MPNetForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MPNetForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MPNetForMultipleChoice instead.
    """
    config: LongMPNetConfig
    def __init__(self, config: LongMPNetConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> MultipleChoiceModelOutput: ...
    __call__ = forward

class LongMPNetForQuestionAnswering(LongAttentionMixin, MPNetForQuestionAnswering):
    """MPNetForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MPNetForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MPNetForQuestionAnswering instead.
    """
    config: LongMPNetConfig
    def __init__(self, config: LongMPNetConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongMPNetForSequenceClassification(LongAttentionMixin, MPNetForSequenceClassification):
    """MPNetForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MPNetForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MPNetForSequenceClassification instead.
    """
    config: LongMPNetConfig
    def __init__(self, config: LongMPNetConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongMPNetForTokenClassification(LongAttentionMixin, MPNetForTokenClassification):
    """MPNetForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MPNetForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MPNetForTokenClassification instead.
    """
    config: LongMPNetConfig
    def __init__(self, config: LongMPNetConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongMPNetModel(LongBaseModelMixin, MPNetModel):
    """MPNetModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MPNetModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MPNetModel instead.
    """
    config: LongMPNetConfig
    def __init__(self, config: LongMPNetConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> BaseModelOutputWithPooling: ...
    __call__ = forward

LongMPNetEncoder: Any
LongMPNetSelfAttention: Any
MPNetOnTheBackend: Any
