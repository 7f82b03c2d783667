"""The format of config.json: written with a number, older files are migrated, newer ones refused with what to type."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from hf_longattn import LongBertConfig, LongBertModel, LongCLIPConfig, config_format, enable_long_attention, load_generic
from hf_longattn.cli import main
from hf_longattn.config_format import FIELD, FORMAT, in_current_format
from hf_longattn.errors import CheckpointError
from hf_longattn.hub import bundle_remote_code
from tests.warm import run_fresh

SHAPE: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 64,
}  # fmt: skip
NEWER = rf"says {FIELD}={FORMAT + 1}, but this version of hf_longattn reads formats up to {FORMAT}; type pip install \. in a newer clone"


@pytest.fixture
def long_folder(tmp_path: Path) -> Path:
    LongBertModel(LongBertConfig(**SHAPE, long_attention={"mechanism": "window", "window": 8})).save_pretrained(tmp_path / "long")
    return tmp_path / "long"


@pytest.fixture
def generic_folder(tmp_path: Path) -> Path:
    enable_long_attention(BertModel(BertConfig(**SHAPE)), {"mechanism": "window", "window": 8}).save_pretrained(tmp_path / "generic")
    return tmp_path / "generic"


def change(folder: Path, **values: Any) -> None:
    """Write fields of config.json; ``None`` removes one."""
    config = folder / "config.json"
    changed = json.loads(config.read_text()) | values
    config.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))


@pytest.fixture
def next_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a later version, in which ``window`` is half as wide under the same number."""

    def twice(values: dict[str, Any]) -> dict[str, Any]:
        attention = values["long_attention"]
        return {**values, "long_attention": {**attention, "window": 2 * attention["window"]}}

    monkeypatch.setattr(config_format, "FORMAT", FORMAT + 1)
    monkeypatch.setattr("hf_longattn.modeling.family.config.FORMAT", FORMAT + 1)
    monkeypatch.setitem(config_format.MIGRATIONS, FORMAT, twice)


READERS: dict[str, Callable[[Path], Any]] = {
    "AutoConfig": AutoConfig.from_pretrained,
    "AutoModel": lambda folder: AutoModel.from_pretrained(folder).config,
    "LongBertConfig": LongBertConfig.from_pretrained,
}


def test_the_format_is_written(long_folder: Path, generic_folder: Path) -> None:
    for folder in (long_folder, generic_folder):
        assert json.loads((folder / "config.json").read_text())[FIELD] == FORMAT
    assert FIELD not in vars(AutoConfig.from_pretrained(long_folder))
    towers = LongCLIPConfig().to_dict()
    assert [FIELD in towers, towers["text_config"][FIELD], towers["vision_config"][FIELD]] == [False, FORMAT, FORMAT]
    assert LongBertConfig(**LongBertConfig(**SHAPE).to_dict()).to_dict() == LongBertConfig(**SHAPE).to_dict()


@pytest.mark.parametrize("number", [FORMAT, None])
def test_a_file_of_this_format_or_without_a_number_is_read_as_it_is(number: int | None, long_folder: Path) -> None:
    change(long_folder, **{FIELD: number})
    for read in READERS.values():
        assert read(long_folder).long_attention.to_dict() == {"mechanism": "window", "window": 8}


@pytest.mark.parametrize("written", [FORMAT, None])
@pytest.mark.usefixtures("next_format")
def test_an_older_file_is_migrated_with_a_sentence(
    written: int | None, long_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    change(long_folder, **{FIELD: written})
    for name, read in READERS.items():
        caplog.clear()
        config = read(long_folder)
        assert config.long_attention.options["window"] == 16, name
        assert f"config.json is of {FIELD} {FORMAT}, and is read as {FORMAT + 1}; save_pretrained writes it so." in caplog.text
        assert config.to_dict()[FIELD] == FORMAT + 1
    config.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())[FIELD] == FORMAT + 1
    assert AutoConfig.from_pretrained(tmp_path / "again").long_attention == config.long_attention
    assert LongBertConfig(**SHAPE, long_attention={"mechanism": "window", "window": 8}).long_attention.options["window"] == 8


@pytest.mark.usefixtures("next_format")
def test_parts_are_migrated_each_by_its_own_number_or_that_around_it() -> None:
    attention = {"mechanism": "window", "window": 8}
    parts = {"a": {"long_attention": attention}, "b_config": {"long_attention": attention, FIELD: FORMAT + 1}, "c": {"x": {}}}
    read = in_current_format({"model_type": "clip", **parts})
    assert [read["a"]["long_attention"]["window"], read["b_config"]["long_attention"]["window"], read["c"]] == [16, 8, {"x": {}}]
    assert in_current_format(read) == read


@pytest.mark.parametrize("number", [FORMAT + 1, 0, "1", True, 1.0])
def test_a_newer_or_impossible_number_is_refused(number: Any, long_folder: Path) -> None:
    change(long_folder, **{FIELD: number})
    sentence = NEWER if number == FORMAT + 1 else rf"says {FIELD}={number!r}, which must be a whole number from 1 to {FORMAT}"
    for read in READERS.values():
        with pytest.raises(CheckpointError, match=sentence):
            read(long_folder)


def test_commands_and_load_generic_refuse_a_newer_format(
    long_folder: Path, generic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = FORMAT + 1
    change(long_folder, **{FIELD: newer, "long_attention": {"mechanism": "of_tomorrow"}})
    change(generic_folder, **{FIELD: newer})
    for line in (["inspect", str(long_folder)], ["inspect", str(generic_folder)], ["export", str(long_folder), str(tmp_path / "graph")]):
        with pytest.raises(SystemExit, match="1"):
            main(line)
        said = capsys.readouterr().err
        assert re.search(NEWER, said), said
        assert said.count("\n") == 1
    with pytest.raises(CheckpointError, match=NEWER):
        load_generic(generic_folder)
    with pytest.raises(CheckpointError, match=NEWER):
        bundle_remote_code(long_folder)


@pytest.mark.thorough
def test_bundled_code_reads_its_own_format_and_refuses_a_newer_one(long_folder: Path, tmp_path: Path) -> None:
    bundle_remote_code(long_folder, user_code=True)
    assert json.loads((long_folder / "config.json").read_text())[FIELD] == FORMAT
    newer = tmp_path / "newer"
    shutil.copytree(long_folder, newer)
    change(newer, **{FIELD: FORMAT + 1})
    code = f"""
import sys; sys.modules["hf_longattn"] = None
from transformers import AutoModel
assert AutoModel.from_pretrained({str(long_folder)!r}, trust_remote_code=True).config.long_attention.options == {{"window": 8}}
try:
    AutoModel.from_pretrained({str(newer)!r}, trust_remote_code=True)
except ValueError as error:
    print(error)
"""
    done = run_fresh("-c", code, cwd=tmp_path, level="torch")
    assert f"{FIELD}={FORMAT + 1}" in done.stdout, done.stderr[-2000:]


def test_a_plain_config_is_unchanged() -> None:
    values = BertConfig(**SHAPE).to_dict()
    assert in_current_format(values) == values
