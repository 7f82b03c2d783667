"""`longattn search`: a design on the terminal, JSON, a recipe; refusals in one sentence with exit code 1."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import transformers

from hf_longattn.cli import main
from hf_longattn.configuration import LongAttentionConfig

from ..trained import REAL_TEXT, tokenizer_of


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of 64 tokens, and a text."""
    folder, tokenizer = tmp_path_factory.mktemp("search"), tokenizer_of("bert", 64)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    (folder / "text.txt").write_text(REAL_TEXT, encoding="utf-8")
    return {"model": folder / "bert", "text": folder / "text.txt"}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["search", *map(str, arguments)])
    found = capsys.readouterr()
    return int(ended.value.code or 0), found.out, found.err


FEW = ("--length", "256", "--candidate", "window:window=8", "--candidate", "window:window=64", "--pieces", "1")


def test_search_prints_the_conversion_that_gives_its_design(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "design.yaml"
    code, out, err = run(capsys, *places.values(), "--output", output, "--budget", "9.5", *FEW)
    assert (code, err) == (0, "")
    assert "the held-out loss at 256 tokens is" in " ".join(out.split())
    typed = next(line.removeprefix("next: longattn ") for line in out.splitlines() if line.startswith("next: "))
    assert typed == f"convert {places['model']} bert-long --config {output}"
    assert output.read_text(encoding="utf-8").startswith(f"# longattn {typed}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(typed))
    assert not ended.value.code
    written = json.loads((tmp_path / "bert-long" / "config.json").read_text(encoding="utf-8"))
    capsys.readouterr()
    code, out, _ = run(capsys, *places.values(), "--output", tmp_path / "other.yaml", "--budget", "9.5", *FEW, "--json")
    report = json.loads(out)
    assert (code, report["length"]) == (0, 256)
    chosen, converted = (LongAttentionConfig.from_dict(of["long_attention"]) for of in (report, written))
    assert converted == chosen.with_option("exact_length", 64)  # which a conversion adds


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (("--budget", "0.0000001"), "in every layer, needs "),
        (("--budget", "cheap"), "give a number above 0 such as"),
        (("--candidate", "windw"), "Did you mean 'window'"),
        (("--score", "loss"), "score is 'loss'"),
        (("--compare-at", "4096"), "Mechanisms are compared on texts of up to 64 tokens"),
    ],
)
def test_search_refuses_budgets_and_candidates_that_do_not_fit(
    typed: tuple[str, ...], sentence: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *places.values(), "--output", tmp_path / "design.yaml", *FEW, *typed)
    assert (code, out) == (1, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_search_refuses_a_text_that_is_too_short(places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "short.txt").write_text("A few words.")
    code, _, err = run(capsys, places["model"], tmp_path / "short.txt", "--output", tmp_path / "design.yaml", *FEW)
    assert code == 1
    assert "give a longer text" in err
