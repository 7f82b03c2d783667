"""The commands of longattn: what they print and write."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import transformers

from hf_longattn import convert_checkpoint
from hf_longattn.cli import main
from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.evaluation.token_loss import PARAGRAPHS
from hf_longattn.mechanisms import list_mechanisms
from hf_longattn.training.tasks import task_names
from tests.cases import every_case
from tests.trained import REAL_TEXT, tokenizer_of
from tests.unsupported import ENCODER

LENGTH = 64


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "llama"
    config = transformers.LlamaConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=LENGTH,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def long(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long") / "llama"
    arguments = [
        "--mechanism",
        "window",
        "--option",
        "window=32",
        "--layers",
        "0,2-3=window:window=16",
        "--max-length",
        "256",
    ]
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source), str(folder), *arguments])
    assert not ended.value.code
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `longattn arguments…`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """stdout of a command that succeeds."""
    code, out, err = run(capsys, *arguments)
    assert not code, err
    return out


def test_convert_writes_what_its_flags_say(long: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(long)
    assert [config.long_attention.for_layer(index)[1]["window"] for index in range(4)] == [16, 32, 16, 16]
    assert config.max_position_embeddings == 256
    assert type(transformers.AutoModelForCausalLM.from_pretrained(long)).__name__ == "LongLlamaForCausalLM"


def test_recipe_with_sinks_leaves_rotations_as_they_are(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ("--config", "streaming-llm", "--option", "window=32", "--option", "num_sinks=4")
    for name, flags in {"recipe": (), "longer": ("--max-length", 1024)}.items():
        shown = output(capsys, "convert", source, tmp_path / name, *recipe, *flags, "--no-verify")
        assert "of any length: no query looks back more than 36 positions" in " ".join(shown.split())
        assert "Warning" not in shown
        before, config = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / name))
        assert config["rope_parameters"] == before["rope_parameters"]
        assert config["max_position_embeddings"] == (1024 if flags else before["max_position_embeddings"])


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
    assert (
        f"--model {tmp_path / 'words'} "
        in output(capsys, "convert", source, "../words", *flags, "--overwrite").splitlines()[-1]
    )
    report = json.loads(output(capsys, "convert", source, tmp_path / "json", *flags, "--json"))
    assert report["verified"]
    assert report["destination"] == str(tmp_path / "json")
    (tensors,) = [check for check in report["checks"] if check["name"] == "tensors"]
    assert tensors["values"]["kept"] == len(transformers.AutoModelForCausalLM.from_pretrained(source).state_dict())


@pytest.mark.thorough
def test_plan_says_what_would_happen_and_writes_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--mechanism", "window", "--option", "window=32", "--max-length", 1024, "--json")
    planned = json.loads(output(capsys, "plan", source, *flags))
    assert list(tmp_path.iterdir()) == []
    assert [cost["length"] for cost in planned["costs"]] == [64, 128, 256, 512, 1024]
    assert planned["costs"][-1]["cache_bytes"] == planned["costs"][-2]["cache_bytes"]
    assert "rope:none" in output(capsys, "plan", source, *flags[:-1])


def test_inspect_shows_layers_parameters_state_and_cost(
    long: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(output(capsys, "inspect", long, "--json"))
    assert [layer["window"] for layer in found["layers"]] == [16, 32, 16, 16]
    model = transformers.AutoModelForCausalLM.from_pretrained(long)
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    # keys and values, 2 heads of 8, fp32, of the 16 + 32 + 16 + 16 tokens that the layers reach back
    assert found["costs"][-1]["cache_bytes"] == 2 * 2 * 8 * 4 * (16 + 32 + 16 + 16)
    shown = output(capsys, "inspect", long)
    assert "of any length: a query looks back 32 positions, causal" in shown
    assert found["look_back"] == 32
    assert "window=16" in shown
    states = [line.split() for line in shown.partition("state of each layer")[2].splitlines()]
    assert [words[0] for words in states if words[1:2] == ["window"]] == ["0,2-3", "1"]


def test_mechanisms_are_listed_and_described(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = json.loads(output(capsys, "mechanisms", "--json"))["mechanisms"]
    assert [one["name"] for one in listed] == list_mechanisms()
    monkeypatch.setenv("COLUMNS", "80")
    lines = output(capsys, "mechanisms").splitlines()
    assert [name for name in list_mechanisms() if not any(f" {name} " in line for line in lines)] == []
    words = output(capsys, "mechanisms", "longformer")
    assert "global_tokens" in words
    assert "Beltagy" in words


@pytest.mark.thorough
@every_case(("command", "task"), [(command, task) for command in ("train", "evaluate") for task in task_names()], of=3)
def test_help_of_every_training_task_lists_all_options(
    command: str, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = output(capsys, command, task, "--help")
    assert f"usage: longattn {command} {task} --model" in page
    assert {"--model", "--output", "--seed", "--adam-beta1", "--config"} <= set(re.findall(r"(--[\w-]+)", page))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of 64 tokens, and a text."""
    folder, tokenizer = tmp_path_factory.mktemp("search"), tokenizer_of("bert", 64)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    (folder / "text.txt").write_text(REAL_TEXT, encoding="utf-8")
    return {"model": folder / "bert", "text": folder / "text.txt"}


