"""The tokenizer and the tiny model of the training tests, for features; and a network that nothing may touch."""

import socket

import pytest

from tests.training.conftest import texts, tiny_model, tokenizer

__all__ = ["no_network", "texts", "tiny_model", "tokenizer"]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the metric must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
