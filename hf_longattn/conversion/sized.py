"""Plans and checks for a new size of images or sounds. A new size does not change the tensors of a model."""

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
"""The two files that may hold an image processor or feature extractor: one of its own, and one with several parts."""
IMAGE_PROCESSOR, FEATURE_EXTRACTOR = "image_processor", "feature_extractor"
"""Names of these parts in :data:`PROCESSOR_FILE`."""


AUTO_CLASSES = {IMAGE_PROCESSOR: "AutoImageProcessor", FEATURE_EXTRACTOR: "AutoFeatureExtractor"}
"""Name of a part -> the class of transformers that loads it from either file."""
FLOPS_AT_NEW_SIZE = 4e12
"""Maximum FLOPs of the checks at the new size: about a minute on two cores."""
STATES = "last_hidden_state"


def load_processor(folder: Path, part: str) -> Any | None:
    """The image processor or feature extractor in a checkpoint folder; ``None`` if there is none.

    Args:
        part: a key of :data:`AUTO_CLASSES`.

    Raises:
        CheckpointError: the processor cannot be loaded.
    """
    files = [folder / name for name in (FILE, PROCESSOR_FILE) if (folder / name).is_file()]
    for file in files:
        read_json_object(file)  # transformers would raise other errors for a damaged file
    loader = getattr(transformers, AUTO_CLASSES[part])
    return load_part(loader, folder, part.replace("_", " "), local_files_only=True) if files else None


