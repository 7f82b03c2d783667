"""Chunked attention: a token sees its chunk of c tokens and the n chunks before it. Sources: Zhang et al. 2020, Unified Streaming and
Non-streaming Two-pass End-to-end Model for Speech Recognition, arXiv 2012.05481; NVIDIA's FastConformer, Nemotron (``att_context_size``).

With C(i) = ⌊i/c⌋, counted from the first real token, query i sees key j if

    0 <= C(i) - C(j) <= n        (and j <= i in the causal form)

A token looks ahead at most to the end of its chunk. FastConformer's ``att_context_size=[70, 13]`` is ``chunk_size=14, left_chunks=5``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines.common.call import GatherTile, MaskMod, rows_of
from ..options import Options, option
from ..positions.distances import Locality
from .common.layout import block_sizes, cells, full_pairs
from .common.masked import GatheredMechanism
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class ChunkedOptions(Options):
    chunk_size: int = option(64, "c, tokens in a chunk, which see each other", "tokens", least=1)
    left_chunks: int = option(7, "n, chunks before its own that a token sees", "chunks", least=0)


@register_mechanism("chunked")
class Chunked(GatheredMechanism):
    """Softmax over the token's chunk and some chunks before it."""

    summary = "each token sees its chunk and the n chunks before it, as streaming speech models do"
    paper = "Zhang et al. 2020, Unified Streaming and Non-streaming Two-pass End-to-end Model for Speech Recognition"
    when = "a speech encoder was trained with chunks (FastConformer)"
    cost = "N·c·(n+1)"
    per_head_tensors = ()
    sample: ClassVar[dict[str, Any]] = {"chunk_size": 12, "left_chunks": 2}
    covering_options: ClassVar[Mapping[str, int]] = {"chunk_size": 1}
    options: ChunkedOptions

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        size, earlier = self.options.chunk_size, self.options.left_chunks

        def mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            back = q_idx // size - kv_idx // size
            return (back >= 0) & (back <= earlier)

        return mod

    def chunks(self) -> tuple[int, int]:
        return self.options.chunk_size, self.options.chunk_size * self.options.left_chunks

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        chunks = rows_of(length, self.options.chunk_size, device)[0, 0]
        earlier = min(self.options.left_chunks, len(chunks) - 1)
        padded = F.pad(chunks, (0, 0, earlier, 0), value=-1)
        keys = torch.cat([padded[first : first + len(chunks)] for first in range(earlier + 1)], 1)
        return tuple(cells(chunks, keys, causal=causal))

    def locality(self, causal: bool) -> Locality | None:
        size = self.options.chunk_size
        return Locality((self.options.left_chunks + 1) * size - 1, 0 if causal else size - 1, size)

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.options.chunk_size * (self.options.left_chunks + 1 if causal else 1) >= length

    def pairs(self, length: int, causal: bool = False) -> int:
        sizes, earlier = block_sizes(length, self.options.chunk_size), self.options.left_chunks
        return sum(full_pairs(size, causal) + size * sum(sizes[max(0, chunk - earlier) : chunk]) for chunk, size in enumerate(sizes))
