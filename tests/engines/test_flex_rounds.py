"""Rounds of buckets as heads of one call of flex_attention, without a GPU: an emulated kernel against the definition and the tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.cuda import flex, fused_hash
from hf_longattn.engines.dispatch import observe

from .eager_flex import by_the_lists

LSH = {"num_hashes": 3, "bucket_size": 16, "num_buckets": 8}
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("lsh", LSH),
    ("lsh", {**LSH, "shared_qk": True}),
    ("lsh", {**LSH, "shared_qk": True, "count_duplicates": True}),
    ("lsh", {**LSH, "num_chunks_before": 0, "num_chunks_after": 2}),
    ("lsh", {**LSH, "num_chunks_before": 7, "num_chunks_after": 3, "bucket_size": 24}),
    ("lsh", {**LSH, "bucket_size": 150, "num_buckets": 4}),
    ("lsh", {**LSH, "num_hashes": 1, "num_buckets": 64}),
    ("lsh", {**LSH, "num_buckets": 1, "bucket_size": 30}),
    ("routing", {"num_clusters": 5, "window_per_cluster": 40}),
]
FORMS_OF = {"lsh": (False, True), "routing": (True,)}
"""In routing's bidirectional form, clusters choose keys."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The kernel runs as plain operations; the queries of its calls."""
    queries: list[Tensor] = []

    def kernel(kind: object, q: Tensor, *arguments: Any, **settings: Any) -> Any:
        queries.append(q)
        return by_the_lists(kind, q, *arguments, **settings)

    monkeypatch.setattr(flex, "fused_flex", kernel)
    return queries


def inputs() -> list[Tensor]:
    return [torch.randn(2, heads, 333, 16, dtype=torch.double, requires_grad=True) for heads in (4, 2, 2)]


@pytest.mark.usefixtures("cuda_paths")
@pytest.mark.parametrize(("name", "options", "causal"), [(*form, causal) for form in FORMS for causal in FORMS_OF[form[0]]], ids=str)
def test_all_rounds_are_one_call_and_equal_the_definition(name: str, options: dict[str, Any], causal: bool, calls: list[Tensor]) -> None:
    """With gradients in float64, a score term and grouped heads."""
    padded = options is not LSH
    torch.manual_seed(0)
    q, k, v = inputs()
    mask = torch.ones(2, 333, dtype=torch.bool)
    mask[0, :90] = False
    mask[1, 200:230] = False
    arguments = {**options, "causal": causal, "padding_mask": mask if padded else None}
    arguments["score_mod"] = lambda score, b, h, i, j: score - 0.01 * (h + b + i - j)
    paths: list[str] = []
    with observe(lambda _, choice: paths.append(choice.path)):
        out = attend(q, k, v, name, **arguments)
    assert "flex-rounds" in paths
    assert [x.shape[:3] for x in calls] == [(2, 4 * options.get("num_hashes", 1), 333)]
    expected = reference_attend(q, k, v, name, **arguments)
    real = mask[:, None, :, None] if padded else True
    torch.testing.assert_close(out * real, expected * real, atol=1e-9, rtol=0)
    weights = torch.randn_like(out) * real
    for one, other in zip(*(torch.autograd.grad((x * weights).sum(), (q, k, v)) for x in (out, expected)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def test_hashes_are_compiled_once_for_a_kind_and_run_uncompiled_where_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are the numbers that the CPU finds."""
    made: list[str] = []

    def compiled(function: Any) -> Any:
        made.append(function.__name__)
        return function if len(made) < 2 else failing

    def failing(*_: Any) -> Tensor:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(fused_hash, "compiled", compiled)
    monkeypatch.setattr(fused_hash, "_functions", {})
    monkeypatch.setattr(fused_hash, "on_cuda", lambda _: True)
    module = build_mechanism("lsh", num_heads=2, head_dim=16, num_hashes=3, num_buckets=128)
    x = torch.randn(2, 2, 50, 16)
    x[0, 0, 7] = 0
    expected = module.hashes(x)
    products = (module.rotations.double().flatten(2).transpose(1, 2) @ x.double().mT).view(2, 2, 3, 12, 50)
    for y, wanted in ((products, expected), (products, expected), (products[:1], expected[:1]), (products[:1], expected[:1])):
        assert torch.equal(fused_hash.fused_buckets(y, (4, 8)), wanted)
    assert made == ["buckets_0", "buckets_1"]
