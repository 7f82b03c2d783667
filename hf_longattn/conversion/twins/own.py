"""The base class as the twin. Full attention, or windows if its config has a field for them.

The fields are ``sliding_window`` and ``layer_types``.

In a decoder ``sliding_window`` includes the query; the windows of ModernBERT and of bidirectional Gemma are distances to either side.
"""

from __future__ import annotations

from typing import Any

from ...mechanisms.window import Window
from ...modeling.family.sliding_window import FULL, SLIDING, own_windows
from ..long_models.base import TensorRename
from .base import LongModel, NativeTwin, band_refusal, decoder_refusal, one_width, register_twin, tiled_refusal


@register_twin("own")
class OwnTwin(NativeTwin):
    """The base class of the model."""

    model_type = ""
    computes = (Window,)
    rank = 10

    def takes(self, model: LongModel) -> bool:
        return True

    def twin_model_type(self, model: LongModel) -> str:
        return model.base

    def refusal(self, model: LongModel) -> str | None:
        reason, lookbacks = band_refusal(model)
        reason = reason or decoder_refusal(model) or _lengths_differ(model) or tiled_refusal(model)
        return reason or _windows(model, lookbacks)[0]

    def note(self, model: LongModel) -> str:
        return model.family.padding_caveat

    def config_values(self, model: LongModel) -> dict[str, Any]:
        return {**model.values(), **_windows(model, band_refusal(model)[1])[1]}

    def rename(self, name: str, model: LongModel) -> tuple[TensorRename, ...]:
        table = model.family.table(name)
        if table is not None and not table.learned and model.two_stacks:
            return (TensorRename(None, reason="current models compute it"),)
        return (TensorRename(name),)


def _lengths_differ(model: LongModel) -> str | None:
    """Reason why encoder and decoder do not fit a config with one length. ``None`` if they do."""
    learned = any(table.learned for table in model.family.position_tables)
    if not model.two_stacks or not learned or model.config.max_decoder_position_embeddings == model.config.max_position_embeddings:
        return None
    return (
        f"The encoder takes {model.config.max_position_embeddings} tokens and the decoder {model.config.max_decoder_position_embeddings}, "
        f"and a plain {model.head} has one length for both; convert with --max-decoder-length as well."
    )


def _windows(model: LongModel, lookbacks: list[int | None]) -> tuple[str | None, dict[str, Any]]:
    """Config fields for these windows: ``(None, fields)``. ``(reason, {})`` if the base's config cannot express them."""
    config, values = model.config, model.values()
    before = own_windows(config)
    now = [None if back is None else back + 1 if model.causal else 2 * back for back in lookbacks]
    if now == before or (None not in lookbacks and not lookbacks):
        return None, {}
    if not hasattr(config, "sliding_window") and not hasattr(config, "local_attention"):
        odd = next((index for index, back in enumerate(lookbacks) if back is not None), None)
        return (None if odd is None else f"Layer {odd} has a window, for which a plain {model.head} has no setting."), {}
    reason, back = one_width(lookbacks)
    if reason is not None:
        return reason, {}
    if "layer_types" not in values:
        return _uniform(model, lookbacks)
    types = [FULL if back is None else SLIDING for back in lookbacks]
    if (reason := _rotary_differs(values, types)) is not None:
        return reason, {}
    fields: dict[str, Any] = {"layer_types": types}
    if back is None:
        return None, {**fields, **({"use_sliding_window": False} if "use_sliding_window" in values else {})}
    if "local_attention" in values:
        if back < 1:
            return "Layer 0 has a window of one token, for which ModernBERT has no setting.", {}
        return None, {**fields, "local_attention": 2 * back}
    fields["sliding_window"] = back + 1
    if "use_sliding_window" in values:
        count = types.count(FULL)
        last = all(kind == SLIDING for kind in types[count:])
        fields |= {
            "use_sliding_window": True,
            **({"max_window_layers": count if last else len(types)} if "max_window_layers" in values else {}),
        }
    return None, fields


def _uniform(model: LongModel, lookbacks: list[int | None]) -> tuple[str | None, dict[str, Any]]:
    """The result of :func:`_windows` for a config with one window for all layers."""
    if len(set(lookbacks)) == 1:
        used = {"use_sliding_window": lookbacks[0] is not None} if "use_sliding_window" in model.values() else {}
        return None, {"sliding_window": None if lookbacks[0] is None else lookbacks[0] + 1, **used}
    odd = lookbacks.index(None)
    return f"Layer {odd} has full attention and others a window, and a plain {model.head} has one setting for all layers.", {}


def _rotary_differs(values: dict[str, Any], types: list[str]) -> str | None:
    """Reason why a layer's type cannot change, as rotary positions depend on the type. ``None`` if it can."""
    rope, before = values.get("rope_parameters"), values.get("layer_types") or types
    if not isinstance(rope, dict) or not {FULL, SLIDING} <= rope.keys() or rope[FULL] == rope[SLIDING]:
        return None
    odd = next((index for index, (old, new) in enumerate(zip(before, types, strict=True)) if old != new), None)
    if odd is None:
        return None
    kind = "a window" if types[odd] == SLIDING else "full attention"
    return f"Layer {odd} has {kind} with the rotary positions of the other kind of layer, which a stock architecture ties to the kind."
