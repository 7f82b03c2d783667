"""Standard errors: NumPy's with one degree of freedom less, a ratio's by its definition, and none of fewer than ten items."""

from __future__ import annotations

import random

import numpy as np
import pytest

from hf_longattn.evaluation.summaries import in_percent, mean_and_error, means_in_percent, plus_minus, ratio_and_error


@pytest.mark.parametrize("count", [10, 11, 300])
def test_mean_error_is_the_standard_error_of_the_sample(count: int) -> None:
    """Bessel's correction: the spread is divided by n - 1."""
    values = [random.Random(count).gauss(3, 2) for _ in range(count)]
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(np.mean(values))
    assert error == pytest.approx(np.std(values, ddof=1) / count**0.5, rel=1e-9)


def test_ratio_error_is_that_of_cochran() -> None:
    choose = random.Random(0)
    pairs = [(choose.randint(0, 5), choose.randint(5, 9)) for _ in range(12)]
    parts, sizes = (np.array(column) for column in zip(*pairs, strict=True))
    ratio, error = ratio_and_error(pairs)
    assert ratio == pytest.approx(parts.sum() / sizes.sum())
    residuals = parts - ratio * sizes
    assert error == pytest.approx(np.sqrt((residuals**2).sum() / (12 - 1) / 12) / sizes.mean(), rel=1e-9)


def test_scores_of_fewer_than_ten_items_have_no_standard_error() -> None:
    for count in range(10):
        assert mean_and_error([1.0] * count)[1] is None
        assert ratio_and_error([(1, 2)] * count)[1] is None
        assert means_in_percent(("f1",), [(1.0,)] * count) == {"f1": 100.0 * bool(count), "n": count}
    assert means_in_percent(("f1",), [(1.0,)] * 10) == {"f1": 100.0, "f1_se": 0.0, "n": 10}
    assert in_percent({"a": (0.5, None), "b": (0.5, 0.1)}, 10) == {"a": 50.0, "b": 50.0, "b_se": 10.0, "n": 10}
    assert (plus_minus(2.935, None, 2), plus_minus(2.935, 0.04, 1)) == ("2.94", "2.9 ± 0.0")
