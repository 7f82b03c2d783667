"""`LiveTranscript`: the text of a stream, as it comes, is that of the whole sound."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from hf_longattn.errors import StreamError
from hf_longattn.streaming import LiveTranscript, Stream
from tests.cells import every_cell
from tests.streaming.test_model import model_of, sound, whole

LETTERS = "etaoinshrd"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    words = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.json"
    path.write_text(json.dumps({word: number for number, word in enumerate(words)}))
    return Wav2Vec2CTCTokenizer(str(path))


def talking(tokenizer: Any) -> Any:
    """A model whose frames have labels of all kinds: blanks, repeated letters, ends of words."""
    model = model_of(vocab_size=len(tokenizer))
    logits = whole(model, sound(40_000, rows=1))[0]
    with torch.no_grad():  # every label is as likely as any other
        model.lm_head.weight.div_(logits.std(0)[:, None])
        model.lm_head.bias.copy_(-(logits - model.lm_head.bias).mean(0) / logits.std(0))
        model.lm_head.bias[1:4] = -1e4  # but special tokens
        model.lm_head.bias[0] += 0.5
    return model


def text_of(tokenizer: Any, model: Any, x: Tensor) -> str:
    return str(tokenizer.decode(whole(model, x)[0].argmax(-1)))


@pytest.mark.thorough
@every_cell("size", [320, 1_999, 40_000, 160_000])
def test_the_text_of_a_stream_is_that_of_the_whole(tokenizer: Any, size: int) -> None:
    model, x = talking(tokenizer), sound(160_000, rows=1)
    live = LiveTranscript(model, tokenizer, chunk=16 * 320)
    parts = [live.feed(x[0, at : at + size], start=at) for at in range(0, x.shape[1], size)]
    expected = text_of(tokenizer, model, x)
    assert "".join([*parts, live.finish()]) == expected
    assert {" ", *"et"} < {*expected}
    assert any(a == b for a, b in itertools.pairwise(expected)), "letters twice, with a blank between them"
    assert len(expected) > 100
    if size < 10_000:
        assert sum(part != "" for part in parts) > 10, "the text comes while the sound runs"


def test_a_stopped_transcript_goes_on(tokenizer: Any, tmp_path: Path) -> None:
    model, x = talking(tokenizer), sound(60_000, rows=1)
    for stop in (0, 100, 20_000, 43_210):
        first, second = (LiveTranscript(model, tokenizer) for _ in range(2))
        before = first.feed(x[:, :stop])
        first.save(tmp_path / "state.safetensors")
        second.load(tmp_path / "state.safetensors")
        assert before + second.feed(x[:, stop:]) + second.finish() == text_of(tokenizer, model, x)
    stream = Stream(model)
    with pytest.raises(StreamError, match="not the state of a stream of this model"):
        stream.load(tmp_path / "state.safetensors")
    stream.save(tmp_path / "stream.safetensors")
    with pytest.raises(StreamError, match="the state of a stream without its transcript"):
        second.load(tmp_path / "stream.safetensors")


def test_utterances_are_normalised_by_what_is_given(tokenizer: Any) -> None:
    model, x = talking(tokenizer), 0.05 * sound(40_000, rows=1) + 0.01
    processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(do_normalize=True), tokenizer)
    with pytest.raises(StreamError, match=r"scales every utterance by its own mean and deviation .* normalise=\(0\.0, 0\.05\)"):
        LiveTranscript(model, processor)
    with pytest.raises(StreamError, match="a standard deviation above 0"):
        LiveTranscript(model, processor, normalise=(0.0, 0.0))
    live = LiveTranscript(model, processor, normalise=(float(x.mean()), float(x.std(correction=0))))
    features = processor(x[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    assert live.feed(x) + live.finish() == text_of(tokenizer, model, features)
    unscaled = SimpleNamespace(tokenizer=tokenizer, feature_extractor=Wav2Vec2FeatureExtractor(do_normalize=False))
    live = LiveTranscript(model, unscaled)
    assert live.feed(x) + live.finish() == text_of(tokenizer, model, x)


def test_a_transcript_is_of_one_row(tokenizer: Any) -> None:
    with pytest.raises(StreamError, match="the piece has 2 rows; make a LiveTranscript for each"):
        LiveTranscript(talking(tokenizer), tokenizer).feed(sound(rows=2))
