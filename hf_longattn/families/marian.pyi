# Written by `make format` with transformers 5.23.0; do not edit.
"""LongMarian: the translation models of Marian (Junczys-Dowmunt et al. 2018), an encoder and a decoder with sinusoidal positions, computed
for any length.
"""

from ..configuration import LongAttentionConfig
from ..memory import SegmentMemory
from ..modeling.family.config import LongEncoderDecoderConfig
from ..modeling.family.definition import Family
from ..modeling.mixin import LongAttentionMixin, LongBaseModelMixin, LongDecoderMixin, LongGenerationMixin
from collections.abc import Mapping
from torch import Tensor
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithCrossAttentions, Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.models.marian.configuration_marian import MarianConfig
from transformers.models.marian.modeling_marian import MarianDecoder, MarianEncoder, MarianForCausalLM, MarianMTModel, MarianModel
from typing import Any, Literal
import torch

FAMILY: Family

class LongMarianConfig(LongEncoderDecoderConfig, MarianConfig):
    """MarianConfig with ``long_attention``, ``decoder_long_attention`` and ``max_decoder_position_embeddings``."""
    def __init__(self, *, transformers_version: str | None = None, architectures: list[str] | None = None, output_hidden_states: bool | None = False, return_dict: bool | None = True, dtype: str | torch.dtype | None = None, chunk_size_feed_forward: int = 0, id2label: dict[int, str] | dict[str, str] | None = None, label2id: dict[str, int] | dict[str, str] | None = None, problem_type: Literal['regression', 'single_label_classification', 'multi_label_classification'] | None = None, is_encoder_decoder: bool = True, vocab_size: int = 58101, decoder_vocab_size: int | None = None, max_position_embeddings: int = 1024, encoder_layers: int = 12, encoder_ffn_dim: int = 4096, encoder_attention_heads: int = 16, decoder_layers: int = 12, decoder_ffn_dim: int = 4096, decoder_attention_heads: int = 16, encoder_layerdrop: float | int = 0.0, decoder_layerdrop: float | int = 0.0, use_cache: bool = True, activation_function: str = 'gelu', d_model: int = 1024, dropout: float | int = 0.1, attention_dropout: float | int = 0.0, activation_dropout: float | int = 0.0, init_std: float = 0.02, decoder_start_token_id: int = 58100, scale_embedding: bool = False, pad_token_id: int | None = 58100, eos_token_id: int | list[int] | None = 0, bos_token_id: int | None = None, forced_eos_token_id: int | list[int] | None = 0, share_encoder_decoder_embeddings: bool = True, is_decoder: bool = False, tie_word_embeddings: bool = True, num_attention_heads: int = 16, hidden_size: int = 1024, num_hidden_layers: int = 12, long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., position_extension: str = ..., question_separator_id: int | None = ..., attn_implementation: str | None = ..., num_labels: int = ..., decoder_long_attention: Mapping[str, Any] | LongAttentionConfig | None = ..., max_decoder_position_embeddings: int | None = ...) -> None: ...

class LongMarianForCausalLM(LongGenerationMixin, LongAttentionMixin, MarianForCausalLM, GenerationMixin):
    """MarianForCausalLM with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MarianForCausalLM, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MarianForCausalLM instead.
    """
    config: LongMarianConfig
    def __init__(self, config: LongMarianConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> CausalLMOutputWithCrossAttentions: ...
    __call__ = forward

class LongMarianMTModel(LongGenerationMixin, LongAttentionMixin, MarianMTModel, GenerationMixin):
    """MarianMTModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MarianMTModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MarianMTModel instead.
    """
    config: LongMarianConfig
    def __init__(self, config: LongMarianConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: tuple[Tensor] | BaseModelOutput | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, labels: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqLMOutput: ...
    __call__ = forward

class LongMarianModel(LongAttentionMixin, MarianModel):
    """MarianModel with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MarianModel, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MarianModel instead.
    """
    config: LongMarianConfig
    def __init__(self, config: LongMarianConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None, decoder_attention_mask: Tensor | None = None, encoder_outputs: tuple[Tensor] | BaseModelOutput | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, decoder_inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> Seq2SeqModelOutput: ...
    __call__ = forward

class LongMarianEncoder(LongBaseModelMixin, MarianEncoder):
    """MarianEncoder with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MarianEncoder, and ``global_attention_mask (B, N)``, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MarianEncoder instead.
    """
    config: LongMarianConfig
    def __init__(self, config: LongMarianConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutput: ...
    __call__ = forward

class LongMarianDecoder(LongDecoderMixin, MarianDecoder):
    """MarianDecoder with the mechanisms of ``config.long_attention``.

    ``forward`` takes the arguments of MarianDecoder, and ``global_attention_mask (B, N)`` of the encoder, 1 = global token, ``documents (B, N)``, the
    numbers of documents packed into one row, ``memory`` and ``memory_reset (B,)``; see :meth:`new_memory`. :meth:`use_base_attention` computes
    the attention of MarianDecoder instead.
    """
    config: LongMarianConfig
    def __init__(self, config: LongMarianConfig, *arguments: Any, **options: Any) -> None: ...
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None, *, global_attention_mask: Tensor | None = None, documents: Tensor | None = None, memory: SegmentMemory | None = None, memory_reset: Tensor | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None) -> BaseModelOutputWithPastAndCrossAttentions: ...
    __call__ = forward
