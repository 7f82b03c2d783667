"""synthesizer: every variant against its definition, what is learned, lengths, and whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.errors import InputError, OptionError
from tests.cases import every_case
from tests.reference.small_models import long_config, long_like, plain_model, tokens

MIXTURES = ["dense", "factorized_dense", "random", "factorized_random", "dense+dot_product", "random+dot_product", "dense+random"]
FORMS = [*MIXTURES, "factorized_dense+factorized_random+dot_product"]


def built(variant: str, **options: Any) -> Any:
    options = {"max_length": 40, "factor": 5, "rank": 3, "hidden": 6, **options}
    module = build_mechanism("synthesizer", num_heads=4, head_dim=8, variant=variant, **options)
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if "bias" in name or "mixing" in name else 1.0)
    return module


@every_case("causal", [False, True])
@every_case("variant", FORMS)
def test_every_synthesizer_variant_equals_its_definition_with_all_gradients(variant: str, causal: bool) -> None:
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


def test_a_fixed_synthesizer_matrix_is_saved_and_never_trained(tmp_path: Path) -> None:
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
def test_a_plain_checkpoint_loads_into_synthesizer_with_drawn_values(tmp_path: Path, trainable: bool) -> None:
    plain = plain_model("gpt2")
    plain.save_pretrained(tmp_path)
    attention = {"mechanism": "synthesizer", "variant": "random+dense", "trainable": trainable}
    longer = type(long_like(plain, "gpt2", {"mechanism": "full"})).from_pretrained(tmp_path, config=long_config("gpt2", attention))
    matrices = [value for name, value in longer.state_dict().items() if name.endswith("random.matrix")]
    assert len(matrices) == 3
    assert all(0.9 < value.std() < 1.1 for value in matrices)
    assert not torch.equal(matrices[0], matrices[1])


def test_synthesizer_refuses_a_missing_length_and_longer_texts() -> None:
    with pytest.raises(OptionError, match=r"no length was given; for example max_length=512"):
        build_mechanism("synthesizer", num_heads=2, head_dim=4)
    module = build_mechanism("synthesizer", num_heads=2, head_dim=4, max_length=16)
    x = torch.randn(1, 2, 17, 4)
    with pytest.raises(InputError, match=r"The input has 17 tokens.*parameters for 16.*max_length=17"):
        attend(x, x, x, module)
    free = build_mechanism("synthesizer", num_heads=2, head_dim=4, variant="dot_product")
    assert attend(x, x, x, free).shape == x.shape
