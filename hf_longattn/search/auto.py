"""``--mechanism auto`` of a conversion: stage 1 of a search, on the source that is converted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..configuration import LongAttentionConfig
from ..conversion.config import ConversionConfig
from ..conversion.sources.base import Source
from .budget import BUDGET
from .config import SearchConfig
from .run import Search

REPORTED = ("reason", "loss_change", "budget", "compared_at", "chosen", "uniform", "left_out", "machine")
"""What plan and report keep of a search's JSON form, besides the size of the inputs compared."""


def choose_mechanisms(source: Source, config: ConversionConfig) -> tuple[LongAttentionConfig, dict[str, Any]]:
    """The attention of every layer, chosen by a text, images or recordings, and for plan and report what was chosen and why.

    Args:
        source: the opened checkpoint.
        config: the settings of the conversion.
    Raises:
        OptionError: a budget that nothing meets.
        LengthError: a text that is too short.
        DataError, CheckpointError: no image or recording, or a model without its processor.
    """
    inputs = next((given for given in (config.search_text, config.search_images, config.search_audio) if given is not None), None)
    result = Search(
        source,
        None if inputs is None else Path(inputs),
        SearchConfig(budget=config.budget or BUDGET),
        conversion=dataclasses.replace(config.without_search(), native=False),
    ).run()
    values = {name: value for name, value in result.to_dict().items() if name in REPORTED or name.startswith("compared_")}
    return result.chosen.design.attention(), {**values, result.material: result.text}
