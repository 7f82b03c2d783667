"""flex_attention where there is no GPU: its block lists, and the CUDA paths on the CPU's kernel, also compiled, at changing lengths.

The CPU's compiled kernel has no backward pass and no log-sum-exp: training, and global columns outside of a graph, which are merged by it,
are tested uncompiled only.
"""

from __future__ import annotations

import itertools
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, BlockMask

from hf_longattn import build_mechanism, list_mechanisms
from hf_longattn.attend import run_batch
from hf_longattn.engines import dispatch, flex
from hf_longattn.engines.batch import Batch
from hf_longattn.engines.byte_cache import KEPT
from hf_longattn.engines.call import AttentionCall, GatherTile, Pattern, rows_of
from hf_longattn.engines.flex import BLOCK, Lists, band_block_mask, packed, transposed
from hf_longattn.engines.plain import blockwise_attention, plain_gathered
from hf_longattn.mechanisms.registry import mechanism_class


def pairs(lists: Lists, item: int = 0, head: int = 0) -> list[tuple[int, int]]:
    """What the lists say, as sorted (row, block)."""
    counts, indices = (x[item % x.shape[0], head % x.shape[1]] for x in lists)
    return sorted((row, int(block)) for row, count in enumerate(counts.tolist()) for block in indices[row, :count])


@pytest.mark.parametrize(
    ("left", "right", "q_len", "kv_len", "padded"),
    [
        *itertools.product([0, 64, 128, 700], [0, 64, 300], [1000], [1000], [False]),
        *[(200, 0, 300, 1000, True), (64, 64, 1000, 1000, True), (5000, 0, 640, 640, False)],
    ],
)
def test_band_lists_are_the_blocks_of_the_band(left: int, right: int, q_len: int, kv_len: int, padded: bool) -> None:
    pattern = Pattern(left, right, right == 0)
    mask = torch.ones(1, kv_len, dtype=torch.bool)
    mask[:, 256:520] = not padded
    found = band_block_mask(pattern, q_len, kv_len, mask if padded else None, mask.device)
    q_idx, kv_idx = torch.arange(q_len)[:, None] + kv_len - q_len, torch.arange(kv_len)[None]
    seen = pattern.band_mod(0, 0, q_idx, kv_idx) & mask
    missing = (0, -kv_len % BLOCK, 0, -q_len % BLOCK)
    blocks = torch.nn.functional.pad(seen, missing).unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    full = [tuple(x) for x in blocks.all(3).all(1).nonzero().tolist()]
    touched = [tuple(x) for x in blocks.any(3).any(1).nonzero().tolist()]
    by_query = pairs((found.kv_num_blocks, found.kv_indices)), pairs((found.full_kv_num_blocks, found.full_kv_indices))
    by_key = pairs((found.q_num_blocks, found.q_indices)), pairs((found.full_q_num_blocks, found.full_q_indices))
    assert by_query[1] == full
    assert set(touched) - set(full) <= set(by_query[0])
    if not padded:
        assert sorted(by_query[0] + by_query[1]) == touched
    assert tuple(sorted((j, i) for i, j in x) for x in by_key) == by_query


def test_band_lists_of_a_million_tokens_are_small() -> None:
    found = band_block_mask(Pattern.window(512, causal=False), 1 << 20, 1 << 20, None, torch.device("cpu"))
    for indices in (found.kv_indices, found.q_indices, found.full_kv_indices, found.full_q_indices):
        assert indices.shape == (1, 1, 8192, 6)


def test_lists_seen_from_the_other_side() -> None:
    torch.manual_seed(0)
    lists = packed(torch.rand(2, 3, 7, 4) < 0.6, torch.randint(0, 9, (2, 3, 7, 4)))
    other = transposed(lists, 9)
    for item, head in itertools.product(range(2), range(3)):
        assert pairs(other, item, head) == sorted((block, row) for row, block in pairs(lists, item, head))


def whole_blocks(length: int, size: int, keys: Tensor) -> Tensor:
    """Key blocks ``(…, R, n)`` as lists of positions."""
    places = (keys[..., None] * size + torch.arange(size)).flatten(-2)
    return torch.where((places < length) & (keys >= 0).repeat_interleave(size, -1), places, -1)


