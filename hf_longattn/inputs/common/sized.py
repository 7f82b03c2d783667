"""Base of the input kinds with a size. A conversion changes the size; verification compares at the old and the new one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ...mechanisms import Mechanism
from ...reports import Check
from .base import InputKind, InputPlan, InputSizes, Layers, train_command


class FurtherChecks:
    """Checks of one input kind besides the comparison of outputs. Methods are called in this order, as source and result are loaded.

    runs: number of forward passes with the result's mechanisms at the new size.
    """

    runs: int = 1

    def run_source(self, base: Any, inputs: Mapping[str, Any]) -> None:
        """Run the source's base model for these checks. ``inputs`` are its arguments at the new size."""

    def run_result(self, base: Any) -> list[Check]:
        """Run the result's base model, with its mechanisms. Returns checks for the end of a report."""
        return []

    def at_new(self, states: Mapping[str, Tensor]) -> list[Check]:
        """Checks of the result's hidden ``states`` at the new size. Called only if the size grows and the base can read it."""
        return []


class SizedKind(InputKind):
    """Inputs with a size, other than texts, of a model with one stack.

    size_noun, smaller: noun for the size, and adjective for a lower one.
    classified: ending of a class's name -> arguments of ``longattn train`` for models of the class.
    """

    lengthens = False
    classified: Mapping[str, tuple[str, ...]] = {}

    size_noun: ClassVar[str]
    smaller: ClassVar[str]

    def fixed_sizes(self, config: Any) -> InputSizes | None:
        return None if self.any_size else self.sizes(config)

    @abstractmethod
    def decide(self, source: Any, architecture: Any, request: Any, layers_of: Layers) -> InputPlan:
        """The plan that follows from the settings of a conversion.

        Args:
            source, architecture, request: the source, its architecture, and the settings (a ``ConversionConfig``).
            layers_of: makes the mechanism of every layer.

        Raises:
            OptionError, LengthError, GridError, PositionError: a setting does not fit the model.
            CheckpointError: the processor makes inputs that the source cannot read.
        """

    def training_step(self, plan: Any) -> dict[str, Any]:
        head = plan.architecture.source_class
        words = next((words for ending, words in self.classified.items() if head.endswith(ending)), None)
        advice = {"advice": f"fine-tune {{model}} with transformers' Trainer on {self.trained_on(plan.inputs)}"}
        return advice if words is None else train_command(*words)

    def trained_on(self, sizes: InputSizes) -> str:
        """The inputs on which to train a result, as text."""
        return f"{self.nouns} of {sizes.new.words}"

    @abstractmethod
    def inputs(self, config: Any, folder: Path, recording: Path | None = None) -> Any:
        """Inputs of any size for verification and export.

        Args:
            folder, recording: the folder with the source's processor, and a user's file or ``None``.
        """

    def verification_inputs(self, plan: Any, text: tuple[str, str], recording: str | Path | None = None) -> Any:
        return self.inputs(plan.config, plan.source.folder, None if recording is None else Path(recording))

    def check_reader(self, plan: Any, result: Path, inputs: Any) -> list[Check]:
        return []

    def tokenizer_length(self, plan: Any) -> int:
        """0: the tokenizer keeps its limit. It is for the texts that the model writes."""
        return 0

    def untrained_distances(self, plan: Any, mechanism: Mechanism, positions: str) -> str:
        return ""

    def longest_read(self, config: Mapping[str, Any], length: int) -> str:
        longest = self.trained_on(self.sizes(self.values_of(config)))
        return f"It was made for {longest}. Longer ones may run, but were not verified."

    def arguments(self, config: Any, values: Tensor) -> dict[str, Any]:
        """The arguments of ``forward`` for an input from ``UserInputs.values``."""
        return {self.rule.input: values}

    def states(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The hidden states among a base model's ``outputs``."""
        return dict(outputs)

    def resizing(self) -> str:
        """How the base reads larger inputs than in its training. Empty if it needs no setting for them."""
        return ""

    def arguments_for_resizing(self) -> dict[str, Any]:
        """Arguments of ``forward`` with which transformers' base model reads inputs larger than in its training."""
        return {}

    def base_reads(self, config: Any, size: Any) -> bool:
        """Whether the base can read inputs of this size. It is larger than in its training."""
        return True

    def config_as_source(self, plan: Any) -> Any:
        """The result's config, changed to the source's positions for larger inputs. ``None`` if the result has the same ones."""
        return None

    def further_checks(self, plan: Any, inputs: Any, size: Any, layers: Sequence[Mechanism]) -> FurtherChecks:
        """Checks besides the comparison of outputs, at ``size``: the new size or a smaller one."""
        return FurtherChecks()
