"""`lsh` with shared queries and keys is transformers' Reformer attention, with rotations drawn from the same seed.

transformers joins the chunks of all rounds into one circle, so that the first chunk of a round looks back into the round before; here a
round is a separate circle. Outputs are equal where that does not matter, and everywhere when the rounds are joined by hand.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import ReformerConfig
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from hf_longattn import attend, build_mechanism
from hf_longattn.engines.bucketed import Sorted
from hf_longattn.engines.call import AttentionCall, GatherTile
from hf_longattn.engines.gathered import gathered_attention
from hf_longattn.mechanisms.lsh import LSH
from tests.cases import every_case

LENGTH, CHUNK, HEADS, WIDTH, SEED = 320, 32, 3, 16, 11


def reformer(num_hashes: int, num_buckets: int | list[int], causal: bool = False, after: int = 0) -> LSHSelfAttention:
    config = ReformerConfig(
        hidden_size=HEADS * WIDTH, num_attention_heads=HEADS, attention_head_size=WIDTH, lsh_attn_chunk_length=CHUNK,
        num_hashes=num_hashes, num_buckets=num_buckets, hash_seed=SEED, is_decoder=causal, attn_layers=["lsh"],
        lsh_num_chunks_after=after, lsh_attention_probs_dropout_prob=0.0, max_position_embeddings=LENGTH,
    )  # fmt: skip
    return LSHSelfAttention(config, layer_idx=0).eval()


def projected(module: LSHSelfAttention, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The shared vectors and the values, (B, H, N, D)."""
    return tuple(layer(hidden).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for layer in (module.query_key, module.value))


def ours(num_hashes: int, num_buckets: int, after: int = 0) -> LSH:
    return build_mechanism(
        "lsh", num_heads=HEADS, head_dim=WIDTH, shared_qk=True, count_duplicates=True, seed=SEED, bucket_size=CHUNK,
        num_hashes=num_hashes, num_buckets=num_buckets, num_chunks_after=after,
    )  # fmt: skip


@every_case(("num_buckets", "theirs"), [(16, 16), (64, [8, 8]), (128, [8, 16])])
def test_lsh_hashes_are_those_of_reformer(num_buckets: int, theirs: int | list[int]) -> None:
    module = reformer(3, theirs)
    x = torch.randn(2, HEADS, LENGTH, WIDTH)
    found = ours(3, num_buckets).hashes(x) + num_buckets * torch.arange(3)[:, None]
    assert torch.equal(found.flatten(2), module._hash_vectors(x, 3, None))


@every_case("after", [0, 1])
@every_case("num_buckets", [2, 16])
def test_one_round_of_lsh_equals_reformer_with_its_gradients(num_buckets: int, after: int) -> None:
    module = reformer(1, num_buckets, after=after)
    hidden = torch.randn(2, LENGTH, HEADS * WIDTH)
    expected = module(hidden).hidden_states
    x, v = projected(module, hidden)
    out = attend(x, x, v, ours(1, num_buckets, after)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    weights = list(module.parameters())
    gradients = [torch.autograd.grad(y.square().sum(), weights) for y in (expected, out)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_rounds_of_lsh_equal_reformer_where_none_looks_into_another() -> None:
    module, mechanism = reformer(3, 8), ours(3, 8)
    hidden = torch.randn(2, LENGTH, HEADS * WIDTH)
    with torch.no_grad():
        expected = module(hidden).hidden_states.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
        x, v = projected(module, hidden)
        out = attend(x, x, v, mechanism)
        first = (Sorted.of(mechanism.hashes(x), 8, None).places < CHUNK).any(2)
    assert 0.5 < (~first).float().mean() < 0.9
    torch.testing.assert_close(out[~first], expected[~first], atol=1e-5, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_rounds_of_lsh_joined_into_one_circle_equal_reformer(causal: bool) -> None:
    module, mechanism = reformer(3, 8, causal), ours(3, 8)
    hidden = torch.randn(2, LENGTH, HEADS * WIDTH)
    with torch.no_grad():
        expected = module(hidden).hidden_states.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
        x, v = projected(module, hidden)
        queries, keys = mechanism.prepared(x, x)
        chunks = Sorted.of(mechanism.hashes(x), 8, None).order.unflatten(-1, (-1, CHUNK)).flatten(2, 3)
        seen = torch.cat([chunks.roll(1, 2), chunks], -1)
        rows = [(a, b) for a, b in zip(chunks.chunk(3, 2), seen.chunk(3, 2), strict=True)]
        parts = [GatherTile(a, b, causal=causal, outside=(0, 0)) for a, b in rows]
        out = gathered_attention(queries, keys, v, parts, AttentionCall.of())
    alone = torch.zeros(2, HEADS, LENGTH, dtype=torch.bool)
    if causal:  # a token that sees nothing else sees itself
        alone = ~torch.stack([sees_another(a, b) for a, b in rows]).any(0)
        # transformers keeps it by a score of -1e5, next to which the logarithm of the number of rounds has two digits in fp32.
        torch.testing.assert_close(v[alone], expected[alone], atol=0, rtol=1e-2)
    torch.testing.assert_close(out[~alone], expected[~alone], atol=1e-5, rtol=0)


def sees_another(queries: Tensor, keys: Tensor) -> Tensor:
    """Whether a row holds an earlier key for its query, (B, H, N) by position."""
    found = (keys[..., None, :] < queries[..., None]).any(-1)
    return torch.zeros(2, HEADS, LENGTH, dtype=torch.bool).scatter(-1, queries.flatten(2), found.flatten(2))
