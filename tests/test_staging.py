"""The destination is whole or absent, whatever happens in between."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from pathlib import Path

import pytest

from hf_longattn.errors import CheckpointError
from hf_longattn.files import ENDING, MACHINE, check_destination, check_new_file, staged_file, staged_folder, write_text

from .permissions import bound_by_permissions

DEAD_PROCESS = 4_194_305  # above the largest process id of Linux


def checkpoint_folder(path: Path, content: str = "old") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(content)
    return path


def test_staged_folder_appears_when_it_is_finished(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "deep" / "long") as stage:
        (stage / "config.json").write_text("new")
        assert not (tmp_path / "deep" / "long").exists()
    assert (tmp_path / "deep" / "long" / "config.json").read_text() == "new"
    assert os.listdir(tmp_path / "deep") == ["long"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_unfinished_staged_folder_vanishes_with_the_parents_made_for_it(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), staged_folder(tmp_path / "deep" / "long"):
        raise error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", ENDING)
def test_signals_remove_unfinished_stages_and_leave_handlers_as_they_were(number: int, tmp_path: Path) -> None:
    def write_until_told() -> None:
        with staged_folder(tmp_path / "deep" / "long") as stage, staged_file(tmp_path / "table.csv") as file:
            (stage / "model.safetensors").write_text("half")
            file.write_text("half")
            os.kill(os.getpid(), number)
            signal.pause()

    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            write_until_told()
        assert ended.value.code == 128 + number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert os.listdir(tmp_path) == []


def test_staged_folder_leaves_signals_alone_that_are_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as nohup does with SIGHUP
    try:
        with staged_folder(tmp_path / "long"):
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "long").is_dir()


def test_staged_folder_works_on_other_threads(tmp_path: Path) -> None:
    def write() -> None:
        with staged_folder(tmp_path / "long") as stage:
            (stage / "config.json").write_text("new")

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert (tmp_path / "long" / "config.json").read_text() == "new"


def test_overwritten_checkpoint_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    old = checkpoint_folder(tmp_path / "long")
    with pytest.raises(RuntimeError), staged_folder(old, overwrite=True):
        raise RuntimeError
    assert (old / "config.json").read_text() == "old"
    with staged_folder(old, overwrite=True) as stage:
        (stage / "config.json").write_text("new")
        assert (old / "config.json").read_text() == "old"
    assert (old / "config.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["long"]


def test_staged_folder_does_not_replace_a_destination_that_appears_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="was created by another process"), staged_folder(tmp_path / "long"):
        checkpoint_folder(tmp_path / "long", "theirs")
    assert (tmp_path / "long" / "config.json").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["long"]


def test_leftovers_of_killed_runs_are_removed_and_those_of_running_ones_stay(tmp_path: Path) -> None:
    (tmp_path / f".long.partial-{MACHINE}-{DEAD_PROCESS}").mkdir()
    (tmp_path / f".long.partial-{MACHINE}-{os.getppid()}").mkdir()
    (tmp_path / f".longer.partial-{MACHINE}-{DEAD_PROCESS}").mkdir()
    with staged_folder(tmp_path / "long"):
        pass
    running, other = f".long.partial-{MACHINE}-{os.getppid()}", f".longer.partial-{MACHINE}-{DEAD_PROCESS}"
    assert sorted(os.listdir(tmp_path)) == [running, other, "long"]


@pytest.mark.parametrize("kind", ["partial", "replaced"])
def test_leftovers_of_another_machine_stay(kind: str, tmp_path: Path) -> None:
    checkpoint_folder(tmp_path / "long")
    checkpoint_folder(tmp_path / f".long.{kind}-elsewhere-{DEAD_PROCESS}")
    with staged_folder(tmp_path / "long", overwrite=True):
        pass
    assert sorted(os.listdir(tmp_path)) == [f".long.{kind}-elsewhere-{DEAD_PROCESS}", "long"]


def test_files_of_a_staged_folder_get_the_mode_of_new_files(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "long") as stage:
        (stage / "model.safetensors").touch(0o600)
    (tmp_path / "new").touch()
    assert (tmp_path / "long" / "model.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_checkpoint_set_aside_by_a_killed_run_comes_back(tmp_path: Path) -> None:
    checkpoint_folder(tmp_path / f".long.replaced-{MACHINE}-{DEAD_PROCESS}")
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "long"):
        raise RuntimeError
    assert (tmp_path / "long" / "config.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["long"]


def test_check_destination_refuses_other_folders_links_and_overlaps_with_the_source(tmp_path: Path) -> None:
    source = checkpoint_folder(tmp_path / "source")
    other = checkpoint_folder(tmp_path / "other")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(other)
    with pytest.raises(CheckpointError, match="add --overwrite"):
        check_destination(other, source, overwrite=False)
    check_destination(other, source, overwrite=True)
    for name in ("photos", "file", "link"):
        with pytest.raises(CheckpointError, match="not a checkpoint folder"):
            check_destination(tmp_path / name, source, overwrite=True)
    for overlapping in (source, tmp_path, source / "long"):
        with pytest.raises(CheckpointError, match="overlap"):
            check_destination(overlapping, source, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_links_to_themselves_are_refused_as_destination_and_as_parent(overwrite: bool, tmp_path: Path) -> None:
    source = checkpoint_folder(tmp_path / "source")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "there").symlink_to("back")
    (tmp_path / "back").symlink_to("there")
    for name in ("self", "there"):
        with pytest.raises(CheckpointError):
            check_destination(tmp_path / name, source, overwrite=overwrite)
        with pytest.raises(CheckpointError), staged_folder(tmp_path / name / "long"):
            pytest.fail("written")
    assert sorted(os.listdir(tmp_path)) == ["back", "self", "source", "there"]


def test_errors_name_the_destination_and_not_the_staged_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match=re.escape(f"The tokenizer of '{tmp_path}/long' cannot be loaded")),
        staged_folder(tmp_path / "long") as stage,
    ):
        raise CheckpointError(f"The tokenizer of {str(stage)!r} cannot be loaded")


def test_staged_folder_does_not_overwrite_a_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = checkpoint_folder(tmp_path / "mounted")
    rename = os.rename

    def refuse_mounted(source: Path, target: Path) -> None:
        if Path(source) == mounted:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_mounted)
    with pytest.raises(CheckpointError, match="Cannot write in"), staged_folder(mounted, overwrite=True):
        pass
    assert (mounted / "config.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["mounted"]


def test_destinations_without_permission_are_refused_with_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with bound_by_permissions():
        with pytest.raises(CheckpointError, match="Cannot write in"), staged_folder(tmp_path / "long"):
            pass
        with pytest.raises(CheckpointError, match="Cannot write in"):
            check_new_file(tmp_path / "reach.png")


def half_written(file: Path) -> None:
    file.write_text("half")
    raise RuntimeError


def test_staged_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "page.svg"
    with staged_file(file) as stage:
        assert stage.suffix == ".svg"
        stage.write_text("first")
        assert not file.exists()
    with pytest.raises(RuntimeError), staged_file(file) as stage:
        half_written(stage)
    assert file.read_text() == "first"
    write_text(file, "second")
    assert file.read_text() == "second"
    assert os.listdir(tmp_path) == ["page.svg"]
    longest = f"{'名' * 83}.svg"  # 253 bytes of the 255 that a name may have
    write_text(tmp_path / longest, "third")
    assert (tmp_path / longest).read_text() == "third"


def test_write_text_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "new")
    assert [(tmp_path / name).read_text() for name in ("target", "link")] == ["kept", "new"]


def test_check_new_file_needs_a_folder_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    with pytest.raises(CheckpointError, match="choose another file"):
        check_new_file(tmp_path / "old")
    with pytest.raises(CheckpointError, match="make it, or choose another file"):
        check_new_file(tmp_path / "none" / "file")
    check_new_file(tmp_path / "new")
