"""Training and answering on pages: questions about words with boxes, and forms whose words are tagged."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForDocumentQuestionAnswering,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LayoutLMConfig,
    LayoutLMForQuestionAnswering,
    PreTrainedTokenizerBase,
)

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.sources import DataError
from hf_longattn.errors import OptionError
from hf_longattn.evaluation.qa_reader import QAReader, whole, windows
from hf_longattn.training.parsing import build_arguments
from hf_longattn.training.tasks.classify import CLASSIFICATION, finetune_classification
from hf_longattn.training.tasks.qa import QA, finetune_qa
from hf_longattn.training.tasks.tokens import TOKENS, finetune_tokens
from tests.training.conftest import FAST, checkpoint

LEFT, RIGHT = [50, 10, 90, 20], [900, 10, 950, 20]


def short_layoutlm(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    torch.manual_seed(0)
    config = LayoutLMConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=256, initializer_range=0.15, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LayoutLMForQuestionAnswering(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def questions(count: int = 60) -> list[dict[str, Any]]:
    """Two codes on the last of two pages: the answer is the one on the left, which boxes alone tell."""
    choose, rows = random.Random(0), []
    for number in range(count):
        pages = [choose.choices(["for", "while", "return"], k=choose.randint(10, 20)) for _ in range(2)]
        boxes = [[[300, 100 + 10 * place, 400, 105 + 10 * place] for place in range(len(page))] for page in pages]
        codes = choose.sample(["tree", "file", "node", "path"], 2)
        place, left = choose.randrange(len(pages[1])), choose.randrange(2)
        pages[1][place:place], boxes[1][place:place] = codes, [LEFT, RIGHT] if left == 0 else [RIGHT, LEFT]
        row = {"id": str(number), "question": "which", "words": pages, "boxes": boxes, "answers": [codes[left]]}
        rows.append({**row, "answer_page_idx": 1})
    return rows


def forms(count: int = 24) -> list[dict[str, Any]]:
    """A word on the left is a question, one on the right an answer."""
    choose, rows = random.Random(0), []
    for _ in range(count):
        words = choose.choices(["for", "while", "return", "tree"], k=choose.randint(20, 60))
        sides = [choose.choice([LEFT, RIGHT]) for _ in words]
        tags = ["B-QUESTION" if side is LEFT else "B-ANSWER" for side in sides]
        rows.append({"words": words, "bboxes": sides, "ner_tags": tags})
    return rows


def write(rows: list[dict[str, Any]], path: Path) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.slow
def test_a_converted_layoutlm_learns_answers_that_boxes_alone_tell(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Trained, evaluated, saved and loaded by a reader, which is given words and boxes, on pages or not."""
    short = short_layoutlm(tmp_path / "short", tokenizer)
    convert_checkpoint(short, tmp_path / "long", mechanism="longformer", max_length=512, window=16, exact_length=0, verify=False)
    data, held = write(questions(), tmp_path / "data.jsonl"), write(questions(64)[60:], tmp_path / "held.jsonl")
    given = {"model": str(tmp_path / "long"), "output_dir": str(tmp_path / "out"), "data": [data], "validation": held, "layout": True}
    settings = {
        **FAST,
        "max_steps": 50,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 16,
        "validation_split": "train",
    }
    log = finetune_qa(*build_arguments(QA, **given, **settings))
    assert log["packed"]
    assert log["held_out"]["after"]["exact_match"] == log["held_out"]["after"]["anls"] == 100
    assert "pipeline_tag: document-question-answering" in (card := (tmp_path / "out" / "README.md").read_text())
    assert "type: document-question-answering" in card
    model, saved = AutoModelForDocumentQuestionAnswering.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.question_separator_id == saved.sep_token_id
    reader = QAReader("row", model, saved, whole(512))
    records = questions(64)[60:]
    answers = [answer.text for answer in reader.read(records)]
    assert answers == [record["answers"][0] for record in records]
    flat = {**records[0], **{name: [*records[0][name][0], *records[0][name][1]] for name in ("words", "boxes")}}
    assert reader.answer(flat) == answers[0]
    swapped = [[[1000 - box[2], box[1], 1000 - box[0], box[3]] for box in page] for page in records[0]["boxes"]]
    assert reader.answer({**records[0], "boxes": swapped}) != answers[0]
    with pytest.raises(OptionError, match="Some of the examples have words with boxes"):
        reader.read([flat, {"question": "which", "context": "a b"}])
    assert QAReader("row", model, saved, windows(48, 16)).answer(flat) in {"tree", "file", "node", "path"}
    first, second = (json.loads((tmp_path / "out" / "predictions.json").read_text())[name] for name in ("60", "61"))
    assert [first, second] == answers[:2]


