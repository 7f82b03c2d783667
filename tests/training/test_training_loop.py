"""What a training leaves beside its model: a card with the licence, the language, and what the model was made from."""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import ModelCard

from hf_longattn.hub import write_model_card
from hf_longattn.training.training_loop import write_trained_card

from ..damage import CONVERT, convert, make_checkpoint


def test_licence_language_and_base_come_from_the_model_that_was_trained(tmp_path: Path) -> None:
    make_checkpoint("bert", tmp_path / "short")
    assert convert(tmp_path / "short", tmp_path / "long", *CONVERT)[0] == 0
    write_model_card(tmp_path / "long", license="mit", language="de", base_model="someone/small-bert", tags=["letters"])
    without_card = shutil.ignore_patterns("README.md", "*report.json")
    shutil.copytree(tmp_path / "long", tmp_path / "trained", ignore=without_card)  # as a trainer saves the model
    write_trained_card(str(tmp_path / "long"), tmp_path / "trained", "Five steps.")
    card = ModelCard.load(tmp_path / "trained" / "README.md")
    assert (card.data.license, card.data.language, card.data.base_model) == ("mit", "de", "someone/small-bert")
    assert "letters" in card.data.tags
    assert "## Training\n\nFine-tuned from `long`. Five steps." in card.text

    write_model_card(tmp_path / "trained", license="apache-2.0")
    card = ModelCard.load(tmp_path / "trained" / "README.md")
    assert card.data.license == "apache-2.0"
    assert "Fine-tuned from `long`. Five steps." in card.text
