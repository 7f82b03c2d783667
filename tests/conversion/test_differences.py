"""Outputs are equal relative to their scale, and only if a mechanism covers the input."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from transformers import PatchTSTConfig, PatchTSTForPrediction

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.reports import Difference, equality


def test_difference_is_relative_to_the_scale_of_its_output() -> None:
    ones, masked = torch.ones(4), torch.tensor([1.0, -1.0, -1e6, -1e6])
    cases: dict[str, tuple[dict[str, Tensor], dict[str, Tensor], float]] = {
        "small outputs": ({"a": ones * 0.03}, {"a": ones * 0.03 + 3e-5}, 1e-3),
        "large outputs": ({"a": ones * 100}, {"a": ones * 100 + 1e-3}, 1e-5),
        "a small output beside a large one": ({"a": ones * 100, "b": ones * 0.03}, {"a": ones * 100, "b": ones * 0.03 + 3e-5}, 1e-3),
        "masked logits": ({"a": masked}, {"a": masked + torch.tensor([0.1, 0, 0, 0])}, 0.1),
        "equal infinities": ({"a": torch.tensor([1.0, -math.inf])}, {"a": torch.tensor([1.0, -math.inf])}, 0),
        "NaN": ({"a": ones}, {"a": ones * math.nan}, math.inf),
        "zeros": ({"a": ones * 0}, {"a": ones * 1e-9}, math.inf),
        "another shape": ({"a": ones}, {"a": ones[:2]}, math.inf),
        "a missing output": ({"a": ones, "b": ones}, {"a": ones}, math.inf),
        "nothing to compare": ({}, {"a": ones}, math.inf),
    }
    differences = {name: Difference.of(expected, measured) for name, (expected, measured, _) in cases.items()}
    wrong = {
        name: differences[name]
        for name, (_, _, relative) in cases.items()
        if not math.isclose(differences[name].relative, relative, rel_tol=1e-2)
    }
    assert not wrong
    assert (differences["a small output beside a large one"].output, differences["masked logits"].scale) == ("b", 1)


def test_equality_check_says_equal_only_of_what_must_be_equal() -> None:
    near, far, zero = (Difference(1e-6 * size, 1.0, 1e-6 * size, "logits") for size in (1, 1e3, 0))
    cases = [
        (near, "", "passed", "difference 1.0e-06 of the largest value 1 (logits), equal"),
        (near, "it is another one", "measured", "1.0e-06 of the largest value 1 (logits): not exact, since it is another one"),
        (far, "it is another one", "needs training", "1.0e-03 of the largest value 1 (logits): not exact, since it is another one"),
        (far, "", "failed", "1.0e-03 of the largest value 1 (logits), but they must be equal"),
        (Difference(math.nan, 1.0, math.inf, "logits"), "it is another one", "failed", "but they must be finite"),
        (Difference(), "", "failed", "but they must be equal"),
        (Difference(0.0, 0.0, 0.0, "logits"), "", "skipped", "is that of zeros, since the source's outputs are all zero"),
        (zero, "", "passed", ", equal"),
    ]
    for difference, why, status, detail in cases:
        check = equality("outputs", "largest difference", difference, {}, why)
        assert (check.status, detail in check.detail) == (status, True), check


def test_small_forecasts_are_not_equal_because_they_are_small(tmp_path: Path) -> None:
    """A window of 8 of 32 patches: outputs differ by 7e-6, which is much for outputs of 0.016."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "prediction_length": 8}
    config = PatchTSTConfig(num_input_channels=1, context_length=128, patch_length=4, patch_stride=4, scaling=None, **sizes)
    PatchTSTForPrediction(config).save_pretrained(tmp_path / "short")
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", generic=True, mechanism="window", window=8)
    check = next(check for check in report.checks if check.name == "with the mechanism")
    assert check.status == "needs training"
    assert "equal" not in check.detail
    assert check.values["max_abs_difference"] < 1e-4 < check.values["relative_difference"]
