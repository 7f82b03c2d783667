"""A short encoder and a short decoder with tokenizers, and a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from hf_longattn.evaluation.token_loss import PARAGRAPHS
from hf_longattn.inspect import Diagnosis, diagnose
from scripts.dev.tools.small_models import Shape, language_model, small_config
from tests.trained import tokenizer_of

LENGTH = 256


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """checkpoint("bert") or checkpoint("llama"): a folder with a model of 256 positions and its tokenizer."""
    made: dict[str, Path] = {}

    def make(base: str) -> Path:
        if base not in made:
            tokenizer = tokenizer_of("bert" if base == "bert" else "gpt2")
            made[base] = tmp_path_factory.mktemp("short") / base
            shape = Shape(layers=3, inner=32, tokens=LENGTH, vocabulary=len(tokenizer))
            config = small_config(base, shape, initializer_range=0.3, num_key_value_heads=2)
            torch.manual_seed(0)
            getattr(transformers, language_model(base))(config).save_pretrained(made[base])
            tokenizer.save_pretrained(made[base])
        return made[base]

    return make


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of some thousand tokens."""
    file = tmp_path_factory.mktemp("text") / "lighthouse.txt"
    file.write_text(PARAGRAPHS * 4, encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def diagnosis(checkpoint: Callable[[str], Path], text: Path) -> Diagnosis:
    """Of the encoder at three lengths, with one mechanism that is not applicable."""
    candidates = [
        "window:window=32",
        "window:window=64",
        "longformer:window=32",
        "top_k:num_keys=16",
        "full",
        "linear",
    ]
    return diagnose(checkpoint("bert"), text, lengths=[64, 128, 256], queries=64, candidates=candidates)
