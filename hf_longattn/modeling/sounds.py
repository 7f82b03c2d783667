"""Mixins for Long audio models: checks of the input, and global frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engines.batch import in_graph
from ..errors import InputError
from .attach.global_mask import check_globals
from .backend import weights_requested
from .family.audio_spec import AudioSpec
from .keywords import COLLECT_WEIGHTS
from .mixin import LongAttentionMixin, LongBaseModelMixin, refuse_text_arguments

GLOBAL_MASK = "global_attention_mask"


class LongAudioMixin(LongAttentionMixin):
    """Mixin before the base's model class that makes it a Long audio class."""

    added_arguments = (GLOBAL_MASK,)
    """Global frames, ``(B, frames)``."""

    def read_arguments(self, arguments: dict[str, Any]) -> None:
        refuse_text_arguments(self, arguments)
        if GLOBAL_MASK in arguments and not self.family.spec.hands_keywords_down:
            raise InputError(
                f"{type(self).__name__} does not hand {GLOBAL_MASK} down to its layers; leave it out, and name global "
                "frames by the mechanism's option, for example global_tokens=0."
            )


class LongAudioModelMixin(LongAudioMixin, LongBaseModelMixin):
    """Mixin before the base model: checks the input, and requests weights from its attention modules."""

    def call_base(self, base_forward: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        spec: AudioSpec = self.family.spec
        spec.check(self.config, arguments, values=not in_graph())
        if (sound := arguments.get(spec.input)) is not None:
            arguments[spec.input] = sound.to(self.dtype)  # feature extractors return fp32
        if not self.runs_mechanisms:
            arguments.pop(GLOBAL_MASK, None)
            return base_forward(self, **arguments)
        check_globals(self, arguments)
        if spec.hands_keywords_down and weights_requested(arguments, self.config.output_attentions):
            arguments[COLLECT_WEIGHTS] = True
        return base_forward(self, **arguments)
