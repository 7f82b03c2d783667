"""A plan can be compared with what the other mechanisms would cost, from shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hf_longattn.conversion import plan_conversion
from hf_longattn.conversion.planning.comparison import LENGTHS, compare_mechanisms, matrix_speed


@pytest.mark.parametrize("name", ["BertForMaskedLM", "LlamaForCausalLM"])
def test_every_mechanism_is_compared_at_1k_to_64k(name: str, built: Callable[[str], Path]) -> None:
    rows = {row.mechanism: row for row in compare_mechanisms(plan_conversion(built(name), mechanism="window", window=16, max_length=128))}
    assert LENGTHS == (1024, 2048, 4096, 8192, 16384, 32768, 65536)
    assert next(iter(rows)) == "as planned"
    assert not [row.refused for row in rows.values() if row.refused]
    assert rows["as planned"].flops < rows["window"].flops < rows["full"].flops
    growth = {mechanism: row.flops[-1] / row.flops[-2] for mechanism, row in rows.items()}
    assert growth["full"] == pytest.approx(4, rel=0.05)
    for linear in ("window", "linear", "performer"):
        assert growth[linear] == pytest.approx(2, rel=0.05)
    assert all(len(row.bytes) == len(LENGTHS) for row in rows.values())


def test_the_speed_of_this_machine_is_a_number_of_operations_a_second() -> None:
    assert matrix_speed(size=64, rounds=2) > 1e6
