"""The plan of a conversion, from its settings, the source's config and tensor headers. Values are read only by a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..configuration import LongAttentionConfig
from ..errors import OptionError
from ..evaluation.flops import LengthCost, ModelShape, costs_of, layer_mechanisms, model_shape
from ..files import check_destination
from ..inputs.kind import InputKind, InputSizes, WithTowers
from ..inputs.tokenizer import load_tokenizer
from ..mechanisms.common.options import RELATIVE
from ..mechanisms.common.registry import mechanism_class
from ..modeling.attach.text_globals import TEXT_GLOBAL
from ..modeling.attach.token_globals import chooses_by_ids, question_separator, takes_globals
from ..modeling.family.sliding_window import own_windows
from ..modeling.generic import PlainFamily
from ..positions.relative import relative_kind, unchanged_tokens
from ..positions.tables import ALIBI
from .config import AUTO, ConversionConfig
from .model_loading import quiet_libraries
from .plan_positions import (
    PositionWarning,
    ShortTexts,
    StackLength,
    plan_positions,
    position_warnings,
    stack_lengths,
    with_short_texts,
)
from .sources import Architecture, Source, find_architecture, open_source, scores_pairs

Chooser = Callable[[Source, ConversionConfig], tuple[LongAttentionConfig, Mapping[str, Any]]]
"""Function of an opened source and its settings that returns the attention, and a record of what was chosen and why."""


@dataclass(frozen=True)
class ConversionPlan(WithTowers):
    """Everything that is decided before a byte is written. Each tower's `attention`, `shape` and `costs` are in the tower's plan."""

    source: Source
    architecture: Architecture
    config: Any  # the config of the result
    inputs: InputSizes  # sizes of the inputs of source and result
    positions: str  # the rule for positions
    attention: LongAttentionConfig
    position_change: str  # reason why new positions change outputs below the old length; empty if they do not
    skeleton: Any  # the result on the meta device
    shape: ModelShape
    costs: tuple[LengthCost, ...]
    warnings: tuple[PositionWarning, ...] = ()  # about positions that need training
    short_texts: ShortTexts = field(default_factory=ShortTexts)
    unchanged_tokens: int = 0  # if positions change outputs: maximum text length with unchanged outputs
    decoder: StackLength | None = None  # decoder lengths of an encoder-decoder; `inputs` has the encoder's
    tokenizer_length: int = 0  # the limit of the result's tokenizer; 0 keeps the source's
    training: Mapping[str, Any] | None = None  # how to train the result, for the report; None: as its head and texts say
    choice: Mapping[str, Any] | None = None  # with mechanism "auto": what was chosen and why
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # new contents of copied JSON files
    towers: Mapping[str, ConversionPlan] = field(default_factory=dict)
    other_towers: tuple[str, ...] = ()  # towers of a plain class that keep its attention

    @property
    def kind(self) -> InputKind:
        """The kind of input that source and result read."""
        return self.architecture.kind

    @property
    def old_length(self) -> int:
        """Tokens that the source takes."""
        return self.inputs.old.tokens

    @property
    def new_length(self) -> int:
        """Tokens that the result takes."""
        return self.inputs.new.tokens

    @property
    def new_input(self) -> str:
        """The result's maximum input as text."""
        return " and ".join(str(part.inputs.new) for part in self.parts.values())

    @property
    def old_input(self) -> str:
        """The source's maximum input as text."""
        return " and ".join(str(part.inputs.old) for part in self.parts.values())

    @property
    def parameters(self) -> int:
        """Number of the result's parameters."""
        return sum(parameter.numel() for parameter in self.skeleton.parameters())

    @property
    def total_bytes(self) -> int:
        """Bytes of the result's weights."""
        return self.parameters * self.shape.element_bytes

    @property
    def generic(self) -> bool:
        """Whether the result keeps the source's class and has mechanisms."""
        return isinstance(self.architecture.family, PlainFamily)

    @property
    def text_global(self) -> bool:
        """Whether all tokens except image tokens are global, in a plain class's language model."""
        return bool((getattr(self.config, "long_attention", None) or {}).get(TEXT_GLOBAL)) if self.generic else False

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        decoder, attention = None, self.by_tower(lambda tower: tower.attention.to_dict()) or self.attention.to_dict()
        sizes = {
            f"{when}_{name}": value
            for part in self.parts.values()
            for when, size in (("old", part.inputs.old), ("new", part.inputs.new))
            for name, value in size.values.items()
        }
        if self.decoder is not None:
            of_decoder = self.config.decoder_attention.to_dict()
            decoder = {"long_attention": of_decoder, "old_length": self.decoder.old, "new_length": self.decoder.new}
        return {
            "source": self.source.name,
            "source_class": self.architecture.source_class,
            "original_architecture": None if self.architecture.converter is None else self.source.config["model_type"],
            "long_class": self.architecture.long_class,
            "model_type": self.config.model_type,
            **({"generic": True} if self.generic else {}),
            "long_attention": {**attention, **({TEXT_GLOBAL: True} if self.text_global else {})},
            **({} if self.choice is None else {"choice": dict(self.choice)}),
            "old_length": self.old_length,
            "new_length": self.new_length,
            "input": self.new_input if self.old_input == self.new_input else f"{self.old_input} → {self.new_input}",
            **sizes,
            **({} if decoder is None else {"decoder": decoder}),
            "positions": self.positions,
            **({"short_texts": said} if (said := str(self.short_texts)) else {}),
            **({"warnings": [*map(str, self.warnings)]} if self.warnings else {}),
            "parameters": self.parameters,
            "result_bytes": self.total_bytes,
            "costs": [cost.to_dict() for cost in self.costs],
            **self.by_tower(lambda tower: tower.to_dict()),
        }


