"""The report of a conversion: one check that failed is enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_longattn.conversion.folders import ConversionReport
from hf_longattn.reports import FAILED, MEASURED, NEEDS_TRAINING, PASSED, SKIPPED, Check


@pytest.mark.parametrize(
    ("statuses", "passed"),
    [((PASSED, FAILED), False), ((FAILED,), False), ((PASSED, NEEDS_TRAINING, MEASURED, SKIPPED), True), ((), True)],
)
def test_conversion_report_passes_unless_a_check_failed(statuses: tuple[str, ...], passed: bool) -> None:
    checks = tuple(Check(f"check {number}", status, "a sentence") for number, status in enumerate(statuses))
    assert ConversionReport(Path("long"), {}, {}, checks, "text", (), 0, {}, None).passed is passed
