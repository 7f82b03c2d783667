"""The input spec of architectures without Long classes, which may read anything."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers

from ...files import GENERIC_CLASS
from .definition import TOWER_CONFIG, tower_field
from .grid_spec import PIXELS, image_example
from .input_spec import USUAL_LENGTH, Example, InputSize, InputSizes, TextSpec, has_processor


def arguments_of(model_class: Any) -> Any:
    """The names of the arguments of a model class's ``forward``."""
    return inspect.signature(model_class.forward).parameters.keys()


def reads_only_text(model_class: Any) -> bool:
    """Whether a model class reads token ids, and no images or sound."""
    others = {"pixel_values", "input_features", "input_values"}
    return model_class.main_input_name == "input_ids" and not others & arguments_of(model_class)


def text_length(config: Any) -> int:
    """Maximum length of a text in tokens. 0 if the config names none, or has no vocabulary (time series)."""
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    return length if isinstance(length, int) and hasattr(text, "vocab_size") else 0


def text_tower(config: Any, names: Iterable[str]) -> str:
    """Name of the tower that reads texts; empty if there is none.

    If the whole config is the text config, it is the first of ``names``, the model's towers, without a sub-config.
    """
    text = config.get_text_config()
    if text is config:
        return next((name for name in names if tower_field(name) not in config.sub_configs), "")
    for field in config.sub_configs:
        if getattr(config, field, None) is text:
            return field.removesuffix(TOWER_CONFIG)
    return ""


class PlainSpec(TextSpec):
    """Input spec of an architecture without Long classes. Sizes are those of its texts, if its config has them."""

    reads, noun, nouns = "plain", "input", "inputs"

    def size(self, config: Any, value: Any) -> InputSize:
        if not value:
            return InputSize(0, 0, "inputs as its class reads them")
        return super().size(config, value)

    def sizes(self, family: Any, config: Any) -> InputSizes:
        longest = text_length(config)
        return self.between(config, min(USUAL_LENGTH, longest), longest)

    def example(self, folder: Path, config: Any, length: int) -> Example:
        """Code for a model card that makes a text, or an image if the folder has a processor. Empty for other
        inputs."""
        name = (config.architectures or [""])[0].removeprefix(GENERIC_CLASS)
        model_class: Any = getattr(transformers, name, None)
        if not hasattr(model_class, "main_input_name"):
            return Example(None)
        if reads_only_text(model_class):
            return super().example(folder, config, length)
        if model_class.main_input_name != PIXELS or not has_processor(folder):
            return Example(None)
        return image_example(None, 480, 640)
