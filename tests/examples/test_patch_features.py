"""The example that draws the patch features of a photo, on a converted model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTModel

import hf_longattn

Pillow = pytest.importorskip("PIL.Image")

from transformers import ViTImageProcessorPil  # noqa: E402

from examples.patch_features import main  # noqa: E402


def test_patch_features_writes_a_drawing_of_the_size_of_the_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    hf_longattn.convert_checkpoint(tmp_path / "vit", tmp_path / "long", mechanism="window2d", image_size="64x96", verify=False)
    Pillow.effect_noise((120, 80), 80).save(tmp_path / "photo.png")
    monkeypatch.setattr(sys, "argv", ["patch_features.py", *(str(tmp_path / name) for name in ("long", "photo.png", "drawing.png"))])
    main()
    drawing = Pillow.open(tmp_path / "drawing.png")
    assert drawing.size == (120, 80)
    assert len(drawing.convert("RGB").getcolors(10_000)) > 10
