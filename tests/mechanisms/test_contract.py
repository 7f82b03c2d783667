"""The contract that every registered mechanism keeps; a new one is tested on arrival."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_longattn import attend, build_mechanism, list_mechanisms, mechanism_info, reference_attend
from hf_longattn.engines.token_grid import Grid
from hf_longattn.errors import BackendError, InputError, OptionError
from hf_longattn.mechanisms.common.base import attention_weights
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_from
from tests import grids as grids_of_tests
from tests.cases import every_case
from tests.grids import drawn, grid
from tests.shared_code import engine_of_form

SHAPES = ((1, "none"), (2, "none"), (63, "left"), (64, "inside"), (65, "right"))
"""Lengths around the tiles of the engines, each with one padding; any shape is in the test of drawn ones."""
SIDES = ("none", "left", "right", "inside")
GRIDS = {
    **{
        5: Grid((5,)),
        63: Grid((7, 9)),
        64: Grid((7, 9), 1),
        65: Grid((4, 4, 4), 1),
        200: Grid((13, 15), 5),
        300: Grid((13, 23), 1),
    },
    **{600: Grid((599,), 1)},
}
"""Where so many tokens lie for a mechanism on a grid."""
GRID_NAMES = list_mechanisms(grid=True)
FORMS = [(name, causal) for causal in (False, True) for name in list_mechanisms(causal=causal)]

every_form = every_case(("name", "causal"), FORMS)
every_form_by_name = every_case(("name", "causal"), FORMS, by="name")
"""A test for each mechanism, where one for all takes long."""
every_engine = every_case(("name", "causal"), FORMS, of=9, code=engine_of_form)
"""Every engine; the quick tests have a quarter of the forms that share one, in turn."""
every_mechanism = every_case(("name", "causal"), FORMS, of=9, code=lambda name, causal: name)
"""Every mechanism; of one with two forms the quick tests have one."""
SIMPLE = ("block_top_k", "linear", "strided", "window")
"""Mechanisms that add little to their engine."""
CAUSAL_BUT_FOR_ROUNDING = ("hybrid", "lsh", "performer", "routing")
"""Mechanisms in which later tokens change the order of the sums for earlier ones, by rounding (1e-6)."""
ENGINES = {
    (mechanism_info(name).engine, causal): name for name, causal in sorted(FORMS, key=lambda form: form[0] in SIMPLE)
}
"""A mechanism for each engine in each form: a simple one, or the last."""
EXPORTED = [(name, causal) for name, causal in FORMS if mechanism_class(name).capabilities.exports]


def quick_graph(name: str, causal: bool) -> bool:
    """Every other engine is compiled, in one form. Graphs of mechanisms on grids are in
    test_window2d.py, and that of routing in test_buckets.py."""
    engine = mechanism_info(name).engine
    if name in GRID_NAMES or name == "routing":
        return False
    # which tests/mechanisms/test_inputs.py compiles, and tests/positions/test_relative.py exports
    if name in ("window", "linear"):
        return False
    turn = sorted({engine for engine, _ in ENGINES}).index(engine)
    in_turn = causal == (turn % 4 > 1) or (engine, not causal) not in ENGINES
    return name == ENGINES[engine, causal] and in_turn and turn % 2 == 0


def small_options(name: str) -> dict[str, Any]:
    """Options small enough that the inputs here are longer than what a token sees."""
    return mechanism_class(name).about.sample


def place(name: str, length: int) -> dict[str, Grid]:
    """The argument that says where the tokens lie, for a mechanism on a grid."""
    return {"grid": GRIDS[length]} if name in GRID_NAMES else {}


def inputs(
    length: int, dtype: torch.dtype = torch.float32, q_len: int | None = None, kv_heads: int = 2, grad: bool = False
) -> list[Tensor]:
    shapes = [(2, 4, q_len or length, 16), (2, kv_heads, length, 16), (2, kv_heads, length, 16)]
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(grad) for shape in shapes]


def padding(length: int, side: str) -> Tensor | None:
    mask = torch.ones(2, length, dtype=torch.bool)
    cut = length // 3
    if side == "left":
        mask[0, :cut] = False
    elif side == "right":
        mask[0, length - cut :] = False
    elif side == "inside":
        mask[0, length // 2 : length // 2 + cut // 2] = False
        mask[1, : cut // 2] = False
    return mask


def globals_for(name: str, length: int) -> Tensor | None:
    return torch.rand(2, length) < 0.05 if mechanism_info(name).takes_globals else None


@every_case("name", list_mechanisms())
def test_parameters_of_a_generator_are_those_of_no_default_device(name: str) -> None:
    """The meta device stands for any default device: tensors on it have no values to copy."""

    def parameters() -> dict[str, Any]:
        generator = torch.Generator("cpu").manual_seed(3)
        sizes = {"num_heads": 4, "head_dim": 16, "max_length": 300}
        return mechanism_from(name, small_options(name), **sizes, generator=generator).state_dict()

    expected = parameters()
    with torch.device("meta"):
        found = parameters()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@every_form_by_name
def test_every_mechanism_equals_its_float64_reference_with_gradients(name: str, causal: bool) -> None:
    module = mechanism_from(name, small_options(name), num_heads=4, head_dim=16, max_length=300)
    longer = [(300, side) for side in SIDES]
    quick = [*SHAPES[causal::2], longer[FORMS.index((name, causal)) % 4]]
    for length, side in quick if grids_of_tests.ONLY_QUICK else (*SHAPES, *longer):
        if name in GRID_NAMES and length not in GRIDS:
            continue  # a single cell is smaller than a neighbourhood
        q, k, v = inputs(length, grad=True)
        mask = padding(length, side)
        arguments = {
            "causal": causal,
            "padding_mask": mask,
            "global_mask": globals_for(name, length),
            **place(name, length),
        }
        out, expected = attend(q, k, v, module, **arguments), reference_attend(q, k, v, module, **arguments)
        real, shape = mask[:, None, :, None], f"{length} tokens, padding: {side}"
        assert out.shape == q.shape, shape
        assert out.isfinite().all(), shape
        assert_near(out * real, (expected * real).float(), 1e-5, shape)
        weight = torch.randn_like(expected) * real
        got = torch.autograd.grad((out * weight).sum(), (q, k, v), materialize_grads=True)
        wanted = torch.autograd.grad((expected * weight).sum(), (q, k, v), materialize_grads=True)
        for a, b in zip(got, wanted, strict=True):
            assert_near(a, b, 5e-5, shape)


def assert_near(found: Tensor, expected: Tensor, atol: float, shape: str) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0, msg=lambda words: f"{shape}: {words}")


@every_engine
@every_case("dtype", [torch.bfloat16, torch.float16])
def test_every_mechanism_in_half_precision_is_near_its_reference(name: str, causal: bool, dtype: torch.dtype) -> None:
    q, k, v = inputs(300, dtype)
    arguments = {"causal": causal, "global_mask": globals_for(name, 300), **place(name, 300), **small_options(name)}
    out = attend(q, k, v, name, **arguments)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), reference_attend(q, k, v, name, **arguments), atol=2e-2, rtol=0)


@every_engine
def test_empty_inputs_give_empty_outputs_with_zero_gradients(name: str, causal: bool) -> None:
    for batch, queries, keys in ((0, 300, 300), (0, 1, 5), (2, 0, 0), (2, 0, 5)):
        where = place(name, keys) if keys else {}
        q, k, v = (
            torch.randn(batch, h, n, 16, dtype=torch.bfloat16, requires_grad=True)
            for h, n in ((4, queries), (2, keys), (2, keys))
        )
        for more in (
            {},
            {"padding_mask": torch.ones(batch, keys)},
            {"documents": torch.zeros(batch, keys, dtype=torch.long)},
        ):
            out = attend(q, k, v, name, causal=causal, **more, **where, **small_options(name))
            assert out.shape == q.shape
            assert out.dtype == q.dtype
            gradients = torch.autograd.grad(out.sum(), (q, k, v), materialize_grads=True)
            assert all(torch.equal(grad, torch.zeros_like(x)) for x, grad in zip((q, k, v), gradients, strict=True))
            assert (
                reference_attend(q, k, v, name, causal=causal, **more, **where, **small_options(name)).shape == q.shape
            )
        module = mechanism_from(name, small_options(name), num_heads=4, head_dim=16, max_length=300)
        assert attention_weights(module, q, k, causal=causal, **where).shape == (batch, 4, queries, keys)


@every_form
def test_only_the_causal_form_ignores_the_future(name: str, causal: bool) -> None:
    q, k, v = inputs(300)
    options = {**place(name, 300), **small_options(name)}
    before = attend(q, k, v, name, causal=causal, **options)
    k[:, :, 150:] += 3.0
    v[:, :, 150:] += 3.0
    after = attend(q, k, v, name, causal=causal, **options)
    if name not in CAUSAL_BUT_FOR_ROUNDING:
        assert torch.equal(before[:, :, :150], after[:, :, :150]) == causal
    else:
        assert torch.allclose(before[:, :, :150], after[:, :, :150], rtol=0, atol=1e-6) == causal
    assert not torch.allclose(before[:, :, 150:], after[:, :, 150:])


@every_form
def test_covering_the_input_equals_full_softmax_attention(name: str, causal: bool) -> None:
    kind = mechanism_class(name)
    if (covering := kind.about.covering) is None:
        pytest.skip("it never equals full attention")
    wide = covering(GRIDS[300]) if name in GRID_NAMES else covering(300, causal)
    module = build_mechanism(name, num_heads=4, head_dim=16, **wide)
    placed = module.on_grid(GRIDS[300]) if name in GRID_NAMES else module
    assert placed.covers(300, causal), (
        f"about.covering of {name} names options for full attention; let its covers() say so, too"
    )
    q, k, v = inputs(300)
    mask = padding(300, "right")
    out = attend(q, k, v, module, causal=causal, padding_mask=mask, **place(name, 300))
    expected = reference_attend(q, k, v, "full", causal=causal, padding_mask=mask)
    torch.testing.assert_close(
        out * mask[:, None, :, None], (expected * mask[:, None, :, None]).float(), atol=1e-5, rtol=0
    )


@every_engine
@every_case("q_len", [1, 5, 290])
def test_fewer_queries_than_keys_are_the_last_positions(name: str, causal: bool, q_len: int) -> None:
    q, k, v = inputs(600)
    if not mechanism_class(name).capabilities.takes_fewer_queries:
        with pytest.raises(InputError, match=f"{q_len} queries"):
            attend(q[:, :, -q_len:], k, v, name, causal=causal, **place(name, 600), **small_options(name))
        return
    whole = attend(q, k, v, name, causal=causal, **small_options(name))
    out = attend(q[:, :, -q_len:], k, v, name, causal=causal, **small_options(name))
    torch.testing.assert_close(out, whole[:, :, -q_len:], atol=1e-5, rtol=0)


@every_mechanism
def test_every_mechanism_honours_scaling_score_mod_and_dropout(name: str, causal: bool) -> None:
    q, k, v = inputs(300)
    arguments = {"causal": causal, "scaling": 0.7, **place(name, 300), **small_options(name)}

    def nearer(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - 0.05 * (h + 1) * (i - j).abs()

    takes = mechanism_class(name).capabilities.takes_score_mod
    if not takes:
        with pytest.raises(OptionError, match="score_mod"):
            attend(q, k, v, name, score_mod=nearer, **arguments)
    for score_mod in (None, nearer) if takes else (None,):
        expected = reference_attend(q, k, v, name, score_mod=score_mod, **arguments).float()
        torch.testing.assert_close(
            attend(q, k, v, name, score_mod=score_mod, **arguments), expected, atol=1e-5, rtol=0
        )
    ones = torch.ones_like(v)
    dropped = torch.stack([attend(q, k, ones, name, dropout_p=0.5, **arguments) for _ in range(3)])
    assert abs((dropped - attend(q, k, ones, name, **arguments)).mean().item()) < 0.05, "dropout keeps the mean"
    assert dropped.std().item() > 0.05, "dropout drops"
    assert attend(q, k, ones, name, dropout_p=1.0, **arguments).abs().max() == 0


@every_engine
def test_autocast_and_checkpointing_change_no_output_and_no_gradient(name: str, causal: bool) -> None:
    q, k, v = inputs(300, grad=True)
    options = {**place(name, 300), **small_options(name)}
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, name, causal=causal, **options)
    torch.testing.assert_close(
        out.double(), reference_attend(q, k, v, name, causal=causal, **options), atol=2e-2, rtol=0
    )
    plain = torch.autograd.grad(
        attend(q, k, v, name, causal=causal, **options).sum(), (q, k, v), materialize_grads=True
    )
    for reentrant in (False, True):
        for x in (q, k, v):
            x.grad = torch.zeros_like(x)
        checkpoint(
            lambda *x: attend(*x, name, causal=causal, **options), q, k, v, use_reentrant=reentrant
        ).sum().backward()
        torch.testing.assert_close((q.grad, k.grad, v.grad), plain, atol=1e-6, rtol=0)


class Call(torch.nn.Module):
    """A layer's call with the mechanism inside."""

    def __init__(self, name: str, causal: bool) -> None:
        super().__init__()
        self.mechanism = build_mechanism(name, num_heads=4, head_dim=16, **small_options(name))
        self.causal, self.place = causal, place(name, 300)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attend(q, k, v, self.mechanism, causal=self.causal, padding_mask=mask, **self.place)


