# Written by `make format` with transformers 5.23.0; do not edit.
"""LongGPTJ: GPT-J (Wang and Komatsuzaki 2021), causal, rotary positions on a part of each head, which transformers cannot scale.

Its layers pass no arguments down to attention, so that it takes mechanisms without global tokens.
"""

from ..configuration import LongAttentionConfig
from ..memory import SegmentMemory
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family
from ..modeling.mixin import LongAttentionMixin, LongBaseModelMixin, LongGenerationMixin
from collections.abc import Mapping
from torch import Tensor
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, QuestionAnsweringModelOutput, SequenceClassifierOutputWithPast
from transformers.models.gptj.configuration_gptj import GPTJConfig
from transformers.models.gptj.modeling_gptj import GPTJForCausalLM, GPTJForQuestionAnswering, GPTJForSequenceClassification, GPTJModel
from typing import Any, Literal
import torch

FAMILY: Family

class LongGPTJConfig(LongConfig, GPTJConfig):
    """GPTJConfig with ``long_attention``; the mechanism is ``window`` unless another one is given."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 50400, n_positions: int = 2048, n_embd: int = 4096, n_layer: int = 28, n_head: int = 16, rotary_dim: int = 64, n_inner: int | None = None, activation_function: str = 'gelu_new', resid_pdrop: float | int = 0.0, embd_pdrop: float | int = 0.0, attn_pdrop: float | int = 0.0, layer_norm_epsilon: float = 1e-05, initializer_range: float = 0.02, use_cache: bool = True, bos_token_id: int | None = 50256, eos_token_id: int | list[int] | None = 50256, pad_token_id: int | None = None, tie_word_embeddings: bool = False, max_position_embeddings: int = 2048, hidden_size: int = 4096, num_attention_heads: int = 16, num_hidden_layers: int = 28, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongGPTJForCausalLM(LongGenerationMixin, LongAttentionMixin, GPTJForCausalLM, GenerationMixin):
    """GPTJForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTJForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTJForCausalLM instead.
    """
    config: LongGPTJConfig
    def __init__(self, config: LongGPTJConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, past_key_values: Cache | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> CausalLMOutputWithPast: ...
    __call__ = forward

class LongGPTJForQuestionAnswering(LongAttentionMixin, GPTJForQuestionAnswering):
    """GPTJForQuestionAnswering with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTJForQuestionAnswering, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTJForQuestionAnswering instead.
    """
    config: LongGPTJConfig
    def __init__(self, config: LongGPTJConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, start_positions: Tensor | None = None, end_positions: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> QuestionAnsweringModelOutput: ...
    __call__ = forward

class LongGPTJForSequenceClassification(LongAttentionMixin, GPTJForSequenceClassification):
    """GPTJForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTJForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTJForSequenceClassification instead.
    """
    config: LongGPTJConfig
    def __init__(self, config: LongGPTJConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, past_key_values: Cache | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongGPTJModel(LongBaseModelMixin, GPTJModel):
    """GPTJModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of GPTJModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of GPTJModel instead.
    """
    config: LongGPTJConfig
    def __init__(self, config: LongGPTJConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, past_key_values: Cache | None = None, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None) -> BaseModelOutputWithPast: ...
    __call__ = forward

GPTJOnTheBackend: Any
LongGPTJAttention: Any