def test_only_parts_of_whole_blocks_are_listed() -> None:
    rows = rows_of(300, 64)
    keys = whole_blocks(300, 64, torch.tensor([[0, 4], [1, -1], [3, 1], [2, 3], [4, 0]])[None, None])
    size, lists = flex.block_lists(GatherTile(rows, keys), 300, 300)
    assert size == 64
    assert pairs(lists) == [(0, 0), (0, 4), (1, 1), (2, 1), (2, 3), (3, 2), (3, 3), (4, 0), (4, 4)]
    for queries, others in ((rows_of(300, 48), keys[:, :, :1]), (rows, keys + 1), (rows, keys.flip(-1)), (rows + 1, keys)):
        assert flex.block_lists(GatherTile(queries, others), 300, 300) is None
    assert flex.block_lists(GatherTile(rows, keys, bias=torch.ones(1, 1, 1, 1, 128, dtype=torch.bool)), 300, 300) is None


def cases() -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    mask = torch.ones(2, 200, dtype=torch.bool)
    mask[0, 150:] = False
    return [torch.randn(2, 2, 200, 16) for _ in range(3)], mask


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_rules_and_merging_equal_the_plain_path() -> None:
    """Uncompiled, flex_attention reads the rules alone, not the lists; these parts list every block."""
    (q, k, v), mask = cases()
    rows = rows_of(200, 32)
    keys = whole_blocks(200, 32, torch.arange(7).expand(1, 1, 7, 7))
    parts = [GatherTile(rows, keys, causal=True, inside=(0, 40)), GatherTile(rows, keys, outside=(-60, 60))]
    call = AttentionCall(batch=Batch.of(mask), scale=0.3, score_mod=lambda score, b, h, i, j: score - 0.02 * (i - j).abs())
    out = flex.flex_gathered(q, k, v, parts, call)
    torch.testing.assert_close(out, plain_gathered(q, k, v, parts, call), atol=1e-5, rtol=0)


def by_the_lists(q: Tensor, k: Tensor, v: Tensor, *, block_mask: BlockMask, scale: float, **_: Any) -> Any:
    """What the compiled kernel computes: softmax over the pairs of the listed blocks that the rules leave, block for block."""
    size = block_mask.BLOCK_SIZE[0]
    scores = (q @ k.transpose(-1, -2)) * scale
    met = torch.zeros_like(scores)
    for b, h in itertools.product(range(q.shape[0]), range(q.shape[1])):
        for row, block in pairs((block_mask.kv_num_blocks, block_mask.kv_indices), b, h):
            met[b, h, row * size : (row + 1) * size, block * size : (block + 1) * size] += 1
    places = (torch.arange(n).view(shape) for n, shape in zip(scores.shape, ((-1, 1, 1, 1), (-1, 1, 1), (-1, 1), (-1,)), strict=True))
    met = met * block_mask.mask_mod(*places)
    lse = (scores + met.log()).logsumexp(-1)
    out = met * (scores - lse.masked_fill(lse.isinf(), 0)[..., None]).exp() @ v
    return out, AuxOutput(lse=lse)


def test_every_listed_block_is_visited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "kernel", lambda *_: by_the_lists)
    (q, k, v), mask = cases()
    call = AttentionCall(batch=Batch.of(mask), scale=0.3)
    blocks = torch.where(torch.rand(2, 2, 4, 3) < 0.7, torch.rand(2, 2, 4, 4).argsort(-1)[..., :3], -1)
    rows = rows_of(200, 64)
    parts = [GatherTile(rows, whole_blocks(200, 64, blocks), outside=(3, 20)), GatherTile(rows, rows, causal=True)]
    out = flex.flex_gathered(q, k, v, parts, call)
    assert out is not None
    torch.testing.assert_close(out, plain_gathered(q, k, v, parts, call), atol=1e-5, rtol=0)


