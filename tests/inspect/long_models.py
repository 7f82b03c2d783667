"""Small models with random weights of transformers' long architectures, and some that are not long."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import transformers
from transformers import PreTrainedModel

LONGEST = 96
"""Tokens of the models whose positions are limited."""
SIZE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 200, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ENCODER: dict[str, Any] = {**SIZE, "cls_token_id": 1, "sep_token_id": 2, "max_position_embeddings": LONGEST}
ROBERTA: dict[str, Any] = {**ENCODER, "max_position_embeddings": LONGEST + 1}
"""Positions count from 1, after that of padding."""
DECODER: dict[str, Any] = {**SIZE, "num_key_value_heads": 1, "max_position_embeddings": LONGEST}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
TWO_STACKS: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 200,
}  # fmt: skip
T5: dict[str, Any] = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "vocab_size": 200, "pad_token_id": 0}
MAMBA: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 200, "state_size": 4}
REFORMER: dict[str, Any] = {
    "hidden_size": 32, "attn_layers": ["local", "lsh"], "num_attention_heads": 2, "attention_head_size": 16, "feed_forward_size": 48,
    "vocab_size": 200, "axial_pos_shape": [12, 8], "axial_pos_embds_dim": [16, 16], "max_position_embeddings": LONGEST, "num_buckets": 4,
    "lsh_attn_chunk_length": 16, "local_attn_chunk_length": 16,
}  # fmt: skip


def build(name: str, **values: Any) -> PreTrainedModel:
    """The model of a config of transformers, for example of "Bert" for BertConfig."""
    model_class = {"Gemma3Text": "Gemma3TextModel"}.get(name, f"{name}Model")
    return getattr(transformers, model_class)(getattr(transformers, f"{name}Config")(**values))


LONG_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "Longformer": partial(build, "Longformer", attention_window=[8, 16], **ROBERTA),
    "Longformer, padded": partial(build, "Longformer", attention_window=[36, 36], **ROBERTA),
    "LED": partial(
        build, "LED", attention_window=[8, 16], max_encoder_position_embeddings=LONGEST, max_decoder_position_embeddings=50, **TWO_STACKS
    ),
    "BigBird": partial(build, "BigBird", block_size=8, num_random_blocks=1, **ENCODER),
    "BigBird, full": partial(build, "BigBird", attention_type="original_full", **ENCODER),
    "BigBirdPegasus": partial(build, "BigBirdPegasus", block_size=8, num_random_blocks=1, max_position_embeddings=LONGEST, **TWO_STACKS),
    "Nystromformer": partial(build, "Nystromformer", num_landmarks=8, segment_means_seq_len=LONGEST, **ENCODER),
    "LongT5, local": partial(build, "LongT5", local_radius=7, **T5),
    "LongT5, transient-global": partial(
        build, "LongT5", local_radius=7, global_block_size=4, encoder_attention_type="transient-global", **T5
    ),
    "T5": partial(build, "T5", **T5),
    "PegasusX": partial(build, "PegasusX", block_size=16, num_global_tokens=4, **TWO_STACKS),
    "T5Gemma": partial(build, "T5Gemma", encoder={**DECODER, "sliding_window": 16}, decoder={**DECODER, "sliding_window": 16}),
    "ProphetNet": partial(
        build,
        "ProphetNet",
        hidden_size=32,
        vocab_size=200,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_encoder_attention_heads=2,
        num_decoder_attention_heads=2,
        max_position_embeddings=LONGEST,
    ),
    "Bart": partial(build, "Bart", max_position_embeddings=LONGEST, **TWO_STACKS),
    "Switch": partial(build, "SwitchTransformers", num_experts=4, **T5),
    "Reformer": partial(build, "Reformer", is_decoder=False, **REFORMER),
    "Reformer, causal": partial(build, "Reformer", is_decoder=True, **REFORMER),
    "FNet": partial(
        build, "FNet", hidden_size=32, num_hidden_layers=2, intermediate_size=48, vocab_size=200, max_position_embeddings=LONGEST
    ),
    "Yoso": partial(build, "Yoso", use_expectation=True, **ENCODER),
    "Mra": partial(build, "Mra", **ENCODER),
    "Funnel": partial(
        build, "Funnel", d_model=32, block_sizes=[1, 1], n_head=2, d_head=16, d_inner=48, vocab_size=200, num_decoder_layers=1
    ),
    "XLNet": partial(build, "XLNet", d_model=32, n_layer=2, n_head=2, d_inner=48, vocab_size=200),
    "ModernBERT": partial(build, "ModernBert", local_attention=12, **ENCODER),
    "ModernBERT, decoder": partial(build, "ModernBertDecoder", local_attention=12, **ENCODER),
    "OpenAI privacy filter": partial(build, "OpenAIPrivacyFilter", sliding_window=16, **EXPERTS, **DECODER),
    "EuroBERT": partial(build, "EuroBert", **ENCODER),
    "DeBERTa-v2": partial(build, "DebertaV2", conv_kernel_size=3, **ENCODER),
    "ConvBERT": partial(build, "ConvBert", embedding_size=32, **ENCODER),
    "SqueezeBERT": partial(build, "SqueezeBert", embedding_size=32, **ENCODER),
    "ALBERT": partial(build, "Albert", embedding_size=16, **ENCODER),
    "XLM-RoBERTa": partial(build, "XLMRoberta", **ROBERTA),
    "ESM": partial(build, "Esm", **ROBERTA),
    "Luke": partial(build, "Luke", entity_vocab_size=10, entity_emb_size=8, **ROBERTA),
    "XLM": partial(build, "XLM", emb_dim=32, n_layers=2, n_heads=2, n_words=200, max_position_embeddings=LONGEST),
    "Canine": partial(
        build, "Canine", local_transformer_stride=16, **{key: value for key, value in ENCODER.items() if key != "vocab_size"}
    ),
    "Perceiver": partial(
        build, "Perceiver", num_latents=8, d_latents=32, d_model=32, num_self_attention_heads=2, num_cross_attention_heads=2, vocab_size=200
    ),
    "Mistral": partial(build, "Mistral", sliding_window=16, **DECODER),
    "Mistral, full": partial(build, "Mistral", sliding_window=None, **DECODER),
    "Mistral, 0": partial(build, "Mistral", sliding_window=0, **DECODER),
    "Mistral, -1": partial(build, "Mistral", sliding_window=-1, **DECODER),
    "Mixtral": partial(build, "Mixtral", sliding_window=16, **EXPERTS, **DECODER),
    "Gemma 2": partial(build, "Gemma2", sliding_window=16, head_dim=16, **DECODER),
    "Gemma 3": partial(build, "Gemma3Text", sliding_window=16, head_dim=16, **DECODER),
    "Gemma 3, bidirectional": partial(build, "Gemma3Text", sliding_window=16, use_bidirectional_attention=True, head_dim=16, **DECODER),
    "Qwen2": partial(build, "Qwen2", sliding_window=16, use_sliding_window=True, max_window_layers=1, **DECODER),
    "Qwen3": partial(build, "Qwen3", head_dim=16, **DECODER),
    "Phi-3": partial(build, "Phi3", sliding_window=16, **DECODER),
    "Starcoder2": partial(build, "Starcoder2", sliding_window=16, **DECODER),
    "Cohere2": partial(build, "Cohere2", sliding_window=16, **DECODER),
    "OLMo 3": partial(build, "Olmo3", sliding_window=16, **DECODER),
    "GPT-OSS": partial(build, "GptOss", sliding_window=16, head_dim=16, **EXPERTS, **DECODER),
    "SmolLM3": partial(build, "SmolLM3", sliding_window=16, use_sliding_window=True, **DECODER),
    "Llama 4": partial(build, "Llama4Text", attention_chunk_size=16, intermediate_size_mlp=48, head_dim=16, **EXPERTS, **DECODER),
    "OPT": partial(
        build,
        "OPT",
        hidden_size=32,
        num_hidden_layers=2,
        ffn_dim=48,
        num_attention_heads=2,
        vocab_size=200,
        word_embed_proj_dim=32,
        max_position_embeddings=LONGEST,
    ),
    "BLOOM": partial(build, "Bloom", hidden_size=32, n_layer=2, n_head=2, vocab_size=200),
    "MPT": partial(build, "Mpt", d_model=32, n_layers=2, n_heads=2, vocab_size=200, max_seq_len=LONGEST),
    "Falcon": partial(build, "Falcon", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=200, alibi=True),
    "Mamba": partial(build, "Mamba", **MAMBA),
    "Mamba 2": partial(build, "Mamba2", num_heads=4, head_dim=16, n_groups=1, chunk_size=16, **MAMBA),
    "RecurrentGemma": partial(
        build,
        "RecurrentGemma",
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        vocab_size=200,
        attention_window_size=16,
        lru_width=32,
    ),
    "RWKV": partial(build, "Rwkv", hidden_size=32, num_hidden_layers=2, vocab_size=200, attention_hidden_size=32, intermediate_size=48),
    "Jamba": partial(
        build,
        "Jamba",
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
        mamba_d_state=4,
        mamba_dt_rank=4,
        **DECODER,
    ),
    "LFM2": partial(build, "Lfm2", layer_types=["conv", "full_attention"], **DECODER),
    "Qwen3-Next": partial(
        build,
        "Qwen3Next",
        num_experts=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        head_dim=16,
        **{**DECODER, "num_hidden_layers": 4},
        num_experts_per_tok=2,
    ),
    "DeepSeek V3": partial(
        build,
        "DeepseekV3",
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        first_k_dense_replace=1,
        **{**DECODER, "num_key_value_heads": 2},
    ),
}
