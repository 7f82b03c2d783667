# Written by `make format` with transformers 5.23.0; do not edit.
"""LongStarcoder2: StarCoder2 (Lozhkov et al. 2024), causal, grouped key/value heads, rotary positions; every layer may have a window.
"""

from ..configuration import LongAttentionConfig
from ..memory import SegmentMemory
from ..modeling.family.config import LongConfig
from ..modeling.family.definition import Family
from ..modeling.mixin import LongAttentionMixin, LongBaseModelMixin, LongGenerationMixin
from collections.abc import Mapping
from torch import Tensor
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, SequenceClassifierOutputWithPast, TokenClassifierOutput
from transformers.models.starcoder2.configuration_starcoder2 import Starcoder2Config
from transformers.models.starcoder2.modeling_starcoder2 import Starcoder2ForCausalLM, Starcoder2ForSequenceClassification, Starcoder2ForTokenClassification, Starcoder2Model
from typing import Any, Literal
import torch

FAMILY: Family

class LongStarcoder2Config(LongConfig, Starcoder2Config):
    """Starcoder2Config with ``long_attention``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, is_encoder_decoder: bool = False, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, vocab_size: int = 49152, hidden_size: int = 3072, intermediate_size: int = 12288, num_hidden_layers: int = 30, num_attention_heads: int = 24, num_key_value_heads: int = 2, hidden_act: str = 'gelu_pytorch_tanh', max_position_embeddings: int = 4096, initializer_range: float = 0.018042, norm_epsilon: float = 1e-05, use_cache: bool = True, bos_token_id: int | None = 50256, eos_token_id: int | list[int] | None = 50256, pad_token_id: int | None = None, rope_parameters: dict[str, Any] | dict[str, Any] | None = None, sliding_window: int | None = None, attention_dropout: float | int = 0.0, residual_dropout: float | int = 0.0, embedding_dropout: float | int = 0.0, use_bias: bool = True, tie_word_embeddings: bool = True, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ...) -> None: ...

class LongStarcoder2ForCausalLM(LongGenerationMixin, LongAttentionMixin, Starcoder2ForCausalLM, GenerationMixin):
    """Starcoder2ForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Starcoder2ForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Starcoder2ForCausalLM instead.
    """
    config: LongStarcoder2Config
    def __init__(self, config: LongStarcoder2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithPast: ...
    __call__ = forward

class LongStarcoder2ForSequenceClassification(LongAttentionMixin, Starcoder2ForSequenceClassification):
    """Starcoder2ForSequenceClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Starcoder2ForSequenceClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Starcoder2ForSequenceClassification instead.
    """
    config: LongStarcoder2Config
    def __init__(self, config: LongStarcoder2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> SequenceClassifierOutputWithPast: ...
    __call__ = forward

class LongStarcoder2ForTokenClassification(LongAttentionMixin, Starcoder2ForTokenClassification):
    """Starcoder2ForTokenClassification with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Starcoder2ForTokenClassification, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Starcoder2ForTokenClassification instead.
    """
    config: LongStarcoder2Config
    def __init__(self, config: LongStarcoder2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> TokenClassifierOutput: ...
    __call__ = forward

class LongStarcoder2Model(LongBaseModelMixin, Starcoder2Model):
    """Starcoder2Model with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of Starcoder2Model, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of Starcoder2Model instead.
    """
    config: LongStarcoder2Config
    def __init__(self, config: LongStarcoder2Config, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPast: ...
    __call__ = forward
