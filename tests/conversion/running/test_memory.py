"""Whether models are run whole, from their files or not at all follows from their size and the memory that there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_longattn.conversion.running import memory
from hf_longattn.conversion.running.memory import available_memory, choose_running


@pytest.mark.parametrize(
    ("free", "parameters", "largest", "whole", "expected"),
    [
        (20e9, 110e6, 24e6, False, "memory"),
        (20e9, 350e6, 31e6, False, "files"),
        (1e9, 110e6, 24e6, False, "files"),
        (20e9, 70e9, 500e6, False, "files"),
        (4e9, 70e9, 500e6, False, "not"),
        (20e9, 350e6, 31e6, True, "memory"),
        (1e9, 350e6, 31e6, True, "not"),
    ],
)
def test_how_models_are_run(
    free: float, parameters: float, largest: float, whole: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: int(free))
    found = choose_running(int(parameters), int(largest), whole=whole)
    assert ("not" if found.why_not else "files" if found.from_files else "memory") == expected
    assert found.check().status == ("skipped" if found.why_not else "measured")


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = next(line.partition("::")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    folder = tmp_path / group.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"memory.max": "1000000\n", "memory.current": "400000\n"}.items():
        (folder / name).write_text(text)
    (folder / "memory.stat").write_text("anon 250000\nactive_file 50000\ninactive_file 100000\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    assert available_memory() == 750_000
    (folder / "memory.max").write_text("max\n")
    assert available_memory() > 1_000_000
