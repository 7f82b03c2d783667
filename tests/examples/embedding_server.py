"""A server of embeddings on loopback, with the routes of text-embeddings-inference, OpenAI and Ollama."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def serving_embeddings(embed: Callable[[str], list[float]], port: int = 0) -> Iterator[str]:
    """The address of a server that answers with ``embed(text)``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answers = {
                "/embed": lambda: [embed(body["inputs"])],
                "/v1/embeddings": lambda: {"data": [{"embedding": embed(body["input"])}]},
                "/api/embed": lambda: {"embeddings": [embed(body["input"])]},
            }
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answers[self.path]()).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
