"""The example of a server over loopback: the embeddings of the graph, whoever else asks at the same time."""

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

import numpy as np
import pytest
from transformers import BertTokenizerFast

from hf_longattn.conversion import audit_reach
from tests.conversion.test_audit import WORDS, graph, window

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
onnxruntime = pytest.importorskip("onnxruntime")

LENGTH = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As an export of a window of 16 tokens in two layers."""
    folder = window(tmp_path_factory.mktemp("encoder"), window=16)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", *WORDS]))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=LENGTH).save_pretrained(folder)
    graph(folder / "model.onnx", window=32)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    from examples.serve_encoder import application

    app = application(folder, batch_tokens=1000, queue_tokens=20_000, threads=1)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=30)


def ask(url: str, **body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def refusal(url: str, **body: Any) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(url, **body)
    return refused.value.code, json.loads(refused.value.read())["detail"]


def test_many_clients_get_what_each_would_get_alone(url: str, folder: Path) -> None:
    texts = [" ".join(WORDS[(number + step) % len(WORDS)] for step in range(1 + 31 * number % 250)) for number in range(48)]
    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(lambda text: ask(f"{url}/embed", inputs=text)[0], texts))
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    for text, embedding in zip(texts, found, strict=True):
        ids = np.array([tokenizer(text)["input_ids"]])
        mean = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0].mean(0)
        np.testing.assert_allclose(embedding, mean / np.linalg.norm(mean), atol=1e-5)
    assert len(ask(f"{url}/embed", inputs=texts)) == len(texts)


def test_the_routes_agree(url: str) -> None:
    (one,) = ask(f"{url}/embed", inputs="the tree")
    answer = ask(f"{url}/v1/embeddings", input=["the tree", "the river"], model="any")
    assert answer["data"][0]["embedding"] == pytest.approx(one, abs=1e-6)
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    with urllib.request.urlopen(f"{url}/info", timeout=10) as info:
        assert json.load(info)["max_length"] == LENGTH


def test_refusals_are_sentences(url: str) -> None:
    assert refusal(f"{url}/embed", inputs="tree " * 300) == (
        413,
        "A text has 302 tokens, but the model reads at most 256; send it in parts.",
    )
    for body in ({"inputs": []}, {"inputs": [1]}, {"text": "tree"}):
        assert refusal(f"{url}/embed", **body) == (422, "Send a text or a list of texts.")


def test_its_reach_is_that_of_the_config(url: str, folder: Path) -> None:
    audit = audit_reach(folder, url=f"{url}/embed")
    assert audit.agrees, audit.to_dict()


def test_what_is_too_much_to_wait_is_refused(folder: Path) -> None:
    import asyncio

    from fastapi import HTTPException

    from examples.serve_encoder import Encoder, Queue

    async def two() -> None:
        queue = Queue(Encoder(folder, 1), 1000, 300)
        first = asyncio.create_task(queue.embed([[2, 6, 3]] * 100))
        await asyncio.sleep(0)
        with pytest.raises(HTTPException, match="300 tokens are waiting"):
            await queue.embed([[2, 6, 3]])
        worker = asyncio.create_task(queue.work())
        assert len(await first) == 100
        assert not queue.waiting
        worker.cancel()

    asyncio.run(two())
