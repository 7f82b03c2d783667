"""``--mechanism auto`` of a conversion: stage 1 of a search, on the source that is converted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..configuration import LongAttentionConfig
from ..conversion.config import ConversionConfig
from ..conversion.model_loading import chosen_device
from ..conversion.sources.base import Source
from ..conversion.text import verification_text
from .budget import Budget
from .candidates import read_candidates
from .config import PIECES, SearchConfig
from .run import Search
from .scores import QUERIES

BUDGET = "0.25"
"""The share of full attention's time, if none is given."""


def choose_mechanisms(source: Source, config: ConversionConfig) -> tuple[LongAttentionConfig, dict[str, Any]]:
    """The attention of every layer, and for plan and report what was chosen and why.

    Args:
        source: the opened checkpoint.
        config: the settings of the conversion.
    Raises:
        OptionError: a budget that nothing meets.
        LengthError: a text that is too short.
    """
    plain = dataclasses.replace(config, mechanism=None, budget=None, search_text=None, native=False)
    text = verification_text(None)[0] if config.search_text is None else Path(config.search_text)
    result = Search(
        SearchConfig(
            model=source.name, text=text, budget=Budget.read(config.budget or BUDGET), full_layers=None,
            candidates=tuple(read_candidates(None)), score="mass", objective="loss", trials=0, workers=1, transfer_steps=0, pieces=PIECES,
            queries=QUERIES, compare_at=None, seed=0, device=str(chosen_device(None)), conversion=plain,
        ),
        source=source,
    ).run()  # fmt: skip
    seconds = result.full_seconds
    return result.chosen.design.attention(), {
        "reason": result.reason,
        "loss_change": None if result.loss_change is None else result.loss_change.to_dict(),
        "budget": str(result.budget),
        "text": result.text if config.search_text is not None else "built-in English text",
        "compared_at": result.compared_at,
        "chosen": result.chosen.to_dict(seconds),
        "uniform": [costed.to_dict(seconds) for costed in result.uniform],
        "left_out": dict(result.reasons),
        "machine": dict(result.machine),
    }
