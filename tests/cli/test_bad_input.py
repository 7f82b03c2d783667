"""Bad input through the command line: one sentence on stderr, exit code 1, nothing written, the source untouched."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_longattn.cli import main

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


def edit_config(source: Path, **changes: object) -> None:
    config = json.loads((source / "config.json").read_text())
    config = {name: value for name, value in {**config, **changes}.items() if value is not ...}
    (source / "config.json").write_text(json.dumps(config))


def truncate(source: Path) -> None:
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def no_weights(source: Path) -> None:
    (source / "model.safetensors").unlink()


def only_pickle(source: Path) -> None:
    no_weights(source)
    (source / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def huge_header(source: Path) -> None:
    (source / "model.safetensors").write_bytes((10 * 2**30).to_bytes(8, "little") + b"{}")


def index(**weight_map: str) -> Callable[[Path], None]:
    def write(source: Path) -> None:
        (source / "model.safetensors").rename(source / "model-00001-of-00001.safetensors")
        (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return write


def wrong_shape(source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors["bert.encoder.layer.1.output.dense.bias"] = torch.zeros(17)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})


def broken_config(source: Path) -> None:
    (source / "config.json").write_text("{")


SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda source: (source / "config.json").unlink(), "has no config.json"),
    "config is no JSON": (broken_config, "is not valid JSON"),
    "config is a list": (lambda source: (source / "config.json").write_text("[]"), "must hold a JSON object"),
    "no model type": (lambda source: edit_config(source, model_type=...), "names no model_type"),
    "no weights": (no_weights, "has no weights: expected model.safetensors"),
    "only pickle": (only_pickle, "only as pickle ('pytorch_model.bin')"),
    "truncated": (truncate, "not a whole safetensors file"),
    "empty file": (lambda source: (source / "model.safetensors").write_bytes(b""), "not a whole safetensors file"),
    "claims a 10 GB header": (huge_header, "not a whole safetensors file"),
    "index names a missing shard": (index(a="model-00002-of-00002.safetensors"), "is missing in"),
    "index names a file outside": (index(a="../model.safetensors"), "files of the same folder"),
    "index names a lost tensor": (index(a="model-00001-of-00001.safetensors"), "that no shard holds"),
    "unsupported architecture": (lambda source: edit_config(source, model_type="t5"), "the supported ones are: bart, bert, big_bird"),
    "nearly supported": (lambda source: edit_config(source, model_type="robert"), "Did you mean 'roberta'"),
    "unknown head": (lambda source: edit_config(source, architectures=["BertForPoetry"]), "which has no long form"),
    "already long": (lambda source: edit_config(source, long_attention={"mechanism": "full"}), "already a long checkpoint"),
    "quantised": (lambda source: edit_config(source, quantization_config={"bits": 4}), "holds quantised weights"),
    "table contradicts config": (lambda source: edit_config(source, max_position_embeddings=80), "has 64 rows"),
    "shape contradicts config": (wrong_shape, "but its config asks for (16,)"),
    "width is no multiple of heads": (lambda source: edit_config(source, num_attention_heads=3), "multiple of"),
    "damaged tokenizer": (lambda source: (source / "tokenizer.json").write_text("{"), "tokenizer of"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_a_bad_source_is_refused(case: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, sentence = SOURCES[case]
    spoil(source)
    before = contents(tmp_path)
    code, out, err = run(capsys, "convert", source, tmp_path / "long", *CONVERT)
    assert code == 1
    assert sentence in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert contents(tmp_path) == before


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
    "unknown dtype": (["--dtype", "float15"], "Did you mean 'float16'"),
    "unreadable shard size": (["--max-shard-size", "big"], "not a shard size"),
    "missing verification text": (["--verify-text", "/nowhere/text.txt"], "Cannot read the text"),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_bad_request_is_refused(case: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, sentence = REQUESTS[case]
    before = contents(tmp_path)
    code, out, err = run(capsys, "convert", source, tmp_path / "deep" / "long", *arguments)
    assert code == 1
    assert sentence in err
    assert err.count("\n") == 1
    assert out == ""
    assert contents(tmp_path) == before
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("/nowhere/bert", "There is no folder '/nowhere/bert'"),
        ("../bert", "There is no folder '../bert'"),
        ("someone/bert", "is not a folder here, and the Hub cannot be reached"),
    ],
)
def test_a_source_that_is_nowhere(name: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "convert", name, tmp_path / "long")
    assert code == 1
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "long").exists()


def test_an_existing_destination_is_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "long").mkdir()
    code, _, err = run(capsys, "convert", source, tmp_path / "long", *CONVERT)
    assert (code, "already exists" in err) == (1, True)
    assert list((tmp_path / "long").iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert"],
        ["convert", "a", "b", "--option", "window"],
        ["convert", "a", "b", "--layers", "first=window"],
        ["convert", "a", "b", "--max-length", "0"],
        ["convert", "a", "b", "--no-verify", "--verify-text", "c"],
        ["convert", "a", "b", "--unheard-of"],
        ["inspect"],
        ["inspect", "--mechanism", "window"],
        ["conjure"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *arguments)
    assert (code, out) == (2, "")
