"""MarkupLM: the path of every token in the tree of a web page goes with its token, however the model is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.tokenization import text_encoding
from hf_longattn.families import FAMILIES
from tests.byte_tokenizer import train_tokenizer
from tests.reference.small_models import long_model, plain_model, tokens

BASE = "markuplm"
WINDOW = {"mechanism": "window", "window": 16}


def paths(config: Any, batch: int, length: int) -> dict[str, Tensor]:
    return FAMILIES[BASE].spec.further_inputs(config, batch, length)


def test_tags_and_subscripts_reach_the_outputs() -> None:
    model, ids = long_model(BASE, None, WINDOW), tokens()
    both = paths(model.config, *ids.shape)
    with torch.no_grad():
        given = model(ids, **both).last_hidden_state
        for name in both:
            without = {other: values for other, values in both.items() if other != name}
            assert (given - model(ids, **without).last_hidden_state).abs().max() > 0.1


def test_a_markuplm_checkpoint_is_converted_and_verified_with_paths(tmp_path: Path) -> None:
    plain = plain_model(BASE, "MarkupLMForQuestionAnswering", max_position_embeddings=66)
    plain.save_pretrained(tmp_path / "short")
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="longformer", window=128, max_length=256)
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
    vocabulary = json.loads(train_tokenizer(["a river and a lighthouse"] * 2, 300).backend_tokenizer.to_str())["model"]["vocab"]
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    tags = {"html": 0, "body": 1, "p": 2, "span": 3}
    tokenizer = transformers.MarkupLMTokenizer(vocab=vocabulary, merges=[], tags_dict=tags, max_depth=4, model_max_length=64, **special)
    numbers = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "vocab_size": len(tokenizer)}
    plain_model(BASE, "MarkupLMForTokenClassification", max_position_embeddings=65, **numbers).save_pretrained(source)
    tokenizer.save_pretrained(source)
    feature_extractor = {"feature_extractor_type": "MarkupLMFeatureExtractor", "processor_class": "MarkupLMProcessor"}
    (source / "preprocessor_config.json").write_text(json.dumps(feature_extractor))
    report = convert_checkpoint(source, result, mechanism="longformer", window=128, max_length=256)
    assert {check.name: check.status for check in report.checks}["tokenizer"] == "passed"
    assert "English text" in report.text
    assert (result / "preprocessor_config.json").read_bytes() == (source / "preprocessor_config.json").read_bytes()
    model, written = (auto.from_pretrained(result) for auto in (transformers.AutoModelForTokenClassification, transformers.AutoTokenizer))
    assert isinstance(written, transformers.MarkupLMTokenizer)
    assert written.model_max_length == 256
    page = text_encoding(written, "a river and a lighthouse " * 100, truncation=True, return_tensors="pt")
    assert page["input_ids"].shape == (1, 256)
    with torch.no_grad():
        assert model.eval()(**page).logits.isfinite().all()
