"""What the mixins of bases with attention modules of their own have in common: they bring these onto transformers' AttentionInterface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..backend import BACKEND

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base
else:
    _Base = object


class OnTheInterface(_Base):
    """Every implementation of the interface can be asked for.

    A head builds the plain base model inside it, which refuses ``sdpa`` and the like, since its own attention is not on the interface;
    so it is built under this package's name, and what was asked for holds from ``post_init`` on, when the modules are ours.
    """

    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _asked: str | None = None

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        chosen = super().get_correct_attn_implementation(requested_attention, is_init_check)
        if is_init_check:
            self._asked = chosen
            return BACKEND
        return chosen

    def post_init(self) -> None:
        if self._asked is not None:
            self.config._attn_implementation_internal, self._asked = self._asked, None
        super().post_init()
