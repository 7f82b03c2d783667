"""Relative positions: the fast path, graphs, configurations, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import LongAttentionConfig, attend, mechanism_info, reference_attend
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.base import Mechanism, attention_weights
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_from
from hf_longattn.positions.relative import CLASSES, build_relative, read_relative, unchanged_tokens
from tests.cases import every_case
from tests.grids import grid

KINDS = ["alibi", "t5_buckets:num_buckets=16,max_distance=40", "shaw:clip=5", "transformer_xl"]


def drawn(module: torch.nn.Module) -> None:
    """Terms that matter: parameters begin at zero."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def mechanism(name: str, kind: str, **options: Any) -> Mechanism:
    chosen = {"relative": kind, **mechanism_class(name).about.sample, **options}
    built = mechanism_from(name, chosen, num_heads=4, head_dim=16, max_length=300)
    drawn(built.relative)
    return built


GRAPHS = ("compiled", "exported")


class Call(torch.nn.Module):
    """A window with a kind of terms, as a module of its own, and what it is called with."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        # The plain path, which terms of the query take, looks up how many sinks there are: that is no single graph.
        self.mechanism = mechanism("window", kind, num_sinks=2 if kind in KINDS[:2] else 0)
        self.inputs = [torch.randn(2, 4, 300, 16) for _ in range(3)] + [
            torch.arange(300)[None] >= torch.tensor([[0], [20]])
        ]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attend(q, k, v, self.mechanism, causal=True, padding_mask=mask)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "graph"),
    grid(itertools.product(KINDS, GRAPHS), lambda kind, graph: KINDS.index(kind) == 1 + 2 * GRAPHS.index(graph)),
)
def test_a_window_with_relative_terms_compiles_and_exports(kind: str, graph: str) -> None:
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


def test_relative_terms_that_begin_at_zero_change_nothing() -> None:
    q, k, v = (torch.randn(1, 4, 300, 16) for _ in range(3))
    plain = attend(q, k, v, "window", window=32)
    for name in set(CLASSES) - {"self_extend"}:
        assert torch.allclose(attend(q, k, v, "window", window=32, relative=name), plain, atol=1e-6) == (
            unchanged_tokens(name) is None
        )


def test_attention_weights_hold_the_relative_terms() -> None:
    built, (q, k, v) = mechanism("window", "shaw:clip=3"), [torch.randn(1, 4, 200, 16) for _ in range(3)]
    torch.testing.assert_close(attention_weights(built, q, k) @ v, attend(q, k, v, built), atol=1e-5, rtol=0)


def test_separate_global_rows_have_the_relative_bias() -> None:
    built = mechanism("longformer", "t5_buckets", separate_global=True)
    hidden = torch.randn(1, 300, 64)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    q, k, v = (torch.randn(1, 4, 300, 16) for _ in range(3))
    expected = reference_attend(q, k, v, built.double(), hidden_states=hidden)
    torch.testing.assert_close(
        attend(q, k, v, built.float(), hidden_states=hidden), expected.float(), atol=1e-5, rtol=0
    )


def test_a_configuration_holds_relative_positions_per_layer() -> None:
    config = LongAttentionConfig(
        "window", window=64, relative="alibi", layers={1: {"relative": "shaw:clip=8"}, 2: {"relative": None}}
    )
    assert [config.for_layer(index)[1].get("relative") for index in range(3)] == ["alibi", "shaw:clip=8", None]
    assert LongAttentionConfig.from_dict(config.to_dict()) == config
    assert "relative=shaw:clip=8" in config.table(3)
    line = LongAttentionConfig(
        "window", layers="0-1:relative=[t5_buckets:num_buckets=16,max_distance=64];2:relative=alibi"
    )
    assert line.for_layer(1)[1] == {"relative": "t5_buckets:num_buckets=16,max_distance=64"}
    assert read_relative("shaw: clip = 4") == "shaw:clip=4"
    assert "relative" in [option.name for option in mechanism_info("window").options]
    assert "relative" not in str(LongAttentionConfig("window").table(2))


@every_case(
    ("options", "sentence"),
    [
        ({"relative": "alibbi"}, "Did you mean 'alibi'"),
        ({"relative": "shaw:clips=3"}, "have no setting 'clips'.*Did you mean 'clip'"),
        ({"relative": "shaw:clip=0"}, "must be at least 1; for example relative='shaw:clip=16'"),
        ({"relative": "shaw:clip=wide"}, "must be a whole number"),
        ({"relative": "shaw:8"}, "must read KIND or KIND:NAME=VALUE"),
        ({"relative": 3}, "must read KIND or KIND:NAME=VALUE"),
        ({"relative": "t5_buckets:num_buckets=30"}, "must be a multiple of 4"),
        ({"mechanism": "union", "of": "window:relative=alibi+strided"}, "give relative to 'union' itself"),
        ({"mechanism": "longformer", "relative": "shaw", "separate_global": True}, "use 'alibi' or 't5_buckets'"),
    ],
)
def test_relative_positions_that_do_not_fit_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        LongAttentionConfig(**{"mechanism": "window", **options})


def test_a_mechanism_without_scores_refuses_relative_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    window = mechanism_class("window")
    monkeypatch.setattr(window, "capabilities", window.capabilities.but(takes_score_mod=False))
    with pytest.raises(OptionError, match="has no scores that relative positions could be added to"):
        LongAttentionConfig("window", relative="alibi")


def test_transformer_xl_terms_take_grouped_heads_and_odd_widths() -> None:
    module = build_relative("transformer_xl", 6, 5, 7)
    drawn(module)
    q, k = torch.randn(1, 6, 9, 5), torch.randn(1, 3, 9, 5)
    places = torch.arange(9)[None]
    term = module.term(q, k, places, places, False, 0.5)
    spread = module.term(q, k.repeat_interleave(2, 1), places, places, False, 0.5)
    torch.testing.assert_close(term, spread)
