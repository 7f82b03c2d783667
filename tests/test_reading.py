"""The format of config.json is written as a number; newer files are refused with what to type."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from hf_longattn import LongBertConfig, LongBertModel, LongCLIPConfig, enable_long_attention
from hf_longattn.cli import main
from hf_longattn.errors import CheckpointError
from hf_longattn.files import FORMAT
from hf_longattn.files import FORMAT_FIELD as FIELD
from hf_longattn.hub import write_remote_code

SHAPE: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 64,
}  # fmt: skip
NEWER = f"says {FIELD}={FORMAT + 1}, but this version of hf_longattn reads format {FORMAT}; install the version that wrote it"


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
        with pytest.raises(CheckpointError, match=f"says {FIELD}={number!r}, but this version of hf_longattn reads format {FORMAT}"):
            read(long_folder)


def test_commands_and_auto_classes_refuse_a_newer_format(
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
        AutoModel.from_pretrained(generic_folder)
    with pytest.raises(CheckpointError, match=NEWER):
        write_remote_code(long_folder)
