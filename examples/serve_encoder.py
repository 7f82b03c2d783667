"""Serve an encoder over HTTP, from a folder that `longattn export` wrote; memory is bounded, and no text is cut off.

    pip install fastapi uvicorn onnxruntime tokenizers
    python examples/serve_encoder.py ./encoder-onnx --port 8080

Routes, which are those of text-embeddings-inference:
    POST /embed of a sentence encoder: {"inputs": "text" or ["text", …]} -> [[…], …]; "prompt_name": "query" puts that prompt of the model
        before each text, its default prompt if there is one and none is named
    POST /v1/embeddings, the same as OpenAI's: {"input": …} -> {"data": [{"embedding": […]}, …]}
    POST /rerank of a re-ranker: {"query": "…", "texts": ["…", …]} -> [{"index": 2, "score": 0.9}, …], the best first
    POST /predict of a classifier of texts or pairs: {"inputs": "text"} -> [{"label": "…", "score": 0.9}, …], the best first
    GET /health and /info
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeGuard

import numpy as np
import onnxruntime
from fastapi import Depends, FastAPI, HTTPException, Request
from tokenizers import Encoding, Tokenizer

EMBEDS, RERANKS, PREDICTS = "/embed", "/rerank", "/predict"


def read_json(file: Path) -> dict[str, Any]:
    """An object, empty if there is no such file."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


