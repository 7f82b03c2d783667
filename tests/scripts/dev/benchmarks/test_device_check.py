"""The check of a device: its cases, and the record of a run on a GPU."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch.nn.attention.flex_attention import flex_attention

from hf_longattn import list_mechanisms
from hf_longattn.engines import dispatch
from hf_longattn.mechanisms import mechanism_info
from scripts.dev.benchmarks import device_check, gpu_check
from scripts.dev.benchmarks.device_cases import (
    GLOBALS,
    WINDOW,
    DeviceCase,
    first_checks,
    forms,
    kernel_checks,
    more_checks,
    stages,
)
from scripts.dev.benchmarks.device_check import missed_path, run_case
from scripts.dev.benchmarks.gpu_check import Results, Worker, run_stage
from tests.cases import every_case
from tests.shared_code import code_of_form


def shortest(case: DeviceCase) -> int:
    """Tokens that reach the case's path; without a kernel, rows of hashes take seconds for twice as many."""
    return 300 if case.grid else 150 if case.mechanism == "lsh" else 290


SHORT = {
    str(case): case.at(length=min(case.length, shortest(case)), queries=min(case.queries, 200), path="")
    for case in (*first_checks(), *more_checks())
    if case.task == "check"
}


def test_device_check_has_a_case_for_every_mechanism_form_and_dtype() -> None:
    for quick in (False, True):
        cases = [case for _, listed in stages(quick) for case in listed]
        dtypes = ("fp32", "bf16") if quick else ("fp32", "bf16", "fp16")
        checked = {(case.mechanism, case.causal, case.dtype) for case in cases if case.task == "check"}
        assert checked >= {
            (name, causal, dtype) for name in list_mechanisms(grid=False) for causal in forms(name) for dtype in dtypes
        }
        assert {case.mechanism for case in cases if case.task == "time" and not case.grid} == set(
            list_mechanisms(grid=False)
        )
        assert len({str(case) for case in cases}) == len(cases)


@pytest.mark.thorough
@every_case("name", list_mechanisms(grid=False), of=6, code=code_of_form)
def test_device_check_passes_for_every_mechanism_on_a_cpu(name: str) -> None:
    for causal in forms(name):
        result = run_case(DeviceCase(name, length=33, causal=causal), "cpu")
        assert result["passed"], result


