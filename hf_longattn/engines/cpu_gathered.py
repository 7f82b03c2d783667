"""CPU engine for parts: PyTorch's fused flash kernel over rows of gathered or strided tokens, forward and backward.

Rows are computed a few at a time, so that what is gathered stays in the cache and its memory is used again. Each part is a softmax of
its own; outputs merge exactly by their log-sum-exp. A softmax gradient needs only the merged output and log-sum-exp, so the backward of
every part is the kernel's own backward with the merged values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..naming import OPERATORS
from .cpu_gathered_layout import Limits, Rules, Spec, layout
from .cpu_gathered_masks import Call, calls
from .cpu_gathered_tokens import Scratch, Tokens
from .cpu_layout import MASKED, empty_results, flash, flash_backward, mask_dtype, token_major

FORWARD = Limits(queries=24576, keys=4096, viewed=1 << 40)
BACKWARD = Limits(queries=3072, keys=4096, viewed=24576)
"""Results of a call stay within the cache, and their memory is reused by the next."""


@torch.library.custom_op(f"{OPERATORS}::cpu_gathered", mutates_args=(), device_types="cpu")
def cpu_gathered(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None,
    queries: Sequence[Tensor], keys: Sequence[Tensor], biases: Sequence[Tensor | None], rules: Sequence[int], scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention over the union of the parts' pairs.

    Args:
        q, k, v: ``(B, H, Nq, D)``, ``(B, H, Nk, D)``.
        key_mask: ``(B, Nk)`` bool, True = real token, or None.
        queries, keys, biases: one per part, as in :class:`hf_longattn.engines.parts.Part`.
        rules: four numbers per part, see :func:`flat_rules`.
    Returns:
        output ``(B, H, Nq, D)`` (stored token-major, so that merging the heads is free) and log-sum-exp ``(B, H, Nq)``, 0 where a query
        sees nothing.
    """
    out, lse = empty_results(q)
    specs = _specs(queries, keys, biases, rules)
    layouts = [layout(spec, q.shape[1], q.shape[2], FORWARD) for spec in specs]
    if key_mask is not None or not (layouts and layouts[0].complete):
        out.zero_()
        lse.fill_(MASKED)
    scratch = Scratch()
    q_tokens, k_tokens, v_tokens = Tokens(q), Tokens(k), Tokens(v)
    into = Tokens(out), Tokens(lse)
    for number, (spec, plan) in enumerate(zip(specs, layouts, strict=True)):
        for call in calls(spec, plan, q, key_mask):
            call_q, call_k, call_v = (
                x.read(call, side, scratch, name)
                for x, side, name in ((q_tokens, "queries", "q"), (k_tokens, "keys", "k"), (v_tokens, "keys", "v"))
            )
            part, part_lse = flash(call_q, call_k, call_v, attn_mask=call.mask, scale=scale)
            _write(into, call, part, part_lse, merge=number > 0, scratch=scratch)
    nothing = lse <= MASKED / 2
    if bool(nothing.any()):
        out.masked_fill_(nothing[..., None], 0)
        lse.masked_fill_(nothing, 0)
    return out, lse


def flat_rules(parts: Sequence[Rules]) -> list[int]:
    """The rules of all parts as the operator takes them."""
    return [number for rules in parts for number in (rules.low, rules.high, *rules.left_out)]


def _specs(queries: Sequence[Tensor], keys: Sequence[Tensor], biases: Sequence[Tensor | None], numbers: Sequence[int]) -> list[Spec]:
    rules = [Rules(low, high, (a, b)) for low, high, a, b in zip(*(iter(numbers),) * 4, strict=True)]
    return [Spec(*part) for part in zip(queries, keys, biases, rules, strict=True)]


