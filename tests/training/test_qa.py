"""Question answering from arguments to files: on anyone's SQuAD file, resumable, saved as a plain model with its
predictions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    BertForQuestionAnswering,
    PreTrainedTokenizerBase,
    RobertaForQuestionAnswering,
)

from hf_longattn import convert_checkpoint
from hf_longattn.data.qa_schemas import load_qa
from hf_longattn.data.tokenization import longest_input
from hf_longattn.errors import InputError, OptionError
from hf_longattn.evaluation.qa_reader import QAReader
from hf_longattn.files import read_json
from hf_longattn.training.tasks.qa import load_qa_model, span_loss
from scripts.dev.tools.small_models import small_config
from tests.training.conftest import quick, write_rows


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_model: BertForQuestionAnswering, tokenizer: PreTrainedTokenizerBase) -> str:
    tiny_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Documents of some hundred tokens, each with one line that answers the question."""
    choose, names = random.Random(0), ["tree", "file", "node", "path", "line", "code"]
    records = []
    for number in range(16):
        lines = [
            f"def {choose.choice(names)}_{choose.randrange(99)}(self, value): return value"
            for _ in range(choose.randint(8, 30))
        ]
        answer = choose.choice(names)
        lines.insert(choose.randrange(len(lines)), f"# the module is {answer}")
        context = "\n".join(lines)
        found = {"text": [answer], "answer_start": [context.index("module is ") + len("module is ")]}
        records.append({"id": str(number), "question": "what is the module?", "context": context, "answers": found})
    write_rows(records, tmp_path / "data.jsonl")
    return str(tmp_path / "data.jsonl")


@pytest.mark.parametrize(("mechanism", "separated"), [("longformer", True), ("window", False)])
def test_qa_model_makes_its_question_global_where_it_can(
    mechanism: str, separated: bool, checkpoint: str, data: str, tmp_path: Path
) -> None:
    quick("qa", converted(checkpoint, tmp_path, mechanism), tmp_path / "out", data, max_steps=1)
    saved = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")
    assert (saved.config.question_separator_id is not None) == separated


def test_longest_input_of_roberta_is_its_table_without_the_padding_row() -> None:
    model = RobertaForQuestionAnswering(small_config("roberta", max_position_embeddings=34))
    tokenizer: Any = SimpleNamespace(model_max_length=16)
    assert longest_input(model, tokenizer) == 32


def converted(checkpoint: str, folder: Path, mechanism: str = "longformer") -> str:
    convert_checkpoint(checkpoint, folder / "long", mechanism=mechanism, window=16, max_length=700, verify=False)
    return str(folder / "long")


@pytest.mark.thorough
def test_qa_reader_gives_the_predictions_of_the_evaluation(checkpoint: str, data: str, tmp_path: Path) -> None:
    """With questions without an answer: the threshold tuned on the validation data is in the config."""
    records = load_qa(data).to_list()
    for record in records[::3]:
        record |= {"answers": {"text": [], "answer_start": []}, "gold": []}
    write_rows(
        [{name: record[name] for name in ("id", "question", "context", "answers")} for record in records],
        tmp_path / "some.jsonl",
    )
    held, model = str(tmp_path / "some.jsonl"), converted(checkpoint, tmp_path)
    log = quick("qa", model, tmp_path / "out", held, validation=held, max_steps=20, learning_rate=1e-2)
    predictions = read_json(tmp_path / "out" / "predictions.json")
    model, tokenizer = load_qa_model(str(tmp_path / "out"))
    reader = QAReader(model, tokenizer)
    assert reader.length == log["input_length"] == 700
    assert reader.null_threshold == model.config.no_answer_threshold is not None
    assert {record["id"]: reader.answer(record) for record in records} == predictions
    assert sum(bucket["n"] for bucket in log["by_length"].values()) == 16
    for scores in log["metrics"].values():
        assert scores["NoAns_f1"] + scores["HasAns_f1"] >= scores["f1"] > 0


def test_qa_training_drops_the_no_answer_threshold_of_an_earlier_one(
    checkpoint: str, data: str, tmp_path: Path
) -> None:
    model = converted(checkpoint, tmp_path)
    config = AutoConfig.from_pretrained(model)
    config.no_answer_threshold = -9.0
    config.save_pretrained(model)
    quick("qa", model, tmp_path / "out", data, validation=data, max_steps=1)
    assert getattr(AutoConfig.from_pretrained(tmp_path / "out"), "no_answer_threshold", None) is None