@pytest.mark.slow
@every_case(
    "name",
    SHORT,
    of=9,
    code=lambda name: (mechanism_info(SHORT[name].mechanism).engine, SHORT[name].term, SHORT[name].padding),
)
def test_first_device_checks_pass_on_the_paths_for_cuda(
    name: str,
    cuda_paths: None,
    unfused_flex: None,
    emulated_flash: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With definitions in place of the kernels."""
    monkeypatch.setattr("hf_longattn.engines.call.DENSE_CELLS", 1)
    monkeypatch.setattr(dispatch, "DENSE_KEYS", 0)
    case = SHORT[name]
    result = run_case(case, "cpu")
    assert result["passed"], result
    if case.mechanism in ("window", "longformer") and 1 not in (case.length, case.queries):
        changes_scores = case.term != "none" or "relative" in case.options
        needs_flex = changes_scores or case.dtype == "fp32" or case.queries > 0  # some tokens of a batch with padding
        needs_flex |= case.padding == "holes" or (
            not case.dropout and (case.mechanism == "longformer" or "num_sinks" in case.options)
        )
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


def test_device_check_records_a_kernel_that_fails_unless_it_spoils_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [torch.AcceleratorError("an illegal memory access"), RuntimeError("no kernel image\nis available")]

    def fails(*args: object, **kwargs: object) -> None:
        raise errors.pop()

    monkeypatch.setattr(device_check, "attended", fails)
    assert run_case(WINDOW.at(length=33), "cpu")["failure"] == "RuntimeError: no kernel image is available"
    with pytest.raises(torch.AcceleratorError):
        run_case(WINDOW.at(length=33), "cpu")


def test_device_check_fails_for_a_right_result_of_another_path() -> None:
    case, why = DeviceCase("block_top_k", path="flex"), {"flex": "its values differ"}
    assert missed_path(case.at(path=""), ["dense"], why) is None
    assert missed_path(case, ["split", "flex"], {}) is None
    failure = missed_path(case, ["split", "tiles"], why)
    assert failure == "the values are right, but they are of split, tiles instead of flex: its values differ"


@every_case("case", [case for case in (*first_checks(), *kernel_checks()) if case.path], ids=str)
def test_kernels_of_the_device_check_are_chosen_at_its_lengths(
    case: DeviceCase, cuda_paths: None, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize("task", ["time", "model"])
def test_device_check_times_layers_and_models(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_check, "LAYERS", 2)
    result = run_case(DeviceCase("longformer", task, length=40, kv_heads=4, tokens=3, dropout=0.1), "cpu")
    assert result["passed"], result
    assert result["timings"].keys() == (
        {"longattn", "first layer", "sdpa"} if task == "time" else {"longattn", "stock"}
    )
    assert all(timing["ms"] > 0 for timing in result["timings"].values())


def test_device_check_checks_decoding() -> None:
    result = run_case(DeviceCase("window", "decode", length=40, causal=True, kv_heads=4, dtype="fp32"), "cpu")
    assert result["passed"], result


def test_device_check_finds_a_gradient_that_forgets_the_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output is right."""
    case, right = GLOBALS.at(length=40, dropout=0.3, dtype="fp32", heads=4, kv_heads=4), device_check.attended

    def forgetful(mechanism: Any, *qkv: torch.Tensor, **arguments: Any) -> torch.Tensor:
        out = right(mechanism, *qkv, **arguments)
        arguments.pop("dropout_p")
        plain = right(mechanism, *qkv, **arguments)
        return plain + (out - plain).detach()

    assert run_case(case.at(task="check"), "cpu")["passed"]
    monkeypatch.setattr(device_check, "attended", forgetful)
    result = run_case(case.at(task="check"), "cpu")
    assert not result["passed"]
    assert result["output_error"] < 1e-5


def results_in(folder: Path) -> Results:
    return Results(folder / "results.json", {}, 2, "abcd")


class Stub:
    """A worker that answers at once."""

    ended = False

    def __init__(self, device: str, log: Any) -> None:
        self.device = device

    def run(self, case: DeviceCase, seconds: float) -> dict[str, Any]:
        result = case.record() | {"passed": case.dtype != "fp16"}
        return result if result["passed"] else {**result, "failure": "it is wrong"}

    def close(self) -> None:
        """Nothing to end."""


@pytest.mark.parametrize(("dtype", "code"), [("fp32", 0), ("fp16", 1)])
def test_gpu_check_stores_everything_and_exits_with_one_after_a_failure(
    dtype: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "Worker", Stub)
    monkeypatch.setattr(gpu_check, "stages", lambda quick: [(False, [WINDOW]), (True, [WINDOW.at(dtype=dtype)])])
    output = tmp_path / "new" / "gpu.json"
    try:
        gpu_check.main(device="cpu", quick=True, budget=100.0, workers=0, output=output, commit="1234abcd")
        stopped = 0
    except typer.Exit as error:
        stopped = error.exit_code
    assert stopped == code
    record = json.loads(output.read_text())
    assert "processor" in record["machine"]
    assert [one["passed"] for one in record["results"]] == [True, not code]
    assert {one["commit"] for one in record["results"]} == {"1234abcd"}
    printed = capsys.readouterr().out
    assert f"{2 - code} of 2 cases passed" in printed
    assert "0 cases were not reached within the budget" in printed
    assert ("it is wrong" in printed) == bool(code)


def test_gpu_check_resumes_with_what_did_not_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What passed is kept as it was found; without earlier results everything runs."""
    begun = []
    monkeypatch.setattr(
        Stub, "run", lambda self, case, seconds: begun.append(case) or case.record() | {"passed": len(begun) != 2}
    )
    monkeypatch.setattr(gpu_check, "Worker", Stub)
    cases = [WINDOW, WINDOW.at(dtype="fp16"), WINDOW.at(dtype="fp32")]
    monkeypatch.setattr(gpu_check, "stages", lambda quick: [(False, cases)])
    settings: dict[str, Any] = {
        "device": "cpu",
        "workers": 1,
        "budget": 100.0,
        "resume": True,
        "output": tmp_path / "gpu.json",
    }
    with pytest.raises(typer.Exit):
        gpu_check.main(**settings)
    assert begun == cases
    gpu_check.main(**settings)
    assert begun == [*cases, cases[1]]
    found = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert {one["case"] for one in found if one["passed"]} == {str(case) for case in cases}
    monkeypatch.setattr(gpu_check, "machine", lambda: {"gpu": "another"})
    gpu_check.main(**settings)
    assert begun == [*cases, cases[1], *cases]


def test_gpu_check_begins_nothing_after_its_budget(tmp_path: Path) -> None:
    results = results_in(tmp_path)
    left = run_stage([WINDOW], 1, lambda: Stub("cpu", None), results.add, time.monotonic() - 1, time.monotonic() + 60)
    assert not results.found
    assert left == [WINDOW]


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    if shutil.which(words[0]) is None:
        pytest.skip(f"there is no {words[0]}")
    monkeypatch.setattr(gpu_check, "COMMAND", list(words))


def test_gpu_worker_that_ends_costs_its_case_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command(monkeypatch, "false")
    results = results_in(tmp_path)
    with open(tmp_path / "log", "w") as log:
        run_stage(
            [WINDOW, WINDOW.at(causal=True)], 1, lambda: Worker("cpu", log), results.add, *[time.monotonic() + 60] * 2
        )
    assert [one["failure"] for one in results.found] == ["its process ended with exit code 1"] * 2
    assert [one["case"] for one in results.found] == [str(WINDOW), str(WINDOW.at(causal=True))]


def test_gpu_worker_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command(monkeypatch, "sleep")
    with open(tmp_path / "log", "w") as log:
        worker = Worker("60", log)
        assert worker.run(WINDOW, 0.2)["failure"] == "it was ended after 0 seconds"
        worker.close()


@pytest.mark.slow
def test_gpu_check_starts_a_new_process_after_an_illegal_access(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After it nothing runs on the device in the process that made it."""
    broken = (
        "import sys, torch\n"
        "from scripts.dev.benchmarks import device_check, gpu_check\n"
        "def run_case(case, device):\n"
        "    if case.causal: raise torch.AcceleratorError('an illegal memory access was encountered')\n"
        "    return {'case': str(case), 'length': case.length, 'passed': True}\n"
        "device_check.run_case = run_case\n"
        "gpu_check.work('cpu')\n"
    )
    command(monkeypatch, sys.executable, "-c", broken)
    results = results_in(tmp_path)
    with open(tmp_path / "log", "w") as log:
        cases = [WINDOW, WINDOW.at(causal=True), WINDOW.at(dtype="fp32")]
        run_stage(cases, 1, lambda: Worker("cpu", log), results.add, *[time.monotonic() + 120] * 2)
    assert [one["passed"] for one in results.found] == [True, False, True]
    assert "illegal memory access" in results.found[1]["failure"]
    assert not any("spoiled" in one for one in results.found)


@pytest.mark.slow
def test_gpu_worker_runs_cases(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as log:
        worker = Worker("cpu", log)
        first, second = (
            worker.run(case, 200) for case in (WINDOW.at(length=40), DeviceCase("full", "time", length=8, kv_heads=4))
        )
        worker.close()
    assert first["passed"], first
    assert first["paths"]
    assert second["timings"]["longattn"]["ms"] > 0
