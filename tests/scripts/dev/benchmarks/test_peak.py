import time

import pytest
import torch

from scripts.dev.benchmarks.case import Case
from scripts.dev.benchmarks.implementations import build_implementation
from scripts.dev.benchmarks.inputs import build_inputs
from scripts.dev.benchmarks.peak import matrix_peak, operations

LENGTH, WINDOW = 1024, 64


@pytest.mark.parametrize(("backward", "passes"), [(False, 1), (True, 3.5)])  # five products in the backward pass, two in the forward pass
def test_the_operations_of_attention_are_those_of_its_pairs(backward: bool, passes: float) -> None:
    inputs = build_inputs("attention", Case("window", {"window": WINDOW}, length=LENGTH, backward=backward, heads=2, head_dim=16))
    counted = {name: operations(build_implementation("attention", name, inputs), backward) for name in ("sdpa", "longattn")}
    of_a_pair = passes * 2 * 4 * 16  # two heads; a product of 16 numbers for its score, and one for its value
    assert counted["sdpa"] == of_a_pair * LENGTH**2
    pairs = counted["longattn"] / of_a_pair
    assert LENGTH * WINDOW * 0.9 < pairs < LENGTH**2 / 2  # blocks of queries see the windows of all their queries


def test_the_peak_is_above_zero() -> None:
    assert matrix_peak("fp32", "cpu", time.perf_counter) > 1e9


@pytest.mark.slow
def test_compiled_code_is_not_counted_and_stays_compiled() -> None:
    """A counter inside of it would send flex_attention to its plain form for good."""
    inputs = build_inputs("attention", Case("window", {"window": WINDOW}, length=256, heads=1, head_dim=16))
    flex = build_implementation("attention", "flex", inputs)
    expected = flex.run(False)
    assert operations(flex, False) == 0
    assert torch.equal(flex.run(False), expected)
