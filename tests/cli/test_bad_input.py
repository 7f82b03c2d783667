"""Bad input through the command line: one sentence on stderr, exit code 1, nothing written, the source untouched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers

from hf_longattn.cli import main
from tests.cases import every_case

CONVERT = ["--mechanism", "window", "--option", "window=16", "--max-length", "128"]


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 64 positions."""
    folder = tmp_path_factory.mktemp("short") / "bert"
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, max_position_embeddings=64
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def source(short: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for path in short.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `longattn arguments…`."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


REQUESTS: dict[str, tuple[list[str], str]] = {
    "unknown mechanism": (["--mechanism", "longfromer"], "Did you mean 'longformer'"),
    "unknown option": (["--mechanism", "window", "--option", "widnow=3"], "Did you mean 'window'"),
    "wrong option type": (["--mechanism", "window", "--option", "window=wide"], "must be int"),
    "impossible option": (["--mechanism", "window", "--option", "window=0"], "must be at least 1"),
    "layer beyond the model": (["--layers", "0-7=full"], "but the model has 2 layers"),
    "unknown mechanism in a layer": (["--layers", "0=windw"], "Did you mean 'window'"),
    "shorter than the source": (["--max-length", "63"], "The source takes 64 tokens"),
    "unknown positions": (["--positions", "tiles", "--max-length", "128"], "Did you mean 'tile'"),
    "rotary positions for a table": (["--positions", "rope:yarn", "--max-length", "128"], "learned position table"),
    "missing verification text": (["--verify-text", "/nowhere/text.txt"], "The text '/nowhere/text.txt' cannot be read: No such file"),
}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--window 512", "No such option: --window. An option of a mechanism is typed --option window=VALUE."),
        ("--num-sinks=4", "An option of a mechanism is typed --option num_sinks=VALUE."),
        ("--option window", "'window' must read NAME=VALUE, for example window=512."),
        ("--windows 512", "No such option: --windows"),
    ],
)
def test_convert_names_how_options_of_a_mechanism_are_typed(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "convert", "short", "long", *words.split())
    assert code == 2
    assert sentence in " ".join(err.split())


@every_case("case", REQUESTS)
def test_convert_refuses_bad_requests_writing_nothing(case: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, sentence = REQUESTS[case]
    before = contents(source.parent)
    code, out, err = run(capsys, "convert", source, tmp_path / "deep" / "long", *arguments)
    assert code == 1
    assert sentence in err
    assert err.count("\n") == 1
    assert out == ""
    assert contents(source.parent) == before
    assert not (tmp_path / "deep").exists()


@every_case("command", ["convert {} {out}", "train mlm --model {} --data {text} --output {out}", "inspect {}", "inspect {} {text}"])
def test_commands_refuse_a_missing_model_before_transformers_looks_for_it(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a connection, transformers tries again for half a minute."""
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *args, **kwargs: pytest.fail("transformers was asked"))
    (tmp_path / "empty").mkdir(exist_ok=True)
    (tmp_path / "text.txt").write_text("A text.")
    for name, sentence in (
        ("someone/bert", "'someone/bert' is not a folder, and it cannot be downloaded"),
        (f"{tmp_path}/empty", "has no config.json"),
        (f"{tmp_path}/none", "There is no folder|does not exist"),
        (f"{tmp_path}/text.txt", "is a file; give the folder"),
    ):
        code, out, err = run(capsys, *command.format(name, text=tmp_path / "text.txt", out=tmp_path / "out").split())
        *_, last = err.splitlines()
        assert (code, out) == (1, "")
        assert re.search(sentence, last)
        assert not (tmp_path / "out").exists()


def test_convert_refuses_an_existing_destination(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "long").mkdir()
    code, _, err = run(capsys, "convert", source, tmp_path / "long", *CONVERT)
    assert (code, "already exists" in err) == (1, True)
    assert list((tmp_path / "long").iterdir()) == []


@every_case(
    "arguments",
    [
        ["convert"],
        ["convert", "a", "b", "--option", "window"],
        ["convert", "a", "b", "--layers", "first=window"],
        ["convert", "a", "b", "--max-length", "0"],
        ["convert", "a", "b", "--no-verify", "--verify-text", "c"],
        ["convert", "a", "b", "--unheard-of"],
        ["inspect"],
        ["conjure"],
    ],
    ids=" ".join,
)
def test_wrong_usage_of_a_command_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *arguments)
    assert (code, out) == (2, "")


@pytest.mark.parametrize(
    ("option", "instead"),
    [("mechanism=window", "use --mechanism (in"), ("layers=window", "use --layers (in")],
)
def test_option_names_the_flag_of_what_is_no_option(option: str, instead: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", str(tmp_path), "--option", option])
    assert stopped.value.code == 1
    assert instead in capsys.readouterr().err
