"""Inputs of questions: the answer's tokens give back the answer's characters, whole, cut or in windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_longattn.data.qa_features import QACollator, answer_tokens, qa_inputs
from hf_longattn.errors import InputError
from hf_longattn.training.tasks.classify import encode_documents
from tests.lookups import lookups
from tests.training.conftest import SOURCES

NOTHING: dict[str, list[Any]] = {"text": [], "answer_start": []}


def inputs_of(record: dict[str, Any], tokenizer: PreTrainedTokenizerBase, length: int, stride: int | None = None) -> list[dict[str, Any]]:
    """The windows of one question, each a row."""
    columns = {name: [record[name]] for name in ("question", "context", "answers")}
    inputs = qa_inputs(columns, [0], tokenizer, length, stride)
    return [dict(zip(inputs, values, strict=True)) for values in zip(*inputs.values(), strict=True)]


@pytest.fixture
def record(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return lookups(SOURCES, tokenizer, 900, seed=3)[0]


def test_question_without_room_for_the_document_is_refused(record: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match=r"not more than the stride 64; lower --stride, or raise --max-length if the model takes longer"):
        inputs_of(record, tokenizer, 40, stride=64)
    for stride in (None, 0, 64):
        with pytest.raises(InputError, match="leaves 0 tokens for the document beside the question; shorten the question, or raise"):
            inputs_of({**record, "question": "why " * 50}, tokenizer, 40, stride=stride)


def test_windows_are_labelled_with_the_answers_that_they_hold(tokenizer: PreTrainedTokenizerBase) -> None:
    """Every target of every window begins or ends an answer, and a window without targets holds no complete answer."""
    seen = set()
    for record in lookups(SOURCES, tokenizer, 900, seed=5):
        (text,), (start,) = record["answers"].values()
        record["answers"] = {"text": [text] * 2, "answer_start": [start, record["context"].rindex(text)]}
        places = {(first, first + len(text)) for first in record["answers"]["answer_start"]}
        for row in inputs_of(record, tokenizer, 64, stride=24):
            inside = [offset for offset in row["offsets"] if offset != (-1, -1)]
            held = {(first, last) for first, last in places if inside[0][0] <= first and last <= inside[-1][1]}
            seen.add(len(held))
            assert (row["starts"] == [0]) == (not held)
            for offsets, characters in ((row["starts"], {first for first, _ in held}), (row["ends"], {last - 1 for _, last in held})):
                found = [row["offsets"][place] for place in offsets if held]
                assert len(found) == len(characters)
                assert all(any(begin <= character < end for begin, end in found) for character in characters)
    assert {0, 1} <= seen


def test_special_tokens_typed_in_questions_and_documents_are_text(tokenizer: PreTrainedTokenizerBase) -> None:
    for special in (*tokenizer.all_special_tokens, "[SEP][SEP]", "[SEP] [CLS]"):
        for question in (f"what {special} is it", f"{special} what", f"what {special}"):
            context = f"It is a {special} red fox {special}"
            record = {"question": question, "context": context, "answers": {"text": ["red fox"], "answer_start": [context.index("red")]}}
            for length, stride in ((512, None), (48, 8)):
                for row in inputs_of(record, tokenizer, length, stride):
                    ids, first = row["input_ids"], next(place for place, offset in enumerate(row["offsets"]) if offset != (-1, -1))
                    assert [token for token in ids if token in tokenizer.all_special_ids] == [ids[0], ids[first - 1], ids[-1]], special
                    assert tokenizer.decode(ids[1 : first - 1]).strip() == question
                    found = context[row["offsets"][row["starts"][0]][0] : row["offsets"][row["ends"][0]][1]]
                    assert row["starts"] == [0] or found.strip() == "red fox"
    data = Dataset.from_list([{"question": "a [SEP] b", "text": "c [SEP] d", "label": "x"}])
    (row,) = encode_documents(data, tokenizer, 64, ["x"])
    assert row["input_ids"].count(tokenizer.sep_token_id) == 2


def test_long_documents_cause_no_warning_of_the_tokenizer(tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer.model_max_length = 128
    inputs_of({"question": "why", "context": "because " * 500, "answers": NOTHING}, tokenizer, 128, 16)
    assert "indexing errors" not in caplog.text


def test_answer_without_text_is_the_token_where_it_starts() -> None:
    offsets = [(-1, -1), (0, 3), (3, 4), (4, 7)]
    for start, token in ((0, 1), (3, 2), (4, 3)):
        assert answer_tokens(offsets, {"text": [""], "answer_start": [start]}) == [(token, token)]


def test_qa_batches_are_padded_or_packed_with_the_same_labels(record: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    rows = inputs_of(record, tokenizer, 96, stride=32)
    rows = [min(rows, key=lambda row: row["length"]), max(rows, key=lambda row: row["length"])]
    lengths = [row["length"] for row in rows]
    tokenizer.padding_side = "left"  # which says nothing here
    padded, packed = QACollator(tokenizer)(rows), QACollator(tokenizer, pack=True)(rows)
    assert padded["attention_mask"].sum(1).tolist() == lengths
    assert padded["attention_mask"][0, : lengths[0]].all()
    assert torch.equal(padded["input_ids"][padded["attention_mask"].bool()], packed["input_ids"][0])
    assert torch.equal(padded["labels"], packed["labels"])
    for labels, row in zip(padded["labels"], rows, strict=True):
        assert (labels[:, 0] == 1).nonzero().flatten().tolist() == row["starts"]
        assert (labels[:, 1] == 1).nonzero().flatten().tolist() == row["ends"]
        assert int((labels[:, 0] >= 0).sum()) == row["length"]
