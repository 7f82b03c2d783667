"""flex_attention runs by a fused kernel or not at all: compiled on the CPU by backends that generate no code, or
stubbed."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.batch import Batch
from hf_longattn.engines.blockwise import blockwise_attention
from hf_longattn.engines.call import AttentionCall, Pattern
from hf_longattn.engines.cuda import flex, flex_kernel
from hf_longattn.engines.cuda.flex_kernel import MAX_KERNELS, Kernel, NoKernel
from hf_longattn.engines.score_terms import ScoreMod, as_term
from hf_longattn.families.deberta_v2 import disentangled
from hf_longattn.modeling import masks
from hf_longattn.positions.relative import CLASSES, build_relative
from tests.cases import every_case
from tests.comparisons import choices_of, paths_of

from .eager_flex import by_the_lists

PATTERN = Pattern.window(160, causal=True)


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[Kernel]:
    """No kernel is there before a test; all that it makes."""
    made: list[Kernel] = []

    def noted() -> Kernel:
        made.append(Kernel())
        return made[-1]

    monkeypatch.setattr(flex_kernel, "Kernel", noted)
    flex_kernel._kernel.cache_clear()
    flex_kernel.warn_once.cache_clear()
    # the CPU may train here
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    return made


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, torch.fx.GraphModule]]]:
    """Kernels are traced and guarded as on a GPU, and run as plain operations; all graphs, with the name of their
    kernel."""
    traced: list[tuple[str, torch.fx.GraphModule]] = []

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
            traced.append((function.__code__.co_name, graph))
            return graph.forward

        return torch.compile(function, dynamic=True, fullgraph=True, backend=backend)

    torch._dynamo.reset()
    monkeypatch.setattr(flex_kernel, "compiled", compiled)
    yield traced
    torch._dynamo.reset()


def stub(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> None:
    """All kernels run ``run(q, k, v, **settings)``."""
    monkeypatch.setattr(flex_kernel, "compiled", lambda _: run)


def tensors(
    batch: int = 2,
    heads: int = 4,
    length: int = 700,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    stored: str = "heads",
) -> list[Tensor]:
    """q, k, v ``(B, H, N, D)``, stored head by head, token by token, or as one packed projection stores them."""
    if stored == "heads":
        return [torch.randn(batch, heads, length, head_dim, dtype=dtype) for _ in range(3)]
    parts = torch.randn(batch, length, 3, heads, head_dim, dtype=dtype).unbind(2)
    return [(part if stored == "packed" else part.contiguous()).transpose(1, 2) for part in parts]


MODES: dict[str, Callable[[], Any]] = {
    "gradients": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}
SHAPES: dict[str, dict[str, Any]] = {
    "blocks": {},
    "more blocks": {"length": 1300},
    "two blocks": {"length": 250},
    "one block": {"length": 100},
    "another block": {"length": 77},
    "batch 1": {"batch": 1},
    "batch 6": {"batch": 6},
    "heads": {"heads": 12},
    "head width": {"head_dim": 64},
    "token-major": {"stored": "tokens"},
    "packed projection": {"stored": "packed"},
    "bf16": {"dtype": torch.bfloat16},
    "fp16": {"dtype": torch.float16},
    "double": {"dtype": torch.float64},
}


def run_band(
    mode: str, padded: bool = False, tokens: int | None = None, queries: int | None = None, **shape: Any
) -> Tensor:
    with MODES[mode]():
        q, k, v = (x.requires_grad_(mode == "gradients") for x in tensors(**shape))
        batch, length = len(k), k.shape[2]
        mask = torch.arange(length) < torch.tensor([[length]] * (batch - 1) + [[length - 30]]) if padded else None
        chosen = None if tokens is None else (torch.arange(length) < tokens).expand(batch, -1)
        pattern = Pattern.window(160, causal=True, has_globals=tokens is not None)
        return flex.flex_band(
            q[:, :, -(queries or length) :], k, v, pattern, AttentionCall(batch=Batch.of(mask), global_mask=chosen)
        )


def compiled_at_most(times: int, graphs: list[tuple[str, Any]]) -> bool:
    return max(Counter(name for name, _ in graphs).values()) <= times


EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"padded": True},
    "one global": {"tokens": 1},
    "globals": {"tokens": 4},
    "two blocks of globals": {"tokens": 70, "padded": True},
    "few queries": {"queries": 60},
}


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_changing_shapes_compile_no_flex_kernel_up_to_the_limit(extra: str, graphs: list[tuple[str, Any]]) -> None:
    for number, shape in enumerate(SHAPES.values()):
        for mode in (list(MODES)[number % 3], list(MODES)[(number + 1) % 3]):
            run_band(mode, **shape, **EXTRAS[extra])
    assert compiled_at_most(4, graphs)


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_paths")
def test_changing_lengths_compile_no_kernel_of_selected_blocks_up_to_the_limit(graphs: list[tuple[str, Any]]) -> None:
    """Nor one for every length. None runs uncompiled, which would be refused and left for plain operations."""

    def run(mode: str, padded: bool = False, **shape: Any) -> None:
        with MODES[mode]():
            q, k, v = (x.requires_grad_(mode == "gradients") for x in tensors(**shape))
            places = torch.arange(k.shape[2])
            mask = places < torch.tensor([[k.shape[2]]] * (len(k) - 1) + [[k.shape[2] - 30]]) if padded else None
            module = build_mechanism("block_top_k", num_heads=q.shape[1], head_dim=q.shape[3], num_blocks=2).eval()
            attend(q, k, v, module, causal=True, padding_mask=mask)

    def run_all() -> None:
        for length in (700, 1000):
            run("no_grad", length=length)
        of_lengths = len(graphs)
        for length in (800, 930, 1100):
            run("no_grad", length=length)
        assert len(graphs) == of_lengths
        for number, shape in enumerate(("batch 1", "heads", "head width", "token-major", "bf16")):
            run(list(MODES)[number % 3], padded=number % 2 == 1, **SHAPES[shape])

    _, paths = paths_of(run_all)
    assert compiled_at_most(4, graphs)
    assert {path for path in paths if path.startswith(("flex", "plain", "tiles"))} == {"flex"}


@pytest.mark.thorough
@pytest.mark.usefixtures("cuda_paths", "graphs")
def test_a_flex_kernel_at_the_limit_is_left_for_plain_operations(caplog: pytest.LogCaptureFixture) -> None:
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1):
        for length, path in ((300, "flex"), (800, "plain"), (1300, "plain")):
            q, k, v = tensors(length=length)
            out, (choice,) = choices_of(lambda: attend(q, k, v, "window", window=160, causal=True))  # noqa: B023
            expected = blockwise_attention(q, k, v, PATTERN, AttentionCall())
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
            assert choice.path == path
    assert dict(choice.refused)["flex"] == "Dynamo recompile limit exceeded"
    (warning,) = [record.getMessage() for record in caplog.records if record.name == flex_kernel.__name__]
    assert "heads of 16 in float32 on cpu (Dynamo recompile limit exceeded)" in warning


def test_flex_attention_never_runs_uncompiled(kernels: list[Kernel]) -> None:
    with torch.compiler.set_stance("force_eager"), pytest.raises(NoKernel, match="turned off"):
        flex.flex_band(*tensors(length=300), PATTERN, AttentionCall())
    assert [kernel.refusal for kernel in kernels] == [None], "it may be turned on again"


REFUSALS = [
    NotImplementedError(
        "NYI: embedding dimension of the query, key, and value must be at least 16 but got E=8 and Ev=8"
    ),
    RuntimeError("Cannot find a working triton installation. Either the package is not installed or it is too old."),
    RuntimeError(
        "No valid triton configs. OutOfMemoryError: out of resource: triton_tem_fused_0 Required: 270000 Hardware "
        "limit:232448"
    ),
    RuntimeError(
        "ptxas error: Feature '.bf16' requires .target sm_80 or higher; bfloat16 is not supported on compute "
        "capability 7.0"
    ),
    torch._dynamo.exc.BackendCompilerFailed(print, KeyError("a bug of a compiler"), []),
]


@pytest.mark.usefixtures("cuda_paths")
@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", ["window", "longformer", "bigbird"])
def test_a_flex_kernel_that_refuses_is_left_for_plain_operations(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Plain operations run in its place, from then on without a try, and a warning says so once."""
    tries = []

    def refuses(*_: Any, **__: Any) -> None:
        tries.append(1)
        raise error

    stub(monkeypatch, refuses)
    q, k, v = tensors(length=300)
    module = build_mechanism(name, num_heads=4, head_dim=16).eval()
    with torch.no_grad():
        first, second = attend(q, k, v, module), attend(q, k, v, module)
    torch.testing.assert_close(first.double(), reference_attend(q, k, v, module), atol=1e-5, rtol=0)
    assert first.equal(second)
    assert len(caplog.records) <= 1
    assert len(tries) == len(caplog.records) * (2 if "out of resource" in str(error) else 1)


