"""Recurrent memory transformer (Bulatov et al. 2022, section 3): memory tokens pass from each segment to the next.

A layer computes full attention within segments of S tokens, counted from the first real token: query i sees key j if
⌊i/S⌋ = ⌊j/S⌋, and j <= i in the causal form. The recurrence is part of the model. The Long classes run it on one
segment τ after the other, with memory tokens mem_τ beside the segment's text:

    encoder:  [mem_τ ∘ text_τ]             mem_{τ+1} = last hidden states of mem_τ
    decoder:  [mem_τ ∘ text_τ ∘ mem_τ]     mem_{τ+1} = last hidden states of the second mem_τ

mem_0 is learned. A model of S positions therefore reads texts of any length. Gradients flow back through the last
``bptt_depth`` segments.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..engines.call import GatherTile, MaskMod, rows_of
from ..errors import OptionError
from .common.base import LayerSizes
from .common.capabilities import About, Recursion
from .common.layout import block_sizes, cells, full_pairs
from .common.masked import GatheredMechanism
from .common.options import Options, option
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class RecurrentMemoryOptions(Options):
    segment_length: int = option(512, "S, tokens in a segment, memory tokens included", "tokens", least=1)
    num_memory_tokens: int = option(
        16, "memory tokens; a decoder has them twice in a segment, to read and to write", "tokens", least=0, most=1024
    )
    bptt_depth: int | None = option(None, "how many segments back gradients flow; default: all", "segments", least=0)

    def check(self) -> None:
        if self.segment_length < 2 * self.num_memory_tokens + 2:
            raise OptionError(
                f"Option 'segment_length' of mechanism 'recurrent_memory' is {self.segment_length}, but a segment "
                f"holds {self.num_memory_tokens} memory tokens before and after its text; set "
                f"segment_length={2 * self.num_memory_tokens + 2} or more."
            )


@register_mechanism("recurrent_memory")
class RecurrentMemory(GatheredMechanism):
    about = About(
        summary="full attention within a segment; in a model, learned memory tokens pass from segment to segment",
        paper="Bulatov et al. 2022, Recurrent Memory Transformer, §3",
        when="a text too long for memory, read segment by segment by a model that you train to write into memory "
        "tokens",
        engine="gathered",
        cost="N·S",
        sample={"segment_length": 40, "num_memory_tokens": 3},
        covering=lambda length, causal: {"segment_length": max(length, 34)},
    )
    capabilities = GatheredMechanism.capabilities.but(trains=True, takes_sinks=False, images="segments")
    options: RecurrentMemoryOptions

    def __init__(self, sizes: LayerSizes, options: RecurrentMemoryOptions) -> None:
        super().__init__(sizes, options)
        recursion = Recursion(options.segment_length, options.num_memory_tokens, options.bptt_depth)
        self.capabilities = self.capabilities.but(recursion=recursion)

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        size = self.options.segment_length
        return lambda b, h, q_idx, kv_idx: q_idx // size == kv_idx // size

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        blocks = rows_of(length, self.options.segment_length, device)[0, 0]
        return tuple(cells(blocks, blocks, causal=causal))

    def covers(self, length: int, causal: bool = False) -> bool:
        return length <= self.options.segment_length

    def pairs(self, length: int, causal: bool = False) -> int:
        return sum(full_pairs(size, causal) for size in block_sizes(length, self.options.segment_length))
