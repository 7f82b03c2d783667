"""The protocol of modes, and the rules for two modes in one call."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from ...errors import LongAttentionError, MaskError, OptionError
from .outputs import wants_tuple

Forward = Callable[..., Any]
"""A model's ``forward``, called with the model and arguments by name."""
Inputs = TypeVar("Inputs")


class Mode(ABC, Generic[Inputs]):
    """A way to run a model in three steps. It differs from a single run with the caller's arguments.

    The inputs are prepared, the model runs once or several times, and the output's fields get the shapes that the caller expects."""

    name: ClassVar[str]
    """The mode's name in messages."""
    key: ClassVar[str]
    """The mode's name in :data:`MODE_INTERACTIONS`."""

    @abstractmethod
    def prepare(self, model: Any, arguments: dict[str, Any]) -> Inputs | None:
        """The inputs of this mode for a call. ``None`` if the call does not run in this mode.

        Raises:
            LongAttentionError: this mode applies to the call but cannot run it.
        """

    @abstractmethod
    def run(self, model: Any, forward: Forward, inputs: Inputs) -> list[Any]:
        """The outputs, by name, of one or several runs."""

    @abstractmethod
    def restore(self, model: Any, inputs: Inputs, parts: Sequence[Any]) -> Any:
        """The outputs of the whole call. Modes of base models use :func:`.outputs.joined`, which knows every field."""


class ModeInteraction(enum.Enum):
    """What happens if two modes apply to one call."""

    BOTH = "both run"
    FIRST = "the first runs, and the second leaves the call alone"
    SECOND = "the second runs, and the first leaves the call alone"
    REFUSED = "the call is refused with one sentence"


MODE_INTERACTIONS: Mapping[tuple[str, str], ModeInteraction] = {
    ("sharding", "packing"): ModeInteraction.FIRST,  # processes would pack different numbers of tokens
    ("sharding", "segments"): ModeInteraction.REFUSED,
    ("sharding", "memory"): ModeInteraction.REFUSED,
    ("packing", "segments"): ModeInteraction.SECOND,  # segments are counted from each row's first token
    ("packing", "memory"): ModeInteraction.SECOND,  # each row has its own memory
    ("segments", "memory"): ModeInteraction.BOTH,  # the last segment's memory is returned
}
REFUSALS: Mapping[tuple[str, str], tuple[type[LongAttentionError], str]] = {
    ("sharding", "segments"): (OptionError, "{model} runs over its text in segments, which cannot be split across processes."),
    ("sharding", "memory"): (
        MaskError,
        "A sequence that is split across processes cannot be given memory; leave that, or sequence parallelism, out.",
    ),
}
"""The error for each pair of modes that is refused. ``{model}`` stands for the model's class."""


def should_run(key: str, applying: Iterable[str], model: Any) -> bool:
    """Whether a call of ``model`` runs in the mode ``key``, by :data:`MODE_INTERACTIONS`. False if another mode runs it.

    Args:
        applying: the modes that apply to the call.

    Raises:
        LongAttentionError: the call is refused with the sentence of :data:`REFUSALS`.
    """
    for met in applying:
        if met == key:
            continue
        pair = (key, met) if (key, met) in MODE_INTERACTIONS else (met, key)
        if MODE_INTERACTIONS[pair] is ModeInteraction.REFUSED:
            kind, sentence = REFUSALS[pair]
            raise kind(sentence.format(model=type(model).__name__))
        if MODE_INTERACTIONS[pair] is (ModeInteraction.SECOND if pair[0] == key else ModeInteraction.FIRST):
            return False
    return True


def run_in_modes(
    modes: Iterable[Mode[Any] | None], model: Any, forward: Forward, arguments: dict[str, Any], applying: Collection[str]
) -> Any:
    """The outputs of ``model`` in the first of ``modes`` that runs the call ``arguments``. ``None`` if none does.

    Args:
        applying: the modes that apply to the call.
    """
    for mode in modes:
        if mode is None or mode.key not in applying or not should_run(mode.key, applying, model):
            continue
        if (inputs := mode.prepare(model, arguments)) is not None:
            outputs = mode.restore(model, inputs, mode.run(model, forward, inputs))
            return outputs.to_tuple() if wants_tuple(model, arguments) else outputs
    return None


class RunsInModes:
    """A base model whose calls may be sharded or packed. :mod:`hf_longattn.modeling.run` describes all modes."""

    sharding: Mode[Any] | None = None
    """The :class:`.sharding.Sharding` that splits this model's sequences, within :func:`hf_longattn.sequence_parallel`."""
    packing: Mode[Any] | None = None
    """The :class:`.packing.Packing` that runs padded batches as one packed row, after ``optimize_for_inference``."""
