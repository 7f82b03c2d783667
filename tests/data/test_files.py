"""Folders of texts, images and recordings: links out of them are followed, and what is no file is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_longattn.data.audio import RECORDING_FILES
from hf_longattn.data.images import IMAGE_FILES
from hf_longattn.data.sources import DataError, read_source
from tests.cases import every_case

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "texts": (".txt", lambda folder: read_source(str(folder))["text"]),
    "images": (".png", lambda folder: [file.read_text() for file in IMAGE_FILES.files(folder)]),
    "recordings": (".flac", lambda folder: [file.read_text() for file in RECORDING_FILES.files(folder)]),
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
