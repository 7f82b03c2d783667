"""The check on a GPU: every result is stored as soon as it is known, whatever becomes of the process that found it."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from scripts.dev.benchmarks import gpu_check
from scripts.dev.benchmarks.device_cases import GLOBALS, WINDOW, DeviceCase
from scripts.dev.benchmarks.gpu_check import Results, Worker, markdown, run_stage


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
    monkeypatch.setattr(Stub, "run", lambda self, case, seconds: begun.append(case) or case.record() | {"passed": len(begun) != 2})
    monkeypatch.setattr(gpu_check, "Worker", Stub)
    cases = [WINDOW, WINDOW.at(dtype="fp16"), WINDOW.at(dtype="fp32")]
    monkeypatch.setattr(gpu_check, "stages", lambda quick: [(False, cases)])
    settings: dict[str, Any] = {"device": "cpu", "workers": 1, "budget": 100.0, "resume": True, "output": tmp_path / "gpu.json"}
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


@pytest.mark.thorough
def test_gpu_check_leaves_each_stage_its_share_of_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And goes on after it; kernels of timings are compiled by several workers before, which are no results."""
    ran: list[tuple[str, str]] = []

    class Slow(Stub):
        def run(self, case: DeviceCase, seconds: float) -> dict[str, Any]:
            ran.append((case.task, case.mechanism))
            time.sleep(0.3)
            return super().run(case, seconds)

    monkeypatch.setattr(gpu_check, "Worker", Slow)
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "machine", dict)
    monkeypatch.setattr(gpu_check, "SHARES", (0.01, 1.0))
    checks, timings = [WINDOW, WINDOW.at(mechanism="strided")], [WINDOW.at(task="time", length=length) for length in (64, 128)]
    monkeypatch.setattr(gpu_check, "stages", lambda quick: [(False, checks), (True, timings)])
    output = tmp_path / "gpu.json"
    gpu_check.main(device="cuda", quick=False, budget=20.0, workers=1, output=output)
    expected = [("check", "window"), ("prepare", "window"), ("time", "window"), ("time", "window"), ("check", "strided")]
    assert ran == expected
    assert [(one["task"], one["mechanism"]) for one in json.loads(output.read_text())["results"]] == [*expected[:1], *expected[2:]]


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    if shutil.which(words[0]) is None:
        pytest.skip(f"there is no {words[0]}")
    monkeypatch.setattr(gpu_check, "COMMAND", list(words))


def test_gpu_worker_that_ends_costs_its_case_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command(monkeypatch, "false")
    results = results_in(tmp_path)
    with open(tmp_path / "log", "w") as log:
        run_stage([WINDOW, WINDOW.at(causal=True)], 1, lambda: Worker("cpu", log), results.add, *[time.monotonic() + 60] * 2)
    assert [one["failure"] for one in results.found] == ["its process ended with exit code 1"] * 2
    assert [one["case"] for one in results.found] == [str(WINDOW), str(WINDOW.at(causal=True))]


def test_gpu_worker_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command(monkeypatch, "sleep")
    with open(tmp_path / "log", "w") as log:
        worker = Worker("60", log)
        assert worker.run(WINDOW, 0.2)["failure"] == "it was ended after 0 seconds"
        worker.close()


@pytest.mark.slow
def test_gpu_check_starts_a_new_process_after_an_illegal_access(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
        first, second = (worker.run(case, 200) for case in (WINDOW.at(length=40), DeviceCase("full", "time", length=8, kv_heads=4)))
        worker.close()
    assert first["passed"], first
    assert first["paths"]
    assert second["timings"]["longattn"]["ms"] > 0


def test_tables_say_how_a_layer_and_a_model_were_timed(tmp_path: Path) -> None:
    def found(case: DeviceCase, **times: float) -> dict[str, Any]:
        ours = {"ms": 0.5, "host_ms": 0.4, "device_ms": 0.3}
        timings = {"longattn": ours, **{name.replace("_", " "): {"ms": ms} for name, ms in times.items()}}
        return case.record() | {"passed": True, "paths": ["flex"], "timings": timings}

    results = results_in(tmp_path)
    results.add(found(GLOBALS.at(length=4096), first_layer=0.6, flex=0.4, sdpa_flash=1.0))
    results.add(found(GLOBALS.at(task="model", length=4096, dropout=0.1), stock=2.0))
    text = markdown(results.record)
    assert (
        "| `longformer`, 3 global tokens | 4,096 | 0.50 (×0.50) | 0.40 | 0.30 | 0.60 (×0.60) | 0.40 (×0.40) | 1.00 | flex | abcd |" in text
    )
    assert "| `longformer`, 3 global tokens, dropout 0.1 | 4,096 | 0.5 (4.00×) | 0.4 | 0.3 | 2.0 | abcd |" in text
