"""Plans, processors and checks for a new size of images or sounds. The model's tensors stay the same at a new size."""

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
from ..conversion.check import BASE, Comparison, attending, check_finite
from ..conversion.folders import train_command
from ..conversion.plan import ConversionPlan, PositionWarning
from ..data.sources import files_of
from ..errors import CheckpointError, OptionError
from ..files import read_json_object
from ..loading import load_part
from ..mechanisms import Mechanism
from ..mechanisms.common.registry import prototype
from ..modeling.costs import costs_of, layer_mechanisms, model_shape
from ..modeling.family.definition import without_head
from ..modeling.family.grid_spec import TILE
from ..modeling.grids import interpolating
from ..reports import SKIPPED, Check, Difference, equality
from .modality import InputSize, InputSizes, Modality
from .running import run_model

FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"
IMAGE_PROCESSOR, FEATURE_EXTRACTOR = "image_processor", "feature_extractor"
AUTO_CLASSES = {IMAGE_PROCESSOR: "AutoImageProcessor", FEATURE_EXTRACTOR: "AutoFeatureExtractor"}
"""Name of a part of :data:`PROCESSOR_FILE` -> the class of transformers that loads it from there or from
:data:`FILE`."""
FLOPS_AT_NEW_SIZE = 4e12
"""Maximum FLOPs of the checks at the new size: about a minute on two cores."""
STATES = "last_hidden_state"