@pytest.mark.usefixtures("cuda_paths")
def test_a_flex_kernel_without_shared_memory_loads_no_block_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a table of distances needs on an H100: without a warning, and from then on at once."""
    options = []

    def refuses(*arguments: Any, kernel_options: dict[str, int] | None = None, **settings: Any) -> Any:
        options.append(kernel_options)
        if kernel_options is None:
            raise REFUSALS[2]
        return by_the_lists(None, *arguments, **settings)

    stub(monkeypatch, refuses)
    q, k, v = tensors(length=300)
    module = build_mechanism("window", num_heads=4, head_dim=16, window=32).eval()
    with torch.no_grad():
        first, second = attend(q, k, v, module), attend(q, k, v, module)
    torch.testing.assert_close(first.double(), reference_attend(q, k, v, module), atol=1e-5, rtol=0)
    assert first.equal(second)
    assert options == [None, {"num_stages": 1}, {"num_stages": 1}]


@pytest.mark.usefixtures("cuda_paths")
def test_full_attention_without_a_flex_kernel_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of queries with all keys would take as much memory, and more time."""

    def refuses(*_: Any, **__: Any) -> None:
        raise REFUSALS[1]

    stub(monkeypatch, refuses)
    q, k, v = tensors(length=300)
    with torch.no_grad():
        _, paths = paths_of(lambda: attend(q, k, v, "full", score_mod=lambda score, b, h, i, j: score.tanh()))
    assert paths == ["dense"]


