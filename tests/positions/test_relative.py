"""Relative positions: each kind against its formula in a plain loop, in every mechanism, on the fast path, and what is refused."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import LongAttentionConfig, attend, build_mechanism, list_mechanisms, mechanism_info, reference_attend
from hf_longattn.engines.common.batch import Batch
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.engines.common.plain import blockwise_attention
from hf_longattn.engines.common.score_terms import DistanceBias
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_from
from hf_longattn.positions.relative import RELATIVE, build_relative, read_relative
from tests.alike import engine_of_form
from tests.cells import every_cell
from tests.grids import grid

KINDS = ["alibi", "t5_buckets:num_buckets=16,max_distance=40", "shaw:clip=5", "transformer_xl"]
FORMS = [
    (name, causal)
    for causal in (False, True)
    for name in list_mechanisms(causal=causal, grid=False)
    if mechanism_class(name).traits.takes_score_mod
]


def drawn(module: torch.nn.Module) -> None:
    """Terms that matter: parameters begin at zero."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def mechanism(name: str, kind: str, **options: Any) -> Mechanism:
    chosen = {"relative": kind, **mechanism_class(name).sample, **options}
    built = mechanism_from(name, chosen, num_heads=4, head_dim=16, max_length=300)
    drawn(built.relative)
    return built


def looped(kind: str, module: Any, q: Tensor, k: Tensor, h: int, i: int, j: int, causal: bool) -> Tensor:
    """What is added to q_i · k_j, before the scale, by the formula of the paper."""
    if kind.startswith("shaw"):
        return q[h, i] @ module.keys.double()[min(max(j - i, -5), 5) + 5]
    if kind.startswith("transformer_xl"):
        width = module.hidden_size
        angles = [(i - j) / 10000 ** (2 * n / width) for n in range(width // 2)]
        sinusoid = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)
        r, u, v = module.projection.double()[h] @ sinusoid, module.content.double()[h], module.position.double()[h]
        return q[h, i] @ r + u @ k[h // 2, j] + v @ r
    raise AssertionError(kind)


@every_cell("causal", [False, True])
@every_cell("kind", KINDS[2:])
def test_terms_that_depend_on_the_query_equal_a_plain_loop(kind: str, causal: bool) -> None:
    full = mechanism("full", kind)
    q, k, v = (torch.randn(1, heads, 12, 16, dtype=torch.float64) for heads in (4, 2, 2))
    scores = torch.full((4, 12, 12), float("-inf"), dtype=torch.float64)
    for h in range(4):
        for i in range(12):
            for j in range(i + 1 if causal else 12):
                scores[h, i, j] = (q[0, h, i] @ k[0, h // 2, j] + looped(kind, full.relative, q[0], k[0], h, i, j, causal)) / 4
    expected = scores.softmax(-1) @ v[0].repeat_interleave(2, 0)
    torch.testing.assert_close(attend(q, k, v, full.double(), causal=causal)[0], expected, atol=1e-6, rtol=0)


@every_cell(
    ("name", "causal", "kind"),
    grid(
        [(*form, kind) for form in FORMS for kind in KINDS],
        lambda name, causal, kind: name == "window" or kind == KINDS[FORMS.index((name, causal)) % len(KINDS)],
    ),
    ids=str,
    of=9,
    alike=lambda name, causal, kind: (engine_of_form(name), kind if name == "window" else None),
)
def test_every_mechanism_applies_them_as_its_definition_does(name: str, causal: bool, kind: str) -> None:
    built = mechanism(name, kind)
    leaves = [torch.randn(2, heads, 300, 16, requires_grad=True) for heads in (4, 2, 2)]
    mask = torch.ones(2, 300, dtype=torch.bool)
    mask[0, :70], mask[1, 260:] = False, False
    out, expected = (f(*leaves, built, causal=causal, padding_mask=mask) for f in (attend, reference_attend))
    real = mask[:, None, :, None]
    torch.testing.assert_close(out * real, (expected * real).float(), atol=1e-5, rtol=0)
    assert not torch.allclose(out, attend(*leaves, name, causal=causal, padding_mask=mask, **mechanism_class(name).sample), atol=1e-3)
    wanted = [*leaves, *built.relative.parameters()]
    weight = torch.randn_like(out) * real
    found, exact = (torch.autograd.grad((x * weight).sum(), wanted) for x in (out, expected))
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.thorough
@every_cell("kind", KINDS)
@every_cell("causal", [False, True])
def test_fewer_queries_than_keys_and_padding_change_nothing(kind: str, causal: bool) -> None:
    for name in ("full", "window", "longformer"):
        built = mechanism(name, kind)
        q, k, v = (torch.randn(2, heads, 300, 16) for heads in (4, 2, 2))
        whole = attend(q, k, v, built, causal=causal)
        torch.testing.assert_close(attend(q[:, :, -7:], k, v, built, causal=causal), whole[:, :, -7:], atol=1e-5, rtol=0)
        padded = [torch.nn.functional.pad(x, (0, 0, 30, 11), value=3.0) for x in (q, k, v)]
        mask = torch.nn.functional.pad(torch.ones(2, 300, dtype=torch.bool), (30, 11))
        torch.testing.assert_close(attend(*padded, built, causal=causal, padding_mask=mask)[:, :, 30:330], whole, atol=1e-5, rtol=0)


@every_cell("causal", [False, True])
@every_cell("name", ["window", "longformer"])
def test_the_fused_path_of_a_distance_bias_equals_the_plain_one(name: str, causal: bool) -> None:
    built = build_mechanism(name, num_heads=4, head_dim=16, window=64, **({"global_tokens": (0, 7)} if name == "longformer" else {}))
    leaves = [torch.randn(2, 4, 500, 16, requires_grad=True) for _ in range(3)]
    table = torch.randn(4, 999, requires_grad=True)
    mask = torch.ones(2, 500, dtype=torch.bool)
    mask[0, :31], mask[0, 200:220] = False, False
    bias = DistanceBias(table, 499)
    call = AttentionCall(causal, Batch.of(mask), scale=0.25, score_mod=bias)
    fast = attend(*leaves, mechanism=built, causal=causal, padding_mask=mask, score_mod=bias)
    plain = blockwise_attention(*leaves, built.pattern(causal), call.replace(global_mask=built.resolve_globals(leaves[1], call)))
    real = mask[:, None, :, None]
    torch.testing.assert_close(fast * real, plain * real, atol=1e-5, rtol=0)
    weight = torch.randn_like(fast) * real
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), [*leaves, table]) for x in (fast, plain)), strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-4)


