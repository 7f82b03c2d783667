"""The example of a server over loopback: the embeddings of the graph, whoever else asks at the same time."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import BertTokenizerFast

from hf_longattn import export_checkpoint
from hf_longattn.audit import audit_reach
from hf_longattn.conversion import convert_checkpoint
from tests.audit.fakes import WORDS, graph, window

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
    with serving(folder, batch_tokens=1000, queue_tokens=20_000, body_bytes=100_000) as address:
        yield address


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[str]:
    from examples.serve_encoder import application

    app = application(folder, threads=1, **settings)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
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


def test_prompts_are_those_of_sentence_transformers(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "encoder")
    settings = tmp_path / "encoder" / "config_sentence_transformers.json"
    settings.write_text(json.dumps({"prompts": {"query": "the value ", "document": ""}, "default_prompt_name": "query"}))
    with serving(tmp_path / "encoder") as url:
        plain = ask(f"{url}/embed", inputs=["tree", "the value tree"], prompt_name="document")
        assert ask(f"{url}/embed", inputs=["tree"], prompt_name="query")[0] == pytest.approx(plain[1], abs=1e-6)
        assert ask(f"{url}/embed", inputs="tree")[0] == pytest.approx(plain[1], abs=1e-6), "the default"
        assert ask(f"{url}/v1/embeddings", input="tree")["data"][0]["embedding"] == pytest.approx(plain[1], abs=1e-6)
        assert plain[0] != pytest.approx(plain[1], abs=1e-3)
        assert refusal(f"{url}/embed", inputs="tree", prompt_name="code") == (
            422,
            "The model has no prompt 'code'; its prompts are query, document.",
        )
    (tmp_path / "encoder" / "1_Pooling").mkdir()
    (tmp_path / "encoder" / "1_Pooling" / "config.json").write_text(json.dumps({"include_prompt": False}))
    with serving(tmp_path / "encoder") as url:
        assert refusal(f"{url}/embed", inputs="tree")[0] == 422
        assert ask(f"{url}/embed", inputs="tree", prompt_name="document")


def test_refusals_are_sentences(url: str) -> None:
    assert refusal(f"{url}/embed", inputs="tree " * 300) == (
        413,
        "A text has 302 tokens, but the model reads at most 256 tokens; send parts.",
    )
    for body in ({"inputs": []}, {"inputs": [1]}, {"text": "tree"}):
        assert refusal(f"{url}/embed", **body) == (422, "Send a text or a list of texts.")


def test_bodies_are_bounded_and_json(url: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{url}/embed", b"[1]"), timeout=10)
    assert (refused.value.code, json.loads(refused.value.read())["detail"]) == (422, "Send a JSON object.")
    assert refusal(f"{url}/embed", inputs="x" * 200_000) == (413, "A request has at most 100,000 bytes; send fewer texts at a time.")
    assert refusal(f"{url}/rerank", query="a", texts=["b"]) == (424, "This model does not answer /rerank; ask /embed.")


def test_its_reach_is_that_of_the_config(url: str, folder: Path) -> None:
    audit = audit_reach(folder, url=f"{url}/embed")
    assert audit.agrees, audit.to_dict()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "The request is not JSON in UTF-8, or nested too deeply; send a JSON object."),
        (b"\xff", "The request is not JSON in UTF-8, or nested too deeply; send a JSON object."),
        (
            b'{"inputs": ' + b"[" * 40_000 + b"]" * 40_000 + b"}",
            "The request is not JSON in UTF-8, or nested too deeply; send a JSON object.",
        ),
        (b'{"inputs": ["the", "\\ud800 tree"]}', "A text holds half of a surrogate pair, which is not Unicode; send whole characters."),
    ],
)
def test_what_is_not_json_or_not_unicode_is_a_sentence(body: bytes, sentence: str, url: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{url}/embed", body), timeout=30)
    assert (refused.value.code, json.loads(refused.value.read())["detail"]) == (400, sentence)


def test_what_cannot_fit_is_refused_before_it_is_tokenised(url: str) -> None:
    assert refusal(f"{url}/embed", inputs="tree " * 10_000) == (
        413,
        "A text has 50,000 characters, but the model reads at most 256 tokens; send parts.",
    )
    assert refusal(f"{url}/embed", inputs=["a"] * 200) == (413, "A request has at most 156 texts; send fewer at a time.")
    assert refusal(f"{url}/embed", inputs=["the " * 200] * 120) == (
        413,
        "After 100 of 120 texts the request is too large; send fewer at a time.",
    )


def test_requests_of_the_moment_are_bounded_together(folder: Path) -> None:
    """Ten clients that send most of a large request and wait cost what four such requests cost."""
    with serving(folder, body_bytes=100_000) as url, contextlib.ExitStack() as connections:
        host, port = url.removeprefix("http://").split(":")
        for _ in range(10):
            client = connections.enter_context(socket.create_connection((host, int(port))))
            client.sendall(b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n" + b" " * 80_000)
            client.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                answer = client.recv(200)
                break
        assert answer.startswith(b"HTTP/1.1 503")
        connections.close()
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(urllib.error.HTTPError):  # until the server has seen that they are gone
                assert ask(f"{url}/embed", inputs="the tree")
                break
            assert time.monotonic() < deadline


def test_a_text_costs_something_however_short_it_is(folder: Path) -> None:
    """Neither thousands of rows in one run nor any number of waiting texts."""
    import asyncio

    from fastapi import HTTPException

    from examples.serve_encoder import ROW_TOKENS, Encoder, Queue

    async def work() -> None:
        encoder = Encoder(folder, 1)
        queue = Queue(encoder, 10 * ROW_TOKENS, 100 * ROW_TOKENS)
        sizes: list[int] = []
        run = encoder.run
        encoder.run = lambda rows: sizes.append(len(rows)) or run(rows)  # type: ignore[method-assign, func-returns-value]
        (the,) = encoder.read([("the",)], 1000)
        assert (len(the.ids), the.cost) == (3, ROW_TOKENS)
        first = asyncio.create_task(queue.run([the] * 95))
        await asyncio.sleep(0)
        with pytest.raises(HTTPException, match="95 texts are waiting"):
            await queue.run([the] * 6)
        worker = asyncio.create_task(queue.work())
        assert len(await first) == 95
        assert sizes == [10] * 9 + [5]
        assert not queue.waiting
        worker.cancel()

    asyncio.run(work())


QUERY = "How is a frozen dataclass copied with one field changed?"
TEXTS = ["dataclasses.replace returns a new object.", "A river meets the sea. " * 150, "copy", "An object of a frozen dataclass. " * 60]


def small_classifier(folder: Path, checkpoints: Path, labels: list[str], base: str = "SequenceClassification") -> Path:
    """A BERT of two layers with random weights, the tokenizer of the reference encoder, and named labels."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=8192, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, initializer_range=0.5,
        pad_token_id=0, id2label=dict(enumerate(labels)), label2id={label: number for number, label in enumerate(labels)},
    )  # fmt: skip
    getattr(transformers, f"BertFor{base}")(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(checkpoints / "bert-python-512" / name, folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["Sigmoid", "Identity", "of old files"])
def test_a_re_ranker_scores_as_the_cross_encoder_does(activation: str, repository: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    plain = small_classifier(tmp_path / "plain", repository / "model_cards", ["relevant"])
    source = tmp_path / "source"
    if activation == "of old files":  # no list of modules, and the activation in the config
        config = json.loads((plain / "config.json").read_text())
        config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.1"}
        (plain / "config.json").write_text(json.dumps(config))
        source = plain
    else:
        function = getattr(torch.nn, activation)()
        sentence_transformers.CrossEncoder(str(plain), activation_fn=function).save_pretrained(str(source))
    convert_checkpoint(source, tmp_path / "long", mechanism="longformer", window=64, max_length=2048)
    report = export_checkpoint(tmp_path / "long", tmp_path / "graph", int8=True)
    assert report.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert report.int8 is not None
    kept = json.loads((tmp_path / "graph" / "config.json").read_text())
    assert (kept["id2label"], kept["architectures"]) == ({"0": "relevant"}, ["BertForSequenceClassification"])
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        assert (tmp_path / "graph" / name).is_file() == (source / name).is_file()
    model = sentence_transformers.CrossEncoder(str(tmp_path / "long"))
    assert model.tokenizer.model_max_length == 2048
    expected = model.predict([(QUERY, text) for text in TEXTS], batch_size=1)
    assert np.ptp(expected) > 0.01
    with serving(tmp_path / "graph", batch_tokens=1000) as url, ThreadPoolExecutor(8) as clients:
        for found in clients.map(lambda _: ask(f"{url}/rerank", query=QUERY, texts=TEXTS), range(8)):
            assert [one["index"] for one in found] == list(np.argsort(-expected, kind="stable"))
            np.testing.assert_allclose([one["score"] for one in found], sorted(expected, reverse=True), atol=1e-4)
        ranked = model.rank(QUERY, TEXTS)
        assert [one["corpus_id"] for one in ranked] == [one["index"] for one in ask(f"{url}/rerank", query=QUERY, texts=TEXTS)]
        raw = ask(f"{url}/rerank", query=QUERY, texts=TEXTS, raw_scores=True)
        logits = model.predict([(QUERY, TEXTS[one["index"]]) for one in raw], activation_fn=torch.nn.Identity(), batch_size=1)
        np.testing.assert_allclose([one["score"] for one in raw], logits, atol=1e-4)
        code, sentence = refusal(f"{url}/rerank", query="sea " * 1500, texts=["river", "river " * 1000])
        assert code == 413
        assert sentence.startswith("Two texts have together ")
        assert sentence.endswith(" tokens, but the model reads at most 2,048 tokens; send parts.")
        assert refusal(f"{url}/rerank", query=QUERY, texts="river")[0] == 422
        assert refusal(f"{url}/embed", inputs="river") == (424, "This model does not answer /embed; ask /rerank.")
    with serving(tmp_path / "graph", file="model_int8.onnx") as url:
        near = {one["index"]: one["score"] for one in ask(f"{url}/rerank", query=QUERY, texts=TEXTS, raw_scores=True)}
    exact = {one["index"]: one["score"] for one in raw}
    assert max(abs(near[index] - exact[index]) for index in exact) < 0.2 * max(map(abs, exact.values()))


@pytest.mark.slow
def test_a_classifier_of_pairs_keeps_its_labels(repository: Path, tmp_path: Path) -> None:
    labels = ["entails", "contradicts", "neither"]
    source = small_classifier(tmp_path / "source", repository / "model_cards", labels)
    convert_checkpoint(source, tmp_path / "long", mechanism="window", window=64, max_length=2048)
    export_checkpoint(tmp_path / "long", tmp_path / "graph")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "graph")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "long").eval()
    with serving(tmp_path / "graph") as url:
        found = ask(f"{url}/predict", inputs=[[QUERY, text] for text in TEXTS])
        for text, ranked in zip(TEXTS, found, strict=True):
            with torch.no_grad():
                logits = model(**tokenizer(QUERY, text, return_tensors="pt")).logits[0]
            expected = dict(zip(labels, logits.softmax(-1).tolist(), strict=True))
            assert {one["label"]: one["score"] for one in ranked} == pytest.approx(expected, abs=1e-5)
            assert [one["score"] for one in ranked] == sorted((one["score"] for one in ranked), reverse=True)
        (single,) = ask(f"{url}/predict", inputs=["copy"])
        assert ask(f"{url}/predict", inputs="copy") == single
        assert refusal(f"{url}/predict", inputs=[["a", "b", "c"]])[0] == 422