def assert_graph_equals_call(call: Call, graph: Callable[..., Tensor], *arguments: Tensor) -> None:
    """Rows of padding mean nothing, and an exported graph takes another path to them."""
    real = arguments[3][:, None, :, None]
    out = graph(*arguments)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out * real, call(*arguments) * real, atol=1e-6, rtol=0)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "causal"), grid(FORMS, quick_graph), ids=str)
def test_compiled_mechanisms_compute_the_same(name: str, causal: bool) -> None:
    call = Call(name, causal)
    torch._dynamo.reset()  # the registry is longer than the number of recompilations that torch.compile allows
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_graph_equals_call(call, compiled, *inputs(300), padding(300, "left"))


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "causal"), FORMS, ids=str)
def test_exported_mechanisms_compute_the_same_and_others_are_refused(name: str, causal: bool) -> None:
    call, arguments = Call(name, causal), (*inputs(300), padding(300, "left"))
    if (name, causal) in EXPORTED:
        assert_graph_equals_call(call, torch.export.export(call, arguments).module(), *arguments)
    else:
        with pytest.raises(BackendError, match="cannot be exported as a graph, but full, linear, longformer, window"):
            torch.export.export(call, arguments)


@every_form
def test_the_information_of_every_mechanism_is_complete(name: str, causal: bool) -> None:
    info = mechanism_info(name)
    assert all((info.summary, info.paper, info.when, info.cost, info.exact_when, info.engine))
    assert all(option.help for option in info.options)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """A grid of any rank, with 0 to 5 prefix tokens."""
    sizes = st.lists(st.integers(3, 18), min_size=1, max_size=3).filter(lambda sizes: math.prod(sizes) <= 300)
    return Grid(tuple(draw(sizes)), draw(st.integers(0, 5)))


