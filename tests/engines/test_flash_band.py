"""PyTorch's flash-attention operator, whose definition runs in its place: bands, packed documents and global
tokens."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines import block_sparse, dispatch
from hf_longattn.engines.batch import Batch, for_one_pass
from hf_longattn.engines.block_sparse import block_sparse_attention
from hf_longattn.engines.blockwise import blockwise_attention
from hf_longattn.engines.call import AttentionCall, DispatchContext, Pattern
from hf_longattn.engines.cuda import flash_band, flex_kernel
from hf_longattn.engines.cuda.flash_band import Plan
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients, choices_of, paths_of
from tests.grids import grid

from . import flash_operator
from .test_flex import MECHANISMS as TOKENS_OF_MECHANISMS
from .test_flex import PADDING, calls, real_tokens

# ---- Bands and packed documents.


LENGTH = 300
MECHANISMS: dict[str, tuple[str, dict[str, Any]]] = {
    "band": ("window", {"window": 64}),
    "band and columns": ("window", {"window": 64, "num_sinks": 5}),
    "band, columns and rows": ("longformer", {"window": 32}),
    "everything": ("full", {}),
}


def tensors(
    heads: int = 4, head_dim: int = 12, dtype: torch.dtype = torch.float64, length: int = LENGTH
) -> list[Tensor]:
    """q, k, v; heads of 12 numbers are padded to 16."""
    torch.manual_seed(0)
    return [torch.randn(2, count, length, head_dim, dtype=dtype, requires_grad=True) for count in (4, heads, heads)]


def padding(side: str) -> Tensor:
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    cuts = {"left": slice(0, 90), "right": slice(200, None), "inside": slice(100, 120), "none": slice(0, 0)}
    mask[0, cuts[side]] = False
    return mask


@pytest.mark.usefixtures("cuda_paths", "emulated_flash")
@pytest.mark.parametrize(
    ("visited", "causal", "side", "heads"),
    grid(
        itertools.product(MECHANISMS, [False, True], ["none", "left", "right"], [4, 2]),
        lambda visited, causal, side, heads: visited.startswith("band, ") and heads == 2 and side == "left",
    ),
)
def test_flash_attention_of_a_band_equals_the_definition_with_its_gradients(
    visited: str, causal: bool, side: str, heads: int
) -> None:
    inputs, mask, (name, options) = tensors(heads), padding(side), MECHANISMS[visited]
    module = build_mechanism(name, num_heads=4, head_dim=12, **options).eval()
    # beside others, the operator can hide none
    tokens = torch.arange(LENGTH) < 130 if causal else torch.rand(2, LENGTH) < 0.03
    tokens = tokens.expand(2, -1) if module.capabilities.takes_globals else None
    arguments = {"causal": causal, "padding_mask": mask, "global_mask": tokens, "scaling": 0.3}
    out, choices = choices_of(lambda: attend(*inputs, module, **arguments))
    assert {choice.path for choice in choices} - {"unchanged", "aligned"} == {"flash"}
    assert_equal_with_gradients(out, reference_attend(*inputs, module, **arguments), inputs, mask)


@pytest.mark.usefixtures("cuda_paths")
@pytest.mark.parametrize("visited", ["band", "everything"])
def test_packed_documents_are_one_call_of_flash_attention(visited: str, emulated_flash: list[dict[str, Any]]) -> None:
    """With padding after them, before them, and in a row of its own."""
    inputs, mask, (name, options) = tensors(2), padding("right"), MECHANISMS[visited]
    mask[1, :7] = False
    documents = torch.stack(
        [torch.arange(LENGTH) // 70, (torch.arange(LENGTH) > 3).long() + (torch.arange(LENGTH) > 180)]
    )
    module = build_mechanism(name, num_heads=4, head_dim=12, **options).eval()
    arguments = {"padding_mask": mask, "documents": documents, "causal": True}
    out, choices = choices_of(lambda: attend(*inputs, module, **arguments))
    assert [choice.path for choice in choices] == ["unchanged", "flash"]
    calls = [call for call in emulated_flash if call["q"][0] == 2 * LENGTH]
    assert len(calls) == len(choices) - 1
    assert calls[0]["offsets"].tolist() == [0, 70, 140, 200, 300, 307, 481, 600]
    assert calls[0]["most"] == (174, 174)
    assert_equal_with_gradients(out, reference_attend(*inputs, module, **arguments), inputs, mask)


@pytest.mark.usefixtures("cuda_paths", "emulated_flash")
def test_documents_without_flash_attention_are_separate_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, documents = tensors(2), torch.arange(LENGTH)[None].expand(2, -1) // 150
    monkeypatch.setattr(flash_band, "_tried", lambda *_: "it is an old one")
    monkeypatch.setattr(flex_kernel, "why_not", lambda _: "there is none")
    out, choices = choices_of(lambda: attend(*inputs, "window", window=64, documents=documents))
    assert [choice.path for choice in choices][:2] == ["unchanged", "split"]
    assert dict(choices[1].refused)["flash"] == "it is an old one"
    torch.testing.assert_close(
        out, reference_attend(*inputs, "window", window=64, documents=documents), atol=1e-12, rtol=0
    )


@pytest.mark.usefixtures("cuda_paths")
def test_flash_attention_drops_the_same_weights_in_both_passes(emulated_flash: list[dict[str, Any]]) -> None:
    q, k, v = tensors()
    out = attend(q, k, v, "window", window=64, dropout_p=0.25)
    kept = torch.zeros(2, 4, LENGTH, LENGTH, dtype=torch.float64)
    for row in range(2):
        kept[row] = flash_operator._kept(kept[row], 0.25, emulated_flash[-1]["state"], row)
    near = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs() <= 32
    weights = (q @ k.mT * 12**-0.5).masked_fill(~near, float("-inf")).softmax(-1) * kept
    assert (weights[0, 0][near] == 0).double().mean() == pytest.approx(0.25, abs=0.02)
    assert_equal_with_gradients(out, weights @ v, [q, k, v])


@pytest.mark.usefixtures("emulated_flash")
@every_case("sinks", [False, True])
@every_case("dropout", [0.0, 0.4])
def test_flash_attention_of_a_band_passes_gradcheck(dropout: float, sinks: bool) -> None:
    pattern = Pattern(3, 2, causal=False)
    batch = Batch.of(torch.arange(11) < torch.tensor([[11], [8]]))

    def run(*inputs: Tensor) -> Tensor:
        torch.manual_seed(0)
        call = AttentionCall(batch=batch, dropout=dropout, sink_scores=inputs[3] if sinks else None)
        return flash_band.flash_band(*inputs[:3], pattern, call)[1:, :, :8]

    inputs = [x.detach()[:, :count, :11, :8].requires_grad_() for x, count in zip(tensors(), (4, 2, 2), strict=True)]
    assert torch.autograd.gradcheck(
        run, [*inputs, torch.randn(4, dtype=torch.float64, requires_grad=True)], fast_mode=True
    )


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_paths", "emulated_flash")
@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.1])
def test_flash_attention_is_part_of_a_whole_graph(dropout: float) -> None:
    """Forward and backward; of other lengths, too."""
    torch._dynamo.reset()
    module = build_mechanism("window", num_heads=4, head_dim=12, window=64)
    compiled = torch.compile(
        lambda q, k, v: attend(q, k, v, module, dropout_p=dropout), backend="aot_eager", fullgraph=True, dynamic=True
    )
    for length in (300, 420):
        inputs = tensors(2, length=length)
        out = compiled(*inputs)
        if dropout:
            out.sum().backward()
        else:
            assert_equal_with_gradients(out, reference_attend(*inputs, module), inputs)
    torch._dynamo.reset()


def test_the_flash_operator_of_pytorch_takes_our_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shapes for tensors that hold nothing."""
    monkeypatch.setattr(Batch, "sequences", Batch(torch.tensor([[True] * 20, [False] * 5 + [True] * 15])).sequences)
    with FakeTensorMode():
        for offsets, dropout in itertools.product((False, True), (0.0, 0.1)):
            q, k, v = (torch.empty(2, heads, 20, 64, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2))
            batch = Batch(torch.empty(2, 20, device="cuda", dtype=torch.bool)) if offsets else None
            part = None if batch is None else flash_band.part_of_sequences(batch, 2, 20, q.device)
            settings = flash_band.Settings(7, 0, True, 0.125, dropout)
            rows = [x.transpose(1, 2) for x in (q, k, v)]
            if part is not None:
                rows = [x.flatten(0, 1) for x in rows]
            result = settings.run(*rows, part)
            of_rows = (2, 4, 20) if part is None else (4, 40)
            assert (result[0].shape, result[0].dtype, result[1].shape) == (rows[0].shape, q.dtype, of_rows)
            gradients = settings.gradients(rows[0], *rows, *result[:2], result[2:], part)
            assert [x.shape for x in gradients] == [x.shape for x in rows]


