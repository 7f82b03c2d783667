"""Processors follow the new size, in whichever file they are, and are run at that size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    LayoutLMConfig,
    LayoutLMModel,
    LayoutLMv3Tokenizer,
    ViTImageProcessor,
)

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.tokenization import text_encoding
from hf_longattn.errors import CheckpointError
from hf_longattn.inputs import tokenizer
from hf_longattn.inputs.sized import FILE, PROCESSOR_FILE
from hf_longattn.reports import Check
from tests.families import test_whisper as whisper
from tests.modeling import grid_models
from tests.modeling.audio_models import whisper_processor

Made = Callable[[Path], tuple[int, ...]]
"""The size of what the processor of a folder makes of data that is larger."""


def nested(folder: Path, part: str, values: dict[str, Any]) -> None:
    """Save a processor's values as transformers 5 does."""
    folder.joinpath(PROCESSOR_FILE).write_text(json.dumps({part: values, "processor_class": "SomeProcessor"}, indent=2) + "\n")


def saved_whisper(folder: Path) -> None:
    whisper.save(folder, max_source_positions=150)
    whisper_processor(16, 3).save_pretrained(folder)


def saved_vit(folder: Path) -> None:
    grid_models.saved("vit", "ViTForImageClassification", folder)
    nested(folder, "image_processor", json.loads(ViTImageProcessor(size={"height": 32, "width": 32}).to_json_string()))


def heard(folder: Path, name: str) -> tuple[int, ...]:
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    sound = np.random.default_rng(0).normal(size=8 * 16_000).astype(np.float32)
    return tuple(extractor(sound, sampling_rate=16_000, return_tensors="pt")[name].shape)


def seen(folder: Path) -> tuple[int, ...]:
    image = torch.zeros(90, 70, 3, dtype=torch.uint8).numpy()
    return tuple(AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"].shape)


CASES: dict[str, tuple[Callable[[Path], None], dict[str, Any], str, Made, tuple[int, ...]]] = {
    "Whisper": (
        saved_whisper, {"audio_seconds": 6, "needs_training": True}, "feature extractor",
        lambda folder: heard(folder, "input_features"), (1, 16, 600),
    ),

    "ViT": (saved_vit, {"image_size": "48x64"}, "image processor", seen, (1, 3, 48, 64)),
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_nested_processor_makes_inputs_of_the_new_size(name: str, tmp_path: Path) -> None:
    save, settings, check, made, size = CASES[name]
    save(tmp_path / "short")
    assert not (tmp_path / "short" / FILE).exists()
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", **settings)
    checks = {check.name: check for check in report.checks}
    assert (checks[check].status, made(tmp_path / "long")) == ("passed", size)


@pytest.mark.parametrize("name", CASES)
def test_verification_fails_if_the_processor_keeps_the_old_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, settings, _, made, size = CASES[name]
    save(tmp_path / "short")
    monkeypatch.setattr("hf_longattn.inputs.sized.changed_file", lambda *_: {})
    with pytest.raises(CheckpointError, match=r"becomes? an? inputs? of 3 seconds|become inputs of .* instead of"):
        convert_checkpoint(tmp_path / "short", tmp_path / "long", **settings)
    assert made(tmp_path / "short") != size
    assert not (tmp_path / "long").exists()


@pytest.mark.thorough
def test_processor_part_is_read_before_a_separate_file(tmp_path: Path) -> None:
    """As transformers reads them."""
    saved_vit(tmp_path / "short")
    ViTImageProcessor(size={"height": 99, "width": 99}).save_pretrained(tmp_path / "short")
    before = (tmp_path / "short" / FILE).read_bytes()
    convert_checkpoint(tmp_path / "short", tmp_path / "long", image_size=64)
    assert seen(tmp_path / "long") == (1, 3, 64, 64)
    assert (tmp_path / "long" / FILE).read_bytes() == before


class TestText:
    @pytest.mark.thorough
    def test_tokenizer_of_pages_cuts_longer_texts_to_the_new_length(self, tmp_path: Path) -> None:
        checks = self.checks(self.page(tmp_path), tmp_path / "long")
        assert checks["tokenizer"].status == "passed"
        assert "truncation cuts a longer text to 120 (input_ids, attention_mask, bbox)" in checks["tokenizer"].detail

    def test_verification_fails_if_the_tokenizer_cuts_at_another_length(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cut(monkeypatch, {"input_ids": 64})
        with pytest.raises(CheckpointError, match="model_max_length 120; with truncation a longer text has 64 input_ids"):
            self.checks(self.page(tmp_path), tmp_path / "long")
        assert not (tmp_path / "long").exists()
        self.cut(monkeypatch, {"input_ids": 120, "bbox": 200})
        with pytest.raises(CheckpointError, match="with truncation a longer text has 120 input_ids and 200 bbox"):
            self.checks(tmp_path / "short", tmp_path / "long")

    def cut(self, monkeypatch: pytest.MonkeyPatch, lengths: dict[str, int]) -> None:
        """Let truncation give outputs of these lengths."""

        def encoded(*args: Any, truncation: bool = False, **settings: Any) -> Any:
            outputs = text_encoding(*args, truncation=truncation, **settings)
            return {name: range(length) for name, length in lengths.items()} if truncation else outputs

        monkeypatch.setattr(tokenizer, "text_encoding", encoded)

    def page(self, folder: Path) -> Path:
        """A LayoutLM of 60 words and boxes, with the tokenizer of its RoBERTa checkpoints."""
        letters = [*map(chr, range(33, 127)), "Ġ"]
        vocabulary = {piece: number for number, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
        LayoutLMv3Tokenizer(vocab=vocabulary, merges=[], model_max_length=60).save_pretrained(folder / "short")
        sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        places = {"max_position_embeddings": 60, "pad_token_id": 1}
        LayoutLMModel(LayoutLMConfig(vocab_size=len(vocabulary), **sizes, **places)).save_pretrained(folder / "short")
        return folder / "short"

    def checks(self, source: Path, target: Path) -> dict[str, Check]:
        return {check.name: check for check in convert_checkpoint(source, target, mechanism="window", max_length=120).checks}
