"""The example of a server that answers questions, over loopback: what the reader answers, whoever else asks at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hf_longattn.evaluation.qa_reader import QAReader, whole
from hf_longattn.training import load_qa_model
from tests.stand_ins import StandIns

from .serving import ask, refusal, serving

pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

STORY = "The house is old. " * 30 + "Mary painted the door green. " + "Birds sing in the garden. " * 900


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 4,096 tokens with a head for questions, of random weights."""
    folder = tmp_path_factory.mktemp("reader")
    for part in load_qa_model(str(StandIns(folder).made("bert-4096")), complete=False):
        part.save_pretrained(folder / "reader")
    return folder / "reader"


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    from examples import serve_reader

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("READER", str(folder))
        app = serve_reader.application()
    with serving(app) as address:
        yield f"{address}/answer"


@pytest.mark.thorough
def test_many_clients_get_what_the_reader_answers(url: str, folder: Path) -> None:
    questions = [f"Who painted the {thing}?" for thing in ("door", "house", "garden", "bird")]
    contexts = [STORY, STORY[:400]]
    asked = [{"question": question, "context": context} for question in questions for context in contexts]
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda request: ask(url, **request), asked))
    model, tokenizer = load_qa_model(str(folder))
    reader = QAReader("reader", model, tokenizer, whole(4096))
    for request, found in zip(asked, answers, strict=True):
        assert found["answer"] == reader.answer(request)
        assert found["answer"] == request["context"][found["start"] : found["end"]]
    assert answers[0]["tokens"] > 4096 > answers[1]["tokens"]


def test_what_is_no_question_is_refused(url: str) -> None:
    for request, problem in ({"question": "", "context": "a"}, "at least 1 character"), ({"question": "a"}, "Field required"):
        code, problems = refusal(url, **request)
        assert code == 422
        assert problem in problems
