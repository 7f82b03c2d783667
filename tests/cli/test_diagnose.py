"""`longattn diagnose`: a table within 80 columns, JSON, a page; refusals in one sentence with no files left."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
import transformers

from hf_longattn import convert_checkpoint
from hf_longattn.cli import main
from hf_longattn.inputs.text import PARAGRAPHS
from tests.cells import every_cell
from tests.trained import tokenizer_of
from tests.unsupported import ENCODER

pytestmark = pytest.mark.usefixtures("families_hidden")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short model, `bert`, and a text, `text.txt`."""
    folder = tmp_path_factory.mktemp("diagnose")
    tokenizer = tokenizer_of("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    (folder / "text.txt").write_text(PARAGRAPHS, encoding="utf-8")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["diagnose", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


FEW = ("--lengths", "64,128", "--candidate", "window:window=32", "--candidate", "linear")


def test_a_table_a_page_and_numbers(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html, save = tmp_path / "report.html", tmp_path / "numbers.json"
    code, out, err = run(capsys, place / "bert", place / "text.txt", *FEW, "--html", html, "--save", save)
    assert (code, err) == (0, "")
    assert out.startswith("At 128 tokens the heads of layer")
    assert all(len(line) <= 80 or line.startswith("  longattn") or str(tmp_path) in line for line in out.splitlines())
    commands = ("To convert so, type:\n  longattn convert", "type:\n  longattn search")
    for told in ("window:window=32", "not measured for: linear", *commands, f"written: {html}"):
        assert told in out
    assert html.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    values = json.loads(save.read_text(encoding="utf-8"))
    assert [one["length"] for one in values["lengths"]] == [64, 128]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["numbers.json", "report.html"]


def test_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--needle", "The key is 7.", "--question", "What is the key?", "--depths", "0,1")
    code, out, _ = run(capsys, place / "bert", place / "text.txt", *FEW, *arguments, "--json")
    assert code == 0
    assert json.loads(out)["needle"] == {"text": "The key is 7.", "question": "What is the key?", "depths": [0.0, 1.0]}
    code, out, _ = run(capsys, place / "bert", place / "text.txt", *FEW, "--no-needle", "--json", "--queries", 5)
    assert json.loads(out)["needle"] is None
    assert json.loads(out)["lengths"][0]["queries"] == 5


def test_extended_positions(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--lengths", "128,256", "--extend", "tile", "--mechanism", "window:window=32", "--candidate", "window:window=64")
    code, out, err = run(capsys, place / "bert", place / "text.txt", *arguments)
    assert (code, err) == (0, "")
    assert "Positions were extended from 128 to 256 tokens" in " ".join(out.split())


REFUSED = {
    "a length beyond the model": (["--lengths", "512"], "ends at 128 tokens"),
    "a length that is none": (["--lengths", "many"], "'many' is not a number of tokens"),
    "a text that is too short": (["--lengths", "1K", "--extend", "tile"], "are needed; give a longer text"),
    "an unknown mechanism": (["--candidate", "windw"], "Did you mean 'window'"),
    "unknown positions": (["--lengths", "256", "--extend", "tiles"], "Did you mean 'tile'"),
    "depths that are none": (["--depths", "1,x"], "not shares of the text"),
    "a depth outside the text": (["--depths", "2"], "from 0 to 1"),
    "a page that exists": (["--html", "TAKEN"], "already exists"),
    "numbers that exist": (["--save", "TAKEN"], "already exists"),
    "a folder that does not exist": (["--html", "TAKEN/deep/report.html"], "does not exist"),
}


@every_cell("case", REFUSED)
def test_what_is_refused_leaves_no_files(case: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, sentence = REFUSED[case]
    taken = tmp_path / "taken"
    taken.write_text("mine")
    new = [] if "--html" in arguments else ["--html", tmp_path / "new.html"]
    code, out, err = run(capsys, place / "bert", place / "text.txt", *(one.replace("TAKEN", str(taken)) for one in arguments), *new)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert sentence in err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert taken.read_text() == "mine"


def test_wrong_usage(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--needle", "x"], ["--question", "x"], ["--no-needle", "--needle", "x", "--question", "y"]):
        code, _, err = run(capsys, place / "bert", place / "text.txt", *arguments)
        assert code == 2
        assert "--needle" in err


def test_a_video_is_refused_as_one_whatever_its_ending(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clip.m4v").write_bytes(bytes(8))
    code, _, err = run(capsys, place / "bert", tmp_path / "clip.m4v", "--lengths", "256")
    assert code == 2
    assert "is a video; leave it out" in " ".join(err.split())


def commands(out: str) -> list[list[str]]:
    """The words of every command that a page tells its reader to type."""
    return [shlex.split(line)[1:] for line in out.splitlines() if line.startswith("  longattn ")]


def test_what_to_type_next_is_for_the_short_checkpoint(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    convert_checkpoint(place / "bert", tmp_path / "long", mechanism="window", options={"window": 16}, max_length=256, verify=False)
    code, out, _ = run(capsys, tmp_path / "long", place / "text.txt", *FEW)
    assert code == 0
    convert, search = commands(out)
    assert convert[:3] == ["convert", str(place / "bert"), "bert-256"]
    assert convert[-2:] == ["--max-length", "256"]
    assert search[:5] == ["search", str(place / "bert"), str(place / "text.txt"), "--length", "256"]
    with pytest.raises(SystemExit) as ended:
        main([*convert, "--no-verify"])
    assert not ended.value.code
    (tmp_path / "long" / "conversion_report.json").unlink()
    code, out, _ = run(capsys, tmp_path / "long", place / "text.txt", *FEW)
    assert (code, commands(out)) == (0, [])
    assert "add to longattn convert:\n  --mechanism window --option window=32 --max-length 256" in out


def test_a_class_without_long_classes_is_converted_as_it_says(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = transformers.BertConfig.from_pretrained(place / "bert").to_diff_dict()
    config_class = getattr(transformers, f"{ENCODER}Config")
    config = config_class(**{**values, "model_type": config_class.model_type})
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "short")
    transformers.AutoTokenizer.from_pretrained(place / "bert").save_pretrained(tmp_path / "short")
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, tmp_path / "short", place / "text.txt", *FEW)
    assert code == 0
    assert "longattn search" not in out
    (command,) = (line for line in out.splitlines() if line.startswith("  longattn convert"))
    with pytest.raises(SystemExit) as ended:
        main([*shlex.split(command)[1:], "--no-verify"])
    assert not ended.value.code


def test_texts_of_other_editors(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--lengths", "64", "--candidate", "window:window=32", "--json", "--queries", 8)
    found = []
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "book.txt").write_bytes(mark + PARAGRAPHS.replace("\n", "\r\n").encode())
        code, out, _ = run(capsys, place / "bert", tmp_path / "book.txt", *few)
        assert code == 0
        found.append([one["layers"] for one in json.loads(out)["lengths"]])
    assert found[0] == found[1]
    code, out, err = run(capsys, place / "bert", tmp_path, *few)
    assert (code, err) == (1, f"Error: The text {str(tmp_path)!r} is a folder; give one file, for example a book.\n")
