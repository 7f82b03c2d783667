"""`longattn probe`: a table of 80 columns, JSON, a drawing, and sentences for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_longattn.cli import main
from hf_longattn.evaluation.probes import list_probes
from tests.cells import every_cell
from tests.evaluation.probes.small import byte_tokenizer, small_decoder

QUICK = ["--task", "passkey", "--task", "induction", "--lengths", "512,1K", "--samples", "1", "--mode", "likelihood"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe") / "llama"
    small_decoder(mechanism="window", window=32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["probe", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_the_table_and_the_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    where = ["--save", tmp_path / "p.json"]
    code, out, err = run(capsys, model, *QUICK, "--depths", "0,0.5,1", *where)
    assert code == 0, err
    assert max(map(len, out.split("written")[0].splitlines()[2:])) <= 80
    rows = [line.split() for line in out.splitlines() if line.strip().startswith(("passkey", "induction"))]
    assert [row[:2] for row in rows] == [[task, depth] for task in ("passkey", "induction") for depth in ("0", "0.5", "1")]
    record = json.loads((tmp_path / "p.json").read_text())
    assert len(record["cells"]) == 12
    assert record["cells"][0]["records"][0]["answers"]
    before = (tmp_path / "p.json").read_bytes()
    code, out, err = run(capsys, model, *QUICK, *where)
    assert (code, out) == (1, "")
    assert "p.json' already exists; choose another file" in err
    assert (tmp_path / "p.json").read_bytes() == before


def test_one_json_object(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, model, *QUICK, "--json")
    assert code == 0
    assert [(cell["task"], cell["length"]) for cell in json.loads(out)["cells"]] == [
        (task, length) for task in ("passkey", "induction") for length in (512, 1024)
    ]


@pytest.mark.thorough
def test_an_essay_and_the_tasks_of_three_benchmarks(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "essay.txt").write_text("Nothing but dry grass, as far as one sees. " * 60, encoding="utf-8")
    names = ("niah_multivalue", "json_kv", "infbench_math_calc")
    tasks = [word for name in names for word in ("--task", name)]
    code, out, err = run(capsys, model, *tasks, "--lengths", "1K", "--samples", "1", "--essay", tmp_path / "essay.txt", "--json")
    assert code == 0, err
    assert [(cell["task"], len(cell["records"][0]["answers"])) for cell in json.loads(out)["cells"]] == [
        *zip(names, (4, 1, 1), strict=True)
    ]


def test_the_help_names_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert out.count("\n") <= 60
    said = " ".join(out.replace("│", " ").split()).replace("- ", "-")
    for name in list_probes():
        family, _, number = name.rpartition("_")
        assert name in said or (number.isdigit() and f"{family}_1 to 3" in said), name


@every_cell(
    ("arguments", "said"),
    [
        (["--task", "passkeys"], "Did you mean 'passkey'?"),
        (["--task", "passkey", "--lengths", "64"], "'passkey' does not fit into 64 tokens"),
        (["--dtype", "float15"], "Unknown dtype 'float15'"),
        (["--save", "no/such/folder/p.json"], "does not exist; make it"),
        (["--lengths", "many"], "'many' is not a number of tokens"),
        (["--lengths", "999999K"], "at most 16,777,216"),
        (["--depths", "deep"], "are not shares of the text"),
        (["--depths", "0.5,7"], "Depths are shares from 0"),
        (["--mode", "span"], "cannot be asked by 'span'"),
        (["--task", "niah_single_2", "--essay", "essay.txt"], "The text 'essay.txt' cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], said: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, model, *arguments)
    assert (code, out) == (1, "")
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
@pytest.mark.parametrize("arguments", [["--samples", "0"], ["--choices", "1"], ["--unheard-of"]], ids=" ".join)
def test_wrong_usage_exits_with_2(arguments: list[str], model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, model, *arguments)[:2] == (2, "")
