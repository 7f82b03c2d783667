"""The path ``linear-triton``: causal linear attention by two Triton kernels of our own, whatever the features.

    o_i = Σ_{j ≤ i} (φ(q_i)·φ(k_j)) v_j / d_i        d_i = Σ_{j ≤ i} φ(q_i)·φ(k_j)

The first kernel sums φ(k)ᵀv and φ(k) over each chunk, a running sum adds up those before each chunk, and the second multiplies a block of
queries with the keys of its chunk and with that sum. Scores stay on the chip, and of a chunk only its sum is written. A chunk is as long as
costs least: the sums of F·D numbers are written and read four times, and the pairs within a chunk cost a product each.

Both passes are the same sum. With ĝ_i = g_i / d_i, c_i = -ĝ_i·o_i (see ``linear.py``), v' = [v, 1] and ĝ' = [ĝ, c],

    ∂φ(q_i) = Σ_{j ≤ i} (ĝ'_i·v'_j) φ(k_j)      ∂φ(k_j) = Σ_{i ≥ j} (v'_j·ĝ'_i) φ(q_i)      ∂v_j = Σ_{i ≥ j} (φ(k_j)·φ(q_i)) ĝ_i

The sums can also be added in place to those of other keys, over j ≤ i or j ≥ i: :func:`add_kernel_linear_attention`.

For values in half precision the products are rounded to TF32, whose error is below that of the values; for fp32 each is three products of
TF32, which is as exact as fp32. All sums are in fp32.

Whether this machine runs the kernels is tried once for each kind of call, with a few tokens whose results are compared with the definition.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.dense import repeat_heads, unit_stride
from ..common.derivatives import first_derivatives_only, one_gradient_at_a_time
from .flex_kernel import MACHINE_ERRORS, NoKernel

logger = logging.getLogger(__name__)
BLOCK = 64
"""Tokens in a tile."""
LEAST_SIDE, MOST_SIDE = 16, 64
"""Features, or numbers of a value, in a tile."""
LAUNCH = {"num_warps": 4, "num_stages": 2}
"""How Triton compiles the kernels: with 64 KB of shared memory at most, which every GPU with TF32 has."""
PRODUCTS_PER_BYTE = 75
"""Multiplications and additions by the tensor cores in the time in which a byte is read: of an H100, in TF32."""
SHORTEST_CHUNK, LONGEST_CHUNK = 64, 512
FIRST_CAPABILITY = (8, 0)
"""The first GPUs with TF32."""
ALIGNED = 4
"""Numbers of fp32 that are loaded at once."""


def kernel_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, kv: Tensor, z: Tensor, normalise: bool, scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal linear attention of features ``q (B, H, N, F)`` and ``k (B, H_kv, N, F)`` in fp32 to ``v (B, H_kv, N, D)``.

    Args:
        scale: with it ``q`` and ``k`` are the features' logarithms, and the sums are relative to its exponentials, ``(B, H_kv, F)``; only
            with ``normalise``.
        kv, z: the sums ``(B, H_kv, F, D)`` and ``(B, H_kv, F)`` of φ(k)ᵀv and φ(k) over the earlier tokens.
        normalise: divide by the sum of the weights; rows without any are zeros.
    Returns:
        The output ``(B, H, N, D)`` and the sums after the last token, in fp32.
    Raises:
        NoKernel: this machine does not run the kernels, which is logged once.
    """
    needs_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, kv, z))
    kind = q.device, v.dtype, q.shape[3], v.shape[3], normalise, scale is not None, needs_gradients
    one_refusal(_refusals, kind, lambda: _tried(*kind), "linear attention")
    out, kv, z = _Causal.apply(q, k, v, kv, z, normalise, scale)
    return out, kv, z


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, z: Tensor, normalise: bool, scale: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (unit_stride(x) for x in (q, k, v))
        out, weights, kv_after, z_after = summed(q, k, v, kv, z, precision=precision_for(v), normalise=normalise, scale=scale)
        ctx.save_for_backward(q, k, v, kv, z, scale, *((out, weights) if normalise else ()))
        return out, kv_after, z_after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        with one_gradient_at_a_time():
            return first_derivatives_only((*_gradients(ctx.saved_tensors, *grads), None, None))


