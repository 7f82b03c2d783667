"""What a compiled flex_attention computes, in plain operations: it visits the listed blocks, and asks the mask in the
partial ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, BlockMask

from hf_longattn.engines.dense import repeat_heads


def visits(counts: Tensor | None, indices: Tensor | None, columns: int) -> Tensor | int:
    """How often each row visits each of ``columns`` blocks, ``(B or 1, H or 1, rows, columns)``."""
    if counts is None or indices is None:
        return 0
    valid = torch.arange(indices.shape[-1]) < counts[..., None]
    return torch.zeros(*counts.shape, columns).scatter_add_(-1, indices.long().clamp(0, columns - 1), valid.float())


def by_the_lists(
    kind: object,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_mask: BlockMask,
    scale: float,
    score_mod: Any = None,
    return_aux: Any = None,
    enable_gqa: bool = False,
    **_: Any,
) -> Any:
    """In place of :func:`hf_longattn.engines.cuda.flex_kernel.fused_flex`, with gradients. The lists by queries and by
    keys must agree."""
    (rows, columns), mask = block_mask.BLOCK_SIZE, block_mask
    k, v = (repeat_heads(x, q.shape[1]) if enable_gqa else x for x in (k, v))
    precise = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(precise) @ k.to(precise).transpose(-1, -2)) * scale
    q_blocks, k_blocks = -(-q.shape[2] // rows), -(-k.shape[2] // columns)
    partial, full = (
        visits(mask.kv_num_blocks, mask.kv_indices, k_blocks),
        visits(mask.full_kv_num_blocks, mask.full_kv_indices, k_blocks),
    )
    by_key = (
        visits(mask.q_num_blocks, mask.q_indices, q_blocks),
        visits(mask.full_q_num_blocks, mask.full_q_indices, q_blocks),
    )
    assert mask.q_indices is not None or not any(x.requires_grad for x in (q, k, v)), (
        "the backward pass needs lists by keys"
    )
    for one, other in (
        zip((partial, full), by_key, strict=True)
        if mask.q_indices is not None and not torch.compiler.is_compiling()
        else ()
    ):
        assert isinstance(one, int) or torch.equal(one, other.mT.expand_as(one)), (
            "the lists by keys are not those by queries"
        )

    def of_pairs(blocks: Tensor | int) -> Tensor | int:
        if isinstance(blocks, int):
            return blocks
        return blocks.repeat_interleave(rows, 2).repeat_interleave(columns, 3)[:, :, : q.shape[2], : k.shape[2]]

    places = [
        torch.arange(n).view(shape)
        for n, shape in zip(scores.shape, ((-1, 1, 1, 1), (-1, 1, 1), (-1, 1), (-1,)), strict=True)
    ]
    seen, whole = mask.mask_mod(*places), of_pairs(full)
    assert isinstance(whole, int) or not ((whole > 0) & ~seen).any(), (
        "a block that is listed as full has a hidden pair"
    )
    times = of_pairs(partial) * seen + whole
    scores = scores if score_mod is None else score_mod(scores, *places)
    counted = (scores + times.clamp(min=1).to(scores.dtype).log()).masked_fill(times == 0, float("-inf"))
    nothing_seen = (counted == float("-inf")).all(-1)
    lse = counted.masked_fill(nothing_seen[..., None], 0).logsumexp(-1)
    weights = (counted - lse[..., None]).exp()
    lse = lse.masked_fill(nothing_seen, float("-inf"))
    out = (weights @ v.to(precise)).to(v.dtype)
    return out if return_aux is None else (out, AuxOutput(lse=lse))
