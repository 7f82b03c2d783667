"""Servers of embeddings on loopback, with the requests and answers of OpenAI, text-embeddings-inference, Cohere and Ollama."""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

import hf_longattn  # noqa: F401, registers the Long models


class TooLong(Exception):
    """A text that the server refuses."""


@dataclass
class Server:
    """A server of embeddings. It answers requests of one shape, and refuses others as servers of that shape do.

    keeps: tokens that it keeps of a text. truncates, chunks: what it does with a longer one, unless the request says ``truncate``.
    knows_truncate: whether it reads that field. base64: whether OpenAI's answers are. served: the name of its model.
    """

    folder: Path
    keeps: int = 10**9
    truncates: bool = False
    chunks: bool = False
    knows_truncate: bool = True
    base64: bool = False
    served: tuple[str, ...] = ("long",)
    key: str = ""
    busy: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = AutoModel.from_pretrained(self.folder)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def embedding(self, text: str, strict: bool) -> list[float]:
        ids = self.tokenizer(text, truncation=False)["input_ids"]
        if len(ids) > self.keeps:
            if self.chunks:
                inner, size = ids[1:-1], self.keeps - 2
                parts = [[ids[0], *inner[start : start + size], ids[-1]] for start in range(0, len(inner), size)]
                total = sum((len(part) - 2) * self.vector(part) for part in parts)
                return list((total / total.norm()).tolist())
            if not self.truncates or strict:
                raise TooLong(f"must have at most {self.keeps} tokens, and has {len(ids)}")
            ids = [*ids[: self.keeps - 1], ids[-1]]
        return list(self.vector(ids).tolist())

    def vector(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            mean = self.model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        return mean / mean.norm()

    def answer(self, path: str, headers: Any, body: Any) -> tuple[int, Any]:
        self.asked.append(body)
        if self.key and headers.get("Authorization") != f"Bearer {self.key}":
            return 401, {"error": "no key"}
        if self.busy:
            self.busy -= 1
            return 429, {"error": "too many requests"}
        strict = self.knows_truncate and body.get("truncate") in (False, "NONE")
        try:
            return getattr(self, path.partition("?")[0].strip("/").replace("/", "_"))(body, strict)
        except TooLong as error:
            return (413 if path == "/embed" else 400), {"error": str(error)}

    def v1_embeddings(self, body: Any, strict: bool) -> tuple[int, Any]:
        if "input" not in body:
            return 422, {"detail": "input: Field required"}
        if body.get("model") not in self.served:
            return 404, {"error": {"message": f"The model `{body.get('model')}` does not exist."}}
        vector = self.embedding(body["input"][0], strict)
        coded: Any = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if self.base64 else vector
        data = [{"object": "embedding", "index": 0, "embedding": coded}]
        return 200, {"object": "list", "data": data, "model": body["model"], "usage": {"prompt_tokens": 1}}

    def embed(self, body: Any, strict: bool) -> tuple[int, Any]:
        if "inputs" not in body:
            return 422, {"error": "missing field `inputs`"}
        return 200, [self.embedding(body["inputs"][0], strict)]

    def v1_embed(self, body: Any, strict: bool) -> tuple[int, Any]:
        if "texts" not in body or body.get("model") not in self.served:
            return 400, {"message": "invalid request: texts and model are required"}
        return 200, {"id": "1", "embeddings": [self.embedding(body["texts"][0], strict)], "response_type": "embeddings_floats"}

    def v2_embed(self, body: Any, strict: bool) -> tuple[int, Any]:
        if "input_type" not in body:
            return 400, {"message": "input_type is required"}
        status, answer = self.v1_embed(body, strict)
        return status, {
            **answer,
            "embeddings": {"float": answer["embeddings"]},
            "response_type": "embeddings_by_type",
        } if status == 200 else answer

    def api_embed(self, body: Any, strict: bool) -> tuple[int, Any]:
        """Ollama's."""
        status, answer = self.v1_embeddings(body, strict)
        return status, {"embeddings": [row["embedding"] for row in answer["data"]]} if status == 200 else answer


@contextmanager
def at(server: Server, route: str, port: int = 0) -> Iterator[str]:
    """The address of a route of a server that runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(*server.answer(self.path, self.headers, body))

        def do_GET(self) -> None:
            known = self.path == "/v1/models"
            self.reply(200 if known else 404, {"data": [{"id": name, "object": "model"} for name in server.served]} if known else {})

        def reply(self, status: int, body: Any) -> None:
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}{route}"
    finally:
        running.shutdown()
        running.server_close()
