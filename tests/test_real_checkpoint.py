"""The real all-MiniLM-L6-v2 on the whole way: converted, verified, loaded, encoded with, exported, quantised.

Texts are Python's own language reference.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertModel, TorchAoConfig

import hf_longattn
from tests.grids import grid
from tests.saved import read_json

REFERENCE = " ".join(topics[name] for name in sorted(topics))


@pytest.fixture(scope="module")
def models(real_folder: Path, real_long: Path) -> tuple[Any, Any]:
    """The original and the converted model."""
    return BertModel.from_pretrained(real_folder).eval(), AutoModel.from_pretrained(real_long).eval()


@pytest.fixture(scope="module")
def encoders(real_folder: Path, real_long: Path) -> tuple[Any, Any]:
    """The same as sentence-transformers loads them."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    short, long = (
        sentence_transformers.SentenceTransformer(str(folder), device="cpu") for folder in (real_folder, real_long)
    )
    return short, long


def ids(tokens: int, folder: Path) -> torch.Tensor:
    """The beginning of the reference in so many tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = tokenizer(REFERENCE[: 20 * tokens], truncation=True, max_length=tokens, return_tensors="pt")["input_ids"]
    assert found.shape == (1, tokens)
    return found


def test_real_minilm_passes_every_check_of_its_conversion(real_long: Path) -> None:
    report = read_json(real_long, "conversion_report.json")
    statuses = {check["name"]: check["status"] for check in report["checks"]}
    assert set(statuses.values()) == {"passed", "measured"}
    assert statuses["embeddings"] == "measured"


@pytest.mark.parametrize(
    ("tokens", "side"),
    grid(itertools.product([5, 512], ["left", "right"]), lambda tokens, side: (tokens == 5) == (side == "left")),
)
def test_real_minilm_gives_short_texts_the_states_of_the_original(
    tokens: int, side: str, models: tuple[Any, Any], real_long: Path
) -> None:
    """Alone, padded beside a long text, and packed behind it, whose states stay the same, too."""
    short, long = models
    assert type(long).__name__ == "LongBertModel"
    text, beside = ids(tokens, real_long), ids(600, real_long)
    at = slice(0, tokens) if side == "right" else slice(600 - tokens, 600)
    batch, mask = beside.repeat(2, 1), torch.ones(2, 600, dtype=torch.long)
    mask[1], mask[1, at], batch[1, at] = 0, 1, text
    documents = torch.tensor([[0] * 600 + [1] * tokens])
    with torch.no_grad():
        expected, of_long = short(text).last_hidden_state, long(beside).last_hidden_state
        padded = long(batch, attention_mask=mask).last_hidden_state
        packed = long(torch.cat([beside, text], 1)[:, -1024:], documents=documents[:, -1024:]).last_hidden_state
        found = [long(text).last_hidden_state, padded[1:, at], packed[:, -tokens:]]
    assert all((expected - one).abs().max() <= 1e-5 for one in found)
    assert (padded[:1] - of_long).abs().max() <= 1e-5


def test_real_minilm_reads_a_long_text_to_its_end(models: tuple[Any, Any], real_long: Path) -> None:
    long, text = models[1], ids(1024, real_long)
    other = text.clone()
    other[0, 1000] = text[0, 1001]
    with torch.no_grad():
        changed = (long(text).last_hidden_state - long(other).last_hidden_state).abs().amax(-1)[0]
    assert changed[[0, 800, 1023]].min() > 1e-4  # near, and far through the global token and layers


def test_sentence_transformers_encodes_with_the_real_long_minilm(encoders: tuple[Any, Any]) -> None:
    short, long = encoders
    assert (short.max_seq_length, long.max_seq_length) == (256, 1024)
    sentences = REFERENCE[:2000].split(". ")
    assert abs(short.encode(sentences) - long.encode(sentences)).max() <= 1e-5
    beginning, document = (long.encode(REFERENCE[:size]) for size in (1000, 20_000))
    assert abs(beginning - document).max() > 1e-2
    assert np.linalg.norm(document) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("beside", [0, pytest.param(600, marks=pytest.mark.slow)])
def test_real_minilm_in_8_bits_equals_the_original_in_8_bits(beside: int, real_folder: Path, real_long: Path) -> None:
    """Alone, and padded beside a long text, whose tokens have scales of their own."""
    quantization = pytest.importorskip("torchao.quantization")
    settings = TorchAoConfig(quantization.Int8DynamicActivationInt8WeightConfig())
    short, long = (
        AutoModel.from_pretrained(folder, quantization_config=settings).eval() for folder in (real_folder, real_long)
    )
    text = ids(60, real_long)
    batch, mask = text, torch.ones_like(text)
    if beside:
        batch, mask = ids(beside, real_long).repeat(2, 1), torch.ones(2, beside, dtype=torch.long)
        batch[1, :60], mask[1, 60:] = text, 0
    with torch.no_grad():
        expected = short(text).last_hidden_state
        found = long(batch, attention_mask=mask).last_hidden_state[-1:, :60]
    assert (expected - BertModel.from_pretrained(real_folder).eval()(text).last_hidden_state).abs().max() > 1e-3
    assert (expected - found).abs().max() <= 1e-5


@pytest.mark.slow
def test_onnx_of_the_real_minilm_gives_equal_embeddings(real_long: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    hf_longattn.export_checkpoint(real_long, tmp_path / "graph")
    encoder = sentence_transformers.SentenceTransformer(str(real_long), device="cpu")
    texts = [REFERENCE[:4000], REFERENCE[4000:4300], "A generator is a function that yields."]
    session = onnxruntime.InferenceSession(str(tmp_path / "graph" / "model.onnx"))
    for batch in (texts, texts[1:], texts[2:]):  # of which the first is longer than exact_length
        inputs, expected = (
            encoder.tokenizer(batch, padding=True, truncation=True, return_tensors="np"),
            encoder.encode(batch),
        )
        (found,) = session.run(["sentence_embedding"], {one.name: inputs[one.name] for one in session.get_inputs()})
        assert abs(found - expected).max() <= 1e-5
