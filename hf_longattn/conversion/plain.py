"""Conversions with ``--generic``: a class of transformers without a Long class keeps its class, and gets mechanisms.

The maximum length can change only for texts with rotary positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from ..configuration import LongAttentionConfig
from ..engines.call import AttentionCall
from ..errors import OptionError
from ..mechanisms import Mechanism
from ..modeling.attach.tower_grids import packs_images
from ..modeling.backend import BACKEND
from ..modeling.costs import LengthCost, ModelShape, costs_of, generic_shape, layer_mechanisms
from ..modeling.family.definition import known_family, tower_field
from ..modeling.family.input_spec import AUTO, InputSize, InputSizes
from ..modeling.family.long_config import attention_implementation
from ..modeling.family.plain_spec import PlainSpec, reads_only_text, text_length, text_tower
from ..modeling.family.rotary import plan_rotary
from ..modeling.family.sliding_window import own_windows, with_own_windows
from ..modeling.generic import mark_generic, set_implementation, towers_of
from ..reports import Check, Difference, equality
from .architecture import Architecture
from .check import Comparison, check_finite
from .check_texts import check_tokenizer
from .load import attached_mechanisms
from .modality import Modality
from .plan import ConversionPlan, StackLength, position_warnings
from .running import run_model
from .seeded_inputs import TOKENS, seeded_inputs
from .settings import ConversionConfig
from .source import Source
from .tokenizer import load_tokenizer

UNCHANGED = "as they were"
"""The strategy for positions of models whose positions do not change, as reports name it."""
LONGEST, LOGITS = 4096, 2**26
"""Maximum number of tokens, and of logits, when outputs are checked for NaN."""


def plan_plain(source: Source, architecture: Architecture, request: ConversionConfig) -> ConversionPlan:
    """Plan a ``--generic`` conversion: the source's class and config, with mechanisms added."""
    base = architecture.source_config

    def with_windows(attention: Any, stack: Any) -> LongAttentionConfig:
        """The attention for a model or tower with the config ``stack``. Layers with their own window keep it."""
        windows = own_windows(stack) if isinstance(getattr(stack, "num_hidden_layers", None), int) else []
        return with_own_windows(attention, windows)

    # tower -> attention; the empty name stands for the whole model
    if request.towers is None:
        chosen = {"": with_windows(request.attention() if request.names_attention else None, base)}
    else:
        chosen = {
            name: with_windows(value, getattr(base, tower_field(name), None)) for name, value in request.towers.items()
        }
    old = text_length(base)
    length = StackLength(old, old if request.max_length is None else int(request.max_length))
    config, strategy, position_change = plain_config(architecture, chosen, request.positions, length)
    only_text = reads_only_text(architecture.model_class)
    if only_text:
        load_tokenizer(source.folder, config)
    skeleton: Any = architecture.skeleton(config)
    training = {"advice": "fine-tune {model} with transformers' Trainer"}
    plans = {}
    for name, part in plain_parts(skeleton, chosen, length).items():
        plan = ConversionPlan(
            source=source,
            architecture=architecture,
            config=part.module.config,
            inputs=part.inputs,
            positions=UNCHANGED,
            attention=part.attention,
            skeleton=part.module,
            shape=part.shape,
            costs=part.costs,
            tokenizer_length=length.new,
            training=None if length.new and only_text else training,
        )
        if not name or name == text_tower(base, [name]):
            warnings = position_warnings(
                strategy,
                part.attention,
                layer_mechanisms(part.attention, part.shape, plan.new_length or None),
                StackLength(plan.old_length, plan.new_length),
                causal=part.shape.causal,
                scaled=bool(position_change),
                auto=request.positions == AUTO,
            )
            plan = replace(plan, positions=strategy, position_change=position_change, warnings=tuple(warnings))
        plans[name] = plan
    if "" in plans:
        return plans[""]
    # the plan of the whole model, which has the towers' plans
    return replace(
        next(iter(plans.values())),
        config=config,
        inputs=architecture.family.spec.between(config, length.old, length.new),
        positions=strategy,
        position_change=position_change,
        skeleton=skeleton,
        costs=(),
        warnings=tuple(warning for plan in plans.values() for warning in plan.warnings),
        towers=plans,
        other_towers=tuple(name for name in towers_of(skeleton) if name not in chosen),
    )


@dataclass(frozen=True)
class PlainPart:
    """A model that keeps its class, or one of its towers, with its mechanisms."""

    module: Any  # on the meta device
    attention: LongAttentionConfig
    inputs: InputSizes  # sizes of source and result, with 0 tokens if the config does not tell them
    shape: ModelShape
    costs: tuple[LengthCost, ...]


def plain_parts(
    skeleton: Any, attention: Mapping[str, LongAttentionConfig], length: StackLength
) -> dict[str, PlainPart]:
    """The towers that get mechanisms, by name. A model without named towers has one part with an empty name.

    Args:
        skeleton: the model on the meta device.
        attention: name of a tower -> its attention.
        length: maximum length of texts in source and result.
    """
    modules = {**towers_of(skeleton), "": skeleton}
    parts = {}
    spec = PlainSpec()
    for name, chosen in attention.items():
        module = modules[name]
        old = text_length(module.config)
        inputs = spec.between(None, old, old)
        if length.new and (not name or name == text_tower(skeleton.config, [name])):
            inputs = spec.between(None, length.old, length.new)
        family = known_family(module.config)
        if packs_images(module):
            size = InputSize(None, 0, "images of any size")
            inputs = replace(inputs, old=size, new=size)
        elif family is not None and family.spec.units:
            inputs = family.spec.sizes(family, module.config)
        shape = generic_shape(module, skeleton.config)
        costs = costs_of(inputs, chosen, shape) if inputs.old.tokens else ()
        if shape.causal:  # the class's own cache holds the keys and values of every token
            costs = tuple(replace(cost, cache_bytes=shape.layers * cost.length * shape.token_bytes) for cost in costs)
        parts[name] = PlainPart(module, chosen, inputs, shape, costs)
    return parts


