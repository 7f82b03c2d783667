"""Example servers over loopback."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def serving(application: Any, **settings: Any) -> Iterator[str]:
    """The address of an application while it is served, with these settings of uvicorn."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=0, log_level="warning", **settings))
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


def ask(url: str, **request: Any) -> Any:
    """The JSON that the server answers to a request in JSON."""
    wanted = urllib.request.Request(url, json.dumps(request).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(wanted, timeout=60) as answer:
        return json.load(answer)


def refusal(url: str, **request: Any) -> tuple[int, Any]:
    """The status and the reason of a refused request."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(url, **request)
    return refused.value.code, json.loads(refused.value.read())["detail"]
