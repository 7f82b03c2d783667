"""How far a call goes: its calls of functions of the package, their files, and its changes of file. These numbers only fall."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from transformers import AutoModel

from hf_longattn import attend
from hf_longattn.families.bert import LongBertConfig

LIMITS = {
    "window": (170, 16),
    "nsa": (320, 19),
    "neighborhood": (520, 18),
    "bert": (290, 25),
}
"""Walk -> maximum calls and files, as measured when they fell last. Calls vary by a few with the number of threads."""
ARGUMENTS: dict[str, tuple[int, dict[str, Any]]] = {
    "window": (2048, {"window": 256}),
    "nsa": (1024, {"causal": True}),
    "neighborhood": (1024, {"grid": (32, 32), "kernel_size": 7}),
}


def walked(run: Callable[[], Any]) -> list[str]:
    """The file of every call of a function of the package, in order. The first two runs fill caches."""
    files: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and "/hf_longattn/" in (file := frame.f_code.co_filename):
            files.append(file)

    with torch.no_grad():
        run(), run()
        sys.setprofile(note)
        try:
            run()
        finally:
            sys.setprofile(None)
    return files


def attention(name: str) -> Callable[[], Any]:
    length, arguments = ARGUMENTS[name]
    q, k, v = torch.randn(3, 1, 4, length, 64).unbind(0)
    return lambda: attend(q, k, v, name, **arguments)


def padded_bert() -> Callable[[], Any]:
    config = LongBertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=100, max_position_embeddings=2048,
        long_attention={"mechanism": "window", "window": 128},
    )  # fmt: skip
    model, ids, mask = AutoModel.from_config(config).eval(), torch.randint(5, 99, (2, 1024)), torch.ones(2, 1024, dtype=torch.long)
    mask[1, 700:] = 0
    return lambda: model(ids, attention_mask=mask)


@pytest.mark.parametrize("name", LIMITS)
def test_a_walk_is_no_longer_than_before(name: str) -> None:
    files = walked(padded_bert() if name == "bert" else attention(name))
    calls, different = LIMITS[name]
    assert len(files) <= calls
    assert len(set(files)) <= different
