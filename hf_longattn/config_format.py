"""The format version of a long model's ``config.json``, and migrations from earlier formats.

``long_attention_format`` counts the versions of the fields that this package adds: ``long_attention``, with the names, options and defaults
of mechanisms, and the fields next to it. An option that is not written has its mechanism's default, so a changed default is a new format,
too. Files without the number have format 1.

A change of the format raises :data:`FORMAT` by one and adds a migration, a function of one config's values:

    def _window_in_tokens(values: dict[str, Any]) -> dict[str, Any]: ...

    FORMAT = 2
    MIGRATIONS = {1: _window_in_tokens}
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from .errors import CheckpointError
from .naming import LOGGER

FORMAT = 1
FIELD = "long_attention_format"
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Format -> function that converts a config's values to the next format."""

logger = logging.getLogger(LOGGER)


def in_current_format(values: Mapping[str, Any], inherited: int = 1) -> dict[str, Any]:
    """Convert the values of a ``config.json`` to the current format. A plain model's values are unchanged.

    Args:
        values: of the file, or of a config as a dictionary. Nested configs (towers) are converted, too.
        inherited: the format of a nested config that does not state one.

    Raises:
        CheckpointError: the format is newer than this package, or not a positive whole number.
    """
    written = values.get(FIELD, inherited)
    if type(written) is not int or written < 1:
        raise CheckpointError(
            f"config.json says {FIELD}={written!r}, which must be a whole number from 1 to {FORMAT}; convert the model again."
        )
    if written > FORMAT:
        raise CheckpointError(
            f"config.json says {FIELD}={written}, but this version of hf_longattn reads formats up to {FORMAT}; type "
            "pip install . in a newer clone of its repository."
        )
    result = {
        name: in_current_format(part, written) if isinstance(part, Mapping) and not str(name).endswith("long_attention") else part
        for name, part in values.items()
    }
    if FIELD not in values and "long_attention" not in values:
        return result
    if written < FORMAT:
        logger.warning(f"config.json is of {FIELD} {written}, and is read as {FORMAT}; save_pretrained writes it so.")
    for number in range(written, FORMAT):
        result = MIGRATIONS[number](result)
    return {**result, FIELD: FORMAT}
