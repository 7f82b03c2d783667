"""synthesizer: every kind by its formula in a plain loop, mixtures, what is learned, what is refused, and whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import LongAttentionConfig, attend, build_mechanism, reference_attend
from hf_longattn.errors import LengthError, OptionError
from tests.cells import every_cell
from tests.reference.small_models import in_one_pass, in_pieces, long_config, long_like, padding, plain_model, singly, tokens

LENGTH = 12
MIXTURES = ["dense", "factorized_dense", "random", "factorized_random", "dense+dot_product", "random+dot_product", "dense+random"]
FORMS = [*MIXTURES, "factorized_dense+factorized_random+dot_product"]


def built(variant: str, **options: Any) -> Any:
    options = {"max_length": 40, "factor": 5, "rank": 3, "hidden": 6, **options}
    module = build_mechanism("synthesizer", num_heads=4, head_dim=8, variant=variant, **options)
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if "bias" in name or "mixing" in name else 1.0)
    return module


def mlp(part: Any, h: int, x: Tensor) -> Tensor:
    first, second = part.first.double()[h], part.second.double()[h]
    return second @ (x @ first + part.first_bias.double()[h, 0]).clamp(min=0) + part.second_bias.double()[h]


def score(kind: str, part: Any, h: int, i: int, j: int, q: Tensor, k: Tensor) -> Tensor:
    if kind == "dense":
        return mlp(part.mlp, h, q[h, i])[j]
    if kind == "factorized_dense":  # every output of A next to all of B's
        return torch.outer(mlp(part.repeated, h, q[h, i]), mlp(part.tiled, h, q[h, i])).flatten()[j]
    if kind == "random":
        return part.matrix.double()[h, i, j]
    if kind == "factorized_random":
        return (part.rows.double()[h] @ part.columns.double()[h].T)[i, j]
    return q[h, i] @ k[h // 2, j] / 8**0.5


@every_cell("causal", [False, True])
@every_cell("variant", FORMS)
def test_every_kind_and_mixture_equals_a_plain_loop(variant: str, causal: bool) -> None:
    module, kinds = built(variant), variant.split("+")
    q, k, v = (torch.randn(1, heads, LENGTH, 8, dtype=torch.float64) for heads in (4, 2, 2))
    shares = torch.ones(1) if module.mixing is None else module.mixing.softmax(0).double()
    scores = torch.full((4, LENGTH, LENGTH), float("-inf"), dtype=torch.float64)
    for h in range(4):
        for i in range(LENGTH):
            for j in range(i + 1 if causal else LENGTH):
                parts = [score(kind, module.kinds[kind], h, i, j, q[0], k[0]) for kind in kinds]
                scores[h, i, j] = sum(share * part for share, part in zip(shares, parts, strict=True))
    expected = scores.softmax(-1) @ v[0].repeat_interleave(2, 0)
    torch.testing.assert_close(attend(q, k, v, module, causal=causal)[0], expected, atol=1e-6, rtol=0)


@every_cell("causal", [False, True])
@every_cell("variant", FORMS)
def test_padding_and_gradients_of_every_parameter(variant: str, causal: bool) -> None:
    module = built(variant, max_length=128)
    leaves = [torch.randn(2, heads, 100, 8, requires_grad=True) for heads in (4, 2, 2)]
    mask = torch.ones(2, 100, dtype=torch.bool)
    mask[0, :30], mask[1, 80:], mask[1, 20:25] = False, False, False
    real = mask[:, None, :, None]
    out, expected = (f(*leaves, module, causal=causal, padding_mask=mask) for f in (attend, reference_attend))
    torch.testing.assert_close(out * real, (expected * real).float(), atol=1e-5, rtol=0)
    alone = attend(*(x[:1, :, 30:] for x in leaves), mechanism=module, causal=causal)
    torch.testing.assert_close(out[:1, :, 30:], alone, atol=1e-5, rtol=0)
    last = attend(leaves[0][:, :, -3:], *leaves[1:], module, causal=causal, padding_mask=mask)
    torch.testing.assert_close(last * real[:, :, -3:], (out * real)[:, :, -3:], atol=1e-5, rtol=0)
    leaves, module, weight = [x.detach().double().requires_grad_() for x in leaves], module.double(), torch.randn_like(expected) * real
    wanted = [*leaves, *module.parameters()]  # in float64: what is added up here rounds by more than a mistake would show
    outputs = [f(*leaves, module, causal=causal, padding_mask=mask) for f in (attend, reference_attend)]
    found, exact = (torch.autograd.grad((x * weight).sum(), wanted, allow_unused=True) for x in outputs)
    for a, b in zip(found, exact, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_a_fixed_matrix_is_saved_and_never_trained(tmp_path: Path) -> None:
    config = long_config("gpt2", {"mechanism": "synthesizer", "variant": "random+dot_product", "trainable": False})
    model = type(long_like(plain_model("gpt2"), "gpt2", {"mechanism": "full"}))(config).eval()
    matrices = {name: value for name, value in model.state_dict().items() if name.endswith("random.matrix")}
    assert len(matrices) == 3
    assert all(0.9 < value.std() < 1.1 for value in matrices.values())
    assert not set(matrices) & {name for name, _ in model.named_parameters()}
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    ids = tokens(2, 60)
    assert torch.equal(again(ids).last_hidden_state, model(ids).last_hidden_state)


@pytest.mark.parametrize("trainable", [True, False])
def test_a_plain_checkpoint_loads_with_drawn_values(tmp_path: Path, trainable: bool) -> None:
    plain = plain_model("gpt2")
    plain.save_pretrained(tmp_path)
    attention = {"mechanism": "synthesizer", "variant": "random+dense", "trainable": trainable}
    longer = type(long_like(plain, "gpt2", {"mechanism": "full"})).from_pretrained(tmp_path, config=long_config("gpt2", attention))
    matrices = [value for name, value in longer.state_dict().items() if name.endswith("random.matrix")]
    assert len(matrices) == 3
    assert all(0.9 < value.std() < 1.1 for value in matrices)
    assert not torch.equal(matrices[0], matrices[1])


def test_token_by_token_equals_the_full_pass() -> None:
    attention = {"mechanism": "synthesizer", "variant": "dense+random+dot_product"}
    model = long_like(plain_model("gpt2", "GPT2LMHeadModel"), "gpt2", attention)
    ids, mask = tokens(3, 60), padding(3, 60, left=True)
    steps = in_pieces(model, None, ids, mask, singly(0, 60))
    assert (steps - in_one_pass(model, ids, mask))[mask.bool()].abs().max() < 1e-4


def test_relative_positions_join_the_synthetic_scores() -> None:
    module = built("random", relative="alibi")
    q, k, v = (torch.randn(1, 4, 30, 8) for _ in range(3))
    out = attend(q, k, v, module, causal=True)
    torch.testing.assert_close(out, reference_attend(q, k, v, module, causal=True).float(), atol=1e-5, rtol=0)
    module.relative = None
    module._forward_pre_hooks.clear()
    assert not torch.allclose(out, attend(q, k, v, module, causal=True), atol=1e-3)


@every_cell(
    ("options", "sentence"),
    [
        ({"variant": "dens"}, "Did you mean 'dense'"),
        ({"variant": "dense+dense"}, "must name each kind once"),
        ({"variant": ()}, "is empty; for example variant=dense"),
        ({"rank": 0}, "'rank'.*must be at least 1"),
        ({"hidden": 0}, "'hidden'.*must be at least 1"),
        ({"max_length": 0}, "'max_length'.*must be at least 1"),
    ],
)
def test_bad_options_get_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        LongAttentionConfig("synthesizer", **options)


def test_lengths_are_checked() -> None:
    with pytest.raises(OptionError, match=r"no length was given; for example max_length=512"):
        build_mechanism("synthesizer", num_heads=2, head_dim=4)
    module = build_mechanism("synthesizer", num_heads=2, head_dim=4, max_length=16)
    x = torch.randn(1, 2, 17, 4)
    with pytest.raises(LengthError, match=r"The input has 17 tokens.*parameters for 16.*max_length=17"):
        attend(x, x, x, module)
    free = build_mechanism("synthesizer", num_heads=2, head_dim=4, variant="dot_product")
    assert attend(x, x, x, free).shape == x.shape
