"""GLiNER with a converted encoder: entities up to the old length, what a label changes far away, saved and loaded
again.

GLiNER pins an older transformers, so it is in no environment of the project: this file installs it, alone, into a
folder of its own.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from hf_longattn.conversion import ConversionConfig, convert_checkpoint
from tests.stand_ins.text import GLINER

pytestmark = pytest.mark.slow

VERSION = "0.2.29"
LABELS = ["w1 w2", "w3"]
OTHER = ["w1 w5", "w3"]


@pytest.fixture(scope="module")
def save_small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], None]]:
    folder = tmp_path_factory.mktemp("gliner")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*install, f"gliner=={VERSION}"], check=True)
    sys.path.insert(0, str(folder))
    names: dict[str, Any] = {}
    exec(GLINER, names)
    yield names["save_small"]
    sys.path.remove(str(folder))


def words(count: int) -> str:
    drawn = random.Random(count)
    return " ".join(f"w{drawn.randrange(200)}" for _ in range(count))


def scores(model: Any, text: str, labels: list[str]) -> tuple[Tensor, Tensor]:
    """Of every span and label; and the encoder's states."""
    prepared = model.prepare_batch([text], labels)
    batch = model.collate_batch(prepared["input_x"], prepared["entity_types"], model.create_collator())
    tensors = {name: value for name, value in batch.items() if torch.is_tensor(value)}
    with torch.no_grad():
        return model.model(**tensors).logits, model.model.token_rep_layer(
            tensors["input_ids"], tensors["attention_mask"]
        )


@pytest.mark.parametrize("encoder", ["deberta-v2", "modernbert"])
def test_gliner_with_a_converted_encoder_reads_short_and_long_texts(
    encoder: str, save_small: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gliner import GLiNER

    monkeypatch.chdir(tmp_path)
    save_small(encoder, "short")
    stock = GLiNER.from_pretrained("short")
    stock.model.token_rep_layer.bert_layer.model.save_pretrained("encoder")
    stock.data_processor.transformer_tokenizer.save_pretrained("encoder")
    convert_checkpoint(
        "encoder",
        "long-encoder",
        ConversionConfig(mechanism="longformer", options={"window": 16, "exact_length": 64}, max_length=4096),
    )

    model = GLiNER.from_pretrained("short")
    long = AutoModel.from_pretrained("long-encoder")
    long.config.question_separator_id = model.data_processor.transformer_tokenizer.convert_tokens_to_ids(
        model.config.sep_token
    )
    model.model.token_rep_layer.bert_layer.model = long
    model.config.encoder_config, model.config.max_len = long.config, 4000
    model.save_pretrained("long")
    model = GLiNER.from_pretrained("long")
    assert type(model.model.token_rep_layer.bert_layer.model) is type(long)

    for count in (20, 50):  # with labels at most 64 tokens
        torch.testing.assert_close(
            scores(model, words(count), LABELS)[0], scores(stock, words(count), LABELS)[0], atol=1e-6, rtol=1e-5
        )
        assert model.predict_entities(words(count), LABELS, threshold=0.48) == stock.predict_entities(
            words(count), LABELS, threshold=0.48
        )
    ours, states = scores(model, words(300), LABELS)
    stock.config.max_len = 4000
    assert not torch.equal(ours, scores(stock, words(300), LABELS)[0]), "beyond the old length the mechanism runs"
    assert (states - scores(model, words(300), OTHER)[1]).abs().amax(-1)[0, -50:].min() > 0, (
        "a label changes the last words"
    )
    assert model.predict_entities(words(3900), LABELS, threshold=0.0)