def has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (FILE, PROCESSOR_FILE))


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
    """A user's images or recordings as model inputs. They are processed by the given processor, or by that of the
    model's folder.

    At most ``count`` files are used, evenly spaced in a larger folder. Without files, inputs are random but seeded.
    """

    part: ClassVar[str]  # type of the model's processor, a key of AUTO_CLASSES
    file_type: ClassVar[str]
    noun: ClassVar[str]  # plural noun for the files
    built_in: ClassVar[str]  # description of the seeded inputs, for a report

    def __init__(
        self,
        spec: Any,
        config: Any,
        folder: Path,
        files: Any = None,
        *,
        count: int = 1,
        model: str = "",
        processor: Any | None = None,
    ) -> None:
        self.spec, self.config, self.folder, self.model, self.count = spec, config, folder, model, count
        self.name, self.files = self.built_in, list[Path]()
        if isinstance(files, Path):
            self.name, self.files = files.resolve().name, files_of(files, self.file_type)
        elif files is not None:
            self.needed()
        if len(self.files) > count:
            self.files = [self.files[number * (len(self.files) - 1) // max(1, count - 1)] for number in range(count)]
        self.processor = processor or load_processor(folder, self.part)

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


class SizedModality(Modality):
    """Inputs whose size changes no tensor of a model."""

    files: ClassVar[type[UserFiles]]
    field: ClassVar[str]  # config field with the size for which a model was converted
    trained_by: ClassVar[Mapping[str, tuple[str, ...]]]  # ending of a class's name -> arguments of `longattn train`

    def layers(self, architecture: Any, attention: LongAttentionConfig, sizes: InputSizes) -> list[Mechanism]:
        """The mechanism of every layer, for inputs of the new size. Raises an error if a mechanism cannot run at these
        sizes."""
        count = architecture.source_config.num_hidden_layers
        attention.check_layers(count)
        mechanisms = [prototype(*attention.for_layer(layer)) for layer in range(count)]
        for mechanism in mechanisms:
            sizes.check(mechanism)
        return sizes.new.bound(mechanisms)

    def planned(
        self,
        source: Any,
        architecture: Any,
        sizes: InputSizes,
        attention: LongAttentionConfig,
        positions: str,
        warnings: Sequence[PositionWarning],
        processor: Any,
        changes: Mapping[str, Any],
    ) -> ConversionPlan:
        """The plan for these sizes.

        Args:
            positions, warnings: the strategy for positions, and reasons against using the result without training.
            processor, changes: the source's processor, if any, and the fields that change in the result.
        """
        lengths = {self.field: sizes.new.values[sizes.new.name]} if sizes.grows else {}
        config = architecture.long_config(attention, lengths=lengths, strategy=positions)
        skeleton = architecture.skeleton(config)
        shape = model_shape(config, skeleton)
        task = next(
            (words for ending, words in self.trained_by.items() if architecture.source_class.endswith(ending)), None
        )
        advice = f"fine-tune {{model}} with transformers' Trainer on {self.nouns} of {sizes.new.words}"
        return ConversionPlan(
            source=source,
            architecture=architecture,
            config=config,
            inputs=sizes,
            positions=positions,
            attention=attention,
            position_change="",
            skeleton=skeleton,
            shape=shape,
            costs=costs_of(sizes, attention, shape),
            warnings=tuple(warnings),
            files=changed_file(source.folder, self.files.part, processor, changes) if changes else {},
            training={"advice": advice} if task is None else train_command(*task),
        )

    def inputs(
        self,
        config: Any,
        folder: Path,
        text: tuple[str, str] | None = None,
        files: Path | None = None,
        **settings: Any,
    ) -> Any:
        return self.files(self.spec, config, folder, files, **settings)


def affordable_size(plan: ConversionPlan) -> InputSize:
    """The size for checks: the new size, or the largest step from old to new size that takes few enough FLOPs."""
    costs = [(cost.size, 2 * (cost.full_attention_flops + cost.other_flops + cost.total_flops)) for cost in plan.costs]
    return [plan.inputs.old, *(size for size, flops in costs if flops <= FLOPS_AT_NEW_SIZE)][-1]


def check_sizes(comparison: Comparison, resizing: Mapping[str, Any] | None = None, how: str = "") -> list[Check]:
    """Compare outputs at the old size, and hidden states at the new size (a smaller one for a large model).

    resizing, how: arguments with which the source reads the new size, and their description.
    """
    plan, inputs, result = comparison.plan, comparison.inputs, comparison.result
    sizes, noun, (source, measured) = plan.inputs, plan.inputs.modality.noun, comparison.compared
    old, new = sizes.old, affordable_size(plan)
    what, where = f"{comparison.outputs} at {old}", f"hidden states at {new}"
    where += "" if new == sizes.new else f" (of {sizes.new.words}: a large model)"

    def compare(name: str, size: InputSize, detail: str, expected: Any, outputs: Any, why: str = "") -> Check:
        values = {**size.values, "tokens": size.tokens, "outputs": sorted(expected)}
        return equality(
            name, f"{detail}: largest difference from the source", Difference.of(expected, outputs), values, why
        )

    def uncovered(size: InputSize) -> str:
        layers = size.bound(layer_mechanisms(plan.attention, plan.shape, size.tokens))
        return "" if all(layer.covers(size.tokens) for layer in layers) else f"the mechanism does not cover the {noun}"

    at_old, at_new = inputs.at(old), inputs.at(new)
    expected, outputs, states = run_model(source, at_old), run_model(measured, at_old), hidden_states(result, at_new)
    checks = []
    if why := uncovered(old):
        with attending(result, BASE):
            full = run_model(measured, at_old)
        name = "equal at the old size with full attention"
        checks.append(compare(name, old, f"{what}, full attention instead of the mechanism", expected, full))
    name = "at the old size" if why else "equal where the mechanism covers the input"
    checks.append(compare(name, old, f"{what}, long attention", expected, outputs, why))
    name = "equal at the new size with full attention"
    if new != old and not sizes.reads_new:
        checks.append(Check(name, SKIPPED, f"does not apply: the source does not read {new.words}"))
    elif new != old:
        expected, tiled = hidden_states(comparison.source, {**at_new, **(resizing or {})}), plan.positions == TILE
        with attending(result, BASE), interpolating(result) if tiled else contextlib.nullcontext():
            full = hidden_states(result, at_new)
        interpolated = f" and interpolated positions, the source with {how}" if how else ""
        checks.append(compare(name, new, f"{where}, full attention{interpolated}", expected, full))
        detail = f"{where}, long attention, the source with full attention{f' and {how}' if how else ''}"
        whys = [uncovered(new)]
        if tiled:
            whys = [uncovered(new) or f"the mechanism does not cover the {noun}", "positions are tiled"]
        checks.append(compare("at the new size", new, detail, expected, states, " and ".join(whys)))
    return [
        *checks,
        check_finite(
            "finite at the new size", f"hidden states at {new}", states, {**new.values, "tokens": new.tokens}
        ),
    ]


def hidden_states(model: Any, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The last hidden states of a model below its head. All outputs if there are no last hidden states."""
    outputs = run_model(without_head(model), arguments)
    return {STATES: outputs[STATES]} if STATES in outputs else outputs
