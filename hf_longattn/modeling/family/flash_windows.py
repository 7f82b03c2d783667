"""Plain windows by transformers' FlashAttention, whose function takes each layer's window.

transformers passes ``sliding_window`` on as a window of ``sliding_window - 1`` keys on either side; a causal call hides the later ones
(``modeling_flash_attention_utils.py``). Therefore w is a causal window of w keys, and w/2 + 1 is a window of w/2 keys on each side.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.utils.generic import is_flash_attention_requested

from ...engines.call import UNBOUNDED
from ...mechanisms.common.base import Mechanism
from ...mechanisms.common.capabilities import band_of
from ...mechanisms.common.registry import prototype


def sliding_window(mechanism: Mechanism, causal: bool) -> int | None:
    """FlashAttention's ``sliding_window`` for a mechanism: :data:`UNBOUNDED` for full attention, ``None`` if it cannot compute it."""
    band = band_of(mechanism, causal) if mechanism.options.order is None else None
    if band is None or not (causal or band[0] == band[1]):
        return None
    return min(band[0] + 1, UNBOUNDED)


def takes_windows(config: Any, requested: str) -> bool:
    """Whether FlashAttention of transformers (``requested``) can compute the mechanisms, given each layer's window.

    It can for text models with plain windows or full attention, if the base supports FlashAttention."""
    from .definition import known_family

    if not is_flash_attention_requested(requested_attention_implementation=requested) or "|" in requested:
        return False
    family = known_family(config)
    if family is None or not family.spec.flash_windows or family.two_stacks or family.mixin is not None or config.is_encoder_decoder:
        return False
    layers, causal = config.attending
    plan = (prototype(*config.long_attention.for_layer(layer)) for layer in range(layers))
    if any(sliding_window(mechanism, causal) is None for mechanism in plan):
        return False
    return bool(family.base_class(family.base_model_name)._supports_flash_attn)


def tell_windows(implementation: str) -> None:
    """Make transformers' attention function of this name, if it is loaded, receive each layer's window."""
    attend = AttentionInterface().get(implementation)
    if attend is not None and not getattr(attend, "tells_windows", False):
        AttentionInterface.register(implementation, _told(attend))


def _told(attend: Any) -> Any:
    @functools.wraps(attend)
    def attend_in_window(module: nn.Module, *args: Any, is_causal: bool | None = None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        mechanism: Any = getattr(module, "long_attention", None)
        if isinstance(mechanism, Mechanism) and not getattr(module.config, "base_attention_chosen", True):
            causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
            width = sliding_window(mechanism, causal)
            if width is not None:
                kwargs["sliding_window"] = None if width == UNBOUNDED else width
        return attend(module, *args, is_causal=is_causal, **kwargs)

    attend_in_window.tells_windows = True  # type: ignore[attr-defined]
    return attend_in_window
