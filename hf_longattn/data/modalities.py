"""The processors of a multimodal model: a tokenizer, an image processor and a feature extractor, in one folder."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, Speech2TextFeatureExtractor

from hf_longattn.errors import OptionError
from hf_longattn.loading import load_part
from hf_longattn.processor_files import IMAGE_PROCESSOR, PROCESSOR_FILE

LEAST_MEL_BINS, MOST_MEL_BINS = 8, 96
"""With more, filters at low frequencies would be empty."""


@dataclass(frozen=True)
class InputProcessors:
    """Makes the inputs of a model of several modalities; ``None`` = it does not read such inputs.

    tokenizer: of texts.
    image_processor: of images.
    feature_extractor: of audio files.
    """

    tokenizer: Any
    image_processor: Any | None = None
    feature_extractor: Any | None = None

    def save_pretrained(self, folder: str | Path, **settings: Any) -> None:
        """Write all of them into a folder, from which ``AutoTokenizer``, ``AutoImageProcessor`` and ``AutoFeatureExtractor`` load."""
        self.tokenizer.save_pretrained(folder, **settings)
        parts = {"image_processor": self.image_processor, "feature_extractor": self.feature_extractor}
        values = {name: json.loads(part.to_json_string()) for name, part in parts.items() if part is not None}
        if values:
            Path(folder, PROCESSOR_FILE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def new_image_processor(size: tuple[int, int]) -> Any:
    """ViT's image processor for images of a height and a width, as transformers chooses it for the libraries that are installed."""
    fields = {"image_processor_type": "ViTImageProcessor", "size": {"height": size[0], "width": size[1]}}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, IMAGE_PROCESSOR.file).write_text(json.dumps(fields), encoding="utf-8")
        return load_part(AutoImageProcessor, folder, local_files_only=True)


def new_feature_extractor(mel_bins: int) -> Any:
    """A feature extractor of log-mel spectrograms with 100 frames a second, of whole audio files. They are not normalised over the audio
    file, since that would remove a steady sound. The embedder normalises each frame.

    Raises:
        OptionError: a number of mel bins for which there are no filters.
    """
    if not LEAST_MEL_BINS <= mel_bins <= MOST_MEL_BINS:
        raise OptionError(f"--mel-bins must be from {LEAST_MEL_BINS} to {MOST_MEL_BINS}, not {mel_bins}.")
    return Speech2TextFeatureExtractor(feature_size=mel_bins, num_mel_bins=mel_bins, do_ceptral_normalize=False)
