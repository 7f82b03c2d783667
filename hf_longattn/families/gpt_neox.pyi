# Written by `make format` with transformers 5.23.0; do not edit.
"""LongGPTNeoX: GPT-NeoX (Black et al. 2022) and Pythia, causal, rotary positions on a part of each head (``partial_rotary_factor``).
"""

from ..configuration import LongAttentionConfig
from ..memory import SegmentMemory
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family
from ..modeling.mixin import LongAttentionMixin, LongBaseModelMixin, LongGenerationMixin
from collections.abc import Mapping
from torch import Tensor
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, QuestionAnsweringModelOutput, SequenceClassifierOutputWithPast, TokenClassifierOutput
from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXForCausalLM, GPTNeoXForQuestionAnswering, GPTNeoXForSequenceClassification, GPTNeoXForTokenClassification, GPTNeoXModel
from typing import Any, Literal
import torch

FAMILY: Family

class LongGPTNeoXConfig(LongConfig, GPTNeoXConfig):
    """GPTNeoXConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 50432, hidden_size: int = 6144, num_hidden_layers: int = 44, num_attention_heads: int = 64, intermediate_size: int = 24576, hidden_act: str = 'gelu', attention_dropout: float | int = 0.0, hidden_dropout: float | int = 0.0, classifier_dropout: float | int = 0.1, max_position_embeddings: int = 2048, initializer_range: float = 0.02, layer_norm_eps: float = 1e-05, use_cache: bool = True, bos_token_id: int | None = 0, eos_token_id: int | list[int] | None = 2, pad_token_id: int | None = None, tie_word_embeddings: bool = False, use_parallel_residual: bool = True, rope_parameters: dict[str, Any] | dict[str, Any] | None = None, attention_bias: bool = True, is_decoder: bool = False, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongGPTNeoXForCausalLM(LongGenerationMixin, LongAttentionMixin, GPTNeoXForCausalLM, GenerationMixin):
    """GPTNeoXForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTNeoXForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTNeoXForCausalLM instead.
    """
    config: LongGPTNeoXConfig
    def __init__(self, config: LongGPTNeoXConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, past_key_values: Cache | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithPast: ...
    __call__ = forward

class LongGPTNeoXForQuestionAnswering(LongAttentionMixin, GPTNeoXForQuestionAnswering):
    """GPTNeoXForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTNeoXForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTNeoXForQuestionAnswering instead.
    """
    config: LongGPTNeoXConfig
    def __init__(self, config: LongGPTNeoXConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongGPTNeoXForSequenceClassification(LongAttentionMixin, GPTNeoXForSequenceClassification):
    """GPTNeoXForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTNeoXForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTNeoXForSequenceClassification instead.
    """
    config: LongGPTNeoXConfig
    def __init__(self, config: LongGPTNeoXConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, past_key_values: Cache | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongGPTNeoXForTokenClassification(LongAttentionMixin, GPTNeoXForTokenClassification):
    """GPTNeoXForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTNeoXForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTNeoXForTokenClassification instead.
    """
    config: LongGPTNeoXConfig
    def __init__(self, config: LongGPTNeoXConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, past_key_values: Cache | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongGPTNeoXModel(LongBaseModelMixin, GPTNeoXModel):
    """GPTNeoXModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTNeoXModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTNeoXModel instead.
    """
    config: LongGPTNeoXConfig
    def __init__(self, config: LongGPTNeoXConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, past_key_values: Cache | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPast: ...
    __call__ = forward
