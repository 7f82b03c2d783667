"""Mixins for Long audio models: checks of the input, and global frames."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..backend import COLLECT_WEIGHTS
from ..engines.common.batch import in_graph
from ..errors import MaskError
from .attach.token_globals import check_globals
from .family.audio_rule import AudioRule
from .mixin import LongAttentionMixin, LongBaseModelMixin, refuse_text_arguments, with_keywords

GLOBAL_MASK = "global_attention_mask"


class LongAudioMixin(LongAttentionMixin):
    """Mixin before the base's model class that makes it a Long audio class."""

    @classmethod
    def with_arguments(cls, base_forward: Any) -> Any:
        """``base_forward`` with its arguments by name, and ``global_attention_mask (B, frames)``."""
        names = [name for name in inspect.signature(base_forward).parameters if name != "self"]

        @functools.wraps(base_forward)
        def forward(self: Any, *args: Any, global_attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
            refuse_text_arguments(self, kwargs)
            arguments = {**dict(zip(names, args, strict=False)), **kwargs}
            if global_attention_mask is not None:
                if not self.family.audio.hands_keywords_down:
                    raise MaskError(
                        f"{type(self).__name__} does not hand {GLOBAL_MASK} down to its layers; leave it out, and name global frames by "
                        "the mechanism's option, for example global_tokens=0."
                    )
                arguments[GLOBAL_MASK] = global_attention_mask
            return self.call_base(base_forward, arguments)

        return with_keywords(forward, base_forward, {GLOBAL_MASK: "Tensor | None"})


class LongAudioModelMixin(LongAudioMixin, LongBaseModelMixin):
    """Mixin before the base model: checks the input, and requests weights from its attention modules."""

    def call_base(self, base_forward: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        rule: AudioRule = self.family.audio
        rule.check(self.config, arguments, values=not in_graph())
        if (sound := arguments.get(rule.input)) is not None:
            arguments[rule.input] = sound.to(self.dtype)  # feature extractors return fp32
        if not self.runs_mechanisms:
            arguments.pop(GLOBAL_MASK, None)
            return base_forward(self, **arguments)
        check_globals(self, arguments)
        if rule.hands_keywords_down and self._collects_attentions(arguments):
            arguments[COLLECT_WEIGHTS] = True
        return base_forward(self, **arguments)
