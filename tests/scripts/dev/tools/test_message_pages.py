"""Every refusal has its place in the documentation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import hf_longattn
from hf_longattn.choice_text import read_choice
from hf_longattn.errors import LongAttentionError, needs_extra
from hf_longattn.inputs.common.base import SETTINGS
from scripts.dev.tools.message_pages import explanations, holds, messages

OF_TRANSFORMERS = {"… does not recognize this architecture", "LOAD REPORT", "Unable to create tensor"}
WARNINGS = {"flex_attention has no kernel for heads of …", "PyTorch's flash attention has no kernel for heads of …"}


def attend(mechanism: str, **options: object) -> None:
    hf_longattn.attend(*torch.zeros(3, 1, 2, 8, 4), mechanism, **options)


def without_a_package() -> None:
    with needs_extra("onnx"):
        raise ModuleNotFoundError(name="onnx")


@pytest.mark.parametrize(
    "refused",
    [
        lambda: attend("windw"),
        lambda: attend("window", window="wide"),
        lambda: attend("window", windw=4),
        lambda: attend("nystrom", causal=True),
        lambda: attend("local2d"),
        lambda: read_choice("window:window"),
        without_a_package,
    ],
)
def test_a_message_is_found_by_its_words(refused: Callable[[], None]) -> None:
    with pytest.raises(LongAttentionError) as refusal:
        refused()
    assert any(holds(str(refusal.value), message.sentence) for message in messages()), str(refusal.value)


def test_troubleshooting_quotes_messages_that_exist() -> None:
    of_settings = {start for start, _ in SETTINGS.values()}
    quotes = {quote for quote in explanations() if " " in quote.strip("… ")} - OF_TRANSFORMERS - WARNINGS - of_settings
    found = messages()
    assert not [quote for quote in quotes if not any(holds(message.sentence, quote) for message in found)]
