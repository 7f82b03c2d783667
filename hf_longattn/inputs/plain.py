"""Inputs of a class of transformers without a Long class. Only the length of texts with rotary positions can change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import transformers

from ..configuration import LongAttentionConfig
from ..conversion.check import Comparison
from ..conversion.check_plain import check_plain
from ..conversion.plan import ConversionPlan, parse_dtype
from ..conversion.plan_positions import StackLength, position_warnings
from ..errors import OptionError
from ..evaluation.flops import LengthCost, ModelShape, costs_of, generic_shape, layer_mechanisms
from ..files import GENERIC_CLASS, named_class
from ..modeling.attach.patch_places import packs_images
from ..modeling.attach.text_globals import TEXT_GLOBAL
from ..modeling.family.definition import TOWER_CONFIG, tower_field
from ..modeling.family.rotary import plan_rotary
from ..modeling.family.sliding_window import own_windows, with_own_windows
from ..modeling.generic import mark_generic, towers_of
from ..reports import Check
from .grid import IMAGE_READER, PILLOW, image_lines
from .kind import Example, kind_of_model
from .processors import IMAGE_PROCESSOR, ProcessorFile
from .running import reads_only_text
from .sizes import AUTO, TEXTS, InputSizes, text_sizes
from .text import TextKind
from .tokenizer import VerificationText, excerpt, load_tokenizer
from .towers import tower_inputs

ANY_SIZE = "images of any size"
"""Description of the input of a tower that packs images of any size into one row."""
UNCHANGED = "as they were"
"""The rule for positions that a plain class keeps."""


def text_length(config: Any) -> int:
    """Maximum length of a text, in tokens; 0 if the config does not say, or has no vocabulary, as those of time series."""
    text = config.get_text_config()
    said = getattr(text, "max_position_embeddings", None)
    return said if isinstance(said, int) and hasattr(text, "vocab_size") else 0


def text_tower(config: Any, names: Iterable[str]) -> str:
    """Name of the tower that reads texts, or "". If the text config is the model's config: the first of ``names`` without a sub-config."""
    text = config.get_text_config()
    if text is config:
        return next((name for name in names if tower_field(name) not in config.sub_configs), "")
    return next((field.removesuffix(TOWER_CONFIG) for field in config.sub_configs if getattr(config, field, None) is text), "")


class PlainKind(TextKind):
    """The inputs of a plain class with mechanisms."""

    words = replace(
        TEXTS, nouns="inputs", settings=("max_length", "verify_text", "towers"), reads="keeps its other sizes with --generic", instead={}
    )

    def sizes(self, config: Any) -> InputSizes:
        longest = text_length(config)
        return replace(text_sizes(min(512, longest), longest), words=self.words)

    def plan(self, source: Any, architecture: Any, request: Any) -> ConversionPlan:
        """Plan a ``--generic`` conversion: the source's class and config, with mechanisms added."""
        cast, base = parse_dtype(request.dtype), architecture.source_config

        def with_windows(attention: Any, stack: Any) -> LongAttentionConfig:
            """An attention with the base's windows, beside full layers, in layers that the request does not name."""
            return with_own_windows(attention, own_windows(stack) if isinstance(getattr(stack, "num_hidden_layers", None), int) else [])

        if request.towers is None:
            chosen = {"": with_windows(request.attention() if request.names_attention else None, base)}
        else:
            chosen = {name: with_windows(value, getattr(base, tower_field(name), None)) for name, value in request.towers.items()}
        old = text_length(base)
        length = StackLength(old, old if request.max_length is None else int(request.max_length))
        config, rule, position_change = _config(architecture, chosen, request.positions, length)
        if request.text_global:
            config.long_attention = {**config.long_attention, TEXT_GLOBAL: True}
        if reads_only_text(architecture.model_class):
            load_tokenizer(source.folder, config)
        if cast is not None:
            config.dtype = cast
        skeleton: Any = architecture.skeleton(config)
        attention, shape = next(iter(chosen.values())), generic_shape(skeleton, config)
        warnings = partial(position_warnings, rule, auto=request.positions == AUTO)
        layers = layer_mechanisms(attention, shape, length.new or None)
        texts = text_sizes(length.old, length.new)
        trained_here = length.new and reads_only_text(getattr(transformers, architecture.source_class))
        plan = ConversionPlan(
            source=source,
            architecture=architecture,
            config=config,
            inputs=texts,
            positions=rule,
            cast=cast,
            attention=attention,
            position_change=position_change,
            skeleton=skeleton,
            shape=shape,
            costs=(),
            warnings=tuple(warnings(attention, layers, length, causal=shape.causal)),
            tokenizer_length=length.new,
            training=None if trained_here else {"advice": "fine-tune {model} with transformers' Trainer"},
        )
        if "" in chosen:
            return plan
        towers = {}
        for name, part in parts_with_mechanisms(skeleton, chosen, (length.old, length.new)).items():
            of_texts = name == text_tower(config, [name])
            part_length = StackLength(part.inputs.old.tokens, part.inputs.new.tokens)
            layers = layer_mechanisms(part.attention, part.shape, part_length.new or None)
            towers[name] = replace(
                plan,
                config=part.module.config,
                attention=part.attention,
                skeleton=part.module,
                shape=part.shape,
                inputs=part.inputs,
                positions=rule if of_texts else UNCHANGED,
                position_change=position_change if of_texts else "",
                costs=part.costs(),
                warnings=tuple(warnings(part.attention, layers, part_length, causal=part.shape.causal)) if of_texts else (),
            )
        return replace(
            plan,
            towers=towers,
            inputs=tower_inputs([tower.inputs for tower in towers.values()], plan.inputs),
            other_towers=tuple(name for name in towers_of(skeleton) if name not in chosen),
            warnings=tuple(warning for tower in towers.values() for warning in tower.warnings),
        )

    def inputs(self, config: Any, folder: Path, text: tuple[str, str] | None = None, files: Path | None = None) -> VerificationText:
        """The text by which the tokenizer is checked. Outputs are compared on inputs that :mod:`.seeded` makes for the class."""
        assert text is not None
        vocabulary = getattr(config.get_text_config(), "vocab_size", 2)
        return VerificationText(excerpt(text[0], 0), text[1], load_tokenizer(folder), vocabulary, described="seeded inputs")

    def check(self, comparison: Comparison) -> list[Check]:
        return check_plain(comparison)

    def example(self, folder: Path, config: Mapping[str, Any], length: int) -> Example:
        name = named_class(config, "").removeprefix(GENERIC_CLASS)
        model_class: Any = getattr(transformers, name) if name in self.family.model_classes else None
        if model_class is not None and reads_only_text(model_class):
            return super().example(folder, config, length)
        if model_class is None or model_class.main_input_name != "pixel_values" or ProcessorFile.find(folder, IMAGE_PROCESSOR) is None:
            return Example(None)
        return Example(None, IMAGE_READER, image_lines(480, 640), (PILLOW,))


