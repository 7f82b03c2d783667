"""Requests to a real server on loopback that are too large, slow, many or malformed."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated, Any

import pytest
from fastapi import Body, FastAPI
from pydantic import Field

from .serving import ask, serving

Texts = Annotated[list[Annotated[str, Field(max_length=1000)]], Body(embed=True, min_length=1, max_length=3)]
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def limits() -> Iterator[Any]:
    """The module with small limits."""
    import limits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "BYTES", 5000)
        patch.setattr(limits, "REQUESTS", 8)
        yield limits


@pytest.fixture(scope="module")
def waiting() -> threading.Semaphore:
    """Lets requests to /wait end."""
    return threading.Semaphore(0)


@pytest.fixture(scope="module")
def arrived() -> threading.Semaphore:
    """Counts requests to /wait."""
    return threading.Semaphore(0)


@pytest.fixture(scope="module")
def address(limits: Any, waiting: threading.Semaphore, arrived: threading.Semaphore) -> Iterator[tuple[str, int]]:
    app = limits.limited(FastAPI())

    @app.post("/length")
    def length(inputs: Texts) -> list[int]:
        return [len(text) for text in inputs]

    @app.post("/wait")
    def wait() -> None:
        arrived.release()
        waiting.acquire(timeout=20)

    with serving(app, http=limits.Connection) as url:
        host, port = url.removeprefix("http://").split(":")
        yield host, int(port)


def answer(address: tuple[str, int], body: Any, path: str = "/length", **headers: str) -> tuple[int, str]:
    with closing(http.client.HTTPConnection(*address, timeout=10)) as connection:
        connection.request("POST", path, body, {**JSON, **headers})
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_every_malformed_body_is_refused_in_one_short_sentence(address: tuple[str, int]) -> None:
    long = "x" * 4000
    bodies = {
        "a lone surrogate": b'{"inputs": ["\\ud800"]}', "NaN": b'{"inputs": NaN}', "NaN in a list": b'{"inputs": [NaN, 1e999]}',
        "not JSON": b"{inputs", "not UTF-8": b'{"inputs": ["\xff"]}', "empty": b"", "a number": b"7", "null": b"null",
        "a long text": json.dumps({"inputs": [long]}).encode(), "a long name": json.dumps({long: [long]}).encode(),
        "a long number": b'{"inputs": %s}' % (b"9" * 4500), "deep": b"[" * 4900, "deep inside": b'{"inputs": ' + b"[" * 4800,
        "many": b'{"inputs": ["a", "b", "c", "d"]}', "none": b'{"inputs": []}', "a text": b'{"inputs": "a"}',
        "control characters": b'{"inputs": [{"\\u0000\\u202e": 1}]}',
    }  # fmt: skip
    wrong = {}
    for what, body in bodies.items():
        status, text = answer(address, body)
        detail = json.loads(text)["detail"]
        if not 400 <= status < 500 or not isinstance(detail, str) or len(text) > 260 or long[:100] in text:
            wrong[what] = status, text[:300]
    for what, headers in {"no type": {"Content-Type": "text/plain"}, "no length": {"Content-Length": "ten"}}.items():
        status, text = answer(address, b'{"inputs": ["a"]}', **headers)
        if not 400 <= status < 500 or len(text) > 260:
            wrong[what] = status, text[:300]
    assert not wrong
    assert ask("http://{}:{}/length".format(*address), inputs=["four"]) == [4]


def test_a_large_body_is_refused_before_it_arrives(address: tuple[str, int]) -> None:
    """By its declared length, and where none is declared when it has become too long."""
    status, text = answer(address, b"", **{"Content-Length": str(600 << 20)})
    assert (status, json.loads(text)["detail"]) == (413, "The body has more than 5,000 bytes; send less at a time.")
    head = b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head + 6 * (b"3e8\r\n" + b"x" * 1000 + b"\r\n"))  # in one piece: http.client would still send when it is refused
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_what_does_not_arrive_ends(address: tuple[str, int], limits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections without a request, or with a part of a head, a body or a second head."""
    head = b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    whole = head + b'Content-Length: 17\r\n\r\n{"inputs": ["ab"]}'
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    begun = {"nothing": b"", "half a head": head, "half a body": head + b"Content-Length: 17\r\n\r\n{", "a second head": whole + head}
    sockets = {what: socket.create_connection(address, timeout=10) for what in begun}
    started, open_still = time.monotonic(), {}
    for what, sent in begun.items():
        sockets[what].sendall(sent)
    for what, connection in sockets.items():
        with connection:
            received = b""
            while part := connection.recv(4096):
                received += part
            if what == "half a body" and b" 408 " not in received:
                open_still[what] = received
    assert not open_still
    assert time.monotonic() - started < 15


def test_idle_connections_shut_nobody_out(address: tuple[str, int]) -> None:
    idle = [socket.create_connection(address, timeout=10) for _ in range(150)]
    try:
        assert answer(address, b'{"inputs": ["ab"]}') == (200, "[2]")
    finally:
        for connection in idle:
            connection.close()


def test_more_connections_than_are_held_close_the_oldest_that_wait(
    address: tuple[str, int], limits: Any, waiting: threading.Semaphore, arrived: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process can open so many files only; a request that is being served goes on."""
    monkeypatch.setattr(limits, "CONNECTIONS", 10)
    answers: list[tuple[int, str]] = []
    served = threading.Thread(target=lambda: answers.append(answer(address, b"", "/wait")))
    served.start()
    assert arrived.acquire(timeout=10)
    idle = [socket.create_connection(address, timeout=10) for _ in range(60)]
    try:
        assert answer(address, b'{"inputs": ["ab"]}') == (200, "[2]")
        assert [connection.recv(1) for connection in idle[:45]] == [b""] * 45
    finally:
        waiting.release()
        served.join(20)
        for connection in idle:
            connection.close()
    assert answers == [(200, "null")]


def test_more_requests_than_are_served_at_a_time_are_told_to_wait(
    address: tuple[str, int], limits: Any, waiting: threading.Semaphore
) -> None:
    def wait() -> None:
        while answer(address, b"", "/wait")[0] == 503:  # the request below was there first
            pass

    threads = [threading.Thread(target=wait) for _ in range(limits.REQUESTS)]
    for thread in threads:
        thread.start()
    try:
        until, found = time.monotonic() + 15, (0, "")
        while found[0] != 503 and time.monotonic() < until:
            found = answer(address, b'{"inputs": ["ab"]}')
        assert found == (503, '{"detail":"The server is busy; try again later."}')
    finally:
        waiting.release(limits.REQUESTS)
        for thread in threads:
            thread.join(20)
    assert answer(address, b'{"inputs": ["ab"]}') == (200, "[2]")
