"""Tiles by flex_attention without a GPU: emulated kernels against the plain path and the definitions, forward and
backward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput

from hf_longattn import attend, build_mechanism, list_mechanisms
from hf_longattn.engines.batch import Batch
from hf_longattn.engines.blockwise import plain_gathered
from hf_longattn.engines.call import AttentionCall, GatherTile, as_fixed, rows_of
from hf_longattn.engines.cuda import flex, flex_tiles
from hf_longattn.engines.dense import repeat_heads
from hf_longattn.engines.dispatch import observe
from hf_longattn.mechanisms.common.capabilities import reads_grid
from tests.cases import every_case
from tests.grids import pairwise, quickly

from .eager_flex import by_the_lists
from .launches import Counting

LENGTH = 300


def neighbours(rows: Tensor, before: int, after: int) -> Tensor:
    """Rows with some keys on both sides."""
    places = rows[..., :1] + torch.arange(-before, rows.shape[-1] + after)
    return torch.where((places >= 0) & (places < LENGTH), places, -1)


def shuffled(*shape: int) -> Tensor:
    """Different positions in every row of ``(…, T)``, a quarter of the slots empty."""
    places = torch.rand(*shape[:-1], LENGTH).argsort(-1)[..., : shape[-1]]
    return torch.where(torch.rand(shape) < 0.25, -1, places)


def permuted(batch: int, heads: int, size: int) -> Tensor:
    """All queries in rows, in another order for every item and head."""
    order = torch.rand(batch, heads, LENGTH).argsort(-1)
    return torch.nn.functional.pad(order, (0, -LENGTH % size), value=-1).unflatten(-1, (-1, size))


TILES: dict[str, Callable[[], list[GatherTile]]] = {
    "in order, odd widths": lambda: [GatherTile(rows_of(LENGTH, 50), neighbours(rows_of(LENGTH, 50), 20, 7))],
    "whole blocks and others": lambda: [
        GatherTile(rows_of(LENGTH, 128), rows_of(LENGTH, 128), causal=True),
        GatherTile(rows_of(LENGTH, 30), torch.arange(3, LENGTH, 17).expand(1, 1, 10, -1), outside=(-60, 60)),
    ],
    "blocks in two tiles": lambda: [
        GatherTile(rows_of(LENGTH, 128)[:, :, :2], rows_of(LENGTH, 128)[:, :, :2]),
        GatherTile(rows_of(LENGTH, 128)[:, :, 2:], rows_of(LENGTH, 128)[:, :, 1:2]),
    ],
    "odd rows one after the other": lambda: [
        GatherTile(rows_of(LENGTH, 50)[:, :, :2], torch.arange(200).expand(1, 1, 2, -1), causal=True),
        GatherTile(rows_of(LENGTH, 50)[:, :, 2:], torch.arange(3, LENGTH).expand(1, 1, 4, -1), causal=True),
    ],
    "rules": lambda: [
        GatherTile(
            rows_of(LENGTH, 150),
            neighbours(rows_of(LENGTH, 150), 200, 200),
            causal=True,
            inside=(-5, 170),
            outside=(20, 100),
        )
    ],
    "by heads": lambda: [GatherTile(permuted(1, 4, 20), shuffled(1, 4, 15, 33))],
    "by items": lambda: [GatherTile(permuted(2, 1, 140), shuffled(2, 1, 3, 70), causal=True)],
    "whole queries backwards, odd keys": lambda: [
        GatherTile(rows_of(LENGTH, 128).flip(2), shuffled(1, 1, 3, 40)),
        GatherTile(rows_of(LENGTH, 128)[:, :, 1:], shuffled(1, 1, 2, 150)),
    ],
    "odd queries, whole keys by heads": lambda: [
        GatherTile(rows_of(LENGTH, 96), rows_of(LENGTH, 128)[0, 0, torch.randint(3, (1, 4, 4))], outside=(-9, 9))
    ],
    "short rows with hidden pairs": lambda: [
        GatherTile(rows_of(LENGTH, 64), rows_of(LENGTH, 64), bias=torch.rand(1, 4, 5, 64, 64) < 0.6)
    ],
    "hidden pairs": lambda: [
        GatherTile(permuted(2, 4, 16), shuffled(2, 4, 19, 24), bias=torch.rand(2, 4, 19, 16, 24) < 0.6)
    ],
    "weights of keys": lambda: [
        GatherTile(rows_of(LENGTH, 64), shuffled(1, 1, 5, 40), bias=torch.randn(1, 1, 5, 1, 40))
    ],
    "one row for all": lambda: [
        GatherTile(torch.arange(LENGTH).view(1, 1, 1, -1), torch.tensor([3, 299]).view(1, 1, 1, -1)),
        GatherTile(torch.tensor([4, 9]).view(1, 1, 1, -1), torch.arange(LENGTH).view(1, 1, 1, -1)),
    ],
    "rows of a few": lambda: [
        GatherTile(rows_of(LENGTH, 3), neighbours(rows_of(LENGTH, 3), 2, 2)),
        GatherTile(rows_of(LENGTH, 60), neighbours(rows_of(LENGTH, 60), 0, 9)),
    ],
}


@pytest.mark.slow
@every_case(
    ("name", "kept", "padded"),
    pairwise(list(TILES), [False, True], [False, True]),
    of=9,
    code=lambda name, *rest: name,
)
def test_every_tile_of_flex_attention_equals_the_plain_path(
    name: str, kept: bool, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and gradients in float64, with grouped heads and a score term that reads positions."""
    monkeypatch.setattr(flex, "fused_flex", by_the_lists)
    torch.manual_seed(0)
    tiles = TILES[name]()
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 70]])
    call = AttentionCall(
        batch=Batch.of(mask if padded else None),
        scale=0.3,
        score_mod=lambda score, b, h, i, j: score - 0.02 * (h + i - j),
    )
    q, *kv = (torch.randn(2, heads, LENGTH, 8, dtype=torch.double, requires_grad=True) for heads in (4, 2, 2))
    found = flex_tiles.flex_gathered(q, *kv, as_fixed(tiles) if kept else tiles, call)
    expected = plain_gathered(q, *(repeat_heads(x, 4) for x in kv), tiles, call)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    weights = torch.randn_like(found)
    for one, other in zip(
        *(torch.autograd.grad((out * weights).sum(), (q, *kv)) for out in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", quickly(TILES, ["whole blocks and others"]))
def test_flex_tiles_in_a_graph_equal_the_plain_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own graph, where no value is known, holds flex_attention over the rows."""
    torch._dynamo.reset()
    monkeypatch.setattr(flex, "fused_flex", by_the_lists)
    torch.manual_seed(0)
    tiles, mask = TILES[name](), torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 70]])
    q, *kv = (torch.randn(2, heads, LENGTH, 16) for heads in (4, 2, 2))

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return flex_tiles.flex_gathered(q, k, v, as_fixed(tiles), AttentionCall(batch=Batch.of(mask), scale=0.3))

    found = torch.compile(attend, backend="aot_eager", fullgraph=True)(q, *kv, mask)
    expected = plain_gathered(
        q, *(repeat_heads(x, 4) for x in kv), tiles, AttentionCall(batch=Batch.of(mask), scale=0.3)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_learned_bias_of_a_flex_tile_gets_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "fused_flex", by_the_lists)
    torch.manual_seed(0)
    bias = torch.randn(1, 4, 1, 50, 77, dtype=torch.double, requires_grad=True)
    tile = GatherTile(rows_of(LENGTH, 50), neighbours(rows_of(LENGTH, 50), 20, 7), bias=bias)
    q, k, v = (torch.randn(2, 4, LENGTH, 8, dtype=torch.double) for _ in range(3))
    outs = (run(q, k, v, [tile], AttentionCall()) for run in (flex_tiles.flex_gathered, plain_gathered))
    (one,), (other,) = (torch.autograd.grad(out.square().sum(), bias) for out in outs)
    torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def test_flex_tiles_read_values_of_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fixed tiles values are read once, of any others never."""
    monkeypatch.setattr(
        flex, "fused_flex", lambda *arguments, **settings: (arguments[1], AuxOutput(lse=arguments[1][..., 0]))
    )
    q, k, v = (torch.randn(1, 2, LENGTH, 8) for _ in range(3))
    other = [GatherTile(rows_of(LENGTH, size), neighbours(rows_of(LENGTH, size), 9, 9)) for size in (50, 128)]
    other += [
        GatherTile(rows_of(LENGTH, 128), rows_of(LENGTH, 128), causal=True, bias=bias)
        for bias in (None, torch.randn(128))
    ]
    kept = as_fixed(other)
    waits = []
    for tiles in (kept, other, kept, other):
        with Counting() as counting:
            flex_tiles.flex_gathered(q, k, v, tiles, AttentionCall())
        waits.append(counting.waits.total())
    assert waits[0] > 0
    assert waits[1:] == [0, 0, 0]


def test_fixed_flex_tiles_under_the_same_rules_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not where a query is in two of them."""
    calls = []
    monkeypatch.setattr(
        flex, "fused_flex", lambda *arguments, **settings: calls.append(1) or by_the_lists(*arguments, **settings)
    )
    q, k, v = (torch.randn(1, 2, LENGTH, 8) for _ in range(3))
    rows = rows_of(LENGTH, 50)
    first, last = (GatherTile(part, neighbours(part, 9, 0)) for part in (rows[:, :, :2], rows[:, :, 2:]))
    again = GatherTile(rows[:, :, 1:3], torch.tensor([[7], [8]])[None, None])
    for tiles, expected in (
        ([first, last], 1),
        ([first, last, again], 3),
        ([first, dataclasses.replace(last, causal=True)], 2),
    ):
        calls.clear()
        out = flex_tiles.flex_gathered(q, k, v, as_fixed(tiles), AttentionCall())
        torch.testing.assert_close(out, plain_gathered(q, k, v, tiles, AttentionCall()), atol=1e-5, rtol=0)
        assert len(calls) == expected


def test_flex_tiles_visit_no_block_that_their_rules_leave_empty() -> None:
    rows = rows_of(1024, 256)
    keys = rows[:, :, :1].expand(-1, -1, 4, -1)
    everything = torch.arange(1024).view(1, 1, 1, -1)
    (causal, near, far) = as_fixed(
        [
            GatherTile(everything, everything, causal=True),
            GatherTile(rows, keys, inside=(0, 300)),
            GatherTile(rows, keys, outside=(-999, 400)),
        ]
    )
    made, padded = (
        [layout for _, layout in flex_tiles.layouts([causal, near, far], (1024, 1024), (128,), some)]
        for some in (False, True)
    )
    assert [int(layout.by_query[0][0].sum()) for layout in padded] == [36, 8, 9]
    assert [int(lists[0].sum()) for lists in made[0].by_query] == [8, 28]


def test_few_rows_of_a_flex_tile_are_padded_to_one_block() -> None:
    """Two rows of four queries could share a block with 30 others, but there are no others."""
    tile = GatherTile(torch.arange(8).view(1, 1, 2, 4), torch.arange(600).view(1, 1, 2, 300))
    ((_, layout),) = flex_tiles.layouts([tile], (600, 600), (128,))
    assert (layout.queries.positions.shape[2], layout.keys.positions.shape[2]) == (128, 640)
    assert layout.shares_blocks


def test_flex_tiles_gather_no_axis_of_whole_blocks() -> None:
    """Even in another order, if rows do not share blocks. Then tiles whose keys are gathered may have a query in
    common."""
    rows = rows_of(300, 128)
    columns = torch.arange(3, 300, 17).expand(1, 1, 3, -1)
    backwards = GatherTile(rows.flip(2), columns)
    short = rows_of(256, 64)
    for tiles, length, expected in (
        ([backwards], 300, [(True, False)]),
        ([GatherTile(rows.flip(2), columns), GatherTile(rows, columns + 1)], 300, [(True, False)]),
        ([GatherTile(short, short[:, :, :, 1:])], 256, [(True, False)]),
        ([GatherTile(short.flip(2), short[:, :, :, 1:])], 256, [(False, False)]),
        ([GatherTile(rows, columns, bias=torch.zeros(1, 1, 1, 1, columns.shape[3]))], 300, [(True, False)]),
        ([GatherTile(rows.flip(2), columns, bias=torch.zeros(1, 1, 1, 1, columns.shape[3]))], 300, [(False, False)]),
    ):
        made = flex_tiles.layouts(as_fixed(tiles), (length, length), (128,))
        assert [(layout.queries is None, layout.keys is None) for _, layout in made] == expected


ENGINES = ("gathered", "block_selected", "bucketed", "grid_windows")


@pytest.mark.usefixtures("cuda_paths")
@every_case(
    ("name", "setting"),
    [
        (name, setting)
        for engine in ENGINES
        for name in list_mechanisms(engine=engine)
        for setting in ("plain", "padded", "gradients")
    ],
    of=2,
)
def test_every_mechanism_of_tiles_reaches_a_fused_kernel(
    name: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its default options, and not one of its tiles by plain operations."""

    def kernel(_: object, q: Tensor, k: Tensor, v: Tensor, return_aux: object = None, **settings: object) -> object:
        return q if return_aux is None else (q, AuxOutput(lse=q[..., 0]))

    monkeypatch.setattr(flex, "fused_flex", kernel)
    monkeypatch.setattr(flex_tiles, "plain_tile", None)
    monkeypatch.setattr("hf_longattn.engines.gathered.plain_gathered", None)
    learning, length = setting == "gradients", 2048
    module = build_mechanism(name, num_heads=2, head_dim=16, max_length=length).train(learning)
    q, k, v = (torch.randn(2, 2, length, 16, requires_grad=learning) for _ in range(3))
    arguments: dict[str, Any] = {"grid": (32, 64)} if reads_grid(module) else {}
    if module.capabilities.takes_hidden_states:
        arguments["hidden_states"] = torch.randn(2, length, module.sizes.hidden_size)
    if setting == "padded":
        arguments["padding_mask"] = torch.arange(length) < torch.tensor([[length], [1500]])
    for causal in {"both": (False, True)}.get(module.causal, (bool(module.causal),)):
        paths: list[str] = []
        with torch.set_grad_enabled(learning), observe(lambda _, choice, paths=paths: paths.append(choice.path)):
            attend(q, k, v, module, causal=causal, **arguments)
        assert ("windows" if name == "window2d" else "flex") in paths
        assert "plain" not in paths
