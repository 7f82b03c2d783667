"""Packed documents of patterns of tiles: one call for all of them where a call costs a launch, without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.cuda import flex
from hf_longattn.engines.dispatch import observe

from .eager_flex import by_the_lists

CASES: dict[str, dict[str, Any]] = {
    "chunked": {"chunk_size": 64},
    "segmented": {"block_size": 32, "integration": "previous"},
    "fixed": {"block_size": 16, "num_summary": 4},
    "strided": {"window": 8, "stride": 16},
    "recurrent_memory": {"segment_length": 48, "num_memory_tokens": 3},
    "transformer_xl": {"segment_length": 40, "memory_length": 60, "bptt": True},
    "union": {"of": "strided:window=8,stride=16+chunked:chunk_size=32"},
    "window": {"window": 32, "dilation": 2},
    "lsh": {"num_hashes": 2, "bucket_size": 16, "num_buckets": 8},
    "routing": {"num_clusters": 5, "window_per_cluster": 30},
}
CALLS_OF_A_ROW = {"fixed": 3, "strided": 3, "union": 5}
"""Where not all tiles have the same rules, or keys of one length."""


def documents(lengths: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths])


@pytest.mark.usefixtures("cuda_paths")
@pytest.mark.parametrize("name", CASES)
def test_documents_are_one_call_and_equal_the_definition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of documents, causal, one with padding in a document, with gradients in float64 and a score term."""
    calls = []
    monkeypatch.setattr(flex, "fused_flex", lambda *arguments, **settings: calls.append(1) or by_the_lists(*arguments, **settings))
    torch.manual_seed(0)
    module = build_mechanism(name, num_heads=2, head_dim=16, max_length=300, **CASES[name]).double()
    q, k, v = (torch.randn(2, heads, 300, 16, dtype=torch.double, requires_grad=True) for heads in (2, 1, 1))
    labels, mask = documents(((170, 5, 125), (90, 90, 120))), torch.ones(2, 300, dtype=torch.bool)
    mask[1, 120:125], mask[1, 290:] = False, False
    terms = {"score_mod": lambda score, b, h, i, j: score - 0.01 * (h + b + (i - j) * (i + 1))}
    arguments: dict[str, Any] = {"causal": True, "documents": labels, "padding_mask": mask, **terms}
    paths: list[str] = []
    with observe(lambda _, choice: paths.append(choice.path)):
        out = attend(q, k, v, module, **arguments)
    assert "packed" in paths
    assert not {"dense", "dense-masked", "split"} & set(paths), "a document was a call of its own"
    assert len(calls) <= 2 * CALLS_OF_A_ROW.get(name, 1)
    expected = reference_attend(q, k, v, module, **arguments)
    real = mask[:, None, :, None]
    torch.testing.assert_close(out * real, expected * real, atol=1e-9, rtol=0)
    weights = torch.randn_like(out) * real
    for one, other in zip(*(torch.autograd.grad((x * weights).sum(), (q, k, v)) for x in (out, expected)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


@pytest.mark.usefixtures("cuda_paths")
def test_documents_that_a_pattern_covers_are_full_attention_in_one_call(emulated_flash: list[dict[str, Any]]) -> None:
    module = build_mechanism("chunked", num_heads=2, head_dim=16, chunk_size=90)
    q, k, v = (torch.randn(1, 2, 240, 16, dtype=torch.double) for _ in range(3))
    labels = documents(((80, 70, 90),))
    assert module.covers(90, True)
    out = attend(q, k, v, module, causal=True, documents=labels)
    torch.testing.assert_close(out, reference_attend(q, k, v, module, causal=True, documents=labels), atol=1e-9, rtol=0)
    assert len(emulated_flash) <= 2, "the last may be the trial of the operator"