@quiet_libraries()
def plan_conversion(
    source: str | Path | Source,
    destination: str | Path | None = None,
    config: ConversionConfig | None = None,
    *,
    choose: Chooser | None = None,
    **settings: Any,
) -> ConversionPlan:
    """Say what a conversion would do.

    Args:
        source: a folder or a Hub repository id.
        destination: checked as a conversion checks it, if given.
        config: the settings; or its fields, and options of the mechanism, as keywords.
        choose: the function that chooses mechanisms for ``mechanism="auto"``: :func:`hf_longattn.search.choose_mechanisms`.

    Raises:
        LongAttentionError: one sentence about anything that would make the conversion fail.
    """
    request = ConversionConfig.from_keywords(config, settings)
    searches = request.mechanism == AUTO
    if searches and choose is None:
        raise OptionError("mechanism='auto' searches: pass choose=hf_longattn.search.choose_mechanisms, or name a mechanism.")
    if not searches and (request.mechanism is not None or request.long_attention is not None):  # the default depends on the family
        request.attention()  # a mistyped name is refused before anything is fetched
    opened = source if isinstance(source, Source) else open_source(source, request.revision, request.token, weights=searches)
    if destination is not None:
        check_destination(Path(destination), *opened.protected, overwrite=request.overwrite)
    if choose is None or not searches:
        return plan_source(opened, request)
    find_architecture(opened, request)  # before the search, which takes long
    attention, choice = choose(opened, request)
    return replace(plan_source(opened, replace(request.without_search(), long_attention=attention)), choice=choice)


def plan_source(opened: Source, request: ConversionConfig) -> ConversionPlan:
    """The plan for an opened source, by its kind of input."""
    architecture = find_architecture(opened, request)
    plan: ConversionPlan = architecture.kind.plan(opened, architecture, request)
    return plan


