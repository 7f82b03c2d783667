"""Every mechanism with inputs in any memory layout, with nothing but padding, and under a default device that is not theirs."""

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, list_mechanisms
from hf_longattn.engines.common.byte_cache import BYTE_CACHE
from hf_longattn.engines.common.grid import Grid
from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_from

ON_GRIDS = list_mechanisms(grid=True)
FORMS = [(name, causal) for causal in (False, True) for name in list_mechanisms(causal=causal)]
every_form = pytest.mark.parametrize(("name", "causal"), FORMS, ids=str)
GRIDS = {64: Grid((7, 9), 1), 300: Grid((12, 24), 12)}
"""Where so many tokens lie; the larger one has more prefix tokens than plain operations attend to."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def built(name: str) -> Mechanism:
    return mechanism_from(name, mechanism_class(name).sample, num_heads=4, head_dim=16, max_length=300).eval()


def arguments_for(name: str, causal: bool, length: int) -> dict[str, object]:
    globals_ = torch.rand(1, length).expand(2, -1) < 0.05 if mechanism_class(name).takes_globals else None
    return {"causal": causal, "global_mask": globals_, **({"grid": GRIDS[length]} if name in ON_GRIDS else {})}


def inputs(length: int) -> list[Tensor]:
    return [torch.randn(2, heads, length, 16, requires_grad=True) for heads in (4, 2, 2)]


def with_gradients(out: Tensor, leaves: list[Tensor], weight: Tensor) -> tuple[Tensor, ...]:
    return out, *torch.autograd.grad(out, leaves, weight)


def strided(x: Tensor) -> Tensor:
    """``x`` stored with its last axis before the tokens, and every other number unused."""
    stored = torch.full((*x.shape[:2], x.shape[3], x.shape[2], 2), float("nan"), dtype=x.dtype)[..., 0].mT
    return stored.copy_(x.detach()).requires_grad_(x.requires_grad)


@every_form
def test_the_layout_of_inputs_and_gradients_in_memory_does_not_matter(name: str, causal: bool) -> None:
    module = built(name)
    for length in GRIDS:
        arguments, leaves, weight = arguments_for(name, causal, length), inputs(length), torch.randn(2, 4, length, 16)
        expected = with_gradients(attend(*leaves, module, **arguments), leaves, weight)
        leaves = [strided(x) for x in leaves]
        found = with_gradients(attend(*leaves, module, **arguments), leaves, strided(weight))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@every_form
def test_a_batch_of_padding_alone_has_zero_gradients(name: str, causal: bool) -> None:
    q, k, v = inputs(300)
    out = attend(q, k, v, built(name), padding_mask=torch.zeros(2, 300, dtype=torch.bool), **arguments_for(name, causal, 300))
    assert out.shape == q.shape
    assert out.isfinite().all()
    for x, grad in zip((q, k, v), torch.autograd.grad(out.sum(), (q, k, v)), strict=True):
        assert torch.equal(grad, torch.zeros_like(x))


@every_form
def test_a_default_device_changes_neither_a_call_nor_those_after_it(name: str, causal: bool) -> None:
    """As where weights are made on the meta device around a model that runs."""
    module, arguments, leaves, weight = built(name), arguments_for(name, causal, 300), inputs(300), torch.randn(2, 4, 300, 16)
    expected = with_gradients(attend(*leaves, module, **arguments), leaves, weight)
    BYTE_CACHE.clear()
    with torch.device("meta"):
        during = with_gradients(attend(*leaves, module, **arguments), leaves, weight)
    after = with_gradients(attend(*leaves, module, **arguments), leaves, weight)
    for found in (during, after):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
