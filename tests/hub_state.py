"""What the Hub on loopback knows: users, repositories with their files by branch, large files, and what was asked of
it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
class Fault:
    """Break the connection at the next request that fits, after reading some of what it sends."""

    method: str
    path: str
    after: int = 0


@dataclass
class Hub:
    """What the server knows. ``requests`` are lines ``METHOD PATH STATUS BYTES``, ``received`` the bytes of large
    files by object."""

    users: dict[str, tuple[str, str]] = field(
        default_factory=lambda: {
            WRITER: ("writer", "write"),
            READER: ("writer", "read"),
            STRANGER: ("stranger", "write"),
        }
    )
    repos: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    received: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    odd: dict[str, str] = field(default_factory=dict)
    """End of a path -> what is answered there in place of what the Hub says; ``https://…`` is a redirect."""
    chunk: int | None = None  # large files are sent in parts of that many bytes
    endpoint: str = ""

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
