"""Converted models with their code, one per family of architecture, as they would be pushed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hf_longattn.conversion import convert_checkpoint

from ..conversion.conftest import LENGTH, built, checkpoint, drawn
from ..trained import tokenizer_of

__all__ = ["CASES", "TEXT", "Case", "built", "checkpoint", "converted"]

TEXT = "The house stands on a hill. It is called Larkfield, after the birds that nest there in spring. " * 4


@dataclass(frozen=True)
class Case:
    """A checkpoint to convert, and how the result is loaded."""

    source: str
    auto: str
    conversion: dict[str, Any]
    tokenizer: str | None = None
    generates: bool = True


CASES = {
    "bert": Case(
        "BertForMaskedLM", "AutoModelForMaskedLM", {"mechanism": "longformer", "window": 16}, "bert", generates=False
    ),
    "gpt2": Case("GPT2LMHeadModel", "AutoModelForCausalLM", {"mechanism": "window", "window": 16}, "gpt2"),
    "llama": Case("LlamaForCausalLM", "AutoModelForCausalLM", {"mechanism": "hybrid"}),
    "bart": Case(
        "BartForConditionalGeneration",
        "AutoModelForSeq2SeqLM",
        {
            "mechanism": "longformer",
            "window": 16,
            "decoder_long_attention": {"mechanism": "window", "window": 16},
            "max_decoder_length": 256,
        },
        "gpt2",
    ),
}


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """converted("bert") -> a converted folder, shared by the session: copy it before writing into it."""
    made: dict[str, Path] = {}

    def convert(name: str) -> Path:
        if name not in made:
            case, folder = CASES[name], tmp_path_factory.mktemp("converted")
            drawn(case.source, vocab_size=1000).save_pretrained(folder / "source")
            if case.tokenizer is not None:
                tokenizer_of(case.tokenizer, LENGTH).save_pretrained(folder / "source")
            convert_checkpoint(folder / "source", folder / name, max_length=256, verify=False, **case.conversion)
            made[name] = folder / name
        return made[name]

    return convert
