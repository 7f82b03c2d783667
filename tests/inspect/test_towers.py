"""A diagnosis of a model of several towers is of the one that reads the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longattn.errors import BackendError
from hf_longattn.inspect import diagnose
from hf_longattn.inspect.watching import tower_that_reads
from tests.modeling.test_generic_towers import build
from tests.towers import LINES, SHAPE, save_clip

Image: Any = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


def test_a_text_is_read_by_the_tower_of_texts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(LINES))
    found = diagnose(folder, tmp_path / "text.txt", candidates=["window:window=16"], queries=8)
    assert (found.model_class, found.causal, found.last.length) == ("CLIPModel, tower text", True, SHAPE.tokens)
    assert found.flags(0) == ["--towers", "text=window:window=16"]


def test_a_photo_is_read_by_the_tower_of_images(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    found = diagnose(folder, tmp_path / "photo.png", candidates=["window2d:window=2"])
    assert found.image is not None
    assert (found.model_class, found.image.grid.prefix) == ("CLIPModel, tower vision", 1)


@pytest.mark.parametrize(("case", "tower"), [("llava", "vision"), ("pixtral", None), ("qwen2_vl", None)])
def test_towers_of_language_models_are_chosen_by_their_input(case: str, tower: str | None) -> None:
    model, _ = build(case)
    read, name = tower_that_reads(model, text=True)
    assert (name, read.main_input_name) == ("text", "input_ids")
    if tower is None:
        with pytest.raises(BackendError, match="packs images of different sizes, which are not watched; give a text"):
            tower_that_reads(model, text=False)
    else:
        assert tower_that_reads(model, text=False)[1] == tower
    assert tower_that_reads(torch.nn.Linear(1, 1), text=True)[1] == ""
