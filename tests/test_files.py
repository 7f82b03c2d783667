"""Files: what of a checkpoint may be read, and a destination that is whole or absent."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from hf_longattn import LongBertConfig, LongBertModel, LongCLIPConfig, enable_long_attention
from hf_longattn.cli import main
from hf_longattn.errors import CheckpointError
from hf_longattn.files import (
    ENDING,
    FORMAT,
    MACHINE,
    check_destination,
    check_new_file,
    check_space,
    staged_file,
    staged_folder,
    write_text,
)
from hf_longattn.files import FORMAT_FIELD as FIELD
from hf_longattn.hub import write_remote_code
from scripts.dev.tools.small_models import small_values
from tests.permissions import bound_by_permissions

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
def test_unfinished_staged_folder_vanishes_with_the_parents_made_for_it(
    error: type[BaseException], tmp_path: Path
) -> None:
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
    # in a container, every run may have the number of this process
    for number in (DEAD_PROCESS, os.getppid(), os.getpid(), f"{os.getpid()}-999999"):
        (tmp_path / f".long.partial-{MACHINE}-{number}").mkdir()
    (tmp_path / f".longer.partial-{MACHINE}-{DEAD_PROCESS}").mkdir()
    with staged_folder(tmp_path / "long"):
        pass
    running = f".long.partial-{MACHINE}-{os.getppid()}"
    other = f".longer.partial-{MACHINE}-{DEAD_PROCESS}"
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


@pytest.mark.parametrize("overwrite", [False, True])
def test_run_killed_between_the_renames_gives_the_old_folder_back_before_the_next_one_works(
    overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = checkpoint_folder(tmp_path / "long")
    rename = os.rename

    def killed(source: Path, target: Path) -> None:
        if ".partial-" in Path(source).name:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt), staged_folder(old, overwrite=True) as stage:
        (stage / "config.json").write_text("new")
    monkeypatch.undo()
    assert not old.exists()
    if overwrite:
        with staged_folder(old, overwrite=True) as stage:
            (stage / "config.json").write_text("newer")
    else:
        with pytest.raises(CheckpointError, match="it is back now; choose another folder or add --overwrite"):
            staged_folder(old).__enter__()
    assert (old / "config.json").read_text() == ("newer" if overwrite else "old")
    assert os.listdir(tmp_path) == ["long"]


NAMES = ("word", "", "12x", "-1", "²", "٣", "1e9", "9" * 20, "9" * 200, "1-", "1-x", "1-2-3", "..", " 12")


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path.parent)])
def test_other_names_beside_a_destination_are_left_alone(make: Callable[[Path], None], tmp_path: Path) -> None:
    names = [f".long.{use}-{MACHINE}-{end}" for use in ("partial", "replaced") for end in NAMES]
    names.append(f".long.partial-{MACHINE}")
    if make is not Path.mkdir:  # no folders of this program
        names.append(f".long.partial-{MACHINE}-{DEAD_PROCESS}")
    for name in names:
        make(tmp_path / name)
    with staged_folder(tmp_path / "long") as stage:
        (stage / "config.json").write_text("new")
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "long"])


def test_threads_write_folders_of_one_name_without_removing_each_others(tmp_path: Path) -> None:
    written = list[int]()
    errors = list[Exception]()
    started = threading.Barrier(4)

    def write(number: int) -> None:
        try:
            with staged_folder(tmp_path / "long", overwrite=number == 3) as stage:
                started.wait()
                (stage / "config.json").write_text(str(number))
            written.append(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("was created by another process" in str(error) for error in errors)
    assert int((tmp_path / "long" / "config.json").read_text()) in written
    assert os.listdir(tmp_path) == ["long"]


OTHERS = (
    ".git/HEAD",
    "deep/.git/HEAD",
    ".svn/x",
    ".env",
    "thesis.tex",
    "photos/one.png",
    "train.py",
    "1_Pooling/notes",
)
USUAL = """model.safetensors pytorch_model.bin tokenizer.json vocab.txt README.md LICENSE .gitattributes .cache/x
    1_Pooling/config.json onnx/model.onnx conversion_report.json export_report.json compression_report.json
    training_log.json checkpoint-2/optimizer.pt checkpoint-2/rng_state.pth checkpoint-2/trainer_state.json
    checkpoint-2/model.safetensors training_args.bin runs/a/events.out.tfevents.1.host modeling_long_bert.py .lock
    model.onnx model.onnx_data model.pt2 all_results.json long_config.json checkpoint-2/scheduler.pt"""


@pytest.mark.parametrize("name", [*OTHERS, ".git"])
def test_overwrite_refuses_a_folder_with_files_that_no_model_has(name: str, tmp_path: Path) -> None:
    folder = checkpoint_folder(tmp_path / "long")
    for usual in USUAL.split():
        (folder / usual).parent.mkdir(parents=True, exist_ok=True)
        (folder / usual).touch()
    check_destination(folder, overwrite=True)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    named = name.removesuffix("/HEAD").removesuffix("/x")
    with pytest.raises(CheckpointError, match=f"holds {re.escape(named)}, which no model folder has"):
        check_destination(folder, overwrite=True)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
        OSError("96 requested and 0 written"),
        OSError("problem writing element 6144 to file"),
        RuntimeError("basic_ios::clear: iostream error"),
        RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/1: file write failed"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=str,
)
def test_full_disk_is_a_sentence_and_leaves_nothing(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is full; free some space"), staged_folder(tmp_path / "a" / "b"):
        raise error
    assert os.listdir(tmp_path) == []


def test_too_little_space_is_refused_before_the_work(tmp_path: Path) -> None:
    check_space(tmp_path / "none" / "yet", 1)
    with pytest.raises(CheckpointError, match=r"MB left, and 1,000,000,000,000\.0 MB are needed; free some space"):
        check_space(tmp_path / "none" / "yet", 10**18)


def test_name_that_is_too_long_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="File name too long"), staged_folder(tmp_path / ("n" * 250)):
        pass
    assert os.listdir(tmp_path) == []


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
        with pytest.raises(CheckpointError, match=r"not a checkpoint folder|holds one\.png"):
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


SHAPE = small_values("bert")
NEWER = (
    f"says {FIELD}={FORMAT + 1}, but this version of hf_longattn reads format {FORMAT}; install the version that "
    "wrote it"
)


@pytest.fixture
def long_folder(tmp_path: Path) -> Path:
    LongBertModel(LongBertConfig(**SHAPE, long_attention={"mechanism": "window", "window": 8})).save_pretrained(
        tmp_path / "long"
    )
    return tmp_path / "long"


@pytest.fixture
def generic_folder(tmp_path: Path) -> Path:
    enable_long_attention(BertModel(BertConfig(**SHAPE)), {"mechanism": "window", "window": 8}).save_pretrained(
        tmp_path / "generic"
    )
    return tmp_path / "generic"


def change(folder: Path, **values: Any) -> None:
    """Write fields of config.json; ``None`` removes one."""
    config = folder / "config.json"
    changed = json.loads(config.read_text()) | values
    config.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))


READERS: dict[str, Callable[[Path], Any]] = {
    "AutoConfig": AutoConfig.from_pretrained,
    "AutoModel": lambda folder: AutoModel.from_pretrained(folder).config,
    "LongBertConfig": LongBertConfig.from_pretrained,
}


def test_config_json_has_the_number_of_the_format(long_folder: Path, generic_folder: Path) -> None:
    for folder in (long_folder, generic_folder):
        assert json.loads((folder / "config.json").read_text())[FIELD] == FORMAT
    assert FIELD not in vars(AutoConfig.from_pretrained(long_folder))
    towers = LongCLIPConfig().to_dict()
    assert [FIELD in towers, towers["text_config"][FIELD], towers["vision_config"][FIELD]] == [False, FORMAT, FORMAT]
    assert LongBertConfig(**LongBertConfig(**SHAPE).to_dict()).to_dict() == LongBertConfig(**SHAPE).to_dict()


@pytest.mark.parametrize("number", [FORMAT, None])
def test_configs_of_this_format_or_without_a_number_are_read(number: int | None, long_folder: Path) -> None:
    change(long_folder, **{FIELD: number})
    for read in READERS.values():
        assert read(long_folder).long_attention.to_dict() == {"mechanism": "window", "window": 8}


@pytest.mark.parametrize("number", [FORMAT + 1, 0, "1", True, 1.0])
def test_configs_of_a_newer_or_impossible_format_are_refused(number: Any, long_folder: Path) -> None:
    change(long_folder, **{FIELD: number})
    for read in READERS.values():
        with pytest.raises(
            CheckpointError, match=f"says {FIELD}={number!r}, but this version of hf_longattn reads format {FORMAT}"
        ):
            read(long_folder)


def test_commands_and_auto_classes_refuse_a_newer_format(
    long_folder: Path, generic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = FORMAT + 1
    change(long_folder, **{FIELD: newer, "long_attention": {"mechanism": "of_tomorrow"}})
    change(generic_folder, **{FIELD: newer})
    for line in (
        ["inspect", str(long_folder)],
        ["inspect", str(generic_folder)],
        ["export", str(long_folder), str(tmp_path / "graph")],
    ):
        with pytest.raises(SystemExit, match="1"):
            main(line)
        said = capsys.readouterr().err
        assert re.search(NEWER, said), said
        assert said.count("\n") == 1
    with pytest.raises(CheckpointError, match=NEWER):
        AutoModel.from_pretrained(generic_folder)
    with pytest.raises(CheckpointError, match=NEWER):
        write_remote_code(long_folder)
