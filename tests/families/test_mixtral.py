"""Mixtral, whose checkpoints do not say how wide a head is."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from hf_longattn import convert_checkpoint, revert_checkpoint
from tests.reference.small_models import plain_model, tokens


def test_scaled_rotary_positions_of_heads_without_a_width(tmp_path: Path) -> None:
    plain = plain_model("mixtral", "MixtralForCausalLM")
    assert plain.config.head_dim is None
    plain.save_pretrained(tmp_path / "short")
    convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="full", max_length=2048, positions="rope:yarn", verify=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "long").eval()
    with torch.no_grad():
        assert model(tokens(1, 600)).logits.isfinite().all()
    revert_checkpoint(tmp_path / "long", tmp_path / "back", verify=False)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "back").head_dim is None
