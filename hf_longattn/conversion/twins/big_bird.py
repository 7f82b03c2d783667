"""Encoders with transformers' variant of `bigbird` become transformers' BigBird or BigBird-Pegasus.

This variant has ``random_pattern="hf_eval"`` and ``blocks_over="input"``. BigBird counts positions from the first row of its table.
BigBird-Pegasus stores a table of the sinusoids that Pegasus computes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ...mechanisms.bigbird import BigBird
from ...positions.tables import sinusoids
from ..long_models.base import TensorRename
from .base import LongModel, NativeTwin, decoder_refusal, described, is_full, register_twin
from .encoders import (
    ENCODERS,
    EncoderTwin,
    common_name,
    encoder_refusal,
    encoder_values,
    leading_rows,
    mlm_refusal,
    with_leading,
)

NAMES = {
    "mlm.dense.": "cls.predictions.transform.dense.",
    "mlm.norm.": "cls.predictions.transform.LayerNorm.",
    "mlm.decoder.": "cls.predictions.decoder.",
    "mlm.bias": "cls.predictions.bias",
}
HEADS = ("MaskedLM", "TokenClassification", "MultipleChoice")
STICKS = "transformers' BigBird computes full attention for good after its first input of at most {count} blocks of {size} tokens"


def blocks_refusal(model: LongModel) -> str | None:
    """Reason why the layers are not transformers' block-sparse attention with equal options. ``None`` if they are."""
    first = model.layers[0]
    for index, mechanism in enumerate(model.layers):
        if not isinstance(mechanism, BigBird) or mechanism.relative is not None:
            return f"Layer {index} has {described(mechanism)}, and every layer of BigBird has its blocks."
        o = mechanism.options
        wanted = {"random_pattern": ("hf_eval", "hf"), "blocks_over": ("input",), "seed": (0,)}
        odd = next((name for name, values in wanted.items() if getattr(o, name) not in values), None)
        if odd is not None:
            needed = wanted[odd][0]
            return f"Layer {index} has 'bigbird' with {odd}={getattr(o, odd)}, and transformers' BigBird is that with {odd}={needed}."
        if o != first.options:
            return f"Layer {index} has other blocks than layer 0, and BigBird has the same in all layers."
    return None


def block_values(model: LongModel) -> dict[str, Any]:
    """The fields of a config for block-sparse attention."""
    o: Any = model.layers[0].options
    return {"attention_type": "block_sparse", "block_size": o.block_size, "num_random_blocks": o.num_random_blocks}


def fallback_note(model: LongModel) -> str:
    """A note on what transformers' BigBird does after a short input."""
    o: Any = model.layers[0].options
    return STICKS.format(count=5 + 2 * o.num_random_blocks, size=o.block_size)


@register_twin("big_bird")
class BigBirdTwin(EncoderTwin):
    """BigBird, for long models of BigBird, BERT, RoBERTa and other encoders with the same layers."""

    model_type = "big_bird"
    families = ENCODERS | {"big_bird"}
    computes = (BigBird,)
    prefix, heads, names = "bert", HEADS, NAMES

    def refusal(self, model: LongModel) -> str | None:
        if (reason := blocks_refusal(model)) is not None or model.base == "big_bird":
            return reason
        return encoder_refusal(model, "BigBird", HEADS) or mlm_refusal(model, "BigBird")

    def config_values(self, model: LongModel) -> dict[str, Any]:
        if model.base == "big_bird":
            return {**model.values(), **block_values(model)}
        fixed = {"use_bias": True, "rescale_embeddings": False}
        return {**encoder_values(model, 0, counted=False), **fixed, **block_values(model)}

    def rename(self, name: str, model: LongModel) -> tuple[TensorRename, ...]:
        if model.base == "big_bird":
            return (TensorRename(name),)
        target = self.own_name(common_name(name, model), model).replace("pooler.dense.", "pooler.")
        table = target.endswith("position_embeddings.weight")
        return (TensorRename(target, with_leading(leading_rows(model), 0) if table else None),)

    def note(self, model: LongModel) -> str:
        return fallback_note(model)


ENCODER = re.compile(r"(encoder\.layers\.\d+\.self_attn\.)(q|k|v|out)_proj\.")
INNER_NAMES = {"q": "self.query.", "k": "self.key.", "v": "self.value.", "out": "output."}


@register_twin("bigbird_pegasus")
class BigBirdPegasusTwin(NativeTwin):
    """BigBird-Pegasus, for long models of itself and of Pegasus. Pegasus gets biases, and a table of its sinusoids."""

    model_type = "bigbird_pegasus"
    families = frozenset(("bigbird_pegasus", "pegasus"))
    computes = (BigBird,)

    def refusal(self, model: LongModel) -> str | None:
        if not model.two_stacks:
            odd = next((index for index, layer in enumerate(model.layers) if not is_full(layer, True)), None)
            return None if odd is None else f"Layer {odd} is a decoder's, and BigBird-Pegasus has blocks in its encoder only."
        reason = blocks_refusal(model) or decoder_refusal(model)
        lengths = model.config.max_position_embeddings, model.config.max_decoder_position_embeddings
        if reason is None and model.base == "bigbird_pegasus" and lengths[0] != lengths[1]:
            return f"The encoder takes {lengths[0]} tokens and the decoder {lengths[1]}, and BigBird-Pegasus has one length for both."
        return reason

    def config_values(self, model: LongModel) -> dict[str, Any]:
        biases = {"use_bias": True} if model.base == "pegasus" else {}
        blocks = block_values(model) if model.two_stacks else {"attention_type": "original_full"}
        return {**model.values(), **biases, **blocks}

    def rename(self, name: str, model: LongModel) -> tuple[TensorRename, ...]:
        if model.base == "bigbird_pegasus":
            return (TensorRename(name),)
        if name.endswith("embed_positions.weight"):
            return (TensorRename(None, reason="computed for the table"),)
        target = ENCODER.sub(lambda match: match[1] + INNER_NAMES[match[2]], name)
        return (TensorRename(re.sub(r"(encoder|decoder)\.layer_norm\.", r"\1.layernorm_embedding.", target)),)

    def added(self, model: LongModel) -> Mapping[str, Callable[[tuple[int, ...]], Tensor]]:
        if model.base == "bigbird_pegasus":
            return {}
        inner = "" if model.head.endswith("Model") else "model."
        stacks = ("encoder", "decoder") if model.two_stacks else ("decoder",)
        return {f"{inner}{stack}.embed_positions.weight": lambda shape: sinusoids(*shape) for stack in stacks}

    def note(self, model: LongModel) -> str:
        return fallback_note(model) if model.two_stacks else ""
