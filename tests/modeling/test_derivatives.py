"""Derivatives of whole models: forward mode over the parameters, gradients of each example by torch.func, and what cannot be mapped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_longattn import build_mechanism
from hf_longattn.backend import longattn_attention_forward
from hf_longattn.engines.common.byte_cache import BYTE_CACHE
from hf_longattn.errors import BackendError, DerivativeError, MaskError
from tests.cells import every_cell
from tests.grids import pairwise
from tests.reference.small_models import long_model, padding, tokens

LENGTH = 270
MECHANISMS: dict[str, dict[str, Any]] = {
    "window": {"window": 8},
    "strided": {"window": 8, "stride": 16},
    "block_top_k": {"block_size": 16, "num_blocks": 3},
    "linear": {},
    "transformer_xl": {"segment_length": 32, "memory_length": 16},
}
"""A band, tiles, blocks chosen by content, a state, and gradients that stop at hidden states: each with its own kernels and cache."""
Parameters = dict[str, Tensor]


class Case:
    """A model in float64, and the sum of its weighted outputs as a function of its parameters."""

    def __init__(self, base: str, name: str, left: bool) -> None:
        BYTE_CACHE.clear()
        self.model = long_model(base, None, {"mechanism": name, **MECHANISMS[name]}, num_hidden_layers=1).double()
        self.parameters = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        self.tangents = {name: 0.01 * torch.randn_like(parameter) for name, parameter in self.parameters.items()}
        self.ids = tokens(2, LENGTH)
        self.mask = padding(2, LENGTH, left=True) if left else None
        self.weight = torch.randn(2, LENGTH, 64, dtype=torch.float64) * (1 if self.mask is None else self.mask[..., None])

    def run(self, parameters: Parameters, **more: Any) -> Tensor:
        return self.of(parameters, self.ids, self.mask, self.weight, **more)

    def of(self, parameters: Parameters, ids: Tensor, mask: Tensor | None, weight: Tensor, **more: Any) -> Tensor:
        out = torch.func.functional_call(self.model, parameters, (ids,), {"attention_mask": mask, **more})
        return (out.last_hidden_state * weight).sum()

    def gradients(self) -> Parameters:
        leaves = {name: x.clone().requires_grad_() for name, x in self.parameters.items()}
        found = torch.autograd.grad(self.run(leaves), list(leaves.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    def along_tangents(self, gradients: Parameters) -> Tensor:
        return sum((gradients[name] * tangent).sum() for name, tangent in self.tangents.items())  # type: ignore[return-value]

    def second(self) -> Parameters:
        leaves = {name: x.clone().requires_grad_() for name, x in self.parameters.items()}
        first = torch.autograd.grad(self.run(leaves), list(leaves.values()), allow_unused=True, materialize_grads=True, create_graph=True)
        along = self.along_tangents(dict(zip(leaves, first, strict=True)))
        return dict(zip(leaves, torch.autograd.grad(along, list(leaves.values()), allow_unused=True, materialize_grads=True), strict=True))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5 * max(1.0, float(b.abs().max())), rtol=1e-5)  # Llama's norms and rotations are in float32


@pytest.mark.thorough
@every_cell(("base", "name", "left"), pairwise(["bert", "llama"], [*MECHANISMS], [False, True]))
def test_forward_mode_over_the_parameters(base: str, name: str, left: bool) -> None:
    """Llama with the decode cache that its forward pass makes."""
    case = Case(base, name, left)
    _, tangent = torch.func.jvp(case.run, (case.parameters,), (case.tangents,))
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(x, case.tangents[name]) for name, x in case.parameters.items()}
        dual = forward_ad.unpack_dual(case.run(duals)).tangent
    expected = case.along_tangents(case.gradients())
    close(tangent, expected)
    close(dual, expected)


@pytest.mark.parametrize("name", ["window", "strided", "linear"])
def test_gradients_of_each_example(name: str) -> None:
    for left in (False, True):
        case = Case("bert", name, left)
        rows = (case.ids[:, None], torch.ones_like(case.ids)[:, None] if case.mask is None else case.mask[:, None], case.weight[:, None])
        found = torch.func.vmap(torch.func.grad(case.of), (None, 0, 0, 0))(case.parameters, *rows)
        for key, expected in case.gradients().items():
            close(found[key].sum(0), expected)


@pytest.mark.parametrize("name", MECHANISMS)
def test_second_derivatives(name: str) -> None:
    case = Case("bert", name, False)
    _, along = torch.func.jvp(torch.func.grad(case.run), (case.parameters,), (case.tangents,))
    with sdpa_kernel(SDPBackend.MATH):
        second = case.second()
    for key, expected in along.items():
        close(second[key], expected)
    if name != "linear":
        with pytest.raises(DerivativeError, match=r"sdpa_kernel\(torch\.nn\.attention\.SDPBackend\.MATH\)"):
            case.second()


def test_a_model_for_inference_has_no_derivative_of_any_kind() -> None:
    model = long_model("bert", None, {"mechanism": "window", "window": 8}, num_hidden_layers=1)
    model.optimize_for_inference("int8")
    x = torch.randn(1, 20, 64, dtype=torch.bfloat16)
    with pytest.raises(BackendError, match="computes no gradients"), torch.no_grad():
        torch.func.jvp(lambda states: model(inputs_embeds=states)[0], (x,), (x,))


def test_what_cannot_be_mapped_is_refused() -> None:
    case = Case("llama", "linear", True)
    each = torch.func.vmap(case.of, (None, 0, 0, 0))
    assert case.mask is not None
    rows = (case.ids[:, None], case.mask[:, None], case.weight[:, None])
    with pytest.raises(DerivativeError, match="pass use_cache=False"):
        each(case.parameters, *rows)
    documents = (torch.arange(LENGTH) // 100).expand(2, 1, -1)
    bert = Case("bert", "window", False)
    with pytest.raises(MaskError, match=r"torch\.vmap knows"):
        torch.func.vmap(lambda ids, numbers: bert.model(ids, documents=numbers)[0])(bert.ids[:, None], documents)


def test_a_sequence_over_processes_is_refused() -> None:
    module = nn.Module()
    module.long_attention = build_mechanism("window", num_heads=2, head_dim=4, window=8)
    module.long_attention.shard = SimpleNamespace()
    x = torch.randn(1, 2, 16, 4)
    with pytest.raises(DerivativeError, match=r"outside of sequence_parallel"):
        torch.func.jvp(lambda q: longattn_attention_forward(module, q, x, x, None)[0], (x,), (x,))
