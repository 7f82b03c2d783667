"""A reader finds what the model points at, in the document and in the right window."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_longattn import build_mechanism
from hf_longattn.data.qa_features import QAEncodingConfig
from hf_longattn.errors import OptionError
from hf_longattn.evaluation.qa_reader import QAReader, whole, windows
from tests.byte_tokenizer import train_tokenizer

CONTEXT = "alpha beta gamma delta " * 60 + "needle " + "alpha beta gamma delta " * 60
RECORD = {"id": "1", "question": "find", "context": CONTEXT}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([CONTEXT, " needle" * 50, "find"], vocab_size=300)


class PointsAt(nn.Module):
    """Scores the given words' tokens highest; remembers its inputs. Its attention has global tokens."""

    device = torch.device("cpu")

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        self.ids, self.seen = ids, []
        self.attention = nn.Module()
        self.attention.long_attention = build_mechanism("longformer", num_heads=1, head_dim=4)

    def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
        self.seen.append(inputs)
        ids = inputs["input_ids"]
        scores = (5.0 * (ids == number) for number in (self.ids[0], self.ids[-1]))
        return SimpleNamespace(**dict(zip(("start_logits", "end_logits"), scores, strict=True)))


def test_qa_reader_leaves_every_module_in_its_mode(tokenizer: PreTrainedTokenizerBase) -> None:
    model = PointsAt(tokenizer(" needle", add_special_tokens=False)["input_ids"]).train()
    model.attention.eval()
    assert QAReader("row", model, tokenizer, whole(2048)).answer(RECORD) == "needle"  # type: ignore[arg-type]
    assert model.training
    assert not model.attention.training


@pytest.mark.parametrize(("form", "answer"), [("whole", "needle"), ("windows", "needle"), ("cut", None)])
def test_qa_reader_finds_answer_in_whole_documents_and_windows(form: str, answer: str | None, tokenizer: PreTrainedTokenizerBase) -> None:
    model = PointsAt(tokenizer(" needle", add_special_tokens=False)["input_ids"])
    formats = {"whole": whole(2048), "windows": windows(96, 32), "cut": QAEncodingConfig(96)}
    reader = QAReader("row", model, tokenizer, formats[form], batch_size=3)  # type: ignore[arg-type]
    text = reader.answer(RECORD)
    assert text == answer if answer else text != "needle"
    lengths = [inputs["input_ids"].shape for inputs in model.seen]
    assert ("global_attention_mask" in model.seen[0]) == (form == "whole")
    assert max(rows for rows, _ in lengths) == (3 if form == "windows" else 1)
    assert "start_positions" not in model.seen[0]


def test_qa_reader_gives_no_global_mask_to_models_without_need_of_one(tokenizer: PreTrainedTokenizerBase) -> None:
    marking = PointsAt(tokenizer(" needle", add_special_tokens=False)["input_ids"])
    marking.config = SimpleNamespace(question_separator_id=tokenizer.sep_token_id)  # type: ignore[assignment]
    without = PointsAt(marking.ids)
    without.attention = build_mechanism("window", num_heads=1, head_dim=4)
    for model in (marking, without):
        QAReader("row", model, tokenizer, whole(2048)).answer(RECORD)  # type: ignore[arg-type]
        assert "global_attention_mask" not in model.seen[0]


def test_qa_reader_reads_documents_beyond_the_length_to_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    model = PointsAt(tokenizer(" needle", add_special_tokens=False)["input_ids"])
    reader = QAReader("row", model, tokenizer, whole(160, 32), batch_size=1)  # type: ignore[arg-type]
    assert reader.answer(RECORD) == "needle"
    assert len(model.seen) > 1


def test_qa_reader_answers_nothing_below_the_null_threshold(tokenizer: PreTrainedTokenizerBase) -> None:
    model = PointsAt(tokenizer(" needle", add_special_tokens=False)["input_ids"])
    reader = QAReader("row", model, tokenizer, whole(2048), null_threshold=100.0)  # type: ignore[arg-type]
    assert reader.answer(RECORD) == ""


def test_qa_reader_refuses_a_record_without_its_document(tokenizer: PreTrainedTokenizerBase) -> None:
    reader = QAReader("row", PointsAt([5]), tokenizer, whole(2048))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="must have 'question' and 'context', both texts; it has 'question', 'text'"):
        reader.answer({"question": "find", "text": CONTEXT})
