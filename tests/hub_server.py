"""The Hub's API on loopback, as far as models are made, pushed and read: its routes, its error codes, its storage for
large files."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER, STRANGER = "hf_writerWRITERwriter01", "hf_readerREADERreader02", "hf_strangerSTRANGER03"
LARGE = (".safetensors", ".bin", ".model")
"""Endings of files that go to the storage for large files."""


@dataclass
class Repository:
    """Files by branch; every commit counts up."""

    owner: str
    private: bool = False
    gated: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)

    def sha(self, branch: str) -> str:
        return hashlib.sha1(f"{branch} {len(self.messages)}".encode()).hexdigest()

    def files(self, revision: str) -> dict[str, bytes] | None:
        return next((files for name, files in self.branches.items() if revision in (name, self.sha(name))), None)


@dataclass
class Hub:
    """What the server knows. ``requests`` are lines ``METHOD PATH STATUS BYTES``."""

    users: dict[str, tuple[str, str]] = field(
        default_factory=lambda: {
            WRITER: ("writer", "write"),
            READER: ("writer", "read"),
            STRANGER: ("stranger", "write"),
        }
    )
    repos: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""
    trusted: tuple[str, ...] = ()
    """Organizations whose kernels load without being asked for by hand."""

    def add(self, name: str, folder: Path | None = None, **kind: Any) -> Repository:
        """A repository with the files of a folder."""
        self.repos[name] = repo = Repository(name.split("/")[0], **kind)
        for path in sorted(folder.rglob("*")) if folder is not None else []:
            if path.is_file():
                repo.branches["main"][path.relative_to(folder).as_posix()] = path.read_bytes()
        return repo


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status, self.message, self.code = status, message, code


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(LARGE)


def oid_of(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_large(path) else git_oid(content)


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body would wait 40 ms until its headers are acknowledged
    body = b""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self._route(path, parse_qs(url.query))
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            content = json.dumps({"error": refusal.message}).encode()
            self._answer(refusal.status, content, {name: value for name, value in headers.items() if value})

    def _route(self, path: str, query: dict[str, list[str]]) -> None:
        routes: dict[str, Callable[[], None]] = {
            "/api/whoami-v2": lambda: self._json(
                {"name": self._user(needed=True)[0], "type": "user", "orgs": [], "auth": {}}
            ),
            "/api/repos/create": self._create,
            "/api/validate-yaml": self._validate,
        }
        if path in routes:
            return routes[path]()
        if path.startswith("/lfs/"):
            return self._store(path.removeprefix("/lfs/"))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(path[1:].removesuffix(".git/info/lfs/objects/batch"))
        parts = path.strip("/").split("/")
        if parts[:2] in (["api", "models"], ["api", "kernels"]):
            return self._api("/".join(parts[2:4]), parts[4:], query)
        if parts[:2] == ["api", "organizations"]:
            return self._json({"name": parts[2], "trustedKernelPublisher": parts[2] in self.hub.trusted})
        if parts[0] == "kernels":
            parts = parts[1:]
        if len(parts) > 4 and parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        raise Refusal(404, "Not found")

    def _user(self, needed: bool = False) -> tuple[str, str]:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if given and given not in self.hub.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if needed and not given:
            raise Refusal(401, "Invalid username or password.")
        return self.hub.users[given] if given else ("", "")

    def _repo(self, name: str, write: bool = False) -> Repository:
        user, role = self._user()
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and user != repo.owner):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and not user:
            raise Refusal(401, "Invalid username or password.")
        if write and (user != repo.owner or role != "write"):
            raise Refusal(403, f"You don't have the required permissions to write to {name}")
        return repo

    def _files(self, name: str, revision: str) -> tuple[Repository, dict[str, bytes]]:
        repo = self._repo(name)
        files = repo.files(revision)
        if files is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, files

    def _create(self) -> None:
        user, role = self._user(needed=True)
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or user}/{asked['name']}"
        if role != "write" or name.split("/")[0] != user:
            raise Refusal(403, "You don't have the rights to create a model under this namespace")
        if name in self.hub.repos:
            content = {
                "error": "You already created this model repo",
                "url": f"{self.hub.endpoint}/{name}",
                "name": name,
            }
            return self._json(content, 409)
        self.hub.add(name, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self._json({"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name})

    def _validate(self) -> None:
        content = json.loads(self.body)["content"]
        if "license: not-a-license" in content:
            return self._json(
                {"errors": [{"message": '"license" must be one of [apache-2.0, mit, ...]'}], "warnings": []}, 400
            )
        self._json({"errors": [], "warnings": []})

    def _api(self, name: str, rest: list[str], query: dict[str, list[str]]) -> None:
        match rest:
            case [] | ["revision", _]:
                repo, files = self._files(name, rest[1] if rest else "main")
                branch = next(branch for branch in repo.branches if repo.branches[branch] is files)
                listed = [{"rfilename": path} for path in sorted(files)]
                about = {"private": repo.private, "gated": "auto" if repo.gated else False, "tags": []}
                self._json({"id": name, "sha": repo.sha(branch), "siblings": listed, **about})
            case ["refs"]:
                branches = self._repo(name).branches
                refs = [{"name": one, "ref": f"refs/heads/{one}", "targetCommit": one} for one in branches]
                self._json({"branches": refs, "tags": [], "converts": []})
            case ["tree", revision, *folder]:
                self._json(
                    self._tree(
                        self._files(name, revision)[1], folder, query.get("recursive", [""])[0].lower() == "true"
                    )
                )
            case ["preupload", revision]:
                self._repo(name, write=True)
                known = self._files(name, revision)[1]
                self._json({"files": [self._mode(one["path"], known) for one in json.loads(self.body)["files"]]})
            case ["branch", branch]:
                repo = self._repo(name, write=True)
                if branch in repo.branches:
                    raise Refusal(409, "Reference already exists")
                repo.branches[branch] = dict(repo.branches["main"])
                self._json({})
            case ["commit", revision]:
                self._commit(name, revision)
            case _:
                raise Refusal(404, "Not found")

    def _tree(self, files: dict[str, bytes], folder: list[str], recursive: bool) -> list[dict[str, Any]]:
        """The files under a folder, and without ``recursive`` those in it and its folders."""
        entries = {}
        for path, content in sorted(files.items()):
            parts = path.split("/")
            if parts[: len(folder)] == folder:
                inner = "/".join(parts[: len(folder) + 1])
                if recursive or inner == path:
                    entries[path] = self._entry(path, content)
                else:
                    entries[inner] = {"type": "directory", "path": inner, "oid": git_oid(inner.encode())}
        return [*entries.values()]

    @staticmethod
    def _entry(path: str, content: bytes) -> dict[str, Any]:
        lfs = (
            {"lfs": {"oid": oid_of(path, content), "size": len(content), "pointerSize": 130}} if is_large(path) else {}
        )
        return {"type": "file", "path": path, "size": len(content), "oid": git_oid(content), **lfs}

    @staticmethod
    def _mode(path: str, known: dict[str, bytes]) -> dict[str, Any]:
        oid = {"oid": oid_of(path, known[path])} if path in known else {}
        return {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False, **oid}

    def _commit(self, name: str, revision: str) -> None:
        repo = self._repo(name, write=True)
        files = dict(self._files(name, revision)[1])
        for line in filter(None, self.body.splitlines()):
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                    files[value["path"]] = self.hub.objects[value["oid"]]
        repo.messages.append(message)
        repo.branches[revision] = files
        oid = repo.sha(revision)
        self._json({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None})

    def _batch(self, name: str) -> None:
        self._repo(name, write=True)
        objects = []
        for one in json.loads(self.body)["objects"]:
            entry = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{one['oid']}"}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "The content does not have this hash")
        self.hub.objects[oid] = self.body
        self._answer(200, b"")

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo, files = self._files(name, revision)
        if repo.gated and self._user()[0] != repo.owner:
            raise Refusal(403 if self._user()[0] else 401, f"Access to model {name} is restricted", "GatedRepo")
        if path not in files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        content, branch = files[path], next(branch for branch in repo.branches if repo.branches[branch] is files)
        headers = {"ETag": f'"{oid_of(path, content)}"', "X-Repo-Commit": repo.sha(branch)}
        if is_large(path):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        self._answer(200, content, headers)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.hub.requests.append(f"{self.command} {self.path} {status} {len(content)}")
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output to itself."""


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """The same Hub, answering at ``hub.endpoint``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
