"""A GPU's choices without a GPU."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from hf_longattn.engines import accelerator
from hf_longattn.engines.call import DispatchContext
from hf_longattn.engines.cuda import flash_band, flex, flex_kernel

from . import flash_operator
from .eager_flex import by_the_lists


@pytest.fixture
def cuda_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths and steps are chosen as if all tensors were on CUDA."""
    monkeypatch.setattr(accelerator, "accelerated", lambda x: True)
    monkeypatch.setattr(DispatchContext, "device", property(lambda _: "cuda", lambda _, device: None), raising=False)


@pytest.fixture
def unfused_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """flex_attention runs uncompiled, which the CPU can do forward and backward; it is not traced for every new shape
    either."""

    def attention(kind: object, *tensors: Any, **settings: Any) -> Any:
        if torch.compiler.is_compiling():
            return flex_attention(*tensors, **settings)
        return by_the_lists(kind, *tensors, **settings)  # eager flex_attention reads the mask alone

    monkeypatch.setattr(flex, "fused_flex", attention)
    monkeypatch.setattr("torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.fixture
def emulated_flash(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """PyTorch's flash-attention operator runs as its definition, also in double precision; the list gets the arguments
    of its calls."""
    monkeypatch.setattr(flash_band, "flash_forward", flash_operator.forward)
    monkeypatch.setattr(flash_band, "flash_backward", flash_operator.backward)
    monkeypatch.setattr(flash_band, "_refusal", functools.cache(flash_band._refusal.__wrapped__))
    flex_kernel.warn_once.cache_clear()
    monkeypatch.setattr(flash_band, "DTYPES", (*flash_band.DTYPES, torch.float64))
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(flash_operator, "CALLS", calls)
    return calls
