"""The destination is whole or absent, whatever happens in between."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_longattn.conversion import convert_checkpoint, staging, tensor_files
from hf_longattn.conversion.staging import check_destination, staged_folder
from hf_longattn.errors import CheckpointError, DestinationExistsError

DEAD_PROCESS = 4_194_305  # above the largest process id of Linux


def checkpoint_folder(path: Path, content: str = "old") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(content)
    return path


def test_a_finished_folder_takes_its_place(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "deep" / "long") as stage:
        (stage / "config.json").write_text("new")
        assert not (tmp_path / "deep" / "long").exists()
    assert (tmp_path / "deep" / "long" / "config.json").read_text() == "new"
    assert os.listdir(tmp_path / "deep") == ["long"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_unfinished_one_vanishes_with_the_parents_made_for_it(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), staged_folder(tmp_path / "deep" / "long"):
        raise error
    assert os.listdir(tmp_path) == []


def test_an_existing_checkpoint_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    old = checkpoint_folder(tmp_path / "long")
    with pytest.raises(RuntimeError), staged_folder(old, overwrite=True):
        raise RuntimeError
    assert (old / "config.json").read_text() == "old"
    with staged_folder(old, overwrite=True) as stage:
        (stage / "config.json").write_text("new")
        assert (old / "config.json").read_text() == "old"
    assert (old / "config.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["long"]


def test_a_destination_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(DestinationExistsError, match="was created by another process"), staged_folder(tmp_path / "long"):
        checkpoint_folder(tmp_path / "long", "theirs")
    assert (tmp_path / "long" / "config.json").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["long"]


def test_leftovers_of_killed_runs_are_cleaned_and_those_of_running_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / f".long.partial-{DEAD_PROCESS}").mkdir()
    (tmp_path / f".long.partial-{os.getppid()}").mkdir()
    (tmp_path / f".longer.partial-{DEAD_PROCESS}").mkdir()
    with staged_folder(tmp_path / "long"):
        pass
    assert sorted(os.listdir(tmp_path)) == [f".long.partial-{os.getppid()}", f".longer.partial-{DEAD_PROCESS}", "long"]


@pytest.mark.parametrize("kind", ["partial", "replaced"])
def test_leftovers_of_another_machine_stay_until_nothing_has_changed_in_them_for_a_day(kind: str, tmp_path: Path) -> None:
    checkpoint_folder(tmp_path / "long")
    for name in (f".long.{kind}-elsewhere-{DEAD_PROCESS}", f".long.{kind}-elsewhere-{os.getpid()}"):
        checkpoint_folder(tmp_path / name)
    old = tmp_path / f".long.{kind}-another-{os.getppid()}"
    for path in (checkpoint_folder(old) / "config.json", old):
        os.utime(path, (0, 0))
    with staged_folder(tmp_path / "long", overwrite=True):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted(
        [f".long.{kind}-elsewhere-{DEAD_PROCESS}", f".long.{kind}-elsewhere-{os.getpid()}", "long"]
    )


def test_a_checkpoint_set_aside_by_a_killed_run_comes_back(tmp_path: Path) -> None:
    checkpoint_folder(tmp_path / f".long.replaced-{DEAD_PROCESS}")
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "long"):
        raise RuntimeError
    assert (tmp_path / "long" / "config.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["long"]


def test_a_run_killed_while_writing_leaves_no_destination_and_a_rerun_cleans_up(built: Callable[[str], Path], tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from hf_longattn.conversion import convert_checkpoint\n"
        "kill = lambda stage, done, total: os.kill(os.getpid(), signal.SIGKILL)\n"
        "convert_checkpoint(sys.argv[1], sys.argv[2], mechanism='full', max_length=128, progress=kill)\n"
    )
    destination = tmp_path / "long"
    killed = subprocess.run([sys.executable, "-c", program, built("BertModel"), destination], check=False, cwd=Path.cwd())
    assert killed.returncode == -9
    assert [path.name.startswith(".long.partial-") for path in tmp_path.iterdir()] == [True]
    convert_checkpoint(built("BertModel"), destination, mechanism="full", max_length=128, verify=False)
    assert os.listdir(tmp_path) == ["long"]


@pytest.mark.parametrize("full_at", ["header", "middle", "sync"])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    full_at: str, built: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place = {"header": (tensor_files, "_header"), "middle": (tensor_files, "_write_bytes"), "sync": (os, "fsync")}[full_at]
    monkeypatch.setattr(*place, full)
    with pytest.raises(CheckpointError, match=r"The disk of .* is full"):
        convert_checkpoint(built("BertModel"), tmp_path / "deep" / "long", mechanism="full", max_length=128)
    assert os.listdir(tmp_path) == []


def test_too_little_room_is_said_before_writing(built: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Little:
        free = 1_000_000

    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: Little)
    with pytest.raises(CheckpointError, match="has 1 MB free; nothing was written"):
        convert_checkpoint(built("BertModel"), tmp_path / "long", mechanism="full", max_length=128)
    assert os.listdir(tmp_path) == []


def test_what_must_not_be_written_over_is_refused(tmp_path: Path) -> None:
    source = checkpoint_folder(tmp_path / "source")
    other = checkpoint_folder(tmp_path / "other")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(other)
    with pytest.raises(DestinationExistsError, match="add --overwrite"):
        check_destination(other, source, overwrite=False)
    check_destination(other, source, overwrite=True)
    for name in ("photos", "file", "link"):
        with pytest.raises(DestinationExistsError, match="not a checkpoint folder"):
            check_destination(tmp_path / name, source, overwrite=True)
    for overlapping in (source, tmp_path, source / "long"):
        with pytest.raises(CheckpointError, match="overlap"):
            check_destination(overlapping, source, overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="Cannot write in"), staged_folder(tmp_path / "long"):
        pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 2 MB."""
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
def test_a_disk_that_is_really_full_is_a_sentence_and_stays_as_it_was(
    known: bool, built: Callable[[str], Path], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = checkpoint_folder(small_disk / "long")
    if not known:
        monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))
    with pytest.raises(CheckpointError, match="has 2 MB free; nothing was written" if known else r"The disk of .* is full"):
        convert_checkpoint(built("BertModel"), old, mechanism="full", max_length=128, overwrite=True)
    assert os.listdir(small_disk) == ["long"]
    assert (old / "config.json").read_text() == "old"