def _write(into: tuple[Tokens, Tokens], call: Call, part: Tensor, part_lse: Tensor, merge: bool, scratch: Scratch) -> None:
    """Put the results of a call in their places, or merge them with what is there."""
    outs, lses = into
    if call.chunk.queries is not None:
        out, lse = (x.view(call.item, call.chunk, call.chunk.queries) for x in into)
        if merge:
            _merge(out, lse, part, part_lse)
        else:
            out.copy_(part)
            lse.copy_(part_lse)
        return
    assert call.queries is not None
    index = outs.index(call, "queries")
    part, part_lse = part.transpose(1, 2).reshape(-1, part.shape[-1]), part_lse.transpose(1, 2).reshape(-1)
    if call.chunk.holes:
        kept = (call.queries >= 0).expand(-1, -1, call.heads).flatten()
        index, part, part_lse = index[kept], part[kept], part_lse[kept]
    if merge:
        out = torch.index_select(outs.table, 0, index, out=scratch.take("out", tuple(part.shape), part))
        lse = lses.table[index]
        _merge(out, lse, part, part_lse)
        part, part_lse = out, lse
    outs.table.index_copy_(0, index, part)
    lses.table.index_copy_(0, index, part_lse)


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    merged = torch.logaddexp(lse, part_lse)
    out.lerp_(part, (part_lse - merged).exp_()[..., None].to(out.dtype))
    lse.copy_(merged)


@cpu_gathered.register_fake
def _(q, k, v, key_mask, queries, keys, biases, rules, scale):  # type: ignore[no-untyped-def]
    return empty_results(q)


@torch.library.custom_op(f"{OPERATORS}::cpu_gathered_backward", mutates_args=(), device_types="cpu")
def cpu_gathered_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, key_mask: Tensor | None,
    queries: Sequence[Tensor], keys: Sequence[Tensor], biases: Sequence[Tensor | None], rules: Sequence[int], scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of :func:`cpu_gathered` with respect to q, k, v, added up in float32 or finer."""
    specs = _specs(queries, keys, biases, rules)
    sums = [Tokens(_sum_of(x, any(spec.keys.shape[1] > 1 for spec in specs))) for x in (q, k, v)]
    scratch = Scratch()
    by_query = {name: Tokens(x) for name, x in (("grad", grad), ("q", q), ("out", out), ("lse", lse))}
    by_key = {name: Tokens(x) for name, x in (("k", k), ("v", v))}
    for spec in specs:
        for call in calls(spec, layout(spec, q.shape[1], q.shape[2], BACKWARD), q, key_mask):
            at = {name: x.read(call, "queries", scratch, name) for name, x in by_query.items()}
            at |= {name: x.read(call, "keys", scratch, name) for name, x in by_key.items()}
            if call.chunk.holes:  # a weight of exp(score - lse) = 0
                assert call.queries is not None
                at["lse"].masked_fill_((call.queries < 0).transpose(1, 2), -MASKED)
            parts = flash_backward(
                at["grad"], at["q"], at["k"], at["v"], at["out"], at["lse"], 0.0, False, attn_mask=call.mask, scale=scale
            )
            for total, side, part in zip(sums, ("queries", "keys", "keys"), parts, strict=True):
                total.add(call, side, part)
    dq, dk, dv = (y.copy_(total.x) for y, total in zip(token_major(q.dtype, q, k, v), sums, strict=True))
    return dq, dk, dv


def _sum_of(x: Tensor, by_head: bool) -> Tensor:
    """Zeros ``(B, H, N, D)`` to add to, stored so that what is added to at random lies close together."""
    if by_head:
        return torch.zeros(x.shape, dtype=mask_dtype(x))
    return token_major(mask_dtype(x), x)[0].zero_()


@cpu_gathered_backward.register_fake
def _(grad, q, k, v, out, lse, key_mask, queries, keys, biases, rules, scale):  # type: ignore[no-untyped-def]
    return token_major(q.dtype, q, k, v)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, key_mask, queries, keys, biases, ctx.rules, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.count = len(queries)
    ctx.save_for_backward(q, k, v, *output, key_mask, *queries, *keys, *biases)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    q, k, v, out, lse, key_mask, *lists = ctx.saved_tensors
    n = ctx.count
    queries, keys, biases = lists[:n], lists[n : 2 * n], lists[2 * n :]
    dq, dk, dv = cpu_gathered_backward(grad, q, k, v, out, lse, key_mask, queries, keys, biases, ctx.rules, ctx.scale)
    # PyTorch takes a list of tensors apart and a list with a None in it for one thing.
    no_biases = None if any(bias is None for bias in biases) else [None] * n
    return dq, dk, dv, None, [None] * n, [None] * n, no_biases, None, None


cpu_gathered.register_autograd(_backward, setup_context=_setup_context)
