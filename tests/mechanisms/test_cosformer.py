"""cosFormer: positions count from the first real token, and texts beyond max_length are refused."""

import pytest
import torch

from hf_longattn import attend, build_mechanism
from hf_longattn.errors import LengthError, OptionError


def test_nearer_keys_weigh_more_and_none_negatively() -> None:
    ones = torch.ones(1, 1, 64, 4)
    module = build_mechanism("cosformer", num_heads=1, head_dim=4, max_length=64)
    weights = module.dense_weights(ones.double(), ones.double())
    assert (weights >= 0).all()
    assert (weights[0, 0, 0].diff() < 0).all()
    assert (weights[0, 0, 63].diff() > 0).all()


def test_texts_beyond_max_length_are_refused_whole_and_in_steps() -> None:
    module = build_mechanism("cosformer", num_heads=2, head_dim=8, max_length=16)
    x = torch.rand(1, 2, 17, 8)
    with pytest.raises(LengthError, match="more than 16 tokens, the max_length of mechanism 'cosformer'"):
        module(x, x, x)
    mask = torch.arange(17)[None] >= 1
    assert module(x, x, x, padding_mask=mask).isfinite().all(), "padding is not counted"
    state = None
    for step in range(16):
        _, state = module.advance(*(x[:, :, step : step + 1],) * 3, state)
    with pytest.raises(LengthError, match="max_length"):
        module.advance(*(x[:, :, 16:],) * 3, state)


def test_a_model_without_a_longest_text_must_say_one() -> None:
    with pytest.raises(OptionError, match="for example max_length=4096"):
        build_mechanism("cosformer", num_heads=2, head_dim=8)
    x = torch.rand(1, 2, 20, 8)
    assert attend(x, x, x, "cosformer").isfinite().all(), "attend takes the length of the keys"
