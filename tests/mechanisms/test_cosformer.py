"""cosFormer: positions count from the first real token, and texts beyond max_length are refused."""

import math

import pytest
import torch

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.errors import LengthError, OptionError
from hf_longattn.mechanisms.common.registry import mechanism_from


def test_nearer_keys_weigh_more_and_none_negatively() -> None:
    ones = torch.ones(1, 1, 64, 4)
    module = build_mechanism("cosformer", num_heads=1, head_dim=4, max_length=64)
    weights = module.dense_weights(ones.double(), ones.double(), AttentionCall.of())
    assert (weights >= 0).all()
    assert (weights[0, 0, 0].diff() < 0).all()
    assert (weights[0, 0, 63].diff() > 0).all()


def test_texts_beyond_max_length_are_refused_whole_and_in_steps() -> None:
    module = mechanism_from("cosformer", {"max_length": 16}, num_heads=2, head_dim=8)
    x = torch.rand(1, 2, 17, 8)
    for causal in (False, True):
        with pytest.raises(LengthError, match="more than 16 tokens, the max_length of mechanism 'cosformer'"):
            attend(x, x, x, module, causal=causal)
    mask = torch.arange(17)[None] >= 1
    assert attend(x, x, x, module, padding_mask=mask).isfinite().all(), "padding is not counted"
    state = None
    for step in range(16):
        _, state = module.advance(*(x[:, :, step : step + 1],) * 3, state, AttentionCall.of())
    with pytest.raises(LengthError, match="max_length"):
        module.advance(*(x[:, :, 16:],) * 3, state, AttentionCall.of())


def by_the_authors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The text of one head ``(N, D)``, token by token; positions from 1 and M the text's length, as in their code."""
    length = len(q)
    phi_q, phi_k = (
        [
            torch.cat([x.relu() * math.sin(math.pi / 2 * i / length), x.relu() * math.cos(math.pi / 2 * i / length)])
            for i, x in enumerate(y, 1)
        ]
        for y in (q, k)
    )
    return torch.stack([sum((a @ b) * v[j] for j, b in enumerate(phi_k)) / sum(a @ b for b in phi_k) for a in phi_q])


def test_each_text_of_a_batch_has_its_own_horizon() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 1, 20, 8, dtype=torch.float64) for _ in range(3))
    mask = torch.ones(4, 20, dtype=torch.bool)
    mask[1, :7] = False
    mask[2, 13:] = False
    mask[3] = False
    module = build_mechanism("cosformer", num_heads=1, head_dim=8)
    for run in (attend, reference_attend):
        out = run(q, k, v, module, padding_mask=mask)
        for item, at in enumerate((slice(0, 20), slice(7, 20), slice(0, 13))):
            expected = by_the_authors(*(x[item, 0, at] for x in (q, k, v)))
            torch.testing.assert_close(out[item, 0, at], expected, atol=1e-12, rtol=1e-10)


def test_the_causal_form_does_not_ask_how_long_the_text_will_be() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 30, 8, dtype=torch.float64) for _ in range(3))
    module = build_mechanism("cosformer", num_heads=2, head_dim=8)
    with pytest.raises(OptionError, match="for example max_length=4096"):
        attend(q, k, v, module, causal=True)
    module = mechanism_from("cosformer", {}, num_heads=2, head_dim=8, max_length=64)  # of the model
    given = build_mechanism("cosformer", num_heads=2, head_dim=8, max_length=64)  # the option
    whole = attend(q, k, v, module, causal=True)
    torch.testing.assert_close(whole[:, :, :12], attend(*(x[:, :, :12] for x in (q, k, v)), mechanism=module, causal=True))
    torch.testing.assert_close(whole, attend(q, k, v, given, causal=True))
    assert not torch.allclose(attend(q, k, v, module), attend(q, k, v, given)), "max_length is M in the bidirectional form, too"
    assert attend(q, k, v, "cosformer", causal=True).isfinite().all(), "attend takes the length of the keys"


def test_texts_of_any_length_have_a_bidirectional_form() -> None:
    module = build_mechanism("cosformer", num_heads=2, head_dim=8)
    x = torch.rand(1, 2, 700, 8)
    torch.testing.assert_close(attend(x, x, x, module), reference_attend(x, x, x, module).float(), atol=1e-5, rtol=0)