@every_case("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("a wrong shape"), MemoryError()])
@every_case("wrapped", [False, True])
def test_errors_that_are_not_of_the_flex_kernel_are_raised(
    error: Exception, wrapped: bool, monkeypatch: pytest.MonkeyPatch, kernels: list[Kernel]
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        if wrapped and not isinstance(error, RuntimeError | MemoryError):
            raise RuntimeError("the backend does not support this") from error
        raise error

    stub(monkeypatch, fails)
    with torch.no_grad(), pytest.raises((type(error), RuntimeError)):
        flex.flex_band(*tensors(length=300), PATTERN, AttentionCall())
    assert all(kernel.refusal is None for kernel in kernels)


class _Backward(torch.autograd.Function):
    """Attention whose backward pass raises ``error``, if there is one, and counts."""

    error: Exception | None = None
    runs = 0

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return q + k + v

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _Backward.runs += 1
        if _Backward.error is not None:
            raise _Backward.error
        return grad, grad, grad


def sums(*tensors: Tensor, **_: Any) -> Tensor:
    return _Backward.apply(*tensors)


@pytest.fixture
def backward(monkeypatch: pytest.MonkeyPatch) -> type[_Backward]:
    monkeypatch.setattr(_Backward, "runs", 0)
    stub(monkeypatch, sums)
    return _Backward


def test_a_refusing_flex_backward_pass_is_seen_in_the_forward_pass(
    backward: type[_Backward], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward, "error", REFUSALS[2])
    q, k, v = tensors(length=300)
    flex.flex_band(q, k, v, PATTERN, AttentionCall())
    with pytest.raises(NoKernel, match="No valid triton configs"):
        flex.flex_band(q.requires_grad_(), k, v, PATTERN, AttentionCall())
    flex.flex_band(q.detach(), k, v, PATTERN, AttentionCall())


def test_the_backward_pass_of_a_flex_kernel_is_tried_once(backward: type[_Backward]) -> None:
    """Also within a checkpoint, which counts what is saved and must not see it."""
    q, k, v = (x.requires_grad_() for x in tensors(length=300))

    def layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex.flex_band(q, k, v, PATTERN, AttentionCall()).tanh()

    for tried in (1, 0):
        backward.runs = 0
        checkpoint(layer, q, k, v, use_reentrant=False).sum().backward()
        assert backward.runs == 1 + tried


def test_a_try_of_a_flex_kernel_that_lacks_memory_changes_nothing(
    backward: type[_Backward], monkeypatch: pytest.MonkeyPatch, kernels: list[Kernel]
) -> None:
    """A forward pass may fit without the backward pass, which nobody may want."""
    monkeypatch.setattr(backward, "error", torch.OutOfMemoryError("CUDA out of memory"))
    flex.flex_band(*(x.requires_grad_() for x in tensors(length=300)), PATTERN, AttentionCall())
    assert not any(kernel.has_backward or kernel.refusal for kernel in kernels)


def test_flex_kernels_are_bounded_and_freed(monkeypatch: pytest.MonkeyPatch, kernels: list[Kernel]) -> None:
    monkeypatch.setattr(
        flex_kernel,
        "compiled",
        lambda function: torch.compile(function, backend="eager", dynamic=True, fullgraph=True),
    )
    for window in (*range(MAX_KERNELS), 0, MAX_KERNELS):
        flex_kernel._kernel(window)
    codes = [weakref.ref(kernel.run._torchdynamo_orig_callable.__code__) for kernel in kernels]
    kernels.clear()
    gc.collect()
    assert [window for window, code in enumerate(codes) if code() is None] == [1]


def test_a_users_graph_holds_flex_attention_itself(graphs: list[tuple[str, Any]], kernels: list[Kernel]) -> None:
    with torch.no_grad():
        torch.compile(lambda *x: flex.flex_band(*x, PATTERN, AttentionCall()), backend="eager", fullgraph=True)(
            *tensors(length=300)
        )
    assert not graphs
    assert not kernels


@pytest.mark.thorough
@pytest.mark.parametrize(
    "score_mod",
    [
        masks.score_terms(None, None, 30.0, torch.empty(1, 4, 300, 16), 300),
        lambda score, b, h, i, j: score - FACTOR * (i - j),
    ],
    ids=["softcap", "global"],
)
def test_python_numbers_are_constants_of_a_flex_kernel(
    score_mod: ScoreMod, graphs: list[tuple[str, torch.fx.GraphModule]]
) -> None:
    """As tensors on the CPU, which they are in a graph for all lengths, no GPU kernel takes them."""
    q, k, v = tensors(length=300)
    with torch.no_grad():
        out = flex.flex_band(q, k, v, PATTERN, AttentionCall(score_mod=score_mod))
    torch.testing.assert_close(
        out, blockwise_attention(q, k, v, PATTERN, AttentionCall(score_mod=score_mod)), atol=1e-5, rtol=0
    )
    ((_, graph),) = graphs
    assert not [node for node in graph.graph.nodes if node.name.startswith(("item", "_local_scalar"))]
    assert not [
        node
        for node in graph.graph.nodes
        if node.op == "placeholder" and isinstance(node.meta.get("example_value"), torch.SymFloat)
    ]


FACTOR = 0.25


def held(value: Any) -> Iterator[Any]:
    """What the closure of a function or the fields of an object hold, and what these hold."""
    inner = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    inner += list(value) if isinstance(value, list | tuple) else []
    inner += (
        []
        if isinstance(value, Tensor | torch.nn.Module | type)
        else list(vars(value).values() if hasattr(value, "__dict__") else ())
    )
    for one in inner:
        yield one
        yield from held(one)


def score_terms(device: str) -> Iterator[tuple[str, ScoreMod]]:
    q, k = (torch.empty(2, heads, 300, 16, device=device) for heads in (4, 2))
    yield "softcap", masks.score_terms(None, torch.empty(1, 4, 1, 300, device=device), 30.0, q, 300)
    for name in sorted(set(CLASSES) - {"self_extend"}):
        yield name, build_relative(name, 4, 16, 64).to(device).score_term(q, k, True, 0.25, (64, 0)).written_out
    tables = [torch.empty(4, 8, 16, device=device) for _ in range(2)]
    yield "deberta", disentangled(q, q, *tables, 0.25, torch.zeros(15, dtype=torch.long, device=device))


@every_case("of_heads", [False, True])
@every_case(("name", "term"), list(score_terms("meta")), ids=lambda value: value if isinstance(value, str) else "")
def test_score_terms_hold_tensors_of_the_queries_device_alone(name: str, term: ScoreMod, of_heads: bool) -> None:
    """In a graph of the user's own there is no other way: a number from a closure would be a tensor on the CPU."""
    mod = as_term(term).of_heads([1, 3], torch.device("meta")) if of_heads else term
    parts = list(held(mod))
    assert {part.device.type for part in parts if isinstance(part, Tensor)} == {"meta"}
    assert not [part for part in parts if isinstance(part, float)]
