"""Where two features meet: every mechanism of the registry in both forms with relative terms, padding, globals, dtypes
and large scores."""

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_longattn import attend, build_mechanism, list_mechanisms, reference_attend
from hf_longattn.engines.call import AttentionCall
from hf_longattn.mechanisms.common.base import Mechanism, attention_weights
from hf_longattn.mechanisms.common.capabilities import Stateful
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients
from tests.grids import grid
from tests.shared_code import engine_of_form

NAMES = list_mechanisms(grid=False)
FORMS = [(name, causal) for causal in (False, True) for name in list_mechanisms(causal=causal, grid=False)]
STATEFUL = [name for name in list_mechanisms(causal=True, grid=False) if issubclass(mechanism_class(name), Stateful)]
every_form = every_case(("name", "causal"), FORMS)
every_engine = every_case(("name", "causal"), FORMS, of=9, code=engine_of_form)
"""The quick tests have a quarter of the forms that share an engine, in turn."""
LENGTHS = (37, 260)  # few pairs, which are compared densely, and more
DTYPES = (torch.float64, torch.float16, torch.bfloat16)
HALVES = [*itertools.product(DTYPES[1:], (False, True), LENGTHS)]


def turn(forms: Sequence[Any], form: Any, values: Sequence[Any]) -> Any:
    """The value of one form, where the forms take the values in turn."""
    return values[forms.index(form) % len(values)]


def qkv(length: int, dtype: torch.dtype = torch.float64, size: float = 1.0, grad: bool = False) -> list[Tensor]:
    sizes = (size, size, 1.0)
    drawn = [
        x * torch.randn(2, heads, length, 16, dtype=torch.float64) for heads, x in zip((4, 2, 2), sizes, strict=True)
    ]
    return [x.to(dtype).requires_grad_(grad) for x in drawn]


def built(name: str, **options: Any) -> Mechanism:
    torch.manual_seed(0)
    return build_mechanism(name, num_heads=4, head_dim=16, **{**mechanism_class(name).about.sample, **options}).eval()