def test_a_kernel_that_is_not_supported_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """For blocks of that kind alone; other blocks are tried."""
    tried = []

    def broken(*_: Any, block_mask: BlockMask, **__: Any) -> None:
        tried.append(block_mask.BLOCK_SIZE[0])
        raise RuntimeError("BACKEND: blocks of 32 are not supported\nand a long trace")

    monkeypatch.setattr(flex, "kernel", lambda *_: broken)
    monkeypatch.setattr(flex, "_unsupported", set())
    (q, k, v), _ = cases()
    for _ in range(2):
        for size in (32, 64):
            part = GatherTile(rows_of(200, size), rows_of(200, size))
            assert flex.flex_gathered(q, k, v, [part], AttentionCall()) is None
    assert tried == [32, 64]
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        f"flex_attention does not support blocks of {size} here" for size in (32, 64)
    ]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("illegal memory access"), MemoryError()])
def test_other_errors_are_the_caller_s_and_change_nothing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    (q, k, v), _ = cases()
    part = GatherTile(rows_of(200, 32), rows_of(200, 32))

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("the backend does not support this") from error

    monkeypatch.setattr(flex, "_unsupported", set())
    monkeypatch.setattr(flex, "kernel", lambda *_: fails if not isinstance(error, RuntimeError) else _raising(error))
    with pytest.raises(type(error) if isinstance(error, RuntimeError) else RuntimeError):
        flex.flex_gathered(q, k, v, [part], AttentionCall())
    assert not flex._unsupported


def _raising(error: Exception) -> Any:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    return fails


PATTERN = Pattern.window(160, causal=True)


def band(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, tokens: Tensor | None = None) -> Tensor:
    return flex.flex_band(q, k, v, PATTERN, AttentionCall(batch=Batch.of(mask), global_mask=tokens, scale=0.25))


