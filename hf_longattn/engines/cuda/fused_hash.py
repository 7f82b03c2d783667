"""CUDA engine: buckets from the products of tokens and rotations, by a compiled reduction that reads each product once.

In plain operations the magnitudes are written and read again, and every factor takes six launches; these run where nothing can be compiled.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from ..common.derivatives import no_fused_kernels
from .flex_kernel import MACHINE_ERRORS, compiled

logger = logging.getLogger(__name__)
_functions: dict[Hashable, Callable[[Tensor, Sequence[int]], Tensor]] = {}


def fused_buckets(products: Tensor, columns: Sequence[int]) -> Tensor:
    """The bucket of every token, ``(B, H, R, N)`` int64.

    Args:
        products: ``(B, H, R, C, N)``, those of all factors one after the other.
        columns: how many each factor has. Its number is the first column of the greatest magnitude, or that plus ``columns`` where the
            product is negative; the bucket is these numbers as digits, the first factor's the lowest.
    """
    if not on_cuda(products) or torch.compiler.is_compiling() or no_fused_kernels() is not None:
        return _buckets(products, columns)
    sizes = [size == 1 for size in products.shape]
    kind = products.device, products.dtype, *columns, *sizes, torch.is_inference_mode_enabled(), products.is_inference()
    if kind not in _functions:  # with a code object of its own, by which PyTorch counts what it compiles
        code = _buckets.__code__.replace(co_name=f"buckets_{len(_functions)}")
        _functions[kind] = compiled(types.FunctionType(code, globals()))
    try:
        return _functions[kind](products, columns)
    except MACHINE_ERRORS:
        raise
    except Exception as error:
        _functions[kind] = _buckets
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        logger.warning("Hashes on %s are not compiled (%s); other operations run instead, which are slower.", products.device, reason)
    return _buckets(products, columns)


def on_cuda(x: Tensor) -> bool:
    return x.device.type == "cuda"


def _buckets(products: Tensor, columns: Sequence[int]) -> Tensor:
    bucket, scale = torch.zeros_like(products[..., 0, :], dtype=torch.int64), 1
    for part in products.split(list(columns), -2):
        index = part.abs().argmax(-2, keepdim=True)
        number = index + part.shape[-2] * (part.gather(-2, index) < 0)
        bucket, scale = bucket + scale * number.squeeze(-2), 2 * part.shape[-2] * scale
    return bucket
