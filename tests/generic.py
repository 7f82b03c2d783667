"""Loads folders of `longattn convert --generic` by the class that their config names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from hf_longattn.modeling.generic import generic_model_class


def load_generic(folder: Path) -> Any:
    """The model that an Auto class would load."""
    config = transformers.AutoConfig.from_pretrained(folder)
    return generic_model_class(getattr(transformers, config.architectures[0])).from_pretrained(folder, config=config)
