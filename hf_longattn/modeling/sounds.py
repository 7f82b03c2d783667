"""Mixins for Long audio models: checks of the input, and global frames."""

from __future__ import annotations

from typing import Any

from ..engines.batch import in_graph
from ..errors import InputError
from .attach.global_mask import check_globals
from .family.audio_spec import AudioSpec
from .mixin import LongAttentionMixin, LongBaseModelMixin, refuse_text_arguments

GLOBAL_MASK = "global_attention_mask"


class LongAudioMixin(LongAttentionMixin):
    """Mixin before the base's model class that makes it a Long audio class."""

    added_arguments = (GLOBAL_MASK,)
    """The mask ``(B, frames)`` of global frames."""
    hands_globals_down = property(lambda self: self.family.spec.hands_keywords_down)

    def read_arguments(self, arguments: dict[str, Any]) -> None:
        refuse_text_arguments(self, arguments)
        if GLOBAL_MASK in arguments and not self.hands_globals_down:
            raise InputError(
                f"{type(self).__name__} does not hand {GLOBAL_MASK} down to its layers; leave it out, and name global "
                "frames by the mechanism's option, for example global_tokens=0."
            )


class LongAudioModelMixin(LongAudioMixin, LongBaseModelMixin):
    """Mixin before the base model. Checks the sound and the global frames."""

    def check_inputs(self, arguments: dict[str, Any], runs: bool) -> None:
        """Check the inputs of a call, and convert the sound to the model's dtype."""
        spec: AudioSpec = self.family.spec
        spec.check(self.config, arguments, values=not in_graph())
        sound = arguments.get(spec.input)
        if sound is not None:
            arguments[spec.input] = sound.to(self.dtype)  # feature extractors return fp32
        if runs:
            check_globals(self, arguments)
        else:
            arguments.pop(GLOBAL_MASK, None)
