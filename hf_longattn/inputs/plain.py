"""Inputs of a class of transformers without a Long class: whatever its ``forward`` takes. Their lengths, also of time series."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from ..errors import LengthError, OptionError
from ..files import GENERIC_CLASS, IMAGE_PROCESSOR, ProcessorFile, named_class
from ..modeling.family.definition import PositionTable
from ..positions.tables import extend_table
from .common.base import SETTINGS, StackLength, register_kind
from .common.examples import IMAGE_READER, PILLOW, Example, image_lines
from .text import TextKind, VerificationText, text_length

OTHER_INPUTS = {"pixel_values", "input_features", "input_values"}
"""Arguments of ``forward`` for images and sound."""


def reads_only_text(model_class: Any) -> bool:
    """Whether a class of transformers reads token ids and neither images nor sound."""
    taken = inspect.signature(model_class.forward).parameters.keys()
    return model_class.main_input_name == "input_ids" and not OTHER_INPUTS & taken


@register_kind
class PlainKind(TextKind):
    """The inputs of a plain class with mechanisms. Only the length of texts and series can change."""

    settings = ("max_length", "verify_text")

    def check_settings(self, source: str, request: Any) -> None:
        """Raise :class:`OptionError` for the settings of decoders and of other sizes."""
        for name in SETTINGS:
            if getattr(request, name, None) is not None and name not in self.settings:
                flag = name.replace("long_attention", "mechanism").replace("_", "-")
                raise OptionError(f"--generic only replaces the attention of {source}, to which --{flag} does not apply; leave it out.")

    def check_parts(self, source: str, request: Any) -> None:
        """Accept mechanisms for towers, too."""

    def verification_inputs(self, plan: Any, text: tuple[str, str], recording: str | Path | None = None) -> VerificationText:
        inputs = super().verification_inputs(plan, text, recording)
        inputs.described = "seeded inputs"
        return inputs

    def training_step(self, plan: Any) -> dict[str, Any] | None:
        trained_here = plan.new_length and reads_only_text(getattr(transformers, plan.architecture.source_class))
        return None if trained_here else {"advice": "fine-tune {model} with transformers' Trainer"}

    def example(self, folder: Path, config: Mapping[str, Any], length: int) -> Example:
        name = named_class(config, "").removeprefix(GENERIC_CLASS)
        model_class: Any = getattr(transformers, name) if name in self.family.model_classes else None
        if model_class is not None and reads_only_text(model_class):
            return super().example(folder, config, length)
        if model_class is None or model_class.main_input_name != "pixel_values" or ProcessorFile.find(folder, IMAGE_PROCESSOR) is None:
            return Example(None)
        return Example(None, IMAGE_READER, image_lines(480, 640, processed=True), (PILLOW,))


# Lengths of source and result in a ``--generic`` conversion.

SERIES_INPUT = "past_values"
"""The main input of transformers' models of time series."""


def patches_of(config: Any, steps: int) -> int:
    """Number of tokens for a series of ``steps`` steps. One per patch, or one per step in a model without patches."""
    patch = getattr(config, "patch_length", 1)
    return int((steps - patch) // getattr(config, "patch_stride", patch) + 1)


@dataclass(frozen=True)
class PlainLengths(StackLength):
    """Maximum input of source and result of a ``--generic`` conversion, in tokens. 0 if the config does not say.

    steps: the maximum input in time steps, for time series.
    table: the position table of a time-series model.
    """

    steps: StackLength | None = None
    table: PositionTable | None = None

    @classmethod
    def of(cls, model_class: Any, config: Any, asked: int | None) -> PlainLengths:
        """The lengths for a result of length ``asked``. In steps for time series, otherwise in tokens. Default: the source's length.

        Raises:
            LengthError: ``asked`` is below the source's number of steps, or does not add whole patches.
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
        table = None
        if config.model_type == "patchtst":
            learned = config.positional_encoding_type == "random"
            offset = int(learned and config.use_cls_token)
            table = PositionTable(r"positional_encoder\.position_enc$", offset=offset, learned=learned)
        return cls(patches_of(config, trained), patches_of(config, new), StackLength(trained, new), table)

    @property
    def lengthened(self) -> bool:
        """Whether the class reads only one length, and the result's is greater than the source's."""
        return self.table is not None and self.steps is not None and self.steps.grows

    def write(self, config: Any) -> None:
        """Set ``context_length`` of the result's config, for time series."""
        if self.steps is not None:
            config.context_length = self.steps.new

    def tables(self, source: Any, skeleton: Any) -> dict[str, tuple[int, int]]:
        """Position tables to extend, by name. (number of rows before the positions, total rows in the result) of each.

        Raises:
            LengthError: the shape of another tensor depends on the number of patches.
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
        """A model of the source's class and weights for series of the result's length. A learned position table is extended by the rule
        ``positions``; otherwise the class computes the table."""
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
        """Lengths in time steps for a report, JSON-serialisable; empty for other models."""
        return {} if self.steps is None else {"old_context_length": self.steps.old, "new_context_length": self.steps.new}
