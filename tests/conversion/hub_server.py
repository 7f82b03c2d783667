"""The few Hub calls that a download makes, answered on loopback from a folder: listing, resolving, ranges."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    folder: ClassVar[Path]
    repo: ClassVar[str]
    requests: ClassVar[list[str]]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        files = sorted(file.name for file in self.folder.iterdir())
        if path in (f"/api/models/{self.repo}", f"/api/models/{self.repo}/revision/main", f"/api/models/{self.repo}/revision/{COMMIT}"):
            listed = {"id": self.repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            return self._answer(200, json.dumps(listed).encode())
        if path.startswith(f"/api/models/{self.repo}/tree/"):
            tree = [{"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": "0"} for name in files]
            return self._answer(200, json.dumps(tree).encode())
        name = path.rpartition("/")[2]
        if path.startswith(f"/{self.repo}/resolve/") and name in files:
            return self._file((self.folder / name).read_bytes())
        if path.startswith((f"/{self.repo}/", f"/api/models/{self.repo}/")):
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound" if "revision" in path else "EntryNotFound"})
        return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _file(self, content: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None:
            return self._answer(200, content, headers)
        first, last = wanted.removeprefix("bytes=").split("-")
        start, end = int(first), min(int(last or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return self._answer(206, content[start : end + 1], headers)

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.requests.append(f"{self.command} {self.path} {status} {len(content)}")
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output to itself."""


@contextlib.contextmanager
def serve(folder: Path, repo: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the endpoint and the list of requests answered."""
    requests: list[str] = []
    handler = type("Handler", (_Handler,), {"folder": folder, "repo": repo, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
