"""The lengths of source and result where a model reads time series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import LengthError
from ..modeling.family.definition import PositionTable

SERIES_INPUT = "past_values"
"""The main input of transformers' models of time series."""


def series_table(config: Any) -> PositionTable | None:
    """The position table of a model of time series with this config, of a row for each patch, which can be longer; ``None`` without one."""
    if config.model_type != "patchtst":
        return None
    learned = config.positional_encoding_type == "random"
    return PositionTable(r"positional_encoder\.position_enc$", offset=int(learned and config.use_cls_token), learned=learned)


@dataclass(frozen=True)
class SeriesLength:
    """The steps of a time series that a model looks at, and the patches of steps that are the tokens of its layers."""

    steps: int
    tokens: int

    @classmethod
    def of(cls, config: Any, steps: int) -> SeriesLength:
        """For a model with this config; one without patches has a token for each step."""
        patch = getattr(config, "patch_length", 1)
        return cls(steps, (steps - patch) // getattr(config, "patch_stride", patch) + 1)


@dataclass(frozen=True)
class SeriesPlan:
    """The longest series of source and result."""

    old: SeriesLength
    new: SeriesLength

    @classmethod
    def of(cls, model_class: Any, config: Any, steps: int | None) -> SeriesPlan | None:
        """The lengths for a result that looks at ``steps`` steps, by default those of the source; ``None`` for models of other inputs.

        Raises:
            LengthError: fewer steps than the source's, or a part of a patch.
        """
        trained = getattr(config, "context_length", None)
        if model_class.main_input_name != SERIES_INPUT or not isinstance(trained, int):
            return None
        old, new = SeriesLength.of(config, trained), SeriesLength.of(config, trained if steps is None else steps)
        if new.steps < old.steps:
            raise LengthError(
                f"The source looks at {old.steps:,} steps and conversion only extends it: a maximum length of {new.steps:,} is too small, "
                f"give at least {old.steps}."
            )
        if (new.steps - old.steps) % (patch := getattr(config, "patch_length", 1)):
            nearest = old.steps + -(-(new.steps - old.steps) // patch) * patch
            raise LengthError(f"The source reads patches of {patch} steps, and {new.steps:,} is not a multiple; give {nearest}.")
        return cls(old, new)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {"old_context_length": self.old.steps, "new_context_length": self.new.steps}
