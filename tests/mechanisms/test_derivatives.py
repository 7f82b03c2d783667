"""Second derivatives of every mechanism are its definition's, or PyTorch refuses them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_longattn import attend, list_mechanisms, reference_attend
from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_from
from tests.cases import every_case
from tests.grids import grid
from tests.shared_code import engine_of_form

STOPPED = "transformer_xl without gradients into its memory"
OPTIONS = {
    **{name: (name, mechanism_class(name).about.sample) for name in list_mechanisms(grid=False)},
    STOPPED: ("transformer_xl", {"segment_length": 24, "memory_length": 40}),
}
FORMS = [(name, causal) for causal in (False, True) for name in OPTIONS if mechanism_class(OPTIONS[name][0]).causal in ("both", causal)]
LENGTHS = (11, 290)
"""With a mask over all pairs, and beyond the pairs for which one is taken."""
Inputs = tuple[Tensor, ...]


class Case:
    """A mechanism on some inputs, in fused or plain kernels and by its definition, both as numbers."""

    def __init__(self, name: str, causal: bool, length: int) -> None:
        self.module: Mechanism = mechanism_from(*OPTIONS[name], num_heads=2, head_dim=4, max_length=300).double().eval()
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter) * (name != "adaptive_span"))
        self.inputs: Inputs = torch.randn(3, 2, 2, length, 4, dtype=torch.float64).unbind()
        self.tangents: Inputs = torch.randn(3, 2, 2, length, 4, dtype=torch.float64).unbind()
        self.arguments: dict[str, Any] = {"causal": causal}
        if self.module.capabilities.takes_hidden_states:
            self.arguments["hidden_states"] = torch.randn(2, length, 8, dtype=torch.float64)
        self.weight = torch.randn(2, 2, length, 4, dtype=torch.float64)

    def fast(self, *inputs: Tensor) -> Tensor:
        return (attend(*inputs, self.module, **self.arguments) * self.weight).sum()

    def defined(self, *inputs: Tensor) -> Tensor:
        return (reference_attend(*inputs, self.module, **self.arguments) * self.weight).sum()

    def second(self, run: Callable[..., Tensor]) -> Inputs:
        """The product of the second derivatives and the tangents, by two backward passes."""
        inputs = [x.clone().requires_grad_() for x in self.inputs]
        first = torch.autograd.grad(run(*inputs), inputs, create_graph=True)
        along = sum((x * y).sum() for x, y in zip(first, self.tangents, strict=True))
        return torch.autograd.grad(along, inputs, allow_unused=True, materialize_grads=True)


def assert_equal(outs: Inputs, expected: Inputs) -> None:
    for x, y in zip(outs, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-7)


@every_case(
    ("name", "causal"),
    grid(FORMS, lambda name, causal: (name, not causal) not in FORMS or ([*OPTIONS].index(name) + causal) % 2 == 0),
    of=9,
    code=lambda name, causal: (name == STOPPED, engine_of_form(OPTIONS[name][0])),
    ids=str,
)
def test_second_derivatives_equal_the_definition_or_are_refused(name: str, causal: bool) -> None:
    for length in LENGTHS:
        case = Case(name, causal, length)
        expected = case.second(case.defined)
        with sdpa_kernel(SDPBackend.MATH):
            assert_equal(case.second(case.fast), expected)
        with suppress(RuntimeError):  # PyTorch's own: a fused kernel has no second derivative
            assert_equal(case.second(case.fast), expected)
