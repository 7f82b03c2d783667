"""Inputs of a transformers class without a Long class. Only the length of texts with rotary positions can change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers
from torch import Tensor

from ..configuration import LongAttentionConfig
from ..conversion.check import Comparison, check_finite
from ..conversion.plan import ConversionPlan, StackLength, position_warnings
from ..conversion.source_models import attached_mechanisms
from ..engines.call import AttentionCall
from ..errors import OptionError
from ..files import GENERIC_CLASS, named_class
from ..mechanisms import Mechanism
from ..modeling.attach.tower_grids import packs_images
from ..modeling.backend import BACKEND
from ..modeling.costs import costs_of, generic_shape, layer_mechanisms
from ..modeling.family.definition import TOWER_CONFIG, tower_field
from ..modeling.family.long_config import attention_implementation
from ..modeling.family.rotary import plan_rotary
from ..modeling.family.sliding_window import own_windows, with_own_windows
from ..modeling.generic import mark_generic, set_implementation, towers_of
from ..reports import Check, Difference, equality
from .grid_inputs import image_example
from .modality import AUTO, Example, InputSize, modality_of_model
from .running import TOKENS, reads_only_text, run_model, seeded_inputs
from .sized import has_processor
from .text_inputs import TextModality
from .tokenizer import check_tokenizer, load_tokenizer

UNCHANGED = "as they were"
ADVICE = {"advice": "fine-tune {model} with transformers' Trainer"}
LONGEST, LOGITS = 4096, 2**26
"""Maximum tokens, and maximum logits, of the inputs for checking a plain class for NaN."""


def text_length(config: Any) -> int:
    """Maximum length of a text in tokens. 0 if the config does not say, or has no vocabulary (time series)."""
    text = config.get_text_config()
    said = getattr(text, "max_position_embeddings", None)
    return said if isinstance(said, int) and hasattr(text, "vocab_size") else 0


def text_tower(config: Any, names: Iterable[str]) -> str:
    """Name of the tower that reads texts, or "". If the whole config is the text config, the first of ``names``
    without a sub-config."""
    text = config.get_text_config()
    if text is config:
        return next((name for name in names if tower_field(name) not in config.sub_configs), "")
    return next(
        (field.removesuffix(TOWER_CONFIG) for field in config.sub_configs if getattr(config, field, None) is text), ""
    )


class PlainModality(TextModality):
    """The inputs of a plain class with mechanisms."""

    noun, nouns = "input", "inputs"
    settings = ("max_length", "towers")
    reads = "keeps its other sizes with --generic"

    def size(self, config: Any, value: Any) -> InputSize:
        if not value:
            return InputSize(0, 0, "inputs as its class reads them")
        return super().size(config, value)

    def longest(self, config: Any) -> int:
        return text_length(config)

    def plan(self, source: Any, architecture: Any, request: Any) -> ConversionPlan:
        """Plan a ``--generic`` conversion: the source's class and config, with mechanisms added."""
        base = architecture.source_config

        def with_windows(attention: Any, stack: Any) -> LongAttentionConfig:
            return with_own_windows(
                attention, own_windows(stack) if isinstance(getattr(stack, "num_hidden_layers", None), int) else []
            )

        if request.towers is None:
            chosen = {"": with_windows(request.attention() if request.names_attention else None, base)}
        else:
            chosen = {
                name: with_windows(value, getattr(base, tower_field(name), None))
                for name, value in request.towers.items()
            }
        old = text_length(base)
        length = StackLength(old, old if request.max_length is None else int(request.max_length))
        config, strategy, position_change = _config(architecture, chosen, request.positions, length)
        if reads_only_text(architecture.model_class):
            load_tokenizer(source.folder, config)
        skeleton: Any = architecture.skeleton(config)
        plans = {}
        for name, (module, facts) in self.plain_parts(skeleton, chosen, (length.old, length.new)).items():
            plans[name] = ConversionPlan(
                **facts,
                source=source,
                architecture=architecture,
                config=module.config,
                positions=UNCHANGED,
                position_change="",
                skeleton=module,
                tokenizer_length=length.new,
                training=None if length.new and reads_only_text(architecture.model_class) else ADVICE,
            )
            if not name or name == text_tower(base, [name]):
                sizes, attention, shape = (facts[fact] for fact in ("inputs", "attention", "shape"))
                layers = layer_mechanisms(attention, shape, sizes.new.tokens or None)
                lengths, auto, scaled = (
                    StackLength(sizes.old.tokens, sizes.new.tokens),
                    request.positions == AUTO,
                    bool(position_change),
                )
                warnings = position_warnings(
                    strategy, attention, layers, lengths, causal=shape.causal, scaled=scaled, auto=auto
                )
                plans[name] = replace(
                    plans[name], positions=strategy, position_change=position_change, warnings=tuple(warnings)
                )
        if "" in plans:
            return plans[""]
        return replace(
            next(iter(plans.values())),
            config=config,
            inputs=self.between(config, length.old, length.new),
            positions=strategy,
            position_change=position_change,
            skeleton=skeleton,
            costs=(),
            warnings=tuple(warning for plan in plans.values() for warning in plan.warnings),
            towers=plans,
            other_towers=tuple(name for name in towers_of(skeleton) if name not in chosen),
        )

    def plain_parts(
        self, skeleton: Any, attention: Mapping[str, LongAttentionConfig], lengths: tuple[int, int]
    ) -> dict[str, tuple[Any, dict[str, Any]]]:
        """Name -> module on the meta device and facts for its plan, for the model (empty name) or for its towers with
        mechanisms.

        ``lengths``: text lengths of source and result. ``inputs`` in the facts have 0 tokens if no config has their
            size.
        """
        modules, parts = {**towers_of(skeleton), "": skeleton}, {}
        for name, chosen in attention.items():
            module, reads_texts = modules[name], not name or name == text_tower(skeleton.config, [name])
            modality, said = modality_of_model(module.config), text_length(module.config)
            inputs = self.between(None, *(lengths if reads_texts and any(lengths) else (said, said)))
            if packs_images(module):
                size = InputSize(None, 0, "images of any size")
                inputs = replace(inputs, old=size, new=size)
            elif modality is not None and modality.units:
                inputs = modality.sizes(module.config)
            shape = generic_shape(module, skeleton.config)
            costs = costs_of(inputs, chosen, shape) if inputs.old.tokens else ()
            if shape.causal:  # a plain class caches every token
                costs = tuple(
                    replace(cost, cache_bytes=shape.layers * cost.length * shape.token_bytes) for cost in costs
                )
            parts[name] = module, {"attention": chosen, "shape": shape, "inputs": inputs, "costs": costs}
        return parts

    def inputs(self, config: Any, folder: Path, text: tuple[str, str] | None = None, files: Path | None = None) -> Any:
        """Description only: :meth:`check` makes inputs by :func:`~.running.seeded_inputs`."""
        return SimpleNamespace(describe=lambda: "seeded inputs")

    def processor(self, plan: Any, folder: Path, inputs: Any) -> list[Check]:
        return check_tokenizer(plan, folder, load_tokenizer(plan.source.folder))

    def check(self, comparison: Comparison) -> list[Check]:
        """Compare outputs with the source's: with the class's attention, with all mechanisms, and with the mechanisms
        of one tower. With mechanisms, outputs must be finite."""
        plan, source, result = comparison.plan, comparison.source, comparison.result
        seeded, implementation = seeded_inputs(source), attention_implementation(source.config)
        expected, of_shapes = run_model(source, seeded), f"outputs for {_shapes(seeded)}"
        keeps_windows = any(plan.source.config.get(field) is not None for field in ("sliding_window", "layer_types"))

        def compare(name: str, how: str, change: str) -> Check:
            covered: list[bool] = []

            def note(mechanism: Mechanism, args: tuple[Tensor, Tensor, Tensor, AttentionCall]) -> None:
                _, k, _, call = args
                covered.append(mechanism.covers(k.shape[2], causal=call.causal))

            hooks = [mechanism.register_forward_pre_hook(note) for mechanism in attached_mechanisms(result).values()]
            measured = run_model(result, seeded)
            for hook in hooks:
                hook.remove()
            why = change
            if not why and (keeps_windows or not covered or not all(covered)):
                why = "the mechanism does not cover the input"
            detail = f"{of_shapes}, {how}: largest difference from the source"
            return equality(name, detail, Difference.of(expected, measured), {}, why)

        mechanisms = compare("with the mechanism", "long attention", plan.position_change)
        vocabulary = getattr(result.config.get_text_config(), "vocab_size", 1)
        longest = seeded_inputs(result, max(TOKENS, min(plan.new_length, LONGEST, LOGITS // vocabulary)))
        finite = check_finite("finite", f"outputs for {_shapes(longest)}", run_model(result, longest))
        checks, towers = [], towers_of(result)
        for name, tower in plan.towers.items():
            for other in plan.towers:
                set_implementation(towers[other], BACKEND if other == name else implementation, is_tower=True)
            alone = " and ".join(
                dict.fromkeys(tower.attention.for_layer(layer)[0] for layer in range(tower.shape.layers))
            )
            change = plan.position_change or tower.position_change
            checks.append(
                compare(f"with the mechanism of the tower {name}", f"{alone} in the tower {name} alone", change)
            )
        set_implementation(result, implementation, is_tower=False)
        detail = f"{of_shapes}, the class's attention: largest difference from the source"
        difference = Difference.of(expected, run_model(result, seeded))
        return [
            equality("equal with the source's attention", detail, difference, {}, plan.position_change),
            *checks,
            mechanisms,
            finite,
        ]

    def example(self, folder: Path, config: Mapping[str, Any], length: int) -> Example:
        name = named_class(config, "").removeprefix(GENERIC_CLASS)
        model_class: Any = getattr(transformers, name) if name in self.family.model_classes else None
        if model_class is not None and reads_only_text(model_class):
            return super().example(folder, config, length)
        if model_class is None or model_class.main_input_name != "pixel_values" or not has_processor(folder):
            return Example(None)
        return image_example(None, 480, 640)


def _config(
    architecture: Any, chosen: Mapping[str, LongAttentionConfig], positions: str, length: StackLength
) -> tuple[Any, str, str]:
    """The config of the result, the strategy for positions, and why positions change outputs (empty if they do not).

    Refuses new positions, except rotary positions of texts.
    """
    base = architecture.source_config
    config = base.__class__.from_dict(base.to_dict())
    config.architectures = [architecture.source_class]
    mark_generic(config, chosen.get("", chosen))
    text = config.get_text_config()
    if isinstance(getattr(text, "rope_parameters", None), dict) and length.old:
        length.check_grows()
        reading = chosen.get("") or chosen.get(text_tower(base, chosen), LongAttentionConfig("full"))
        causal = True if architecture.source_class.endswith(("ForCausalLM", "ForConditionalGeneration")) else None
        rope = plan_rotary(text, reading, positions, length.old, length.new, causal=causal)
        if rope.relative:
            raise OptionError(
                f"rope:{rope.scaling} is for architectures with Long classes; choose other positions with --generic."
            )
        rope.write(text)
        return (
            config,
            f"rope:{rope.scaling}",
            "" if rope.exact else f"rope:{rope.scaling} changes the old positions too",
        )
    if length.new != length.old or positions != AUTO:
        raise OptionError(
            f"--generic cannot change the positions of a {architecture.source_class}; leave --max-length and "
            "--positions out."
        )
    return config, UNCHANGED, ""


def _shapes(inputs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items() if isinstance(value, Tensor))
