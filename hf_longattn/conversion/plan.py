"""The plan of a conversion, from its settings, the source's config and tensor headers. Values are read only by a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, singledispatch
from pathlib import Path
from typing import Any

from ..configuration import LongAttentionConfig
from ..errors import OptionError, PositionError, checkpoint_errors
from ..files import check_destination
from ..inputs.common.base import SETTINGS, InputKind, LengthCost, PositionWarning, StackLength
from ..inputs.common.sized import SizedKind
from ..inputs.plain import PlainKind, PlainLengths, reads_only_text
from ..inputs.text import load_tokenizer, text_sizes
from ..inputs.towers import TowersKind, text_part, tower_inputs
from ..mechanisms import Mechanism
from ..mechanisms.common.options import RELATIVE
from ..mechanisms.common.registry import mechanism_class
from ..modeling.attach.text_globals import TEXT_GLOBAL
from ..modeling.attach.token_globals import chooses_by_ids, question_separator, takes_globals
from ..modeling.family.definition import tower_field
from ..modeling.family.rotary import plan_rotary
from ..modeling.family.sliding_window import own_windows, with_own_windows
from ..modeling.family.towers_config import check_towers
from ..modeling.generic import mark_generic, towers_of
from ..positions.relative import relative_kind, unchanged_tokens
from ..positions.tables import ALIBI, DROPPED, keeps_old_rows
from .architectures import NAMES, Architecture, find_architecture, generic_architecture
from .config import AUTO, ConversionConfig
from .flops import ModelShape, cost_of, cost_with, generic_shape, layer_mechanisms, model_shape
from .model_loading import quiet_libraries
from .plain_parts import parts_with_mechanisms, text_tower
from .plan_positions import ShortTexts, plan_positions, position_warnings, series_strategy, stack_lengths, with_short_texts
from .plan_tensors import ResultPlan, parse_dtype, plan_tensors, renamed_tensors, set_dtype, tensors_with_towers
from .sources import Source, open_source, scores_pairs, tower_of
from .stock import Stock, choose_stock

Chooser = Callable[[Source, ConversionConfig], tuple[LongAttentionConfig, Mapping[str, Any]]]
"""Function of an opened source and its settings that returns the attention, and a record of what was chosen and why."""


@dataclass(frozen=True)
class ConversionPlan(ResultPlan):
    """Everything that is decided before a byte is written. Each tower's `attention`, `shape` and `costs` are in the tower's plan."""

    attention: LongAttentionConfig
    position_change: str  # reason why new positions change outputs below the old length; empty if they do not
    shape: ModelShape
    costs: tuple[LengthCost, ...]
    warnings: tuple[PositionWarning, ...] = ()  # about positions that need training
    short_texts: ShortTexts = field(default_factory=ShortTexts)
    unchanged_tokens: int = 0  # if positions change outputs: maximum text length with unchanged outputs
    decoder: StackLength | None = None  # decoder lengths of an encoder-decoder; `inputs` has the encoder's
    plain: PlainLengths = field(default_factory=lambda: PlainLengths(0, 0))  # lengths of a plain class
    choice: Mapping[str, Any] | None = None  # with mechanism "auto": what was chosen and why
    towers: Mapping[str, ConversionPlan] = field(default_factory=dict, kw_only=True)
    other_towers: tuple[str, ...] = field(default=(), kw_only=True)  # towers of a plain class that keep its attention

    @property
    def generic(self) -> bool:
        """Whether the result keeps the source's class and has mechanisms."""
        return isinstance(self.kind, PlainKind)

    @cached_property
    def skeleton(self) -> Any:
        """The result on the meta device."""
        return self.architecture.skeleton(self.config)

    @cached_property
    def native_twin(self) -> Stock | None:
        """The stock architecture that computes the same, or why there is none. ``None`` for a result without a Long class."""
        if self.generic:
            return None
        return choose_stock(self.config, self.architecture.long_class, self.architecture.family)

    @property
    def text_global(self) -> bool:
        """Whether all tokens except image tokens are global, in a plain class's language model."""
        return bool((getattr(self.config, "long_attention", None) or {}).get(TEXT_GLOBAL)) if self.generic else False

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        decoder = None
        if self.decoder is not None:
            attention = self.config.decoder_attention.to_dict()
            decoder = {"long_attention": attention, "old_length": self.decoder.old, "new_length": self.decoder.new}
        return {
            "source": self.source.name,
            "source_class": self.architecture.source_class,
            "original_architecture": None if self.architecture.converter is None else self.source.config["model_type"],
            "long_class": self.architecture.long_class,
            "model_type": self.config.model_type,
            **({"generic": True} if self.generic else {}),
            "long_attention": {**self.long_attention(), **({TEXT_GLOBAL: True} if self.text_global else {})},
            **({} if self.choice is None else {"choice": dict(self.choice)}),
            "old_length": self.old_length,
            "new_length": self.new_length,
            **self.inputs.report,
            **(self.plain.report if self.generic else {}),
            **({} if decoder is None else {"decoder": decoder}),
            "positions": self.positions,
            **({"short_texts": said} if (said := str(self.short_texts)) else {}),
            **({} if self.native_twin is None else {"native_twin": self.native_twin.to_dict()}),
            **({"warnings": [*map(str, self.warnings)]} if self.warnings else {}),
            **self.sizes(),
            "costs": [cost.to_dict() for cost in self.costs],
            **self.report_of_towers(),
        }


