"""Encoders with transformers' variant of `nystrom` become transformers' Nyströmformer.

This variant has six iterations from ``inv_coeff_init_option="original"``. With landmarks the twin takes only texts of its maximum length,
without padding; with full attention, any text. Its position table starts with two rows that are not positions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...mechanisms.nystrom import Nystrom
from ..long_models.base import TensorRename
from .base import LongModel, described, is_full, register_twin
from .big_bird import NAMES
from .encoders import (
    ENCODERS,
    EncoderTwin,
    common_name,
    encoder_refusal,
    encoder_values,
    head_of,
    leading_rows,
    mlm_refusal,
    with_leading,
)

HEADS = ("MaskedLM", "TokenClassification", "QuestionAnswering")
CONVOLUTION = re.compile(r"\.long_attention\.conv$")
LEADING = 2
ITERATIONS = 6


@register_twin("nystromformer")
class NystromformerTwin(EncoderTwin):
    """Nyströmformer, for long models of Nyströmformer, BERT, RoBERTa and other encoders with the same layers."""

    model_type = "nystromformer"
    families = ENCODERS | {"nystromformer"}
    computes = (Nystrom,)
    only_length = True
    prefix, heads, names = "nystromformer", HEADS, NAMES

    def refusal(self, model: LongModel) -> str | None:
        has_nystrom_base, first = model.base == "nystromformer", model.layers[0]
        if has_nystrom_base and all(is_full(layer, False) for layer in model.layers):
            return None
        for index, mechanism in enumerate(model.layers):
            if not isinstance(mechanism, Nystrom):
                return f"Layer {index} has {described(mechanism)}, and every layer of Nyströmformer has landmarks."
            if mechanism.options != first.options:
                return f"Layer {index} has other landmarks than layer 0, and Nyströmformer has the same in all layers."
        assert isinstance(first, Nystrom)
        reason = self._other_options(model, first)
        if reason is not None or has_nystrom_base:
            return reason
        return encoder_refusal(model, "Nyströmformer", HEADS) or mlm_refusal(model, "Nyströmformer")

    def _other_options(self, model: LongModel, mechanism: Nystrom) -> str | None:
        o = mechanism.options
        exact = self._exact(model)
        if exact:
            input_only = o.conv_kernel is not None and o.landmarks_over == "text"
            return (
                "Layer 0 has 'nystrom' with landmarks_over=text, and the convolution of Nyströmformer goes over padding."
                if input_only
                else None
            )
        if o.iterations != ITERATIONS:
            return f"Layer 0 has 'nystrom' with iterations={o.iterations}, and Nyströmformer has {ITERATIONS}."
        if o.inv_coeff_init_option != "original":
            return "Layer 0 has 'nystrom' with inv_coeff_init_option=exact, and Nyströmformer is that with inv_coeff_init_option=original."
        if model.length % o.num_landmarks:
            return f"Layer 0 has {o.num_landmarks} landmarks for {model.length} tokens, and Nyströmformer cuts equal segments."
        return None

    def _exact(self, model: LongModel) -> bool:
        """Whether no text has more tokens than landmarks, so that attention is full."""
        first = model.layers[0]
        return not isinstance(first, Nystrom) or first.options.num_landmarks >= model.length

    def config_values(self, model: LongModel) -> dict[str, Any]:
        first = model.layers[0]
        marks = model.length if self._exact(model) or not isinstance(first, Nystrom) else first.options.num_landmarks
        fields = {
            "num_landmarks": marks,
            "segment_means_seq_len": model.length,
            "conv_kernel_size": self._kernel(model) or 1,
            "inv_coeff_init_option": False,
        }
        values = model.values() if model.base == "nystromformer" else encoder_values(model, LEADING, counted=False)
        return {**values, **fields}

    def rename(self, name: str, model: LongModel) -> tuple[TensorRename, ...]:
        target = name if model.base == "nystromformer" else self.own_name(common_name(name, model), model)
        if CONVOLUTION.search(target):
            return (TensorRename(CONVOLUTION.sub(".conv.weight", target), lambda kernel: kernel[:, None, :, None]),)
        if "pooler." in target:
            return (TensorRename(None, reason="Nyströmformer has no pooler"),)
        change = with_leading(leading_rows(model), LEADING) if target.endswith("position_embeddings.weight") else None
        return (TensorRename(target, change),)

    def added(self, model: LongModel) -> Mapping[str, Callable[[tuple[int, ...]], Tensor]]:
        tensors = {**super().added(model)}
        if self._kernel(model) is None:  # Nyströmformer always has a convolution; zeros add nothing
            inner = "" if head_of(model) == "Model" else "nystromformer."
            tensors |= {f"{inner}encoder.layer.{layer}.attention.self.conv.weight": torch.zeros for layer in range(len(model.layers))}
        return tensors

    def _kernel(self, model: LongModel) -> int | None:
        """The width of the convolution of the values; ``None`` without one."""
        first = model.layers[0]
        return first.options.conv_kernel if isinstance(first, Nystrom) else None

    def note(self, model: LongModel) -> str:
        return "" if self._exact(model) else f"it takes texts of exactly {model.length} tokens, without padding"
