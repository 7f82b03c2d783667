# Written by `make format` with transformers 5.23.0; do not edit.
"""LongGPTNeo: GPT-Neo (Black et al. 2021), causal, positions in one learned table, scores that are not scaled.

Every other layer is local: it sees the last ``window_size`` tokens, and stays so (:mod:`hf_longattn.modeling.family.sliding_window`).
Without ``long_attention`` the others attend to everything, and all is as in GPT-Neo. Its layers pass no arguments down to attention,
so that it takes mechanisms without global tokens.
"""

from ..configuration import LongAttentionConfig
from ..memory import SegmentMemory
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family
from ..modeling.mixin import LongAttentionMixin, LongBaseModelMixin, LongGenerationMixin
from collections.abc import Mapping
from torch import Tensor
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithCrossAttentions, QuestionAnsweringModelOutput, SequenceClassifierOutputWithPast, TokenClassifierOutput
from transformers.models.gpt_neo.configuration_gpt_neo import GPTNeoConfig
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoForCausalLM, GPTNeoForQuestionAnswering, GPTNeoForSequenceClassification, GPTNeoForTokenClassification, GPTNeoModel
from typing import Any, Literal
import torch

FAMILY: Family

class LongGPTNeoConfig(LongConfig, GPTNeoConfig):
    """GPTNeoConfig with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 50257, max_position_embeddings: int = 2048, hidden_size: int = 2048, num_layers: int = 24, attention_types: list | tuple | None = None, num_heads: int = 16, intermediate_size: int | None = None, window_size: int = 256, activation_function: str = 'gelu_new', resid_dropout: float | int = 0.0, embed_dropout: float | int = 0.0, attention_dropout: float | int = 0.0, classifier_dropout: float | int = 0.1, layer_norm_epsilon: float = 1e-05, initializer_range: float = 0.02, use_cache: bool = True, bos_token_id: int | None = 50256, eos_token_id: int | list[int] | None = 50256, pad_token_id: int | None = None, tie_word_embeddings: bool = True, num_attention_heads: int = 16, num_hidden_layers: int = 24, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongGPTNeoForCausalLM(LongGenerationMixin, LongAttentionMixin, GPTNeoForCausalLM, GenerationMixin):
    """GPTNeoForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTNeoForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTNeoForCausalLM instead.
    """
    config: LongGPTNeoConfig
    def __init__(self, config: LongGPTNeoConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, past_key_values: Cache | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> CausalLMOutputWithCrossAttentions: ...
    __call__ = forward

class LongGPTNeoForQuestionAnswering(LongAttentionMixin, GPTNeoForQuestionAnswering):
    """GPTNeoForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTNeoForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTNeoForQuestionAnswering instead.
    """
    config: LongGPTNeoConfig
    def __init__(self, config: LongGPTNeoConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongGPTNeoForSequenceClassification(LongAttentionMixin, GPTNeoForSequenceClassification):
    """GPTNeoForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTNeoForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTNeoForSequenceClassification instead.
    """
    config: LongGPTNeoConfig
    def __init__(self, config: LongGPTNeoConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, past_key_values: Cache | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongGPTNeoForTokenClassification(LongAttentionMixin, GPTNeoForTokenClassification):
    """GPTNeoForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTNeoForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTNeoForTokenClassification instead.
    """
    config: LongGPTNeoConfig
    def __init__(self, config: LongGPTNeoConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, past_key_values: Cache | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongGPTNeoModel(LongBaseModelMixin, GPTNeoModel):
    """GPTNeoModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTNeoModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTNeoModel instead.
    """
    config: LongGPTNeoConfig
    def __init__(self, config: LongGPTNeoConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, past_key_values: Cache | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> BaseModelOutputWithPastAndCrossAttentions: ...
    __call__ = forward

GPTNeoOnTheBackend: Any
LongGPTNeoSelfAttention: Any
