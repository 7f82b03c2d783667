"""Every mechanism computes what its paper says: forward and backward, against loops in float64 that know nothing of
our code.

The definitions are in ``definitions/``, one file per mechanism. Each is compared over options, lengths, padding,
grouped heads and scalings that are drawn at random and are the same in every run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, list_mechanisms, mechanism_info, reference_attend
from hf_longattn.engines import dispatch
from hf_longattn.engines.call import AttentionCall
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.mechanisms.common.capabilities import Stateful
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_from
from tests.cases import every_case
from tests.grids import grid
from tests.reference.definitions import add_noise, defined_mechanisms, definition_of
from tests.reference.definitions._relative import with_relative
from tests.shared_code import engine_of_form

CASES = (*range(12), 13)
SHORT_CASES = ((0, 1, 2, 4, 5), (1, 2, 3, 6, 8))
LONG_CASES = (7, 10)  # longer than what engines compute densely
MEDIUM_CASE = 13  # longer than a block; the loops take a quarter of the time


def form(value: str | bool | int) -> str:
    return ("both ways", "causal")[value] if isinstance(value, bool) else str(value)


FORMS = [
    (name, causal)
    for name in defined_mechanisms()
    for causal in (False, True)
    if name in list_mechanisms(causal=causal)
]


def is_long(name: str, causal: bool) -> bool:
    """Whether the quick tests have the medium case of the form: of a mechanism with two, in turn."""
    return (name, not causal) not in FORMS or (defined_mechanisms().index(name) + causal) % 2 == 0


DRAWN = grid(
    [(*form, case) for form in FORMS for case in CASES],
    lambda name, causal, case: (
        case in SHORT_CASES[FORMS.index((name, causal)) % 2] or (is_long(name, causal) and case == MEDIUM_CASE)
    ),
)
"""Every form in short cases, and every mechanism in the medium one in one of its forms; slow tests have the long
ones."""
SCORED_FORMS = [
    (name, causal)
    for name, causal in FORMS
    if any(option.name == "relative" for option in mechanism_info(name).options)
]
RELATIVE = ["alibi", "t5_buckets:num_buckets=8,max_distance=20", "shaw:clip=3", "transformer_xl"]
"""Every form with two of them, `window` with all; slow tests have all with every form."""
STATEFUL = [name for name, causal in FORMS if causal and issubclass(mechanism_class(name), Stateful)]


def test_every_mechanism_has_a_definition() -> None:
    without = sorted(set(list_mechanisms(grid=False)) - set(defined_mechanisms()))
    assert not without, (
        f"Write the definition of {without} as plain loops from the paper, in tests/reference/definitions/."
    )
    assert set(defined_mechanisms()) <= set(list_mechanisms(grid=False))


@every_case(("name", "causal", "case"), DRAWN, ids=form, by="name")
def test_every_mechanism_equals_its_definition_with_gradients(
    name: str, causal: bool, case: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case % 2:  # short inputs go the way of long ones
        monkeypatch.setattr("hf_longattn.engines.call.DENSE_CELLS", 0)
        monkeypatch.setattr(dispatch, "DENSE_KEYS", 0)
    module, q, k, v, arguments = draw_case(name, causal, case)
    assert_is_definition(module, definition_of(name).define, q, k, v, arguments)


@every_case(
    ("name", "causal", "relative"),
    grid(
        [
            (*scored, relative)
            for scored in SCORED_FORMS
            for relative in RELATIVE
            if scored[0] != "hierarchical" or relative != "transformer_xl"
        ],
        lambda name, causal, relative: (
            name == "window" or (SCORED_FORMS.index((name, causal)) + RELATIVE.index(relative)) % 2 == 0
        ),
    ),
    of=9,
    code=engine_of_form,
    ids=form,
)
def test_relative_positions_in_every_mechanism_equal_their_definitions(name: str, causal: bool, relative: str) -> None:
    """A relative term is added to the scores before anything else that is done to them."""
    options = {"relative": relative}
    if name == "segmented" and relative == "transformer_xl":  # which reads single keys
        options["integration"] = "previous"
    module, q, k, v, arguments = draw_case(name, causal, relative, options)

    def define(exact: Mechanism, q: Tensor, k: Tensor, v: Tensor, *, score_mod: Any, **given: Any) -> Tensor:
        more = {"scaling": given["scaling"], "score_mod": score_mod}
        if (constant := getattr(definition_of(name), "is_constant", None)) is not None:
            more["is_constant"] = partial(constant, exact, given["padding_mask"], k)
        score_mod = with_relative(exact, q, k, causal=causal, **more)
        return definition_of(name).define(exact, q, k, v, score_mod=score_mod, **given)

    assert_is_definition(module, define, q, k, v, arguments)


@every_case("case", range(4))
@every_case("name", STATEFUL)
def test_decoding_from_a_state_equals_the_definition(name: str, case: int) -> None:
    """A mechanism with a state gives, token by token and piece by piece, what its definition gives for the whole
    text."""
    module, q, k, v, arguments = draw_case(name, True, f"decoding {case}", fewer_queries=False)
    exact, (q, k, v) = module.double(), (x.double() for x in (q, k, v))
    arguments = {
        key: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for key, x in arguments.items()
    }
    arguments["score_mod"] = None
    with torch.no_grad():
        expected = definition_of(name).define(exact, q, k, v, **arguments)
        state, pieces, random = None, [], Random(case)
        while (start := sum(piece.shape[2] for piece in pieces)) < k.shape[2]:
            new = slice(start, start + (1 if case % 2 else random.randint(1, k.shape[2])))
            given = {
                key: arguments[key][:, new] for key in ("padding_mask", "hidden_states") if arguments[key] is not None
            }
            piece, state = exact.advance(
                q[:, :, new],
                k[:, :, new],
                v[:, :, new],
                state,
                AttentionCall.of(scaling=arguments["scaling"], **given),
            )
            pieces.append(piece)
    rows = real_rows(q, arguments["padding_mask"])
    assert_near(torch.cat(pieces, 2) * rows, expected * rows, 1e-9, "decoding")


def assert_is_definition(
    module: Mechanism, define: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, arguments: dict[str, Any]
) -> None:
    """Outputs in float64 and float32, and the gradients of inputs and parameters, are those of ``define``."""
    exact = copy.deepcopy(module).double()
    inputs = [x.double().requires_grad_() for x in (q, k, v)]
    leaves = [*inputs, *(parameter for parameter in exact.parameters() if parameter.requires_grad)]
    names = ["q", "k", "v", *(label for label, parameter in exact.named_parameters() if parameter.requires_grad)]
    if isinstance(arguments["score_mod"], ATable):
        leaves.append(arguments["score_mod"].table)
        names.append("the score term")
    doubled = {
        key: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for key, x in arguments.items()
    }

    # a graph, even if all is padding
    expected = define(exact, *inputs, **doubled) + sum(0 * leaf.sum() for leaf in leaves)
    assert expected.dtype == torch.float64
    assert expected.shape == q.shape
    rows = real_rows(q, arguments["padding_mask"])
    given = accepted(exact, doubled)
    assert_near(
        reference_attend(*inputs, exact, **given) * rows, expected * rows, 1e-10, "the N×N definition of the package"
    )
    got = attend(*inputs, exact, **given)
    assert_near(got * rows, expected * rows, 1e-10, "float64")

    cotangent = torch.randn_like(expected) * rows
    wanted = torch.autograd.grad(expected, leaves, cotangent, allow_unused=True, materialize_grads=True)
    found = torch.autograd.grad(got, leaves, cotangent, allow_unused=True, materialize_grads=True)
    for label, gradient, want in zip(names, found, wanted, strict=True):
        assert_near(gradient, want, 1e-9, f"gradient of {label}")

    with torch.no_grad():
        single = attend(q, k, v, module, **accepted(module, arguments))
    assert_near(single * rows, expected.detach() * rows, 1e-5, "float32")


def draw_case(
    name: str,
    causal: bool,
    case: int | str,
    options: Mapping[str, Any] = MappingProxyType({}),
    fewer_queries: bool = True,
) -> tuple[Mechanism, Tensor, Tensor, Tensor, dict[str, Any]]:
    """A mechanism in float32 with random options besides ``options`` and random parameters, and inputs for it."""
    random = Random(f"{name} {causal} {case}")
    torch.manual_seed(random.randrange(2**31))
    definition = definition_of(name)
    longer = {**dict.fromkeys(LONG_CASES, (257, 300)), MEDIUM_CASE: (130, 150)}.get(case)
    length = random.randint(*longer) if longer else random.choice((1, 2, 3, 7, 16, 29, 48, 64, 80))
    batch = 1 if longer else random.choice((1, 2, 3))
    heads, kv_heads = random.choice(((1, 1), (2, 1)) if longer else ((1, 1), (2, 2), (2, 1), (4, 2)))
    width = random.choice((4, 8))
    module = draw_module(name, causal, random, length, heads, width, options)
    getattr(definition, "draw_parameters", add_noise)(module)

    q_len = length
    fewer = (
        fewer_queries
        and module.capabilities.takes_fewer_queries
        and not getattr(definition, "needs_all_queries", lambda module: False)(module)
    )
    if fewer and random.random() < 0.4:
        q_len = random.randint(1, length)
    spread = random.choice((0.3, 1.0, 2.0))
    q = torch.randn(batch, heads, q_len, width) * spread
    k, v = (torch.randn(batch, kv_heads, length, width) * spread for _ in range(2))
    arguments: dict[str, Any] = {
        "causal": causal,
        "padding_mask": draw_padding(random, batch, length),
        "global_mask": torch.rand(batch, length) < 0.1
        if module.capabilities.takes_globals and random.random() < 0.5
        else None,
        "scaling": random.choice((None, None, 0.3, 1.0)),
        "score_mod": random.choice((None, None, a_score_term, ATable(batch, heads, length)))
        if module.capabilities.takes_score_mod
        else None,
        "hidden_states": torch.randn(batch, length, heads * width)
        if module.capabilities.takes_hidden_states
        else None,
        "seed": random.choice(getattr(definition, "SEEDS", (0,))),
    }
    return module, q, k, v, arguments


def draw_module(
    name: str, causal: bool, random: Random, length: int, heads: int, width: int, more_options: Mapping[str, Any]
) -> Mechanism:
    """A mechanism with random options, of those that have the form and go with ``more_options``."""
    definition = definition_of(name)
    while True:
        options = definition.draw_options(random, length)
        longest = options.pop("longest_of_the_model", length)
        if draw_more := getattr(definition, "draw_options_of_heads", None):
            options |= draw_more(random, heads, length)
        # not build_mechanism(): its max_length is the model's, and shadows the option of that name
        build = partial(
            mechanism_from, name, num_heads=heads, head_dim=width, hidden_size=heads * width, max_length=longest
        )
        build(options)  # which are right by themselves, if not in this form, or not together with the others
        try:
            module = build({**options, **more_options}).eval()
        except OptionError:
            continue
        if module.causal in ("both", causal):
            return module


def draw_padding(random: Random, batch: int, length: int) -> Tensor | None:
    """No padding, or some on the left, on the right, inside or anywhere, in each sequence its own."""
    kind = random.choice(("none", "left", "right", "inside", "mixed"))
    if kind == "none":
        return None
    mask = torch.ones(batch, length, dtype=torch.bool)
    for row in mask:
        here = random.choice(("none", "left", "right", "inside")) if kind == "mixed" else kind
        amount = random.randint(0, length - 1)
        if here == "left":
            row[:amount] = False
        elif here == "right":
            row[length - amount :] = False
        elif here == "inside":
            row[torch.rand(length) < 0.3] = False
            row[random.randrange(length)] = True
    return mask


def a_score_term(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    """A term that differs in every sequence, head, query and key."""
    return score * (1 + 0.1 * torch.cos(0.5 * q_idx + b)) + 0.4 * torch.sin(0.7 * (q_idx - kv_idx) + h) - 0.01 * kv_idx


class ATable:
    """A learned score term, looked up by sequence, head, query and key, of which none may lie outside."""

    def __init__(self, batch: int, heads: int, length: int) -> None:
        self.table = torch.randn(batch, heads, length, length, dtype=torch.float64, requires_grad=True)

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        assert all((index >= 0).all() for index in (q_idx, kv_idx))
        return score + self.table[b, h, q_idx, kv_idx].to(score.dtype)


def accepted(module: Mechanism, arguments: dict[str, Any]) -> dict[str, Any]:
    """``arguments`` without the layer's input where the mechanism computes nothing from it."""
    return {
        key: value
        for key, value in arguments.items()
        if key != "hidden_states" or module.capabilities.takes_hidden_states
    }


def real_rows(q: Tensor, padding_mask: Tensor | None) -> Tensor:
    """1 for queries that are tokens and 0 for padding, whose rows mean nothing, ``(B or 1, 1, Nq, 1)``."""
    if padding_mask is None:
        return torch.ones(1, 1, q.shape[2], 1)
    return padding_mask[:, None, padding_mask.shape[1] - q.shape[2] :, None].to(q.dtype)


def assert_near(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert torch.isfinite(got).all(), f"{what}: not finite"
    error, largest = (float(x.detach().abs().max()) for x in (got.double() - expected, expected))
    assert error <= tolerance * max(largest, 1.0), (
        f"{what}: {error:.2e} away from the definition, whose largest number is {largest:.2e}"
    )
