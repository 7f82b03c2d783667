"""The example of a server that answers questions, over loopback: what the reader answers, whoever else asks at the same time."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hf_longattn.evaluation.qa_reader import QAReader, whole
from hf_longattn.training import load_qa_model
from tests.stand_ins import StandIns

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

STORY = "The house is old. " * 30 + "Mary painted the door green. " + "Birds sing in the garden. " * 900


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 4,096 tokens with a head for questions, of random weights."""
    folder = tmp_path_factory.mktemp("reader")
    for part in load_qa_model(str(StandIns(folder).made("bert-4096"))):
        part.save_pretrained(folder / "reader")
    return folder / "reader"


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    from examples import serve_reader

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("READER", str(folder))
        app = serve_reader.application()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/answer"
    server.should_exit = True
    thread.join(timeout=30)


def ask(url: str, **request: Any) -> Any:
    wanted = urllib.request.Request(url, json.dumps(request).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(wanted, timeout=60) as answer:
        return json.load(answer)


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
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(url, **request)
        assert refused.value.code == 422
        assert problem in json.loads(refused.value.read())["detail"][0]["msg"]
