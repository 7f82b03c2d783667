"""Captions whose last sentence decides: what is drawn, and a lengthened CLIP that equals the small one on short captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from scripts.dev.studies.far_captions import END, LONG_TOKENS, PIXELS, SHORT_TOKENS, Captions, similarities, truncated
from scripts.dev.studies.far_running import arguments
from scripts.dev.studies.far_task import Shown


def rows(**shown: bool) -> torch.Tensor:
    inputs, labels = Captions().batch(Shown(200, **shown), 2, np.random.default_rng(0))
    assert inputs.shape == (2, LONG_TOKENS + PIXELS)
    assert ((labels >= 0) & (labels < Captions.classes)).all()
    return inputs


def test_the_last_sentence_is_beyond_the_short_table_and_missing_in_the_control() -> None:
    ids = rows()[:, :LONG_TOKENS].long()
    assert (ids == END).sum() == 2
    assert (ids == END).int().argmax(1).min() > 2 * SHORT_TOKENS
    control = rows(control=True)[:, :LONG_TOKENS].long()
    assert ((ids != 0).sum(1) - (control != 0).sum(1)).tolist() == [11, 11]


def test_a_lengthened_model_has_the_similarities_of_the_small_one(tmp_path: Path) -> None:
    task = Captions()
    args = arguments([Captions], ["--width", "32", "--layers", "1"])
    small = task.small_model(args, 0).eval()
    small.save_pretrained(tmp_path)
    assert truncated(small, rows(), "class").shape == (2, Captions.classes)
    for name, system in task.systems(args).items():
        model = system.load(tmp_path, 200).eval()
        assert system.read(model, rows(), "class").isfinite().all(), name
        if system.check is not None:
            assert "equal CLIP's" in similarities(tmp_path, model)
