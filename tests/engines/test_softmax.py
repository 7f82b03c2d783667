"""The CPU's softmax engine and sinks: rows of tokens are read and added to one by one; a sink is one more column
without a value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import Mechanism, attend, build_mechanism, list_mechanisms, reference_attend
from hf_longattn.engines import call as calls
from hf_longattn.engines.call import AttentionCall
from hf_longattn.engines.cpu.softmax import SOURCES, Runs, cpu_softmax
from hf_longattn.engines.cpu.visible_blocks import BLOCK, HIDDEN, MIXED, VISIBLE
from hf_longattn.engines.cuda import flash_band
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.base import attention_weights
from hf_longattn.mechanisms.common.masked import MaskedMechanism, steps_by_mask
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients
from tests.grids import pairwise

# ---- The CPU's softmax engine, whose operator is well formed for every source.


@every_case(
    "runs",
    [
        Runs(3, 5),
        Runs(1, 4, 1, 0, 3),
        Runs(2, 4, 3, 4),
        Runs(2, 7, 4, 3),
        Runs(0, 5, 3, 1, 4),
        Runs(1, 4, 3, 6, 2),
        Runs(0, 4, 3, 3, 2),
        Runs(4, 3, 5, 0),
    ],
)
@every_case("dtype", [torch.float64, torch.bfloat16])
def test_overlapping_runs_of_tokens_are_read_and_added_to(runs: Runs, dtype: torch.dtype) -> None:
    x = torch.randn(1, 2, 20, 3, dtype=torch.float64)
    index = torch.tensor(
        [[runs.start + row * runs.step + i * runs.stride for i in range(runs.size)] for row in range(runs.rows)]
    )
    taken = x[0][:, index].transpose(0, 1)
    assert torch.equal(runs.of(x), taken)
    values = torch.randn(taken.shape, dtype=torch.float64).to(dtype)
    expected = x.index_add(2, index.flatten(), values.double().transpose(0, 1).flatten(1, 2)[None])
    runs.add(x, values)
    torch.testing.assert_close(x, expected)


def arguments_of(name: str) -> tuple[Any, ...]:
    """The arguments of a small call of the operator, with gradients."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 100, 8, requires_grad=True) for _ in range(3))
    learned: list[Any] = []
    if name == "band":
        learned, fixed, numbers = [torch.randn(2, 9)], [None, torch.arange(100)[None] < 3], [10, 10, 0, 1, 4]
    elif name == "distances":
        learned = [torch.randn(1, 2, 100, 3), torch.randn(1, 21, 3), torch.randn(1, 2, 100, 4), torch.randn(2, 21, 4)]
        fixed, numbers = [None, None, torch.arange(100)[None] < 3], [10, 10, 10, 0, 1, 0]
    elif name == "tiles":
        rows = torch.arange(100).view(1, 1, 10, 10)
        fixed, numbers = [None, rows, rows, None, rows, rows.flip(2), None], [-99, 99, 1, 0, -99, 99, 1, 0]
    elif name == "visible blocks":
        table = torch.tensor([[[MIXED, HIDDEN], [VISIBLE, MIXED]]], dtype=torch.int32)
        fixed, numbers = [table, torch.rand(1, BLOCK, BLOCK) < 0.5], [BLOCK]
    else:
        fixed, numbers = [None, torch.randint(-1, 3, (1, 2, 100, 1))], [25, 1]
    sinks = torch.randn(2, requires_grad=True)
    return name, q, k, v, [x.requires_grad_() for x in learned], fixed, numbers, 0.3, 0.0, None, sinks


@every_case("name", sorted(name for name, cls in SOURCES.items() if cls.__module__.startswith("hf_longattn")))
def test_the_cpu_softmax_operator_is_well_formed_for_every_source(name: str) -> None:
    arguments = arguments_of(name)
    torch.library.opcheck(
        cpu_softmax, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )
    out, _ = cpu_softmax(*arguments)
    leaves = [*arguments[1:4], *arguments[4], arguments[-1]]
    gradients = torch.autograd.grad(out.square().sum(), leaves)
    if name != "tiles":  # the same operator with other descriptions of its rows
        return
    compiled = torch.compile(lambda: cpu_softmax(*arguments)[0], backend="aot_eager", fullgraph=True)()
    torch.testing.assert_close(compiled, out)
    for found, expected, leaf in zip(
        torch.autograd.grad(compiled.square().sum(), leaves), gradients, leaves, strict=True
    ):
        torch.testing.assert_close(found, expected)
        assert found.shape == leaf.shape


# ---- Sinks. The reference concatenates the column, as transformers' GptOss does.


SINKS = torch.tensor([0.5, -1.0, 2.0, 4.0])


def takes_sinks(name: str) -> bool:
    return bool(mechanism_class(name).capabilities.takes_sinks)


WITH_SINKS = [name for name in list_mechanisms() if takes_sinks(name)]


def inputs(
    length: int = 80, groups: int = 4, dtype: torch.dtype = torch.float64, width: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, 4, length, width), (2, groups, length, width), (2, groups, length, width)]
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v