@quiet_libraries()
def plan_conversion(
    source: str | Path | Source,
    destination: str | Path | None = None,
    config: ConversionConfig | None = None,
    *,
    choose: Chooser | None = None,
    progress: object = None,
    **settings: Any,
) -> ConversionPlan:
    """Say what a conversion would do.

    Args:
        source: a folder, a file or a Hub repository id.
        destination: checked as a conversion checks it, if given.
        config: the settings; or its fields, and options of the mechanism, as keywords.
        choose: the function that chooses mechanisms for ``mechanism="auto"``: :func:`hf_longattn.search.choose_mechanisms`.
        progress: not called; a plan takes the arguments of a conversion.

    Raises:
        LongAttentionError: one sentence about anything that would make the conversion fail.
    """
    request = ConversionConfig.from_keywords(config, settings)
    searches = request.mechanism == AUTO
    if searches and choose is None:
        raise OptionError("mechanism='auto' searches: pass choose=hf_longattn.search.choose_mechanisms, or name a mechanism.")
    if not searches and (request.mechanism is not None or request.long_attention is not None):
        request.attention()  # a mistyped name is refused before anything is fetched
    parse_dtype(request.dtype)
    opened = source
    if not isinstance(opened, Source):
        opened = open_source(opened, revision=request.revision, token=request.token, headers_only=not searches)
    if destination is not None:
        check_destination(Path(destination), *opened.protected, overwrite=request.overwrite)
    if choose is None or not searches:
        return _plan(opened, request)
    _checked_architecture(opened, request)  # before the search, which takes long
    attention, choice = choose(opened, request)
    return replace(_plan(opened, replace(request.without_search(), long_attention=attention)), choice=choice)


def _checked_architecture(opened: Source, request: ConversionConfig) -> Architecture:
    """The architecture of a source, if all settings are for it."""
    architecture = generic_architecture(opened) if request.generic else find_architecture(opened)
    architecture.kind.check_settings(f"a {architecture.source_class}", request)
    architecture.kind.check_has_size(architecture)
    architecture.kind.check_parts(f"a {architecture.source_class}", request)
    return architecture


def _plan(opened: Source, request: ConversionConfig) -> ConversionPlan:
    architecture = _checked_architecture(opened, request)
    return _plan_of(architecture.kind, opened, architecture, request)


