"""A card takes over what holds for its source: licence, language, data sets and tags, and nothing that was measured on another model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.hub import write_model_card
from hf_longattn.hub.card import inherited_metadata

from ..hub_server import serve
from ..hub_state import Hub

SOURCE = """---
language: [en, de]
license: other
license_name: mine
license_link: LICENSE.md
datasets: [bookcorpus]
base_model: someone/older
pipeline_tag: fill-mask
library_name: keras
tags: [exbert, tf, onnx, biology]
model-index:
- name: small
  results:
  - task: {type: fill-mask}
    dataset: {name: books, type: books}
    metrics: [{type: loss, value: 2.0}]
---

# small-bert
"""
KEPT = {"language": ["en", "de"], "license": "other", "license_name": "mine", "license_link": "LICENSE.md", "datasets": ["bookcorpus"]}


def written(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md", ignore_metadata_errors=False)


def test_card_takes_over_metadata_of_a_source_folder(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("BertForMaskedLM")
    (source / "README.md").write_text(SOURCE)
    report = convert_checkpoint(source, tmp_path / "long", max_length=128, mechanism="window", window=16, verify=False)
    assert "README.md" in report.files
    card = written(tmp_path / "long")
    assert {name: card.data.to_dict().get(name) for name in KEPT} == KEPT
    assert set(card.data.tags) == {"exbert", "biology", "hf_longattn", "long-context"}
    assert card.data.base_model is None, "the base of its source is not its base, and a folder has no name on the Hub"
    assert card.data.eval_results is None
    assert card.data.library_name == "transformers"
    assert "# small-bert" not in card.text
    assert f'from_pretrained("{tmp_path / "long"}")' in card.text
    write_model_card(tmp_path / "long", license="mit", tags=["code"], base_model="someone/small-bert")
    again = written(tmp_path / "long").data
    assert (again.license, again.to_dict().get("license_name"), again.language) == ("mit", None, ["en", "de"])
    assert again.base_model == "someone/small-bert"
    write_model_card(tmp_path / "long")
    assert written(tmp_path / "long").data.to_dict() == again.to_dict(), "a card that is written again keeps what it says"


def test_card_takes_over_metadata_of_a_hub_source(checkpoint: Callable[..., Path], hub: Callable[[str], None], tmp_path: Path) -> None:
    source = checkpoint("BertForMaskedLM")
    (source / "README.md").write_text(SOURCE)
    server = Hub()
    server.add("someone/small-bert", source)
    with serve(server):
        hub(server.endpoint)
        convert_checkpoint("someone/small-bert", tmp_path / "long", max_length=128, mechanism="window", window=16, verify=False)
    card = written(tmp_path / "long")
    assert {name: card.data.to_dict().get(name) for name in KEPT} == KEPT
    assert card.data.base_model == "someone/small-bert"
    assert "Converted from `someone/small-bert`" in card.text


def test_unreadable_card_of_a_source_gives_no_metadata_and_a_warning(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.warns(UserWarning, match="No metadata is taken"):
        assert inherited_metadata(tmp_path) == {}
    (tmp_path / "README.md").write_text("# no front matter\n")
    assert inherited_metadata(tmp_path) == {}
