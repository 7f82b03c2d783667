"""Every derivative of every mechanism is its definition's or is refused in a sentence: forward mode, torch.func, second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_longattn import attend, list_mechanisms, reference_attend
from hf_longattn.engines.common.byte_cache import BYTE_CACHE
from hf_longattn.errors import DerivativeError
from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_from
from tests.alike import engine_of_form
from tests.cells import every_cell
from tests.grids import grid, quickly

STOPPED = "transformer_xl without gradients into its memory"
OPTIONS = {
    **{name: (name, mechanism_class(name).sample) for name in list_mechanisms(grid=False)},
    STOPPED: ("transformer_xl", {"segment_length": 24, "memory_length": 40}),
}
FORMS = [(name, causal) for causal in (False, True) for name in OPTIONS if mechanism_class(OPTIONS[name][0]).causal in ("both", causal)]
LENGTHS = (11, 290)
"""With a mask over all pairs, and beyond the pairs for which one is taken."""
Inputs = tuple[Tensor, ...]
# torch.vmap maps some operations one entry after the other, and moves axes
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop", r"ignore:torch\.searchsorted\(\)")


def forms(turn: int) -> Any:
    """Every form; of a mechanism with two, the quick tests take one, the other with another ``turn``."""
    return every_cell(
        ("name", "causal"),
        grid(FORMS, lambda name, causal: (name, not causal) not in FORMS or ([*OPTIONS].index(name) + causal) % 2 == turn),
        of=9,
        alike=lambda name, causal: (name == STOPPED, engine_of_form(OPTIONS[name][0])),
        ids=str,
    )


class Case:
    """A mechanism on some inputs, in fused or plain kernels and by its definition, both as numbers."""

    def __init__(self, name: str, causal: bool, length: int, padded: bool = False) -> None:
        BYTE_CACHE.clear()  # so that masks and plans are made by the first call, within a transform
        self.module: Mechanism = mechanism_from(*OPTIONS[name], num_heads=2, head_dim=4, max_length=300).double().eval()
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter) * (name != "adaptive_span"))
        self.inputs: Inputs = torch.randn(3, 2, 2, length, 4, dtype=torch.float64).unbind()
        self.tangents: Inputs = torch.randn(3, 2, 2, length, 4, dtype=torch.float64).unbind()
        mask = torch.ones(2, length, dtype=torch.bool)
        mask[1, : length // 3] = not padded
        self.arguments: dict[str, Any] = {"causal": causal, **({"padding_mask": mask} if padded else {})}
        if self.module.traits.takes_hidden_states:
            self.arguments["hidden_states"] = torch.randn(2, length, 8, dtype=torch.float64)
        self.weight = torch.randn(2, 2, length, 4, dtype=torch.float64) * mask[:, None, :, None]

    def fast(self, *inputs: Tensor) -> Tensor:
        return (attend(*inputs, self.module, **self.arguments) * self.weight).sum()

    def defined(self, *inputs: Tensor) -> Tensor:
        return (reference_attend(*inputs, self.module, **self.arguments) * self.weight).sum()

    def gradients(self, run: Callable[..., Tensor], **how: bool) -> Inputs:
        inputs = [x.clone().requires_grad_() for x in self.inputs]
        first = torch.autograd.grad(run(*inputs), inputs, **how)
        if not how:
            return first
        along = sum((x * y).sum() for x, y in zip(first, self.tangents, strict=True))
        return torch.autograd.grad(along, inputs, allow_unused=True, materialize_grads=True)

    def second(self, run: Callable[..., Tensor]) -> Inputs:
        """The product of the second derivatives and the tangents, by two backward passes."""
        return self.gradients(run, create_graph=True)


def or_refused(run: Callable[[], Any], words: str) -> Any:
    """What ``run`` returns; ``None`` where it is refused in a sentence with these words."""
    try:
        return run()
    except DerivativeError as refusal:
        sentence = str(refusal)
    assert words in sentence
    return None


def assert_equal(outs: Inputs, expected: Inputs) -> None:
    for x, y in zip(outs, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-7)


@forms(0)
@every_cell("padded", quickly(LENGTHS, LENGTHS[1:]), ids="{} left-padded".format)
def test_forward_mode(name: str, causal: bool, padded: int) -> None:
    """With padding on the left at one length, and whole sequences at the other."""
    for length in LENGTHS:
        case = Case(name, causal, length, length == padded)
        _, tangent = torch.func.jvp(case.fast, case.inputs, case.tangents)
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(case.fast(*map(forward_ad.make_dual, case.inputs, case.tangents))).tangent
        expected = sum((x * y).sum() for x, y in zip(case.gradients(case.defined), case.tangents, strict=True))
        assert_equal((tangent, dual), (expected, expected))
        assert_equal((case.fast(*case.inputs),), (case.defined(*case.inputs),))


@forms(1)
def test_gradients_by_torch_func_and_for_each_example(name: str, causal: bool) -> None:
    for length in LENGTHS:
        case = Case(name, causal, length)
        expected = case.gradients(case.defined)
        assert_equal(torch.func.grad(case.fast, (0, 1, 2))(*case.inputs), expected)
        others = tuple(x.flip(2) for x in case.inputs)
        stacked = tuple(map(torch.stack, zip(case.inputs, others, strict=True)))
        run = torch.func.vmap(torch.func.grad(case.fast, (0, 1, 2)))
        mapped = or_refused(partial(run, *stacked), "torch.vmap cannot follow mechanism")
        if mapped is not None:
            assert_equal(tuple(x[0] for x in mapped), expected)
            assert_equal(tuple(x[1] for x in mapped), torch.func.grad(case.fast, (0, 1, 2))(*others))


@forms(0)
def test_second_derivatives(name: str, causal: bool) -> None:
    for length in LENGTHS:
        case = Case(name, causal, length)
        expected = case.second(case.defined)
        _, along = torch.func.jvp(torch.func.grad(case.fast, (0, 1, 2)), case.inputs, case.tangents)
        assert_equal(along, expected)
        with sdpa_kernel(SDPBackend.MATH):
            assert_equal(case.second(case.fast), expected)
        outs = or_refused(partial(case.second, case.fast), "sdpa_kernel")
        if outs is not None:
            assert_equal(outs, expected)


@forms(1)
def test_many_gradients_at_once(name: str, causal: bool) -> None:
    """By torch.func, and by autograd's own vmap, which knows few operations."""
    case = Case(name, causal, LENGTHS[1])
    rows = [3, 150, 289]

    def few(q: Tensor) -> Tensor:
        return attend(q, *case.inputs[1:], case.module, **case.arguments)[0, 1, rows].sum(-1)

    q = case.inputs[0].clone().requires_grad_()
    expected = torch.stack([torch.autograd.grad(value, q, retain_graph=True)[0] for value in few(q)])
    assert_equal((torch.func.jacrev(few)(case.inputs[0]),), (expected,))
    vectorised = partial(torch.autograd.functional.jacobian, few, case.inputs[0], vectorize=True)
    jacobian = or_refused(vectorised, "torch.func.jacrev")
    if jacobian is not None:
        assert_equal((jacobian,), (expected,))