@singledispatch
def _plan_of(kind: InputKind, opened: Source, architecture: Architecture, request: ConversionConfig) -> ConversionPlan:
    """Plan a model by its kind of input: here, by the lengths of its stacks."""
    cast = parse_dtype(request.dtype)
    base = architecture.source_config
    original = architecture.original_attention()
    chosen = original is not None or request.names_attention
    attention = request.attention(original) if chosen else architecture.family.config_class.default_attention()
    windows = own_windows(base)
    attention = with_own_windows(attention, windows)
    decoder_attention = None
    if request.decoder_long_attention is not None:
        if not architecture.encoder_decoder:
            what = f"{architecture.source_class} is not an encoder-decoder"
            raise OptionError(f"{what}; give its attention as --mechanism (mechanism=…) alone.")
        decoder_attention = LongAttentionConfig.from_dict(request.decoder_long_attention)
        decoder_attention.check_layers(architecture.family.decoder_layers(base))
    attention.check_layers(architecture.family.decoder_layers(base) if architecture.decoder_alone else base.num_hidden_layers)
    pairs = architecture.source_class.endswith("ForQuestionAnswering") or scores_pairs(opened.card_folder, base)
    marks_question = pairs and original is None
    unseparated = getattr(base, "sep_token_id", None) is None and with_separator(attention, 0).to_dict() != attention.to_dict()
    tokenizer = load_tokenizer(opened.folder, base)
    separator = question_separator(tokenizer) if tokenizer is not None and (marks_question or unseparated) else None
    if unseparated and separator is not None:
        attention = with_separator(attention, separator)

    renamed = renamed_tensors(opened, architecture)
    targets = [tensor.target for tensor in renamed]
    tables = {name: table for name in targets if (table := architecture.family.table(name)) is not None}
    length, decoder = stack_lengths(opened, architecture, renamed, tables, request)
    planned = plan_positions(architecture, attention, request.positions, length, decoder)
    if planned.relative:
        attention = with_relative(attention, planned.relative)
        if planned.rope is None and decoder is not None:
            decoder_attention = with_relative(decoder_attention or LongAttentionConfig("full"), planned.relative)
    position_change = planned.position_change
    unchanged = planned.unchanged
    stacks = [attention] if decoder_attention is None else [attention, decoder_attention]
    for choice, tokens in ((choice, unchanged_tokens(choice)) for stack in stacks for choice in relative_choices(stack)):
        if tokens is not None and tokens < length.old:
            unchanged = min(tokens, unchanged) if position_change else tokens
            position_change = (
                position_change or f"relative={choice} changes {f'texts of over {tokens} tokens' if tokens else 'every score'}"
            )
    with_attention = partial(architecture.long_config, lengths=planned.lengths, rope=planned.rope, rule=planned.rule)
    config = with_attention(attention, decoder_attention=decoder_attention)
    short_texts, (encoding, causal) = ShortTexts(), config.attending
    if original is None and not causal:
        of_layers = windows if decoder is None else [None] * encoding  # encoders with a decoder have no windows
        attention, short_texts = with_short_texts(attention, of_layers, length, position_change, unasked=not request.native)
        config = with_attention(attention, decoder_attention=decoder_attention)
    set_dtype(config, cast)
    skeleton = architecture.skeleton(config)
    if marks_question and takes_globals(skeleton) and not chooses_by_ids(skeleton):
        config.question_separator_id = separator

    tensors = plan_tensors(
        opened,
        architecture,
        renamed,
        skeleton,
        {name: (table.offset_rows(config), table.rows(config)) for name, table in tables.items()},
        length.old,
        cast,
        averaged=planned.rule in DROPPED,
    )
    shape = model_shape(config, skeleton, [tensor.dtype for tensor in tensors])
    mechanisms = layer_mechanisms(attention, shape, length.new)
    auto = request.positions == "auto"
    warnings = position_warnings(planned.rule, attention, mechanisms, length, causal=shape.causal, auto=auto)
    if decoder is not None:
        decoder_attention = config.decoder_attention
        layers = layer_mechanisms(decoder_attention, ModelShape.of(config, causal=True, matrix_parameters=0, element_bytes=4), decoder.new)
        warnings += position_warnings(planned.rule, decoder_attention, layers, decoder, causal=True, decoder=True)
    inputs = text_sizes(length.old, length.new)
    costs = tuple(cost_with(size, mechanisms, shape) for size in inputs.steps(config))
    return ConversionPlan(
        source=opened,
        architecture=architecture,
        config=config,
        inputs=inputs,
        positions=planned.rule,
        tensors=tuple(tensors),
        max_shard_size=request.max_shard_size,
        attention=attention,
        position_change=position_change,
        short_texts=short_texts,
        unchanged_tokens=unchanged,
        shape=shape,
        costs=costs,
        warnings=tuple(warnings),
        decoder=decoder,
    )


