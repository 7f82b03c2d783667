"""A reader finds what the model points at, in the document and in the right window."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import OptionError
from hf_longattn.evaluation.qa_reader import QAReader
from tests.byte_tokenizer import train_tokenizer

CONTEXT = "alpha beta gamma delta " * 60 + "needle " + "alpha beta gamma delta " * 60
RECORD = {"id": "1", "question": "find", "context": CONTEXT}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([CONTEXT, " needle" * 50, "find"], vocab_size=300)


class PointsAt(nn.Module):
    """Scores the given words' tokens highest; remembers its inputs."""

    device = torch.device("cpu")

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        self.ids, self.seen, self.attention = ids, [], nn.Module()

    def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
        self.seen.append(inputs)
        ids = inputs["input_ids"]
        scores = (5.0 * (ids == number) for number in (self.ids[0], self.ids[-1]))
        return SimpleNamespace(**dict(zip(("start_logits", "end_logits"), scores, strict=True)))


def test_qa_reader_leaves_every_module_in_its_mode(tokenizer: PreTrainedTokenizerBase) -> None:
    model = PointsAt(tokenizer(" needle", add_special_tokens=False)["input_ids"]).train()
    model.attention.eval()
    assert QAReader(model, tokenizer, 2048).answer(RECORD) == "needle"  # type: ignore[arg-type]
    assert model.training
    assert not model.attention.training


@pytest.mark.parametrize(
    ("length", "stride", "inputs", "answer"), [(2048, 128, 1, "needle"), (96, 32, 3, "needle"), (96, None, 1, None)], ids=str
)
def test_qa_reader_finds_answer_in_whole_documents_and_windows(
    length: int, stride: int | None, inputs: int, answer: str | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = PointsAt(tokenizer(" needle", add_special_tokens=False)["input_ids"])
    text = QAReader(model, tokenizer, length, stride, batch_size=3).answer(RECORD)  # type: ignore[arg-type]
    assert text == answer if answer else text != "needle"
    assert max(len(batch["input_ids"]) for batch in model.seen) == inputs
    assert {*model.seen[0]} <= {"input_ids", "token_type_ids", "attention_mask"}


def test_qa_reader_reads_documents_beyond_the_length_to_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    model = PointsAt(tokenizer(" needle", add_special_tokens=False)["input_ids"])
    reader = QAReader(model, tokenizer, 160, 32, batch_size=1)  # type: ignore[arg-type]
    assert reader.answer(RECORD) == "needle"
    assert len(model.seen) > 1


def test_qa_reader_answers_nothing_below_the_null_threshold(tokenizer: PreTrainedTokenizerBase) -> None:
    model = PointsAt(tokenizer(" needle", add_special_tokens=False)["input_ids"])
    reader = QAReader(model, tokenizer, 2048, null_threshold=100.0)  # type: ignore[arg-type]
    assert reader.answer(RECORD) == ""


def test_qa_reader_refuses_a_record_without_its_document(tokenizer: PreTrainedTokenizerBase) -> None:
    reader = QAReader(PointsAt([5]), tokenizer, 2048)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="must have 'question' and 'context', both texts; it has 'question', 'text'"):
        reader.answer({"question": "find", "text": CONTEXT})
