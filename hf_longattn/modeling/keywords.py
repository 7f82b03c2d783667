"""Keywords with which modules call attention."""

from __future__ import annotations

DOCUMENTS = frozenset(("documents", "seq_idx", "cu_seq_lens_q"))
"""Keywords for the documents of a packed row: of this package, of state-space models and of FlashAttention."""
SINKS = "s_aux"
"""The keyword for the scores ``(H,)`` of sinks, one more column of the softmax (gpt-oss)."""
SCORE_TERMS = frozenset(("position_bias", "softcap"))
"""Keywords for changes of the scores: a bias, and a bound by tanh."""
CACHE_LAYER = "long_cache_layer"
"""The keyword for a module's cache layer, passed by a pre-hook."""
TAKES_CACHE_LAYER = "takes_cache_layer"
"""The attribute of attention modules with the pre-hook that passes the cache layer."""
LAYER_INPUT = "layer_input"
"""The keyword for a module's hidden states, for mechanisms that take them."""
COLLECT_WEIGHTS = "attention_weights"
"""The keyword that requests attention weights. A layer that gradient checkpointing recomputes in the backward pass
needs it, because transformers' collector is no longer active then."""
GRID = "grid"
"""The keyword for the grid on which the tokens lie."""
LAYER_INDEX = "long_layer"
"""The keyword for the layer's index, if layers share an attention module."""
VALUES_NEEDED = DOCUMENTS | {"global_attention_mask"}
"""Keywords for tensors whose values decide which keys are visible. They are ignored if tensors have shapes only (on
the meta device)."""
WITHOUT_EFFECT = frozenset(
    (
        "input_ids",  # some models choose experts by them
        "position_ids",  # already used for the mask
        "position_embeddings",  # already used by the attention module
        "cache_position",
        "cu_seq_lens_k",  # equal to the offsets of the queries
        "token_type_ids",  # some tokenizers return them for models without token types
        "num_items_in_batch",  # for the loss, like the next two
        "labels",
        "shift_labels",
        "decoder_input_ids",  # an encoder-decoder passes all its arguments on
        "decoder_attention_mask",
    )
)
"""Keywords for tensors that reach attention with a model's other arguments, and that change nothing there."""
NOT_COMPUTED = {
    "sinks": "sinks of each query",
    "indices": "keys chosen by an indexer",
    "block_indices": "blocks chosen by an indexer",
}
"""Keywords of attention that no mechanism computes (Inkling 2, DeepSeek-V3.2, MiniMax-M3), mapped to their meaning."""
TENSORS = (
    VALUES_NEEDED
    | SCORE_TERMS
    | WITHOUT_EFFECT
    | {SINKS, LAYER_INPUT, CACHE_LAYER, COLLECT_WEIGHTS, GRID, LAYER_INDEX, *NOT_COMPUTED}
)
"""Keywords with which attention may get a tensor."""
