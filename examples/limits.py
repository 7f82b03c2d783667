"""Limits of the example servers: requests that are too large, too slow or too many, and refusals in one short sentence.

``limited`` adds them to an application. uvicorn's ``--http limits:Connection`` also closes connections on which no request arrives.
"""

import asyncio
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

BYTES = 8 << 20  # of a request's body
REQUESTS = 64  # at a time; uvicorn's --limit-concurrency would count idle connections, too
CONNECTIONS = 256  # at a time, fewer than a process may open files; one more closes the oldest that waits for a request
SECONDS = 30.0  # in which a request's head arrives, and then its body
CHARACTERS = 200  # of a refusal


class Connection(H11Protocol):
    """A connection that is closed when no whole request head arrives in time; it may serve several requests."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.since = self.loop.time()
        if len(self.connections) > CONNECTIONS:
            waiting = [other for other in self.connections if isinstance(other, Connection) and other.waits()]
            min(waiting, key=lambda connection: connection.since).transport.close()
        self.loop.call_later(SECONDS, self.close_if_waiting, None)

    def waits(self) -> bool:
        """Whether no request has arrived since the last one was answered."""
        return not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete)

    def close_if_waiting(self, last: Any) -> None:
        """Close the connection if it still waits, as at the last look, after the request ``last``."""
        if self.transport.is_closing():
            return
        if self.cycle is last and self.waits():
            self.transport.close()
        else:
            self.loop.call_later(SECONDS, self.close_if_waiting, self.cycle)


class Limits:
    """An ASGI application that passes a request on to another when its body has arrived."""

    def __init__(self, app: Any) -> None:
        self.app, self.running = app, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif self.running >= REQUESTS:
            await self.refuse(503, "The server is busy; try again later.", scope, receive, send)
        else:
            self.running += 1
            try:
                await self.pass_on(scope, receive, send)
            finally:
                self.running -= 1

    async def pass_on(self, scope: Any, receive: Any, send: Any) -> None:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            body = None if int(declared) > BYTES else await asyncio.wait_for(self.body(receive), SECONDS)
        except asyncio.TimeoutError:  # before Python 3.11 it is not TimeoutError
            return await self.refuse(408, f"The body did not arrive in {SECONDS:g} seconds.", scope, receive, send)
        if body is None:
            return await self.refuse(413, f"The body has more than {BYTES:,} bytes; send less at a time.", scope, receive, send)
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def received() -> Any:
            return messages.pop() if messages else await receive()

        await self.app(scope, received, send)

    async def body(self, receive: Any) -> bytes | None:
        """The whole body; ``None`` if it is too long."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > BYTES:
                return None
            if not message.get("more_body"):
                return bytes(body)

    async def refuse(self, status: int, sentence: str, *request: Any) -> None:
        await JSONResponse({"detail": sentence}, status, {"Connection": "close"})(*request)


def limited(app: FastAPI) -> FastAPI:
    """The application with these limits; a body that is not what it takes is refused without repeating it."""

    async def refuse(_: Any, error: Any) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][1:])) if first["type"] != "json_invalid" else ""
        sentence = f"{place or 'body'}: {first['msg']}"[:CHARACTERS].encode("ascii", "replace").decode()
        return JSONResponse({"detail": f"{sentence}."}, 422)

    app.add_exception_handler(RequestValidationError, refuse)
    app.add_middleware(Limits)
    return app
