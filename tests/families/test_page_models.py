"""LayoutLM and MarkupLM: the box or the path of every token goes with its token, however the model is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hf_longattn import LongAttentionConfig, explain, export_checkpoint
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.tokenization import text_encoding
from hf_longattn.families import FAMILIES
from tests.byte_tokenizer import train_tokenizer
from tests.cases import every_case
from tests.grids import quickly
from tests.modes.crossings import Crossing
from tests.modes.ways import WAYS
from tests.reference.small_models import long_like, long_model, padding, plain_model, tokens
from tests.reports import statuses

BASE = "layoutlm"
OTHER_WAYS = {"memory": "refused", **dict.fromkeys(("cache", "router logits"), "none")}
"""It is no decoder and no mixture of experts, and transformers' own cannot be mapped either."""
LONGFORMER = {"mechanism": "longformer", "window": 16}


def boxes(config: Any, batch: int, length: int) -> Tensor:
    return FAMILIES[BASE].spec.further_inputs(config, batch, length)["bbox"]


QUICK = [name for name, way in WAYS.items() if not way.slow][::2]


@every_case("way", quickly((name for name, way in WAYS.items() if not way.slow), QUICK))
def test_layoutlm_gives_what_its_sequences_give_alone_in_every_way_of_calling(way: str) -> None:
    outcome = Crossing(BASE, way).outcome()
    assert outcome.kind == OTHER_WAYS.get(way, "equal"), str(outcome)


def test_boxes_reach_the_outputs() -> None:
    """Otherwise the tests with boxes would say nothing."""
    model, ids = long_model(BASE, None, LONGFORMER), tokens()
    with torch.no_grad():
        without, with_boxes = (
            model(ids).last_hidden_state,
            model(ids, bbox=boxes(model.config, *ids.shape)).last_hidden_state,
        )
    assert (without - with_boxes).abs().max() > 0.1


@torch.no_grad()
def test_long_pages_are_read_as_by_the_base_with_a_larger_table() -> None:
    plain = plain_model(BASE, max_position_embeddings=2048)
    model = long_like(plain, BASE, {"mechanism": "longformer", "window": 4096}, max_position_embeddings=2048)
    ids, mask = tokens(2, 1500), padding(2, 1500)
    arguments = {"input_ids": ids, "attention_mask": mask, "bbox": boxes(model.config, 2, 1500)}
    expected, states = (network(**arguments).last_hidden_state[mask.bool()] for network in (plain, model))
    assert (expected - states).abs().max() < 1e-5


def test_padding_of_layoutlm_makes_no_mask_over_pairs() -> None:
    model, mask = long_model(BASE, None, LONGFORMER), padding(2, 100)
    paths = str(explain(model, {"input_ids": tokens(2), "attention_mask": mask, "bbox": boxes(model.config, 2, 100)}))
    alone = str(explain(long_model("bert", None, LONGFORMER), {"input_ids": tokens(2), "attention_mask": mask}))
    assert paths.split("path")[1] == alone.split("path")[1]


def test_a_layoutlm_checkpoint_is_converted_and_verified_with_boxes(tmp_path: Path) -> None:
    head = "LayoutLMForQuestionAnswering"
    plain = plain_model(BASE, head, max_position_embeddings=64)
    plain.save_pretrained(tmp_path / "short")
    report = convert_checkpoint(
        tmp_path / "short", tmp_path / "long", mechanism="longformer", window=128, max_length=256
    )
    assert report.verified
    assert " --data YOUR_QUESTIONS.json " in str(report.train_command)
    names = statuses(report)
    assert names["equal where the mechanism covers the input"] == names["padding changes nothing"] == "passed"
    model = transformers.AutoModelForDocumentQuestionAnswering.from_pretrained(tmp_path / "long").eval()
    assert model.config.long_attention == LongAttentionConfig("longformer", window=128)
    ids, places = tokens(2, 64), boxes(model.config, 2, 64)
    with torch.no_grad():
        assert torch.allclose(plain(ids, bbox=places).start_logits, model(ids, bbox=places).start_logits, atol=1e-5)
        assert model(tokens(1, 256), bbox=boxes(model.config, 1, 256)).start_logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_an_exported_graph_of_layoutlm_takes_boxes(format: str, tmp_path: Path) -> None:
    """Each comparison with the model has boxes, so a graph without them would fail."""
    pytest.importorskip("onnxruntime")
    short = plain_model(BASE, "LayoutLMForTokenClassification", max_position_embeddings=64, num_hidden_layers=1)
    short.save_pretrained(tmp_path / "short")
    convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="window", window=16, max_length=256)
    report = export_checkpoint(tmp_path / "long", tmp_path / format, format=format)
    assert report.inputs == ("input_ids", "attention_mask", "bbox")
    assert all(check.status == "passed" for check in report.checks)


