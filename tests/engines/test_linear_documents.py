"""Packed documents in one call, as on a GPU: the sums within documents, their gradients, and mechanisms that keep documents apart so."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines import linear_documents
from hf_longattn.engines.common.paths import observe
from hf_longattn.engines.linear_documents import Layout, segmented_linear_attention
from hf_longattn.errors import MaskError
from hf_longattn.mechanisms.common.log_features import LogLinearMechanism
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.cells import every_cell
from tests.grids import grid

LENGTHS = [[70, 1, 130, 99], [200, 100], [1, 1, 1, 297]]
LENGTH = 300


def numbers(lengths: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def quadratic(q: Tensor, k: Tensor, v: Tensor, labels: tuple[Tensor, Tensor], causal: bool, normalise: bool) -> Tensor:
    group = q.shape[1] // k.shape[1]
    seen = labels[0][:, None, :, None] == labels[1][:, None, None, :]
    weights = (q @ k.repeat_interleave(group, 1).mT) * (seen.tril() if causal else seen)
    out = weights @ v.repeat_interleave(group, 1)
    total = weights.sum(-1, keepdim=True)
    return out / torch.where(total == 0, 1.0, total) if normalise else out


@every_cell("normalise", [False, True])
@every_cell(("causal", "late"), [(False, 0), (True, 0), (True, 40)])
@every_cell(("chunk", "group"), [(4, 64), (4, 3), (64, 64)])
def test_sums_and_gradients_are_those_of_a_mask(
    chunk: int, group: int, causal: bool, late: int, normalise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """late: how many tokens the keys' labels lag behind the queries'."""
    monkeypatch.setattr(linear_documents, "CHUNKS_PER_GROUP", group)
    torch.manual_seed(0)
    q, k, v = (torch.rand(3, heads, LENGTH, 5, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    queries = torch.stack([numbers(one) for one in LENGTHS])
    keys = torch.cat([queries[:, :late] - 1, queries[:, : LENGTH - late]], 1)
    labels = queries, keys
    out = segmented_linear_attention(q, k, v, Layout.of(*labels, 2, causal, chunk), normalise=normalise)
    expected = quadratic(q, k, v, labels, causal, normalise)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
    upstream = torch.randn_like(out)
    for found, wanted in zip(*(torch.autograd.grad(x, (q, k, v), upstream) for x in (out, expected)), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


def test_second_derivatives() -> None:
    labels = numbers([2, 1, 4])[None]
    q, k, v = (torch.rand(1, heads, 7, 2, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1))
    for causal in (False, True):
        layout = Layout.of(labels, labels, 2, causal, 2)
        assert torch.autograd.gradgradcheck(lambda *x, layout=layout: segmented_linear_attention(*x, layout), (q, k, v), fast_mode=True)


def test_a_document_loses_no_digits_to_those_before_it() -> None:
    q, k, v = (torch.rand(1, 1, 256, 4) for _ in range(3))
    k[:, :, :128] *= 1e9
    number = numbers([128, 128])[None]
    for causal in (False, True):
        out = segmented_linear_attention(q, k, v, Layout.of(number, number, 1, causal, 16))
        expected = quadratic(*(x.double() for x in (q, k, v)), (number, number), causal, True)
        torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=0)


LABELLED: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}), ("linear", {"feature_map": "relu"}), ("taylor", {}), ("performer", {}), ("performer", {"kernel": "relu"}),
    ("hedgehog", {}), ("hedgehog", {"feature_softmax": "none"}), ("hybrid", {}), ("hybrid", {"features": "taylor", "window": 9}),
]  # fmt: skip
FORMS = [(*each, causal) for each, causal in itertools.product(LABELLED, (False, True))]


def module_of(name: str, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    module = build_mechanism(
        name, num_heads=4, head_dim=8, hidden_size=32, **{"max_length": 400, **mechanism_class(name).sample, **options}
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    return module.double().eval()


@pytest.mark.usefixtures("cuda_paths")
@every_cell(
    ("name", "options", "causal", "kv_heads"),
    grid([(*form, kv_heads) for form in FORMS for kv_heads in (1, 4)], lambda *cell: FORMS.index(cell[:3]) // 2 % 2 == (cell[3] == 4)),
    ids=str,
)
def test_documents_in_one_call_are_what_each_is_alone(name: str, options: dict[str, Any], causal: bool, kv_heads: int) -> None:
    if causal and options == {"max_length": None}:
        options = {}  # whose causal form is told the longest text
    module = module_of(name, options)
    q, k, v = (torch.randn(3, heads, LENGTH, 8, dtype=torch.float64, requires_grad=True) for heads in (4, kv_heads, kv_heads))
    documents, mask = torch.stack([numbers(one) for one in LENGTHS]), torch.ones(3, LENGTH, dtype=torch.bool)
    mask[0, :5] = mask[0, 120:123] = mask[1, 190:210] = mask[2, 280:] = False
    arguments: dict[str, Any] = {"causal": causal, "documents": documents, "padding_mask": mask}
    if module.traits.takes_hidden_states:
        arguments["hidden_states"] = torch.randn(3, LENGTH, 32, dtype=torch.float64)
    paths: list[str] = []
    with observe(lambda _, choice: paths.append(choice.path)):
        out = attend(q, k, v, module, **arguments)
    assert paths[0] == "packed"
    rows = mask[:, None, :, None]
    expected = reference_attend(q, k, v, module, **arguments)
    torch.testing.assert_close(out * rows, expected * rows, atol=1e-12, rtol=1e-12)
    upstream, leaves = torch.randn_like(out) * rows, [q, k, v, *module.parameters()]
    for found, wanted in zip(
        *(torch.autograd.grad(x, leaves, upstream, allow_unused=True, materialize_grads=True) for x in (out, expected)), strict=True
    ):
        torch.testing.assert_close(found, wanted, atol=1e-11, rtol=1e-11)


@pytest.mark.usefixtures("cuda_paths")
def test_documents_whose_features_overflow_are_computed_alone() -> None:
    module = module_of("performer", {})
    q, k, v = (torch.randn(1, 4, LENGTH, 8, dtype=torch.float64) for _ in range(3))
    k[:, :, 75:90] *= 60  # logarithms of features some hundreds above those of the first keys
    out = attend(q, k, v, module, causal=True, documents=numbers([70, 230])[None])
    expected = reference_attend(q, k, v, module, causal=True, documents=numbers([70, 230])[None])
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("cuda_paths")
def test_numbers_that_descend_are_refused() -> None:
    x = torch.randn(1, 4, LENGTH, 8, dtype=torch.float64)
    with pytest.raises(MaskError, match="must ascend"):
        attend(x, x, x, module_of("linear", {}), documents=numbers([100, 200])[None].flip(1))


@pytest.mark.usefixtures("cuda_paths")
@pytest.mark.parametrize("documents", [None, numbers([150, 150])[None]], ids=["one text", "documents"])
def test_exponents_far_above_those_of_the_first_key_take_one_step(documents: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a first token with a far longer key: 80 above it, which fp32 holds on both sides of 60."""
    torch.manual_seed(0)
    module = build_mechanism("performer", num_heads=2, head_dim=16, num_features=32).eval()
    q, k, v = (torch.randn(1, 2, LENGTH, 16) for _ in range(3))
    calls: list[str] = []
    k[:, :, [0, 150]] *= 26 / k[:, :, [0, 150]].norm(dim=-1, keepdim=True)
    for name in ("_watched", "forward"):
        method = getattr(LogLinearMechanism, name)
        monkeypatch.setattr(LogLinearMechanism, name, lambda *rest, name=name, method=method: calls.append(name) or method(*rest))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, expected = (run(*leaves, module, causal=True, documents=documents) for run in (attend, reference_attend))
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=0)
    assert calls.count("_watched") == (documents is None)
    assert calls.count("forward") == 1
    upstream = torch.randn_like(out)
    for found, wanted in zip(*(torch.autograd.grad(x, leaves, upstream) for x in (out, expected.float())), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)
