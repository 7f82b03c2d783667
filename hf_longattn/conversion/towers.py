"""Conversions of models with several towers, such as CLIP. Each tower is planned and checked like a separate model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..configuration import LongAttentionConfig
from ..errors import OptionError, checkpoint_errors
from ..modeling.family.definition import Family, tower_field
from ..modeling.family.input_spec import AUTO
from ..modeling.family.towers_spec import check_towers
from ..reports import FAILED, Check, Difference, equality
from .architecture import NAMES, Architecture, find_architecture
from .check import BASE, Comparison, attending, check_finite
from .check_texts import TEXTS
from .images import IMAGES
from .modality import SETTINGS, Modality
from .plan import ConversionPlan
from .running import run_model
from .settings import ConversionConfig
from .sized import affordable_size
from .source import Source, tower_of

LONGEST_CAPTION = 512
"""Maximum tokens of the text in the comparison of text-image similarities."""
PARTS: dict[str, Modality] = {"text": TEXTS, "grid": IMAGES}
"""The kind of input that a tower reads -> the functions of a conversion for this kind."""


class InputsOfTowers(dict[str, Any]):
    """Name of a tower -> its inputs."""

    def describe(self) -> str:
        """The origin of the inputs, for a report."""
        return ", ".join(f"{name}: {inputs.describe()}" for name, inputs in self.items())


def part_of(tower: Family) -> Modality:
    return PARTS[tower.spec.reads]


def plan_towers(source: Source, architecture: Architecture, request: ConversionConfig) -> ConversionPlan:
    """Plan each tower like a separate checkpoint. Tensors outside the towers do not change."""
    family = architecture.family
    requests = tower_requests(architecture, request)
    plans: dict[str, ConversionPlan] = {}
    for name, tower in family.towers.items():
        tower_source = tower_of(source, name, tower.base_model_name)
        tower_architecture = find_architecture(tower_source, requests[name])
        plans[name] = part_of(tower).plan(tower_source, tower_architecture, requests[name])

    # the config of the whole model, with the towers' configs inside
    values = {name: value for name, value in architecture.source_config.to_dict().items() if name not in NAMES}
    for name, plan in plans.items():
        tower_values = {key: value for key, value in plan.config.to_dict().items() if key not in NAMES}
        values[tower_field(name)] = {**tower_values, "model_type": plan.config.model_type}
    with checkpoint_errors(f"The source's config makes no valid {architecture.long_class}"):
        config: Any = family.config_class.from_dict(values)
    config.architectures = [architecture.long_class]
    changed = [plan for plan in plans.values() if plan.position_change]
    pairs = f"pairs of a text and an image ({' and '.join(str(plan.inputs.new) for plan in plans.values())})"
    return replace(
        plans[family.text_tower[0]],
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
        training={"advice": f"fine-tune {{model}} with transformers' Trainer on {pairs}; the model returns the loss"},
    )


def tower_requests(architecture: Architecture, request: ConversionConfig) -> dict[str, ConversionConfig]:
    """Name of a tower -> its settings. A setting that applies to other kinds of input is unset."""
    towers, model_class, chosen = architecture.family.towers, architecture.source_class, request.towers or {}
    names = [*towers]
    if request.names_attention:
        example = ",".join(f"{name}=MECHANISM" for name in names)
        raise OptionError(
            f"The towers of a {model_class}, {' and '.join(names)}, have separate mechanisms, to which --mechanism, "
            f"--option and --layers do not apply; give --towers {example}."
        )
    strategies: dict[str, str] = {}  # tower -> strategy, from text such as "text=stretch:20,vision=tile"
    if request.positions != AUTO:
        strategies = dict(rule.partition("=")[::2] for rule in request.positions.split(","))
    if "" in strategies.values():
        example = ",".join(f"{name}=RULE" for name in names)
        raise OptionError(
            f"The towers of a {model_class} have separate positions; give --positions {example}, or some of them."
        )
    check_towers({**chosen, **strategies}, names, model_class)
    requests = {}
    for name, tower in towers.items():
        attention = chosen.get(name) or {}
        if isinstance(attention, LongAttentionConfig):
            attention = attention.to_dict()
        options = {option: value for option, value in attention.items() if option != "mechanism"}
        unset: dict[str, Any] = dict.fromkeys(SETTINGS.keys() - {*part_of(tower).settings})
        requests[name] = replace(
            request,
            **unset,
            mechanism=attention.get("mechanism"),
            options=options or None,
            positions=strategies.get(name, AUTO),
        )
    return requests


def tower_inputs(
    family: Family, config: Any, folder: Path, text: tuple[str, str], recording: Path | None
) -> InputsOfTowers:
    """The inputs of each tower, for comparing source and result."""
    return InputsOfTowers(
        {
            name: part_of(tower).inputs(tower, getattr(config, tower_field(name)), folder, text, recording)
            for name, tower in family.towers.items()
        }
    )


def check_processors(plan: ConversionPlan, folder: Path, inputs: InputsOfTowers) -> list[Check]:
    """Check the tokenizer and the processors in the result's folder."""
    return [
        check
        for name, tower in plan.towers.items()
        for check in part_of(tower.architecture.family).check_processor(tower, folder, inputs[name])
    ]


def check_model(comparison: Comparison) -> list[Check]:
    """Check each tower, and then the whole model. If a tower fails, the rest is not checked."""
    checks: list[Check] = []
    for name, tower in comparison.plan.towers.items():
        part = part_of(tower.architecture.family)
        checks += [replace(check, name=f"{name}: {check.name}") for check in part.check(comparison.tower(name))]
        if any(check.status == FAILED for check in checks):
            return checks
    return [*checks, *check_similarity(comparison)]


def check_similarity(comparison: Comparison) -> list[Check]:
    """Compare the similarity of a text and an image at the old sizes. At the new sizes, it must be finite, like the
    loss.

    The text is as long as its positions are unchanged.
    """
    plan, source, result, inputs = comparison.plan, comparison.source, comparison.result, comparison.inputs
    why, length = "", min(plan.old_length, LONGEST_CAPTION)
    if plan.position_change and plan.unchanged_tokens > 1:
        length = min(length, plan.unchanged_tokens)
    elif plan.position_change:
        why = plan.position_change
    old: dict[str, Any] = {}  # arguments of `forward` at the old sizes
    new: dict[str, Any] = {}  # the same at the new sizes
    descriptions = []
    for name, tower in plan.towers.items():
        size = tower.inputs.old if tower.inputs.old.name else tower.inputs.at(length)
        descriptions.append(f"one {tower.inputs.spec.noun} of {size}")
        old |= inputs[name].at(size)
        new |= inputs[name].at(affordable_size(tower))
    with attending(result, BASE):
        difference = Difference.of(run_model(source, old), run_model(result, old))
    detail = f"similarity of {' and '.join(descriptions)}, with full attention: largest difference from the source"
    equal = equality("similarities of text and image equal", detail, difference, {"length": length}, why)
    with torch.no_grad():
        returned = result(**new, return_loss=True, return_dict=True)
    outputs = {"loss": returned.loss, "similarity": returned.logits_per_text}
    return [equal, check_finite("finite at the new sizes", "similarity and loss at the new sizes", outputs)]


TOWERS = Modality(
    ("towers", "max_length", "verify_text", "image_size"), plan_towers, tower_inputs, check_processors, check_model
)
