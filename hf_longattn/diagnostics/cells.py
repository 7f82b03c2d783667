"""Inputs that are cut into cells, one for each place of the features: patches of a picture, stretches of a sound."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from ..engines.common.grid import Grid
from ..errors import BackendError
from ..inputs.sound import audio_family, sound_model
from ..modeling.family.audio_rule import AudioRule
from ..modeling.family.definition import without_head
from ..modeling.family.grid_rule import GridRule
from ..modeling.grids import family_of


class InputCells(Protocol):
    """How the inputs ``(B, …)`` of a model are cut into cells.

    grid: of the features, which are those of the cells after those of prefix tokens.
    axes: of one input, along which cells lie. sides: of a cell, along these.
    tokens: of one input, in the layers.
    """

    grid: Grid
    axes: tuple[int, ...]
    sides: tuple[int, ...]
    tokens: int

    def features(self, values: Tensor) -> Tensor:
        """The last hidden states ``(B, N, D)`` of inputs."""

    def measuring(self) -> contextlib.AbstractContextManager[None]:
        """Within the context, features depend on all of an input."""


class PictureCells:
    """Patches of pictures ``(B, channels, height, width)``; of spectrograms ``(B, 1, mel bins, frames)``, a patch is what lies before the
    next one.

    Raises:
        BackendError: the model is a backbone.
        GridError: a picture whose size does not fit.
    """

    def __init__(self, stack: Any, values: Tensor) -> None:
        if hasattr(stack, "out_features"):
            kind = type(stack).__name__
            raise BackendError(f"A {kind} returns feature maps of several layers; probe {kind.replace('Backbone', 'Model')} instead.")
        rule: Any = family_of(stack, of_pixels=False).grid
        self.rule, self.stack = rule, stack
        grid = rule.of_size(stack.config, tuple(values.shape[2:]))
        self.tokens, self.grid = grid.length, rule.output_grid(stack.config, grid)
        self.axes, self.sides = tuple(range(1, values.dim() - 1)), rule.output_cell(stack.config)

    def features(self, values: Tensor) -> Tensor:
        rows: Tensor = self.rule.rows(self.stack(**self.rule.arguments_for_all(self.stack.config, values)).last_hidden_state, self.grid)
        return rows

    def measuring(self) -> contextlib.AbstractContextManager[None]:
        rule: GridRule = self.rule
        return rule.leaving_nothing_out(self.stack)


class SoundCells:
    """Stretches of sounds, each as long as from a row of the last hidden state to the next. The sounds have no padding."""

    def __init__(self, rule: AudioRule, stack: Any, values: Tensor) -> None:
        self.rule, self.stack = rule, stack
        length = values.shape[rule.time_axis]
        self.tokens = rule.frames(stack.config, length)
        self.grid = Grid((rule.output_rows(stack.config, length),))
        self.axes: tuple[int, ...] = (rule.time_axis - 1,)
        self.sides: tuple[int, ...] = (rule.step(stack.config),)

    def features(self, values: Tensor) -> Tensor:
        states: Tensor = self.stack(**self.rule.arguments(values)).last_hidden_state
        return states

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        yield


def stack_of_layers(model: Any) -> Any:
    """The model of pictures or of sound below its head.

    Raises:
        BackendError: it is not a model of transformers.
    """
    if not isinstance(model, PreTrainedModel):
        raise BackendError(f"A {type(model).__name__} is not a model of transformers; load one with AutoModel.from_pretrained.")
    family = audio_family(model.config)
    return without_head(model) if family is None else sound_model(family, model)


def cells_of(model: Any, values: Tensor) -> InputCells:
    """How the inputs ``values (B, …)`` of a model are cut into cells.

    Raises:
        BackendError: it reads neither pictures nor sound, or is a backbone.
        GridError: a picture whose size does not fit.
    """
    stack, family = stack_of_layers(model), audio_family(model.config)
    if family is None:
        return PictureCells(stack, values)
    assert family.audio is not None
    return SoundCells(family.audio, stack, values)