@pytest.mark.thorough
def test_a_converted_layoutlm_learns_tags_that_boxes_alone_tell(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    short = short_layoutlm(tmp_path / "short", tokenizer)
    convert_checkpoint(short, tmp_path / "long", mechanism="window", max_length=512, window=16, verify=False)
    given = {"model": str(tmp_path / "long"), "output_dir": str(tmp_path / "out"), "data": [write(forms(), tmp_path / "data.jsonl")]}
    settings = {**FAST, "max_steps": 30, "learning_rate": 1e-2, "stride": 16, "max_length": 48, "words_column": "words"}
    for packing in (True, False):
        log = finetune_tokens(*build_arguments(TOKENS, **given, **settings, packing=packing))
        assert log["packed"] == packing
        assert log["held_out"]["after"]["accuracy"] == 100
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "B-ANSWER", 1: "B-QUESTION"}
    without = finetune_tokens(*build_arguments(TOKENS, **given, **settings, layout=False))
    assert without["held_out"]["after"]["accuracy"] < 90


def test_a_converted_layoutlm_learns_classes_that_boxes_alone_tell(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    short = short_layoutlm(tmp_path / "short", tokenizer)
    convert_checkpoint(short, tmp_path / "long", mechanism="window", max_length=512, window=512, verify=False)
    choose, rows = random.Random(0), []
    for number in range(40):
        words, side = choose.choices(["for", "while", "return", "tree"], k=choose.randint(10, 30)), (LEFT, RIGHT)[number % 2]
        rows.append({"words": words, "bboxes": [side] * len(words), "label": "left" if side is LEFT else "right"})
    given = {"model": str(tmp_path / "long"), "output_dir": str(tmp_path / "out"), "data": [write(rows, tmp_path / "data.jsonl")]}
    settings = {**FAST, "max_steps": 20, "learning_rate": 1e-2, "layout": True}
    for packing in (True, False):
        log = finetune_classification(*build_arguments(CLASSIFICATION, **given, **settings, packing=packing))
        assert log["packed"] == packing
        assert log["held_out"]["after"]["accuracy"] == 100
    bert = checkpoint("mlm", tmp_path / "bert", tokenizer)
    for words, values in (
        (r"--layout: .*bert' \(bert\) reads text alone; take a LayoutLM", {**given, "model": bert, "layout": True}),
        ("--boxes-column is an option for pages; add --layout", {**given, "boxes_column": "boxes"}),
        ("--text-column is an option for texts; leave it out, or leave --layout out", {**given, "layout": True, "text_column": "x"}),
        ("--layout and --images are two kinds of data", {**given, "layout": True, "images": True}),
    ):
        with pytest.raises(OptionError, match=words):
            finetune_classification(*build_arguments(CLASSIFICATION, **values, **FAST, max_steps=1))


def test_what_cannot_be_read_with_boxes_is_a_sentence(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    text = {"id": "t", "question": "which", "context": "tree for while", "answers": {"text": ["tree"], "answer_start": [0]}}
    pages = write(questions(4), tmp_path / "pages.jsonl")
    texts, short = (
        write([{**text, "id": str(number)} for number in range(10, 14)], tmp_path / "text.jsonl"),
        short_layoutlm(tmp_path / "short", tokenizer),
    )
    bert = checkpoint("mlm", tmp_path / "bert", tokenizer)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (OptionError, r"--layout: .*bert' \(bert\) reads text alone; take a LayoutLM", {"model": bert, "data": [pages]}),
        (DataError, "--layout: the questions of .* have no words with boxes", {"model": short, "data": [texts]}),
        (DataError, "questions have no words with boxes; give boxes to all", {"model": short, "data": [pages, texts]}),
        (OptionError, "--heads hotpot adds markers", {"model": short, "data": [pages], "heads": "hotpot"}),
        (OptionError, "--windows has no effect on models of pages", {"model": short, "data": [pages], "windows": [16]}),
    ]
    for error, words, given in cases:
        with pytest.raises(error, match=words):
            finetune_qa(*build_arguments(QA, **given, layout=True, output_dir=str(tmp_path / "out"), **FAST, max_steps=1))
    given = {"model": bert, "data": [write(forms(4), tmp_path / "f.jsonl")], "words_column": "words", "layout": True}
    with pytest.raises(OptionError, match=r"--layout: .* reads text alone"):
        finetune_tokens(*build_arguments(TOKENS, **given, output_dir=str(tmp_path / "out"), **FAST, max_steps=1))
    with pytest.raises(OptionError, match="--boxes-column has no effect with --layout false"):
        build_arguments(TOKENS, model=bert, data=[pages], output_dir="out", layout=False, boxes_column="boxes")
