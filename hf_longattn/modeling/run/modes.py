"""The protocol of modes, and which of them meet in one call."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from .outputs import wants_tuple

Forward = Callable[..., Any]
"""A model's ``forward``, called with the model and arguments by name."""
Inputs = TypeVar("Inputs")


class Mode(ABC, Generic[Inputs]):
    """A way to run a model otherwise than once with the caller's arguments, in three steps: the inputs are prepared, the model is run once
    or several times, and every field of the output is restored to the shape that the caller expects."""

    name: ClassVar[str]

    @abstractmethod
    def prepare(self, model: Any, arguments: dict[str, Any]) -> Inputs | None:
        """What this call runs on in this mode; ``None`` where the call is run without it.

        Raises:
            LongAttentionError: one sentence, for a call that this mode neither runs nor leaves alone.
        """

    @abstractmethod
    def run(self, model: Any, forward: Forward, inputs: Inputs) -> list[Any]:
        """The outputs, by name, of one run or several."""

    @abstractmethod
    def restore(self, model: Any, inputs: Inputs, parts: Sequence[Any]) -> Any:
        """The outputs of the whole call. Those of base models are restored by :func:`.outputs.joined`, which knows every field."""


def run_in_modes(modes: Iterable[Mode[Any] | None], model: Any, forward: Forward, arguments: dict[str, Any]) -> Any:
    """The outputs of ``model`` in the first of ``modes`` that runs the call ``arguments``; ``None`` if none does."""
    for mode in modes:
        if mode is not None and (inputs := mode.prepare(model, arguments)) is not None:
            outputs = mode.restore(model, inputs, mode.run(model, forward, inputs))
            return outputs.to_tuple() if wants_tuple(model, arguments) else outputs
    return None


class Meeting(enum.Enum):
    """What happens where two modes apply to one call."""

    BOTH = "both run"
    FIRST = "the first runs, and the second leaves the call alone"
    SECOND = "the second runs, and the first leaves the call alone"
    REFUSED = "the call is refused with one sentence"


MEETINGS: Mapping[tuple[str, str], Meeting] = {
    ("sharding", "packing"): Meeting.FIRST,  # processes would pack different numbers of tokens
    ("sharding", "segments"): Meeting.REFUSED,
    ("sharding", "memory"): Meeting.REFUSED,
    ("packing", "segments"): Meeting.SECOND,  # segments are counted from each row's first token
    ("packing", "memory"): Meeting.SECOND,  # a memory is by row
    ("segments", "memory"): Meeting.BOTH,  # the memory is that of the last segment
}


class RunsInModes:
    """A base model whose calls may be sharded or packed; :mod:`hf_longattn.modeling.run` has all modes."""

    sharding: Mode[Any] | None = None
    """The :class:`.sharding.Sharding` by which this model's sequences are split, inside of :func:`hf_longattn.sequence_parallel`."""
    packing: Mode[Any] | None = None
    """The :class:`.packing.Packing` by which padded batches are run as one packed row, after ``optimize_for_inference``."""
