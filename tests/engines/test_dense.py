"""Full attention with grouped heads keeps to kernels that are fused on the tensors' device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hf_longattn.engines import dense
from hf_longattn.engines.batch import Batch
from hf_longattn.engines.call import AttentionCall
from tests.cases import every_case


class KernelCalls(TorchFunctionMode):
    """The keywords and the numbers of queries and key heads of all calls of scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            self.calls.append({**kwargs, "queries": args[0].shape[2], "key_heads": args[1].shape[1]})
        return function(*args, **kwargs or {})


def grouped_inputs(q_len: int, head_dim: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(2, heads, length, head_dim, device=device) for heads, length in ((4, q_len), (2, 40), (2, 40)))


@every_case("q_len", [1, 40])
@every_case("padded", [False, True])
@every_case("head_dim", [64, 512])
@every_case("device", ["cpu", "meta"])
def test_dense_attention_groups_heads_only_where_a_fused_kernel_does(device: str, head_dim: int, padded: bool, q_len: int) -> None:
    """On CUDA it takes N×N memory for all heads; on the CPU, the fused kernel takes groups with and without a mask. Tensors on meta stand
    for those on every other device than the CPU."""
    with KernelCalls() as kernel:
        mask = torch.ones(2, 40, dtype=torch.bool, device=device) if padded else None
        out = dense.dense_attention(*grouped_inputs(q_len, head_dim, device), AttentionCall(causal=True, batch=Batch.of(mask)))
        assert out.shape == (2, 4, q_len, head_dim)
    (call,) = kernel.calls
    fused = device == "cpu" or (call.get("attn_mask") is None and head_dim <= 256)
    assert call.get("enable_gqa", False) is fused
    assert fused or call["key_heads"] == (2 if q_len == 1 else 4)


@every_case("q_len", [1, 7, 40])
@every_case("mask_heads", [None, 1, 4])
def test_fused_attention_of_grouped_heads_is_the_same_without_a_kernel_for_them(
    mask_heads: int | None, q_len: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = grouped_inputs(q_len, 16, "cpu")
    mask = None if mask_heads is None else torch.randn(2, mask_heads, q_len, 40)
    expected = dense.fused_attention(q, k, v, attn_mask=mask, scale=0.3)
    monkeypatch.setattr(dense, "groups_are_fused", lambda *_: False)
    torch.testing.assert_close(dense.fused_attention(q, k, v, attn_mask=mask, scale=0.3), expected, atol=1e-5, rtol=0)


@every_case("heads", [4, 2])
@every_case("masked", [False, True])
@every_case("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_one_query_in_half_precision_is_computed_as_two(dtype: torch.dtype, masked: bool, heads: int) -> None:
    q, k, v = (torch.randn(2, count, length, 64) for count, length in ((4, 1), (heads, 300), (heads, 300)))
    mask = torch.rand(2, 1, 1, 300) > 0.3 if masked else None
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask, enable_gqa=True)
    with KernelCalls() as kernel:
        out = dense.fused_attention(q.to(dtype), k.to(dtype), v.to(dtype), attn_mask=mask)
    assert len(kernel.calls) == 1
    assert kernel.calls[0]["queries"] == (1 if dtype == torch.float32 else 2)
    assert out.shape == (2, 4, 1, 64)
    torch.testing.assert_close(out.double(), expected, atol=1e-5 if dtype == torch.float32 else 1e-2, rtol=0)
