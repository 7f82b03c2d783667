"""The check on a GPU: a sentence where there is no CUDA, and one stored record with everything in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from benchmarks import gpu_check
from benchmarks.device_check import DeviceCheck


def test_without_cuda_it_says_so_and_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    gpu_check.main(output=tmp_path / "gpu.json")
    assert "no CUDA device" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("error", "code"), [(1e-7, 0), (1e-2, 1)])
def test_everything_is_stored_and_a_difference_exits_with_one(
    error: float, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check = DeviceCheck("window", "fp32", False, 77, error, error)
    monkeypatch.setattr(gpu_check, "check_device", lambda *args: iter([check]))
    monkeypatch.setattr(gpu_check, "timings", lambda device, quick: [{"equal": True}])
    output = tmp_path / "new" / "gpu.json"
    if code:
        with pytest.raises(typer.Exit) as stopped:
            gpu_check.main(device="cpu", quick=True, output=output)
        assert stopped.value.exit_code == 1
    else:
        gpu_check.main(device="cpu", quick=True, output=output)
    record = json.loads(output.read_text())
    assert record["checks"] == [check.to_dict()]
    assert record["timings"] == ([] if code else [{"equal": True}])
    assert "processor" in record["machine"]
