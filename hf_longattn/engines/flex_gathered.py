"""CUDA engine for parts of whole blocks: compiled flex_attention over the parts' own block lists."""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest

from .block_lists import Lists, block_mask, packed, transposed
from .byte_cache import KEPT
from .flex import kernel, kind_of
from .merging import merged
from .parts import Part
from .pattern import ScoreMod

SIZES = (128, 64, 32)
"""Blocks that the compiled kernel can be cut into."""


def flex_gathered(
    q: Tensor, k: Tensor, v: Tensor, parts: Sequence[Part], *, key_mask: Tensor | None, scale: float, score_mod: ScoreMod | None = None
) -> Tensor | None:
    """As :func:`hf_longattn.engines.gathered.gathered_attention`; None where a part is not made of whole blocks, or this machine supports
    no such kernel (logged once for each kind). Every other error, such as a lack of memory, is the caller's."""
    found = [kept_block_lists(part, q.shape[2], k.shape[2]) for part in parts]
    if not all(found):
        return None
    shared = (q.device.type, q.dtype, q.shape[-1], key_mask is None, kind_of(score_mod))
    kinds = [
        ("part", *shared, part.causal, part.inside, part.outside, blocks and blocks[0]) for part, blocks in zip(parts, found, strict=True)
    ]
    if not _unsupported.isdisjoint(kinds):
        return None
    single = len(parts) == 1
    outs, lses = [], []
    for part, blocks, kind in zip(parts, found, kinds, strict=True):
        assert blocks is not None
        size, lists = blocks
        mask = block_mask(
            (q.shape[2], k.shape[2]),
            size,
            rules_mod(part, key_mask),
            by_query=(lists, None),
            by_key=(transposed(lists, -(-k.shape[2] // size)), None),
        )
        try:
            result = kernel(q.device.type, kind)(
                q, k, v, score_mod=score_mod, block_mask=mask, scale=scale, **_tiles(size), **({} if single else _WITH_LSE)
            )
        except Exception as error:
            if not says_unsupported(error):
                raise
            _unsupported.add(kind)
            reason = str(error).strip().splitlines()[0]
            logger.warning(
                "flex_attention does not support blocks of %d here (%s): they run in plain PyTorch, which is equal.", size, reason
            )
            return None
        if single:
            return result
        outs.append(result[0])
        lses.append(result[1].lse)
    return merged(outs, lses)


logger = logging.getLogger(__name__)
_unsupported: set[Hashable] = set()
"""Kinds of parts whose kernel this machine does not support; as many as there are compiled kernels at most."""
UNSUPPORTED = re.compile(
    r"not (yet )?(supported|implemented)|unsupported|does not support|NYI|working triton installation|triton is not|"
    r"no valid (triton configs|choices)|out of resource: shared memory|OutOfResources",
    re.IGNORECASE,
)
"""How PyTorch and Triton say that a machine has no such kernel."""


def says_unsupported(error: BaseException) -> bool:
    """Whether an error says that the kernel does not exist here, in itself or in what it was raised from; a lack of memory does not."""
    causes = _causes(error)
    if any(isinstance(one, torch.OutOfMemoryError | MemoryError) for one in causes):
        return False
    return any(isinstance(one, NotImplementedError) or UNSUPPORTED.search(str(one)) for one in causes)


def _causes(error: BaseException) -> list[BaseException]:
    found = [error]
    while (following := found[-1].__cause__ or found[-1].__context__) is not None:
        found.append(following)
    return found


_WITH_LSE = {"return_aux": AuxRequest(lse=True)}


def kept_block_lists(part: Part, q_len: int, kv_len: int) -> tuple[int, Lists] | None:
    """:func:`block_lists`, found once for the parts of a static plan: it looks at values, for which a GPU is waited for."""
    tensors = [x for x in (part.queries, part.keys) if not x.is_inference()]
    if len(tensors) < 2 or torch.compiler.is_compiling() or part.bias is not None:
        return block_lists(part, q_len, kv_len)
    return KEPT.of(
        tensors,
        ("block lists", q_len, kv_len),
        lambda: block_lists(part, q_len, kv_len),
        lambda found: 0 if found is None else sum(x.nbytes for x in found[1]),
    )


def block_lists(part: Part, q_len: int, kv_len: int) -> tuple[int, Lists] | None:
    """The block size of a part and the key blocks of every block of queries; None where its rows are not whole blocks.

    A whole block holds the positions ``n · size …`` of its size in order, with -1 for those past the end of the sequence.
    """
    size = part.queries.shape[3]
    if size not in SIZES or part.keys.shape[3] % size or part.bias is not None:
        return None
    keys = part.keys.unflatten(-1, (-1, size))
    row, row_whole = _blocks(part.queries, size, q_len)
    block, whole = _blocks(keys, size, kv_len)
    empty = (keys < 0).all(-1)
    if not bool(row_whole.all() & (whole | empty).all()):
        return None
    batch, heads, rows, width = torch.broadcast_shapes(row[..., None].shape, block.shape)
    chosen = torch.zeros(batch, heads, -(-q_len // size), width, dtype=torch.bool, device=keys.device)
    indices = chosen.to(torch.int64)
    place = row[..., None].expand(batch, heads, rows, width)
    chosen = chosen.scatter(2, place, (~empty).expand(place.shape))
    return size, packed(chosen, indices.scatter(2, place, block.clamp(min=0).expand(place.shape)))


def _blocks(index: Tensor, size: int, length: int) -> tuple[Tensor, Tensor]:
    """Which block each list ``index (…, size)`` begins with, and whether it is that whole block."""
    first = index[..., 0]
    places = first[..., None] + torch.arange(size, device=index.device)
    whole = (first >= 0) & (first % size == 0) & (index == torch.where(places < length, places, -1)).all(-1)
    return first.div(size, rounding_mode="floor"), whole


def rules_mod(part: Part, key_mask: Tensor | None) -> Any:
    """The rules of a part and the padding as flex_attention's ``mask_mod``."""

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        distance = q_idx - kv_idx
        seen = distance >= 0 if part.causal else distance == distance
        if part.inside is not None:
            seen = seen & (distance >= part.inside[0]) & (distance <= part.inside[1])
        if part.outside is not None:
            seen = seen & ((distance < part.outside[0]) | (distance > part.outside[1]))
        return seen if key_mask is None else seen & key_mask[b, kv_idx]

    return mask_mod


def _tiles(size: int) -> dict[str, Any]:
    """Tiles no larger than a block; the kernel's own choice suits blocks of 128."""
    if size == 128:
        return {}
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2")
    return {"kernel_options": dict.fromkeys(names, size)}
