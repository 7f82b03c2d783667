"""Inputs of models with several towers. Each tower has its own modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..configuration import LongAttentionConfig
from ..conversion.check import BASE, Comparison, attending, check_finite
from ..conversion.plan import ConversionPlan, plan_source
from ..conversion.source_models import NAMES, tower_of
from ..errors import OptionError, checkpoint_errors
from ..files import TOKENIZER_CONFIG
from ..modeling.family.definition import Family, tower_field
from ..modeling.family.towers_spec import check_towers
from ..reports import Check, Difference, equality
from .modality import AUTO, SETTINGS, Example, InputSizes, Modality, modality_of
from .running import run_model
from .sized import affordable_size, has_processor

LONGEST_CAPTION = 512
"""Maximum tokens of the text in the comparison of text-image similarities."""


class InputsOfTowers(dict[str, Any]):
    """Name of each tower -> its inputs."""

    def describe(self) -> str:
        """Description of the inputs for a report."""
        return ", ".join(f"{name}: {inputs.describe()}" for name, inputs in self.items())


class TowersModality(Modality):
    """One input for each tower."""

    noun = "input"

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self.towers = {name: modality_of(tower) for name, tower in family.towers.items()}
        self.nouns = " and ".join(modality.nouns for modality in self.towers.values())
        self.settings = ("towers", *(name for modality in self.towers.values() for name in modality.settings))

    def sizes(self, config: Any) -> InputSizes:
        return next(
            modality.sizes(getattr(config, tower_field(name)))
            for name, modality in self.towers.items()
            if not modality.units
        )

    def plan(self, source: Any, architecture: Any, request: Any) -> ConversionPlan:
        """Plan each tower as a separate checkpoint. Tensors outside the towers are kept."""
        plans = {
            name: plan_source(tower_of(source, name, self.towers[name].family.base_model_name), of_tower)
            for name, of_tower in self._requests(architecture, request).items()
        }
        values = {name: value for name, value in architecture.source_config.to_dict().items() if name not in NAMES}
        for name, plan in plans.items():
            of_tower = {key: value for key, value in plan.config.to_dict().items() if key not in NAMES}
            values[tower_field(name)] = {**of_tower, "model_type": plan.config.model_type}
        with checkpoint_errors(f"The source's config makes no valid {architecture.long_class}"):
            config = self.family.config_class.from_dict(values)
        config.architectures = [architecture.long_class]
        texts = next(plan for name, plan in plans.items() if not self.towers[name].units)
        changed = [plan for plan in plans.values() if plan.position_change]
        pairs = f"pairs of a text and an image ({' and '.join(str(plan.inputs.new) for plan in plans.values())})"
        return replace(
            texts,
            source=source,
            architecture=architecture,
            config=config,
            positions=", ".join(f"{name} {plan.positions}" for name, plan in plans.items()),
            position_change=" and ".join(plan.position_change for plan in changed),
            unchanged_tokens=min((plan.unchanged_tokens for plan in changed), default=0),
            skeleton=architecture.skeleton(config),
            costs=(),
            warnings=tuple(warning for plan in plans.values() for warning in plan.warnings),
            files={name: values for plan in plans.values() for name, values in plan.files.items()},
            towers=plans,
            training={
                "advice": f"fine-tune {{model}} with transformers' Trainer on {pairs}; the model returns the loss"
            },
        )

    def _requests(self, architecture: Any, request: Any) -> dict[str, Any]:
        """The settings of each tower, by name. Settings that only apply to other modalities are unset."""
        names, model_class, chosen = [*self.towers], architecture.source_class, request.towers or {}
        if request.names_attention:
            raise OptionError(
                f"The towers of a {model_class}, {' and '.join(names)}, have separate mechanisms, to which "
                "--mechanism, --option and "
                f"--layers do not apply; give --towers {','.join(f'{name}=MECHANISM' for name in names)}."
            )
        strategies = {}
        if request.positions != AUTO:
            strategies = dict(piece.partition("=")[::2] for piece in request.positions.split(","))
        if "" in strategies.values():  # text=stretch:20,vision=tile
            example = ",".join(f"{name}=RULE" for name in names)
            raise OptionError(
                f"The towers of a {model_class} have separate positions; give --positions {example}, or some of them."
            )
        check_towers({**chosen, **strategies}, names, model_class)
        requests = {}
        for name, modality in self.towers.items():
            attention = chosen.get(name) or {}
            values = attention.to_dict() if isinstance(attention, LongAttentionConfig) else dict(attention)
            of_tower = {
                "mechanism": values.pop("mechanism", None),
                "options": values or None,
                "positions": strategies.get(name, AUTO),
            }
            requests[name] = replace(request, **dict.fromkeys(SETTINGS.keys() - {*modality.settings}), **of_tower)
        return requests

    def inputs(
        self, config: Any, folder: Path, text: tuple[str, str] | None = None, files: Path | None = None
    ) -> InputsOfTowers:
        parts = self.towers.items()
        return InputsOfTowers(
            {name: part.inputs(getattr(config, tower_field(name)), folder, text, files) for name, part in parts}
        )

    def processor(self, plan: Any, folder: Path, inputs: InputsOfTowers) -> list[Check]:
        return [
            check
            for name, part in plan.towers.items()
            for check in part.modality.processor(part, folder, inputs[name])
        ]

    def check(self, comparison: Comparison) -> list[Check]:
        """Compare text-image similarity at the old sizes. At the new sizes, similarity and loss must be finite. The
        text has the maximum length with unchanged positions."""
        plan, source, result, inputs = comparison.plan, comparison.source, comparison.result, comparison.inputs
        why = plan.position_change if plan.unchanged_tokens <= 1 else ""
        unchanged = plan.unchanged_tokens if plan.position_change and not why else plan.old_length
        length = min(plan.old_length, LONGEST_CAPTION, unchanged)
        sizes = {
            name: part.inputs.old if part.inputs.old.name else part.inputs.at(length)
            for name, part in plan.towers.items()
        }
        old = {key: value for name, size in sizes.items() for key, value in inputs[name].at(size).items()}
        new = {
            key: value
            for name, part in plan.towers.items()
            for key, value in inputs[name].at(affordable_size(part)).items()
        }
        with attending(result, BASE):
            difference = Difference.of(run_model(source, old), run_model(result, old))
        read = " and ".join(f"one {plan.towers[name].modality.noun} of {size}" for name, size in sizes.items())
        detail = f"similarity of {read}, with full attention: largest difference from the source"
        with torch.no_grad():
            returned = result(**new, return_loss=True, return_dict=True)
        outputs, name = (
            {"loss": returned.loss, "similarity": returned.logits_per_text},
            "similarities of text and image equal",
        )
        finite = check_finite("finite at the new sizes", "similarity and loss at the new sizes", outputs)
        return [equality(name, detail, difference, {"length": length}, why), finite]

    def example(self, folder: Path, config: Mapping[str, Any], length: int) -> Example:
        task = "zero-shot-image-classification"
        if not (folder / TOKENIZER_CONFIG).is_file() or not has_processor(folder):
            return Example(task)
        lines = (
            'texts = ["A long caption starts here.", "Another one."]\n'
            'image = Image.new("RGB", (640, 480))  # or yours: Image.open("photo.jpg").convert("RGB")\n'
            'inputs = processor(text=texts, images=image, padding="max_length", truncation=True, '
            f'max_length={length}, return_tensors="pt")'
        )
        return Example(task, ("processor", "AutoProcessor"), lines, ("from PIL import Image",))
