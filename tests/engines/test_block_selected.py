"""Queries sorted by the blocks they chose: attention equals the mask of the choices."""

import itertools
from typing import Any

import pytest
import torch

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.call import AttentionCall
from hf_longattn.engines.cuda import flex
from hf_longattn.engines.dense import masked_softmax
from hf_longattn.engines.dispatch import observe
from hf_longattn.engines.gathered import block_selected_attention, selected_block_tiles
from tests.cases import every_case

from .eager_flex import by_the_lists


def test_tiles_of_selected_blocks_leave_few_slots_unfilled() -> None:
    torch.manual_seed(0)
    chosen = torch.rand(1, 4, 4096, 32).argsort(-1)[..., :3]
    slots = sum(part.queries.numel() for part in selected_block_tiles(chosen, 32, 128, 4096, 64))
    assert slots < 1.5 * chosen.numel()


@every_case("causal", [False, True], pairs=True)
@every_case(("length", "size", "ranks"), [(50, 8, 3), (50, 8, 0), (7, 10, 1), (64, 16, 2)])
@every_case("padded", [False, True])
@every_case("path", ["fused", "parts"])
def test_attention_to_selected_blocks_equals_the_mask_with_its_gradients(
    length: int, size: int, ranks: int, padded: bool, path: str, causal: bool
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    blocks, own = -(-length // size), torch.arange(length) // size
    chosen = (torch.rand(2, 3, length, blocks) - 2.0 * (torch.arange(blocks) == own[:, None])).argsort(-1, descending=True)[..., :ranks]
    chosen = chosen.masked_fill((torch.rand(chosen.shape) < 0.3) | (chosen == own[:, None]), -1)
    mask = torch.rand(2, length) < 0.7 if padded else torch.ones(2, length, dtype=torch.bool)
    mask[1] = not padded
    seen = (chosen[..., None] == own).any(3) | ((own[:, None] == own) & (torch.ones(length, length).tril().bool() | (not causal)))
    seen = seen & mask[:, None, None]
    expected = masked_softmax(q @ k.transpose(-1, -2) * 0.3, seen) @ v
    same = (lambda score, b, h, i, j: score) if path == "parts" else None
    out = block_selected_attention(
        q, k, v, chosen, size, AttentionCall.of(causal=causal, padding_mask=mask if padded else None, scaling=0.3, score_mod=same)
    )
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (out, expected)), strict=True):
        torch.testing.assert_close(a, b)


ON_CUDA: list[tuple[str, dict[str, Any], str]] = [
    ("block_top_k", {"block_size": 32, "num_blocks": 4}, "flex"),
    ("block_top_k", {"block_size": 256, "num_blocks": 2}, "flex"),
]


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_paths")
@every_case(
    ("name", "options", "path", "padded", "causal"),
    [(*case, *how) for case in ON_CUDA for how in itertools.product([False, True], repeat=2)],
    of=3,
)
def test_selected_blocks_on_the_paths_for_cuda_equal_the_definition(
    name: str, options: dict[str, Any], path: str, padded: bool, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex, "fused_flex", by_the_lists)
    torch.manual_seed(0)
    module = build_mechanism(name, num_heads=4, head_dim=16, **options)
    length = 600 if options["block_size"] >= 128 else 400
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
    tensors = [torch.randn(2, heads, length, 16, requires_grad=True) for heads in (4, 2, 2)]
    with torch.no_grad():
        tensors[1][:, :, 256:384] = tensors[1][:, :, :1] * 3  # blocks that most queries select
    mask = torch.arange(length) < torch.tensor([[length], [length - 130 * padded]])
    rows = mask[:, None, :, None]
    paths: list[str] = []
    with observe(lambda _, choice: paths.append(choice.path)):
        out = attend(*tensors, module, causal=causal, padding_mask=mask if padded else None)
    assert path in paths
    expected = reference_attend(*tensors, module, causal=causal, padding_mask=mask).float()
    torch.testing.assert_close(out * rows, expected * rows, atol=2e-5, rtol=0)
    upstream = torch.randn_like(out) * rows
    for found, wanted in zip(*(torch.autograd.grad(x, tensors, upstream) for x in (out, expected)), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
