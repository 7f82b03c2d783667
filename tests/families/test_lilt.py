"""LiLT: two flows, of text and of boxes, attend by one sum of scores, however the model is called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from hf_longattn import export_checkpoint
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import OptionError, PageError
from hf_longattn.families import FAMILIES
from tests.cells import every_cell
from tests.grids import every_other
from tests.modes.cells import Cell
from tests.modes.ways import WAYS
from tests.reference.small_models import long_like, long_model, padding, plain_model, tokens

BASE = "lilt"
LONGFORMER = {"mechanism": "longformer", "window": 16}
NAMED_DOCUMENTS = ("documents", "restarting positions", "offsets", "memory")
OTHER_WAYS = {**dict.fromkeys(NAMED_DOCUMENTS, "refused"), **dict.fromkeys(("cache", "router logits", "vmap"), "none")}
"""Its base hands no documents down to attention; it is no decoder and no mixture of experts, and transformers' own cannot be mapped
either."""


@every_cell("way", every_other((name for name, way in WAYS.items() if not way.slow), 0))
def test_every_way_to_call_it_gives_what_the_sequences_give_alone(way: str) -> None:
    outcome = Cell(BASE, way).outcome()
    assert outcome.kind == OTHER_WAYS.get(way, "equal"), str(outcome)


@pytest.mark.parametrize("mechanism", ["longformer", "window", "performer", "nystrom", "block_top_k"])
def test_mechanisms_see_text_and_boxes(mechanism: str) -> None:
    """One call for both flows: without boxes, other outputs."""
    model, ids = long_model(BASE, None, {"mechanism": mechanism}), tokens()
    boxes = FAMILIES[BASE].rule.seeded(model.config, *ids.shape)
    with torch.no_grad():
        assert (model(ids).last_hidden_state - model(ids, **boxes).last_hidden_state).abs().max() > 0.1


@torch.no_grad()
def test_global_tokens_are_those_of_the_call_padded_or_not() -> None:
    """A window with global tokens is full attention, seen from the global tokens."""
    plain = plain_model(BASE, max_position_embeddings=512)
    model = long_like(plain, BASE, LONGFORMER, max_position_embeddings=512)
    ids, mask = tokens(2, 200), padding(2, 200)
    arguments = {"input_ids": ids, "attention_mask": mask, **FAMILIES[BASE].rule.seeded(model.config, 2, 200)}
    everywhere = model(**arguments, global_attention_mask=torch.ones_like(ids)).last_hidden_state
    assert torch.allclose(everywhere[mask.bool()], plain(**arguments).last_hidden_state[mask.bool()], atol=1e-5)
    first = torch.zeros_like(ids)
    first[:, 0] = 1
    some = model(**arguments, global_attention_mask=first).last_hidden_state
    assert (some - model(**arguments).last_hidden_state)[:, 150].abs().max() >= 0
    assert (some - everywhere)[mask.bool()].abs().max() > 1e-3


def test_a_mechanism_with_its_own_projections_is_refused() -> None:
    with pytest.raises(OptionError, match="LiLT attends by text and boxes together"):
        long_model(BASE, None, {"mechanism": "longformer", "separate_global": True})


def test_boxes_that_lie_nowhere_are_refused() -> None:
    model, ids = long_model(BASE, None, LONGFORMER), tokens(2, 30)
    with pytest.raises(PageError, match="but sides lie from 0 to 1000"):
        model(ids, bbox=FAMILIES[BASE].rule.seeded(model.config, 2, 30)["bbox"] + 1001)


@pytest.mark.thorough
def test_both_position_tables_grow_and_come_back(tmp_path: Path) -> None:
    plain = plain_model(BASE, "LiltForQuestionAnswering", max_position_embeddings=66)
    plain.save_pretrained(tmp_path / "short")
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="longformer", window=128, max_length=256)
    assert report.passed
    names = {check.name: check.status for check in report.checks}
    assert names["equal where the mechanism covers the input"] == names["padding changes nothing"] == "passed"
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "long").eval()
    pages = FAMILIES[BASE].rule
    ids = tokens(2, 64)
    with torch.no_grad():
        expected = plain(ids, **pages.seeded(plain.config, 2, 64)).start_logits
        assert torch.allclose(expected, model(ids, **pages.seeded(model.config, 2, 64)).start_logits, atol=1e-5)
        assert model(tokens(1, 256), **pages.seeded(model.config, 1, 256)).start_logits.isfinite().all()
    tables = {name: len(values) for name, values in model.state_dict().items() if "position_embeddings" in name and "2d" not in name}
    assert {tables[name] for name in tables if name.endswith(("box_position_embeddings.weight", "s.position_embeddings.weight"))} == {258}


@pytest.mark.slow
def test_a_graph_takes_boxes(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    plain_model(BASE, "LiltForTokenClassification", max_position_embeddings=66, num_hidden_layers=1).save_pretrained(tmp_path / "short")
    convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="longformer", window=16, max_length=256)
    report = export_checkpoint(tmp_path / "long", tmp_path / "graph", format="onnx")
    assert "bbox" in report.inputs
    assert all(check.status == "passed" for check in report.checks)
