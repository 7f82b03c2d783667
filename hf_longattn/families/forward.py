"""The ``forward`` of a Long model: that of its base, with ``global_attention_mask`` and a memory besides."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import Tensor

from ..backend import BACKEND
from ..errors import MaskError, MemoryMismatchError
from ..memory import SegmentMemory
from .auxiliary import with_auxiliary_loss
from .recurrence import run_with_memory


def with_long_arguments(base_forward: Any) -> Any:
    """``base_forward`` with our arguments in its signature: Trainer drops the columns that it does not find there."""

    @functools.wraps(base_forward)
    def forward(
        self: Any,
        *args: Any,
        global_attention_mask: Tensor | None = None,
        memory: SegmentMemory | None = None,
        memory_reset: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if global_attention_mask is not None and not self.hands_globals_down:
            raise MaskError(f"{type(self).__name__} has no way to hand a global_attention_mask to its attention; leave it out.")
        if global_attention_mask is not None:  # heads that take several texts for each example flatten them, (B, choices, N)
            several = global_attention_mask.dim() == 3
            kwargs["global_attention_mask"] = global_attention_mask.flatten(0, 1) if several else global_attention_mask
        if memory is not None:
            return run_with_memory(self, forward, args, kwargs, memory, memory_reset)
        if memory_reset is not None:
            raise MemoryMismatchError("memory_reset says which rows begin anew, but no memory was given; pass memory=model.new_memory().")
        outputs = self.prepared(base_forward, args, kwargs)(self, *args, **kwargs)
        return with_auxiliary_loss(self, outputs, kwargs) if self.training and self.config._attn_implementation == BACKEND else outputs

    signature = inspect.signature(base_forward)
    parameters = list(signature.parameters.values())
    own = inspect.signature(forward, follow_wrapped=False).parameters.values()
    added = [parameter for parameter in own if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    last = len(parameters) - 1 if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else len(parameters)
    forward.__signature__ = signature.replace(parameters=[*parameters[:last], *added, *parameters[last:]])  # type: ignore[attr-defined]
    return forward