def plain_config(
    architecture: Architecture, chosen: Mapping[str, LongAttentionConfig], positions: str, length: StackLength
) -> tuple[Any, str, str]:
    """The config of the result, and its positions. Only rotary positions of texts can change.

    Args:
        chosen: name of a tower -> its attention; the empty name stands for the whole model.
        positions: the setting ``positions``.
        length: maximum length of texts in source and result.
    Returns:
        The config, the strategy for positions, and the reason why positions change outputs (empty if they do not).
    Raises:
        OptionError: another length, or positions that cannot change.
    """
    base = architecture.source_config
    config = base.__class__.from_dict(base.to_dict())
    config.architectures = [architecture.source_class]
    mark_generic(config, chosen.get("", chosen))
    text = config.get_text_config()
    if isinstance(getattr(text, "rope_parameters", None), dict) and length.old:
        length.check_grows()
        attention = chosen.get("") or chosen.get(text_tower(base, chosen), LongAttentionConfig("full"))
        causal = True if architecture.source_class.endswith(("ForCausalLM", "ForConditionalGeneration")) else None
        rope = plan_rotary(text, attention, positions, length.old, length.new, causal=causal)
        if rope.relative:
            raise OptionError(
                f"rope:{rope.scaling} is for architectures with Long classes; choose other positions with --generic."
            )
        rope.write(text)
        strategy = f"rope:{rope.scaling}"
        return config, strategy, "" if rope.exact else f"{strategy} changes the old positions too"
    if length.new != length.old or positions != AUTO:
        raise OptionError(
            f"--generic cannot change the positions of a {architecture.source_class}; leave --max-length and "
            "--positions out."
        )
    return config, UNCHANGED, ""


def check_plain(comparison: Comparison) -> list[Check]:
    """Compare source and result on random inputs.

    The result runs with all mechanisms, with the mechanisms of each single tower, and with the attention of its class.
    With all mechanisms, outputs for a longer input must be finite.
    """
    plan, source, result = comparison.plan, comparison.source, comparison.result
    seeded = seeded_inputs(source)
    expected = run_model(source, seeded)
    described = f"outputs for {_shapes(seeded)}"
    implementation = attention_implementation(source.config)
    keeps_windows = any(plan.source.config.get(field) is not None for field in ("sliding_window", "layer_types"))

    def compare(name: str, attention: str, change: str) -> Check:
        """Compare outputs. ``attention``: description of the result's; ``change``: why positions change outputs."""
        covered: list[bool] = []  # of each call of a mechanism, whether it computes full attention

        def note_coverage(mechanism: Mechanism, args: tuple[Tensor, Tensor, Tensor, AttentionCall]) -> None:
            _, k, _, call = args
            covered.append(mechanism.covers(k.shape[2], causal=call.causal))

        mechanisms = attached_mechanisms(result).values()
        hooks = [mechanism.register_forward_pre_hook(note_coverage) for mechanism in mechanisms]
        measured = run_model(result, seeded)
        for hook in hooks:
            hook.remove()
        why = change
        if not why and (keeps_windows or not covered or not all(covered)):
            why = "the mechanism does not cover the input"
        detail = f"{described}, {attention}: largest difference from the source"
        return equality(name, detail, Difference.of(expected, measured), {}, why)

    mechanisms = compare("with the mechanism", "long attention", plan.position_change)
    vocabulary = getattr(result.config.get_text_config(), "vocab_size", 1)
    longest = seeded_inputs(result, max(TOKENS, min(plan.new_length, LONGEST, LOGITS // vocabulary)))
    finite = check_finite("finite", f"outputs for {_shapes(longest)}", run_model(result, longest))

    # one tower with mechanisms, the others with their class's attention
    checks = []
    towers = towers_of(result)
    for name, tower in plan.towers.items():
        for other in plan.towers:
            set_implementation(towers[other], BACKEND if other == name else implementation, is_tower=True)
        names = " and ".join(dict.fromkeys(tower.attention.for_layer(layer)[0] for layer in range(tower.shape.layers)))
        change = plan.position_change or tower.position_change
        checks.append(compare(f"with the mechanism of the tower {name}", f"{names} in the tower {name} alone", change))

    set_implementation(result, implementation, is_tower=False)
    detail = f"{described}, the class's attention: largest difference from the source"
    difference = Difference.of(expected, run_model(result, seeded))
    return [
        equality("equal with the source's attention", detail, difference, {}, plan.position_change),
        *checks,
        mechanisms,
        finite,
    ]


def _shapes(inputs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items() if isinstance(value, Tensor))


PLAIN = Modality(
    ("max_length", "towers"),
    plan_plain,
    # no inputs, only their description: `check_plain` makes inputs by `seeded_inputs`
    lambda family, config, folder, text, recording: SimpleNamespace(describe=lambda: "seeded inputs"),
    lambda plan, folder, inputs: check_tokenizer(plan, folder, load_tokenizer(plan.source.folder)),
    check_plain,
    predicate="keeps its other sizes with --generic",
)