@_plan_of.register(SizedKind)
def _plan_sized(kind: SizedKind, opened: Source, architecture: Architecture, request: ConversionConfig) -> ConversionPlan:
    """Plan a model whose inputs are not texts. Source tensors keep their shapes, and their values unless they are cast."""
    cast = parse_dtype(request.dtype)

    def layers_of(attention: LongAttentionConfig, length: int) -> list[Mechanism]:
        base = ModelShape.of(architecture.source_config, causal=False, matrix_parameters=0, element_bytes=4)
        return layer_mechanisms(attention, base, length)

    inputs = kind.decide(opened, architecture, request, layers_of)
    sizes, attention = inputs.sizes, inputs.attention
    config = architecture.long_config(attention, inputs.fields, None, inputs.extension)
    set_dtype(config, cast)
    skeleton = architecture.skeleton(config)
    tensors = plan_tensors(opened, architecture, renamed_tensors(opened, architecture), skeleton, {}, sizes.old.tokens, cast)
    shape = model_shape(config, skeleton, [tensor.dtype for tensor in tensors])
    shape = replace(shape, matrix_parameters=shape.matrix_parameters + kind.further_operations(skeleton, config))
    return ConversionPlan(
        source=opened,
        architecture=architecture,
        config=config,
        positions=inputs.positions,
        tensors=tuple(tensors),
        max_shard_size=request.max_shard_size,
        attention=attention,
        position_change="",
        shape=shape,
        costs=tuple(cost_of(size, attention, shape) for size in sizes.steps(config)),
        warnings=inputs.warnings,
        inputs=sizes,
        files=inputs.files,
    )


@_plan_of.register(TowersKind)
def _plan_towers(kind: TowersKind, opened: Source, architecture: Architecture, request: ConversionConfig) -> ConversionPlan:
    """Plan a model with several towers, one plan for each. Tensors outside the towers are kept; only their dtype may change."""
    cast = parse_dtype(request.dtype)
    requests = tower_requests(architecture, request)
    base_classes = {name: part.family.base_model_name for name, part in kind.parts.items()}
    plans = {name: _plan(tower_of(opened, name, base_classes[name]), part) for name, part in requests.items()}
    values = {name: value for name, value in architecture.source_config.to_dict().items() if name not in NAMES}
    for name, plan in plans.items():
        of_tower = {key: value for key, value in plan.config.to_dict().items() if key not in NAMES}
        values[tower_field(name)] = {**of_tower, "model_type": plan.config.model_type}
    with checkpoint_errors(f"The source's config makes no valid {architecture.long_class}"):
        config = architecture.family.config_class.from_dict(values)
    config.architectures = [architecture.long_class]
    set_dtype(config, cast)
    skeleton: Any = architecture.skeleton(config)
    longest, changed = text_part(plans), [plan for plan in plans.values() if plan.position_change]
    return ConversionPlan(
        source=opened,
        architecture=architecture,
        config=config,
        max_shard_size=request.max_shard_size,
        attention=longest.attention,
        position_change=" and ".join(plan.position_change for plan in changed),
        short_texts=longest.short_texts,
        unchanged_tokens=min((plan.unchanged_tokens for plan in changed), default=0),
        shape=longest.shape,
        costs=(),
        warnings=tuple(warning for plan in plans.values() for warning in plan.warnings),
        inputs=tower_inputs([plan.inputs for plan in plans.values()], longest.inputs),
        positions=", ".join(f"{name} {plan.positions}" for name, plan in plans.items()),
        tensors=tuple(tensors_with_towers(opened, architecture, skeleton, plans, cast)),
        files={name: values for plan in plans.values() for name, values in plan.files.items()},
        towers=plans,
    )


