"""Bad input of every task is one sentence, with exit code 1 and nothing written: the registry's tasks, one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import PreTrainedTokenizerBase

from hf_longattn.cli.train import train
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.training.tasks import task_names
from tests.training.conftest import checkpoint
from tests.training.speech import speech_checkpoint, spoken
from tests.training.test_options import DATA
from tests.training.test_seq2seq import bart

pytestmark = pytest.mark.usefixtures("families_hidden")

TEXT = {"text": "def tree(): return 1"}
ROWS = {task: rows[0] for task, rows in DATA.items()}
"""A good row of each task's data."""
LEFT_OUT = {
    "qa": "context", "classify": "label", "tokens": "ner_tags", "mlm": "text", "clm": "text", "seq2seq": "summary",
    "embed": "positive", "multitask": "label", "linearise": "text", "distill": "text", "ctc": "text",
}  # fmt: skip
"""A column without which it cannot be learnt."""
WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "qa": [({"answers": {"text": ["house"], "answer_start": [0]}}, "not at character 0; correct"), ({"context": 5}, "context|text")],
    "classify": [({"label": None}, "has no label in the column"), ({"text": 5}, "no text")],
    "tokens": [({"ner_tags": ["O"]}, "a tag for every word"), ({"tokens": "a tree"}, "no list of texts")],
    "mlm": [({"text": 5}, "no text")],
    "clm": [({"text": 5}, "no text")],
    "seq2seq": [({"summary": 5}, "no text"), ({"summary": ""}, "no document and summary")],
    "embed": [({"positive": ""}, "no anchor and positive"), ({"score": "high"}, "no number")],
    "multitask": [({"label": None}, "has no label in the column")],
    "linearise": [({"text": 5}, "no text")],
    "distill": [({"text": 5}, "no text")],
    "ctc": [({"text": 5}, "no text"), ({"text": ""}, "no text"), ({"audio": "none.wav"}, "none.wav does not exist")],
}
"""Values that a column must not hold, and a part of the sentence."""


