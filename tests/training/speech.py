"""Speech of two letters, each a tone, and a tiny Wav2Vec2 that has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Processor

from hf_longattn import LongWav2Vec2ForCTC
from hf_longattn.training.tasks.ctc import character_tokenizer

RATE = 16_000
PITCHES = {"a": 400, "b": 1200, " ": 0}
SECONDS = 0.05
"""The duration of a letter."""
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (32, 32),
    "conv_kernel": (80, 4),
    "conv_stride": (40, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "activation_dropout": 0.0,
}


def speech(text: str, seed: int = 0) -> np.ndarray[Any, Any]:
    """A tone for each letter, (samples,)."""
    times = np.arange(int(SECONDS * RATE)) / RATE
    sound = np.concatenate([np.sin(2 * np.pi * PITCHES[letter] * times) for letter in text])
    return (0.3 * sound + np.random.default_rng(seed).normal(scale=0.01, size=len(sound))).astype(np.float32)


def sentences(count: int) -> list[str]:
    """Texts of the letters a and b, of one to four words."""
    numbers = np.random.default_rng(0)
    return [" ".join("".join(numbers.choice(["a", "b"], 2)) for _ in range(1 + number % 4)) for number in range(count)]


def spoken(folder: Path, count: int) -> list[dict[str, str]]:
    """Rows of a table in a folder, with paths of recordings that are written there, and their transcripts."""
    rows = [{"audio": f"{number:02}.wav", "text": text} for number, text in enumerate(sentences(count))]
    for number, row in enumerate(rows):
        soundfile.write(folder / row["audio"], speech(row["text"], number), RATE)
    return rows


def speech_checkpoint(folder: Path) -> str:
    """A tiny Wav2Vec2 with random weights that knows the letters a and b."""
    torch.manual_seed(0)
    tokenizer = character_tokenizer(["ab"])
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=True), tokenizer).save_pretrained(folder)
    Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=len(tokenizer), pad_token_id=0, **SHAPE)).save_pretrained(folder)
    return str(folder)


def long_speech_checkpoint(folder: Path, **attention: Any) -> str:
    """The same model with a mechanism, by default a window of 8 frames to either side."""
    short = speech_checkpoint(folder)
    settings = attention or {"mechanism": "window", "left": 8, "right": 8}
    LongWav2Vec2ForCTC.from_pretrained(short, long_attention=settings).save_pretrained(folder)
    return str(folder)
