"""The cases of a device's check cover every mechanism, form and dtype, run on the paths of both devices, and notice a difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from hf_longattn import list_mechanisms
from hf_longattn.engines import dispatch
from hf_longattn.mechanisms import mechanism_info
from scripts.dev.benchmarks import device_check
from scripts.dev.benchmarks.device_cases import WINDOW, DeviceCase, first_checks, forms, kernel_checks, stages
from scripts.dev.benchmarks.device_check import missed_path, run_case
from tests.cases import every_case
from tests.shared_code import code_of_form


def shortest(case: DeviceCase) -> int:
    """Tokens that reach the case's path; without a kernel, rows of hashes take seconds for twice as many."""
    return 300 if case.grid else 150 if case.mechanism == "lsh" else 290


SHORT = {
    str(case): case.at(length=min(case.length, shortest(case)), queries=min(case.queries, 200), path="")
    for case in first_checks()
    if case.task == "check"
}


def test_device_check_has_a_case_for_every_mechanism_form_and_dtype() -> None:
    for quick in (False, True):
        cases = [case for _, listed in stages(quick) for case in listed]
        dtypes = ("fp32", "bf16") if quick else ("fp32", "bf16", "fp16")
        checked = {(case.mechanism, case.causal, case.dtype) for case in cases if case.task == "check"}
        assert checked >= {(name, causal, dtype) for name in list_mechanisms(grid=False) for causal in forms(name) for dtype in dtypes}
        assert {case.mechanism for case in cases if case.task == "time" and not case.grid} == set(list_mechanisms(grid=False))
        assert len({str(case) for case in cases}) == len(cases)


@pytest.mark.thorough
@every_case("name", list_mechanisms(grid=False), of=6, code=code_of_form)
def test_device_check_passes_for_every_mechanism_on_a_cpu(name: str) -> None:
    for causal in forms(name):
        result = run_case(DeviceCase(name, length=33, causal=causal), "cpu")
        assert result["passed"], result


@pytest.mark.slow
@every_case("name", SHORT, of=9, code=lambda name: (mechanism_info(SHORT[name].mechanism).engine, SHORT[name].term, SHORT[name].padding))
def test_first_device_checks_pass_on_the_paths_for_cuda(
    name: str, cuda_paths: None, unfused_flex: None, emulated_flash: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With definitions in place of the kernels."""
    monkeypatch.setattr("hf_longattn.engines.common.call.DENSE_CELLS", 1)
    monkeypatch.setattr(dispatch, "DENSE_KEYS", 0)
    case = SHORT[name]
    result = run_case(case, "cpu")
    assert result["passed"], result
    if case.mechanism in ("window", "longformer") and 1 not in (case.length, case.queries):
        changes_scores = case.term != "none" or "relative" in case.options
        needs_flex = changes_scores or case.dtype == "fp32" or case.queries > 0  # some tokens of a batch with padding
        assert ("flex" if needs_flex else "flash") in result["paths"], result


def test_device_check_fails_for_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    right = device_check.attended
    monkeypatch.setattr(device_check, "attended", lambda *args, **kwargs: right(*args, **kwargs) * 1.1)
    result = run_case(WINDOW.at(length=33), "cpu")
    assert not result["passed"]
    assert result["failure"].startswith("the largest errors are output_error ")


def test_device_check_fails_for_attention_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes the right thing in N×N memory."""

    def unfused(mechanism: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
        return flex_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))

    monkeypatch.setattr("torch.nn.attention.flex_attention._WARNINGS_SHOWN", set())
    monkeypatch.setattr(device_check, "attended", unfused)
    result = run_case(WINDOW.at(length=33, mode="no_grad"), "cpu")
    assert not result["passed"]
    assert "flex_attention called without torch.compile" in result["failure"]


def test_device_check_records_a_kernel_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(device_check, "attended", fails)
    result = run_case(WINDOW.at(length=33), "cpu")
    assert not result["passed"]
    assert result["failure"] == "RuntimeError: no kernel image is available"


def test_device_check_ends_after_an_error_that_spoils_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(device_check, "attended", fails)
    with pytest.raises(torch.AcceleratorError):
        run_case(WINDOW.at(length=33), "cpu")


def test_device_check_fails_for_a_right_result_of_another_path() -> None:
    case, why = DeviceCase("block_top_k", path="flex-blocks"), {"flex-blocks": "its values differ"}
    assert missed_path(case.at(path=""), ["dense"], why) is None
    assert missed_path(case, ["split", "flex-blocks"], {}) is None
    failure = missed_path(case, ["split", "tiles"], why)
    assert failure == "the values are right, but they are of split, tiles instead of flex-blocks: its values differ"


@every_case("case", [case for case in kernel_checks() if case.path], ids=str)
def test_kernels_of_the_device_check_are_chosen_at_its_lengths(case: DeviceCase, cuda_paths: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the table of paths."""
    asked: list[str] = []
    first = dispatch.first_path

    def noted(kind: Any, asking: Any) -> Any:
        found = first(kind, asking)
        asked.append(found[0])
        if case.path in asked:
            raise RuntimeError("chosen")
        return found

    monkeypatch.setattr(dispatch, "first_path", noted)
    assert "chosen" in run_case(case, "cpu").get("failure", ""), asked


@pytest.mark.parametrize("task", ["time", "decode"])
def test_device_check_times_passes_and_decoding(task: Any) -> None:
    result = run_case(DeviceCase("window", task, length=40, causal=True, kv_heads=4), "cpu")
    assert result["passed"], result
    assert all(timing["ms"] > 0 for timing in result["timings"].values())
