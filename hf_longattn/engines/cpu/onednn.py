"""oneDNN's products in 8 bits and in fp32, and checks of the processor's instructions."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...errors import BackendError
from ...names import look_up, warn_missing

BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16")
"""Names of ``torch.cpu.get_capabilities`` for bf16: three on x86, the last on ARM."""


def cpu_computes_bf16() -> bool:
    """Whether oneDNN has kernels for bf16 and the processor has bf16 instructions. oneDNN emulates missing
    instructions, which is slow."""
    instructions = torch.cpu.get_capabilities()
    has_kernels = look_up("bf16_products")()
    return bool(has_kernels and any(instructions.get(name) for name in BF16_INSTRUCTIONS))


def check_bf16(instead: str) -> None:
    """Raise :class:`BackendError` if the processor lacks bf16, since a product would take minutes. The message says to
    choose ``instead``."""
    if not cpu_computes_bf16():
        raise BackendError(f"This processor computes no bf16 (it needs avx512_bf16 or AMX); choose {instead}.")


def pack_int8(weight: Tensor) -> Tensor:
    """An int8 weight ``(out, in)`` in the layout of oneDNN's kernels."""
    return look_up("int8_linear", 1)(weight, None)


def int8_product(x: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor, dtype: Any) -> Tensor:
    """int8 ``x (M, in)`` times a weight of :func:`pack_int8` times ``scale (out,)``: ``(M, out)`` in ``dtype``.

    VNNI multiplies unsigned by signed numbers. Without AMX, oneDNN has only its reference code for signed inputs,
    which is thousands of times slower, so inputs are shifted to 0 … 255. Sums are exact either way.

    zeros: ``(out,)`` int32, the weight's zero points.
    """
    zero = 0 if has_amx() else 128
    x = x.view(torch.uint8).bitwise_xor(zero) if zero else x  # flipping the sign bit adds 128
    return look_up("int8_linear")(x, 1.0, zero, packed, scale, zeros, None, 1.0, 0, dtype, "none", [], "")


@cache
def mkl_is_slow() -> bool:
    """Whether PyTorch's fp32 products leave half of the processor unused: on AMD processors with AVX-512.

    PyTorch takes these products from MKL, which uses AVX-512 on Intel processors only. oneDNN uses it on AMD's, too.
    On two cores of such an EPYC, MKL reaches 230 GFLOP/s and oneDNN 520.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        warn_missing("fp32_linear")
        return False
    processor = torch.cpu.get_capabilities()
    is_amd = "AMD" in str(processor.get("cpu_name", ""))
    return torch.backends.mkl.is_available() and is_amd and bool(processor.get("avx512_f"))


def fp32_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """fp32 ``x (…, in)`` times the transpose of ``weight (out, in)`` plus ``bias (out,)``, by oneDNN. It has no
    gradients."""
    return look_up("fp32_linear")(x, weight, bias, "none", [], "")


def has_amx() -> bool:
    """Whether the processor multiplies tiles of matrices in bf16 and 8 bits (AMX)."""
    if not hasattr(torch.cpu, "_is_amx_tile_supported"):
        warn_missing("amx")
        return False
    return bool(torch.cpu._is_amx_tile_supported())
