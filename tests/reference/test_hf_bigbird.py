"""`bigbird` equals transformers' BigBird self-attention: in training with its random blocks, in evaluation with its counting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BigBirdConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdAttention, BigBirdModel

from hf_longattn import build_mechanism

HEADS, DIM, BLOCK, RANDOM = 2, 8, 16, 2
LAYER = 3


def theirs(length: int, mask: Tensor, hidden: Tensor, *, training: bool) -> tuple[Any, Tensor]:
    """transformers' attention module of layer 3, and its output before the output projection."""
    config = BigBirdConfig(
        hidden_size=HEADS * DIM, num_attention_heads=HEADS, block_size=BLOCK, num_random_blocks=RANDOM, max_position_embeddings=4096,
        attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    module = BigBirdAttention(config, seed=LAYER).train(training)
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(mask.float(), BLOCK)
    return module.self, module.self(hidden, band, rows, columns, blocked, blocked)[0]


def ours(module: Any, mask: Tensor, hidden: Tensor, **options: Any) -> Tensor:
    mechanism = build_mechanism(
        "bigbird",
        num_heads=HEADS,
        head_dim=DIM,
        max_length=4096,
        block_size=BLOCK,
        num_random_blocks=RANDOM,
        blocks_over="input",
        **options,
    ).train(module.training)
    mechanism.layer = LAYER
    q, k, v = (projection(hidden).unflatten(-1, (HEADS, DIM)).transpose(1, 2) for projection in (module.query, module.key, module.value))
    return mechanism(q, k, v, padding_mask=mask).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("length", [160, 320, 1024])
def test_self_attention_and_its_gradients(length: int, training: bool) -> None:
    mask = torch.ones(3, length, dtype=torch.bool)
    mask[1, length - 50 :] = False
    mask[2, : length // 2] = False
    hidden = torch.randn(3, length, HEADS * DIM, requires_grad=True)
    module, expected = theirs(length, mask, hidden, training=training)
    found = ours(module, mask, hidden, random_pattern="hf", blocks_over="input")
    assert (expected - found)[mask].abs().max() < 1e-5
    weight = torch.randn_like(expected) * mask[..., None]
    wanted = torch.autograd.grad((expected * weight).sum(), (hidden, *module.parameters()))
    got = torch.autograd.grad((found * weight).sum(), (hidden, *module.parameters()))
    for a, b in zip(wanted, got, strict=True):
        assert (a - b).abs().max() < 1e-4


def test_the_first_block_is_counted_once_for_itself_and_once_for_each_random_block() -> None:
    mask, hidden = torch.ones(1, 320, dtype=torch.bool), torch.randn(1, 320, HEADS * DIM)
    module, expected = theirs(320, mask, hidden, training=False)
    assert (expected - ours(module, mask, hidden, random_pattern="hf_eval")).abs().max() < 1e-5
    assert (expected - ours(module, mask, hidden, random_pattern="seeded")).abs().max() > 1e-3
