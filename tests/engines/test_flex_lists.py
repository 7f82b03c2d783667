"""Block lists for flex_attention: exactly the blocks that a pattern touches, from both sides, in linear memory."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, BlockMask

from hf_longattn.engines import flex_gathered
from hf_longattn.engines.block_lists import Lists, packed, transposed
from hf_longattn.engines.flex import BLOCK, band_block_mask
from hf_longattn.engines.gathered_plain import plain_gathered
from hf_longattn.engines.parts import Part, rows_of
from hf_longattn.engines.pattern import Pattern


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
    size, lists = flex_gathered.block_lists(Part(rows, keys), 300, 300)
    assert size == 64
    assert pairs(lists) == [(0, 0), (0, 4), (1, 1), (2, 1), (2, 3), (3, 2), (3, 3), (4, 0), (4, 4)]
    for queries, others in ((rows_of(300, 48), keys[:, :, :1]), (rows, keys + 1), (rows, keys.flip(-1)), (rows + 1, keys)):
        assert flex_gathered.block_lists(Part(queries, others), 300, 300) is None
    assert flex_gathered.block_lists(Part(rows, keys, bias=torch.ones(1, 1, 1, 1, 128, dtype=torch.bool)), 300, 300) is None


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
    parts = [Part(rows, keys, causal=True, inside=(0, 40)), Part(rows, keys, outside=(-60, 60))]
    arguments: dict[str, Any] = {"key_mask": mask, "scale": 0.3, "score_mod": lambda score, b, h, i, j: score - 0.02 * (i - j).abs()}
    out = flex_gathered.flex_gathered(q, k, v, parts, **arguments)
    torch.testing.assert_close(out, plain_gathered(q, k, v, parts, **arguments), atol=1e-5, rtol=0)


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
    monkeypatch.setattr(flex_gathered, "kernel", lambda *_: by_the_lists)
    (q, k, v), mask = cases()
    blocks = torch.where(torch.rand(2, 2, 4, 3) < 0.7, torch.rand(2, 2, 4, 4).argsort(-1)[..., :3], -1)
    rows = rows_of(200, 64)
    parts = [Part(rows, whole_blocks(200, 64, blocks), outside=(3, 20)), Part(rows, rows, causal=True)]
    out = flex_gathered.flex_gathered(q, k, v, parts, key_mask=mask, scale=0.3)
    assert out is not None
    torch.testing.assert_close(out, plain_gathered(q, k, v, parts, key_mask=mask, scale=0.3), atol=1e-5, rtol=0)


def test_a_kernel_that_is_not_supported_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """For blocks of that kind alone; other blocks are tried."""
    tried = []

    def broken(*_: Any, block_mask: BlockMask, **__: Any) -> None:
        tried.append(block_mask.BLOCK_SIZE[0])
        raise RuntimeError("BACKEND: blocks of 32 are not supported\nand a long trace")

    monkeypatch.setattr(flex_gathered, "kernel", lambda *_: broken)
    monkeypatch.setattr(flex_gathered, "_unsupported", set())
    (q, k, v), _ = cases()
    for _ in range(2):
        for size in (32, 64):
            part = Part(rows_of(200, size), rows_of(200, size))
            assert flex_gathered.flex_gathered(q, k, v, [part], key_mask=None, scale=0.3) is None
    assert tried == [32, 64]
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        f"flex_attention does not support blocks of {size} here" for size in (32, 64)
    ]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("illegal memory access"), MemoryError()])
def test_other_errors_are_the_caller_s_and_change_nothing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    (q, k, v), _ = cases()
    part = Part(rows_of(200, 32), rows_of(200, 32))

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("the backend does not support this") from error

    monkeypatch.setattr(flex_gathered, "_unsupported", set())
    monkeypatch.setattr(flex_gathered, "kernel", lambda *_: fails if not isinstance(error, RuntimeError) else _raising(error))
    with pytest.raises(type(error) if isinstance(error, RuntimeError) else RuntimeError):
        flex_gathered.flex_gathered(q, k, v, [part], key_mask=None, scale=0.3)
    assert not flex_gathered._unsupported


def _raising(error: Exception) -> Any:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    return fails