@every_case("name", GRID_NAMES)
@drawn(20)
@given(grids(), st.sampled_from([1, 2]), st.integers(0, 1000))
def test_every_grid_mechanism_equals_its_reference_on_any_grid_with_holes(
    name: str, grid: Grid, group: int, seed: int
) -> None:
    generator, options = torch.Generator().manual_seed(seed), mechanism_class(name).about.sample
    mask = torch.rand(2, grid.length, generator=generator) < 0.8
    q = torch.randn(2, 2 * group, grid.length, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, grid.length, 8, generator=generator)
    out = attend(q, k, v, name, padding_mask=mask, grid=grid, **options)
    expected = reference_attend(q, k, v, name, padding_mask=mask, grid=grid, **options)
    real = mask[:, None, :, None]
    assert out.isfinite().all()
    torch.testing.assert_close(out * real, (expected * real).float(), atol=1e-5, rtol=0)


STOPPED = "transformer_xl without gradients into its memory"
OPTIONS = {
    **{name: (name, mechanism_class(name).about.sample) for name in list_mechanisms(grid=False)},
    STOPPED: ("transformer_xl", {"segment_length": 24, "memory_length": 40}),
}
DIFFERENTIATED = [
    (name, causal)
    for causal in (False, True)
    for name in OPTIONS
    if mechanism_class(OPTIONS[name][0]).causal in ("both", causal)
]
LENGTHS = (11, 290)
"""With a mask over all pairs, and beyond the pairs for which one is taken."""


