"""Pictures of two digits that lie far apart: what is drawn, and the table of the study."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from scripts.dev.studies.far_digits import (
    CLASSES,
    DIGIT_PIXELS,
    TRAINING_DIGITS,
    Digits,
    Drawing,
    far_places,
    page,
    wilson,
)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


@pytest.mark.parametrize("size", [32, 128, 1024])
def test_digits_lie_half_the_picture_apart_and_inside_it(size: int) -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        (row, column), (other_row, other_column) = far_places(size, random)
        assert math.hypot(row - other_row, column - other_column) >= size / 2
        assert min(row, column, other_row, other_column) >= 0
        assert max(row, column, other_row, other_column) <= size - DIGIT_PIXELS


@pytest.mark.parametrize("label", list(CLASSES))
def test_every_label_is_as_frequent_and_held_out_digits_are_others(label: str, digits: Digits) -> None:
    random = np.random.default_rng(0)
    for held_out in (False, True):
        drawn = [digits._two_digits(Drawing(32, label, held_out), random) for _ in range(600)]
        counts = np.bincount([number for _, number in drawn], minlength=CLASSES[label]) / len(drawn)
        assert np.abs(counts - 1 / CLASSES[label]).max() < 0.06
        assert all((digit >= TRAINING_DIGITS) == held_out for chosen, _ in drawn for digit in chosen)
        for (first, second), number in drawn:
            one, two = int(digits.names[first]), int(digits.names[second])
            assert number == ((one + two) % 10 if label == "sum" else [0, 1, 2][1 + (one > two) - (one < two)])


def test_the_control_is_the_same_picture_without_one_digit(digits: Digits) -> None:
    pictures = [digits.batch(Drawing(64, "sum", blank=blank), 1, np.random.default_rng(3)) for blank in (False, True)]
    assert pictures[0][1].tolist() == pictures[1][1].tolist()
    changed = (pictures[0][0] != pictures[1][0]).any(1)[0].nonzero()
    extent = changed.amax(0) - changed.amin(0) + 1
    assert torch.all(extent <= DIGIT_PIXELS)
    assert len(changed)


def test_intervals_are_wilsons() -> None:
    """Values of statsmodels' ``proportion_confint(…, method="wilson")``."""
    assert wilson(10, 100) == pytest.approx((5.5229, 17.4366), abs=1e-3)
    assert wilson(0, 20) == pytest.approx((0.0, 16.1125), abs=1e-2)


def test_the_page_has_a_row_for_each_system() -> None:
    score = {"accuracy": 50.0, "interval": (40.0, 60.0), "right": 50, "n": 100}
    row: dict[str, Any] = {"steps": 10, "seconds": 4.0, "loss": 1.0, "MB": 12.0}
    row |= dict.fromkeys(("before", "after", "one digit blanked"), score)
    settings = {
        "size": 128,
        "short_size": 32,
        "patch": 8,
        "label": "sum",
        "layers": 4,
        "width": 128,
        "pictures": 100,
        "batch": 16,
        "test_pictures": 100,
    }
    run = {"seed": 0, "short": {"held_out": score}, "systems": {"window2d": row}}
    text = page({"settings": settings, "runs": [run, run], "command": "python -m x", "notes": ["A note."]})
    assert "| window2d | 50.0 (43.1–56.9) | 50.0 (43.1–56.9) | 50.0 (43.1–56.9) | 160 | 0.025 | 12 |" in text
    assert "(256 patches)" in text
    assert "2 seeds" in text
    assert text.endswith("- A note.\n- Command: `python -m x`\n")
