"""Random inputs for a model of any architecture. They are the same at every call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from ..errors import CheckpointError
from ..modeling.family.plain_spec import arguments_of
from ..modeling.generic import towers_of
from .running import DECODER_INPUT

TOKENS, DECODER_TOKENS = 48, 8
"""Number of tokens of a text, and of a decoder's text."""
SAMPLES, ROWS = 4000, 400
"""Audio samples for Wav2Vec2 and similar models, and rows of a spectrogram for Parakeet."""


GRIDS = ((1, 4, 6), (1, 2, 4))
"""Frames, height and width of two images of different sizes, in tokens of the language model."""


def seeded_inputs(model: Any, tokens: int = TOKENS) -> dict[str, Any]:
    """The arguments of one forward pass, with random values, for the inputs that the model's class takes.

    These may be texts, images, videos, sounds and time series. A text has at most ``tokens`` tokens.
    """
    taken = arguments_of(type(model))  # names of the arguments of `forward`
    config = model.config
    random = torch.Generator().manual_seed(0)
    text = config.get_text_config()
    inputs: dict[str, Any] = {}
    if "pixel_values" in taken:
        inputs |= _images(model, random)
    elif "pixel_values_videos" in taken and hasattr(config, "frames_per_clip"):  # V-JEPA 2
        inputs["pixel_values_videos"] = _normal(
            random, config.frames_per_clip, config.in_chans, config.crop_size, config.crop_size
        )
    if "input_features" in taken:
        sound = getattr(config, "encoder_config", config)
        if hasattr(config, "max_source_positions"):  # Whisper; others have the time axis first
            inputs["input_features"] = _normal(random, config.num_mel_bins, 2 * config.max_source_positions)
        else:
            inputs["input_features"] = _normal(random, ROWS, sound.num_mel_bins)
    if "input_values" in taken and "input_ids" not in taken:  # with input_ids, this is an optional audio prompt
        if hasattr(config, "frequency_stride"):  # a spectrogram
            inputs["input_values"] = _normal(random, config.max_length, config.num_mel_bins)
        else:
            inputs["input_values"] = _normal(random, SAMPLES)
    if "input_ids" in taken:
        # position tables of RoBERTa and similar models have two more rows than positions
        rows = getattr(text, "max_position_embeddings", None) or tokens + 2
        inputs["input_ids"] = _ids(text, random, min(tokens, rows - 2))
        if getattr(config, "image_token_id", None) is not None and "pixel_values" in inputs:
            inputs |= _ids_with_images(model, inputs)
    if DECODER_INPUT in taken and config.is_encoder_decoder:
        decoder: Any = getattr(config, "decoder_config", None)
        if hasattr(decoder, "num_channels"):  # audio decoders have one code per frame and channel (Dia)
            inputs[DECODER_INPUT] = _ids(decoder, random, DECODER_TOKENS, decoder.num_channels)
        else:
            inputs[DECODER_INPUT] = _ids(text, random, DECODER_TOKENS)
    if "past_values" in taken:
        names = set(taken)
        if "future_time_features" not in taken:  # such a class needs future values only for its loss
            names.discard("future_values")
        inputs |= {name: values for name, values in _series(config, random).items() if name in names}
    if not inputs:
        raise CheckpointError(
            f"A {type(model).__name__} takes unknown inputs, so the result cannot be verified; add --no-verify."
        )
    return inputs


def _ids_with_images(model: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """``input_ids (1, N)`` of the text, with the images before it.

    Each image has one placeholder token per image feature, and one token of the text after it. ``mm_token_type_ids``
    mark the placeholders, if the class takes them.
    """
    config, ids = model.config, inputs["input_ids"]
    with torch.no_grad():
        features = model.get_image_features(
            **{name: value for name, value in inputs.items() if name != "input_ids"}
        ).pooler_output
    # the random text must not contain placeholders
    for placeholder in (config.image_token_id, getattr(config, "video_token_id", None)):
        if placeholder is not None:
            ids = torch.where(ids == placeholder, inputs["input_ids"].min(), ids)
    before_text = []
    for image_features in features:
        before_text += [ids.new_full((1, len(image_features)), config.image_token_id), ids[:, :1]]
    with_images = torch.cat([*before_text, ids], 1)
    if "mm_token_type_ids" not in arguments_of(type(model)):
        return {"input_ids": with_images}
    return {"input_ids": with_images, "mm_token_type_ids": (with_images == config.image_token_id).int()}


def _images(model: Any, random: Generator) -> dict[str, Tensor]:
    """A random image (or video) of the config's size. A class that takes images of any size gets two images."""
    taken = arguments_of(type(model))
    vision = getattr(model.config, "vision_config", model.config)
    channels = next(getattr(vision, name) for name in ("num_channels", "in_channels") if hasattr(vision, name))
    if "image_grid_thw" in taken:  # the patches of all images are the rows of pixel_values
        merge, patch = vision.spatial_merge_size, vision.patch_size
        grids = torch.tensor([(frames, height * merge, width * merge) for frames, height, width in GRIDS])
        pixels = torch.randn(
            int(grids.prod(1).sum()), channels * vision.temporal_patch_size * patch * patch, generator=random
        )
        return {"pixel_values": pixels, "image_grid_thw": grids}
    tower = towers_of(model).get("vision")
    if tower is not None and "image_sizes" in arguments_of(type(tower)) & taken:
        sizes = torch.tensor([(height * vision.patch_size, width * vision.patch_size) for _, height, width in GRIDS])
        return {
            "pixel_values": torch.randn(len(GRIDS), channels, *sizes.amax(0).tolist(), generator=random),
            "image_sizes": sizes,
        }
    sides = vision.image_size
    if isinstance(sides, int):
        sides = (sides, sides)
    frames = (vision.num_frames,) if hasattr(vision, "num_frames") else ()  # of a video
    return {"pixel_values": _normal(random, *frames, channels, *sides)}


def _series(config: Any, random: Generator) -> dict[str, Any]:
    """All inputs that a time-series model may take: the values, masks and time features of past and future steps."""
    past = config.context_length + max(getattr(config, "lags_sequence", None) or [0])
    future = config.horizon_length if hasattr(config, "horizon_length") else config.prediction_length
    channels = getattr(config, "num_input_channels", None)
    input_size = getattr(config, "input_size", 1)
    if channels is None and input_size > 1:
        channels = input_size
    series = () if channels is None else (channels,)  # the last dimension of values, if there are several series
    features = getattr(config, "num_time_features", 0)
    return {
        "past_values": _normal(random, past, *series),
        "past_observed_mask": torch.ones(1, past, *series),
        "past_values_padding": torch.zeros(1, past, dtype=torch.long),
        "past_time_features": _normal(random, past, features),
        "future_time_features": _normal(random, future, features),
        "future_values": _normal(random, future, *series),
        "freq": torch.zeros(1, 1, dtype=torch.long),
    }


def _normal(random: Generator, *shape: int) -> Tensor:
    """Normally distributed numbers ``(1, *shape)``."""
    return torch.randn(1, *shape, generator=random)


def _ids(text: Any, random: Generator, *shape: int) -> Tensor:
    """Token ids ``(1, *shape)`` of a config's vocabulary, without its first five, which are often special tokens."""
    return torch.randint(min(5, text.vocab_size - 1), text.vocab_size, (1, *shape), generator=random)
