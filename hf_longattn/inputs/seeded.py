"""Random inputs for one forward pass of any class of transformers. The same at every call.

The arguments of ``forward`` tell which inputs a class takes, and its config tells their sizes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from ..errors import CheckpointError
from ..modeling.generic import towers_of

TOKENS, DECODER_TOKENS = 48, 8
FIRST_POSITION = 2
"""Index of the first position in RoBERTa and similar models. Their tables have two more rows than positions."""
SAMPLES, ROWS = 4000, 400
"""Audio samples for Wav2Vec2 and similar models, and rows of a spectrogram for Parakeet."""
GRIDS = ((1, 4, 6), (1, 2, 4))
"""Frames, height and width of images of different sizes, in patches of the language model."""
IMAGE_TOKEN, VIDEO_TOKEN = "image_token_id", "video_token_id"
"""Config fields with the ids of the tokens that stand for images and videos in a text."""


def seeded_inputs(model: Any, tokens: int = TOKENS) -> dict[str, Any]:
    """Random inputs for one forward pass, as the class takes them. Token ids, images, videos, audio features or samples, or a time series.

    Args:
        tokens: number of token ids; fewer if the model has fewer positions.

    Raises:
        CheckpointError: the class takes inputs of an unknown kind.
    """
    taken = inspect.signature(type(model).forward).parameters
    config, random = model.config, torch.Generator().manual_seed(0)
    text = config.get_text_config()
    inputs: dict[str, Any] = {}
    if "pixel_values" in taken:
        inputs |= _seeded_images(model, random)
    if "pixel_values_videos" in taken and "pixel_values" not in taken and hasattr(config, "frames_per_clip"):  # V-JEPA 2
        size = (config.frames_per_clip, config.in_chans, config.crop_size, config.crop_size)
        inputs["pixel_values_videos"] = torch.randn(1, *size, generator=random)
    if "input_features" in taken:
        sound = getattr(config, "encoder_config", config)
        positions = getattr(config, "max_source_positions", None)  # of Whisper; without a table, time comes before the features
        shape: tuple[int, ...] = (ROWS, sound.num_mel_bins) if positions is None else (config.num_mel_bins, 2 * positions)
        inputs["input_features"] = torch.randn(1, *shape, generator=random)
    if "input_values" in taken and "input_ids" not in taken:  # beside input_ids they are an optional audio prompt
        shape = (config.max_length, config.num_mel_bins) if hasattr(config, "frequency_stride") else (SAMPLES,)
        inputs["input_values"] = torch.randn(1, *shape, generator=random)
    if "input_ids" in taken:
        positions = getattr(text, "max_position_embeddings", None)
        length = min(tokens, positions - FIRST_POSITION) if positions else tokens
        inputs["input_ids"] = _ids(text, (1, length), random)
        if getattr(config, IMAGE_TOKEN, None) is not None and "pixel_values" in inputs:
            inputs |= _with_image_tokens(model, inputs)
    if "decoder_input_ids" in taken and config.is_encoder_decoder:
        decoder = getattr(config, "decoder_config", None)
        channels = getattr(decoder, "num_channels", None)  # audio decoders have one code per frame and channel (Dia)
        shape = (1, DECODER_TOKENS) if channels is None else (1, DECODER_TOKENS, channels)
        inputs["decoder_input_ids"] = _ids(text if channels is None else decoder, shape, random)
    if "past_values" in taken:
        decodes = "future_time_features" in taken  # such a class needs future values; others take them only for the loss
        names = taken.keys() if decodes else taken.keys() - {"future_values"}
        inputs |= {name: values for name, values in _series(config, random).items() if name in names}
    if not inputs:
        raise CheckpointError(
            f"A {type(model).__name__} takes inputs of an unknown kind, so the result cannot be verified; add --no-verify."
        )
    return inputs


def _ids(text: Any, shape: tuple[int, ...], random: Generator) -> Tensor:
    """Token ids; the first few of a vocabulary are special tokens."""
    return torch.randint(min(5, text.vocab_size - 1), text.vocab_size, shape, generator=random)


def _seeded_images(model: Any, random: Generator) -> dict[str, Tensor]:
    """Random images of the config's size. Two of different sizes if the class takes images of any size."""
    taken = inspect.signature(type(model).forward).parameters
    vision = getattr(model.config, "vision_config", model.config)
    channels = next(getattr(vision, name) for name in ("num_channels", "in_channels") if hasattr(vision, name))
    if "image_grid_thw" in taken:  # one patch per row; patches that become one token are adjacent
        merge, patch = vision.spatial_merge_size, vision.patch_size
        grids = torch.tensor([(frames, height * merge, width * merge) for frames, height, width in GRIDS])
        patches = int(grids.prod(1).sum())
        pixels = torch.randn(patches, channels * vision.temporal_patch_size * patch * patch, generator=random)
        return {"pixel_values": pixels, "image_grid_thw": grids}
    tower = towers_of(model).get("vision")
    if tower is not None and "image_sizes" in inspect.signature(type(tower).forward).parameters and "image_sizes" in taken:
        sizes = torch.tensor([(height * vision.patch_size, width * vision.patch_size) for _, height, width in GRIDS])
        height, width = sizes.amax(0).tolist()
        return {"pixel_values": torch.randn(len(GRIDS), channels, height, width, generator=random), "image_sizes": sizes}
    size = vision.image_size
    height, width = (size, size) if isinstance(size, int) else size
    frames = (vision.num_frames,) if hasattr(vision, "num_frames") else ()  # of a video
    return {"pixel_values": torch.randn(1, *frames, channels, height, width, generator=random)}


def _with_image_tokens(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``input_ids`` with images in front: a token for each of their features, then one text token."""
    image, taken = getattr(model.config, IMAGE_TOKEN), inspect.signature(type(model).forward).parameters
    with torch.no_grad():
        features = model.get_image_features(**{name: value for name, value in inputs.items() if name != "input_ids"}).pooler_output
    ids = inputs["input_ids"]
    special = torch.tensor([token for token in (image, getattr(model.config, VIDEO_TOKEN, None)) if token is not None])
    ids = torch.where(torch.isin(ids, special), ids.min(), ids)
    images = [part for of_image in features for part in (ids.new_full((1, len(of_image)), image), ids[:, :1])]
    ids = torch.cat([*images, ids], 1)
    return {"input_ids": ids, **({"mm_token_type_ids": (ids == image).int()} if "mm_token_type_ids" in taken else {})}


def _series(config: Any, random: Generator) -> dict[str, Any]:
    """Inputs of time-series models. Past values, mask and features of the past, features of the future, and future values."""
    past = config.context_length + max(getattr(config, "lags_sequence", None) or [0])
    future = config.horizon_length if hasattr(config, "horizon_length") else config.prediction_length
    channels = getattr(config, "num_input_channels", None)
    if channels is None and (inputs := getattr(config, "input_size", 1)) > 1:
        channels = inputs
    values = (1, past) if channels is None else (1, past, channels)
    features = getattr(config, "num_time_features", 0)
    return {
        "past_values": torch.randn(values, generator=random),
        "past_observed_mask": torch.ones(values),
        "past_values_padding": torch.zeros(1, past, dtype=torch.long),
        "past_time_features": torch.randn(1, past, features, generator=random),
        "future_time_features": torch.randn(1, future, features, generator=random),
        "future_values": torch.randn(1, future, *values[2:], generator=random),
        "freq": torch.zeros(1, 1, dtype=torch.long),
    }