@every_case("length", LENGTHS)
@every_case(
    ("name", "causal"),
    grid(
        DIFFERENTIATED,
        lambda name, causal: (name, not causal) not in DIFFERENTIATED or ([*OPTIONS].index(name) + causal) % 2 == 0,
    ),
    of=9,
    code=lambda name, causal: (name == STOPPED, engine_of_form(OPTIONS[name][0])),
    ids=str,
)
def test_second_derivatives_equal_the_definition_or_are_refused(name: str, causal: bool, length: int) -> None:
    module = mechanism_from(*OPTIONS[name], num_heads=2, head_dim=4, max_length=300).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * (name != "adaptive_span"))
    tangents = torch.randn(3, 2, 2, length, 4, dtype=torch.float64).unbind()
    inputs = [x.clone().requires_grad_() for x in torch.randn(3, 2, 2, length, 4, dtype=torch.float64)]
    arguments: dict[str, Any] = {"causal": causal}
    if module.capabilities.takes_hidden_states:
        arguments["hidden_states"] = torch.randn(2, length, 8, dtype=torch.float64)
    weight = torch.randn(2, 2, length, 4, dtype=torch.float64)

    def second(run: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        """The product of the second derivatives and the tangents, by two backward passes."""
        out = (run(*inputs, module, **arguments) * weight).sum()
        first = torch.autograd.grad(out, inputs, create_graph=True)
        along = sum((x * y).sum() for x, y in zip(first, tangents, strict=True))
        return torch.autograd.grad(along, inputs, allow_unused=True, materialize_grads=True)

    expected = second(reference_attend)
    with suppress(RuntimeError):  # PyTorch's own: a fused kernel has no second derivative
        torch.testing.assert_close(second(attend), expected, atol=1e-9, rtol=1e-7)
