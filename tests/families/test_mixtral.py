"""Mixtral, whose checkpoints do not say how wide a head is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from hf_longattn import convert_checkpoint
from tests.reference.small_models import long_model, plain_model, tokens


def test_mixtral_without_a_head_width_has_scaled_rotary_positions(tmp_path: Path) -> None:
    plain = plain_model("mixtral", "MixtralForCausalLM")
    assert plain.config.head_dim is None
    plain.save_pretrained(tmp_path / "short")
    convert_checkpoint(
        tmp_path / "short", tmp_path / "long", mechanism="full", max_length=2048, positions="rope:yarn", verify=False
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "long").eval()
    with torch.no_grad():
        assert model(tokens(1, 600)).logits.isfinite().all()


@pytest.mark.parametrize(("family", "head"), [("mixtral", "MixtralForCausalLM"), ("qwen3_moe", "Qwen3MoeForCausalLM")])
def test_experts_run_as_in_the_base(family: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no stock model was made before, whose answer transformers would keep for its subclasses."""
    cached = "_can_set_experts_implementation_cached_value"
    for cls in type(long_model(family, head, {"mechanism": "window", "window": 32})).__mro__:
        if cached in vars(cls):
            monkeypatch.delattr(cls, cached)
    model = long_model(family, head, {"mechanism": "window", "window": 32})
    assert (
        model.config._experts_implementation
        == plain_model(family, head).config._experts_implementation
        == "grouped_mm"
    )
