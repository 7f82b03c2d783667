"""``--mechanism auto`` of a conversion: stage 1 of a search, on the source that is converted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..configuration import LongAttentionConfig
from ..conversion.config import ConversionConfig
from ..conversion.model_loading import chosen_device
from ..conversion.sources.base import Source
from .budget import Budget
from .config import PIECES, SearchConfig
from .run import Search
from .scores import QUERIES

BUDGET = "0.25"
"""The share of full attention's time, if none is given."""


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
        SearchConfig(
            model=source.name, text=None if inputs is None else Path(inputs), budget=Budget.read(config.budget or BUDGET), full_layers=None,
            candidates=None, score="mass", objective="loss", trials=0, pieces=PIECES,
            queries=QUERIES, compare_at=None, seed=0, device=str(chosen_device(None)),
            conversion=dataclasses.replace(config.without_search(), native=False),
        ),
        source=source,
    ).run()  # fmt: skip
    seconds = result.full_seconds
    return result.chosen.design.attention(), {
        "reason": result.reason,
        "loss_change": None if result.loss_change is None else result.loss_change.to_dict(),
        "budget": str(result.budget),
        result.material: result.text,
        "compared_at": result.compared_at,
        **{name: value for name, value in result.compared_sizes().items() if name.startswith("compared_")},
        "chosen": result.chosen.to_dict(seconds),
        "uniform": [costed.to_dict(seconds) for costed in result.uniform],
        "left_out": dict(result.reasons),
        "machine": dict(result.machine),
    }