def _config(architecture: Any, chosen: Mapping[str, LongAttentionConfig], positions: str, length: StackLength) -> tuple[Any, str, str]:
    """The config of the result, the rule for positions, and why they change outputs. The last is empty if they do not.

    Raises:
        OptionError, InputError: the positions cannot change (not the rotary ones of texts), or the length is too small.
    """
    base = architecture.source_config
    config = base.__class__.from_dict(base.to_dict())
    config.architectures = [architecture.source_class]
    mark_generic(config, chosen.get("", chosen))
    text = config.get_text_config()
    if isinstance(getattr(text, "rope_parameters", None), dict) and length.old:
        length.check_grows()
        reading = chosen.get("") or chosen.get(text_tower(base, chosen), LongAttentionConfig("full"))
        rope = plan_rotary(text, reading, positions, length.old, length.new)
        if rope.relative:
            raise OptionError(f"rope:{rope.kind} is for architectures with Long classes; choose other positions with --generic.")
        rope.write(text)
        return config, f"rope:{rope.kind}", "" if rope.exact else f"rope:{rope.kind} changes the old positions too"
    if length.new != length.old or positions != AUTO:
        raise OptionError(
            f"--generic cannot change the positions of a {architecture.source_class}; leave --max-length and --positions out."
        )
    return config, UNCHANGED, ""


@dataclass(frozen=True)
class PlainPart:
    """A plain model, or one of its towers, with its planned attention.

    module: on the meta device, with its mechanisms.
    shape: of its layers.
    inputs: the sizes of its inputs; 0 tokens if no config states them.
    """

    module: Any
    attention: LongAttentionConfig
    shape: ModelShape
    inputs: InputSizes

    @classmethod
    def of(cls, module: Any, attention: LongAttentionConfig, whole: Any, lengths: tuple[int, int] | None) -> PlainPart:
        """`whole`: the whole model's config. `lengths`: of source and result; `None` takes them from the config of `module`."""
        kind, said = kind_of_model(module.config), text_length(module.config)
        inputs = text_sizes(*((said, said) if lengths is None else lengths))
        any_size = packs_images(module) or (kind is not None and kind.any_size)
        if any_size:
            words = replace(inputs.words, noun="image", units="pixels")
            shown: dict[str, Any] = {"old_words": ANY_SIZE, "new_words": ANY_SIZE, "longest": ANY_SIZE}
            inputs = replace(inputs, words=words, **shown, of_model={"input": ANY_SIZE})
        elif kind is not None and (sizes := kind.sizes(module.config)).new.name:
            inputs = sizes
        return cls(module, attention, generic_shape(module, whole), inputs)

    def costs(self) -> tuple[LengthCost, ...]:
        """The cost at each size; empty if no size is known."""
        if not self.inputs.old.tokens:
            return ()
        costs = costs_of(self.inputs, self.attention, self.shape)
        if self.shape.causal:  # a plain class caches every token
            costs = tuple(replace(cost, cache_bytes=self.shape.layers * cost.length * self.shape.token_bytes) for cost in costs)
        return costs


def parts_with_mechanisms(skeleton: Any, attention: Mapping[str, LongAttentionConfig], lengths: tuple[int, int]) -> dict[str, PlainPart]:
    """The part of each tower in `attention`, by name. The tower that reads texts has the `lengths` of source and result."""
    towers, parts = towers_of(skeleton), {}
    for tower, chosen in attention.items():
        said = lengths if tower == text_tower(skeleton.config, [tower]) and any(lengths) else None
        parts[tower] = PlainPart.of(towers[tower], chosen, skeleton.config, said)
    return parts