@pytest.mark.slow
def test_a_classifier_of_tokens_is_exported_with_its_labels_and_not_served(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["O", "B-NAME", "I-NAME"]
    source = small_classifier(tmp_path / "source", repository / "model_cards", labels, "TokenClassification")
    convert_checkpoint(source, tmp_path / "long", mechanism="window", window=64, max_length=2048)
    report = export_checkpoint(tmp_path / "long", tmp_path / "graph", int8=True)
    assert report.int8 is not None
    assert report.int8["outputs"]["logits"]["same_choice"] > 0.9
    config = transformers.AutoConfig.from_pretrained(tmp_path / "graph")
    assert [config.id2label[number] for number in range(3)] == labels
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "graph")
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "long").eval()
    session = onnxruntime.InferenceSession(str(tmp_path / "graph" / "model.onnx"))
    inputs = tokenizer(TEXTS[1], return_tensors="pt")
    (found,) = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(**inputs).logits, atol=1e-4, rtol=1e-4)
    assert refused_at_the_start(tmp_path / "graph", monkeypatch, capsys).endswith(
        "cannot be served: its graph returns logits, and not embeddings, states of tokens or one row of scores for a text\n"
    )


def refused_at_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    from examples import serve_encoder

    monkeypatch.setattr("sys.argv", ["serve_encoder.py", str(folder)])
    with pytest.raises(SystemExit) as ended:
        serve_encoder.main()
    assert ended.value.code
    return capsys.readouterr().err


def test_what_cannot_be_served_is_told_in_a_sentence(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    onnx = pytest.importorskip("onnx")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    model = onnx.load(copy / "model.onnx")
    model.graph.input.append(onnx.helper.make_tensor_value_info("global_attention_mask", onnx.TensorProto.INT64, ["batch", "tokens"]))
    onnx.save(model, copy / "model.onnx")
    assert "its graph takes attention_mask, global_attention_mask, input_ids, and requests hold texts only" in refused_at_the_start(
        copy, monkeypatch, capsys
    )
    (copy / "model.onnx").write_bytes(b"no graph")
    assert "cannot be served: " in refused_at_the_start(copy, monkeypatch, capsys)
    (copy / "model.onnx").unlink()
    assert "has no model.onnx; give the folder that `longattn export MODEL FOLDER` wrote" in refused_at_the_start(copy, monkeypatch, capsys)
