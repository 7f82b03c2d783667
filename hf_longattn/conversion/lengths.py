"""The lengths in tokens at which source and result of a conversion are run, within limits on the work."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..evaluation.flops import ModelShape, affordable_length, cost_at, layer_mechanisms
from ..inputs.tokenizer import VerificationText
from ..mechanisms import Mechanism
from ..modeling.family.sliding_window import keeps_window, own_windows
from .plan import ConversionPlan

FLOPS_AT_OLD_LENGTH, FLOPS_AT_NEW_LENGTH = 1e12, 4e12
"""Maximum FLOPs of three and of four forward passes. BERT-base at 4,096 tokens fits."""
FLOPS_OF_PADDING, SHORTEST_PADDED = 1e11, 1024
"""FLOPs of one forward pass above which padding is checked on shorter texts, and the tokens that these have at least: engines compute
shorter texts densely. Untuned."""
FLOPS_OF_MEASUREMENT, FLOPS_WITH_TEXT = 3e12, 8e12
"""Maximum FLOPs for measuring source and result: on the built-in text, and on a text of the user's."""
LOGITS_BYTES = 2**30
"""Maximum bytes of a decoder's logits, which are computed for some positions only. An encoder computes all, up to twice as many. The logits
that are compared have at most half as many."""


@dataclass(frozen=True)
class Lengths:
    """The lengths in tokens at which source and result are run.

    Attributes:
        covered: maximum up to the old length at which every layer computes the source's attention; 0 if there is none.
        old, new, padded: for comparing outputs, for the result's longest text, and for texts with padding.
        read: of the text on which a loss or embeddings are measured; 0 if none is possible.
        chunk: tokens of that text that the source reads at once.
        every: a decoder's loss is measured at every such position.
        needed: minimum of ``read`` at which the result can differ from the source.
    """

    covered: int
    old: int
    new: int
    padded: int
    read: int
    chunk: int
    every: int
    needed: int

    @property
    def at_once(self) -> bool:
        """Whether the source reads the measured text in one pass, as the result does."""
        return self.read == self.chunk


def choose_lengths(plan: ConversionPlan, text: VerificationText, given_text: bool = False) -> Lengths:
    """Choose the lengths. They are shorter than planned if the model is large.

    Args:
        text: for measuring a loss or embeddings.
        given_text: whether it is the user's, so that more time is spent on measuring.
    """
    old_length, new_length, shape = plan.old_length, plan.new_length, plan.shape
    layers = layer_mechanisms(plan.attention, shape, new_length)
    windows = own_windows(plan.architecture.source_config) if plan.decoder is None else [None] * len(layers)
    changed = [number for number, width in enumerate(windows) if not keeps_window(plan.attention, number, width)]
    decoder = decoder_mechanisms(plan)

    def differs(length: int) -> bool:
        """Whether a layer computes another attention than the source's."""
        full = covers([layers[number] for number in changed], length, shape.causal) and covers(decoder, length, True)
        return not full or any(length > (windows[number] or length) for number in changed)

    head = plan.skeleton.get_output_embeddings()
    rows, width = (0, 0) if head is None else head.weight.shape
    old = affordable_length(old_length, shape, layers, FLOPS_AT_OLD_LENGTH / 3)
    old = min(old, LOGITS_BYTES // max(1, 8 * rows))
    new = affordable_length(new_length, shape, layers, FLOPS_AT_NEW_LENGTH / 4)
    reach = bisect.bisect_left(range(1, max(old_length, new) + 1), True, key=differs)  # shorter texts are covered as well
    least, padded = min(new, max(SHORTEST_PADDED, 5 * reach // 4)), new  # the mechanism hides tokens of such a text
    while padded > least and cost_at(padded, shape, layers).total_flops > FLOPS_OF_PADDING:
        padded = max(least, padded // 2)
    covered = min(reach, old_length)

    def spacing(count: int) -> int:
        return max(1, math.ceil(count * rows * 4 / LOGITS_BYTES)) if shape.causal else 1

    def affordable(count: int, chunk: int, least: int) -> int:
        """The longest text of whole chunks, halved from ``count``; 0 if it is too short or takes too much work."""
        count = count // chunk * chunk
        while count >= least:
            flops = 2 * (cost_at(count, shape, layers).total_flops + 2 * rows * width * count / spacing(count))
            fits = shape.causal or count * rows * 4 <= 2 * LOGITS_BYTES
            if fits and flops <= (FLOPS_WITH_TEXT if given_text else FLOPS_OF_MEASUREMENT):
                return count
            count = max(count // 2 // chunk * chunk, least if count > least else 0)
        return 0

    longest, same, read, needed = min(new, text.real_tokens()), max(covered, plan.short_texts.length), 0, 0
    if new_length > old_length:  # the source reads chunks of its length, or equal parts of a text of less than twice its length
        chunk = old_length if new_length >= 2 * old_length else new_length // -(-new_length // old_length)
        needed = min(2 * chunk, new_length // chunk * chunk)
        read = affordable(longest, chunk, needed)
    if not read and same < old_length:  # both read a text in which the mechanism differs, at best in half of it
        needed = min(max(2, 2 * same), old_length)
        chunk = read = affordable(min(longest, old_length), 1, needed)
    return Lengths(covered, old, new, padded, read, chunk if read else 0, spacing(read), needed)


def covers(layers: Sequence[Mechanism], length: int, causal: bool) -> bool:
    """Whether every layer is full attention at this length, without memory tokens."""
    return all(layer.covers(length, causal) and (layer.traits.recursion is None or not layer.traits.recursion.memory) for layer in layers)


def decoder_mechanisms(plan: ConversionPlan) -> list[Mechanism]:
    """The mechanism of every layer of an encoder-decoder's decoder; empty without a decoder."""
    if plan.decoder is None:
        return []
    shape = ModelShape.of(plan.config, causal=True)
    return layer_mechanisms(plan.config.decoder_attention, shape, plan.decoder.new)
