"""Audits of models of images: patches are replaced, and what changes is what the mechanisms on the grid let see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_longattn.errors import LengthError, OptionError
from hf_longattn.families import LongViTConfig, LongViTModel
from hf_longattn.inspect.audit import audit_reach
from tests.cells import every_cell

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32, "patch_size": 4}
CASES: list[dict[str, Any]] = [
    {"mechanism": "window2d", "window": 3},
    {"mechanism": "window2d", "window": 4, "shift": "alternate", "prefix_tokens": "none"},
    {"mechanism": "window", "window": 8, "order": "tiles:4x4"},
    {"mechanism": "segmented", "block_size": 16, "order": "tiles:4x4", "integration": "none"},
    {"mechanism": "full"},
]


def model_with(attention: dict[str, Any], layers: int = 2) -> LongViTModel:
    torch.manual_seed(0)
    config = LongViTConfig(
        **{**SIZES, "num_hidden_layers": layers}, long_image_size=[40, 48], long_attention=attention, initializer_range=0.2
    )
    return LongViTModel(config).eval()


@pytest.mark.thorough
@every_cell("attention", CASES, ids=str)
def test_every_patch_reaches_what_the_mechanism_says(attention: dict[str, Any]) -> None:
    audit = audit_reach(model_with(attention))
    assert audit.agrees, audit.to_dict()
    assert audit.length == 1 + 10 * 12
    assert [stage.stage for stage in audit.stages] == ["layer 0", "layer 1", "output"]


def test_an_attention_function_that_ignores_the_windows_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with({"mechanism": "window2d", "window": 4, "prefix_tokens": "none"})
    assert audit_reach(model).agrees
    monkeypatch.setitem(AttentionInterface._global_mapping, "longattn", sdpa_attention_forward)
    audit = audit_reach(model)
    assert not audit.agrees
    assert all("which the config keeps apart" in stage.problem for stage in audit.stages)


def test_what_is_for_texts_is_refused() -> None:
    model = model_with({"mechanism": "full"})
    with pytest.raises(LengthError, match=r"size that it was made for, 40 × 48 pixels; leave --length out"):
        audit_reach(model, length=64)
    with pytest.raises(OptionError, match=r"Servers of embeddings take texts, not images; leave --url out"):
        audit_reach(model, url="http://localhost:1/embed")