def left_padding(length: int) -> Tensor:
    """One text that begins later, with a hole, beside one that is whole."""
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, : length // 3] = False
    mask[0, length // 2 : length // 2 + 3] = False
    return mask


def same(found: Tensor, expected: Tensor, mask: Tensor | None = None, atol: float = 1e-9) -> None:
    real = torch.ones(()) if mask is None else mask[:, None, -found.shape[2] :, None]
    torch.testing.assert_close(found.double() * real, expected.double() * real, atol=atol, rtol=0)


def error_of_fused(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> float:
    """:func:`distance` of PyTorch's own kernel in the inputs' precision from itself in float64."""
    exact = F.scaled_dot_product_attention(*(x.double() for x in (q, k, v)), is_causal=causal, enable_gqa=True)
    return distance(F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True), exact)


def distance(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, relative to what was expected."""
    found, expected = found.detach().double(), expected.detach()
    return float(((found - expected).square().mean() / expected.square().mean()).sqrt())


@pytest.mark.thorough
@every_case(
    ("form", "length"),
    grid(itertools.product(FORMS, LENGTHS), lambda form, length: length == turn(FORMS, form, LENGTHS)),
    of=9,
    code=lambda form, length: form[0],
    ids=str,
)
def test_large_scores_give_finite_outputs_and_gradients_of_the_definition(form: tuple[str, bool], length: int) -> None:
    """Scores of ±80 and more: the definition in float64, and near it in float32."""
    name, causal = form
    q, k, v = qkv(length, size=4.5, grad=True)
    scores = (q @ k.repeat_interleave(2, 1).mT).detach() / 4
    assert scores.abs().max() > 80
    mask = left_padding(length)
    module = built(name).double()
    out, expected = (run(q, k, v, module, causal=causal, padding_mask=mask) for run in (attend, reference_attend))
    assert_equal_with_gradients(out, expected, (q, k, v), mask, atol=1e-9, gradients=1e-7, rtol=1e-6)
    module = built(name)
    q, k, v = (x.detach().float() for x in (q, k, v))
    out, expected = (run(q, k, v, module, causal=causal, padding_mask=mask) for run in (attend, reference_attend))
    assert out.isfinite().all()
    same(out, expected, mask, atol=2e-3)


@pytest.mark.thorough
@every_case(
    ("form", "dtype", "term", "length"),
    grid(
        itertools.product(FORMS, DTYPES, (False, True), LENGTHS),
        lambda form, *rest: form[0] == "window" or tuple(rest) == turn(FORMS, form, HALVES),
    ),
    ids=str,
)
def test_every_mechanism_is_exact_as_fused_attention_by_dtype(
    form: tuple[str, bool], dtype: torch.dtype, term: bool, length: int
) -> None:
    """Scores of standard deviation 16: half precision is off by at most four times as much as PyTorch's fused kernel
    is.

    Masks over the tokens' keys have the kernel's error. Where a mechanism computes keys or scores from the inputs,
    these are rounded once more to the inputs' dtype, as every layer's output is: 1.4-1.8 times for hierarchical,
    2.5-3.5 for linformer's keys and synthesizer's scores. Keeping
    them in fp32 would run the whole call in fp32.
    """
    name, causal = form
    term = term and mechanism_class(name).capabilities.takes_score_mod
    q, k, v = qkv(length, dtype, size=4.0)
    score_mod = (lambda score, b, h, i, j: score - 0.01 * (i - j).abs()) if term else None
    module = built(name).to(dtype)
    arguments = {"causal": causal, "score_mod": score_mod}
    out = attend(q, k, v, module, **arguments)
    assert out.dtype == dtype
    error = distance(out, reference_attend(q, k, v, module, **arguments))
    if dtype == torch.float64:
        assert error < 1e-9
    else:
        assert error < 4 * error_of_fused(q, k, v, causal)


@every_case(
    ("name", "causal"),
    [form for form in FORMS if mechanism_class(form[0]).capabilities.takes_fewer_queries],
    of=9,
    code=engine_of_form,
)
def test_gradients_of_the_last_queries_of_one_padded_text(name: str, causal: bool) -> None:
    """As with a cache; a window leaves out keys of the row, but none that is real."""
    options = {"window": 560} if "window" in mechanism_class(name).about.sample else {}
    q, k, v = (x[:1].detach().requires_grad_() for x in qkv(600))
    module, mask = built(name, **options).double(), torch.arange(600)[None] >= 60
    out, expected = (
        run(q[:, :, -150:], k, v, module, causal=causal, padding_mask=mask) for run in (attend, reference_attend)
    )
    assert_equal_with_gradients(out, expected, (q, k, v), atol=1e-9, gradients=1e-9, rtol=1e-9)


@pytest.mark.thorough
@every_case(
    ("name", "causal"),
    grid(FORMS, lambda name, causal: (name, not causal) not in FORMS or causal == turn(NAMES, name, (False, True))),
    of=9,
    code=engine_of_form,
    ids=str,
)
def test_written_copied_and_loaded_parameters_of_mechanisms_are_used(name: str, causal: bool) -> None:
    """After a first call, a write to any parameter's data, a copy and a loaded state are seen, however they came
    about.

    Parameters are the same in both forms: the quick tests take them in turn."""
    q, k, v = (x.float() for x in qkv(300))
    module = built(name)
    with torch.no_grad():
        attend(q, k, v, module, causal=causal)
        for _ in range(2):
            for parameter in module.parameters():
                parameter.data = (
                    (torch.rand_like(parameter) * 0.9 + 0.05)
                    if name == "adaptive_span"
                    else torch.randn_like(parameter) * 0.3
                )
            same(attend(q, k, v, module, causal=causal), reference_attend(q, k, v, module, causal=causal), atol=1e-4)
            for parameter in module.parameters():
                parameter.data.mul_(0.3)
            expected = reference_attend(q, k, v, module, causal=causal)
            same(attend(q, k, v, module, causal=causal), expected, atol=1e-4)
            other = copy.deepcopy(module)
            same(attend(q, k, v, other, causal=causal), expected, atol=1e-4)
            fresh = built(name)
            attend(q, k, v, fresh, causal=causal)
            fresh.load_state_dict(module.state_dict())
            same(attend(q, k, v, fresh, causal=causal), expected, atol=1e-4)
            for parameter in other.parameters():
                parameter.data.mul_(2.0)
            same(attend(q, k, v, module, causal=causal), expected, atol=1e-4)


@every_form
def test_attention_weights_in_float64_give_the_output_of_the_definition(name: str, causal: bool) -> None:
    q, k, v = qkv(40)
    module = built(name).double()
    weights = attention_weights(module, q, k, AttentionCall(causal))
    assert weights.dtype == torch.float64
    same(weights @ v.repeat_interleave(2, 1), reference_attend(q, k, v, module, causal=causal), atol=1e-12)


@every_case("name", STATEFUL)
def test_a_state_goes_from_training_with_dropout_to_evaluation_and_back(name: str) -> None:
    """Grouped heads; a dropout that drops no key, so that the outputs are those without."""
    module, (q, k, v), hidden = built(name).double(), qkv(120), torch.randn(2, 120, 64, dtype=torch.float64)
    found: list[tuple[list[Tensor], list[dict[str, torch.Size]]]] = []
    for dropouts in ((1e-12, 0.0, 1e-12, 0.0), (0.0,) * 4):
        state, outs, shapes = None, [], []
        for (start, stop), dropout in zip(itertools.pairwise((0, 50, 65, 66, 120)), dropouts, strict=True):
            piece = slice(start, stop)
            call = AttentionCall(
                causal=True,
                dropout=dropout,
                hidden_states=hidden[:, piece] if module.capabilities.takes_hidden_states else None,
            )
            out, state = module.advance(*(x[:, :, piece] for x in (q, k, v)), state, call)
            outs.append(out)
            shapes.append({key: x.shape for key, x in state.items()})
        found.append((outs, shapes))
    (outs, shapes), (expected, plain) = found
    assert shapes == plain
    for out, one in zip(outs, expected, strict=True):
        same(out, one)