def changed_file(folder: Path, part: str, processor: Any, fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of the file that holds a processor -> its content, with changed ``fields``, as transformers writes it."""
    values = {**json.loads(processor.to_json_string()), **fields}
    parts = read_json_object(folder / PROCESSOR_FILE) if (folder / PROCESSOR_FILE).is_file() else {}
    if isinstance(parts.get(part), dict):
        return {PROCESSOR_FILE: {**parts, part: values}}
    return {FILE: values}


class UserFiles:
    """The images or recordings of a user as inputs of a model. Without files, the inputs are random.

    Args:
        spec: the spec of the model's family.
        config: the model's config.
        folder: the folder with the model's processor.
        files: a file or folder as a ``Path``. Anything else is refused, and ``None`` means that there are no files.
        count: maximum number of files. From a larger folder, files are taken at equal distances.
        model: the model as typed by the user, for messages.

    Attributes:
        name: name of the file or folder, or the description of random inputs.
        files: the chosen files.
        processor: the model's processor, or ``None``.
    """

    part: ClassVar[str]  # type of the model's processor, a key of AUTO_CLASSES
    file_type: ClassVar[str]  # type of the files for `files_of`
    noun: ClassVar[str]  # plural noun for the files
    built_in: ClassVar[str]  # description of random inputs, for a report

    def __init__(
        self, spec: Any, config: Any, folder: Path, files: Any = None, *, count: int = 1, model: str = ""
    ) -> None:
        self.spec, self.config, self.folder, self.model, self.count = spec, config, folder, model, count
        self.name, self.files = self.built_in, list[Path]()
        if isinstance(files, Path):
            self.name, self.files = files.resolve().name, files_of(files, self.file_type)
        elif files is not None:
            self.needed()  # raises an error
        last = len(self.files) - 1
        if last >= count:
            self.files = [self.files[number * last // max(1, count - 1)] for number in range(count)]
        self.processor = load_processor(folder, self.part)

    def needed(self) -> list[Path]:
        """The files. Raises :class:`OptionError` if the user gave none."""
        if not self.files:
            raise OptionError(
                f"{self.model!r} reads {self.noun}; give a file or a folder of {self.noun} (with --mechanism auto as "
                "--search-input), in Python as a Path."
            )
        return self.files

    @cached_property
    def required(self) -> Any:
        """The processor. Raises :class:`CheckpointError` if the model has none."""
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
    """The plan for a new size of images or sounds.

    Args:
        sizes: sizes of the inputs of source and result.
        attention: the attention of the result.
        positions: the strategy for positions.
        warnings: reasons against using the result without training.
        files: name of a processor's file -> its new content.
        tasks: ending of a class's name -> the words after ``longattn train`` that train it.
    """
    lengths = {}  # config field -> the new size
    if sizes.grows:
        lengths[f"long_{sizes.new.name}"] = sizes.new.values[sizes.new.name]
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
    """The mechanism of every layer, set up for inputs of the new size.

    Raises:
        LongAttentionError: a mechanism cannot run at these sizes.
    """
    count = architecture.source_config.num_hidden_layers
    attention.check_layers(count)
    mechanisms = attention.prototypes(range(count))
    for mechanism in mechanisms:
        sizes.check(mechanism)
    return sizes.new.bound(mechanisms)


def without_processor(part: str, plan: ConversionPlan) -> Check:
    """The skipped check of a processor that the source does not have. ``part``: a key of :data:`AUTO_CLASSES`."""
    name = part.replace("_", " ")
    sentence = f"the source has no {name}, so make inputs of {plan.inputs.new.words} as in its training"
    return Check(name, SKIPPED, sentence)


def affordable_size(plan: ConversionPlan) -> InputSize:
    """The size for checks: the new size, or for a large model, a smaller one with few enough FLOPs."""
    affordable = plan.inputs.old
    for cost in plan.costs:  # from the old to the new size
        # source and result, each of them twice
        flops = 2 * (cost.full_attention_flops + cost.other_flops + cost.total_flops)
        if flops <= FLOPS_AT_NEW_SIZE:
            affordable = cost.size
    return affordable


def check_sizes(comparison: Comparison, resizing: Mapping[str, Any] | None = None, how: str = "") -> list[Check]:
    """Compare outputs at the old size, and hidden states at the new size. For a large model, the latter is smaller.

    Args:
        resizing: arguments of ``forward`` with which the source reads another size.
        how: description of how the source reads another size.
    """
    plan, result, sizes = comparison.plan, comparison.result, comparison.plan.inputs
    source, measured = comparison.compared
    old, new = sizes.old, affordable_size(plan)
    at_old, at_new = comparison.inputs.at(old), comparison.inputs.at(new)
    outputs_at_old, states_at_new = f"{comparison.outputs} at {old}", f"hidden states at {new}"
    if new != sizes.new:
        states_at_new += f" (of {sizes.new.words}: a large model)"
    not_covered = f"the mechanism does not cover the {sizes.spec.noun}"

    def uncovered(size: InputSize) -> str:
        """The reason why long attention differs from full attention at a size; empty if both are equal."""
        layers = size.bound(layer_mechanisms(plan.attention, plan.shape, size.tokens))
        return "" if all(layer.covers(size.tokens) for layer in layers) else not_covered

    def compare(name: str, size: InputSize, detail: str, expected: Any, outputs: Any, why: str = "") -> Check:
        """A check of the source's outputs (``expected``) and the result's. ``why``: why they may differ."""
        values = {**size.values, "tokens": size.tokens, "outputs": sorted(expected)}
        difference = Difference.of(expected, outputs)
        return equality(name, f"{detail}: largest difference from the source", difference, values, why)

    # the old size
    checks = []
    expected = run_model(source, at_old)
    outputs = run_model(measured, at_old)
    states = hidden_states(result, at_new)
    name = "equal where the mechanism covers the input"
    why = uncovered(old)
    if why:
        with attending(result, BASE):
            full = run_model(measured, at_old)
        detail = f"{outputs_at_old}, full attention instead of the mechanism"
        checks.append(compare("equal at the old size with full attention", old, detail, expected, full))
        name = "at the old size"
    checks.append(compare(name, old, f"{outputs_at_old}, long attention", expected, outputs, why))

    # the new size
    name = "equal at the new size with full attention"
    if new != old and not sizes.reads_new:
        checks.append(Check(name, SKIPPED, f"does not apply: the source does not read {new.words}"))
    elif new != old:
        tiled = plan.positions == TILE
        expected = hidden_states(comparison.source, {**at_new, **(resizing or {})})
        with attending(result, BASE), interpolating(result) if tiled else contextlib.nullcontext():
            full = hidden_states(result, at_new)
        with_full = f"{states_at_new}, full attention"
        with_long = f"{states_at_new}, long attention, the source with full attention"
        if how:
            with_full += f" and interpolated positions, the source with {how}"
            with_long += f" and {how}"
        checks.append(compare(name, new, with_full, expected, full))
        why = f"{not_covered} and positions are tiled" if tiled else uncovered(new)
        checks.append(compare("at the new size", new, with_long, expected, states, why))
    values = {**new.values, "tokens": new.tokens}
    return [*checks, check_finite("finite at the new size", f"hidden states at {new}", states, values)]


def hidden_states(model: Any, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The last hidden states of a model without its head, by name. If there are none, all its outputs."""
    outputs = run_model(without_head(model), arguments)
    return {STATES: outputs[STATES]} if STATES in outputs else outputs