class Encoder:
    """An exported model: tokens -> embeddings or scores. One run at a time, and nothing is kept between runs.

    Raises:
        ValueError: the graph has other inputs or outputs than this server knows, or its scores another activation.
    """

    def __init__(self, folder: Path, threads: int, file: str = "model.onnx") -> None:
        config, report = read_json(folder / "config.json"), read_json(folder / "export_report.json")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.padding = config.get("pad_token_id") or 0
        named = read_json(folder / "tokenizer_config.json").get("model_max_length")
        lengths = [one for one in (named, report.get("max_length"), config.get("max_position_embeddings")) if isinstance(one, int)]
        self.max_length = min((one for one in lengths if one < 10**9), default=512)
        self.min_length = report.get("min_length", 1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = False  # the arena never gives memory of a long text back
        self.session = onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
        self.inputs = {one.name for one in self.session.get_inputs()}
        if "input_ids" not in self.inputs or self.inputs - {"input_ids", "attention_mask", "token_type_ids"}:
            raise ValueError(
                f"its graph takes {', '.join(sorted(self.inputs))}, and requests hold texts only; export it without further inputs"
            )
        outputs = {one.name: one.shape for one in self.session.get_outputs()}
        wanted = next((name for name in ("sentence_embedding", "last_hidden_state", "logits") if name in outputs), None)
        if wanted is None or (wanted == "logits" and len(outputs[wanted]) != 2):
            raise ValueError(
                f"its graph returns {', '.join(outputs)}, and not embeddings, states of tokens or one row of scores for a text"
            )
        self.output, self.pooled = wanted, wanted != "last_hidden_state"
        self.route = EMBEDS if wanted != "logits" else RERANKS if outputs[wanted][-1] == 1 else PREDICTS
        self.labels = [name for _, name in sorted((int(key), name) for key, name in config.get("id2label", {}).items())]
        beside = read_json(folder / "config_sentence_transformers.json")
        given = (config.get("sentence_transformers") or beside).get("activation_fn") or config.get("sbert_ce_default_activation_function")
        if self.route == RERANKS and given is not None and not given.endswith(("Identity", "Sigmoid")):
            raise ValueError(f"its scores go through {given}, and this server knows Sigmoid and Identity")
        self.raw = given is not None and given.endswith("Identity")
        self.prompts, self.prompt_name = beside.get("prompts") or {}, beside.get("default_prompt_name")
        self.averages_prompts = read_json(folder / "1_Pooling" / "config.json").get("include_prompt", True)

    def prompt(self, name: Any) -> str:
        """What the model was trained to read before texts of this kind, as sentence-transformers knows it.

        Raises:
            ValueError: the model has no such prompt, or leaves it out of the average, which the graph cannot.
        """
        name = self.prompt_name if name is None else name
        if name is None:
            return ""
        if not isinstance(name, str) or name not in self.prompts:
            raise ValueError(f"The model has no prompt {name!r}; its prompts are {', '.join(self.prompts) or 'none'}.")
        if self.prompts[name] and not self.averages_prompts:
            raise ValueError(f"The model leaves the prompt {name!r} out of the average (include_prompt), which its graph cannot.")
        return str(self.prompts[name])

    def read(self, text: str, second: str | None = None) -> Encoding:
        """The tokens of a text, or of two, with special ones."""
        return self.tokenizer.encode(text, second)

    def run(self, rows: list[Encoding]) -> list[list[float]]:
        """The embeddings of some texts, normalised means if no pooling is in the graph; or their scores."""
        shape = len(rows), max(self.min_length, *(len(row.ids) for row in rows))
        ids = np.full(shape, self.padding, dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for number, row in enumerate(rows):
            here = slice(len(row.ids))
            ids[number, here], mask[number, here], types[number, here] = row.ids, 1, row.type_ids
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        (found,) = self.session.run([self.output], {name: value for name, value in given.items() if name in self.inputs})
        if not self.pooled:
            found = (found * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            found = found / np.linalg.norm(found, axis=-1, keepdims=True)
        return [list(map(float, one)) for one in found]


@dataclass(eq=False)
class Waiting:
    """A text on its way."""

    row: Encoding
    answer: asyncio.Future[list[float]]


class Queue:
    """Texts that wait, at most ``queue_tokens`` of them; the oldest runs next, with others of similar length."""

    def __init__(self, encoder: Encoder, batch_tokens: int, queue_tokens: int) -> None:
        self.encoder, self.batch_tokens, self.queue_tokens = encoder, batch_tokens, queue_tokens
        self.waiting: list[Waiting] = []
        self.arrived = asyncio.Event()

    async def run(self, rows: list[Encoding]) -> list[list[float]]:
        held = sum(len(one.row.ids) for one in self.waiting)
        if self.waiting and held + sum(len(row.ids) for row in rows) > self.queue_tokens:
            raise HTTPException(503, f"{held:,} tokens are waiting; try again in a moment.", {"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        texts = [Waiting(row, loop.create_future()) for row in rows]
        self.waiting += texts
        self.arrived.set()
        try:
            return list(await asyncio.gather(*(one.answer for one in texts)))
        finally:
            self.waiting = [one for one in self.waiting if one not in texts]  # the client has gone

    async def work(self) -> None:
        while True:
            await self.arrived.wait()
            while self.waiting:
                batch = self.next_batch()
                try:
                    found = await asyncio.to_thread(self.encoder.run, [one.row for one in batch])
                except Exception as error:
                    for one in batch:
                        if not one.answer.done():
                            one.answer.set_exception(HTTPException(500, f"The model failed on {len(one.row.ids):,} tokens: {error}"))
                    continue
                for one, values in zip(batch, found, strict=True):
                    if not one.answer.done():
                        one.answer.set_result(values)
            self.arrived.clear()

    def next_batch(self) -> list[Waiting]:
        """The oldest text, and others between half and all of its length, as long as their padded tokens fit."""
        first = self.waiting[0]
        longest = len(first.row.ids)
        fitting = [one for one in self.waiting if longest <= 2 * len(one.row.ids) <= 2 * longest]
        batch = [first, *(one for one in fitting if one is not first)][: max(1, self.batch_tokens // max(1, longest))]
        self.waiting = [one for one in self.waiting if one not in batch]
        return batch


async def read_body(request: Request) -> dict[str, Any]:
    """The object that a request holds, if it is not too large."""
    read, most = bytearray(), request.app.state.body_bytes
    async for part in request.stream():
        read += part
        if len(read) > most:
            raise HTTPException(413, f"A request has at most {most:,} bytes; send fewer texts at a time.")
    try:
        body = json.loads(read)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise HTTPException(422, "Send a JSON object.")
    return body


Body = Annotated[dict[str, Any], Depends(read_body)]


def are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def application(
    folder: Path,
    *,
    file: str = "model.onnx",
    batch_tokens: int = 16_384,
    queue_tokens: int = 4_000_000,
    body_bytes: int = 32_000_000,
    threads: int = 0,
) -> FastAPI:
    """The server of one exported model."""
    encoder = Encoder(folder, threads, file)
    queue = Queue(encoder, batch_tokens, queue_tokens)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(queue.work())
        yield
        worker.cancel()

    app = FastAPI(title="Encoder", lifespan=running)
    app.state.body_bytes = body_bytes

    async def run(route: str, texts: list[tuple[str, ...]]) -> list[list[float]]:
        if route != encoder.route:
            raise HTTPException(424, f"This model does not answer {route}; ask {encoder.route}.")
        rows = await asyncio.to_thread(lambda: [encoder.read(*one) for one in texts])
        longest = max(len(row.ids) for row in rows)
        if longest > encoder.max_length:
            what = "A text has" if max(map(len, texts)) == 1 else "Two texts have together"
            raise HTTPException(413, f"{what} {longest:,} tokens, but the model reads at most {encoder.max_length:,}; send parts.")
        return await queue.run(rows)

    async def embed(texts: Any, prompt_name: Any) -> list[list[float]]:
        texts = [texts] if isinstance(texts, str) else texts
        if not are_texts(texts):
            raise HTTPException(422, "Send a text or a list of texts.")
        try:
            prompt = encoder.prompt(prompt_name)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return await run(EMBEDS, [(prompt + one,) for one in texts])

    @app.post(EMBEDS)
    async def of_inference(body: Body) -> list[list[float]]:
        return await embed(body.get("inputs"), body.get("prompt_name"))

    @app.post("/v1/embeddings")
    async def of_openai(body: Body) -> dict[str, Any]:
        found = await embed(body.get("input"), body.get("prompt_name"))
        data = [{"object": "embedding", "index": number, "embedding": one} for number, one in enumerate(found)]
        return {"object": "list", "model": folder.name, "data": data}

    @app.post(RERANKS)
    async def rerank(body: Body) -> list[dict[str, Any]]:
        query, texts = body.get("query"), body.get("texts")
        if not isinstance(query, str) or not are_texts(texts):
            raise HTTPException(422, "Send a query, which is a text, and texts, which is a list of texts.")
        logits = np.array(await run(RERANKS, [(query, one) for one in texts]))[:, 0]
        scores = logits if encoder.raw or body.get("raw_scores") else 1 / (1 + np.exp(-logits))
        return [{"index": int(one), "score": float(scores[one])} for one in np.argsort(-scores, kind="stable")]

    @app.post(PREDICTS)
    async def predict(body: Body) -> list[Any]:
        inputs = body.get("inputs")
        rows = inputs if isinstance(inputs, list) else [inputs]
        texts: list[tuple[str, ...]] = [(one,) if isinstance(one, str) else tuple(one) if are_texts(one) else () for one in rows]
        if not texts or not all(len(one) in (1, 2) for one in texts):
            raise HTTPException(422, "Send a text, or a list of texts or of pairs of texts.")
        logits = np.array(await run(PREDICTS, texts))
        scores = np.exp(logits - logits.max(-1, keepdims=True))
        scores = logits if body.get("raw_scores") else scores / scores.sum(-1, keepdims=True)
        found = [[{"label": encoder.labels[one], "score": float(row[one])} for one in np.argsort(-row, kind="stable")] for row in scores]
        return found if isinstance(inputs, list) else found[0]

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/info")
    async def info() -> dict[str, Any]:
        return {"model": folder.name, "max_length": encoder.max_length, "route": encoder.route, "waiting": len(queue.waiting)}

    return app


def main() -> None:
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="written by `longattn export`: model.onnx, config.json, tokenizer.json")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--file", default="model.onnx", help="the graph, for example model_int8.onnx, which `longattn export --int8` adds")
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="tokens of one run, padding included; a longer text runs alone")
    parser.add_argument("--queue-tokens", type=int, default=4_000_000, help="tokens that may wait; with more, clients get a 503")
    parser.add_argument("--body-bytes", type=int, default=32_000_000, help="of one request; with more, the client gets a 413")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime; 0 is all cores")
    given = parser.parse_args()
    for name in (given.file, "config.json", "tokenizer.json"):
        if not (given.folder / name).is_file():
            parser.error(f"{str(given.folder)!r} has no {name}; give the folder that `longattn export MODEL FOLDER` wrote")
    try:
        app = application(
            given.folder, file=given.file, batch_tokens=given.batch_tokens, queue_tokens=given.queue_tokens, body_bytes=given.body_bytes,
            threads=given.threads,
        )  # fmt: skip
    except Exception as error:  # onnxruntime has no public class of errors
        parser.error(f"{str(given.folder / given.file)!r} cannot be served: {error}")
    uvicorn.run(app, host=given.host, port=given.port)


if __name__ == "__main__":
    main()
