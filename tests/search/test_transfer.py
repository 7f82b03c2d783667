"""Attention transfer before candidates are judged."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from hf_longattn.errors import OptionError
from hf_longattn.search import search_design


@pytest.mark.slow
def test_mechanisms_learn_before_they_are_judged(encoder: Path, text: Path, tmp_path: Path) -> None:
    settings = {"budget": "5", "length": 64, "candidates": ["hedgehog", "full"], "score": "kl", "pieces": 1}
    before = search_design(encoder, text, tmp_path / "before", **settings)
    after = search_design(encoder, text, tmp_path / "after", transfer_steps=30, **settings)
    for old, new in zip(before.rows, after.rows, strict=True):
        assert old.scores["hedgehog"] != new.scores["hedgehog"]
        assert old.scores["full"] == pytest.approx(new.scores["full"], abs=1e-9)
    (file,) = (tmp_path / "after" / "transfer").glob("*.safetensors")
    assert {name.partition(".")[0] for name in load_file(file)} == {"0", "1", "2"}
    trials = search_design(encoder, text, tmp_path / "trials", transfer_steps=2, trials=3, **settings)
    assert trials.chosen.loss is not None
    with pytest.raises(OptionError, match="Attention transfer reads its text from a file"):
        search_design(encoder, text.read_text(encoding="utf-8"), tmp_path / "ids", transfer_steps=2, **settings)
