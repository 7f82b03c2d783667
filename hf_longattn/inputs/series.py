"""The lengths of source and result where a model reads time series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import LengthError
from ..modeling.family.definition import PositionTable
from ..positions import extend_table
from .common.base import StackLength
from .text import text_length

SERIES_INPUT = "past_values"
"""The main input of transformers' models of time series."""


def series_table(config: Any) -> PositionTable | None:
    """The position table of a model of time series with this config, of a row for each patch, which can be longer; ``None`` without one."""
    if config.model_type != "patchtst":
        return None
    learned = config.positional_encoding_type == "random"
    return PositionTable(r"positional_encoder\.position_enc$", offset=int(learned and config.use_cls_token), learned=learned)


def patches_of(config: Any, steps: int) -> int:
    """The tokens of a series of so many steps; a model without patches has one for each step."""
    patch = getattr(config, "patch_length", 1)
    return int((steps - patch) // getattr(config, "patch_stride", patch) + 1)


@dataclass(frozen=True)
class PlainLengths(StackLength):
    """The longest input of source and result in a plain class, in tokens; 0 if the config does not say.

    steps: of time series, the same in steps.
    table: the position table of a model of time series.
    """

    steps: StackLength | None = None
    table: PositionTable | None = None

    @classmethod
    def of(cls, model_class: Any, config: Any, asked: int | None) -> PlainLengths:
        """The lengths for a result that reads as much as a user asks for, in tokens or steps; by default what the source reads.

        Raises:
            LengthError: fewer steps than the source's, or a part of a patch.
        """
        trained = getattr(config, "context_length", None)
        if model_class.main_input_name != SERIES_INPUT or not isinstance(trained, int):
            old = text_length(config)
            return cls(old, old if asked is None else int(asked))
        new = trained if asked is None else asked
        if new < trained:
            raise LengthError(
                f"The source looks at {trained:,} steps and conversion only extends it: a maximum length of {new:,} is too small, give at "
                f"least {trained}."
            )
        if (new - trained) % (patch := getattr(config, "patch_length", 1)):
            nearest = trained + -(-(new - trained) // patch) * patch
            raise LengthError(f"The source reads patches of {patch} steps, and {new:,} is not a multiple; give {nearest}.")
        return cls(patches_of(config, trained), patches_of(config, new), StackLength(trained, new), series_table(config))

    @property
    def lengthened(self) -> bool:
        """Whether the class reads inputs of one length alone, and the result longer ones."""
        return self.table is not None and self.steps is not None and self.steps.grows

    def write(self, config: Any) -> None:
        """Set the fields of the result's config that say the length, except those of positions."""
        if self.steps is not None:
            config.context_length = self.steps.new

    def tables(self, source: Any, skeleton: Any) -> dict[str, tuple[int, int]]:
        """Name of a position table that is extended -> (special rows, rows of the result).

        Raises:
            LengthError: another tensor is made for the source's number of patches.
        """
        table = self.table
        if table is None or self.steps is None:
            return {}
        shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
        for name, header in source.tensors.items():
            if self.new != self.old and not table.matches(name) and shapes.get(name, header.shape) != header.shape:
                raise LengthError(
                    f"The tensor {name!r} is made for the {self.old} patches of {self.steps.old} steps: a {type(skeleton).__name__} "
                    "without pooling_type in its config reads all of them at once. Leave --max-length out, or train one with "
                    "pooling_type='mean'."
                )
        return {name: (table.offset_rows(skeleton.config), shape[0]) for name, shape in shapes.items() if table.matches(name)}

    def at_new_length(self, source: Any, positions: str) -> Any:
        """The source's class for series of the result's length, with its weights. A position table that the class computes is its own; a
        learned one is extended as planned."""
        assert self.table is not None
        assert self.steps is not None
        config = type(source.config).from_dict({**source.config.to_dict(), "context_length": self.steps.new})
        model, table = type(source)(config).to(next(source.parameters()).dtype).eval(), self.table
        rows = {name: len(values) for name, values in model.state_dict().items() if table.matches(name)}
        weights = {name: values for name, values in source.state_dict().items() if table.learned or name not in rows}
        offset = table.offset_rows(config)
        weights |= {
            name: extend_table(values, rows[name], offset=offset, strategy=positions) for name, values in weights.items() if name in rows
        }
        model.load_state_dict(weights, strict=table.learned)
        return model

    @property
    def report(self) -> dict[str, int]:
        """The lengths that tokens do not say, JSON-serialisable."""
        return {} if self.steps is None else {"old_context_length": self.steps.old, "new_context_length": self.steps.new}
