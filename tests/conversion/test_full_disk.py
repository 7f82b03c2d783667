"""A conversion onto a full disk ends with a sentence, and leaves what was there."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError

from hf_longattn import compress_checkpoint
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

    source = built("BertModel")
    monkeypatch.setattr("os.fsync" if full_at == "sync" else "transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(CheckpointError, match=r"The disk of .* is full"):
        convert_checkpoint(source, tmp_path / "deep" / "long", mechanism="full", max_length=128)
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


def test_conversion_leaves_a_really_full_disk_as_it_was(built: Callable[[str], Path], small_disk: Path) -> None:
    old = small_disk / "long"
    old.mkdir()
    (old / "config.json").write_text("old")
    with pytest.raises(CheckpointError, match=r"The disk of .* is full"):
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
