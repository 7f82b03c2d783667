"""BigBird's blocks are one call of flex_attention on a GPU, with padding, global tokens and blocks that count twice."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.call import AttentionCall
from hf_longattn.engines.cuda import flex
from hf_longattn.engines.cuda.flex import BlockTable, flex_block_table
from hf_longattn.engines.dispatch import observe
from tests.cases import every_case

from .test_one_call import LENGTH, PADDING, real_tokens

OPTIONS: dict[str, dict[str, Any]] = {
    "blocks of 64": {"block_size": 64, "num_random_blocks": 1},
    "blocks of 16": {"block_size": 16},
    "blocks of 128": {"block_size": 128, "num_random_blocks": 0},
    "blocks of 256": {"block_size": 256, "num_random_blocks": 0, "num_window_blocks": 1, "num_global_blocks": 0},
    "as transformers": {"block_size": 16, "random_pattern": "hf_eval", "blocks_over": "input"},
    "counted twice": {"block_size": 32, "random_pattern": "hf_eval", "num_random_blocks": 2},
}
CELLS = [
    (name, padding, causal, tokens, packed)
    for name, padding, causal, tokens, packed in itertools.product(OPTIONS, PADDING, [False, True], [False, True], [False, True])
    if not (causal and "random_pattern" in OPTIONS[name]) and not (packed and (tokens or padding == "none"))
]


@pytest.mark.usefixtures("cuda_paths", "unfused_flex")
@every_case(("name", "padding", "causal", "tokens", "packed"), CELLS, of=12)
def test_blocks_of_bigbird_are_one_exact_call(name: str, padding: str, causal: bool, tokens: bool, packed: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    module = build_mechanism("bigbird", num_heads=4, head_dim=16, **OPTIONS[name]).eval()
    tensors = [torch.randn(2, heads, LENGTH, 16, generator=generator, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    arguments: dict[str, Any] = {"causal": causal, "padding_mask": real_tokens(padding)}
    if tokens:
        arguments["global_mask"] = torch.rand(2, LENGTH, generator=generator) < 0.01
    if packed:
        arguments["documents"] = torch.bucketize(torch.arange(LENGTH), torch.tensor([130, 384])).expand(2, -1)
    paths: list[str] = []
    with observe(lambda _, choice: paths.append(choice.path)):
        out = attend(*tensors, module, **arguments)
    if not packed:
        assert [path for path in paths if path not in ("unchanged", "aligned", "sparse")] == ["flex"]
    expected, real = reference_attend(*tensors, module, **arguments), real_tokens(padding)
    rows = torch.ones_like(out) if real is None else real[:, None, :, None].double().expand_as(out)
    weights = torch.randn(out.shape, generator=generator, dtype=out.dtype) * rows
    torch.testing.assert_close(out * rows, expected * rows, atol=1e-6, rtol=0)
    for grad, exact in zip(torch.autograd.grad(out, tensors, weights), torch.autograd.grad(expected, tensors, weights), strict=True):
        torch.testing.assert_close(grad, exact, atol=1e-5, rtol=0)


def test_tables_of_one_length_are_kept_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []

    def attention(kind: object, q: torch.Tensor, *tensors: object, block_mask: Any, **settings: object) -> torch.Tensor:
        devices.append(block_mask.kv_indices.device.type)
        return q

    monkeypatch.setattr(flex, "fused_flex", attention)
    monkeypatch.setattr(flex, "same_dtype", lambda *tensors: tensors)  # autocast knows no meta device
    for device in ("cpu", "meta"):
        q = torch.zeros(1, 2, 300, 16, device=device)

        def table(device: str = device) -> BlockTable:
            return BlockTable(torch.ones(1, 1, 5, 5, dtype=torch.bool, device=device), None)

        flex_block_table(q, q, q, ("a table of each device",), table, 64, AttentionCall())
    assert devices == ["cpu", "meta"]
