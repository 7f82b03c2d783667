"""Plans and checks for a new size of images or sounds. The model's tensors stay the same at a new size."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import transformers
from torch import Tensor

from ..configuration import LongAttentionConfig
from ..data.sources import files_of
from ..errors import CheckpointError, OptionError
from ..files import read_json_object
from ..loading import load_part
from ..mechanisms import Mechanism
from ..modeling.costs import costs_of, layer_mechanisms, model_shape
from ..modeling.family.definition import without_head
from ..modeling.family.grid_spec import TILE
from ..modeling.family.input_spec import PROCESSOR_FILES, InputSize, InputSizes
from ..modeling.grids import interpolating
from ..reports import SKIPPED, Check, Difference, equality
from .architecture import Architecture
from .check import BASE, Comparison, attending, check_finite
from .folders import train_command
from .plan import ConversionPlan, PositionWarning
from .running import run_model
from .source import Source

FILE, PROCESSOR_FILE = PROCESSOR_FILES
IMAGE_PROCESSOR, FEATURE_EXTRACTOR = "image_processor", "feature_extractor"


AUTO_CLASSES = {IMAGE_PROCESSOR: "AutoImageProcessor", FEATURE_EXTRACTOR: "AutoFeatureExtractor"}
"""Name of a part of :data:`PROCESSOR_FILE` -> the class of transformers that loads it from there or from
:data:`FILE`."""
FLOPS_AT_NEW_SIZE = 4e12
"""Maximum FLOPs of the checks at the new size: about a minute on two cores."""
STATES = "last_hidden_state"


def load_processor(folder: Path, part: str) -> Any | None:
    """The processor in a checkpoint folder; ``None`` if there is none. Raises :class:`CheckpointError` if it does not
    load."""
    files = [folder / name for name in (FILE, PROCESSOR_FILE) if (folder / name).is_file()]
    for file in files:
        read_json_object(file)  # transformers would raise other errors for a damaged file
    loader = getattr(transformers, AUTO_CLASSES[part])
    return load_part(loader, folder, part.replace("_", " "), local_files_only=True) if files else None


def changed_file(folder: Path, part: str, processor: Any, fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The name of the processor's file, and its content as transformers writes it, with ``fields`` changed."""
    values = {**json.loads(processor.to_json_string()), **fields}
    parts = read_json_object(folder / PROCESSOR_FILE) if (folder / PROCESSOR_FILE).is_file() else {}
    return {PROCESSOR_FILE: {**parts, part: values}} if isinstance(parts.get(part), dict) else {FILE: values}


