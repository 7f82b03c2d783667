"""The comparison of transformers' attention with ours under stock models: equality first, and only what fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.dev.benchmarks import stock_windows

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 50368}


def test_measured_stock_models_are_equal_before_they_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = stock_windows.Shape("modernbert", SMALL, "sdpa", 3, {512: 2})
    monkeypatch.setattr(stock_windows, "SHAPES", {"a/small": shape})
    monkeypatch.setattr(stock_windows, "STOCK_GIB", 2048**2 / 2**31)  # less than the mask of 2,048 tokens
    monkeypatch.setattr(stock_windows, "ProcessPoolExecutor", Inline)
    stock_windows.main(["--quick", "--output", str(tmp_path / "result")])
    record = json.loads((tmp_path / "result.json").read_text())
    first, second = record["rows"]
    assert [first["layers"], second["layers"]] == [2, 3]
    assert 0 < first["difference"] < 1e-5
    assert len(first["mebibytes"]) == 2
    assert len(second["mebibytes"]) == 1  # stock did not run
    assert "| small, 3 of 3 layers | 2,048 | – |" in capsys.readouterr().out
    monkeypatch.setattr(stock_windows, "TOLERANCE", 0.0)
    with pytest.raises(SystemExit, match="outputs differ"):
        stock_windows.main(["--quick", "--only", "small"])


class Inline:
    """An executor that calls at once, where fakes are seen."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *args: Any) -> None: ...

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        value = function(*args)
        return type("Done", (), {"result": lambda self: value})()
