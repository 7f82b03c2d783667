"""Fixed attention of the Sparse Transformer (Child et al. 2019, section 4.3, the sets A^(1) and A^(2) of fixed
attention).

Blocks of l tokens are counted from the first real token. Query i sees key j if either holds (and j <= i in the causal
form):

    j is in the block of i:  ⌊j/l⌋ = ⌊i/l⌋          j is a summary column:  j mod l >= l - c

A query therefore sees only the last c tokens of every other block (of every earlier block when causal).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..engines.call import GatherTile, MaskMod, rows_of
from ..errors import OptionError
from .common.capabilities import About
from .common.layout import QUERIES_PER_WIDE_ROW, block_sizes, cells, full_pairs, in_rows, prefixes
from .common.masked import GatheredMechanism
from .common.options import Options, option
from .common.registry import register_mechanism


@dataclasses.dataclass(frozen=True)
class FixedOptions(Options):
    block_size: int = option(128, "l, tokens in a block; near √N in the paper", "tokens", least=1)
    num_summary: int = option(8, "c, last tokens of each block, which all queries see", "tokens", least=1)

    def check(self) -> None:
        if self.num_summary > self.block_size:
            raise OptionError(
                f"Option 'num_summary' of mechanism 'fixed' is {self.num_summary}, but a block has {self.block_size} "
                f"tokens; give at most num_summary={self.block_size}."
            )


@register_mechanism("fixed")
class Fixed(GatheredMechanism):
    about = About(
        summary="the query's block and the last c tokens of every (earlier, when causal) block",
        paper="Child et al. 2019, Sparse Transformer, §4.3 (fixed)",
        when="documents in blocks of one size, whose last tokens can summarise them; for other texts take `strided` "
        "or `bigbird`",
        engine="gathered",
        cost="N·(l+c·N/l)",
        sample={"block_size": 24, "num_summary": 4},
        covering=lambda length, causal: {"block_size": length},
    )
    per_head_tensors = ()
    options: FixedOptions

    def mask_mod(self, causal: bool, global_mask: Tensor | None) -> MaskMod:
        size = self.options.block_size
        first_summary = size - self.options.num_summary
        return lambda b, h, q_idx, kv_idx: (q_idx // size == kv_idx // size) | (kv_idx % size >= first_summary)

    def parts(self, length: int, causal: bool, device: torch.device) -> tuple[GatherTile, ...]:
        """Tiles of each block with its own keys, and with the summary columns of other blocks."""
        size, summary = self.options.block_size, self.options.num_summary
        blocks = rows_of(length, size, device)[0, 0]
        rows = in_rows(blocks, QUERIES_PER_WIDE_ROW).flatten(0, 1)
        columns = blocks[:, size - summary :].flatten()
        if causal:  # all keys of the own block, and the summary columns of all earlier blocks
            rows_per_block = len(rows) // len(blocks)
            seen = [row // rows_per_block * summary for row in range(len(rows))]
            return (*cells(blocks, blocks, causal=True), *prefixes(rows, columns, seen))
        # the keys of the own block that are no summary columns, and all summary columns
        columns = columns[: column_count(length, size, summary)]
        own_keys = cells(blocks, blocks[:, : size - summary], causal=False)
        return (*own_keys, *prefixes(rows, columns, [len(columns)] * len(rows)))

    def covers(self, length: int, causal: bool = False) -> bool:
        return self.options.block_size >= length or self.options.num_summary == self.options.block_size

    def pairs(self, length: int, causal: bool = False) -> int:
        """Number of visible pairs: those in the own block, and those with summary columns of other blocks."""
        size, summary = self.options.block_size, self.options.num_summary
        if causal:
            return sum(
                full_pairs(tokens, True) + tokens * block * summary
                for block, tokens in enumerate(block_sizes(length, size))
            )
        columns = column_count(length, size, summary)
        return sum(  # own block + all columns - columns of the own block
            tokens * (tokens + columns - max(0, tokens - (size - summary))) for tokens in block_sizes(length, size)
        )


def column_count(length: int, size: int, summary: int) -> int:
    """Number of summary columns among ``length`` tokens; a short last block may have fewer."""
    return length // size * summary + max(0, length % size - (size - summary))
