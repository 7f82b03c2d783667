# Written by `make format` with transformers 5.23.0; do not edit.
"""LongNystromformer: Nyströmformer (Xiong et al. 2021), with its attention on transformers' AttentionInterface, so that it takes any
mechanism without global tokens. Its position table starts with two rows that are not positions, not counted in ``max_position_embeddings``.
"""

from ..configuration import LongAttentionConfig
from ..memory import SegmentMemory
from ..modeling.family.config import LongEncoderConfig
from ..modeling.family.definition import Family
from ..modeling.mixin import LongAttentionMixin, LongBaseModelMixin
from collections.abc import Mapping
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, MaskedLMOutput, MultipleChoiceModelOutput, QuestionAnsweringModelOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.models.nystromformer.configuration_nystromformer import NystromformerConfig
from transformers.models.nystromformer.modeling_nystromformer import NystromformerForMaskedLM, NystromformerForMultipleChoice, NystromformerForQuestionAnswering, NystromformerForSequenceClassification, NystromformerForTokenClassification, NystromformerModel
from typing import Any, Literal
import torch

FAMILY: Family

class LongNystromformerConfig(LongEncoderConfig, NystromformerConfig):
    """NystromformerConfig with ``long_attention``; the mechanism is ``nystrom`` with the config's numbers unless another one is given."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 30000, hidden_size: int = 768, num_hidden_layers: int = 12, num_attention_heads: int = 12, intermediate_size: int = 3072, hidden_act: str = 'gelu_new', hidden_dropout_prob: float | int = 0.1, attention_probs_dropout_prob: float | int = 0.1, max_position_embeddings: int = 510, type_vocab_size: int = 2, segment_means_seq_len: int = 64, num_landmarks: int = 64, conv_kernel_size: int = 65, inv_coeff_init_option: bool = False, initializer_range: float = 0.02, layer_norm_eps: float = 1e-05, pad_token_id: int | None = 1, bos_token_id: int | None = 0, eos_token_id: int | list[int] | None = 2, add_cross_attention: bool = False, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongNystromformerForMaskedLM(LongAttentionMixin, NystromformerForMaskedLM):
    """NystromformerForMaskedLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of NystromformerForMaskedLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of NystromformerForMaskedLM instead.
    """
    config: LongNystromformerConfig
    def __init__(self, config: LongNystromformerConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> MaskedLMOutput: ...
    __call__ = forward

class LongNystromformerForMultipleChoice(LongAttentionMixin, NystromformerForMultipleChoice):
    """NystromformerForMultipleChoice with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of NystromformerForMultipleChoice, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of NystromformerForMultipleChoice instead.
    """
    config: LongNystromformerConfig
    def __init__(self, config: LongNystromformerConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> MultipleChoiceModelOutput: ...
    __call__ = forward

class LongNystromformerForQuestionAnswering(LongAttentionMixin, NystromformerForQuestionAnswering):
    """NystromformerForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of NystromformerForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of NystromformerForQuestionAnswering instead.
    """
    config: LongNystromformerConfig
    def __init__(self, config: LongNystromformerConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongNystromformerForSequenceClassification(LongAttentionMixin, NystromformerForSequenceClassification):
    """NystromformerForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of NystromformerForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of NystromformerForSequenceClassification instead.
    """
    config: LongNystromformerConfig
    def __init__(self, config: LongNystromformerConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> SequenceClassifierOutput: ...
    __call__ = forward

class LongNystromformerForTokenClassification(LongAttentionMixin, NystromformerForTokenClassification):
    """NystromformerForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of NystromformerForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of NystromformerForTokenClassification instead.
    """
    config: LongNystromformerConfig
    def __init__(self, config: LongNystromformerConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongNystromformerModel(LongBaseModelMixin, NystromformerModel):
    """NystromformerModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of NystromformerModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of NystromformerModel instead.
    """
    config: LongNystromformerConfig
    def __init__(self, config: LongNystromformerConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> BaseModelOutputWithPastAndCrossAttentions: ...
    __call__ = forward

LongNystromformerSelfAttention: Any
NystromformerOnTheInterface: Any
nystrom_of: Any