REFUSALS = [
    RuntimeError("FlashAttention only supports Ampere GPUs or newer."),
    RuntimeError("USE_FLASH_ATTENTION was not enabled for build."),
    NotImplementedError("Could not run 'aten::_flash_attention_forward' with arguments from the 'CUDA' backend."),
    AssertionError(),
]


@pytest.mark.usefixtures("cuda_paths", "emulated_flash")
@pytest.mark.parametrize("error", REFUSALS, ids=str)
@pytest.mark.parametrize("backward", [False, True])
def test_a_flash_operator_that_refuses_is_left_for_the_next_path_with_a_warning(
    error: Exception, backward: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next path runs, from then on without a try, and a warning says so once; what only the backward pass lacks is
    seen in time."""
    tries = []

    def refuses(*_: Any, **__: Any) -> None:
        tries.append(1)
        raise error

    monkeypatch.setattr(flash_band, "flash_backward" if backward else "flash_forward", refuses)
    monkeypatch.setattr(block_sparse, "flex_band", blockwise_attention)
    inputs = tensors(head_dim=16)
    for _ in range(2):
        out, choices = choices_of(lambda: attend(*inputs, "window", window=64))
        assert [choice.path for choice in choices] == ["flex"]
        assert dict(choices[0].refused)["flash"] == (str(error) or "AssertionError")
    torch.testing.assert_close(out, reference_attend(*inputs, "window", window=64), atol=1e-12, rtol=0)
    (warning,) = [record.getMessage() for record in caplog.records if record.name == flex_kernel.__name__]
    assert "heads of 16 in float64 on cpu" in warning
    assert len(tries) == 1
    _, choices = choices_of(lambda: attend(*(x.detach() for x in inputs), "window", window=64))
    assert [choice.path for choice in choices] == ["flash" if backward else "flex"]


@pytest.mark.usefixtures("cuda_paths", "emulated_flash")
def test_a_flash_operator_with_wrong_results_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a kernel that ignores windows, for example."""
    unbounded = dict.fromkeys(("window_size_left", "window_size_right"), -1)
    monkeypatch.setattr(
        flash_band, "flash_forward", lambda *x, **settings: flash_operator.forward(*x, **settings | unbounded)
    )
    monkeypatch.setattr(flex_kernel, "why_not", lambda _: "there is none")
    out, (choice,) = choices_of(lambda: attend(*tensors(), "window", window=64))
    assert "differ from the definition by" in dict(choice.refused)["flash"]
    torch.testing.assert_close(out, reference_attend(*tensors(), "window", window=64), atol=1e-12, rtol=0)


@pytest.mark.usefixtures("cuda_paths", "emulated_flash")
@pytest.mark.parametrize("first", [False, True])
def test_a_lack_of_memory_in_flash_attention_is_raised_as_it_is(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first call of all, or in a later one; it says nothing about the kernel."""
    inputs = [x.detach() for x in tensors()]

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    if not first:
        attend(*inputs, "window", window=64)
    with monkeypatch.context() as patch:
        patch.setattr(flash_band, "flash_forward", full)
        with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory\. Tried to allocate"):
            attend(*inputs, "window", window=64)
    _, (choice,) = choices_of(lambda: attend(*inputs, "window", window=64))
    assert choice.path == "flash"


@pytest.mark.usefixtures("cuda_paths", "emulated_flash")
@pytest.mark.parametrize("head_dim", [8, 64])
def test_flash_attention_runs_without_triton_and_with_narrow_heads(
    head_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "Cannot find a working triton installation. Either the package is not installed or it is too old."
        )

    monkeypatch.setattr(flex_kernel, "compiled", lambda _: refuses)
    inputs = tensors(head_dim=head_dim, dtype=torch.bfloat16)
    out, (choice,) = choices_of(lambda: attend(*inputs, "window", window=64))
    assert choice.path == "flash"
    torch.testing.assert_close(out.double(), reference_attend(*inputs, "window", window=64), atol=2e-2, rtol=0)


def test_flash_attention_on_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own operator, asked with tensors of a device for which it is not made."""
    monkeypatch.setattr(flash_band, "_refusal", functools.cache(flash_band._refusal.__wrapped__))
    q = tensors(dtype=torch.bfloat16)[0]
    with pytest.raises(flex_kernel.NoKernel, match="Could not run 'aten::_flash_attention_forward'"):
        flash_band.flash_band(q, q, q, Pattern.window(8, causal=True), AttentionCall())


@pytest.mark.usefixtures("cuda_paths")
@every_case(
    ("changes", "reason"),
    [
        ({}, None),
        ({"dtype": torch.float32}, "the flash-attention operator computes in half precision only"),
        ({"features": 264}, "the flash-attention operator takes heads of up to 256 numbers"),
        (
            {"call": AttentionCall(score_mod=lambda score, *_: score)},
            "the flash-attention operator adds no score term",
        ),
        (
            {"call": AttentionCall(batch=Batch.of(padding("inside")))},
            "there is padding between the tokens of a sequence",
        ),
        (
            {"call": AttentionCall(batch=Batch.of(padding("left"))), "q_len": 200},
            "the queries are some tokens of a batch with padding or global tokens",
        ),
    ],
)
def test_the_reasons_against_flash_attention_are_those_of_the_call(
    changes: dict[str, Any], reason: str | None
) -> None:
    values = {
        "q_len": LENGTH,
        "call": AttentionCall(),
        "dtype": torch.bfloat16,
        "features": 64,
        "pattern": Pattern.window(8, causal=True),
    }
    context = DispatchContext("cuda", kv_len=LENGTH, **values | changes)
    assert flash_band.why_not(context) == reason
    refused = dict(dispatch.PATHS["band"])
    assert (dispatch.first_path("band", context)[0] == "flash") == (reason is None)
    assert list(refused).index("flash") < list(refused).index("flex")


@pytest.mark.usefixtures("cuda_paths", "emulated_flash")
def test_padding_and_global_tokens_in_a_graph_are_left_to_flex_attention() -> None:
    seen: list[str | None] = []

    def run(q: Tensor, mask: Tensor) -> Tensor:
        for call in (AttentionCall(batch=Batch.of(mask)), AttentionCall(global_mask=mask)):
            values = {"dtype": q.dtype, "features": 64, "pattern": Pattern.window(8, causal=True)}
            seen.append(flash_band.why_not(DispatchContext("cuda", LENGTH, LENGTH, call, **values)))
        return q

    torch.compile(run, backend="eager")(tensors()[0].detach(), padding("none"))
    assert set(seen) == {"a graph knows neither where sequences start nor how many tokens are global"}


@pytest.mark.usefixtures("cuda_paths", "emulated_flash")
def test_flash_attention_copies_no_tensor_that_a_projection_stored() -> None:
    q, k, v = torch.randn(3, 2, LENGTH, 4, 16, dtype=torch.float64).transpose(2, 3).unbind(0)
    stored, _ = flash_band.prepared(q, k, v, Pattern.window(8, causal=True), AttentionCall(), packed=False)
    assert [x.data_ptr() for x in stored] == [x.data_ptr() for x in (q, k, v)]
    out = block_sparse_attention(q, k, v, Pattern.window(8, causal=True), AttentionCall(causal=True))
    assert out.transpose(1, 2).is_contiguous()


# ---- Bands with global tokens: three calls of the operator.


WIDTH = 8
"""Heads that flex_attention refuses."""
CELLS = [
    *itertools.product(["longformer"], PADDING, [False, True], ["positions", "scattered", "question"], [False, True]),
    *itertools.product([*TOKENS_OF_MECHANISMS][1:], PADDING, [False, True], ["positions"], [False, True]),
]


@pytest.mark.usefixtures("cuda_paths", "emulated_flash")
@every_case(("name", "padding", "causal", "tokens", "packed"), CELLS, of=10)
def test_three_flash_calls_equal_the_definition_with_its_gradients(
    name: str, padding: str, causal: bool, tokens: str, packed: bool
) -> None:
    module, tensors, arguments = calls(name, padding, causal, tokens, packed, heads=2, width=WIDTH)
    out, paths = paths_of(lambda: attend(*tensors, module, **arguments))
    in_front = tokens == "positions" and name != "five positions"
    if (in_front or not causal) and padding != "holes":
        assert paths[-1] == "flash"
    expected = reference_attend(*tensors, module, **arguments)
    assert_equal_with_gradients(out, expected, tensors, real_tokens(padding))


@pytest.mark.usefixtures("cuda_paths", "emulated_flash")
@every_case(("positions", "causal"), itertools.product([(0, 0), (1, 0), (300, 7, 7, 0)], [False, True]))
def test_global_positions_count_once_in_any_order(positions: tuple[int, ...], causal: bool) -> None:
    _, tensors, _ = calls("longformer", "none", causal, "positions", False, heads=2, width=WIDTH)
    options: dict[str, Any] = {"window": 60, "global_tokens": positions, "causal": causal}
    out, paths = paths_of(lambda: attend(*tensors, "longformer", **options))
    assert paths == ["plain" if causal and max(positions) > 1 else "flash"]
    torch.testing.assert_close(out, reference_attend(*tensors, "longformer", **options), atol=1e-12, rtol=0)


@pytest.mark.usefixtures("cuda_paths", "emulated_flash")
@pytest.mark.parametrize("own_tokens", [False, True])
def test_layers_of_a_union_share_one_plan(own_tokens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tensors, _ = calls("longformer", "none", False, "positions", False, heads=4, width=WIDTH)
    members = "longformer:window=40,global_tokens=0+3+longformer:window=60,global_tokens=0+5"
    module = build_mechanism("union", num_heads=4, head_dim=WIDTH, of=members).eval()
    made: list[Plan | str] = []
    make = flash_band._plan

    def counted(*arguments: Any) -> Plan | str:
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(flash_band, "_plan", counted)
    tokens = for_one_pass((torch.arange(700) % 90 == 7).expand(2, -1)) if own_tokens else None
    call = AttentionCall(batch=Batch.of(real_tokens("left")), global_mask=tokens)
    first, second = (module(*tensors, call) for _ in range(2))
    assert torch.equal(first, second)
    assert len(made) == 1


GLOBALS_LENGTH = 14
FORMS: dict[str, dict[str, Any]] = {
    "in front": {"global_positions": (0, 1)},
    "in front, causal": {"global_positions": (0, 1), "causal": True},
    "elsewhere": {"global_mask": torch.arange(GLOBALS_LENGTH) % 5 == 3},
    "elsewhere, columns alone": {"global_mask": torch.arange(GLOBALS_LENGTH) % 5 == 3, "rows": False},
}


def run(form: str, padded: bool, dropout: float, *tensors: Tensor) -> Tensor:
    """The output without padding; the same weights are dropped in every call."""
    torch.manual_seed(0)
    settings, batch = (
        dict(FORMS[form]),
        Batch.of(torch.arange(GLOBALS_LENGTH) >= torch.tensor([[0], [3]])) if padded else None,
    )
    causal = settings.get("causal", False)
    positions, tokens = settings.get("global_positions"), settings.get("global_mask")
    tokens = (torch.arange(GLOBALS_LENGTH) < 2 if tokens is None else tokens).expand(2, -1)
    tokens = tokens if batch is None else tokens.roll(3, 1) & batch.mask
    call = AttentionCall(causal, batch, tokens, positions, dropout=dropout)
    pattern = Pattern(2, 0 if causal else 2, causal, has_globals=True, global_rows=settings.get("rows", True))
    out = flash_band.flash_globals(*tensors, pattern, call)
    return out[:, :, 3:] if padded else out


@pytest.mark.usefixtures("emulated_flash")
@every_case(("form", "padded", "dropout"), list(itertools.product(FORMS, [False, True], [0.0, 0.4])))
def test_three_flash_calls_pass_gradcheck_with_dropout(form: str, padded: bool, dropout: float) -> None:
    torch.manual_seed(1)
    tensors = [
        torch.randn(2, heads, GLOBALS_LENGTH, WIDTH, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)
    ]
    assert torch.autograd.gradcheck(lambda *x: run(form, padded, dropout, *x), tensors, fast_mode=True)


@pytest.mark.usefixtures("emulated_flash")
@every_case("form", list(FORMS))
def test_dropout_of_three_flash_calls_removes_weights_and_scales_the_others(form: str) -> None:
    """With unit vectors as values, the output of a query is its weights."""
    q, k = (
        torch.randn(2, 4, GLOBALS_LENGTH, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 1)
    )
    v = torch.eye(GLOBALS_LENGTH, 16, dtype=torch.float64).expand(2, 4, -1, -1)
    whole, dropped = run(form, False, 0.0, q, k, v), run(form, False, 0.25, q, k, v)
    seen = whole > 1e-12
    assert ((dropped == 0) | torch.isclose(dropped, whole / 0.75)).all()
    assert (dropped[seen] == 0).double().mean() == pytest.approx(0.25, abs=0.05)


def test_lowered_scores_have_no_weight_in_half_precision() -> None:
    for dtype, scale in itertools.product((torch.bfloat16, torch.float16), (1e-4, 0.0625, 1.0)):
        q, k, v = (torch.zeros(3, 2, 64, dtype=dtype) for _ in range(3))
        marks = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1).expand(-1, -1, flash_band.FEATURES)
        queries, keys, values = flash_band._lowered(q, k, v, marks, scale)
        scores = torch.einsum("qhd,khd->hqk", queries.float(), keys.float()) * scale
        assert values.shape[-1] == 72
        assert (scores[..., [0, 2]] == 0).all()
        assert (scores[..., 1].exp() == 0).all()
