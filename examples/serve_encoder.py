"""Serve a sentence encoder over HTTP, from a folder that `longattn export` wrote; memory is bounded, and no text is cut off.

    pip install fastapi uvicorn onnxruntime tokenizers
    python examples/serve_encoder.py ./encoder-onnx --port 8080

Routes: POST /embed as in text-embeddings-inference, {"inputs": "text" or ["text", …]} -> [[…], …]; POST /v1/embeddings as OpenAI's,
{"input": …} -> {"data": [{"embedding": […]}, …]}; GET /health and /info.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, HTTPException
from tokenizers import Tokenizer


class Encoder:
    """An exported model: token ids -> embeddings. One run at a time, and nothing is kept between runs."""

    def __init__(self, folder: Path, threads: int) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.padding = config.get("pad_token_id") or 0
        file = folder / "tokenizer_config.json"
        named = json.loads(file.read_text(encoding="utf-8")).get("model_max_length") if file.is_file() else None
        lengths = [one for one in (named, config.get("max_position_embeddings")) if isinstance(one, int) and one < 10**9]
        self.max_length = min(lengths, default=512)
        report = folder / "export_report.json"
        self.min_length = json.loads(report.read_text(encoding="utf-8")).get("min_length", 1) if report.is_file() else 1
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = False  # the arena never gives memory of a long text back
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.inputs = {one.name for one in self.session.get_inputs()}
        outputs = [one.name for one in self.session.get_outputs()]
        self.pooled = "sentence_embedding" in outputs
        self.output = "sentence_embedding" if self.pooled else outputs[0]

    def read(self, text: str) -> list[int]:
        """Its token ids, special ones included."""
        return list(self.tokenizer.encode(text).ids)

    def run(self, rows: list[list[int]]) -> list[list[float]]:
        """The embeddings of some texts; without a pooling in the graph, normalised means."""
        length = max(self.min_length, *map(len, rows))
        ids = np.full((len(rows), length), self.padding, dtype=np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)], mask[number, : len(row)] = row, 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (found,) = self.session.run([self.output], {name: value for name, value in given.items() if name in self.inputs})
        if not self.pooled:
            found = (found * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            found = found / np.linalg.norm(found, axis=-1, keepdims=True)
        return [list(map(float, one)) for one in found]


@dataclass(eq=False)
class Waiting:
    """A text on its way."""

    row: list[int]
    answer: asyncio.Future[list[float]]


class Queue:
    """Texts that wait, at most ``queue_tokens`` of them; the oldest runs next, with others of similar length."""

    def __init__(self, encoder: Encoder, batch_tokens: int, queue_tokens: int) -> None:
        self.encoder, self.batch_tokens, self.queue_tokens = encoder, batch_tokens, queue_tokens
        self.waiting: list[Waiting] = []
        self.arrived = asyncio.Event()

    async def embed(self, rows: list[list[int]]) -> list[list[float]]:
        held = sum(len(one.row) for one in self.waiting)
        if self.waiting and held + sum(map(len, rows)) > self.queue_tokens:
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
                            one.answer.set_exception(HTTPException(500, f"The model failed on {len(one.row):,} tokens: {error}"))
                    continue
                for one, embedding in zip(batch, found, strict=True):
                    if not one.answer.done():
                        one.answer.set_result(embedding)
            self.arrived.clear()

    def next_batch(self) -> list[Waiting]:
        """The oldest text, and others between half and all of its length, as long as their padded tokens fit."""
        first = self.waiting[0]
        longest = len(first.row)
        fitting = [one for one in self.waiting if longest <= 2 * len(one.row) <= 2 * longest]
        batch = [first, *(one for one in fitting if one is not first)][: max(1, self.batch_tokens // max(1, longest))]
        self.waiting = [one for one in self.waiting if one not in batch]
        return batch


def application(folder: Path, *, batch_tokens: int = 16_384, queue_tokens: int = 4_000_000, threads: int = 0) -> FastAPI:
    """The server of one exported encoder."""
    encoder = Encoder(folder, threads)
    queue = Queue(encoder, batch_tokens, queue_tokens)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(queue.work())
        yield
        worker.cancel()

    app = FastAPI(title="Sentence encoder", lifespan=running)

    async def embed(texts: Any) -> list[list[float]]:
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
            raise HTTPException(422, "Send a text or a list of texts.")
        rows = await asyncio.to_thread(lambda: [encoder.read(one) for one in texts])
        longest = max(map(len, rows))
        if longest > encoder.max_length:
            raise HTTPException(
                413, f"A text has {longest:,} tokens, but the model reads at most {encoder.max_length:,}; send it in parts."
            )
        return await queue.embed(rows)

    @app.post("/embed")
    async def of_inference(body: dict[str, Any]) -> list[list[float]]:
        return await embed(body.get("inputs"))

    @app.post("/v1/embeddings")
    async def of_openai(body: dict[str, Any]) -> dict[str, Any]:
        found = await embed(body.get("input"))
        data = [{"object": "embedding", "index": number, "embedding": one} for number, one in enumerate(found)]
        return {"object": "list", "model": folder.name, "data": data}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/info")
    async def info() -> dict[str, Any]:
        return {"model": folder.name, "max_length": encoder.max_length, "waiting": len(queue.waiting)}

    return app


def main() -> None:
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="written by `longattn export`: model.onnx, config.json, tokenizer.json")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="tokens of one run, padding included; a longer text runs alone")
    parser.add_argument("--queue-tokens", type=int, default=4_000_000, help="tokens that may wait; with more, clients get a 503")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime; 0 is all cores")
    given = parser.parse_args()
    for name in ("model.onnx", "config.json", "tokenizer.json"):
        if not (given.folder / name).is_file():
            parser.error(f"{str(given.folder)!r} has no {name}; give the folder that `longattn export MODEL FOLDER` wrote")
    app = application(given.folder, batch_tokens=given.batch_tokens, queue_tokens=given.queue_tokens, threads=given.threads)
    uvicorn.run(app, host=given.host, port=given.port)


if __name__ == "__main__":
    main()
