"""Small models of sound and their inputs, for the tests of every family that reads sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import (
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
    WhisperProcessor,
    WhisperTokenizerFast,
)
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from hf_longattn.families import FAMILIES
from hf_longattn.modeling.attach.attention_sites import layer_mechanisms
from scripts.dev.tools.small_models import Shape, small_audio_config
from tests.modeling.grid_models import base_model, tensors
from tests.modeling.grid_models import seeing as seeing_by_mask

__all__ = [
    "BASES",
    "HEADS",
    "base_model",
    "defined",
    "inputs_of",
    "long_model",
    "saved",
    "seeing",
    "small_model",
    "tensors",
]

APART = ("whisper",)
"""Encoders with a decoder; they have tests of their own in tests/families."""
BASES = [name for name in FAMILIES if FAMILIES[name].spec.reads == "sound" and name not in APART]
HEADS = [(base, head) for base in BASES for head in FAMILIES[base].model_classes]
SHAPE = Shape(layers=2, inner=64)
SECONDS = (1.2, 0.7)
"""Duration of each sound of a batch, the longest first."""
THREE_CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": [16] * 3,
    "conv_kernel": [10, 8, 8],
    "conv_stride": [5, 8, 8],
    "num_feat_extract_layers": 3,
}
"""A feature encoder with the usual 50 frames a second, whose lengths a graph traces in less than half the time of
seven convolutions."""


def small_model(base: str, head: str, **values: Any) -> Any:
    """A small model of the base in whose outputs attention shows."""
    torch.manual_seed(0)
    model: Any = FAMILIES[base].base_class(head)(small_audio_config(base, SHAPE, **values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter.requires_grad:
                parameter.mul_(4)
    return model


def saved(base: str, head: str, folder: Path, **values: Any) -> Any:
    """:func:`small_model`, saved in ``folder``."""
    model = small_model(base, head, **values)
    model.save_pretrained(folder)
    return model


def long_model(base: str, head: str, folder: Path, **config: Any) -> Any:
    return FAMILIES[base].model_class(head).from_pretrained(folder, **config).eval()


def inputs_of(
    base: str, seconds: tuple[float, ...] = SECONDS, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Sounds of these durations as one batch with padding after the shorter ones, and its mask where they differ."""
    spec: Any = FAMILIES[base].spec
    lengths = [spec.length(duration) for duration in seconds]
    features = () if spec.features is None else (spec.features(small_audio_config(base, SHAPE)),)
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(length, *features, generator=generator, dtype=dtype) for length in lengths]
    sounds = spec.as_input(nn.utils.rnn.pad_sequence(rows, batch_first=True))
    inputs: dict[str, Tensor] = spec.arguments(sounds, lengths if len({*lengths}) > 1 else None)
    if FAMILIES[base].base_config_class.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.arange(5).expand(len(rows), 5)
    return inputs


def frames_of(base: str, seconds: float) -> int:
    """The frames on which the layers of a small model run."""
    spec: Any = FAMILIES[base].spec
    return spec.frames(small_audio_config(base, SHAPE), spec.length(seconds))


def defined(model: Any, frames: int) -> list[Tensor]:
    """What every layer of a Long model sees, ``(frames, frames)`` bool each."""
    index = torch.arange(frames)
    zero = torch.zeros((), dtype=torch.long)
    masks = [
        mechanism.mask_mod(False, None)(zero, zero, index[:, None], index) for mechanism in layer_mechanisms(model)
    ]
    return [torch.as_tensor(mask).broadcast_to(frames, frames) for mask in masks]


@contextmanager
def seeing(model: nn.Module, *visible: Tensor) -> Iterator[None]:
    """A base whose layer i sees the pairs ``visible[i] (N, N)``; WavLM's attention takes no mask of pairs but by its
    bias."""
    attending = [module for module in model.modules() if isinstance(module, WavLMAttention)]

    def restricted(attend: Callable[..., Any], pairs: Tensor) -> Callable[..., Any]:
        return lambda states, mask, bias: attend(states, mask, bias.masked_fill(~pairs, -1e30))

    if not attending:
        with seeing_by_mask(model, *visible):
            yield
        return
    for layer, module in enumerate(attending):
        attend = module.torch_multi_head_self_attention
        vars(module)["torch_multi_head_self_attention"] = restricted(attend, visible[layer % len(visible)])
    try:
        yield
    finally:
        for module in attending:
            del vars(module)["torch_multi_head_self_attention"]


EVERY_FAMILY = [name for name in FAMILIES if FAMILIES[name].spec.reads == "sound"]
"""Those of :data:`APART` as well."""
RATE = 16_000


def smallest_head(base: str) -> str:
    """The base's model without a head, or that with the shortest name where there is none."""
    return min(FAMILIES[base].model_classes, key=len)


def with_extractor(base: str, head: str, folder: Path, **values: Any) -> Any:
    """:func:`saved`, with a feature extractor of the kind that the base's checkpoints have."""
    model = saved(base, head, folder, **values)
    spec: Any = FAMILIES[base].spec
    mels = None if spec.features is None else spec.features(model.config)
    extractor: Any = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    if base == "whisper":
        extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=model.config.max_source_positions // 50)
    elif base == "wav2vec2-bert":
        extractor = SeamlessM4TFeatureExtractor(feature_size=mels // 2, num_mel_bins=mels // 2, stride=2)
    extractor.save_pretrained(folder)
    return model


def whisper_processor(mels: int, seconds: int) -> WhisperProcessor:
    """A processor with a token for each character; its feature extractor is saved in processor_config.json."""
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    vocabulary = {token: number for number, token in enumerate([*map(chr, range(33, 127)), *special])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    end = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), special[0])
    words = WhisperTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=special[1:], **end)
    return WhisperProcessor(WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds), words)


def recording(file: Path, seconds: float, seed: int = 0) -> Path:
    """A file with noise of this duration."""
    noise = np.random.default_rng(seed).normal(scale=0.1, size=round(seconds * RATE))
    soundfile.write(file, noise.astype(np.float32), RATE)
    return file
