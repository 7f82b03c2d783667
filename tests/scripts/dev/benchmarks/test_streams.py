"""The benchmark of streams: a stream is compared with one pass and with itself after a stop before its row is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scripts.dev.benchmarks import streams
from scripts.dev.benchmarks.report import machine
from scripts.dev.benchmarks.streams import PARAKEET, WAV2VEC2, markdown, measure

WINDOW = {"mechanism": "window", "left": 20, "right": 2}


def row(name: str) -> dict[str, Any]:
    return measure(name, WINDOW, 16, 2.0, quick=True)


@pytest.mark.parametrize(("name", "lookahead", "delay"), [(WAV2VEC2, 63 + 2 * 2, 1.665), (PARAKEET, 2 * (2 + 4), 2.17)])
def test_a_row_and_the_table(name: str, lookahead: int, delay: float) -> None:
    measured = row(name)
    assert measured["lookahead"] == lookahead
    assert measured["delay"] == pytest.approx(delay)
    assert measured["early_bytes"] <= measured["late_bytes"] < 200_000
    table = markdown({"machine": machine(), "rows": [measured]})
    assert f"| {name} | `window left=20 right=2` | 16 | {lookahead} |" in table
    assert "A stream that was saved in the middle and loaded gave the same bits." in table


@pytest.mark.parametrize("name", [streams.WAVLM, streams.CONFORMER, streams.W2V_BERT, streams.NEMOTRON])
def test_the_other_models_stream(name: str) -> None:
    assert row(name)["difference"] <= streams.TOLERANCE


def test_a_stream_that_is_not_what_one_pass_gives_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit, match="differ by"):
        row(WAV2VEC2)
    monkeypatch.setattr(streams, "TOLERANCE", 1e-4)
    monkeypatch.setattr(streams, "resumed", lambda model, chunk, x: torch.zeros(1))
    with pytest.raises(SystemExit, match="stopped and loaded gives other bits"):
        row(WAV2VEC2)