def with_column(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, sinks: Tensor) -> Tensor:
    """transformers' ``eager_attention_forward`` of gpt_oss in float64; rows that see no key are 0."""
    q, k, v, sinks = (x.double() for x in (q, k, v, sinks))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~seen, float("-inf"))
    column = sinks.reshape(1, -1, 1, 1).expand(len(q), -1, q.shape[2], -1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ v


def band(q_len: int, length: int, window: int, causal: bool) -> Tensor:
    i, j = torch.arange(length - q_len, length)[:, None], torch.arange(length)
    return ((i - j < window) & (j <= i)) if causal else (i - j).abs() <= window // 2


@pytest.fixture(params=["dense", "engines"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Short inputs by dense calls, or by the engines for long inputs."""
    if request.param == "engines":
        monkeypatch.setattr(calls, "DENSE_CELLS", 0)
    return request.param


def sampled(name: str) -> Mechanism:
    sizes = {"num_heads": 4, "head_dim": 8, "hidden_size": 32, "max_length": 80}
    return build_mechanism(name, **sizes, **mechanism_class(name).about.sample).eval()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", [*WITH_SINKS, "union"])
def test_every_mechanism_with_sink_scores_equals_its_definition(name: str, causal: bool, path: str) -> None:
    mechanism = sampled(name)
    if mechanism.causal not in ("both", causal):
        pytest.skip("one form only")
    q, k, v = inputs()
    found = attend(q, k, v, mechanism, causal=causal, sink_scores=SINKS)
    assert (found - reference_attend(q, k, v, mechanism, causal=causal, sink_scores=SINKS)).abs().max() < 1e-9
    # The weights with a sink are those without, times sigmoid(lse - sink). Any visible pair gives the lse.
    weights = attention_weights(mechanism, q, k, AttentionCall(causal=causal))
    best, at = weights.max(-1)
    lse = ((q @ k.mT) * 8**-0.5).gather(-1, at[..., None])[..., 0] - best.log()
    expected = weights * torch.sigmoid(lse - SINKS[:, None])[..., None]
    assert (
        attention_weights(mechanism, q, k, AttentionCall(causal=causal, sink_scores=SINKS)) - expected
    ).abs().max() < 1e-6
    assert (found - expected.double() @ v).abs().max() < 1e-5


@pytest.mark.parametrize("name", WITH_SINKS)
@pytest.mark.parametrize("q_len", [1, 3])
def test_the_last_queries_with_sink_scores_are_those_of_the_whole(name: str, q_len: int, path: str) -> None:
    mechanism = sampled(name)
    if mechanism.causal is False or not mechanism.capabilities.takes_fewer_queries:
        pytest.skip("no decoding")
    q, k, v = inputs()
    whole = attend(q, k, v, mechanism, causal=True, sink_scores=SINKS)
    last = attend(q[:, :, -q_len:], k, v, mechanism, causal=True, sink_scores=SINKS)
    assert (last - whole[:, :, -q_len:]).abs().max() < 1e-9
    if isinstance(mechanism, MaskedMechanism) and steps_by_mask(mechanism):
        step = mechanism.attend_rows(q[:, :, -q_len:], k, v, AttentionCall(causal=True, sink_scores=SINKS))
        assert (step - last).abs().max() < 1e-9


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["full", "window", "bigbird", "strided", "top_k", "block_top_k"])
def test_gradients_of_sink_scores_equal_the_definition(name: str, causal: bool, path: str) -> None:
    q, k, v = (x[:1, :, :24].clone().requires_grad_() for x in inputs())
    sinks = SINKS.double().requires_grad_()
    options = {
        "window": {"window": 8},
        "bigbird": {"block_size": 4},
        "top_k": {"num_keys": 5},
        "block_top_k": {"block_size": 4, "num_blocks": 2},
    }
    mechanism = build_mechanism(name, num_heads=4, head_dim=8, **options.get(name, {})).eval()

    def run(*x: Tensor) -> Tensor:
        return attend(*x[:3], mechanism, causal=causal, sink_scores=x[3])

    if path == "dense" or name in ("top_k", "block_top_k"):  # the CPU's kernel is only differentiated numerically here
        assert torch.autograd.gradcheck(run, (q, k, v, sinks), fast_mode=True, atol=1e-4)
    expected = reference_attend(q, k, v, mechanism, causal=causal, sink_scores=sinks)
    assert_equal_with_gradients(run(q, k, v, sinks), expected, (q, k, v, sinks), atol=1e-9, gradients=1e-8)


def test_sink_scores_of_long_texts_in_half_precision_are_near_gpt_oss() -> None:
    q, k, v = inputs(700, groups=2, dtype=torch.bfloat16, width=16)
    for causal in (False, True):
        found = attend(q, k, v, "window", window=64, causal=causal, sink_scores=SINKS.bfloat16())
        assert (found - with_column(q, k, v, band(700, 700, 64, causal), SINKS)).abs().max() < 0.03


def test_dropout_with_sink_scores_keeps_the_mean() -> None:
    q, k, v = inputs(700)
    v = torch.ones_like(v)
    expected = with_column(q, k, v, band(700, 700, 64, False), SINKS)
    found = attend(q, k, v, "window", window=64, sink_scores=SINKS, dropout_p=0.3)
    assert (found.mean((0, 2)) - expected.mean((0, 2))).abs().max() < 0.02


@pytest.mark.parametrize("causal", [False, True])
def test_packed_documents_with_sink_scores_are_as_alone(causal: bool) -> None:
    q, k, v = inputs(400)
    documents = (torch.arange(400) >= 150).long().expand(2, -1)
    for name, options in (("window", {"window": 32}), ("longformer", {"window": 32, "global_tokens": (0,)})):
        found = attend(q, k, v, name, causal=causal, documents=documents, sink_scores=SINKS, **options)
        for at in (slice(0, 150), slice(150, 400)):
            alone = attend(*(x[:, :, at] for x in (q, k, v)), name, causal=causal, sink_scores=SINKS, **options)
            assert (found[:, :, at] - alone).abs().max() < 1e-9


ON_GPUS: dict[str, tuple[str, dict[str, Any]]] = {
    "band": ("window", {"window": 32}),
    "band and columns": ("window", {"window": 32, "num_sinks": 3}),
    "band, columns and rows": ("longformer", {"window": 32, "global_tokens": (0, 100)}),
    "everything": ("full", {}),
    "tiles": ("strided", {"window": 16, "stride": 16}),
    "selected blocks": ("block_top_k", {"block_size": 32, "num_blocks": 3}),
    "selected keys": ("top_k", {"num_keys": 9}),
}


@pytest.mark.usefixtures("cuda_paths", "unfused_flex", "emulated_flash")
@pytest.mark.parametrize(("visited", "flash", "documents", "causal"), pairwise([*ON_GPUS], *[(False, True)] * 3))
def test_sink_scores_on_the_paths_of_gpus_equal_the_definition(
    visited: str, flash: bool, documents: bool, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not flash:
        monkeypatch.setattr(flash_band, "why_not", lambda _: "there is none")
        monkeypatch.setattr(flash_band, "_tried", lambda *_: "there is none")
    name, options = ON_GPUS[visited]
    leaves = [x.requires_grad_() for x in (*inputs(300, 4 if documents else 2), SINKS.double())]
    numbers = ((torch.arange(300) >= 170).long() if documents else torch.zeros(300).long()).expand(2, -1)
    arguments: dict[str, Any] = {"causal": causal, "documents": numbers, "sink_scores": leaves[3]}
    mechanism = build_mechanism(name, num_heads=4, head_dim=8, **options).eval()
    found = attend(*leaves[:3], mechanism, **arguments)
    expected = reference_attend(*leaves[:3], mechanism, **arguments)
    assert_equal_with_gradients(found, expected, leaves, atol=1e-9, gradients=1e-8)


@pytest.mark.thorough
@pytest.mark.parametrize("causal", [False, True])
def test_sink_scores_compile_to_one_graph(causal: bool) -> None:
    q, k, v = (x.detach().requires_grad_() for x in inputs(300, 2, torch.float32))
    sinks = SINKS.clone().requires_grad_()
    mechanism = build_mechanism("window", num_heads=4, head_dim=8, window=32).eval()

    def run(*x: Tensor) -> Tensor:
        return attend(*x[:3], mechanism, causal=causal, sink_scores=x[3])

    plain, compiled = run(q, k, v, sinks), torch.compile(run, backend="aot_eager", fullgraph=True)(q, k, v, sinks)
    assert_equal_with_gradients(compiled, plain, (q, k, v, sinks), atol=1e-6, gradients=1e-4)


def test_padding_has_no_effect_beside_sink_scores() -> None:
    q, k, v = inputs(300)
    real = torch.zeros(2, 300, dtype=torch.bool)
    real[:, :250] = True
    v = v.masked_fill(~real[:, None, :, None], 1e6)
    found = attend(q, k, v, "full", padding_mask=real, sink_scores=SINKS)
    assert found[:, :, :250].abs().max() < 10


def test_mechanisms_without_one_softmax_refuse_sink_scores() -> None:
    q, k, v = inputs()
    with pytest.raises(OptionError, match="not one softmax"):
        attend(q, k, v, "linear", sink_scores=SINKS)
    with pytest.raises(OptionError, match=r"sink_scores has shape \(3,\)"):
        attend(q, k, v, "window", sink_scores=torch.zeros(3))
    with pytest.raises(OptionError, match="has no option 's_aux'"):
        attend(q, k, v, "window", s_aux=SINKS)


def test_the_page_of_families_lists_the_mechanisms_that_take_sink_scores() -> None:
    page = (
        Path("docs/families.md")
        .read_text(encoding="utf-8")
        .partition("their attention has sinks")[2]
        .partition("\n- ")[0]
    )
    assert {*re.findall(r"`(\w+)`", page)} == {*WITH_SINKS, "union"}
