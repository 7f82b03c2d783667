"""An embedding server as the target of an audit: the shapes of requests, what servers answer, and the longest text that they take."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError, in_a_line, listed, shortened
from .numbered_inputs import SHORTEST
from .targets import EMBEDDING, AuditTarget

MAX_WORDS = 2000
"""Maximum number of different single-token words in texts for a server."""
MAX_ANSWER_BYTES = 64 * 2**20
"""Maximum size of a server's answer. An embedding has some kilobytes."""
KEY = "HF_LONGATTN_SERVER_KEY"
"""The environment variable with the key that a server wants."""
SHAPES: tuple[tuple[str, str, dict[str, Any], Any], ...] = (
    (r"/v\d+/embed$", "texts", {"input_type": "search_document", "embedding_types": ["float"]}, "NONE"),
    (r"/embed$", "inputs", {}, False),
    (r"", "input", {}, False),
)
"""Cohere's, text-embeddings-inference's and OpenAI's requests: their route, the field of the texts, other fields, and the value of
``truncate`` that refuses long texts. Ollama takes the last one at ``/api/embed``."""
REFUSALS = (400, 413, 422, 500)
"""Statuses by which servers refuse a text that is too long. llama.cpp's answers 500."""
FINAL = {
    **dict.fromkeys((401, 403), f"put the key that it wants into the variable {KEY}"),
    429: "it limits the rate of requests, and an audit sends some 30; try again later, or raise its limit",
}
"""Statuses that no other request changes, and what to do."""
ADVICE = "is this the route of its embeddings, and does it serve this model? Name another as …?model=NAME"
EXPECTED = "expected a list of lists of numbers, as the routes /embed, /v1/embeddings and /v2/embed return"


class AnswerError(OptionError):
    """An answer without an embedding. status, said: of HTTP, and its text; 200 for an answer of another shape."""

    def __init__(self, message: str, status: int = 200, said: str = "") -> None:
        super().__init__(message)
        self.status, self.said = status, said