def written(rows: list[dict[str, Any]], folder: Path) -> str:
    """A file that holds the rows."""
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def refusal(task: str, line: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence in which a task refuses a command line, and nothing else: no heading, no traceback, no model."""
    capsys.readouterr()
    assert train(task, [*line, "--output", str(folder / "out"), "--no-bf16"]) == 1, capsys.readouterr().err
    lines = capsys.readouterr().err.splitlines()
    errors = [text for text in lines if text.startswith("Error: ")]
    assert len(errors) == 1
    assert not [text for text in lines if text.startswith("hf_longattn ")], "no heading comes before a refusal"
    assert not (folder / "out" / "config.json").exists()
    return errors[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    encoder, decoder = (checkpoint(kind, folder / kind, tokenizer) for kind in ("mlm", "clm"))
    convert_checkpoint(encoder, folder / "hedgehog", mechanism="hedgehog", verify=False)
    linearise = str(folder / "hedgehog")
    return {
        **dict.fromkeys(ROWS, encoder),
        "clm": decoder,
        "linearise": linearise,
        "seq2seq": bart(folder, tokenizer),
        "ctc": speech_checkpoint(folder / "ctc"),
    }


@pytest.fixture
def sentence(tmp_path: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a task says about data, which it must refuse."""

    def run(name: str, source: str | list[dict[str, Any]], *more: str) -> str:
        flag = "--tasks" if name == "multitask" else "--data"
        if name == "ctc":
            spoken(tmp_path, 1)
        needed = ["--method", "logits", "--teacher", models[name]] if name == "distill" else []
        file = source if isinstance(source, str) else written(source, tmp_path)
        sources = [f"one=classify:{file}", f"two=classify:{file}"] if name == "multitask" else [file]
        return refusal(name, ["--model", models[name], flag, *sources, *needed, *more], tmp_path, capsys)

    return run


@pytest.mark.parametrize("task", task_names())
def test_every_task_refuses_missing_broken_and_wrong_data_in_a_sentence(task: str, sentence: Callable[..., str], tmp_path: Path) -> None:
    if task == "embed":
        pytest.importorskip("sentence_transformers")
    assert {task} <= LEFT_OUT.keys() & WRONG.keys(), f"give {task!r} a row of LEFT_OUT and WRONG"
    check_refusals(partial(sentence, task), ROWS[task], LEFT_OUT[task], WRONG[task], tmp_path)


def test_missing_validation_data_are_noticed_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no model either: loading it would be another sentence."""
    data = written([ROWS["classify"]] * 4, tmp_path)
    failing = {}
    for task in task_names():
        flag = "--tasks" if task == "multitask" else "--data"
        sources = [f"one=classify:{data}", f"two=classify:{data}"] if task == "multitask" else [data]
        needed = ["--method", "logits", "--teacher", "none"] if task == "distill" else []
        validation = f"{'two=' * (task == 'multitask')}{tmp_path / 'none.jsonl'}"
        line = ["--model", str(tmp_path / "no model"), flag, *sources, *needed, "--validation", validation]
        said = refusal(task, line, tmp_path, capsys)
        if "none.jsonl' does not exist" not in said:
            failing[task] = said
    assert not failing


WITHOUT_TOKENS: dict[str, dict[str, Any]] = {
    **{task: {"text": "[SEP][CLS]"} for task in ("mlm", "clm", "linearise", "distill")},
    "tokens": {"tokens": ["", ""], "ner_tags": ["O", "B-X"]},
}
"""Rows that the tokenizer turns into special tokens alone, of the tasks that have then nothing to predict."""


@pytest.mark.parametrize("task", WITHOUT_TOKENS)
def test_data_without_a_token_to_predict_are_refused_before_training(task: str, sentence: Callable[..., str], tmp_path: Path) -> None:
    rows = [WITHOUT_TOKENS[task]] * 4
    other = tmp_path / "other"
    other.mkdir()
    bad, good = written(rows, other), [ROWS[task]] * 4
    assert f"No row of {bad} is left to evaluate on" in sentence(task, good, "--validation", bad, "--no-eval-on-start")
    said = sentence(task, bad, "--validation", written(good, tmp_path))
    assert re.search(r"No row of .*data.jsonl is left to train on: the tokenizer makes only special tokens", said), said
    assert "(held out) is left to evaluate on" in sentence(task, rows)


def test_segments_of_texts_without_a_token_are_refused(sentence: Callable[..., str]) -> None:
    assert "(held out) is left to evaluate on" in sentence("clm", [{"text": "[SEP][CLS]"}] * 4, "--segments", "8")


def check_refusals(
    sentence: Callable[..., str], good: dict[str, Any], left_out: str, wrong: list[tuple[dict[str, Any], str]], tmp_path: Path
) -> None:
    """Missing, empty and broken files, a missing column and wrong values are refused in a sentence that names them.

    sentence: how the task refuses a file or rows; good, left_out, wrong: its rows of the tables above.
    """
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "header.csv").write_text(",".join(good) + "\n")
    (tmp_path / "broken.jsonl").write_text('{"a": 1\n')
    for file, words in (
        ("none.jsonl", "does not exist"),
        ("empty.jsonl", "is empty|has no rows|contains no questions"),
        ("header.csv", "has no rows|no text|no questions|no pairs|there are|no row|no words|nothing to learn"),
        ("broken.jsonl", "cannot be read|not valid JSON"),
    ):
        assert re.search(words, sentence(str(tmp_path / file))), file
    said = sentence([{name: value for name, value in {**good, "other": 1}.items() if name != left_out}] * 4)
    assert "other" in said, said
    for changes, words in wrong:
        said = sentence([{**good, **changes}] * 4)
        assert re.search(words, said), said
    column = next((name for name, value in good.items() if isinstance(value, str) and name != "id"), next(iter(good)))
    said = sentence([good, {**good, column: 5}, good, {**good, column: [1]}])
    assert re.search(rf"{column}|JSON|different types|must be|not text", said), said
    assert len(said) < 700, said


@pytest.mark.parametrize("task", task_names())
def test_tasks_that_read_text_refuse_a_model_of_images(task: str, sentence: Callable[..., str], tmp_path: Path) -> None:
    if task == "embed":
        pytest.importorskip("sentence_transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    rows = [{**ROWS[task], **({"id": str(number)} if task == "qa" else {})} for number in range(8)]
    said = sentence(task, rows, "--model", str(tmp_path / "vit"))
    refusals = r"is no converted model of texts|\(vit\) has no (head|tokenizer|language-modelling head)|reads pixel_values|has a ViTConfig"
    assert re.search(f"{refusals}|cannot be loaded|not 'image' or 'file_name'; name one", said), said
    assert not (tmp_path / "out").exists()
