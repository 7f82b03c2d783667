"""The commands: readable output on stdout, or one JSON object; the same conversion as from Python."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import transformers

from hf_longattn.cli import main
from hf_longattn.mechanisms import list_mechanisms
from hf_longattn.training.tasks import task_names
from tests.cases import every_case

LENGTH = 64


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "llama"
    config = transformers.LlamaConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=LENGTH,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def long(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long") / "llama"
    arguments = ["--mechanism", "window", "--option", "window=32", "--layers", "0,2-3=window:window=16", "--max-length", "256"]
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source), str(folder), *arguments])
    assert not ended.value.code
    return folder


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """stdout of a command that succeeds."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert not ended.value.code, captured.err
    return captured.out


def test_convert_writes_what_its_flags_say(long: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(long)
    assert [config.long_attention.for_layer(index)[1]["window"] for index in range(4)] == [16, 32, 16, 16]
    assert config.max_position_embeddings == 256
    assert type(transformers.AutoModelForCausalLM.from_pretrained(long)).__name__ == "LongLlamaForCausalLM"


@pytest.mark.thorough
def test_convert_reports_in_words_and_in_json(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--mechanism", "window", "--option", "window=32", "--max-length", 128)
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path)
    words = output(capsys, "convert", source, "words", *flags)
    assert "padding changes nothing" in words
    assert "needs training" in words
    assert "--model words " in words.splitlines()[-1]  # what was typed
    monkeypatch.chdir(tmp_path / "desk")
    assert f"--model {tmp_path / 'words'} " in output(capsys, "convert", source, "../words", *flags, "--overwrite").splitlines()[-1]
    report = json.loads(output(capsys, "convert", source, tmp_path / "json", *flags, "--json"))
    assert report["verified"]
    assert report["destination"] == str(tmp_path / "json")
    (tensors,) = [check for check in report["checks"] if check["name"] == "tensors"]
    assert tensors["values"]["kept"] == len(transformers.AutoModelForCausalLM.from_pretrained(source).state_dict())


@pytest.mark.thorough
def test_plan_says_what_would_happen_and_writes_nothing(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--mechanism", "window", "--option", "window=32", "--max-length", 1024, "--json")
    planned = json.loads(output(capsys, "plan", source, *flags))
    assert list(tmp_path.iterdir()) == []
    assert [cost["length"] for cost in planned["costs"]] == [64, 128, 256, 512, 1024]
    assert planned["costs"][-1]["cache_bytes"] == planned["costs"][-2]["cache_bytes"]
    assert [one["mechanism"] for one in planned["comparison"]["mechanisms"]] == ["as planned", *list_mechanisms(causal=True, grid=False)]
    shown = output(capsys, "plan", source, *flags[:-1])
    assert "rope:none" in shown
    assert "operations of the whole model" in shown


@pytest.mark.thorough
def test_plan_compares_costs_of_every_mechanism_up_to_the_new_length(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--mechanism", "window", "--option", "window=16", "--max-length", 65536, "--json")
    planned = json.loads(output(capsys, "plan", source, *flags))["comparison"]
    assert planned["sizes"][0] == "64 tokens"
    assert "65536" in planned["sizes"][-1].replace(",", "")
    rows = {row["mechanism"]: row for row in planned["mechanisms"]}
    assert next(iter(rows)) == "as planned"
    assert rows["as planned"]["flops"] < rows["window"]["flops"] < rows["full"]["flops"]
    growth = {mechanism: row["flops"][-1] / row["flops"][-2] for mechanism, row in rows.items()}
    assert growth["full"] == pytest.approx(4, rel=0.05)
    for linear in ("window", "linear", "performer"):
        assert growth[linear] == pytest.approx(2, rel=0.05)
    assert all(len(row["flops"]) == len(planned["sizes"]) for row in rows.values())


def test_inspect_shows_layers_parameters_state_and_cost(long: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "inspect", long, "--json"))
    assert [layer["window"] for layer in found["layers"]] == [16, 32, 16, 16]
    model = transformers.AutoModelForCausalLM.from_pretrained(long)
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    # keys and values, 2 heads of 8, fp32, of the 16 + 32 + 16 + 16 tokens that the layers reach back
    assert found["costs"][-1]["cache_bytes"] == 2 * 2 * 8 * 4 * (16 + 32 + 16 + 16)
    shown = output(capsys, "inspect", long)
    assert "window=16" in shown
    states = [line.split() for line in shown.partition("state of each layer")[2].splitlines()]
    assert [words[0] for words in states if words[1:2] == ["window"]] == ["0,2-3", "1"]


def test_mechanisms_are_listed_and_described(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listed = json.loads(output(capsys, "mechanisms", "--json"))["mechanisms"]
    assert [one["name"] for one in listed] == list_mechanisms()
    monkeypatch.setenv("COLUMNS", "80")
    lines = output(capsys, "mechanisms").splitlines()
    assert [name for name in list_mechanisms() if not any(f" {name} " in line for line in lines)] == []
    words = output(capsys, "mechanisms", "longformer")
    assert "global_tokens" in words
    assert "Beltagy" in words


def test_inspect_draws_the_layers_of_a_model(long: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the plot extra")
    output(capsys, "inspect", long, "--plot", tmp_path / "pattern.svg")
    assert "layers 0,2-3: window window=16" in (tmp_path / "pattern.svg").read_text() or (tmp_path / "pattern.svg").stat().st_size > 1000


def test_inspect_refuses_a_drawing_that_cannot_be_written(long: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the plot extra")
    for file, sentence in (("pattern.xyz", "Cannot draw into"), ("nowhere/pattern.png", "does not exist; make it")):
        with pytest.raises(SystemExit) as ended:
            main(["inspect", str(long), "--plot", str(tmp_path / file)])
        assert ended.value.code == 1
        assert sentence in capsys.readouterr().err


@pytest.mark.thorough
@every_case(("command", "task"), [(command, task) for command in ("train", "evaluate") for task in task_names()], of=3)
def test_help_of_every_training_task_lists_all_options(command: str, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, task, "--help"])
    assert stopped.value.code == 0
    page = capsys.readouterr().out
    assert f"usage: longattn {command} {task} --model" in page
    assert {"--model", "--output", "--seed", "--adam-beta1", "--config"} <= set(re.findall(r"(--[\w-]+)", page))


def test_train_without_a_model_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "mlm"])
    assert stopped.value.code == 1
    assert "add --model" in capsys.readouterr().err
