"""A conversion onto a full disk ends with a sentence, and leaves what was there."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from hf_longattn import compress_checkpoint
from hf_longattn import files as staging
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import CheckpointError


@pytest.mark.parametrize("full_at", ["weights", "sync"])
def test_conversion_onto_a_full_disk_is_one_sentence_and_leaves_nothing(
    full_at: str, built: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **more: object) -> None:
        if full_at == "sync":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("os.fsync" if full_at == "sync" else "transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(CheckpointError, match=r"The disk of .* is full"):
        convert_checkpoint(built("BertModel"), tmp_path / "deep" / "long", mechanism="full", max_length=128)
    assert os.listdir(tmp_path) == []


def test_conversion_refuses_a_disk_with_too_little_room_before_writing(
    built: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Little:
        free = 1_000_000

    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: Little)
    with pytest.raises(CheckpointError, match="has 1 MB free; nothing was written"):
        convert_checkpoint(built("BertModel"), tmp_path / "long", mechanism="full", max_length=128)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a file system can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("known", [True, False], ids=["seen before", "filled by another meanwhile"])
def test_conversion_leaves_a_really_full_disk_as_it_was(
    known: bool, built: Callable[[str], Path], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = small_disk / "long"
    old.mkdir()
    (old / "config.json").write_text("old")
    if not known:
        monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))
    with pytest.raises(CheckpointError, match="has 2 MB free; nothing was written" if known else r"The disk of .* is full"):
        convert_checkpoint(built("BertModel"), old, mechanism="full", max_length=128, overwrite=True)
    assert os.listdir(small_disk) == ["long"]
    assert (old / "config.json").read_text() == "old"


def test_compression_onto_a_full_disk_is_one_sentence_and_leaves_nothing(
    built: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    source = built("BertForMaskedLM")
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(CheckpointError, match=r"The disk of .* is full"):
        compress_checkpoint(source, tmp_path / "deep" / "bf16", method="bf16", documents=1)
    assert os.listdir(tmp_path) == []
