# Written by `make format` with transformers 5.23.0; do not edit.
"""LongDebertaV2: DeBERTa-v2 and -v3 (He et al. 2021), whose disentangled attention becomes terms of a mechanism's scores: it takes any
mechanism over scores that has no global tokens.

Relative positions keep the buckets of the short model: distances beyond its length have the last one. With ``position_biased_input`` there
is also a position table.
"""

from ..configuration import LongAttentionConfig
from ..memory import SegmentMemory
from ..modeling.family.config import LongEncoderConfig
from ..modeling.family.definition import Family
from ..modeling.mixin import LongAttentionMixin, LongBaseModelMixin
from collections.abc import Mapping
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, MultipleChoiceModelOutput, QuestionAnsweringModelOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.models.deberta_v2.configuration_deberta_v2 import DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2ForMaskedLM, DebertaV2ForMultipleChoice, DebertaV2ForQuestionAnswering, DebertaV2ForSequenceClassification, DebertaV2ForTokenClassification, DebertaV2Model
from typing import Any, Literal
import torch

FAMILY: Family

class LongDebertaV2Config(LongEncoderConfig, DebertaV2Config):
    """DebertaV2Config with ``long_attention``; the mechanism is ``window`` unless another one is given.

    ``max_relative_positions`` is written to the config, since its default, ``max_position_embeddings``, grows.
    """
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 128100, hidden_size: int = 1536, num_hidden_layers: int = 24, num_attention_heads: int = 24, intermediate_size: int = 6144, hidden_act: str = 'gelu', hidden_dropout_prob: float | int = 0.1, attention_probs_dropout_prob: float | int = 0.1, max_position_embeddings: int = 512, type_vocab_size: int = 0, initializer_range: float = 0.02, layer_norm_eps: float = 1e-07, relative_attention: bool = False, max_relative_positions: int = -1, pad_token_id: int | None = 0, bos_token_id: int | None = None, eos_token_id: int | list[int] | None = None, position_biased_input: bool = True, pos_att_type: str | list[str] | None = None, pooler_dropout: float | int = 0.0, pooler_hidden_act: str = 'gelu', legacy: bool = True, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongDebertaV2ForMaskedLM(LongAttentionMixin, DebertaV2ForMaskedLM):
    """DebertaV2ForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DebertaV2ForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DebertaV2ForMaskedLM instead.
    """
    config: LongDebertaV2Config
    def __init__(self, config: LongDebertaV2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongDebertaV2ForMultipleChoice(LongAttentionMixin, DebertaV2ForMultipleChoice):
    """DebertaV2ForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DebertaV2ForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DebertaV2ForMultipleChoice instead.
    """
    config: LongDebertaV2Config
    def __init__(self, config: LongDebertaV2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> MultipleChoiceModelOutput: ...
    __call__ = forward

class LongDebertaV2ForQuestionAnswering(LongAttentionMixin, DebertaV2ForQuestionAnswering):
    """DebertaV2ForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DebertaV2ForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DebertaV2ForQuestionAnswering instead.
    """
    config: LongDebertaV2Config
    def __init__(self, config: LongDebertaV2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongDebertaV2ForSequenceClassification(LongAttentionMixin, DebertaV2ForSequenceClassification):
    """DebertaV2ForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DebertaV2ForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DebertaV2ForSequenceClassification instead.
    """
    config: LongDebertaV2Config
    def __init__(self, config: LongDebertaV2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongDebertaV2ForTokenClassification(LongAttentionMixin, DebertaV2ForTokenClassification):
    """DebertaV2ForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DebertaV2ForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DebertaV2ForTokenClassification instead.
    """
    config: LongDebertaV2Config
    def __init__(self, config: LongDebertaV2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongDebertaV2Model(LongBaseModelMixin, DebertaV2Model):
    """DebertaV2Model with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of DebertaV2Model, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of DebertaV2Model instead.
    """
    config: LongDebertaV2Config
    def __init__(self, config: LongDebertaV2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> BaseModelOutput: ...
    __call__ = forward

DebertaV2OnTheBackend: Any
Disentangled: Any
LongDebertaV2Encoder: Any
LongDisentangledSelfAttention: Any
