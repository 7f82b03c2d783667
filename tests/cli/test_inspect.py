"""`longattn inspect MODEL INPUT`: a table within 80 columns, JSON; refusals in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from hf_longattn import convert_checkpoint
from hf_longattn.cli import main
from hf_longattn.evaluation.token_loss import PARAGRAPHS
from tests.cases import every_case
from tests.trained import tokenizer_of
from tests.unsupported import ENCODER

pytestmark = pytest.mark.usefixtures("families_hidden")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short model, `bert`, and a text, `text.txt`."""
    folder = tmp_path_factory.mktemp("inspect")
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
        main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


FEW = ("--lengths", "64,128", "--candidate", "window:window=32", "--candidate", "linear")


def test_inspect_of_a_text_prints_a_table_within_80_columns(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, place / "bert", place / "text.txt", *FEW)
    assert (code, err) == (0, "")
    assert out.lstrip().startswith("At 128 tokens the heads of layer")
    assert all(len(line) <= 80 for line in out.splitlines())
    for told in ("window:window=32", "not measured for: linear", "add to longattn convert:\n  --mechanism window"):
        assert told in out


def test_inspect_of_a_text_prints_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, place / "bert", place / "text.txt", *FEW, "--json", "--queries", 5)
    assert code == 0
    values = json.loads(out)
    assert [(row["length"], row["queries"]) for row in values["lengths"]] == [(64, 5), (128, 5)]


def test_inspect_measures_a_long_model_by_its_source(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert_checkpoint(place / "bert", tmp_path / "long", mechanism="window", options={"window": 16}, max_length=256, verify=False)
    code, out, err = run(capsys, tmp_path / "long", place / "text.txt", *FEW)
    assert (code, err) == (0, "")
    for told in ("At 128 tokens the heads", "the checkpoint that this model was made from"):
        assert told in out


REFUSED = {
    "a length beyond the model": (["--lengths", "512"], "ends at 128 tokens"),
    "a length that is none": (["--lengths", "many"], "'many' is not a number of tokens"),
    "an unknown mechanism": (["--candidate", "windw"], "Did you mean 'window'"),
}


@every_case("case", REFUSED)
def test_inspect_refuses_lengths_and_candidates_that_do_not_fit(case: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, sentence = REFUSED[case]
    code, out, err = run(capsys, place / "bert", place / "text.txt", *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert sentence in err


def test_inspect_measures_a_class_without_long_classes(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = transformers.BertConfig.from_pretrained(place / "bert").to_diff_dict()
    config_class = getattr(transformers, f"{ENCODER}Config")
    config = config_class(**{**values, "model_type": config_class.model_type})
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "short")
    transformers.AutoTokenizer.from_pretrained(place / "bert").save_pretrained(tmp_path / "short")
    code, out, _ = run(capsys, tmp_path / "short", place / "text.txt", *FEW)
    assert code == 0
    assert "add to longattn convert:\n  --mechanism window" in out


def test_inspect_reads_byte_order_marks_and_refuses_a_folder(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
