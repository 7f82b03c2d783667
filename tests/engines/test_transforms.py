"""Transformations of ``torch.func`` through every mechanism, every engine of a CPU, and whole models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vjp, vmap

import hf_longattn
from hf_longattn import attend, list_mechanisms, mechanism_info
from hf_longattn.engines.batch import TRANSFORMED
from hf_longattn.engines.byte_cache import BYTE_CACHE
from hf_longattn.engines.token_grid import Grid
from hf_longattn.errors import InputError
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_from
from tests.cases import every_case
from tests.reference.small_models import long_model, plain_model
from tests.shared_code import engine_of_form

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:torch.searchsorted")
FORMS = [(name, causal) for causal in (False, True) for name in list_mechanisms(causal=causal)]
LENGTH = 260
GRID = Grid((26, 10))
KINDS = ("plain", "padding", "packed", "globals")


def masks(name: str, kind: str) -> dict[str, Tensor]:
    """Tensors ``(2, N)`` that restrict the call."""
    padding, chosen = torch.ones(2, LENGTH, dtype=torch.bool), torch.zeros(2, LENGTH, dtype=torch.bool)
    padding[0, :9], padding[0, 70:73], padding[1, -5:] = False, False, False
    chosen[0, 3], chosen[1, [2, 90]] = True, True
    return {
        "plain": {},
        "padding": {"padding_mask": padding},
        "packed": {"documents": (torch.arange(LENGTH) // 90).expand(2, -1)},
        "globals": {"global_mask": chosen},
    }[kind]


def is_possible(name: str, kind: str) -> bool:
    if kind == "globals":
        return mechanism_info(name).takes_globals
    return kind != "packed" or name not in list_mechanisms(grid=True)


def loss_of(name: str, causal: bool) -> Any:
    """A loss of q, k, v ``(B, H, N, D)``, weights of the outputs, and the tensors of :func:`masks`."""
    module = mechanism_from(name, mechanism_class(name).about.sample, num_heads=2, head_dim=4, max_length=LENGTH)
    module = module.eval().double()
    where = {"grid": GRID} if name in list_mechanisms(grid=True) else {}

    def loss(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, restricting: dict[str, Tensor]) -> Tensor:
        return (attend(q, k, v, module, causal=causal, **where, **restricting) * weight).sum()

    return loss


@every_case("kind", KINDS)
@every_case(("name", "causal"), FORMS, of=9, code=engine_of_form)
def test_gradients_of_torch_func_equal_autograd_through_every_mechanism(name: str, causal: bool, kind: str) -> None:
    if not is_possible(name, kind):
        return
    loss, restricting = loss_of(name, causal), masks(name, kind)
    q, k, v, weight = (torch.randn(2, 2, LENGTH, 4, dtype=torch.float64) for _ in range(4))
    if "padding_mask" in restricting:
        weight = weight * restricting["padding_mask"][:, None, :, None]
    recorded = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(loss(*recorded, weight, restricting), recorded, materialize_grads=True)
    near = {"rtol": 0, "atol": 1e-10}
    places = (0, 1, 2)
    torch.testing.assert_close(grad(loss, places)(q, k, v, weight, restricting), expected, **near)
    torch.testing.assert_close(jacrev(loss, places)(q, k, v, weight, restricting), expected, **near)
    value, pull = vjp(lambda *x: loss(*x, weight, restricting), q, k, v)
    torch.testing.assert_close(pull(torch.ones_like(value)), expected, **near)

    def of_sample(*x: Any) -> Tensor:
        *tensors, rows = x
        return loss(*(tensor[None] for tensor in tensors), {key: row[None] for key, row in rows.items()})

    by_sample = vmap(grad(of_sample, places))
    if kind == "packed":
        with pytest.raises(InputError, match=r"nor torch\.func\.vmap knows"):
            by_sample(q, k, v, weight, restricting)
        return
    torch.testing.assert_close(by_sample(q, k, v, weight, restricting), expected, **near)


def test_explain_names_torch_func_and_no_wrapped_tensor_stays_in_the_cache() -> None:
    BYTE_CACHE.clear()
    loss = loss_of("window", False)
    q, k, v, weight = (torch.randn(1, 2, LENGTH, 4, dtype=torch.float64) for _ in range(4))
    first = grad(loss)(q, k, v, weight, {})
    assert not len(BYTE_CACHE)
    recorded = q.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(loss(recorded, k, v, weight, {}), recorded)[0], first)

    model = long_model("bert", None, {"mechanism": "window", "window": 8}).eval()
    ids = torch.randint(5, 200, (1, 400))
    reasons: list[str] = []

    def explained(scale: Tensor) -> Tensor:
        reasons.append(str(hf_longattn.explain(model, {"input_ids": ids})))
        return scale

    grad(explained)(torch.ones(()))
    assert TRANSFORMED in reasons[0]


WINDOW = {"mechanism": "window", "window": 8}
MODELS: dict[str, tuple[str, Any]] = {
    "bert": ("bert", None),
    "modernbert": ("modernbert", None),
    "mistral": ("mistral", None),
    "long bert": ("bert", WINDOW),
    "long llama": ("llama", WINDOW),
    "long llama with a state": ("llama", {"mechanism": "linear"}),
    "long bert with blocks": ("bert", {"mechanism": "bigbird", "block_size": 8, "exact_length": 0}),
}


@every_case("name", MODELS)
def test_gradients_of_each_sample_equal_autograd_through_whole_models(name: str) -> None:
    base, mechanism = MODELS[name]
    if mechanism is None:
        model = plain_model(base, sliding_window=8) if base == "mistral" else plain_model(base)
        model.set_attn_implementation("longattn")
    else:
        model = long_model(base, None, mechanism)
    model = model.double().eval()
    ids, mask = torch.randint(5, 200, (2, 70)), torch.ones(2, 70, dtype=torch.long)
    mask[0, -20:] = 0
    weight = torch.randn(2, 70, model.config.hidden_size, dtype=torch.float64) * mask[..., None]
    parameters = {key: value.detach() for key, value in model.named_parameters()}
    more = {"use_cache": False} if mechanism == {"mechanism": "linear"} else {}

    def loss(parameters: dict[str, Tensor], ids: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        arguments = {"input_ids": ids[None], "attention_mask": mask[None], **more}
        return (functional_call(model, parameters, (), arguments).last_hidden_state * weight).sum()

    found = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, ids, mask, weight)
    for sample in range(2):
        states = model(ids[sample, None], attention_mask=mask[sample, None]).last_hidden_state
        expected = torch.autograd.grad(
            (states * weight[sample]).sum(), [*model.parameters()], allow_unused=True, materialize_grads=True
        )
        for values, wanted in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(values[sample], wanted, rtol=1e-8, atol=1e-8 * float(wanted.abs().max() + 1))


def test_a_cache_that_must_read_padding_says_to_leave_it_out_under_vmap() -> None:
    model = long_model("llama", None, {"mechanism": "linear"}).eval()
    ids, mask = torch.randint(5, 200, (2, 1, 20)), torch.ones(2, 1, 20, dtype=torch.long)
    with pytest.raises(InputError, match="use_cache=False"):
        vmap(lambda ids, mask: model(ids, attention_mask=mask).last_hidden_state)(ids, mask)