def inputs(length: int) -> list[Tensor]:
    return list(torch.randn(3, 2, 2, length, 16, generator=torch.Generator().manual_seed(length)))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("globals_", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_lengths_change_under_one_compiled_callable(backend: str, globals_: bool, padded: bool) -> None:
    """Also with global tokens, whose number depends on the data, which a graph cannot hold: it lists their blocks."""
    torch._dynamo.reset()
    compiled = torch.compile(band, backend=backend, dynamic=True, fullgraph=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lru_cache.*")
        for length in (300, 700, 513, 300):
            mask = torch.arange(length) < torch.tensor([[length], [length - 37]]) if padded else None
            tokens = torch.arange(length) % 290 == torch.tensor([[3], [length]]) if globals_ else None
            try:
                found = compiled(*inputs(length), mask, tokens)
            except torch._inductor.exc.InductorError as error:
                if not re.search(r"cur_(q|kv)SplitSize\d", str(error)):
                    raise
                pytest.xfail("PyTorch's CPU template renames the size ks1 within ks17 too, which does not compile; we run the band engine")
            expected = blockwise_attention(*inputs(length), PATTERN, AttentionCall(batch=Batch.of(mask), global_mask=tokens, scale=0.25))
            real = torch.ones(2, length, dtype=torch.bool) if mask is None else mask
            torch.testing.assert_close(found * real[:, None, :, None], expected * real[:, None, :, None], atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("global_rows", [False, True])
@pytest.mark.parametrize("q_len", [700, 130])
def test_global_tokens_in_a_graph_and_outside_of_it(q_len: int, global_rows: bool, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = Pattern(70, 0 if causal else 70, causal, has_globals=True, global_rows=global_rows)
    q, k, v = inputs(700)
    tokens = torch.arange(700) % 290 == torch.tensor([[3], [200]])
    mask = torch.arange(700) < torch.tensor([[700], [650]])
    call = AttentionCall(causal, Batch.of(mask), tokens, 0.25)
    eager = flex.flex_band(q[:, :, -q_len:], k, v, pattern, call)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    in_graph = flex.flex_band(q[:, :, -q_len:], k, v, pattern, call)
    real = mask[:, None, -q_len:, None]
    torch.testing.assert_close(in_graph * real, eager * real, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_mask_of_a_shape_is_made_once_for_all_layers() -> None:
    KEPT.clear()
    made = [flex.kept_band_block_mask(PATTERN, 300, 300, None, torch.device("cpu")) for _ in range(24)]
    assert all(mask is made[0] for mask in made)
    mask = torch.ones(2, 300, dtype=torch.bool)
    assert flex.kept_band_block_mask(PATTERN, 300, 300, mask, torch.device("cpu")) is not made[0]
    torch.testing.assert_close(band(*inputs(300)), band(*inputs(300), mask), atol=1e-6, rtol=0)


def test_every_kind_of_call_has_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch counts what it compiles by code and stops at a limit: many windows in one process must not share one."""
    torch._dynamo.reset()
    counts = torch._dynamo.utils.counters
    monkeypatch.setattr(flex, "_kernels", {})
    made = flex.compiled_kernel
    monkeypatch.setattr(flex, "compiled_kernel", lambda number: made(number, backend="aot_eager"))
    q, k, v = inputs(130)
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for window in range(20, 90, 10):
            pattern = Pattern.window(window, causal=True)
            mask = flex.band_block_mask(pattern, 130, 130, None, q.device)
            kernel = flex.kernel("cuda", ("band", pattern))
            assert kernel is flex.kernel("cuda", ("band", pattern))
            expected = blockwise_attention(q, k, v, pattern, AttentionCall(scale=0.25))
            torch.testing.assert_close(kernel(q, k, v, block_mask=mask, scale=0.25), expected, atol=1e-5, rtol=0)
    assert len(flex._kernels) == 7
    assert counts is not None


def test_kernels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_kernels", {})
    monkeypatch.setattr(flex, "compiled_kernel", lambda number: number)
    for window in range(500):
        flex.kernel("cuda", window)
    assert len(flex._kernels) == flex.MOST_KERNELS + 1


def test_a_graph_that_is_being_compiled_takes_flex_attention_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert flex.kernel("cuda", "any") is flex.flex_attention


def test_what_a_call_without_gradients_made_serves_one_with_gradients() -> None:
    """Tensors made under inference mode cannot be saved for a backward pass."""
    part = GatherTile(*(torch.arange(256).view(1, 1, 2, 128) for _ in range(2)))
    with torch.inference_mode():
        mask = flex.kept_band_block_mask(PATTERN, 384, 384, None, torch.device("cpu"))
        found = flex.kept_block_lists(part, 256, 256)
    assert found is not None
    assert flex.kept_band_block_mask(PATTERN, 384, 384, None, torch.device("cpu")) is mask
    assert flex.kept_block_lists(part, 256, 256) is found
    assert not any(x.is_inference() for x in (*found[1], *(x for x in vars(mask).values() if isinstance(x, torch.Tensor))))


@pytest.fixture
def paths_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dispatcher's table without the CPU's paths, and with those for CUDA on every device."""
    monkeypatch.setattr(dispatch, "_not_on", lambda device, facts: None)
    for kind, paths in dispatch.PATHS.items():
        monkeypatch.setitem(dispatch.PATHS, kind, tuple(path for path in paths if not path[0].startswith("cpu")))


@pytest.mark.slow
@pytest.mark.usefixtures("paths_for_cuda")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", [name for engine in ("block_sparse", "gathered") for name in list_mechanisms(engine=engine)])
def test_mechanisms_on_the_paths_for_cuda(name: str, causal: bool) -> None:
    """In one whole graph, too: nothing there may depend on how many tokens are global."""
    options = {"window": 64} if "window" in mechanism_class(name).sample else mechanism_class(name).sample
    module = build_mechanism(name, num_heads=2, head_dim=16, **options).eval()
    q, k, v = inputs(300)
    mask = torch.arange(300) < torch.tensor([[300], [250]])
    # lsg looks at how many tokens are global, on every device: with a mask of them it is no whole graph.
    tokens = torch.arange(300).expand(2, -1) % 97 == 3 if module.takes_globals and name != "lsg" else None
    call = AttentionCall(causal, Batch.of(mask), tokens)
    expected = run_batch(module, q.double(), k.double(), v.double(), call, module.reference, alone=True) * mask[:, None, :, None]
    torch._dynamo.reset()
    with torch.no_grad():
        for run in (run_batch, torch.compile(run_batch, backend="aot_eager", fullgraph=True)):
            torch.testing.assert_close(run(module, q, k, v, call).double() * mask[:, None, :, None], expected, atol=1e-5, rtol=0)