def tower_requests(architecture: Architecture, request: ConversionConfig) -> dict[str, ConversionConfig]:
    """The settings of each tower, by name; settings for other kinds of input are unset.

    Raises:
        OptionError: there is no such tower.
        PositionError: ``positions`` is one rule instead of a rule per tower.
    """
    parts, model_class = architecture.kind.parts, architecture.source_class
    chosen = request.towers or {}
    check_towers(chosen, [*parts], model_class)
    rules: dict[str, str] = {}
    if request.positions != AUTO:  # text=stretch:20,vision=tile
        rules = dict(piece.partition("=")[::2] for piece in request.positions.split(","))
        if "" in rules.values():
            example = ",".join(f"{name}=RULE" for name in parts)
            raise PositionError(f"The towers of a {model_class} have positions apart; give --positions {example}, or some of them.")
        check_towers(rules, [*parts], model_class)
    requests = {}
    for name, kind in parts.items():
        unused: dict[str, Any] = dict.fromkeys(set(SETTINGS) - set(kind.settings))
        attention = chosen.get(name) or {}
        attention = attention.to_dict() if isinstance(attention, LongAttentionConfig) else attention
        options = {option: value for option, value in attention.items() if option != "mechanism"}
        requests[name] = replace(
            request,
            **unused,
            towers=None,
            mechanism=attention.get("mechanism"),
            options=options or None,
            positions=rules.get(name, AUTO),
        )
    return requests


@_plan_of.register(PlainKind)
def _plan_plain(kind: PlainKind, source: Source, architecture: Architecture, request: ConversionConfig) -> ConversionPlan:
    """Plan a ``--generic`` conversion: the source's class and config, with mechanisms added."""
    cast = parse_dtype(request.dtype)
    base = architecture.source_config

    def kept_windows(of_stack: Any, stack: Any) -> LongAttentionConfig:
        """An attention with the base's windows, beside full layers, in layers that the request does not name."""
        return with_own_windows(of_stack, own_windows(stack) if isinstance(getattr(stack, "num_hidden_layers", None), int) else [])

    chosen: LongAttentionConfig | dict[str, LongAttentionConfig]
    if request.towers is None:
        chosen = kept_windows(request.attention() if request.names_attention else None, base)
    else:
        chosen = {name: kept_windows(of_tower, getattr(base, tower_field(name), None)) for name, of_tower in request.towers.items()}
    full = LongAttentionConfig("full")
    reading = chosen if isinstance(chosen, LongAttentionConfig) else chosen.get(text_tower(architecture.source_config, chosen), full)
    length = PlainLengths.of(architecture.model_class, architecture.source_config, request.max_length)
    config, rule, position_change = _generic_config(architecture, chosen, reading, request.positions, length)
    if request.text_global:
        config.long_attention = {**config.long_attention, TEXT_GLOBAL: True}
    length.write(config)
    if reads_only_text(architecture.model_class):
        load_tokenizer(source.folder, config)
    set_dtype(config, cast)
    skeleton: Any = architecture.skeleton(config)
    renamed = renamed_tensors(source, architecture)
    tensors = plan_tensors(source, architecture, renamed, skeleton, length.tables(source, skeleton), length.old, cast)
    attention = chosen if isinstance(chosen, LongAttentionConfig) else next(iter(chosen.values()))
    shape = generic_shape(skeleton, [tensor.dtype for tensor in tensors])
    layers, auto = layer_mechanisms(attention, shape, length.new or None), request.positions == "auto"
    warnings = position_warnings(rule, attention, layers, length, causal=shape.causal, auto=auto)
    plan = ConversionPlan(
        source=source,
        architecture=architecture,
        config=config,
        inputs=text_sizes(length.old, length.new),
        positions=rule,
        tensors=tuple(tensors),
        max_shard_size=request.max_shard_size,
        attention=attention,
        position_change=position_change,
        shape=shape,
        costs=(),
        warnings=tuple(warnings),
        plain=length,
    )
    if isinstance(chosen, LongAttentionConfig):
        return plan
    plans = _plans_of_towers(plan, chosen, skeleton)
    others = tuple(name for name in towers_of(skeleton) if name not in chosen)
    return replace(
        plan,
        towers=plans,
        inputs=tower_inputs([tower.inputs for tower in plans.values()], plan.inputs),
        other_towers=others,
        warnings=tuple(warning for tower in plans.values() for warning in tower.warnings),
    )


