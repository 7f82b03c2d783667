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
from hf_longattn.engines.score_terms import DistanceTerm
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients, paths_of

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
    by_key = {"key_vectors": e, "key_table": key_rows} if of_keys else {}
    term: Any = DistanceTerm(p, rows, ahead, k, content, **by_key, buckets=buckets)
    call = AttentionCall(
        pattern.causal, Batch.of(mask), tokens, scale=0.3, score_mod=term.written_out if plain else term
    )
    out, paths = paths_of(lambda: block_sparse_attention(q, k, v, pattern, call))
    assert paths[-1] == ("plain" if plain else "cpu-distances")
    return out if mask is None else out * mask[:, None, -q.shape[2] :, None]


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
@every_case("global_rows", [None, False, True])  # None: there are no global tokens
@every_case("of_keys", [False, True])
def test_a_band_with_distance_terms_equals_its_plain_form(
    band: tuple[int, int], padding: str, q_len: int, global_rows: bool | None, of_keys: bool
) -> None:
    """Also with terms of keys, and with fewer rows of the tables than distances."""
    left, right = band
    has_globals = global_rows is not None
    pattern = Pattern(left, right, right == 0, has_globals, bool(global_rows))
    rows, ahead, buckets = left + right + 1 - left // 3, right, None
    if of_keys:
        rows, ahead, buckets = 24, 20, torch.randint(24, (90,))  # of the distances -20 … 69
    features = 0 if of_keys and left == 64 else 3
    leaves = leaves_of(q_len, 520, features, table_heads=1 if left % 2 else HEADS, rows=rows)
    mask, tokens = padding_mask(padding), marked_tokens() if has_globals else None
    out, expected = (
        run(leaves, pattern, ahead, mask, plain=plain, tokens=tokens, of_keys=of_keys, buckets=buckets)
        for plain in (False, True)
    )
    differentiated = leaves if of_keys else leaves[:6]
    assert_equal_with_gradients(out, expected, differentiated, gradients=1e-10, rtol=1e-10)


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


@every_case("causal", [False, True], pairs=True)
@every_case("relative", ["transformer_xl", "shaw:clip=9", "alibi", "t5_buckets"])
@every_case(
    ("segment", "memory"),
    [(14, 70), (40, 65), (150, 150), (1000, 10)],
    ids=["small", "two blocks", "large", "one"],
)
def test_chunks_with_relative_terms_are_fused_and_equal_definition(
    segment: int, memory: int, relative: str, causal: bool
) -> None:
    lengths = {"segment_length": segment, "memory_length": memory, "bptt": True}
    mechanism = build_mechanism(
        "transformer_xl", num_heads=HEADS, head_dim=WIDTH, hidden_size=64, relative=relative, **lengths
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
    out, paths = paths_of(lambda: attend(q, k, v, mechanism, causal=causal, padding_mask=mask))
    assert {*paths} & {"cpu-distances", "sparse", "dense"} == {"cpu-distances"}
    expected = reference_attend(q, k, v, mechanism, causal=causal, padding_mask=mask)
    assert_equal_with_gradients(out, expected, leaves, mask, gradients=1e-10, rtol=1e-10)


@every_case("relative", ["transformer_xl", "shaw:clip=9"])
def test_the_band_of_a_union_with_relative_terms_is_fused(relative: str) -> None:
    shape = {"num_heads": HEADS, "head_dim": WIDTH, "hidden_size": 64, "max_length": 300}
    mechanism = build_mechanism(
        "union", **shape, relative=relative, of="window:window=32+longformer:window=64"
    ).double()
    assert mechanism.relative is not None
    for parameter in mechanism.relative.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    q, k, v = (torch.randn(1, HEADS, 300, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(3))
    out, paths = paths_of(lambda: attend(q, k, v, mechanism))
    assert "cpu-distances" in paths
    assert "plain" not in paths
    expected = reference_attend(q, k, v, mechanism)
    leaves = (q, k, v, *mechanism.relative.parameters())
    assert_equal_with_gradients(out, expected, leaves, atol=1e-10, gradients=1e-10, rtol=1e-10)


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