def test_gradcheck_of_the_fused_path() -> None:
    built = build_mechanism("longformer", num_heads=2, head_dim=4, window=32)
    leaves = [torch.randn(1, 2, 300, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    table = torch.randn(2, 599, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *x: attend(*x[:3], mechanism=built, score_mod=DistanceBias(x[3], 299)), (*leaves, table), fast_mode=True
    )


GRAPHS = ("compiled", "exported")


class Call(torch.nn.Module):
    """A window with a kind of terms, as a module of its own, and what it is called with."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        # The plain path, which terms of the query take, looks up how many sinks there are: that is no single graph.
        self.mechanism = mechanism("window", kind, num_sinks=2 if kind in KINDS[:2] else 0)
        self.inputs = [torch.randn(2, 4, 300, 16) for _ in range(3)] + [torch.arange(300)[None] >= torch.tensor([[0], [20]])]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attend(q, k, v, self.mechanism, causal=True, padding_mask=mask)


@every_cell("kind", KINDS)
def test_copy_and_pickle(kind: str) -> None:
    call = Call(kind)
    expected = call(*call.inputs)
    for other in (copy.deepcopy(call.mechanism), pickle.loads(pickle.dumps(call.mechanism))):
        assert torch.equal(attend(*call.inputs[:3], mechanism=other, causal=True, padding_mask=call.inputs[3]), expected)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "graph"), grid(itertools.product(KINDS, GRAPHS), lambda kind, graph: KINDS.index(kind) == 1 + 2 * GRAPHS.index(graph))
)
def test_compile_and_export(kind: str, graph: str) -> None:
    """A bias by distance compiled, a term of the query exported."""
    call = Call(kind)
    leaves = call.inputs
    torch._dynamo.reset()
    expected = call(*leaves)
    if graph == "compiled":
        captured = torch.compile(call, fullgraph=True, backend="eager")
    else:
        captured = torch.export.export(call, tuple(leaves)).module()
    real = leaves[3][:, None, :, None]
    torch.testing.assert_close(captured(*leaves) * real, expected * real, atol=1e-6, rtol=0)


def test_what_begins_at_zero_changes_nothing() -> None:
    q, k, v = (torch.randn(1, 4, 300, 16) for _ in range(3))
    plain = attend(q, k, v, "window", window=32)
    for name, kind in RELATIVE.items():
        assert torch.allclose(attend(q, k, v, "window", window=32, relative=name), plain, atol=1e-6) == (kind.unchanged_tokens({}) is None)


def test_weights_hold_the_terms() -> None:
    built, (q, k, v) = mechanism("window", "shaw:clip=3"), [torch.randn(1, 4, 200, 16) for _ in range(3)]
    torch.testing.assert_close(built.weights(q, k) @ v, attend(q, k, v, built), atol=1e-5, rtol=0)


def test_separate_global_rows_have_the_bias_too() -> None:
    built = mechanism("longformer", "t5_buckets", separate_global=True)
    hidden = torch.randn(1, 300, 64)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    q, k, v = (torch.randn(1, 4, 300, 16) for _ in range(3))
    expected = reference_attend(q, k, v, built.double(), hidden_states=hidden)
    torch.testing.assert_close(attend(q, k, v, built.float(), hidden_states=hidden), expected.float(), atol=1e-5, rtol=0)


def test_the_configuration_holds_them_per_layer() -> None:
    config = LongAttentionConfig(
        "window", window=64, relative="alibi", layers={1: {"relative": {"kind": "shaw", "clip": 8}}, 2: {"relative": None}}
    )
    assert [config.for_layer(index)[1].get("relative") for index in range(3)] == ["alibi", "shaw:clip=8", None]
    assert LongAttentionConfig.from_dict(config.to_dict()) == config
    assert "relative=shaw:clip=8" in config.table(3)
    line = LongAttentionConfig("window", layers="0-1:relative=[t5_buckets:num_buckets=16,max_distance=64];2:relative=alibi")
    assert line.for_layer(1)[1] == {"relative": "t5_buckets:num_buckets=16,max_distance=64"}
    assert read_relative("shaw: clip = 4") == "shaw:clip=4"
    assert "relative" in [option.name for option in mechanism_info("window").options]
    assert "relative" not in str(LongAttentionConfig("window").table(2))


@every_cell(
    ("options", "sentence"),
    [
        ({"relative": "alibbi"}, "Did you mean 'alibi'"),
        ({"relative": "shaw:clips=3"}, "have no setting 'clips'.*Did you mean 'clip'"),
        ({"relative": "shaw:clip=0"}, "must be at least 1; for example relative='shaw:clip=16'"),
        ({"relative": "shaw:clip=wide"}, "must be a whole number"),
        ({"relative": "shaw:8"}, "must read KIND or KIND:NAME=VALUE"),
        ({"relative": 3}, "must read KIND or KIND:NAME=VALUE"),
        ({"relative": "t5_buckets:num_buckets=30"}, "need a multiple of 4"),
        ({"mechanism": "union", "of": "window:relative=alibi+strided"}, "give relative to 'union' itself"),
        ({"mechanism": "longformer", "relative": "shaw", "separate_global": True}, "use 'alibi' or 't5_buckets'"),
    ],
)  # fmt: skip
def test_bad_choices_get_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        LongAttentionConfig(**{"mechanism": "window", **options})


def test_a_mechanism_without_scores_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    window = mechanism_class("window")
    monkeypatch.setattr(window, "traits", window.traits.but(takes_score_mod=False))
    with pytest.raises(OptionError, match="has no scores that relative positions could be added to"):
        LongAttentionConfig("window", relative="alibi")


def test_grouped_heads_and_odd_widths() -> None:
    module = build_relative("transformer_xl", 6, 5, 7)
    drawn(module)
    q, k = torch.randn(1, 6, 9, 5), torch.randn(1, 3, 9, 5)
    places = torch.arange(9)[None]
    term = module.term(q, k, places, places, False, 0.5)
    spread = module.term(q, k.repeat_interleave(2, 1), places, places, False, 0.5)
    torch.testing.assert_close(term, spread)
