"""Architectures of transformers without a family here, chosen so that adding a family breaks no test that needs one of
these.

Every text architecture that could be used has a family. Tests of models without one hide it, by the fixture
``families_hidden``.
"""

from __future__ import annotations

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from hf_longattn.modeling.family.definition import FAMILIES

HIDDEN = ("ernie", "arcee", "biogpt", "ministral", "qwen2_moe", "blenderbot")
"""Model types of texts, one of each kind, whose families ``families_hidden`` hides."""


def unsupported(*model_types: str) -> str:
    """The start of the class names of the first of ``model_types`` that has no family: ``"ernie"`` -> ``"Ernie"``."""
    model_type = next((name for name in model_types if name in HIDDEN or name not in FAMILIES), None)
    assert model_type is not None, (
        f"{', '.join(model_types)} all have families; name a further model type in {__file__}."
    )
    return CONFIG_MAPPING_NAMES[model_type].removesuffix("Config")


ENCODER = unsupported("ernie")
"""Has BERT's config and learned positions."""
ROTARY = unsupported("arcee")
"""Has Llama's config and rotary positions."""
DECODER = unsupported("biogpt")
"""A decoder with the usual names of sizes."""
SLIDING = unsupported("ministral")
"""Has rotary positions and windows of its own."""
WITHOUT_WINDOWS = unsupported("qwen2_moe")
"""Has windows of its own that are off by default; its config then gives them a width of 0."""
IMAGES = unsupported("yolos")
"""Has ViT's config, whose image_size has two numbers, and the head ForObjectDetection."""
TEXT_AND_IMAGES = unsupported("clip", "metaclip_2")
"""Has an encoder of texts and one of images, with CLIP's configs."""
SPEECH = unsupported("moonshine")
"""Reads samples of sound: an encoder and a decoder, with their sizes under names of their own."""
SPECTROGRAMS = unsupported("qwen2_audio_encoder", "audioflamingo3_encoder")
"""Has the config of Whisper's encoder, and is a class itself."""
ENCODER_DECODER = unsupported("blenderbot")
"""Has an encoder and a decoder with BART's names of sizes."""
OWN_ATTENTION = unsupported("bloom", "codegen", "mpt")
"""Does not take its attention from transformers' AttentionInterface."""
SERIES = unsupported("timesfm2_5")
"""Reads time series in patches, with rotary positions."""
CHANNELS = unsupported("patchtst")
"""Reads time series of several channels in patches, with a table of positions."""
LAGS = unsupported("time_series_transformer", "informer")
"""Reads time series with the features of each step, by an encoder and a decoder."""
SYNTHESIS = unsupported("csm")
"""Writes speech: a decoder of frames, one of the codebooks of a frame, and a codec of sound."""
