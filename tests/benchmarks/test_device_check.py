"""The check of a device covers every mechanism, form and dtype, and notices a difference."""

from __future__ import annotations

import pytest

from benchmarks import device_check
from benchmarks.device_check import check_device
from hf_longattn import list_mechanisms


def test_every_mechanism_form_and_dtype_is_checked() -> None:
    lines: list[str] = []
    checks = list(check_device("cpu", [1, 33], ["fp32", "bf16"], lines.append))
    assert {check.mechanism for check in checks} == set(list_mechanisms())
    assert all(check.passed for check in checks), [check for check in checks if not check.passed]
    assert len(lines) == len(checks)
    assert {check.dtype for check in checks} == {"fp32", "bf16"}


def test_a_wrong_result_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = device_check.attended
    monkeypatch.setattr(device_check, "attended", lambda *args, **kwargs: right(*args, **kwargs) * 1.001)
    assert not any(check.passed for check in check_device("cpu", [33], ["fp32"], lambda line: None))


def test_a_kernel_that_fails_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(device_check, "attended", fails)
    check = next(check_device("cpu", [33], ["fp32"], lambda line: None))
    assert not check.passed
    assert check.failure == "RuntimeError: no kernel image is available"
