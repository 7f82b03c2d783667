"""A sentence encoder is judged by its embeddings, computed as sentence-transformers computes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hf_longattn.conversion import ConversionReport, convert_checkpoint, verify_embeddings
from hf_longattn.conversion.pooling import sentence_pooling
from hf_longattn.conversion.verify_embeddings import EMBEDDINGS, PASSAGES, EmbeddingCheck
from hf_longattn.data.english import verification_text
from hf_longattn.hub import card
from hf_longattn.inputs.text import VerificationText, load_tokenizer

from .conftest import LENGTH

NEW = 4 * LENGTH
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


@pytest.fixture
def encoder(checkpoint: Callable[..., Path]) -> Path:
    """A small sentence encoder whose embeddings depend on the words, and more on where they are."""
    folder = checkpoint("BertModel", tokenizer="bert")
    model = transformers.BertModel.from_pretrained(folder)
    with torch.no_grad():
        torch.manual_seed(1)
        model.embeddings.position_embeddings.weight.normal_(0, 1)
        model.embeddings.word_embeddings.weight.normal_(0, 1)
    model.save_pretrained(folder)
    (folder / "modules.json").write_text(json.dumps(MODULES))
    (folder / "1_Pooling").mkdir()
    settings = {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    (folder / "2_Normalize").mkdir()
    return folder


def measured(report: ConversionReport) -> dict[str, Any]:
    return next(check.values for check in report.checks if check.name == EMBEDDINGS)


def test_embeddings_decide_what_needs_training(encoder: Path, tmp_path: Path) -> None:
    """Outputs differ from the source's in all of them."""
    wrong = {}
    cases: dict[str, tuple[dict[str, Any], bool]] = {
        "longformer": ({"mechanism": "longformer", "options": {"window": LENGTH // 2}}, True),
        "full": ({"mechanism": "full"}, True),
        "fewer chunks than passages": ({"mechanism": "full", "max_length": 2 * LENGTH}, True),
        "none": ({"mechanism": "window", "options": {"window": LENGTH}, "positions": "none"}, False),
    }
    for name, (settings, ready) in cases.items():
        report = convert_checkpoint(encoder, tmp_path / name, **{"max_length": NEW, **settings})
        values = measured(report)
        cosines = [*values["cosines"].values(), values["document"]["cosine"]]
        facts = (report.verdict == "ready to use", not report.needs_training, report.train_command is None, min(cosines) >= values["least"])
        written = json.loads((tmp_path / name / "conversion_report.json").read_text())
        read = (tmp_path / name / "README.md").read_text()
        facts += (written["verdict"] == "ready to use", card.UNTRAINED not in read)
        if set(facts) != {ready}:
            wrong[name] = facts, values
        assert [*values["cosines"]] == ["16", str(LENGTH)]
    assert not wrong


def test_a_document_whose_embedding_is_another_needs_training(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all short passages have the source's."""
    monkeypatch.setattr(verify_embeddings, "_cosine", lambda found, expected: 1.0 if len(found) > 1 else 0.5)
    report = convert_checkpoint(encoder, tmp_path / "long", mechanism="full", max_length=NEW)
    assert measured(report)["document"]["cosine"] == 0.5
    assert report.needs_training


@pytest.mark.thorough
def test_a_cosine_of_098_needs_no_training_however_alike_all_texts_are(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Embeddings of an encoder with random weights hardly differ between texts."""
    folder = checkpoint("BertModel", tokenizer="bert")
    (folder / "modules.json").write_text(json.dumps(MODULES[:2]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}))
    report = convert_checkpoint(folder, tmp_path / "long", mechanism="window", window=16, max_length=NEW)
    values = measured(report)
    assert values["least"] <= 0.98 <= min(values["cosines"].values())
    assert report.verdict == "ready to use"


@pytest.mark.thorough
def test_embeddings_are_the_means_of_the_states_of_framed_texts(encoder: Path, tmp_path: Path) -> None:
    """tests/conversion/test_pooling.py compares the pooling with sentence-transformers'."""
    values = measured(convert_checkpoint(encoder, tmp_path / "long", mechanism="window", window=16, max_length=NEW))
    tokenizer = load_tokenizer(encoder)
    assert tokenizer is not None
    ids = VerificationText(*verification_text(None), tokenizer, 30522).tokens(PASSAGES * LENGTH).view(PASSAGES, LENGTH).clone()
    ids[:, 0], ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    with torch.no_grad():
        means = [transformers.AutoModel.from_pretrained(folder)(ids)[0].mean(1) for folder in (encoder, tmp_path / "long")]
    expected = float(torch.nn.functional.cosine_similarity(*means).mean())
    assert values["cosines"][str(LENGTH)] == pytest.approx(expected, abs=1e-5)


def test_embeddings_that_are_not_measured_say_why(encoder: Path, tmp_path: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (encoder / file).unlink(missing_ok=True)
    report = convert_checkpoint(encoder, tmp_path / "long", mechanism="window", window=16, max_length=NEW)
    check = next(check for check in report.checks if check.name == EMBEDDINGS)
    assert (check.status, check.detail) == ("skipped", "the source has no tokenizer, and embeddings need real text")
    assert report.verdict is None
    assert report.needs_training


def test_the_document_is_as_long_as_can_be_afforded(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_longattn.conversion import plan_conversion, verify_embeddings

    plan = plan_conversion(encoder, mechanism="window", window=16, max_length=16 * LENGTH)
    text = VerificationText(*verification_text(None), load_tokenizer(encoder), 30522)
    pooling = sentence_pooling(encoder)
    assert pooling is not None
    assert EmbeddingCheck(plan, text, pooling, LENGTH, 16 * LENGTH).document == 16 * LENGTH
    monkeypatch.setattr(verify_embeddings, "FLOPS", 3e7)
    assert LENGTH < EmbeddingCheck(plan, text, pooling, LENGTH, 16 * LENGTH).document < 16 * LENGTH
    monkeypatch.setattr(verify_embeddings, "FLOPS", 1)
    assert EmbeddingCheck(plan, text, pooling, LENGTH, 16 * LENGTH).document == 0
