"""Encoders with windows and global tokens become transformers' Longformer. RoBERTa's layers, with separate projections for global tokens.

Without ``separate_global``, the projections of the global tokens are copies of the layer's projections. Positions start after the padding
token's id, as in RoBERTa; a table that starts with position 0 gets rows in front up to this id. If a head of Longformer chooses global
tokens, these must be the config's global tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...mechanisms import Mechanism
from ...mechanisms.longformer import Longformer, LongformerOptions
from ...mechanisms.window import Window
from ...modeling.family.sliding_window import band_around
from ..long_models.base import TensorRename
from .base import LongModel, described, register_twin
from .encoders import (
    ENCODERS,
    HEADS,
    ROBERTAS,
    EncoderTwin,
    common_name,
    encoder_refusal,
    encoder_values,
    head_of,
    leading_rows,
    mlm_activation,
    with_leading,
)

NAMES = {
    "mlm.dense.": "lm_head.dense.",
    "mlm.norm.": "lm_head.layer_norm.",
    "mlm.decoder.": "lm_head.decoder.",
    "mlm.bias": "lm_head.bias",
    "class.dense.": "classifier.dense.",
    "class.out.": "classifier.out_proj.",
}
SEPARATE = re.compile(r"\.long_attention\.separate\.(query|key|value)\.")
PROJECTION = re.compile(r"\.attention\.self\.(query|key|value)\.")


def window_refusal(layers: tuple[Mechanism, ...]) -> str | None:
    """The reason why Longformer cannot compute one of these layers. ``None`` if it can compute all."""
    for index, mechanism in enumerate(layers):
        width = band_around(mechanism)
        if width is None:
            return f"Layer {index} has {described(mechanism)}, and every layer of Longformer has a window."
        if not width:
            return f"Layer {index} has a window of one token, and Longformer's windows are even."
    return None


def global_rule(options: LongformerOptions, separator: int | None) -> tuple[Any, ...]:
    """Which tokens a layer makes global. Positions, ids, first segment, second segment, and the separator of the segments."""
    o = options
    ends = (
        (o.separator_token_id if o.separator_token_id is not None else separator)
        if o.global_first_segment or o.global_second_segment
        else None
    )
    return tuple(o.global_tokens), tuple(o.global_token_ids), o.global_first_segment, o.global_second_segment, ends


NO_GLOBALS = ((), (), False, False, None)


def globals_refusal(model: LongModel, layers: tuple[Mechanism, ...], twin_rule: tuple[Any, ...], twin_class: str) -> str | None:
    """Reason why a layer has other global tokens than the twin's ``twin_rule``. Or why it takes no mask in a masked model; else
    ``None``."""
    if model.masked:
        odd = next((index for index, mechanism in enumerate(layers) if not isinstance(mechanism, Longformer)), None)
        if odd is None:
            return None
        return f"Layer {odd} has {layers[odd].name!r}, which takes no global_attention_mask, and every layer of {twin_class} does."
    separator = getattr(model.config, "sep_token_id", None)
    for index, mechanism in enumerate(layers):
        rule = global_rule(mechanism.options, separator) if isinstance(mechanism, Longformer) else NO_GLOBALS
        question = getattr(model.config, "question_separator_id", None) if isinstance(mechanism, Longformer) else None
        if rule != twin_rule or question is not None:
            marks = "the question" if question is not None else describe_rule(rule)
            return (
                f"Layer {index} makes {marks} global, while a {twin_class} by itself makes {describe_rule(twin_rule)} global; "
                f"convert with {_options(twin_rule)}, or export with "
                "--global-attention-mask and give every call that mask."
            )
    return None


def describe_rule(rule: tuple[Any, ...]) -> str:
    """A rule as text."""
    positions, ids, first, second, _ = rule
    parts = [f"position{'s' * (len(positions) > 1)} {', '.join(map(str, positions))}"] if positions else []
    parts += [f"token id{'s' * (len(ids) > 1)} {', '.join(map(str, ids))}"] if ids else []
    parts += ["the first segment"] * first + ["the second segment"] * second
    return " and ".join(parts) or "no token"


def _options(rule: tuple[Any, ...]) -> str:
    """A rule as options of the command line."""
    positions, _, first, second, _ = rule
    parts = [f"global_tokens={'+'.join(map(str, positions)) or 'none'}"]
    parts += ["global_first_segment=true"] * first + ["global_second_segment=true"] * second
    return " ".join(f"--option {option}" for option in parts)


@register_twin("longformer")
class LongformerTwin(EncoderTwin):
    """Longformer, for long models of RoBERTa, BERT and other encoders with the same layers."""

    model_type = "longformer"
    families = ENCODERS
    computes = (Longformer, Window)
    takes_globals = True
    prefix, heads, names = "longformer", HEADS, NAMES

    def refusal(self, model: LongModel) -> str | None:
        heads = HEADS if model.base in (*ROBERTAS, "bert") else ("MaskedLM", "TokenClassification", "QuestionAnswering")
        reason = window_refusal(model.layers) or encoder_refusal(model, "Longformer", heads)
        return reason or self._other_head(model) or globals_refusal(model, model.layers, self._own_globals(model), self.class_name(model))

    def _other_head(self, model: LongModel) -> str | None:
        if head_of(model) == "MaskedLM" and mlm_activation(model) != "gelu":
            return f"The head of the {model.head} has the activation {mlm_activation(model)!r}, and Longformer's has 'gelu'."
        two = head_of(model) in ("QuestionAnswering", "MultipleChoice") and not model.masked
        if two and model.base not in ROBERTAS:
            return (
                f"A {self.class_name(model)} expects three separators in every pair of texts and this {model.head} has two; "
                "export with --global-attention-mask and give every call that mask."
            )
        return None

    def _own_globals(self, model: LongModel) -> tuple[Any, ...]:
        head, separator = head_of(model), getattr(model.config, "sep_token_id", None)
        if head == "SequenceClassification":
            return ((0,), (), False, False, None)
        if head == "QuestionAnswering":
            return ((), (), True, False, self._separator(model, separator))
        return ((), (), False, True, self._separator(model, separator)) if head == "MultipleChoice" else NO_GLOBALS

    def _separator(self, model: LongModel, default: int | None) -> int | None:
        """The separator token of the twin's config."""
        options: Any = model.layers[0].options
        chosen = getattr(options, "separator_token_id", None)
        return default if chosen is None else chosen

    def config_values(self, model: LongModel) -> dict[str, Any]:
        separator = self._separator(model, getattr(model.config, "sep_token_id", None))
        positions = {"max_position_embeddings": model.config.max_position_embeddings} if model.base in ROBERTAS else {}
        return {
            **encoder_values(model, self._leading(model), counted=True),
            **positions,
            "attention_window": [band_around(mechanism) for mechanism in model.layers],
            "pad_token_id": self._padding(model),
            "sep_token_id": model.config.eos_token_id if separator is None else separator,
        }

    def _padding(self, model: LongModel) -> int:
        pad = model.config.pad_token_id
        return 0 if pad is None else int(pad)

    def _leading(self, model: LongModel) -> int:
        return self._padding(model) + 1

    def rename(self, name: str, model: LongModel) -> tuple[TensorRename, ...]:
        target = self.own_name(common_name(name, model), model)
        change: Callable[[Tensor], Tensor] | None = None
        if target.endswith("position_embeddings.weight"):
            change = None if model.base in ROBERTAS else with_leading(leading_rows(model), self._leading(model))
        if SEPARATE.search(target):
            return (TensorRename(SEPARATE.sub(r".\1_global.", target)),)
        if not PROJECTION.search(target):
            return (TensorRename(target, change),)
        layer = model.layers[int(re.search(r"\.layer\.(\d+)\.", target)[1])]  # type: ignore[index]
        if getattr(layer.options, "separate_global", False):
            return (TensorRename(target),)
        return TensorRename(target), TensorRename(PROJECTION.sub(r".attention.self.\1_global.", target))

    def note(self, model: LongModel) -> str:
        return "every call must be given the global_attention_mask" if model.masked else ""
