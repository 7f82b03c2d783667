"""Features: the answer's tokens give back the answer's characters, whole, cut or in windows."""

from __future__ import annotations

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_longattn.data import qa_features
from hf_longattn.data.documents import to_documents
from hf_longattn.data.qa_features import QAEncodingConfig, QAFeature, cut_question, encode_qa
from hf_longattn.errors import InputError
from tests.lookups import lookups
from tests.training.conftest import SOURCES


@pytest.fixture
def record(tokenizer: PreTrainedTokenizerBase) -> dict:
    return lookups(SOURCES, tokenizer, 900, seed=3)[0]


def text_of(record: dict, feature: object, first: int, last: int) -> str:
    start, end = feature.offsets[first][0], feature.offsets[last][1]  # type: ignore[attr-defined]
    return record["context"][start:end]


def test_question_without_room_for_the_document_is_refused(record: dict, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match=r"not more than the stride 64; lower --stride, or raise --max-length if the model takes longer"):
        encode_qa(record, tokenizer, QAEncodingConfig(40, stride=64))
    for stride in (None, 0, 64):
        with pytest.raises(InputError, match="leaves 0 tokens for the document beside the question; lower --max-question-tokens, or"):
            encode_qa({**record, "question": "why " * 50}, tokenizer, QAEncodingConfig(40, stride=stride))


def test_cut_question_is_said_in_a_warning(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(qa_features.logger, "warning_once", said.append)
    cut_question("what is it " * 20, tokenizer, 200)
    assert not said
    assert len(tokenizer(cut_question("what is it " * 20, tokenizer, 8), add_special_tokens=False)["input_ids"]) == 8
    assert "more than 8 tokens" in said[0]


def test_special_tokens_typed_in_questions_and_documents_are_text(tokenizer: PreTrainedTokenizerBase) -> None:
    for special in (*tokenizer.all_special_tokens, "[SEP][SEP]", "[SEP] [CLS]"):
        for question in (f"what {special} is it", f"{special} what", f"what {special}"):
            context = f"It is a {special} red fox {special}"
            record = {"question": question, "context": context, "answers": {"text": ["red fox"], "answer_start": [context.index("red")]}}
            for encoding in (QAEncodingConfig(512, global_question=True), QAEncodingConfig(48, stride=8, global_question=True)):
                for feature in encode_qa(record, tokenizer, encoding):
                    ids, first = feature.inputs["input_ids"], feature.document_start
                    assert [token for token in ids if token in tokenizer.all_special_ids] == [ids[0], ids[first - 1], ids[-1]], special
                    assert feature.inputs["global_attention_mask"] == [1] * first + [0] * (len(ids) - first)
                    assert tokenizer.decode(ids[1 : first - 1]).strip() == question
                    assert feature.spans == [(0, 0)] or text_of(record, feature, *feature.spans[0]).strip() == "red fox"
    data = Dataset.from_list([{"question": "a [SEP] b", "text": "c [SEP] d", "label": "x"}])
    (row,) = to_documents(data, tokenizer, 64, ["x"])
    assert row["input_ids"].count(tokenizer.sep_token_id) == 2


def test_cut_question_causes_no_other_warning(tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer.model_max_length = 128
    encode_qa({"question": "why " * 500, "context": "because " * 500}, tokenizer, QAEncodingConfig(128, max_question_tokens=16))
    encode_qa({"question": "why " * 200, "context": "because"}, tokenizer, QAEncodingConfig(512, max_question_tokens=300))
    assert "indexing errors" not in caplog.text


def test_answer_without_text_is_the_token_where_it_starts() -> None:
    feature = QAFeature({}, [None, (0, 3), (3, 4), (4, 7)])
    for start, token in ((0, 1), (3, 2), (4, 3)):
        assert feature.locate({"answers": {"text": [""], "answer_start": [start]}}) == [(token, token)]
