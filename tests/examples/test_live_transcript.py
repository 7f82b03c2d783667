"""The example that prints what is said: text comes from standard input's samples, and a stream that was interrupted goes on."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from examples.live_transcript import main
from tests.streaming.test_model import model_of, whole

SAMPLES = 32_000


class Microphone(io.BytesIO):
    """Gives so many bytes, and is then interrupted from the keyboard."""

    def __init__(self, heard: bytes, until: int) -> None:
        super().__init__(heard)
        self.until = until

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= self.until:
            raise KeyboardInterrupt
        return super().read(size)


@pytest.mark.parametrize("normalises", [False, True])
def test_the_transcript_of_an_interrupted_stream(
    normalises: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vocab.json").write_text(
        json.dumps({word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdef"])})
    )
    tokenizer: Any = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    model, folder = model_of(vocab_size=len(tokenizer)), tmp_path / "asr"
    model.save_pretrained(folder)
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(do_normalize=normalises), tokenizer).save_pretrained(folder)
    samples = (3_000 * torch.randn(SAMPLES)).short().numpy()
    heard = samples.astype("<i2").tobytes()
    monkeypatch.setattr(sys, "argv", ["live_transcript.py", str(folder), "--state", str(tmp_path / "state")])
    for until in (30_000, 2 * SAMPLES + 1):
        start = 0 if until == 30_000 else -(-30_000 // 3_200) * 3_200
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Microphone(heard[start:], until)))
        main()
    sound = torch.from_numpy(samples)[None].float() / 2**15 / ((0.05**2 + 1e-7) ** 0.5 if normalises else 1)
    assert capsys.readouterr().out.strip() == tokenizer.decode(whole(model, sound)[0].argmax(-1)).strip()
    assert (tmp_path / "state").is_file()
