"""Every mechanism with inputs in any memory layout, with nothing but padding, and under a default device that is not
theirs."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, list_mechanisms, reference_attend
from hf_longattn.engines.byte_cache import BYTE_CACHE
from hf_longattn.engines.call import AttentionCall
from hf_longattn.engines.token_grid import Grid
from hf_longattn.functional import run_batch
from hf_longattn.mechanisms.common.base import Mechanism, attention_weights
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_from
from tests.cases import every_case
from tests.grids import grid
from tests.samples import sampled
from tests.shared_code import engine_of_form

ON_GRIDS = list_mechanisms(grid=True)
FORMS = [(name, causal) for causal in (False, True) for name in list_mechanisms(causal=causal)]
every_engine = every_case(("name", "causal"), FORMS, of=9, code=engine_of_form)
"""The quick tests have a quarter of the forms that share an engine, in turn."""
GRIDS = {60: Grid((7, 8), 4), 300: Grid((12, 24), 12)}
"""Where so many tokens lie; the larger one has more prefix tokens than plain operations attend to."""


def built(name: str) -> Mechanism:
    return sampled(name, 300)


def arguments_for(name: str, causal: bool, length: int) -> dict[str, object]:
    globals_ = torch.rand(1, length).expand(2, -1) < 0.05 if mechanism_class(name).capabilities.takes_globals else None
    return {"causal": causal, "global_mask": globals_, **({"grid": GRIDS[length]} if name in ON_GRIDS else {})}


def inputs(length: int) -> list[Tensor]:
    return [torch.randn(2, heads, length, 16, requires_grad=True) for heads in (4, 2, 2)]


def with_gradients(out: Tensor, leaves: list[Tensor], weight: Tensor) -> tuple[Tensor, ...]:
    return out, *torch.autograd.grad(out, leaves, weight, materialize_grads=True)


def strided(x: Tensor) -> Tensor:
    """``x`` stored with its last axis before the tokens, and every other number unused."""
    stored = torch.full((*x.shape[:2], x.shape[3], x.shape[2], 2), float("nan"), dtype=x.dtype)[..., 0].mT
    return stored.copy_(x.detach()).requires_grad_(x.requires_grad)


@every_engine
def test_the_memory_layout_of_inputs_and_gradients_changes_no_result(name: str, causal: bool) -> None:
    module = built(name)
    for length in GRIDS:
        arguments, leaves, weight = arguments_for(name, causal, length), inputs(length), torch.randn(2, 4, length, 16)
        expected = with_gradients(attend(*leaves, module, **arguments), leaves, weight)
        leaves = [strided(x) for x in leaves]
        found = with_gradients(attend(*leaves, module, **arguments), leaves, strided(weight))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@every_engine
def test_a_batch_of_padding_alone_has_zero_gradients(name: str, causal: bool) -> None:
    q, k, v = inputs(300)
    mask = torch.zeros(2, 300, dtype=torch.bool)
    out = attend(q, k, v, built(name), padding_mask=mask, **arguments_for(name, causal, 300))
    assert out.shape == q.shape
    assert not out.any()
    beside = torch.stack([~mask[0], mask[1]])
    beside = attend(q, k, v, built(name), padding_mask=beside, **arguments_for(name, causal, 300))
    assert beside[0].isfinite().all()
    assert not beside[1].any()
    for x, grad in zip((q, k, v), torch.autograd.grad(out.sum(), (q, k, v), materialize_grads=True), strict=True):
        assert torch.equal(grad, torch.zeros_like(x))


@pytest.mark.thorough
@every_engine
def test_a_default_device_changes_no_result_of_a_mechanism(name: str, causal: bool) -> None:
    """As where weights are made on the meta device around a model that runs."""
    module, arguments, leaves, weight = (
        built(name),
        arguments_for(name, causal, 300),
        inputs(300),
        torch.randn(2, 4, 300, 16),
    )
    expected = with_gradients(attend(*leaves, module, **arguments), leaves, weight)
    BYTE_CACHE.clear()
    with torch.device("meta"):
        during = with_gradients(attend(*leaves, module, **arguments), leaves, weight)
    after = with_gradients(attend(*leaves, module, **arguments), leaves, weight)
    for found in (during, after):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


NAN, INF = float("nan"), float("inf")
SIDES = ("left", "right", "inside")


def real_tokens(length: int, side: str) -> Tensor:
    """Which tokens of two rows are not padding, ``(2, length)``."""
    places, cut = torch.arange(length), length // 4
    if side == "right":
        return torch.stack([places >= 0, places < length - cut])
    return (places >= cut if side == "left" else (places < cut) | (places >= 2 * cut)).expand(2, -1)


VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("window", {"window": 32, "dilation": (1, 2, 1, 2)}),
    ("window", {"window": 32, "num_sinks": 2}),
    ("window", {"window": 32, "relative": "shaw"}),
    ("longformer", {"window": 32, "separate_global": True}),
    ("bigbird", {"block_size": 4, "blocks_over": "input"}),
    ("bigbird", {"block_size": 4, "blocks_over": "input", "random_pattern": "hf_eval"}),
    ("nystrom", {"num_landmarks": 8, "inv_coeff_init_option": "original"}),
)


def padded(x: Tensor, real: Tensor, value: float) -> Tensor:
    """``x (B, H, n, D)`` or ``(B, n, C)``, the last n tokens, with ``value`` in padding."""
    mask = real[:, -x.shape[-2] :, None]
    return x.detach().masked_fill(~(mask if x.dim() == 3 else mask[:, None]), value).requires_grad_()


def differences(
    module: Mechanism,
    causal: bool,
    length: int,
    side: str,
    value: float,
    q_len: int | None = None,
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> list[str]:
    """Names of outputs and gradients of real tokens that ``value`` in padding changes, or that are not finite.
    Gradients of padding are zeros."""
    module = module.to(dtype)
    real = real_tokens(length, side)
    arguments = {**arguments_for(module.name, causal, length), "padding_mask": real, **more}
    tensors = [x[:, :, -(q_len or length) :] if x.shape[1] == 4 else x for x in inputs(length)]
    if module.capabilities.takes_hidden_states:
        tensors.append(torch.randn(2, length, module.sizes.hidden_size))
    tensors = [x.to(dtype) for x in tensors]
    found = []
    for filled in (0.0, value):
        leaves = [padded(x, real, filled) for x in tensors]
        q, k, v, *hidden = leaves
        torch.manual_seed(0)
        out = attend(q, k, v, module, **arguments, **({"hidden_states": hidden[0]} if hidden else {}))
        rows = real[:, None, -q.shape[2] :, None]
        gradients = torch.autograd.grad(
            torch.where(rows, out, 0.0).square().sum(), (*leaves, *module.parameters()), allow_unused=True
        )
        found.append([torch.where(rows, out, 0.0), *(x for x in gradients if x is not None)])
        assert not any(
            x.masked_fill(real[:, None, -x.shape[2] :, None], 0.0).any() for x in gradients[:3] if x is not None
        )
    case = f"{module.name}, causal={causal}, {length} tokens, padding {side} of {value}, {dtype}, {more or ''}"
    tolerance = {"atol": 1e-5} if dtype.itemsize > 2 else {"atol": 1e-2, "rtol": 1e-2}
    return [case for expected, x in zip(*found, strict=True) if not torch.allclose(expected, x, **tolerance)]


@every_case(
    ("form", "side", "length"),
    grid(
        itertools.product(FORMS, SIDES, GRIDS),
        lambda form, side, length: (side, length == 300) == (SIDES[FORMS.index(form) % 3], FORMS.index(form) % 2),
    ),
    ids=str,
)
def test_no_value_of_padding_reaches_a_real_token(form: tuple[str, bool], side: str, length: int) -> None:
    """Of every form at one length and with one side, in turn."""
    name, causal = form
    failed = differences(built(name), causal, length, side, NAN)
    assert not failed, failed[0]


LARGE = [
    (torch.float32, 1e30),
    (torch.float32, -torch.finfo(torch.float32).max),
    (torch.bfloat16, torch.finfo(torch.bfloat16).max),
    (torch.float16, torch.finfo(torch.float16).max),
    (torch.float64, 1e300),
]
"""Finite numbers whose scores reach the masks that the CPU adds, or leave the dtype."""


@every_case(
    ("form", "large", "side", "length"),
    grid(
        itertools.product(FORMS, LARGE, SIDES, GRIDS),
        lambda form, large, side, length: (
            (large, side, length == 300)
            == (LARGE[FORMS.index(form) % 5], SIDES[FORMS.index(form) % 3], FORMS.index(form) % 4 > 0)
        ),
    ),
    ids=str,
)
def test_no_large_number_in_padding_reaches_a_real_token(
    form: tuple[str, bool], large: tuple[torch.dtype, float], side: str, length: int
) -> None:
    (name, causal), (dtype, value) = form, large
    failed = differences(built(name), causal, length, side, value, dtype=dtype)
    assert not failed, failed[0]


@pytest.mark.thorough
@pytest.mark.parametrize("queries", [40, 300])
def test_no_value_of_an_encoders_padding_reaches_a_query_of_the_decoder(queries: int) -> None:
    """Queries of a cross-attention are another sequence, none of whose tokens are padding."""
    failed, real = [], real_tokens(300, "right")
    for name in list_mechanisms(causal=False, grid=False):
        module = built(name)
        module.is_cross_attention = True
        if module.capabilities.takes_fewer_queries or queries == 300:
            q, *keys = inputs(300)
            runs = (
                attend(q[:, :, :queries], *(padded(x, real, value) for x in keys), module, padding_mask=real)
                for value in (0.0, NAN)
            )
            failed += [] if torch.allclose(*runs, atol=1e-5) else [name]
    assert not failed


@every_case(("side", "length"), [*itertools.product(SIDES, (60, 300))], of=2)
def test_padding_reaches_no_real_token_with_other_options_and_arguments(side: str, length: int) -> None:
    failed: list[str] = []
    for name, options in VARIANTS:
        module = mechanism_from(name, options, num_heads=4, head_dim=16, max_length=300).eval()
        failed += differences(module, module.causal is True, length, side, NAN)
        failed += differences(module, module.causal is True, length, side, 1e30)
    for name in ("window", "full", "linear", "bigbird"):
        failed += differences(built(name), True, length, side, INF)
        failed += differences(built(name), True, length, side, 1e30, q_len=20)
        failed += differences(built(name), True, length, side, NAN, dropout_p=0.1)
        failed += differences(built(name), True, length, side, NAN, q_len=20)
        failed += differences(
            built(name), False, length, side, NAN, documents=(torch.arange(length) > 40).long().expand(2, -1)
        )
    for name in ("window", "full", "bigbird"):
        failed += differences(
            built(name), False, length, side, NAN, score_mod=lambda score, b, h, i, j: score - 0.01 * (i - j).abs()
        )
    assert not failed, "\n".join(dict.fromkeys(failed))


def real_rows(run: Any, tensors: list[Tensor], value: float, module: Mechanism, **arguments: Any) -> Tensor:
    """The output at real tokens, zeros elsewhere, with ``value`` in padding inside the text."""
    real = real_tokens(60, "inside")
    out = run(*(padded(x, real, value) for x in tensors), module, padding_mask=real, **arguments)
    return torch.where(real[:, None, :, None], out, 0.0)


def test_no_value_of_padding_reaches_a_real_token_of_a_definition() -> None:
    failed, real = [], real_tokens(60, "inside")
    for name, causal in FORMS:
        module, tensors, arguments = built(name), inputs(60), arguments_for(name, causal, 60)
        expected, found = (real_rows(reference_attend, tensors, value, module, **arguments) for value in (0.0, NAN))
        weights = attention_weights(
            module, *(padded(x, real, NAN) for x in tensors[:2]), padding_mask=real, **arguments
        )
        if not torch.equal(expected, found) or not weights.isfinite().all():
            failed.append(f"{name}, causal={causal}")
    assert not failed, "\n".join(failed)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["window", "linear"])
def test_no_value_of_padding_reaches_a_real_token_of_a_graph(name: str) -> None:
    run, tensors = torch.compile(attend, backend="aot_eager", fullgraph=True, dynamic=False), inputs(60)
    assert torch.equal(*(real_rows(run, tensors, value, built(name)) for value in (0.0, NAN)))


def weights_of_padding(module: Mechanism, side: str, q_len: int = 60, run: Any = None, **arguments: Any) -> Tensor:
    """The weights of pairs in which the query or the key is padding."""
    (q, k, _), real = inputs(60), real_tokens(60, side)
    weights = (run or attention_weights)(module, q[:, :, 60 - q_len :], k, padding_mask=real, **arguments)
    pairs = real[:, 60 - q_len :, None] & real[:, None]
    return weights.masked_select(~pairs[:, None])


@pytest.mark.thorough
@every_case("side", SIDES)
def test_attention_weights_of_padding_are_zeros(side: str) -> None:
    found = {
        f"{name}, causal={causal}": weights_of_padding(built(name), side, **arguments_for(name, causal, 60))
        for name, causal in FORMS
    }
    assert not [label for label, weights in found.items() if weights.any()]
    assert not weights_of_padding(built("window"), side, q_len=50).any()


@pytest.mark.thorough
@every_case("side", SIDES)
def test_attention_weights_of_padding_are_zeros_in_a_graph(side: str) -> None:
    module = built("window")
    assert not weights_of_padding(
        module, side, run=torch.compile(attention_weights, backend="eager", fullgraph=True)
    ).any()


@every_case("queries", [20, 60, 90])
def test_weights_of_cross_attention_leave_out_only_the_padding_of_keys(queries: int) -> None:
    module, call = built("full"), AttentionCall.of(padding_mask=real_tokens(60, "right"))
    module.is_cross_attention = True
    q, (_, k, v) = torch.randn(2, 4, queries, 16), inputs(60)
    weighted = attention_weights(module, q, k, call) @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(weighted, run_batch(module, q, k, v, call), atol=1e-5, rtol=0)


PRECISE: list[tuple[str, dict[str, Any], float]] = [
    *[(name, {}, dropout) for name in ("full", "window", "bigbird", "strided", "fixed") for dropout in (0.0, 2e-5)],
    ("window", {"relative": "transformer_xl"}, 0.0),
    ("full", {"relative": "transformer_xl"}, 0.0),
    ("longformer", {"relative": "shaw"}, 0.0),
    ("synthesizer", {"variant": "dense"}, 0.0),
    ("synthesizer", {"variant": "random"}, 2e-5),
]


@every_case("causal", [False, True], of=2)
@every_case(("name", "options", "dropout"), PRECISE, ids=str)
@every_case("dtype", [torch.bfloat16, torch.float16], of=2)
def test_scores_of_ten_thousand_lose_nothing_in_half_precision(
    dtype: torch.dtype, name: str, options: dict[str, Any], dropout: float, causal: bool
) -> None:
    """Outputs are as precise as their dtype, for a scale that is no power of two. So few weights are dropped that
    none of them counts."""
    options = {**mechanism_class(name).about.sample, **options}
    module, exact = (mechanism_from(name, options, num_heads=4, head_dim=24, max_length=640).eval() for _ in range(2))
    with torch.no_grad():
        for parameter, of_exact in zip(module.parameters(), exact.parameters(), strict=True):
            parameter.normal_(std=0.02)
            of_exact.copy_(parameter.to(dtype))
    q, k = ((45 * torch.randn(2, heads, 300, 24)).to(dtype) for heads in (4, 2))
    v = torch.randn(2, 2, 300, 24).to(dtype)
    out = attend(q, k, v, module.to(dtype), causal=causal, dropout_p=dropout)
    expected = reference_attend(q, k, v, exact.double(), causal=causal)
    assert 5e3 < (q.float() @ k.float().repeat_interleave(2, 1).mT).max() * 24**-0.5 < 2e4
    torch.testing.assert_close(out.double(), expected, atol=0.05, rtol=0)