def plan_texts(opened: Source, architecture: Architecture, request: ConversionConfig) -> ConversionPlan:
    """Plan a model of texts, by the lengths of its stacks."""
    base = architecture.source_config
    original = architecture.original_attention()
    attention, decoder_attention = request.attention(original) if original is not None or request.names_attention else None, None
    if request.decoder_long_attention is not None:
        if not architecture.encoder_decoder:
            what = f"{architecture.source_class} is not an encoder-decoder"
            raise OptionError(f"{what}; give its attention as --mechanism (mechanism=…) alone.")
        decoder_attention = LongAttentionConfig.from_dict(request.decoder_long_attention)
    config = architecture.long_config(attention, decoder_attention)  # with the family's default attention, and the base's windows
    attention, (encoding, causal), short_texts = config.long_attention, config.attending, ShortTexts()
    pairs = architecture.source_class.endswith("ForQuestionAnswering") or scores_pairs(opened.card_folder, base)
    marks_question = pairs and original is None
    unseparated = getattr(base, "sep_token_id", None) is None and with_separator(attention, 0).to_dict() != attention.to_dict()
    tokenizer = load_tokenizer(opened.folder, base)
    separator = question_separator(tokenizer) if tokenizer is not None and (marks_question or unseparated) else None
    if unseparated and separator is not None:
        attention = with_separator(attention, separator)

    length, decoder = stack_lengths(opened, architecture, request)
    planned = plan_positions(architecture, attention, request.positions, length, decoder)
    if planned.relative:
        attention = with_relative(attention, planned.relative)
        if planned.rope is None and decoder is not None:
            decoder_attention = with_relative(decoder_attention or LongAttentionConfig("full"), planned.relative)
    position_change, unchanged = planned.position_change, planned.unchanged or 0
    for choice in (choice for stack in (attention, decoder_attention) if stack is not None for choice in relative_choices(stack)):
        tokens = unchanged_tokens(choice)
        if tokens is not None and tokens < length.old:
            unchanged = min(tokens, unchanged) if position_change else tokens
            changed = f"texts of over {tokens} tokens" if tokens else "every score"
            position_change = position_change or f"relative={choice} changes {changed}"
    if original is None and not causal:
        windows = own_windows(base) if decoder is None else [None] * encoding  # encoders with a decoder have no windows
        attention, short_texts = with_short_texts(attention, windows, length, position_change)
    config = architecture.long_config(attention, decoder_attention, planned.lengths, planned.rope, planned.rule)
    skeleton = architecture.skeleton(config)
    if marks_question and takes_globals(skeleton) and not chooses_by_ids(skeleton):
        config.question_separator_id = separator

    shape = model_shape(config, skeleton)
    mechanisms = layer_mechanisms(attention, shape, length.new)
    auto = request.positions == "auto"
    warnings = position_warnings(planned.rule, attention, mechanisms, length, causal=shape.causal, auto=auto)
    if decoder is not None:
        decoder_attention = config.decoder_attention
        layers = layer_mechanisms(decoder_attention, ModelShape.of(config, causal=True), decoder.new)
        warnings += position_warnings(planned.rule, decoder_attention, layers, decoder, causal=True, decoder=True)
    inputs = architecture.kind.between(config, length.old, length.new)
    return ConversionPlan(
        source=opened,
        architecture=architecture,
        config=config,
        inputs=inputs,
        positions=planned.rule,
        attention=attention,
        position_change=position_change,
        short_texts=short_texts,
        unchanged_tokens=unchanged,
        skeleton=skeleton,
        shape=shape,
        costs=costs_of(inputs, attention, shape),
        warnings=tuple(warnings),
        decoder=decoder,
        tokenizer_length=length.new,
    )


def relative_choices(attention: LongAttentionConfig) -> list[str]:
    """The values of the option ``relative`` in all layers."""
    choices = [attention.options, *attention.turns, *attention.layers.values()]
    return [values[RELATIVE] for values in choices if values.get(RELATIVE) is not None]


def with_relative(attention: LongAttentionConfig, choice: str) -> LongAttentionConfig:
    """``attention`` with ``relative=choice`` in every layer; in layers with full attention alone, if it moves rotary positions."""
    others = [other for other in relative_choices(attention) if other != choice]
    if others:
        instead = "give positions='none' to keep the latter alone" if choice == ALIBI else "leave out one of them"
        raise OptionError(f"positions={choice!r} contradicts relative={others[0]!r}; {instead}.")
    moves = relative_kind(choice).counts_tokens
    return attention.with_option(RELATIVE, choice, lambda name, layer: not moves or mechanism_class(name).traits.moves_positions)


def with_separator(attention: LongAttentionConfig, separator: int) -> LongAttentionConfig:
    """``attention`` with ``separator`` wherever a segment is global and no separator is given."""
    option = "separator_token_id"

    def completed(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [completed(inner) for inner in value]
        if not isinstance(value, Mapping):
            return value
        inside = {name: completed(inner) for name, inner in value.items()}
        lacks = (inside.get("global_first_segment") or inside.get("global_second_segment")) and inside.get(option) is None
        return {**inside, option: separator} if lacks else inside

    return attention if attention.options.get(option) is not None else LongAttentionConfig.from_dict(completed(attention.to_dict()))