def test_evaluate_qa_uses_the_no_answer_threshold_of_the_model(checkpoint: str, data: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    for row in rows[::2]:
        row["answers"] = {"text": [], "answer_start": []}
    write_rows(rows, tmp_path / "some.jsonl")
    model = converted(checkpoint, tmp_path)
    config = AutoConfig.from_pretrained(model)
    config.no_answer_threshold = 1e6
    config.save_pretrained(model)
    log = quick("qa", model, tmp_path / "scored", tmp_path / "some.jsonl", do_train=False)
    assert (log["metrics"]["after"]["HasAns_f1"], log["metrics"]["after"]["NoAns_f1"]) == (0.0, 100.0)
    assert set(read_json(tmp_path / "scored" / "predictions.json").values()) == {""}


def test_qa_reads_long_documents_in_windows(checkpoint: str, data: str, tmp_path: Path) -> None:
    def run(**more: Any) -> dict[str, Any]:
        return quick("qa", checkpoint, tmp_path / "out", **{"data": data, "max_length": 160, "max_steps": 1, **more})

    assert run(max_length=64)["features"] > run(max_length=128)["features"] > 16
    assert run(stride=32)["features"] < run(stride=40)["features"]
    question = {"question": "why " * 200, "context": "because", "answers": {"text": ["because"], "answer_start": [0]}}
    write_rows([{**question, "id": str(number)} for number in range(4)], tmp_path / "long.jsonl")
    with pytest.raises(
        InputError, match=r"--max-length 160 leaves 0 tokens .*; shorten the question, or raise --max-length"
    ):
        run(data=[str(tmp_path / "long.jsonl")])
    with pytest.raises(OptionError, match="does not keep documents of one row apart"):
        run(packing=True)


def labels_of(starts: list[list[int]], ends: list[list[int]], lengths: list[int]) -> torch.Tensor:
    """The labels of a batch, as its collator makes them."""
    labels = torch.full((len(lengths), max(lengths), 2), -100, dtype=torch.int8)
    for row, length, *places in zip(labels, lengths, starts, ends, strict=True):
        row[:length] = 0
        row[places[0], 0] = 1
        row[places[1], 1] = 1
    return labels


def test_span_loss_is_bert_s_for_one_answer_and_sums_over_several() -> None:
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.randn(2, 7, generator=generator, requires_grad=True) for _ in range(2))
    outputs = SimpleNamespace(start_logits=start, end_logits=end)
    usual = (F.cross_entropy(start, torch.tensor([1, 4])) + F.cross_entropy(end, torch.tensor([2, 6]))) / 2
    torch.testing.assert_close(span_loss(outputs, labels_of([[1], [4]], [[2], [6]], [7, 7])), usual)
    several = span_loss(outputs, labels_of([[1, 3], [4]], [[2], [6]], [7, 7]))
    first = -(start.softmax(-1)[0, [1, 3]].sum().log() + end.log_softmax(-1)[0, 2]) / 2
    second = -(start.log_softmax(-1)[1, 4] + end.log_softmax(-1)[1, 6]) / 2
    torch.testing.assert_close(several, (first + second) / 2)
    several.backward()
    assert start.grad is not None
    assert bool(start.grad.isfinite().all())


def test_span_loss_gives_padding_no_probability_and_is_the_same_packed() -> None:
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    labels = labels_of([[2], [1]], [[3], [2]], [6, 3])
    padded = span_loss(SimpleNamespace(start_logits=logits, end_logits=logits), labels)
    short = span_loss(SimpleNamespace(start_logits=logits[1:, :3], end_logits=logits[1:, :3]), labels[1:, :3])
    whole = span_loss(SimpleNamespace(start_logits=logits[:1], end_logits=logits[:1]), labels[:1])
    torch.testing.assert_close(padded, (short + whole) / 2)
    row = torch.cat([logits[0], logits[1, :3]])[None]
    torch.testing.assert_close(span_loss(SimpleNamespace(start_logits=row, end_logits=row), labels), padded)