class ServerTarget(AuditTarget):
    """An embedding server. Its texts consist of words of one token each."""

    def __init__(self, url: str, tokenizer: Any, words: Tensor, model: str, timeout: float) -> None:
        """words: ids of :func:`single_words`. model: its name in requests, unless ``url`` has ``?model=NAME``."""
        try:
            address = urllib.parse.urlsplit(url)
        except ValueError:  # such as half of an IPv6 address
            address = urllib.parse.urlsplit("")
        if address.scheme not in ("http", "https"):
            raise OptionError(f"{url!r} is not the address of a server; give one like http://localhost:8080/embed.")
        query = urllib.parse.parse_qsl(address.query, keep_blank_values=True)
        named, others = dict(query).get("model"), urllib.parse.urlencode([pair for pair in query if pair[0] != "model"])
        self.name, self.url = url, address._replace(query=others).geturl()
        self.tokenizer, self.timeout = tokenizer, timeout
        pair, row = words[:2].tolist(), list[int]()
        for self.before in ("", " "):  # where a text begins, byte-level vocabularies have other tokens
            row = tokenizer(self._text(words[:2]))["input_ids"]
            self.leading = row.index(pair[0]) if pair[0] in row else len(row)
            self.trailing = len(row) - 2 - self.leading
            if row[self.leading :][:2] == pair:
                break
        else:
            raise OptionError(f"The tokenizer of {model!r} reads two words as {row}, not as {pair}, so it cannot tell a server's tokens.")
        short, error = words[torch.arange(SHORTEST) % len(words)], None
        shapes = sorted(SHAPES, key=lambda shape: not re.search(shape[0], address.path.rstrip("/")))
        names = [named] if named else itertools.chain([model], self._served(model))
        for self.model, self.shape in ((name, shape) for name in names for shape in shapes):
            try:
                self.outputs(short)
                return
            except AnswerError as answer:
                error = error or answer
                if answer.status in FINAL:
                    break
        assert error is not None
        raise error

    def _text(self, ids: Tensor) -> str:
        return self.before + " ".join(self.tokenizer.decode([token]).strip() for token in ids.tolist())

    def _served(self, model: str) -> Iterator[str]:
        """The name that the server gives its only model, or one called like ``model``; nothing if it names none.

        Raises:
            OptionError: it names several others.
        """
        path = re.sub(r"/[^/]*/?$", "/models", urllib.parse.urlsplit(self.url).path)
        try:
            values = json.loads(self._answer(urllib.parse.urljoin(self.url, path), None, "a question for its models"))
            names = [str(entry["id"]) for entry in values["data"]]
        except (OptionError, ValueError, KeyError, TypeError, RecursionError):
            return
        alike = [name for name in names if name.rpartition("/")[2] == model.rpartition("/")[2]] or names
        if len(alike) > 1:
            raise OptionError(f"{self.name} serves {listed(names)}, but no {model!r}; name one in the address: ?model={names[0]}")
        yield from (name for name in alike if name != model)

    def accepted(self, ids: Tensor) -> Tensor:
        """The longest beginning of ``ids (N,)`` that the server takes; :attr:`refusal` says what it answers to a longer one."""
        taken, refused, tried, said = SHORTEST, len(ids) + 1, len(ids), ""
        while refused - taken > 1:
            try:
                self.outputs(ids[:tried])
                taken = tried
            except AnswerError as error:
                if error.status not in REFUSALS:
                    raise
                refused, said = tried, f"{error.status} {error.said}".strip()
            tried = (taken + refused) // 2
        if said:
            self.refusal = f"a text of more than {taken + self.leading + self.trailing:,} tokens is refused ({said})"
        return ids[:taken]

    def when_strict(self, ids: Tensor) -> str:
        """What the server does with a text that it cuts off, ``ids (N,)``, if a request forbids that; "" if it knows no such field."""
        truncate = self.shape[3]
        field = f'"truncate": {json.dumps(truncate)}'
        try:
            self.outputs(ids[:SHORTEST], truncate=truncate)
        except AnswerError:
            return ""
        try:
            self.outputs(ids, truncate=truncate)
        except AnswerError as error:
            return f"With {field} in a request, the server refuses such a text instead ({error.status}), so send that."
        return f"With {field} in a request, the server cuts such a text off as well; count tokens before you send it."

    def outputs(self, ids: Tensor, **fields: Any) -> tuple[str, Tensor]:
        """The embedding of a text. fields: further fields of the request."""
        _, field, more, _ = self.shape
        named = {} if field == "inputs" else {"model": self.model}
        body = json.dumps({field: [self._text(ids)], **named, **more, **fields}).encode()
        answer = self._answer(self.url, body, f"{len(ids):,} tokens")
        try:
            values = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise AnswerError(f"{self.name} does not answer with JSON ({in_a_line(error)}); {EXPECTED}.") from error
        try:
            rows = values if isinstance(values, list) else values["data"] if "data" in values else values["embeddings"]
            rows = [row["embedding"] if isinstance(row, dict) else row for row in (rows["float"] if isinstance(rows, dict) else rows)]
            in_base64 = [np.frombuffer(base64.b64decode(row), "<f4").tolist() if isinstance(row, str) else row for row in rows]
            embedded = torch.tensor(in_base64, dtype=torch.float64)
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise AnswerError(f"{self.name} answers with something other than embeddings; {EXPECTED}.") from error
        if len(embedded) != 1:
            raise AnswerError(f"{self.name} answers with {len(embedded)} embeddings of one text; is this the route of its embeddings?")
        if embedded.ndim != 2 or not embedded.shape[1]:
            shape = "×".join(map(str, embedded.shape[1:])) or "a single number"
            raise AnswerError(f"{self.name} answers with {shape} for a text, not with one vector; {EXPECTED}.")
        return EMBEDDING, embedded

    def _answer(self, url: str, body: bytes | None, what: str) -> bytes:
        """The body of the server's answer to ``what``.

        Raises:
            AnswerError: a status of HTTP that is an error.
            OptionError: no connection, not HTTP, an endless answer, or one that takes longer than the timeout.
        """
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        if key := os.environ.get(KEY, "").strip():
            if not (key.isascii() and key.isprintable()):  # http.client would quote it
                raise OptionError(f"The variable {KEY} has characters that no key has; set it again.")
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        until = time.monotonic() + self.timeout
        while True:
            try:
                return self._read(request, until)
            except urllib.error.HTTPError as error:
                with error:
                    said = shortened(" ".join(error.read(500).decode("utf-8", "replace").split()))
                wait = error.headers.get("Retry-After", "")
                if error.code == 429 and wait.isdecimal() and time.monotonic() + int(wait) < until:
                    time.sleep(int(wait))
                    continue
                advice = FINAL.get(error.code, ADVICE)
                raise AnswerError(f"{self.name} answers {error.code} to {what}: {said}; {advice}.", error.code, said) from error
            except TimeoutError as error:
                raise OptionError(
                    f"{self.name} does not answer {what} within {self.timeout:g} seconds; give a larger --timeout, or a smaller --length."
                ) from error
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise OptionError(
                    f"{self.name} does not answer: {in_a_line(error)}; is the server running, and is this the route of its embeddings?"
                ) from error

    def _read(self, request: urllib.request.Request, until: float) -> bytes:
        """The body of an answer that is complete at ``until``, in seconds of the monotonic clock."""
        parts, size = [], 0
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                while part := answer.read1(2**16):
                    parts.append(part)
                    size += len(part)
                    if time.monotonic() > until:
                        raise TimeoutError
                    if size > MAX_ANSWER_BYTES:
                        raise ValueError(f"the answer has more than {MAX_ANSWER_BYTES / 1e6:,.0f} MB")
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise error.reason from error
            raise
        return b"".join(parts)


def single_words(tokenizer: Any | None, name: str) -> Tensor:
    """Ids of tokens that are whole words: the tokenizer reads such a word between spaces as that one token.

    All words have the same number of letters, so that a server that cuts texts at characters cuts every text at the same token.
    """
    if tokenizer is None:
        raise OptionError(f"{name!r} has no tokenizer, which auditing a server needs; give the model that the server runs.")
    special, ids = set(tokenizer.all_special_ids), dict[int, list[int]]()
    for token in range(len(tokenizer)):
        word = "" if token in special else tokenizer.decode([token]).strip()
        if word.isascii() and word.isalpha() and len(word) > 2 and word.islower():
            read = tokenizer(f"the {word} the", add_special_tokens=False)["input_ids"]
            if len(read) == 3 and read[1] == token:
                ids.setdefault(len(word), []).append(token)
                if len(ids[len(word)]) == MAX_WORDS:
                    break
    most = max(ids.values(), key=len, default=[])
    if len(most) < 2:
        raise OptionError(f"The tokenizer of {name!r} writes no word as one token, so a server cannot be audited token by token.")
    return torch.tensor(most)
