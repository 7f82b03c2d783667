"""Options: what a message or the help recommends is accepted, and every impossible value is one sentence."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from hf_longattn import (
    LongAttentionConfig,
    LongAttentionError,
    Mechanism,
    attend,
    build_mechanism,
    list_mechanisms,
    mechanism_info,
    reference_attend,
)
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.registry import check_options, mechanism_class, mechanism_from, options_of
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients
from tests.grids import drawn, grid
from tests.largest_tensor import LargestTensor

HEADS, HEAD_DIM = 2, 4
WIDTH = HEADS * HEAD_DIM
LENGTHS = (1, 2, 37)
OPTIONS = [(name, option.name) for name in list_mechanisms() for option in mechanism_info(name).options]

NUMBERS = [-(2**63), -5, -1, 0, 1, 2, 3, 5, 7, 64, 2**31, 10**12, 2**63, 10**30]
ODD: list[Any] = [
    *NUMBERS,
    *(float(number) for number in (-1, 0, 1, 3)),
    *(0.5, -0.5, 1.5, 1e300, math.inf, -math.inf, math.nan),
    *(
        None,
        True,
        False,
        "",
        " ",
        "x",
        "none",
        "None",
        "5",
        "-1",
        "1e3",
        "1_0",
        "٣",
        "²",
        "nan",
        "true",
        "\ud800",
        "a=b",
        "window",
        "mean",
    ),
    *([], [0], [1], [-1], [1, 1], [0, 0, 0], [10**12], [1.5], ["x"], [None], [True], [[1]], [[]], (2, 3)),
    *(
        {},
        {"x": 1},
        {"mechanism": "window"},
        {"mechanism": "nothing"},
        {"mechanism": 5},
        {"mechanism": "window", "window": 0},
        [{}],
    ),
    *(
        "shaw:clip=0",
        "shaw:clip=-1",
        "shaw:clip=x",
        "shaw:",
        "t5_buckets:num_buckets=0",
        "t5_buckets:max_distance=1",
        "alibi:x=1",
    ),
    *(
        "window:window=8",
        "window:window=0",
        "window:",
        ":window",
        "0-1=window",
        "5=window",
        "window:window=8+full",
        "union",
        "hybrid",
    ),
    *(object(), b"5", 3 + 0j),
]
"""What people and damaged files write: numbers out of range, of another type, lists, mappings, names of other
options."""


def refused(call: Callable[[], Any]) -> tuple[bool, Any]:
    """Whether the call ended in one sentence of ours, and what it returned otherwise. Any other exception passes."""
    try:
        return False, call()
    except LongAttentionError as error:
        text = str(error)
    assert len(text) > 20, text
    assert "\n" not in text, text
    assert text.endswith((".", "?")), text
    return True, None


def built(name: str, options: dict[str, Any]) -> Mechanism | None:
    """The mechanism, or ``None`` where the options were refused with a sentence."""
    torch.manual_seed(0)
    return refused(
        lambda: mechanism_from(name, options, num_heads=HEADS, head_dim=HEAD_DIM, max_length=max(LENGTHS)).eval()
    )[1]


def assert_right(module: Mechanism) -> None:
    """Every form and length gives what the definition gives, or refuses with a sentence."""
    generator = torch.Generator().manual_seed(0)
    for causal in (False, True):
        if module.causal not in ("both", causal):
            continue
        for length in LENGTHS:
            q, k, v = torch.randn(3, 1, HEADS, length, HEAD_DIM, generator=generator, dtype=torch.float64)
            more = {"hidden_states": torch.randn(1, length, WIDTH, generator=generator, dtype=torch.float64)}
            more = more if module.capabilities.takes_hidden_states else {}
            no, out = refused(partial(attend, q, k, v, module.double(), causal=causal, **more))
            if no:
                continue
            assert out.shape == q.shape
            assert out.isfinite().all()
            torch.testing.assert_close(
                out, reference_attend(q, k, v, module, causal=causal, **more), atol=1e-8, rtol=1e-6
            )


FOUND_RIGHT: set[tuple[str, str]] = set()
"""Mechanisms, by their options after all were read: many values mean the same."""


@every_case(
    ("name", "option", "turn"),
    grid([(*option, turn) for option in OPTIONS for turn in (0, 1)], lambda *cell: not cell[-1]),
    by="name",
    of=9,
    code=lambda name, *rest: name,
)
def test_one_option_out_of_its_range_is_refused_or_computed_as_defined(name: str, option: str, turn: int) -> None:
    """Every value, with the other options left out or as in the mechanism's sample, in turn; slow tests have the other
    half."""
    for number, value in enumerate(ODD):
        for others in (({}, mechanism_class(name).about.sample)[(number + turn) % 2],):
            module = built(name, {**others, option: value})
            if module is not None and (name, str(module.options)) not in FOUND_RIGHT:
                assert_right(module)
                FOUND_RIGHT.add((name, str(module.options)))


@pytest.mark.thorough
@every_case(("name", "option"), OPTIONS, ids=lambda value: str(value))
def test_a_config_refuses_the_options_that_the_mechanism_refuses(name: str, option: str) -> None:
    """In a config, and as it comes back from JSON."""
    for value in ODD:
        accepted = built(name, {option: value}) is not None
        no, config = refused(partial(LongAttentionConfig, name, **{option: value}))
        if no:
            continue
        again = LongAttentionConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert accepted or built(name, dict(config.for_layer(0)[1])) is None


@drawn(200)
@given(
    st.sampled_from(list_mechanisms()),
    st.integers(-3, 70),
    st.integers(-3, 70),
    st.integers(-3, 200),
    st.integers(-3, 200),
)
@example("window", 0, 8, 0, 0)
def test_a_layer_of_an_impossible_shape_is_refused(
    name: str, heads: int, head_dim: int, hidden_size: int, max_length: int
) -> None:
    no, _ = refused(
        lambda: build_mechanism(
            name, num_heads=heads, head_dim=head_dim, hidden_size=hidden_size, max_length=max_length
        )
    )
    assert no or min(heads, head_dim, hidden_size, max_length) > 0


WRONG = (-1, 0, 3, 7, 10**30, "nonsense", "", (), (-1,), (1, 2, 3), -0.5, 2.0, float("nan"), float("inf"), True)
EXAMPLE = re.compile(r"(?:for example|such as|give) ([a-z_]+)=('[^']+'|[^\s;']+[^\s;,.'])")


def build(name: str, **options: Any) -> None:
    build_mechanism(name, num_heads=12, head_dim=16, **{"max_length": 512, **options})


IMPOSSIBLE: list[tuple[str, dict[str, Any], str]] = [
    ("window", {"window": 0}, "'window' of mechanism 'window' is 0, but must be at least 1"),
    ("window", {"dilation": (1, 0)}, "one number of at least 1"),
    ("window", {"dilation": (1, 2, 3)}, "3 entries for 12 heads"),
    ("window", {"sinks": 4}, "no option 'sinks'"),
    ("window2d", {"order": "hilbert"}, "no option 'order'; leave it out"),
    ("window2d", {"prefix_tokens": "all"}, "must be one of: global, reads, none"),
    ("adaptive_span", {"max_span": 64, "init_span": 65}, "between 0 and max_span=64"),
    ("adaptive_span", {"span_loss_weight": "nan"}, "must be a finite number"),
    ("bigbird", {"num_window_blocks": 4}, "'num_window_blocks' of mechanism 'bigbird' is 4, but must be odd"),
    ("bigbird", {"random_pattern": "seded"}, "Did you mean 'seeded'"),
    (
        "bigbird",
        {"random_pattern": "hf_eval", "num_global_blocks": 2},
        "exists for num_window_blocks=3 and num_global_blocks=1 only",
    ),
    ("fixed", {"block_size": 4, "num_summary": 5}, "give at most num_summary=4"),
    ("hedgehog", {"feature_dim": 7}, "'feature_dim' of mechanism 'hedgehog' is 7, but must be even"),
    ("hierarchical", {"block_size": 7}, "even and at least 2"),
    ("hybrid", {"features": "performer"}, "performer.*cannot be added to a softmax"),
    ("hybrid", {"features": "taylor:feature_dim=7"}, "feature_dim"),
    (
        "linformer",
        {"rank": 513},
        "'rank'.*is 513, but must be at most the longest text, 512 tokens; for example rank=",
    ),
    ("linformer", {"rank": 8, "max_length": None}, "neither the model nor the option max_length says how many"),
    ("lsh", {"num_buckets": 7}, "even number"),
    ("nystrom", {"conv_kernel": 4}, "'conv_kernel'.*is 4, but must be odd"),
    ("performer", {"redraw_interval": -1}, "redraw_interval"),
    ("routing", {"decay": 1.5}, "at most 1"),
    ("window", {"num_sinks": 10**8}, "'num_sinks' of mechanism 'window' is 100000000, but must be at most 65536"),
    ("synthesizer", {"variant": "dense+dot_product"}, "must be one of: dense, random"),
    ("taylor", {"feature_dim": -2}, "'feature_dim' of mechanism 'taylor' is -2, but must be even"),
    ("transformer_xl", {"memory_length": -1}, "'memory_length'.*at least 0"),
]


@every_case(("name", "options", "sentence"), IMPOSSIBLE, ids=str)
def test_impossible_options_of_mechanisms_are_refused_with_their_reason(
    name: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(OptionError, match=sentence):
        build(name, **options)


@every_case(
    ("name", "options"),
    [("linformer", {"rank": 4}), ("nystrom", {}), ("bigbird", {"random_pattern": "hf_eval"})],
    ids=str,
)
def test_mechanisms_without_a_causal_form_refuse_causal_calls(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="exists only with causal=False"):
        attend(*torch.randn(3, 1, 4, 20, 8), name, causal=True, **options)


@every_case(("name", "option"), OPTIONS, ids=str)
def test_a_refused_option_of_a_mechanism_recommends_a_value_that_works(name: str, option: str) -> None:
    for value in WRONG:
        try:
            build(name, **{option: value})
        except LongAttentionError as refusal:
            for recommended, written in EXAMPLE.findall(str(refusal)):
                typed = written.strip("'")
                known = {info.name for info in mechanism_info(name).options}
                if recommended not in known:
                    continue
                forms = [typed]
                with contextlib.suppress(SyntaxError, ValueError):
                    forms.append(ast.literal_eval(typed))
                for form in forms:
                    build(name, **{recommended: form})


LEAST = [
    (name, field.name, field.metadata["least"])
    for name in list_mechanisms()
    for field in options_of(name).values()
    if field.metadata.get("least") is not None
]


@every_case(
    ("name", "option", "least", "training"),
    grid(
        [(*one, training) for one in LEAST for training in (False, True)],
        lambda *cell: LEAST.index(cell[:3]) % 2 == cell[3],
    ),
    of=9,
    code=lambda name, *rest: name,
)
def test_the_least_value_of_each_option_gives_the_definition_with_its_gradients(
    name: str, option: str, least: int, training: bool
) -> None:
    """At a length for which no mask over all pairs is taken."""
    length = 280
    options = {
        key: value for key, value in mechanism_class(name).about.sample.items() if (key, value) != ("bptt", True)
    }
    no, module = refused(
        lambda: mechanism_from(name, options | {option: least}, num_heads=HEADS, head_dim=HEAD_DIM, max_length=length)
    )
    if no:
        return
    module = module.double().train(training)
    for causal in (False, True):
        if module.causal not in ("both", causal):
            continue
        q, k, v = (torch.randn(1, HEADS, length, HEAD_DIM).double().requires_grad_() for _ in range(3))
        no, out = refused(partial(attend, q, k, v, module, causal=causal))
        if not no:
            expected = reference_attend(q, k, v, module, causal=causal)
            assert_equal_with_gradients(out, expected, (q, k, v), atol=1e-8, gradients=1e-8)


def test_one_number_stands_for_an_option_of_several() -> None:
    assert check_options("window", {"dilation": 2}).dilation == (2,)
    assert check_options("longformer", {"global_tokens": 0}).global_tokens == (0,)
    with pytest.raises(OptionError, match="dilation"):
        build("window", dilation=True)
    with pytest.raises(OptionError, match="dilation"):
        build("window", dilation=1.5)


NUMERIC = [
    (name, field.name)
    for name in list_mechanisms()
    for field in options_of(name).values()
    if re.search(r"\b(int|float)\b", str(field.type))
]
MAX_BYTES, MAX_OPERATIONS = 1 << 26, 50_000
"""For 300 tokens and 2 heads of 4. All pairs of them, as int64, have 1.4 MB; the largest tables by option have 33
MB."""


@every_case(("name", "option"), NUMERIC, by="name", of=3, code=lambda name, *rest: name)
def test_the_greatest_values_of_an_option_cost_no_more_than_the_length_warrants(name: str, option: str) -> None:
    """At a length for which no mask over all pairs is taken. The patterns of ``longattn inspect`` are those of
    ``attend``."""
    length, field = 300, options_of(name)[option]
    most, entries = field.metadata["most"], "tuple" in str(field.type)
    sample = {**mechanism_class(name).about.sample, **({"rank": 4} if option == "max_length" else {})}
    for value in {most, most - 1, min(most, length + 1)}:
        tracemalloc.start()
        with LargestTensor() as sizes:
            no, module = refused(
                partial(
                    mechanism_from,
                    name,
                    {**sample, option: (value,) if entries else value},
                    num_heads=2,
                    head_dim=4,
                    max_length=length,
                )
            )
            for causal in (False, True):
                if no or module.causal not in ("both", causal):
                    continue
                q, k, v = torch.randn(3, 1, 2, length, 4)
                more: dict[str, Any] = (
                    {"hidden_states": torch.randn(1, length, 8)} if module.capabilities.takes_hidden_states else {}
                )
                more |= {"grid": (15, 20)} if module.capabilities.needs_grid else {}
                with torch.no_grad():
                    refused(partial(attend, q, k, v, module.eval(), causal=causal, **more))
                refused(partial(module.pairs, length, causal))  # a mechanism on a grid needs one
        of_python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert of_python <= MAX_BYTES, value
        assert sizes.bytes <= MAX_BYTES, value
        assert sizes.operations <= MAX_OPERATIONS, value


@every_case(
    "relative",
    ["shaw:clip=10**9", "t5_buckets:num_buckets=4*10**8,max_distance=10**9", "t5_buckets:max_distance=10**9"],
)
def test_settings_of_relative_positions_size_no_endless_table(relative: str) -> None:
    relative = relative.replace("4*10**8", "400000000").replace("10**9", "1000000000")
    no, module = refused(partial(build_mechanism, "window", num_heads=2, head_dim=4, relative=relative))
    assert no or sum(parameter.numel() for parameter in module.parameters()) < 1000


POOLS: list[tuple[str, dict[str, Any]]] = [
    ("hierarchical", {}),
    ("segmented", {"integration": "pooled"}),
]


@every_case(("name", "options"), POOLS, ids=str)
def test_terms_of_single_keys_are_refused_with_means_of_keys(name: str, options: dict[str, Any]) -> None:
    for relative in ("alibi", "t5_buckets", "shaw"):
        check_options(name, {**options, "relative": relative})
    with pytest.raises(OptionError, match="attends to means of keys; choose for example relative='alibi'"):
        check_options(name, {**options, "relative": "transformer_xl"})
    for integration in ("none", "previous"):
        check_options("segmented", {"integration": integration, "relative": "transformer_xl"})