def _plans_of_towers(plan: ConversionPlan, attention: Mapping[str, LongAttentionConfig], skeleton: Any) -> dict[str, ConversionPlan]:
    """The plan of a plain class narrowed to each tower in ``attention``, by name."""
    lengths, plans = (plan.old_length, plan.new_length), {}
    for name, part in parts_with_mechanisms(skeleton, attention, {tensor.name: tensor for tensor in plan.tensors}, lengths).items():
        is_lengthened = name == text_tower(plan.config, [name])
        length = StackLength(part.old_length, part.new_length)
        layers = layer_mechanisms(part.attention, part.shape, length.new or None)
        positions, change, warnings = UNCHANGED, "", list[PositionWarning]()
        if is_lengthened:
            positions, change = plan.positions, plan.position_change
            warnings = position_warnings(positions, part.attention, layers, length, causal=part.shape.causal)
        plans[name] = replace(
            plan,
            config=part.module.config,
            attention=part.attention,
            shape=part.shape,
            inputs=part.inputs,
            positions=positions,
            position_change=change,
            tensors=tuple(part.tensors.values()),
            costs=part.costs(),
            warnings=tuple(warnings),
        )
    return plans


UNCHANGED = "as they were"
"""The rule for positions that a plain class keeps."""


def _generic_config(
    architecture: Architecture,
    attention: LongAttentionConfig | Mapping[str, LongAttentionConfig],
    reading: LongAttentionConfig,
    positions: str,
    length: PlainLengths,
) -> tuple[Any, str, str]:
    """The config of the result, the rule for positions, and why they change outputs. The last is empty if they do not.

    Args:
        reading: the attention of the stack that reads texts.

    Raises:
        PositionError, LengthError: the positions cannot change (neither rotary nor an extensible table), or the length is too small.
    """
    config = architecture.source_config.__class__.from_dict(architecture.source_config.to_dict())
    config.architectures = [architecture.source_class]
    mark_generic(config, attention)
    text = config.get_text_config()
    if isinstance(getattr(text, "rope_parameters", None), dict) and length.old:
        length.check_grows()
        rope = plan_rotary(text, reading, positions, length.old, length.new)
        if rope.relative:
            raise PositionError(f"rope:{rope.kind} is for architectures with Long classes; choose other positions with --generic.")
        rope.write(text)
        position_change = "" if rope.exact else f"rope:{rope.kind} changes the old positions too"
        return config, f"rope:{rope.kind}", position_change
    if length.table is not None and length.new != length.old:
        rule = series_strategy(positions, length.table)
        return config, rule, "" if keeps_old_rows(rule) else f"{rule} changes the old positions too"
    if length.new != length.old or positions != "auto":
        raise PositionError(
            f"--generic cannot change the positions of a {architecture.source_class}; leave --max-length and --positions out."
        )
    return config, UNCHANGED, ""


SEGMENTS = ("global_first_segment", "global_second_segment")
"""Options that make a whole segment global."""
SEPARATOR = "separator_token_id"


def relative_choices(attention: LongAttentionConfig) -> list[str]:
    """The values of the option ``relative`` in all layers."""
    choices = [attention.options, *attention.turns, *attention.layers.values()]
    return [values[RELATIVE] for values in choices if values.get(RELATIVE) is not None]


def with_relative(attention: LongAttentionConfig, choice: str) -> LongAttentionConfig:
    """``attention`` with ``relative=choice`` in every layer; in layers with full attention alone, if it moves rotary positions.

    Raises:
        PositionError: ``attention`` has other relative positions.
        OptionError: a mechanism has no scores to which the positions could be added.
    """
    others = [other for other in relative_choices(attention) if other != choice]
    if others:
        instead = "give positions='none' to keep the latter alone" if choice == ALIBI else "leave out one of them"
        raise PositionError(f"positions={choice!r} contradicts relative={others[0]!r}; {instead}.")
    moves = relative_kind(choice).counts_tokens
    return attention.with_option(RELATIVE, choice, lambda name, layer: not moves or mechanism_class(name).traits.moves_positions)


def with_separator(attention: LongAttentionConfig, separator: int) -> LongAttentionConfig:
    """``attention`` with ``separator`` wherever a segment is global and no separator is given."""
    if attention.options.get(SEPARATOR) is not None:
        return attention

    def completed(value: Any) -> Any:
        if isinstance(value, Mapping):
            inside = {name: completed(inner) for name, inner in value.items()}
            lacking = any(inside.get(name) for name in SEGMENTS) and inside.get(SEPARATOR) is None
            return {**inside, SEPARATOR: separator} if lacking else inside
        return [completed(inner) for inner in value] if isinstance(value, list | tuple) else value

    return LongAttentionConfig.from_dict(completed(attention.to_dict()))
