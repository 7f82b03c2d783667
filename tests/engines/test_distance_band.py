"""The path ``cpu-distances``: a band with a term of query and distance equals its plain form, in linear memory,
gradients too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.batch import Batch
from hf_longattn.engines.block_sparse import block_sparse_attention
from hf_longattn.engines.call import AttentionCall, Pattern
from hf_longattn.engines.cpu.softmax import softmax_forward
from hf_longattn.engines.dispatch import PathChoice, observe
from hf_longattn.engines.score_terms import DistanceTerm
from tests.cases import every_case

HEADS, WIDTH = 4, 16
Leaves = tuple[Tensor, ...]


def leaves_of(
    q_len: int, kv_len: int, features: int, table_heads: int, rows: int, *, dtype: torch.dtype = torch.float64
) -> Leaves:
    """q, k, v, p, r, c, e and s."""
    shapes = [(2, HEADS, q_len, WIDTH), (2, 2, kv_len, WIDTH), (2, 2, kv_len, WIDTH)]
    shapes += [(2, HEADS, q_len, features), (table_heads, rows, features), (HEADS, WIDTH)]
    shapes += [(2, HEADS, kv_len, 5), (table_heads, rows, 5)]
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def run(
    leaves: Leaves,
    pattern: Pattern,
    ahead: int,
    mask: Tensor | None,
    *,
    plain: bool,
    tokens: Tensor | None = None,
    of_keys: bool = False,
    buckets: Tensor | None = None,
) -> Tensor:
    q, k, v, p, rows, content, e, key_rows = leaves
    by_key = {"of_keys": e, "key_table": key_rows} if of_keys else {}
    term: Any = DistanceTerm(p, rows, ahead, k, content, **by_key, buckets=buckets)
    call = AttentionCall(
        pattern.causal, Batch.of(mask), tokens, scale=0.3, score_mod=term.written_out if plain else term
    )
    choices: list[PathChoice] = []
    with observe(lambda _, choice: choices.append(choice)):
        out = block_sparse_attention(q, k, v, pattern, call)
    assert choices[-1].path == ("plain" if plain else "cpu-distances")
    return out if mask is None else out * mask[:, None, -q.shape[2] :, None]


def same_gradients(out: Tensor, expected: Tensor, leaves: Leaves) -> None:
    weight = torch.randn_like(out)
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), leaves) for x in (out, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def padding_mask(padding: str) -> Tensor | None:
    if padding == "none":
        return None
    mask = torch.ones(2, 520, dtype=torch.bool)
    mask[0, slice(470, None) if padding == "right" else slice(390, 420)] = False
    return mask


def marked_tokens() -> Tensor:
    tokens = torch.zeros(2, 520, dtype=torch.bool)
    tokens[0, [0, 100, 101, 380]] = True
    tokens[1, 75:95] = True
    return tokens


BANDS = [(20, 7), (0, 30), (63, 0), (64, 64), (150, 149), (5, 400)]
PADDING = ["none", "right", "inside"]


@every_case("band", BANDS, pairs=True)
@every_case("padding", PADDING)
@every_case("q_len", [520, 133])
def test_a_band_with_distance_terms_equals_its_plain_form(band: tuple[int, int], padding: str, q_len: int) -> None:
    left, right = band
    leaves = leaves_of(q_len, 520, features=3, table_heads=1 if left % 2 else HEADS, rows=left + right + 1 - left // 3)
    mask = padding_mask(padding)
    pattern = Pattern(left, right, causal=right == 0)
    out, expected = (run(leaves, pattern, right, mask, plain=plain) for plain in (False, True))
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    same_gradients(out, expected, leaves[:6])


@pytest.mark.thorough
@every_case("global_rows", [True, False], pairs=True)
@every_case("band", [(20, 7), (64, 0), (150, 149)])
@every_case("padding", PADDING)
def test_global_tokens_beside_a_band_have_the_terms_of_their_distances(
    band: tuple[int, int], padding: str, global_rows: bool
) -> None:
    left, right = band
    leaves = leaves_of(450, 520, features=3, table_heads=1 if left == 20 else HEADS, rows=700 if right else 420)
    mask = padding_mask(padding)
    tokens = marked_tokens()
    pattern = Pattern(left, right, causal=right == 0, has_globals=True, global_rows=global_rows)
    out, expected = (
        run(leaves, pattern, 300 if right else 0, mask, plain=plain, tokens=tokens) for plain in (False, True)
    )
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    same_gradients(out, expected, leaves[:6])


@pytest.mark.thorough
@every_case("with_tokens", [False, True], pairs=True)
@every_case("band", [(20, 7), (64, 64), (150, 0), (5, 400)])
@every_case("padding", PADDING)
def test_distance_terms_of_keys_and_buckets_equal_their_plain_form(
    band: tuple[int, int], padding: str, with_tokens: bool
) -> None:
    left, right = band
    leaves = leaves_of(450, 520, features=0 if left == 64 else 3, table_heads=1 if left == 20 else HEADS, rows=24)
    mask, tokens = padding_mask(padding), marked_tokens() if with_tokens else None
    buckets = torch.randint(24, (90,))  # of the distances -20 … 69
    pattern = Pattern(left, right, causal=right == 0, has_globals=with_tokens)
    out, expected = (
        run(leaves, pattern, 20, mask, plain=plain, tokens=tokens, of_keys=True, buckets=buckets)
        for plain in (False, True)
    )
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    same_gradients(out, expected, leaves)


def test_a_short_batch_with_distance_terms_of_keys_runs_together() -> None:
    leaves = tuple(x.detach() for x in leaves_of(60, 60, features=2, table_heads=HEADS, rows=13))
    q, k, v, p, rows, _, e, key_rows = leaves
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    rest = [None, None, None], [6, 6, 6, 0, 1, 0], 0.3, 0.0, None, None
    together, _ = softmax_forward("distances", q, k, v, [p, rows, e, key_rows], *rest)
    for row in range(2):
        at = slice(row, row + 1)
        alone, _ = softmax_forward("distances", q[at], k[at], v[at], [p[at], rows, e[at], key_rows], *rest)
        torch.testing.assert_close(alone, together[at])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distance_terms_in_lower_precision_are_near_the_exact_ones(dtype: torch.dtype) -> None:
    leaves = leaves_of(300, 300, features=WIDTH, table_heads=HEADS, rows=41, dtype=torch.float32)
    low = (*(x.detach().mul(0.5).to(dtype).requires_grad_() for x in leaves[:3]), *leaves[3:])
    exact = tuple(x.detach().float().requires_grad_() for x in low)
    pattern = Pattern(20, 20, False)
    out, expected = (
        run(x, pattern, 20, None, plain=plain, of_keys=True) for x, plain in ((low, False), (exact, True))
    )
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=0)
    for a, b in zip(
        *(torch.autograd.grad(x.float().sum(), y) for x, y in ((out, low), (expected, exact))), strict=True
    ):
        assert (a.float() - b).norm() <= tolerance * b.norm() + 1e-4


def test_a_row_of_padding_in_a_batch_with_distance_terms_is_zeros() -> None:
    q, k, v, p, rows, *_ = (x.detach() for x in leaves_of(40, 40, features=2, table_heads=HEADS, rows=11))
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[1] = False
    numbers = [5, 5, 5, 0, 1, 0]
    together, padded = (
        softmax_forward("distances", q, k, v, [p, rows], [None, real, None], numbers, 0.3, 0.0, None, None)[0]
        for real in (None, mask)
    )
    torch.testing.assert_close(padded[0], together[0])
    assert not padded[1].any()


CHUNKS: list[tuple[str, dict[str, int]]] = [
    ("transformer_xl", {"segment_length": 14, "memory_length": 70, "bptt": True}),
    ("transformer_xl", {"segment_length": 40, "memory_length": 65, "bptt": True}),
    ("transformer_xl", {"segment_length": 150, "memory_length": 150, "bptt": True}),
    ("transformer_xl", {"segment_length": 1000, "memory_length": 10, "bptt": True}),
]


@every_case("causal", [False, True], pairs=True)
@every_case("relative", ["transformer_xl", "shaw:clip=9", "alibi", "t5_buckets"])
@every_case(("name", "options"), CHUNKS, ids=["small", "two blocks", "large", "one"])
def test_chunks_with_relative_terms_are_fused_and_equal_definition(
    name: str, options: dict[str, int], relative: str, causal: bool
) -> None:
    torch.manual_seed(0)
    mechanism = build_mechanism(
        name, num_heads=HEADS, head_dim=WIDTH, hidden_size=64, relative=relative, **options
    ).double()
    for parameter in mechanism.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    q, k, v = (
        torch.randn(2, heads, length, WIDTH, dtype=torch.float64)
        for heads, length in ((HEADS, 301), (2, 340), (2, 340))
    )
    mask = torch.ones(2, 340, dtype=torch.bool)
    mask[0, 320:] = False
    mask[1, 200:230] = False
    leaves = (*(x.requires_grad_() for x in (q, k, v)), *mechanism.parameters())
    choices: list[PathChoice] = []
    with observe(lambda _, choice: choices.append(choice)):
        out = attend(q, k, v, mechanism, causal=causal, padding_mask=mask)
    assert {choice.path for choice in choices} & {"cpu-distances", "sparse", "dense"} == {"cpu-distances"}
    expected = reference_attend(q, k, v, mechanism, causal=causal, padding_mask=mask)
    real = mask[:, None, -301:, None]
    torch.testing.assert_close(out * real, expected * real, atol=1e-12, rtol=0)
    same_gradients(out * real, expected * real, leaves)


@every_case("relative", ["transformer_xl", "shaw:clip=9"])
def test_the_band_of_a_union_with_relative_terms_is_fused(relative: str) -> None:
    torch.manual_seed(0)
    shape = {"num_heads": HEADS, "head_dim": WIDTH, "hidden_size": 64, "max_length": 300}
    mechanism = build_mechanism(
        "union", **shape, relative=relative, of="window:window=32+longformer:window=64"
    ).double()
    assert mechanism.relative is not None
    for parameter in mechanism.relative.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    q, k, v = (torch.randn(1, HEADS, 300, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(3))
    choices: list[PathChoice] = []
    with observe(lambda _, choice: choices.append(choice)):
        out = attend(q, k, v, mechanism)
    paths = {choice.path for choice in choices}
    assert "cpu-distances" in paths
    assert "plain" not in paths
    expected = reference_attend(q, k, v, mechanism)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
    same_gradients(out, expected, (q, k, v, *mechanism.relative.parameters()))


@pytest.mark.thorough
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "options"),
    [("window", {"left": 40, "right": 9}), ("transformer_xl", {"segment_length": 30, "memory_length": 30})],
)
def test_mechanisms_with_distance_terms_compile_to_one_graph(name: str, options: dict[str, int], backend: str) -> None:
    mechanism = build_mechanism(
        name, num_heads=HEADS, head_dim=WIDTH, hidden_size=64, **options, relative="transformer_xl"
    )
    for parameter in mechanism.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = [torch.randn(1, HEADS, 400, WIDTH) for _ in range(3)]
    compiled = torch.compile(lambda *x: attend(*x, mechanism), fullgraph=True, backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*x), attend(*x, mechanism), atol=1e-6, rtol=0)


def test_the_search_of_top_k_leaves_a_distance_term_differentiable() -> None:
    """``top_k`` looks the term up without gradients first."""
    q, k, v = (torch.randn(1, 2, 300, 8) for _ in range(3))
    table = torch.randn(1, 9, 8, requires_grad=True)
    out = attend(q, k, v, "top_k", num_keys=4, score_mod=DistanceTerm(q, table, 4, k))
    assert torch.autograd.grad(out.sum(), table)[0].abs().max() > 0
