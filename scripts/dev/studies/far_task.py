"""What studies of far-apart evidence share: inputs with labels, a small model that learns short ones, and systems that read long ones."""

from __future__ import annotations

import abc
import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_longattn.families import FAMILIES

Labelled = Literal["class", "tokens", "both"]
Read = Callable[[nn.Module, Tensor, Labelled], Tensor]


class Shown(NamedTuple):
    """Which inputs are drawn.

    size: theirs, in the task's unit.
    held_out: whether their signs, or voices, are those that training inputs do not have.
    control: whether the evidence is left out, so that no model can be better than chance.
    easy: the share of inputs of an easier form of the task, by which a model starts to learn it.
    hints: whether tokens have labels as well, where a small model starts to learn from them.
    """

    size: int
    held_out: bool = False
    control: bool = False
    easy: float = 0.0
    hints: bool = False


class System(NamedTuple):
    """A way to read large inputs.

    name: its row in the table.
    load: loads the model of a folder for inputs of a size.
    read: the logits of inputs, ``(B, classes)``, or of tokens, ``(B, tokens or 1 + tokens, classes)``.
    check: compares the model with the small one of a folder before training, and says what was compared.
    """

    name: str
    load: Callable[[Path, int], nn.Module]
    read: Read
    check: Callable[[Path, nn.Module], str] | None = None


class Task(abc.ABC):
    """Inputs and their labels, the small model that learns them, and the systems that read larger ones."""

    name: ClassVar[str]
    classes: ClassVar[int]
    item: ClassVar[str]
    """An input, in a word."""
    unit: ClassVar[str]
    """Of sizes."""
    making: ClassVar[str]
    """What a program does that makes an input."""
    labelled: ClassVar[Labelled] = "class"
    """What has labels: the whole input, its tokens, or both, in this order."""
    hinted: ClassVar[bool] = False
    """Whether a small model starts with labels of tokens as well, by :attr:`Shown.hints`."""
    easy_first: ClassVar[bool] = False
    """Whether a model starts with inputs of the easier form alone."""
    easy_share: ClassVar[float] = 0.0
    """Share of the easier form with which the training of a small model begins; it falls to none by half of the time."""
    baselines: ClassVar[tuple[str, ...]] = ()
    """The systems that users have today: the page says by how many points others are above the best of them
    that all seeds have."""
    baseline_word: ClassVar[str] = "chunks"
    """What the page calls them in short."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Of the command line, where they are not those of a picture."""

    @abc.abstractmethod
    def batch(self, shown: Shown, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and labels ``(count,)``, or ``(count, tokens)``, or ``(count, 1 + tokens)``; -100 = without a label."""

    @abc.abstractmethod
    def sentence(self, size: int) -> str:
        """What is drawn and what the label says, for the page."""

    @abc.abstractmethod
    def small_model(self, args: argparse.Namespace, seed: int) -> PreTrainedModel:
        """The model that learns small inputs, with random weights or with those of an earlier one."""

    @abc.abstractmethod
    def small_logits(self, model: nn.Module, inputs: Tensor, labelled: Labelled) -> Tensor:
        """What the small model answers for small inputs, their tokens, or both."""

    @abc.abstractmethod
    def systems(self, args: argparse.Namespace) -> dict[str, System]:
        """The ways to read large inputs, by a short name."""

    @abc.abstractmethod
    def about_model(self, settings: Mapping[str, Any]) -> str:
        """The small model, for the page."""

    @abc.abstractmethod
    def tokens(self, size: int) -> str:
        """How many tokens an input of a size has, for the page."""

    def of_size(self, size: int) -> str:
        """A size in words."""
        return f"{size} {self.unit}"


def task_folder(name: str, args: argparse.Namespace, seed: int, size: int) -> Path:
    """The folder of the small model of a task by its name and the size of its inputs."""
    return Path(args.work_dir) / f"{name}-{size}-{args.width}-{args.layers}-{seed}"


def plain(base: type[PreTrainedModel]) -> Callable[[Path, int], nn.Module]:
    """Loads the small model as it is."""
    return lambda folder, size: base.from_pretrained(folder)


def converted(
    family: str, base: type[PreTrainedModel], attention: Mapping[str, Any], of_size: Callable[[int], Mapping[str, Any]]
) -> Callable[[Path, int], nn.Module]:
    """Loads the small model with another attention for larger inputs.

    Args:
        family: its model type.
        of_size: fields of the config for a size.
    """

    def load(folder: Path, size: int) -> nn.Module:
        long_class = FAMILIES[family].model_class(base.__name__)
        model: nn.Module = long_class.from_pretrained(folder, long_attention=dict(attention), **of_size(size))
        return model

    return load
