"""The random features of Performer: orthogonal, reproducible, drawn anew in training, and nearer to softmax the more there are."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.mechanisms.performer import Performer, orthogonal_gaussian


def built(**options: object) -> Performer:
    module = build_mechanism("performer", num_heads=2, head_dim=16, **{"num_features": 40, **options})
    assert isinstance(module, Performer)
    return module


def qkv(length: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [scale * torch.randn(1, 2, length, 16, generator=generator) for _ in range(3)]


def test_performer_directions_are_orthogonal_in_blocks_with_gaussian_lengths() -> None:
    drawn = orthogonal_gaussian(4000, 16, 0).double()
    block = torch.nn.functional.normalize(drawn[:16], dim=-1)
    torch.testing.assert_close(block @ block.mT, torch.eye(16, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(drawn.mT @ drawn / 4000, torch.eye(16, dtype=torch.float64), atol=0.1, rtol=0)
    assert drawn.square().sum(-1).var() == pytest.approx(32, rel=0.15), "chi-squared with 16 degrees of freedom"


def test_seed_layer_and_draw_each_change_the_directions_of_performer() -> None:
    base = built()
    assert torch.equal(base.projection, built().projection)
    other_layer = built()
    other_layer.layer = 1
    redrawn = built()
    redrawn.redraw()
    for other in (built(seed=1), other_layer, redrawn):
        assert not torch.equal(base.projection, other.projection)
    q, k, v = qkv(30)
    assert not torch.equal(attend(q, k, v, "performer", seed=1), attend(q, k, v, "performer", seed=2))


def test_the_state_dict_carries_the_directions_of_performer() -> None:
    old, new = built(seed=3), built()
    new.load_state_dict(old.state_dict())
    q, k, v = qkv(50)
    assert torch.equal(attend(q, k, v, old), attend(q, k, v, new))


def test_performer_draws_directions_anew_in_training_only_by_the_seed() -> None:
    module, twin = built(redraw_interval=2).train(), built(redraw_interval=2).train()
    q, k, v = qkv(20)
    draws = []
    for _ in range(6):
        attend(q, k, v, module)
        draws.append(module.projection)
    assert [torch.equal(a, b) for a, b in pairwise(draws)] == [False, True, False, True, False]
    for _ in range(4):
        attend(q, k, v, twin)
    resumed = built(redraw_interval=2).train()
    resumed.load_state_dict(copy.deepcopy(twin.state_dict()))
    for _ in range(2):
        attend(q, k, v, resumed)
    assert torch.equal(resumed.projection, module.projection), "training that goes on draws what it would have drawn"
    module.eval()
    before = module.projection
    for _ in range(4):
        attend(q, k, v, module)
    assert module.projection is before


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_performer_does_not_count_its_second_run(reentrant: bool) -> None:
    module = built(redraw_interval=2).train()
    for step in range(1, 5):
        q, k, v = (x.requires_grad_() for x in qkv(20))
        checkpoint(attend, q, k, v, module, use_reentrant=reentrant).sum().backward()
        assert int(module.passes) == step


def test_the_error_of_performer_falls_with_the_root_of_the_number_of_features() -> None:
    q, k, v = qkv(128, 0.35)
    expected = attend(q, k, v, "full")
    errors = []
    for features in (16, 64, 256, 1024):
        runs = [attend(q, k, v, "performer", num_features=features, seed=seed, redraw_interval=0) for seed in range(1, 9)]
        errors.append(torch.stack([(out - expected).square().mean() for out in runs]).mean().sqrt().item())
    for few, many in pairwise(errors):
        assert 0.35 < many / few < 0.65, "four times the features halve the error"


def test_the_relu_kernel_of_performer_equals_its_definition() -> None:
    q, k, v = qkv(100)
    module = built(kernel="relu")
    for causal in (False, True):
        torch.testing.assert_close(
            attend(q, k, v, module, causal=causal), reference_attend(q, k, v, module, causal=causal).float(), atol=1e-5, rtol=0
        )