SEARCHED = ("--length", "256", "--candidate", "window:window=8", "--candidate", "window:window=64", "--pieces", "1")


def test_search_prints_the_conversion_that_gives_its_design(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "design.yaml"
    code, out, err = run(capsys, "search", *places.values(), "--output", output, "--budget", "9.5", *SEARCHED)
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
    code, out, _ = run(
        capsys, "search", *places.values(), "--output", tmp_path / "other.yaml", "--budget", "9.5", *SEARCHED, "--json"
    )
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
        (("--compare-at", "4096"), "Mechanisms are compared on texts of up to 64 tokens"),
    ],
)
def test_search_refuses_budgets_and_candidates_that_do_not_fit(
    typed: tuple[str, ...], sentence: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "search", *places.values(), "--output", tmp_path / "design.yaml", *SEARCHED, *typed)
    assert (code, out) == (1, "")
    assert sentence in err
    assert err.count("\n") == 1


pytestmark = pytest.mark.usefixtures("families_hidden")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short model, `bert`, and a text, `text.txt`."""
    folder = tmp_path_factory.mktemp("inspect")
    tokenizer = tokenizer_of("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    transformers.BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    (folder / "text.txt").write_text(PARAGRAPHS, encoding="utf-8")
    return folder


MEASURED = ("--lengths", "64,128", "--candidate", "window:window=32", "--candidate", "linear")


def test_inspect_of_a_text_prints_a_table_within_80_columns(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "inspect", place / "bert", place / "text.txt", *MEASURED)
    assert (code, err) == (0, "")
    assert out.lstrip().startswith("At 128 tokens the heads of layer")
    assert all(len(line) <= 80 for line in out.splitlines())
    for told in ("window:window=32", "not measured for: linear", "add to longattn convert:\n  --mechanism window"):
        assert told in out


def test_inspect_of_a_text_prints_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", place / "bert", place / "text.txt", *MEASURED, "--json", "--queries", 5)
    assert code == 0
    values = json.loads(out)
    assert [(row["length"], row["queries"]) for row in values["lengths"]] == [(64, 5), (128, 5)]


def test_inspect_measures_a_long_model_by_its_source(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert_checkpoint(
        place / "bert", tmp_path / "long", mechanism="window", options={"window": 16}, max_length=256, verify=False
    )
    code, out, err = run(capsys, "inspect", tmp_path / "long", place / "text.txt", *MEASURED)
    assert (code, err) == (0, "")
    for told in ("At 128 tokens the heads", "the checkpoint that this model was made from"):
        assert told in out


REFUSED = {
    "a length beyond the model": (["--lengths", "512"], "ends at 128 tokens"),
    "a length that is none": (["--lengths", "many"], "'many' is not a number of tokens"),
    "an unknown mechanism": (["--candidate", "windw"], "Did you mean 'window'"),
}


@every_case("case", REFUSED)
def test_inspect_refuses_lengths_and_candidates_that_do_not_fit(
    case: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, sentence = REFUSED[case]
    code, out, err = run(capsys, "inspect", place / "bert", place / "text.txt", *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert sentence in err


def test_inspect_measures_a_class_without_long_classes(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = transformers.BertConfig.from_pretrained(place / "bert").to_diff_dict()
    config_class = getattr(transformers, f"{ENCODER}Config")
    config = config_class(**{**values, "model_type": config_class.model_type})
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "short")
    transformers.AutoTokenizer.from_pretrained(place / "bert").save_pretrained(tmp_path / "short")
    code, out, _ = run(capsys, "inspect", tmp_path / "short", place / "text.txt", *MEASURED)
    assert code == 0
    assert "add to longattn convert:\n  --mechanism window" in out


def test_inspect_reads_byte_order_marks_and_refuses_a_folder(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--lengths", "64", "--candidate", "window:window=32", "--json", "--queries", 8)
    found = []
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "book.txt").write_bytes(mark + PARAGRAPHS.replace("\n", "\r\n").encode())
        code, out, _ = run(capsys, "inspect", place / "bert", tmp_path / "book.txt", *few)
        assert code == 0
        found.append([one["layers"] for one in json.loads(out)["lengths"]])
    assert found[0] == found[1]
    code, out, err = run(capsys, "inspect", place / "bert", tmp_path, *few)
    assert (code, err) == (1, f"Error: The text {str(tmp_path)!r} is a folder; give one file, for example a book.\n")
