"""linformer, nystrom and synthesizer: every form against its definition, padding and lengths, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longattn import LongGPT2Model, attend, build_mechanism, reference_attend
from hf_longattn.errors import InputError, OptionError
from hf_longattn.mechanisms.nystrom import pseudo_inverse
from tests.cases import every_case
from tests.reference.small_models import long_config, plain_model


def test_linformer_refuses_a_text_longer_than_its_projection() -> None:
    with pytest.raises(InputError, match=r"65 tokens.*rows for 64; shorten the input, or .*max_length=65\.$"):
        attend(*torch.randn(3, 1, 4, 65, 8), "linformer", rank=8, max_length=64)


def nystrom_built(**options: Any) -> Any:
    module = build_mechanism("nystrom", num_heads=4, head_dim=8, **options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def test_empty_nystrom_landmarks_of_a_short_text_do_not_count_in_the_norm() -> None:
    """The norm of one token's matrix is 1, and no norm is less."""
    module = nystrom_built(num_landmarks=16, inv_coeff_init_option="original")
    batch = torch.randn(3, 2, 4, 120, 8)
    mask = torch.ones(2, 120, dtype=torch.bool)
    mask[1, 1:] = False
    for route in (attend, reference_attend):
        torch.testing.assert_close(
            route(*batch, module, padding_mask=mask)[0], route(*batch[:, :1], module)[0], atol=1e-5, rtol=0
        )


def test_the_convolution_of_nystrom_begins_as_zero() -> None:
    q, k, v = torch.randn(3, 1, 4, 100, 8)
    module = build_mechanism("nystrom", num_heads=4, head_dim=8, num_landmarks=16, conv_kernel=9)
    assert torch.equal(attend(q, k, v, module), attend(q, k, v, "nystrom", num_landmarks=16))


def test_the_iterations_of_nystrom_reach_the_pseudo_inverse() -> None:
    a = torch.softmax(3 * torch.randn(2, 3, 12, 12, dtype=torch.float64), -1)
    for per_matrix in (True, False):
        torch.testing.assert_close(pseudo_inverse(a, 30, per_matrix), torch.linalg.pinv(a))
    assert not torch.allclose(pseudo_inverse(a, 2, True), pseudo_inverse(a, 2, False))


def synthesizer_built(variant: str, **options: Any) -> Any:
    options = {"max_length": 40, **options}
    module = build_mechanism("synthesizer", num_heads=4, head_dim=8, variant=variant, **options)
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if "bias" in name else 1.0)
    return module


@every_case(
    ("variant", "names"),
    [
        ("dense", [f"kinds.dense.mlp.{name}" for name in ("first", "first_bias", "second", "second_bias")]),
        ("random", ["kinds.random.matrix"]),
    ],
)
def test_tensors_of_synthesizer_have_the_names_of_saved_models(variant: str, names: list[str]) -> None:
    assert [*synthesizer_built(variant, max_length=16).state_dict()] == names


def test_a_plain_checkpoint_loads_into_synthesizer_with_drawn_values(tmp_path: Path) -> None:
    plain_model("gpt2").save_pretrained(tmp_path)
    attention = {"mechanism": "synthesizer", "variant": "random"}
    longer = LongGPT2Model.from_pretrained(tmp_path, config=long_config("gpt2", attention))
    matrices = [value for name, value in longer.state_dict().items() if name.endswith("kinds.random.matrix")]
    assert len(matrices) == 3
    assert all(0.9 < value.std() < 1.1 for value in matrices)
    assert not torch.equal(matrices[0], matrices[1])


def test_synthesizer_refuses_a_missing_length_and_longer_texts() -> None:
    with pytest.raises(OptionError, match=r"no length was given; give the longest input, for example max_length=512"):
        build_mechanism("synthesizer", num_heads=2, head_dim=4)
    module = build_mechanism("synthesizer", num_heads=2, head_dim=4, max_length=16)
    x = torch.randn(1, 2, 17, 4)
    with pytest.raises(InputError, match=r"The input has 17 tokens.*parameters for 16.*max_length=17"):
        attend(x, x, x, module)
