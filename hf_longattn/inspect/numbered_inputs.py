"""Images, spectrograms and sounds for the audit.

The content of every patch or frame has a number, like the token id of a word. Where patches or frames overlap, the number
determines only the pixels or samples before the next patch or frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..engines.common.grid import Grid
from ..errors import LengthError, OptionError
from ..inputs.common.base import NOT_DIAGNOSED, InputKind
from ..inputs.common.sized import SizedKind
from ..inputs.grid import GridKind
from ..inputs.sound import SoundKind
from ..mechanisms import Mechanism
from ..modeling.family.audio_rule import MASK, AudioRule, Convolution
from ..modeling.family.definition import Family
from ..modeling.family.grid_rule import GridRule

SHORTEST, LONGEST = 8, 131_072
"""Minimum and maximum number of tokens in an audit."""
DIFFERENT_PATCHES = 64
"""Number of different random patches in images, and of random segments in sounds."""


class Mixing(NamedTuple):
    """An operation between tokens besides attention. An output depends on ``back`` earlier and ``ahead`` later tokens."""

    name: str
    back: int
    ahead: int

    @property
    def mixes(self) -> bool:
        """Whether an output depends on other tokens than its own."""
        return self.back + self.ahead > 0


class AuditInputs(ABC):
    """Inputs of a model with one patch or frame per token.

    argument: name of the argument of ``forward`` for these inputs.
    length: number of tokens. unit: what they are called, "tokens" or "frames".
    numbers: numbers of all different patches or frames.
    masks: names of other inputs that a graph may have.
    overlap: number of previous patches that include pixels of a patch, for each axis.
    prefix: ``(N,)`` bool, True for tokens without pixels, such as class tokens; ``None`` without any.
    before, inside: operations between tokens before the first layer, and after the attention of every layer; ``None`` if they are unknown.
    grid: grid of the tokens.
    mixes: whether layers mix tokens by other operations, too, so that attention modules are measured instead of layers.
    """

    argument: str
    masks: Sequence[str] = ()
    length: int
    numbers: Tensor
    grid: Any = None
    overlap: Sequence[int] = ()
    prefix: Tensor | None = None
    before: Sequence[Mixing] | None = ()
    inside: Sequence[Mixing] | None = ()
    mixes: bool = False
    unit: str = "tokens"

    @abstractmethod
    def inputs(self, numbers: Tensor) -> dict[str, Tensor]:
        """The arguments of ``forward`` for the patches or frames with ``numbers (N,)``."""

    def with_mask(self) -> AuditInputs:
        """The same inputs with a mask of ones, if models take one."""
        return self

    def binds(self, mechanism: Mechanism) -> bool:
        """Whether a mechanism depends on the ``grid``."""
        return False


class AuditImages(AuditInputs):
    """Images of the model's default size, from the numbers of their patches."""

    def __init__(self, rule: GridRule, config: Any) -> None:
        self.rule, self.config, self.argument = rule, config, "pixel_values"
        self.size = rule.sizes(config)[1]
        self.grid: Grid = rule.of_size(config, self.size)
        self.length = self.grid.length
        self.step, self.channels = rule.patch(config), config.num_channels
        self.overlap = tuple(-(-side // step) - 1 for side, step in zip(rule.patch(config), self.step, strict=True))
        generator = torch.Generator().manual_seed(0)
        self.values = torch.randn(DIFFERENT_PATCHES, self.channels, *self.step, generator=generator)
        self.numbers = torch.arange(DIFFERENT_PATCHES)
        self.prefix = torch.arange(self.length) < self.grid.prefix

    @classmethod
    def of(cls, family: Family, config: Any, length: int | None, default: int) -> AuditImages:
        """The images of a model with mechanisms.

        Raises:
            LengthError: ``length`` is not the number of tokens of the model's default size.
            OptionError: the model has no mechanisms, takes patches that a processor cuts, or has layers on different grids.
        """
        rule: Any = family.rule
        if not (getattr(config, "base_model_type", None) or getattr(config, "long_attention", None)):
            raise OptionError(f"A {config.model_type!r} model has no mechanisms to audit; convert it first (longattn convert).")
        if rule.shapes is not None:
            raise OptionError(
                f"A {config.model_type!r} model takes patches that its processor cuts, which are not audited; look at "
                "hf_longattn.explain(model, inputs) instead."
            )
        images = cls(rule, config)
        if length not in (None, images.length):
            size = rule.describe(images.size)
            raise LengthError(f"A model of images is audited at the size that it was made for, {size}; leave --length out.")
        return images

    def binds(self, mechanism: Mechanism) -> bool:
        return mechanism.traits.needs_grid or mechanism.options.order is not None

    def inputs(self, numbers: Tensor) -> dict[str, Tensor]:
        """The model's input for the patches with ``numbers (N,)``. Numbers of the prefix are ignored."""
        rank = self.grid.rank
        patches = self.values[numbers[self.grid.prefix :]].view(*self.grid.sizes, self.channels, *self.step)
        axes = [side for axis in range(rank) for side in (axis, rank + 1 + axis)]
        sides = [cells * step for cells, step in zip(self.grid.sizes, self.step, strict=True)]
        pixels = patches.permute(rank, *axes).reshape(1, self.channels, *sides)
        rest = [after - before for before, after in zip(sides, self.size, strict=True)]  # pixels that only the last patches include
        padding = [side for after in reversed(rest) for side in (0, after)]
        return {self.rule.input: self.rule.arguments(self.config, nn.functional.pad(pixels, padding))[self.rule.input]}


class AuditSounds(AuditInputs):
    """Sounds of ``frames`` frames, from the numbers of segments.

    A segment has as many samples, or rows of features, as a frame step.
    """

    masks = (MASK,)
    mixes = True
    unit = "frames"

    def __init__(self, family: Family, config: Any, frames: int, *, masked: bool = False) -> None:
        rule: Any = family.rule
        self.rule: AudioRule = rule
        self.family, self.config, self.length, self.argument, self.masked = family, config, frames, rule.input, masked
        step = rule.length_of(config, frames + 2) - rule.length_of(config, frames + 1)
        samples = frames * step
        self.samples = samples if rule.frames(config, samples) == frames else rule.length_of(config, frames)
        shape = (step,) if rule.features is None else (step, rule.features(config))
        self.values = torch.randn(DIFFERENT_PATCHES, *shape, generator=torch.Generator().manual_seed(0))
        self.numbers = torch.arange(DIFFERENT_PATCHES)
        self.before = self.inside = None  # unless the family declares them

    @classmethod
    def of(cls, family: Family, config: Any, length: int | None, default: int) -> AuditSounds:
        """The sounds of a model, long or not.

        Raises:
            LengthError: the model does not support this number of frames.
        """
        rule: Any = family.rule
        usual = min(LONGEST, default, rule.most_tokens(family, config))
        frames = usual if length is None else length
        if not SHORTEST <= frames <= LONGEST:
            raise LengthError(f"An audit takes {SHORTEST} to {LONGEST:,} frames, not {frames:,}; give --length {usual}.")
        is_long = bool(getattr(config, "base_model_type", None))
        if not (is_long or rule.base_reads(config, rule.seconds(rule.length_of(config, frames)))):
            frames = rule.frames(config, rule.length(rule.durations(config)[0]))
            if length not in (None, frames):
                raise LengthError(f"A {config.model_type!r} reads sounds of {frames:,} frames, not of {length:,}; leave --length out.")
        return cls(family, config, frames)

    def with_mask(self) -> AuditSounds:
        """The same sounds with a mask of ones."""
        return AuditSounds(self.family, self.config, self.length, masked=True)

    def inputs(self, numbers: Tensor) -> dict[str, Tensor]:
        """The model's input for the segments with ``numbers (N,)``, padded with silence for the last frame."""
        sound = self.values[numbers].flatten(0, 1)[: self.samples]
        sound = torch.cat([sound, sound.new_zeros(self.samples - len(sound), *sound.shape[1:])])[None]
        arguments = self.rule.arguments(self.rule.as_input(sound), [self.samples] if self.masked else None)
        if not self.masked:
            arguments.pop(MASK, None)
        return arguments


def _mixing(name: str, convolutions: Sequence[Convolution]) -> Mixing:
    """The receptive field of consecutive convolutions, in frames of the last one."""
    left, kernel, stride = 0, 1, 1
    for convolution in convolutions:
        left, kernel = left + convolution.left * stride, kernel + (convolution.kernel - 1) * stride
        stride *= convolution.stride
    return Mixing(name, -(-left // stride), (kernel - 1 - left) // stride)


@singledispatch
def inputs_of_kind(kind: InputKind, config: Any, length: int | None, default: int) -> AuditInputs | None:
    """The inputs of ``length`` tokens for the audit of a model, by its kind of input; ``None`` for texts.

    Raises:
        LengthError, OptionError: the length does not fit the model, or the model cannot be audited.
    """
    return None


@inputs_of_kind.register(SizedKind)
def _not_audited(kind: SizedKind, config: Any, length: int | None, default: int) -> AuditInputs | None:
    raise OptionError(f"A {config.model_type!r} model reads {kind.nouns}, which are not audited; {NOT_DIAGNOSED}")


inputs_of_kind.register(GridKind, lambda kind, config, length, default: AuditImages.of(kind.family, config, length, default))
inputs_of_kind.register(SoundKind, lambda kind, config, length, default: AuditSounds.of(kind.family, config, length, default))
