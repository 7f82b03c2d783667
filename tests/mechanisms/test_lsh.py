"""Hashing attention: every form against its definition, the shared form, seeds and half precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.call import AttentionCall
from hf_longattn.mechanisms.common.base import attention_weights
from tests.cases import every_case
from tests.grids import alternately
from tests.mechanisms.definition import assert_equals_its_definition

OPTIONS = {"num_hashes": 3, "bucket_size": 16, "num_buckets": 8}
FORMS = [
    {"shared_qk": True},
    {"shared_qk": True, "count_duplicates": True},
    {"count_duplicates": True},
    {"num_chunks_before": 0},
    {"num_chunks_after": 1},
    {"num_chunks_before": 0, "num_chunks_after": 2, "shared_qk": True},
    {"bucket_size": 7, "num_buckets": 64},
    {"bucket_size": 150, "num_buckets": 4, "num_chunks_before": 0, "shared_qk": True},
    {"bucket_size": 1, "num_buckets": 6},
]


def inputs(length: int, q_len: int | None = None, heads: int = 4, grad: bool = False) -> list[Tensor]:
    shapes = [(2, heads, q_len or length, 16), (2, 2, length, 16), (2, 2, length, 16)]
    return [torch.randn(shape).requires_grad_(grad) for shape in shapes]


@every_case(("options", "causal"), alternately(FORMS), ids=str)
def test_lsh_equals_its_definition_with_every_option(options: dict, causal: bool) -> None:
    options = {**OPTIONS, **options}
    q, k, v = inputs(320, grad=True)
    mask = torch.ones(2, 320, dtype=torch.bool)
    mask[0, :90] = False
    mask[1, 200:230] = False
    out = assert_equals_its_definition(build_mechanism("lsh", num_heads=4, head_dim=16, **options), q, k, v, mask, causal=causal)
    few = attend(q[:, :, -250:], k, v, "lsh", causal=causal, padding_mask=mask, **options)
    torch.testing.assert_close(few * mask[:, None, -250:, None], out[:, :, -250:], atol=1e-5, rtol=0)


def test_the_number_of_lsh_buckets_follows_the_longest_input() -> None:
    for max_length, expected in ((512, 16), (8192, 256), (10, 2), (None, 128)):
        module = build_mechanism("lsh", num_heads=1, head_dim=8, max_length=max_length, bucket_size=64)
        assert module.num_buckets == expected


def test_lsh_with_shared_keys_sees_its_own_token_only_if_it_sees_no_other() -> None:
    for causal in (False, True):
        module = build_mechanism("lsh", num_heads=4, head_dim=16, shared_qk=True, **OPTIONS)
        q, k, _ = inputs(300)
        weights = attention_weights(module, q, k, AttentionCall(causal))
        own = weights.diagonal(dim1=-2, dim2=-1)
        assert ((own == 0) | (own == 1)).all()
        assert (own == 1).any() == causal, "only a causal token may be the first of its bucket in all rounds"
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 300))
        out = attend(q, k, v := torch.randn(2, 2, 300, 16), module, causal=causal)
        torch.testing.assert_close(out, weights @ v.repeat_interleave(2, 1), atol=1e-5, rtol=0)


def test_lsh_with_shared_keys_in_chunks_of_one_sees_the_token_before() -> None:
    """Also the last one of a long text, which no dense call computes."""
    q, k, v = torch.randn(3, 1, 2, 1201, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    options = {"shared_qk": True, "bucket_size": 1, "num_hashes": 1}
    expected = reference_attend(q, k, v, "lsh", **options)
    torch.testing.assert_close(attend(q, k, v, "lsh", **options), expected.float())


def test_the_seed_alone_decides_the_rotations_of_lsh() -> None:
    torch.manual_seed(1)
    first = build_mechanism("lsh", num_heads=2, head_dim=8, seed=3)
    torch.manual_seed(2)
    second, other = (build_mechanism("lsh", num_heads=2, head_dim=8, seed=seed) for seed in (3, 4))
    assert torch.equal(first.rotations, second.rotations)
    assert not torch.equal(first.rotations, other.rotations)
    assert not first.state_dict(), "a checkpoint needs no rotations"
    assert torch.equal(copy.deepcopy(first).rotations, first.rotations)


def test_the_cost_of_lsh_does_not_depend_on_how_tokens_fall_into_buckets() -> None:
    """All tokens in one bucket: the rows are as many and as long as for evenly filled buckets."""
    module = build_mechanism("lsh", num_heads=1, head_dim=16, count_duplicates=True, **OPTIONS)
    even, same = torch.randn(1, 1, 500, 16), torch.ones(1, 1, 500, 16)
    for causal in (False, True):
        shapes = []
        for x in (even, same):
            tiles, _ = module.visits(x, x, 500, AttentionCall(causal))
            shapes.append([(tile.queries.shape, tile.keys.shape) for tile in tiles])
        assert shapes[0] == shapes[1]
        pairs = sum(q.numel() * k[-1] for q, k in shapes[0])
        assert pairs <= 3 * 500 * OPTIONS["num_hashes"] * 2 * OPTIONS["bucket_size"]


@pytest.mark.thorough
@every_case("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_case("options", FORMS[:2] + FORMS[-3:-1], ids=str)
@every_case("causal", [False, True])
def test_lsh_in_half_precision_hashes_the_same_on_every_path(causal: bool, options: dict, dtype: torch.dtype) -> None:
    """Few pairs are compared densely and many are not: a text alone has the buckets that it has in a padded batch."""
    q, k, v = (x.to(dtype) for x in inputs(150))
    padded = [torch.nn.functional.pad(x, (0, 0, 0, 400)) for x in (q, k, v)]
    mask = torch.zeros(2, 550, dtype=torch.bool)
    mask[:, :150] = True
    module = build_mechanism("lsh", num_heads=4, head_dim=16, **{**OPTIONS, **options})
    alone = attend(q, k, v, module, causal=causal)
    found = attend(*padded, mechanism=module, causal=causal, padding_mask=mask)[:, :, :150]
    bound = 0.03 if dtype == torch.bfloat16 else 0.004
    torch.testing.assert_close(found, alone, atol=bound, rtol=0)
    torch.testing.assert_close(alone.double(), reference_attend(q, k, v, module, causal=causal), atol=bound, rtol=0)


def test_long_keys_of_lsh_do_not_leave_the_range_of_fp16() -> None:
    q, k, v = (x.half() for x in inputs(60))
    k = (400 * k.float()).half()
    module = build_mechanism("lsh", num_heads=4, head_dim=16, shared_qk=True, **OPTIONS)
    torch.testing.assert_close(
        attend(q, k, v, module, scaling=1e-3).double(), reference_attend(q, k, v, module, scaling=1e-3), atol=0.01, rtol=0
    )