def add_kernel_linear_attention(
    total: Tensor, weight: Tensor, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, z: Tensor, first: int, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Add Σ_j (q_i·k_j) v_j to ``total (B, H, N, D)`` and Σ_j q_i·k_j to ``weight (B, H, N)``, both in fp32, in place.

    Args:
        q: features ``(B, H, n, F)`` in fp32 of the rows of ``total`` from ``first`` on.
        k, v: ``(B, H_k, n, F)`` in fp32 and ``(B, H_v, n, D)``, where one number of heads divides the other, and both H.
        kv, z: the sums ``(B, heads, F, D)`` and ``(B, heads, F)`` over the tokens before, or after with ``reverse``, with the heads of k or
            v, whichever are more.
        reverse: sum over j ≥ i in place of j ≤ i.
    Returns:
        ``total`` and ``weight``.
    Raises:
        NoKernel: this machine does not run the kernels, in either direction, which is logged once; nothing has been added.
    """
    needs_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, kv, z))
    kind = q.device, v.dtype, q.shape[3], v.shape[3], needs_gradients
    one_refusal(_refusals, kind, lambda: _tried_to_add(*kind), "linear attention")
    total, weight = _Added.apply(total, weight, q, k, v, kv, z, first, reverse)
    return total, weight


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, total: Tensor, weight: Tensor, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, z: Tensor, first: int, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        q, k, v = (unit_stride(x) for x in (q, k, v))
        rows = slice(first, first + q.shape[2])
        onto = total[:, :, rows], weight[:, :, rows]
        summed(q, k, v, kv, z, precision=precision_for(v), reverse=reverse, onto=onto)
        ctx.mark_dirty(total, weight)
        ctx.save_for_backward(q, k, v, kv, z)
        ctx.rows, ctx.reverse = rows, reverse
        return total, weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        with one_gradient_at_a_time():
            q, k, v, kv, z = ctx.saved_tensors
            grad, shift = (x[:, :, ctx.rows] for x in grads)
            gradients = _gradients_of_sums(q, k, v, kv, z, grad, shift[..., None], None, None, ctx.reverse)
            return first_derivatives_only((*grads, *gradients, None, None))


def _gradients(saved: tuple[Any, ...], grad: Tensor, grad_kv: Tensor, grad_z: Tensor) -> tuple[Tensor, ...]:
    """The gradients of q, k, v, kv and z."""
    q, k, v, kv, z, scale, *normalised = saved
    if scale is not None:
        q, k = _exponentials(q, k, scale)
    shift = grad.new_zeros(*grad.shape[:3], 1)
    if normalised:
        out, weights = normalised
        grad = grad / weights.masked_fill(weights.abs() < torch.finfo(weights.dtype).tiny, math.inf)[..., None]
        shift = -(grad * out).sum(-1, keepdim=True)
    d_q, d_k, *others = _gradients_of_sums(q, k, v, kv, z, grad, shift, grad_kv, grad_z)
    return (d_q, d_k, *others) if scale is None else (d_q * q, d_k * k, *others)


def _gradients_of_sums(
    q: Tensor, k: Tensor, v: Tensor, kv: Tensor, z: Tensor,
    grad: Tensor, shift: Tensor, grad_kv: Tensor | None, grad_z: Tensor | None, reverse: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of q, k, v, kv and z, given those of Σ_j (q_i·k_j) v_j, ``(B, H, N, D)``, of Σ_j q_i·k_j, ``(B, H, N, 1)``, and of the
    sums after all tokens."""
    of_keys, of_values, width, precision = k.shape[1], v.shape[1], v.shape[3], precision_for(v)
    groups = max(of_keys, of_values)
    grad_kv, grad_z = (torch.zeros_like(x) if grad_x is None else grad_x for grad_x, x in ((grad_kv, kv), (grad_z, z)))
    rest = -(width + 1) % ALIGNED
    of_out, values = F.pad(torch.cat([grad, shift], -1), (0, rest)), F.pad(F.pad(v.to(q.dtype), (0, 1), value=1.0), (0, rest))
    grad = unit_stride(grad)

    def state_of_values(of_kv: Tensor, of_z: Tensor) -> Tensor:
        return F.pad(torch.cat([of_kv.mT, of_z[..., None, :]], -2), (0, 0, 0, rest))

    def of_one_head(state: Tensor) -> Tensor:
        """The state with zeros for all heads of a group but the first, since the sums over the heads are added up."""
        return F.pad(state.unsqueeze(2), (*(0,) * (2 * state.dim() - 4), 0, q.shape[1] // groups - 1)).flatten(1, 2)

    d_q = summed(of_out, values, k, state_of_values(kv, z), precision=precision, reverse=reverse)[0]
    d_k, _, before, _ = summed(values, of_out, q, of_one_head(state_of_values(grad_kv, grad_z)), precision=precision, reverse=not reverse)
    d_v = summed(k, q, grad, of_one_head(grad_kv), precision=precision, reverse=not reverse)[0]
    d_k, d_v, before = (
        x.unflatten(1, (heads, -1)).sum(2) if x.shape[1] > heads else x for x, heads in ((d_k, of_keys), (d_v, of_values), (before, groups))
    )
    return d_q, d_k, d_v.to(v.dtype), before[..., :width, :].mT, before[..., width, :]


def summed(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, z: Tensor | None = None, *, precision: str, normalise: bool = False,
    reverse: bool = False, scale: Tensor | None = None, onto: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Σ_j (q_i·k_j) v_j over the tokens j up to i, or from i on with ``reverse``, ``(B, H, N, D)``.

    Args:
        q, k: ``(B, heads, N, F)``, each with as many heads as the output or a divisor of that, and numbers of a row side by side.
        v: ``(B, heads, N, D)``, likewise.
        state, z: the sums ``(B, heads, F, D)`` and ``(B, heads, F)`` that come before, with the heads of k or v, whichever are more.
        precision: of products: Triton's ``input_precision``.
        normalise: divide by the sum of the weights.
        scale: ``(B, heads of k, F)``, as in :func:`kernel_linear_attention`.
        onto: with ``z``, what the output and the sums of the weights are added to: consecutive rows of contiguous tensors in fp32.
    Returns:
        The output; with ``z`` the sums of the weights ``(B, H, N)``; the state after all tokens; and with ``z`` the sum of k.
    """
    kernels = triton_kernels()
    (batch, _, length, features), width = q.shape, v.shape[3]
    heads, sum_heads = max(x.shape[1] for x in (q, k, v)), max(k.shape[1], v.shape[1])
    chunk = chunk_length(features, width, length)
    count, add = -(-length // chunk), onto is not None
    sums = torch.empty(batch, sum_heads, count + 1, features, width, dtype=q.dtype, device=q.device)
    sums[:, :, 0] = state
    weights = sums.new_empty(batch, sum_heads, count + 1, features) if z is not None else sums
    if z is not None:
        weights[:, :, 0] = z
    if onto is None:
        onto = sums.new_empty(batch, heads, length, width), sums.new_empty(batch, heads, length) if z is not None else sums
    out, out_weights = onto
    feature_side, value_side = tile_side(features), tile_side(width)
    value_blocks = -(-width // value_side)
    tile = {
        "CHUNK": chunk, "BLOCK": BLOCK, "FEATURES": feature_side, "WIDTH": value_side,
        "WEIGH": z is not None, "REVERSE": reverse, "EXP": scale is not None, "PRECISION": precision, **LAUNCH,
    }  # fmt: skip
    scale = z if scale is None else scale.contiguous()
    scale = sums if scale is None else scale
    with torch.cuda.device_of(q):
        kernels.chunk_sums[(count, -(-features // feature_side) * value_blocks, batch * sum_heads)](
            k, v, scale, sums, weights, length, features, width, sum_heads, sum_heads // k.shape[1], sum_heads // v.shape[1],
            *k.stride()[:3], *v.stride()[:3], **tile,
        )  # fmt: skip
        sums = sums.cumsum(2)
        weights = sums if z is None else weights.cumsum(2)
        kernels.outputs[(-(-length // BLOCK), value_blocks, batch * heads)](
            q, k, v, scale, sums, weights, out, out_weights, length, out.stride(1) // width, features, width, count,
            heads, *(heads // x.shape[1] for x in (q, k, v)), heads // sum_heads,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], NORMALISE=normalise, ADD=add, **tile,
        )  # fmt: skip
    return out, out_weights, sums[:, :, -1], weights[:, :, -1]


def triton_kernels() -> Any:
    """The module with the kernels, which imports Triton."""
    from . import linear_triton

    return linear_triton


def _exponentials(q: Tensor, k: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The features of which ``q`` and ``k`` are the logarithms."""
    scale = scale[:, :, None]
    logs = q + repeat_heads(scale, q.shape[1])
    return (logs - logs.detach().amax(-1, keepdim=True)).exp(), (k - scale).exp()


def chunk_length(features: int, width: int, length: int) -> int:
    """The tokens of a chunk, a power of two, that cost least: a chunk moves 16·F·D bytes; a token has F + D products with half of it."""
    best = math.sqrt(16 * PRODUCTS_PER_BYTE * features * width / (features + width))
    return min(max(1 << round(math.log2(best)), SHORTEST_CHUNK), LONGEST_CHUNK, max(SHORTEST_CHUNK, 1 << (length - 1).bit_length()))


def tile_side(numbers: int, most: int = MOST_SIDE) -> int:
    """The side of a tile, a power of two, of which some hold so many numbers."""
    return min(most, max(LEAST_SIDE, 1 << (numbers - 1).bit_length()))


def precision_for(v: Tensor) -> str:
    """Triton's ``input_precision`` for products with values of this dtype."""
    return "tf32x3" if v.dtype == torch.float32 else "tf32"


# ---- whether this machine runs the kernels

_refusals: dict[tuple[Any, ...], str | None] = {}


def one_refusal(refusals: dict[tuple[Any, ...], str | None], kind: tuple[Any, ...], tried: Callable[[], str | None], what: str) -> None:
    """Ask once why this machine does not run kernels for a kind of call, and log it.

    Args:
        refusals: the answers so far.
        kind: a device, the values' dtype, numbers of a key, and whatever else there is.
        tried: returns the reason, or raises it.
        what: what the kernels compute.
    Raises:
        NoKernel: there is a reason.
    """
    if kind not in refusals:
        device, dtype, features = kind[:3]
        try:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
                reason = tried()
        except MACHINE_ERRORS:
            raise
        except Exception as error:  # whatever it is, there are no results
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        known = reason in refusals.values()
        refusals[kind] = reason
        if reason is not None and not known:
            logger.warning(
                "The Triton kernels of %s do not run for %d features and values in %s on %s (%s); other operations run instead, which are "
                "slower.", what, features, str(dtype).removeprefix("torch."), device, reason
            )  # fmt: skip
    answer = refusals[kind]
    if answer is not None:
        raise NoKernel(answer)


def capability_refused(device: torch.device) -> str | None:
    """Why a GPU cannot run the kernels at all."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return "the GPU has no tensor cores for TF32"
    return None


def _tried(
    device: torch.device, dtype: torch.dtype, features: int, width: int, normalise: bool, exponential: bool, gradients: bool
) -> str | None:
    """Why results for a few tokens are not those of the definition, where they are not; what the kernels raise is raised."""
    if (why := capability_refused(device)) is not None:
        return why
    *inputs, grad, _ = _a_few_tokens(device, dtype, features, width)
    q, k, v, kv, z = inputs
    scale = -z if exponential else None
    results: list[Tensor] = [*summed(q, k, v, kv, z, precision=precision_for(v), normalise=normalise, scale=scale)]
    with torch.enable_grad():
        leaves = [x.double().requires_grad_() for x in inputs]
        queries, keys = leaves[:2]
        if scale is not None:
            queries, keys = _exponentials(queries, keys, scale)
        scores = (queries @ keys.mT).tril()
        weights = scores.sum(-1) + (queries @ leaves[4][..., None]).squeeze(-1)
        out = (scores @ leaves[2] + queries @ leaves[3]) / (weights[..., None] if normalise else 1)
        expected = [out, weights, leaves[3] + keys.mT @ leaves[2], leaves[4] + keys.sum(2)]
        if gradients:
            saved = (q, k, v, kv, z, scale, *(results[:2] if normalise else ()))
            results += _gradients(saved, grad, torch.zeros_like(kv), torch.zeros_like(z))
            expected += torch.autograd.grad(out, leaves, grad.double(), materialize_grads=True)
    return difference(results, expected, dtype)


def _tried_to_add(device: torch.device, dtype: torch.dtype, features: int, width: int, gradients: bool) -> str | None:
    """As :func:`_tried`, for :func:`add_kernel_linear_attention` in both directions."""
    if (why := capability_refused(device)) is not None:
        return why
    *inputs, grad, shift = _a_few_tokens(device, dtype, features, width)
    q, k, v, kv, z = inputs
    results: list[Tensor] = []
    expected: list[Tensor] = []
    for reverse in (False, True):
        onto = grad.clone(), shift.clone()
        summed(q, k, v, kv, z, precision=precision_for(v), reverse=reverse, onto=onto)
        with torch.enable_grad():
            leaves = [x.double().requires_grad_() for x in inputs]
            scores = leaves[0] @ leaves[1].mT
            scores = scores.triu() if reverse else scores.tril()
            total, weight = scores @ leaves[2] + leaves[0] @ leaves[3], scores.sum(-1) + (leaves[0] * leaves[4][:, :, None]).sum(-1)
            results += onto
            expected += (total + grad, weight + shift)
            if gradients:
                results += _gradients_of_sums(q, k, v, kv, z, grad, shift[..., None], None, None, reverse)
                expected += torch.autograd.grad((total, weight), leaves, [grad.double(), shift.double()])
    return difference(results, expected, dtype)


def _a_few_tokens(device: torch.device, dtype: torch.dtype, features: int, width: int) -> Iterator[Tensor]:
    """q, k, v, kv and z for two heads and one of keys, gradients of the output and of the sums of the weights."""
    length = chunk_length(features, width, 1 << 20) + BLOCK // 2
    for i, (shape, step) in enumerate((
        ((2, length, features), 1.7), ((1, length, features), 0.9), ((1, length, width), 2.3), ((1, features, width), 1.1),
        ((1, features), 0.3), ((2, length, width), 0.7), ((2, length), 0.5),
    )):  # fmt: skip
        x = torch.sin(torch.arange(math.prod(shape), device=device) * step).view(1, *shape) * 0.4 + 0.6
        yield x.to(dtype) if i == 2 else x


def difference(results: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> str | None:
    """Why results for values of this dtype cannot be relied on, by those ``expected`` in double precision; ``None`` where they can."""
    pairs = [(x, y.detach()) for x, y in zip(results, expected, strict=True)]
    off = [float((x - y).abs().max() / y.abs().max().clamp(min=1)) for x, y in pairs]
    most = 1e-3 if dtype == torch.float32 else 3e-2
    if all(x < most for x in off):  # which a NaN is not
        return None
    return f"their results for a few tokens differ from the definition by {max(off):.2g}"