class UserFiles:
    """A user's images or recordings as model inputs, which the processor of the model's folder makes.

    At most ``count`` files are used, evenly spaced in a larger folder. Without files, inputs are random but seeded.
    """

    part: ClassVar[str]  # type of the model's processor, a key of AUTO_CLASSES
    file_type: ClassVar[str]
    noun: ClassVar[str]  # plural noun for the files
    built_in: ClassVar[str]  # description of the seeded inputs, for a report

    def __init__(
        self, spec: Any, config: Any, folder: Path, files: Any = None, *, count: int = 1, model: str = ""
    ) -> None:
        self.spec, self.config, self.folder, self.model, self.count = spec, config, folder, model, count
        self.name, self.files = self.built_in, list[Path]()
        if isinstance(files, Path):
            self.name, self.files = files.resolve().name, files_of(files, self.file_type)
        elif files is not None:
            self.needed()
        if len(self.files) > count:
            self.files = [self.files[number * (len(self.files) - 1) // max(1, count - 1)] for number in range(count)]
        self.processor = load_processor(folder, self.part)

    def needed(self) -> list[Path]:
        """The files; raises :class:`OptionError` if the user gave none."""
        if not self.files:
            raise OptionError(
                f"{self.model!r} reads {self.noun}; give a file or a folder of {self.noun} (with --mechanism auto as "
                "--search-input), in Python as a Path."
            )
        return self.files

    @cached_property
    def required(self) -> Any:
        """The processor; raises :class:`CheckpointError` if the model has none."""
        if self.processor is None:
            raise CheckpointError(
                f"{self.model!r} has no {FILE}, which says how it reads {self.noun}; copy its original's file there."
            )
        return self.processor

    def describe(self) -> str:
        """Description of the inputs for a report."""
        return f"the {self.noun.removesuffix('s')} {self.name}" if self.files else self.built_in


def plan_sized(
    source: Source,
    architecture: Architecture,
    sizes: InputSizes,
    attention: LongAttentionConfig,
    positions: str,
    warnings: Sequence[PositionWarning],
    files: Mapping[str, Mapping[str, Any]],
    tasks: Mapping[str, tuple[str, ...]],
) -> ConversionPlan:
    """The plan for new sizes of images or sounds.

    Args:
        positions, warnings: the strategy for positions, and reasons against using the result without training.
        files: new contents of copied files of the processor.
        tasks: ending of a class's name -> the words after ``longattn train`` for training it.
    """
    lengths = {f"long_{sizes.new.name}": sizes.new.values[sizes.new.name]} if sizes.grows else {}
    config = architecture.long_config(attention, lengths=lengths, strategy=positions)
    skeleton = architecture.skeleton(config)
    shape = model_shape(config, skeleton)
    nouns = architecture.family.spec.nouns
    training = {"advice": f"fine-tune {{model}} with transformers' Trainer on {nouns} of {sizes.new.words}"}
    for ending, words in tasks.items():
        if architecture.source_class.endswith(ending):
            training = train_command(*words)
    return ConversionPlan(
        source=source,
        architecture=architecture,
        config=config,
        inputs=sizes,
        positions=positions,
        attention=attention,
        skeleton=skeleton,
        shape=shape,
        costs=costs_of(sizes, attention, shape),
        warnings=tuple(warnings),
        files=files,
        training=training,
    )


def sized_layers(architecture: Architecture, attention: LongAttentionConfig, sizes: InputSizes) -> list[Mechanism]:
    """The mechanism of every layer, for inputs of the new size. Raises an error if a mechanism cannot run at these
    sizes."""
    count = architecture.source_config.num_hidden_layers
    attention.check_layers(count)
    mechanisms = attention.prototypes(range(count))
    for mechanism in mechanisms:
        sizes.check(mechanism)
    return sizes.new.bound(mechanisms)


def without_processor(part: str, plan: ConversionPlan) -> Check:
    name = part.replace("_", " ")
    sentence = f"the source has no {name}, so make inputs of {plan.inputs.new.words} as in its training"
    return Check(name, SKIPPED, sentence)


def affordable_size(plan: ConversionPlan) -> InputSize:
    """The size for checks: the new size, or the largest step from old to new size that takes few enough FLOPs."""
    costs = [(cost.size, 2 * (cost.full_attention_flops + cost.other_flops + cost.total_flops)) for cost in plan.costs]
    return [plan.inputs.old, *(size for size, flops in costs if flops <= FLOPS_AT_NEW_SIZE)][-1]


def check_sizes(comparison: Comparison, resizing: Mapping[str, Any] | None = None, how: str = "") -> list[Check]:
    """Compare outputs at the old size, and hidden states at the new size (a smaller one for a large model).

    resizing, how: arguments with which the source reads the new size, and their description.
    """
    plan, result, sizes = comparison.plan, comparison.result, comparison.plan.inputs
    source, measured = comparison.compared
    old, new = sizes.old, affordable_size(plan)
    at_old, at_new = comparison.inputs.at(old), comparison.inputs.at(new)
    what, where = f"{comparison.outputs} at {old}", f"hidden states at {new}"
    if new != sizes.new:
        where += f" (of {sizes.new.words}: a large model)"
    not_covered = f"the mechanism does not cover the {sizes.spec.noun}"

    def uncovered(size: InputSize) -> str:
        layers = size.bound(layer_mechanisms(plan.attention, plan.shape, size.tokens))
        return "" if all(layer.covers(size.tokens) for layer in layers) else not_covered

    def compare(name: str, size: InputSize, detail: str, expected: Any, outputs: Any, why: str = "") -> Check:
        values = {**size.values, "tokens": size.tokens, "outputs": sorted(expected)}
        difference = Difference.of(expected, outputs)
        return equality(name, f"{detail}: largest difference from the source", difference, values, why)

    expected, outputs, states = run_model(source, at_old), run_model(measured, at_old), hidden_states(result, at_new)
    checks, name, why = [], "equal where the mechanism covers the input", uncovered(old)
    if why:
        with attending(result, BASE):
            full = run_model(measured, at_old)
        detail = f"{what}, full attention instead of the mechanism"
        checks.append(compare("equal at the old size with full attention", old, detail, expected, full))
        name = "at the old size"
    checks.append(compare(name, old, f"{what}, long attention", expected, outputs, why))
    name = "equal at the new size with full attention"
    if new != old and not sizes.reads_new:
        checks.append(Check(name, SKIPPED, f"does not apply: the source does not read {new.words}"))
    elif new != old:
        tiled = plan.positions == TILE
        expected = hidden_states(comparison.source, {**at_new, **(resizing or {})})
        with attending(result, BASE), interpolating(result) if tiled else contextlib.nullcontext():
            full = hidden_states(result, at_new)
        detail, attention = f"{where}, full attention", f"{where}, long attention, the source with full attention"
        if how:
            detail += f" and interpolated positions, the source with {how}"
            attention += f" and {how}"
        checks.append(compare(name, new, detail, expected, full))
        why = f"{not_covered} and positions are tiled" if tiled else uncovered(new)
        checks.append(compare("at the new size", new, attention, expected, states, why))
    values = {**new.values, "tokens": new.tokens}
    return [*checks, check_finite("finite at the new size", f"hidden states at {new}", states, values)]


def hidden_states(model: Any, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The last hidden states of a model below its head. All outputs if there are no last hidden states."""
    outputs = run_model(without_head(model), arguments)
    return {STATES: outputs[STATES]} if STATES in outputs else outputs