MARKUP = "markuplm"
NARROW = {"mechanism": "window", "window": 16}


def paths(config: Any, batch: int, length: int) -> dict[str, Tensor]:
    return FAMILIES[MARKUP].spec.further_inputs(config, batch, length)


def test_tags_and_subscripts_reach_the_outputs() -> None:
    model, ids = long_model(MARKUP, None, NARROW), tokens()
    both = paths(model.config, *ids.shape)
    with torch.no_grad():
        given = model(ids, **both).last_hidden_state
        for name in both:
            without = {other: values for other, values in both.items() if other != name}
            assert (given - model(ids, **without).last_hidden_state).abs().max() > 0.1


def test_a_markuplm_checkpoint_is_converted_and_verified_with_paths(tmp_path: Path) -> None:
    plain = plain_model(MARKUP, "MarkupLMForQuestionAnswering", max_position_embeddings=66)
    plain.save_pretrained(tmp_path / "short")
    report = convert_checkpoint(
        tmp_path / "short", tmp_path / "long", mechanism="longformer", window=128, max_length=256
    )
    assert report.verified
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "long").eval()
    ids = tokens(2, 64)
    with torch.no_grad():
        expected = plain(ids, **paths(plain.config, 2, 64)).start_logits
        assert torch.allclose(expected, model(ids, **paths(model.config, 2, 64)).start_logits, atol=1e-5)
        assert model(tokens(1, 256), **paths(model.config, 1, 256)).start_logits.isfinite().all()


@pytest.mark.thorough
def test_a_markuplm_folder_is_converted_by_its_own_tokenizer(tmp_path: Path) -> None:
    """MarkupLM's tokenizer takes words with paths; its processor's file says nothing about lengths."""
    source, result = tmp_path / "short", tmp_path / "long"
    vocabulary = json.loads(train_tokenizer(["a river and a lighthouse"] * 2, 300).backend_tokenizer.to_str())[
        "model"
    ]["vocab"]
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    tags = {"html": 0, "body": 1, "p": 2, "span": 3}
    tokenizer = transformers.MarkupLMTokenizer(
        vocab=vocabulary, merges=[], tags_dict=tags, max_depth=4, model_max_length=64, **special
    )
    numbers = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "vocab_size": len(tokenizer)}
    plain_model(MARKUP, "MarkupLMForTokenClassification", max_position_embeddings=65, **numbers).save_pretrained(
        source
    )
    tokenizer.save_pretrained(source)
    feature_extractor = {"feature_extractor_type": "MarkupLMFeatureExtractor", "processor_class": "MarkupLMProcessor"}
    (source / "preprocessor_config.json").write_text(json.dumps(feature_extractor))
    report = convert_checkpoint(source, result, mechanism="longformer", window=128, max_length=256)
    assert statuses(report)["tokenizer"] == "passed"
    assert "English text" in report.text
    assert (result / "preprocessor_config.json").read_bytes() == (source / "preprocessor_config.json").read_bytes()
    model, written = (
        auto.from_pretrained(result)
        for auto in (transformers.AutoModelForTokenClassification, transformers.AutoTokenizer)
    )
    assert isinstance(written, transformers.MarkupLMTokenizer)
    assert written.model_max_length == 256
    page = text_encoding(written, "a river and a lighthouse " * 100, truncation=True, return_tensors="pt")
    assert page["input_ids"].shape == (1, 256)
    with torch.no_grad():
        assert model.eval()(**page).logits.isfinite().all()
