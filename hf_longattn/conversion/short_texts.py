"""Short texts that a converted encoder reads with full attention, like its source: the option ``exact_length`` and its default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..configuration import LongAttentionConfig
from ..errors import OptionError
from ..inputs.common.base import StackLength
from ..mechanisms import Mechanism
from ..mechanisms.common.registry import prototype
from ..mechanisms.common.short_texts import why_not_in_full
from ..modeling.family.sliding_window import keeps_window
from ..options import EXACT_LENGTH


@dataclass(frozen=True)
class ShortTexts:
    """The texts that an encoder reads with full attention.

    length: maximum length in tokens; 0 if there are none.
    reason: why short texts are not read exactly as by the source; empty if they are, or if that does not apply.
    """

    length: int = 0
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"short ones are not read exactly as by the source: {self.reason}"
        return f"of up to {self.length} tokens are read exactly as by the source" if self.length else ""


def why_off(mechanism: Mechanism) -> str:
    """Reason why a layer gets no ``exact_length`` by default; empty if it can get one."""
    reason = why_not_in_full(mechanism)
    if mechanism.traits.trains:
        reason = "has parameters of its own, which need training"
    elif not mechanism.traits.takes_score_mod:
        reason = "is not full attention over fewer keys"
    return f"{mechanism.name!r} {reason}" if reason else ""


def with_short_texts(
    attention: LongAttentionConfig, windows: Sequence[int | None], length: StackLength, change: str, unasked: bool = True
) -> tuple[LongAttentionConfig, ShortTexts]:
    """Set ``exact_length`` to the source's length if possible, and return the texts that then get full attention.

    It is possible if the result is longer than the source, its positions do not change outputs, and no layer objects (:func:`why_off`).
    Layers that keep a window of the source, or are full attention for such texts anyway, are left out.

    Args:
        windows: the window width of each layer in the source; ``None`` for a layer without a window.
        change: how positions change outputs of short texts; empty if they do not.
        unasked: whether to set it if no layer has the option.

    Raises:
        OptionError: ``exact_length`` is more tokens than the source reads.
    """
    choices = [attention.options, *attention.turns, *attention.layers.values()]
    reason = change
    if unasked and length.new > length.old and not change and not any(EXACT_LENGTH in choice for choice in choices):
        lacking = [layer for layer in _without_windows(attention, windows) if not layer.covers(length.old)]
        reason = next(filter(None, map(why_off, lacking)), "")
        if lacking and not reason:
            names, kept = {layer.name for layer in lacking}, [keeps_window(attention, *layer) for layer in enumerate(windows)]
            attention = attention.with_option(
                EXACT_LENGTH, length.old, lambda name, layer: name in names and (layer is None or not kept[layer])
            )
    layers = _without_windows(attention, windows)
    longest = max((layer.options.exact_length or 0 for layer in layers), default=0)
    if not longest:
        return attention, ShortTexts(0, reason)
    if longest > length.old:
        raise OptionError(f"exact_length={longest} is beyond the {length.old} tokens that the source reads; give at most {length.old}.")
    if not all(layer.options.exact_length or layer.covers(longest) for layer in layers):
        return attention, ShortTexts(0, "some layers have no exact_length")
    replaced = len(layers) > windows.count(None)
    shortest = min(layer.options.exact_length for layer in layers if layer.options.exact_length)
    return attention, ShortTexts(shortest, change or ("exact_length replaces windows of the source" if replaced else ""))


def _without_windows(attention: LongAttentionConfig, windows: Sequence[int | None]) -> list[Mechanism]:
    """The mechanism of every layer that keeps no window of the source."""
    numbers = (number for number, width in enumerate(windows) if not keeps_window(attention, number, width))
    return [prototype(*attention.for_layer(number)) for number in numbers]
