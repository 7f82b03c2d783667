"""The lengths in tokens at which source and result of a conversion are run, within limits on the work."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Any

from ..inputs.text import VerificationText
from ..mechanisms import Mechanism
from ..modeling.family.sliding_window import keeps_window, own_windows
from .flops import ModelShape, affordable_length, cost_at, layer_mechanisms
from .plan import ConversionPlan

FLOPS_AT_OLD_LENGTH = 1e12
FLOPS_AT_NEW_LENGTH = 4e12
"""Maximum FLOPs of the checks at the new length: half a minute on two cores. BERT-base at 4,096 tokens fits."""
FLOPS_OF_PADDING = 1e11
"""FLOPs of one forward pass above which padding is checked on shorter texts. Untuned."""
FLOPS_OF_MEASUREMENT, FLOPS_WITH_TEXT = 3e12, 8e12
"""Maximum FLOPs for measuring source and result: on the built-in text, and on a text of the user's."""
LOGITS_BYTES = 2**30
"""Maximum bytes of a decoder's logits, which it computes for some positions only. An encoder computes all, up to twice as many."""


@dataclass(frozen=True)
class Lengths:
    """The lengths in tokens at which source and result are run.

    Attributes:
        covered: maximum up to the old length at which every layer computes the source's attention; 0 if there is none.
        old, new: for comparing outputs, and for the result's longest text.
        padded: of the texts with padding.
        read: of the text on which a loss or embeddings are measured; 0 if no text is long and short enough.
        chunk: tokens of that text that the source reads at once. All of them if only the mechanism differs, not the length.
        every: a decoder's loss is measured at every such position.
        needed: minimum of ``read``.
    """

    covered: int
    old: int
    new: int
    padded: int
    read: int = 0
    chunk: int = 1
    every: int = 1
    needed: int = 0

    @property
    def at_once(self) -> bool:
        """Whether the source reads the measured text at once, as the result does."""
        return self.read == self.chunk


def choose_lengths(plan: ConversionPlan, text: VerificationText | None = None, model: Any = None, *, given_text: bool = False) -> Lengths:
    """Choose the lengths. They are shorter than planned if the model is large.

    Args:
        text, model: the text and the result, for measuring a loss or embeddings.
        given_text: whether the text is the user's, so that more time is spent on measuring.
    """
    old_length, new_length, shape = plan.old_length, plan.new_length, plan.shape
    layers = layer_mechanisms(plan.attention, shape, new_length)
    windows = own_windows(plan.architecture.source_config) if plan.decoder is None else [None] * len(layers)

    def differs(length: int) -> bool:
        """Whether a layer computes another attention than the source's."""
        for number, (layer, width) in enumerate(zip(layers, windows, strict=True)):
            as_source = _is_full(layer, length, shape.causal) and (width is None or length <= width)
            if not as_source and not keeps_window(plan.attention, number, width):
                return True
        return not decoder_covers(plan, length)

    old = affordable_length(old_length, shape, layers, FLOPS_AT_OLD_LENGTH / 3)  # three passes
    new = affordable_length(new_length, shape, layers, FLOPS_AT_NEW_LENGTH / 4)
    reach = bisect.bisect_left(range(1, max(old_length, new) + 1), True, key=differs)  # shorter texts are covered as well
    padded, least = new, 3 * reach // 2 if reach < new else 0  # texts in which the mechanism hides tokens
    while padded // 2 >= max(64, least) and cost_at(padded, shape, layers).total_flops > FLOPS_OF_PADDING:
        padded //= 2
    covered = min(reach, old_length)
    if text is None:
        return Lengths(covered, old, new, padded)

    head = None if model is None else model.get_output_embeddings()
    rows, width = (0, 0) if head is None else head.weight.shape

    def spacing(count: int) -> int:
        return max(1, math.ceil(count * rows * 4 / LOGITS_BYTES)) if shape.causal else 1

    def affordable(count: int) -> bool:
        flops = 2 * (cost_at(count, shape, layers).total_flops + 2 * rows * width * count / spacing(count))
        logits = 0 if shape.causal else count * rows * 4
        return flops <= (FLOPS_WITH_TEXT if given_text else FLOPS_OF_MEASUREMENT) and logits <= 2 * LOGITS_BYTES

    longest = min(new, text.real_tokens())
    # a longer text than the source reads: whole chunks of its length, or equal parts of less than twice its length
    chunk = old_length if new_length >= 2 * old_length else new_length // -(-new_length // old_length)
    needed, read = min(2 * chunk, new_length // chunk * chunk), longest // chunk * chunk
    while read > needed and not affordable(read):
        read = max(needed, read // 2 // chunk * chunk)
    differing = 2 * max(covered, plan.short_texts.length)
    if read < needed or not affordable(read) or (needed == chunk and read < differing):
        # a text that the source reads at once, if half of it is beyond what the mechanism covers
        read, needed = min(longest, old_length), needed if differing > old_length else max(2, differing)
        while read > needed and not affordable(read):
            read = max(needed, read // 2)
        chunk = read = read if read >= needed and needed <= old_length and affordable(read) else 0
    return Lengths(covered, old, new, padded, read, chunk, spacing(read), needed)


def decoder_covers(plan: ConversionPlan, length: int) -> bool:
    """Whether every layer of an encoder-decoder's decoder is full attention at this length; true without a decoder."""
    if plan.decoder is None:
        return True
    shape = ModelShape.of(plan.config, causal=True, matrix_parameters=0, element_bytes=plan.shape.element_bytes)
    return all(_is_full(layer, length, True) for layer in layer_mechanisms(plan.config.decoder_attention, shape, plan.decoder.new))


def _is_full(layer: Mechanism, length: int, causal: bool) -> bool:
    """Whether a layer is full attention at this length, without memory tokens."""
    return layer.covers(length, causal) and (layer.traits.recursion is None or not layer.traits.recursion.memory)
