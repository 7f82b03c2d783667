"""Folders of texts, images and recordings: links out of them are followed, and what is no file is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_longattn.data.sources import DataError, files_of, read_table
from tests.cases import every_case

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "texts": (".txt", lambda folder: read_table(str(folder))["text"]),
    "images": (".png", lambda folder: [file.read_text() for file in files_of(folder, "image")]),
    "recordings": (".flac", lambda folder: [file.read_text() for file in files_of(folder, "audio")]),
}


@every_case("kind", READERS)
def test_links_out_of_a_folder_are_followed_and_others_than_files_refused(kind: str, tmp_path: Path) -> None:
    suffix, read = READERS[kind]
    folder = tmp_path / "data"
    (folder / f"a folder{suffix}").mkdir(parents=True)
    (folder / f"a{suffix}").write_text("inside")
    (tmp_path / "elsewhere").write_text("outside")
    (folder / f"b{suffix}").symlink_to(tmp_path / "elsewhere")
    assert [*read(folder)] == ["inside", "outside"]
    for target in ("missing", f"c{suffix}", "pipe"):
        (folder / f"c{suffix}").unlink(missing_ok=True)
        if target == "pipe":
            os.mkfifo(folder / f"c{suffix}")
        else:
            (folder / f"c{suffix}").symlink_to(target)
        with pytest.raises(DataError, match="is a link to nothing, or no regular file; remove it"):
            read(folder)


def test_files_of_a_folder_are_those_of_their_kind(tmp_path: Path) -> None:
    for name in ("b/2.flac", "a.WAV", ".hidden.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert files_of(tmp_path, "audio") == [tmp_path / "a.WAV", tmp_path / "b/2.flac"]
    assert files_of(tmp_path / "a.WAV", "audio") == [tmp_path / "a.WAV"]
    with pytest.raises(DataError, match="holds no images"):
        files_of(tmp_path, "image")
    with pytest.raises(DataError, match="does not exist; give a file, or a folder of audio files"):
        files_of(tmp_path / "nowhere", "audio")
