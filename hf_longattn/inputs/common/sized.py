"""What kinds of input with a size have in common: a conversion changes the size, and a verification compares an old and a new one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ...checks import Check
from ...mechanisms import Mechanism
from .base import SIZED, InputKind, InputPlan, InputSize, InputSizes, Layers, train_command

ONE_SIZE, ANY_LENGTH = "one size", "any length"
"""What an exported graph reads."""


class FurtherChecks:
    """Checks of one kind of input besides the comparison of outputs, in the order in which source and result are in memory.

    runs: forward passes of the result's mechanisms at the new size.
    """

    runs: int = 1

    def run_source(self, base: Any, inputs: Mapping[str, Any]) -> None:
        """Run the source's base model on what else is compared; ``inputs`` are those of the new size."""

    def run_result(self, base: Any) -> None:
        """Run the result's base model, with its mechanisms."""

    def at_new(self, states: Mapping[str, Tensor]) -> list[Check]:
        """Checks of the result's hidden ``states`` at the new size, where that is another."""
        return []

    def last(self) -> list[Check]:
        """Checks that stand at the end of a report."""
        return []


class SizedKind(InputKind):
    """Inputs that are not texts and have a size, of a model that has one stack.

    size_noun, smaller: words for the size, and for less of it.
    rule: of the family, if the kind has one.
    user_inputs: the class of :class:`.user_files.UserInputs` that reads files of a user; ``None`` where nothing is searched or probed.
    cells: the class of :class:`.cells.InputCells` that cuts inputs into cells; ``None`` where nothing is probed.
    graph: what its exported graphs read, :data:`ONE_SIZE` or :data:`ANY_LENGTH`; empty where models are not exported.
    classified: ending of a class -> the words of ``longattn train`` that train it.
    """

    planned_as = SIZED
    classified: Mapping[str, tuple[str, ...]] = {}

    size_noun: ClassVar[str]
    smaller: ClassVar[str]
    graph: ClassVar[str] = ""
    rule: Any = None
    user_inputs: Any = None
    cells: Any = None

    @abstractmethod
    def decide(self, source: Any, architecture: Any, request: Any, layers_of: Layers) -> InputPlan:
        """What the settings of a conversion decide.

        Args:
            source, architecture, request: the source, its class, and the settings, a ``ConversionConfig``.
            layers_of: makes the mechanism of every layer.

        Raises:
            OptionError, LengthError, GridError, PositionError: a setting that is not possible.
            CheckpointError: the processor makes inputs that the source cannot read.
        """

    def training_step(self, plan: Any) -> dict[str, Any]:
        head = plan.architecture.source_class
        words = next((words for ending, words in self.classified.items() if head.endswith(ending)), None)
        advice = {"advice": f"fine-tune {{model}} with transformers' Trainer on {self.trained_on(plan.inputs)}"}
        return advice if words is None else train_command(*words)

    def trained_on(self, sizes: InputSizes) -> str:
        """The inputs on which a result is trained, in words."""
        return f"{self.nouns} of {sizes.new.words}"

    @abstractmethod
    def inputs(self, config: Any, folder: Path, recording: Path | None = None) -> Any:
        """The inputs of any size for verification and export; ``folder`` has the source's processor.

        Args:
            recording: a file of the user's.
        """

    def verification_inputs(self, plan: Any, text: tuple[str, str], recording: str | Path | None = None) -> Any:
        return self.inputs(plan.config, plan.source.folder, None if recording is None else Path(recording))

    def check_reader(self, plan: Any, result: Path, inputs: Any) -> list[Check]:
        return []

    def tokenizer_length(self, plan: Any) -> int:
        """Tokenizers write texts, whose length is not that of the inputs."""
        return 0

    def untrained_distances(self, plan: Any, mechanism: Mechanism, positions: str) -> str:
        return ""

    def longest_read(self, config: Mapping[str, Any], length: int) -> str:
        longest = self.trained_on(self.sizes(self.values_of(config)))
        return f"It was made for {longest}. Longer ones may run, but were not verified."

    def arguments(self, config: Any, values: Tensor) -> dict[str, Any]:
        """The arguments of ``forward`` for ``values`` of :class:`.user_files.UserInputs`."""
        return {self.rule.input: values}

    def values_of_input(self, values: Tensor) -> Tensor:
        """The values of :class:`.user_files.UserInputs` from the input of ``forward``."""
        return values

    def states(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The hidden states among the outputs of a base model."""
        return dict(outputs)

    def resizing(self) -> str:
        """How the base reads larger inputs than those it was trained with; empty where it needs nothing for it."""
        return ""

    def resized(self, base: Any, size: InputSize) -> AbstractContextManager[dict[str, Any]]:
        """The base of transformers below its head reads larger inputs of this size, with these arguments."""
        return nullcontext({})

    def base_reads(self, config: Any, size: Any) -> bool:
        """Whether the base reads inputs of this size, larger than those with which it was trained."""
        return True

    def config_as_source(self, plan: Any) -> Any:
        """The result's config with the positions that the source gives larger inputs; ``None`` where the result has these."""
        return None

    def further_checks(self, plan: Any, inputs: Any, size: Any, layers: Sequence[Mechanism]) -> FurtherChecks:
        """Checks besides the comparison of outputs, at the new size or a smaller one."""
        return FurtherChecks()

    def twin_sizes(self, sizes: Any, config: Any) -> list[Any]:
        """The sizes at which a native twin is compared, besides the new one."""
        return [sizes.old]
