"""The plan of a conversion: sizes, positions, mechanisms and costs of the result, from its settings and the source's
config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from ..configuration import LongAttentionConfig
from ..errors import CheckpointError, InputError, OptionError, nearest
from ..evaluation.flops import LengthCost, ModelShape, costs_of, layer_mechanisms, model_shape
from ..files import (
    DOCUMENT_LIMIT,
    RERANKER,
    SENTENCE_LIMIT,
    TOKEN_VECTORS,
    TOKENIZER_CONFIG,
    TOKENIZER_LIMIT,
    TRANSFORMER_SETTINGS,
    check_destination,
    read_json_object,
    sentence_class,
    sentence_values,
)
from ..inputs.modality import InputSizes, Modality, WithTowers
from ..inputs.tokenizer import load_tokenizer
from ..mechanisms import Mechanism
from ..mechanisms.common.masked import SINK_POSITIONS, TEXT, has_sinks_in_text, leading_sinks, needs_training_by
from ..mechanisms.common.options import EXACT_LENGTH, RELATIVE, write_choice, write_numbers
from ..mechanisms.common.registry import mechanism_class, prototype
from ..mechanisms.common.shared_options import why_not_in_full
from ..mechanisms.full import Full
from ..modeling.attach.attention_sites import layer_mechanisms as attached_mechanisms
from ..modeling.attach.global_mask import chooses_by_ids, question_separator, takes_globals
from ..modeling.family.rotary import plan_rotary, positions_without_end
from ..modeling.family.sliding_window import keeps_window, own_windows
from ..modeling.generic import PlainFamily
from ..positions import tables
from ..positions.relative import relative_class, unchanged_tokens
from ..positions.rope import RopePlan
from ..positions.tables import ALIBI
from ..positions.trained_distances import widest_span
from .settings import AUTO, ConversionConfig
from .source_models import Architecture, Source, find_architecture, open_source, quiet_libraries

DECODER_WINDOW, DECODER_SINKS = 1024, 4
"""Window and sinks of a decoder with ``mechanism="auto"``, in tokens. The window is at most half of the old length."""


@dataclass(frozen=True)
class StackLength:
    """Maximum length of a stack in the source and in the result."""

    old: int
    new: int

    def check_grows(self, what: str = "length") -> None:
        """Raise :class:`InputError` if the result reads fewer tokens than the source."""
        if self.new < self.old:
            raise InputError(
                f"The source takes {self.old} tokens and conversion only extends it: a maximum {what} of {self.new} "
                "is too small, give at "
                f"least {self.old}."
            )


@dataclass(frozen=True)
class PositionWarning:
    """A warning against using the result without training. Problem, advice and harm are clauses of one sentence."""

    problem: str
    advice: str
    harm: str = "results can become worse"

    def __str__(self) -> str:
        return f"{self.problem}, so {self.harm}; {self.advice}."


def warnings_of_layers(
    attention: LongAttentionConfig, problems: Sequence[str], advice: str, noun: str = "layer"
) -> list[PositionWarning]:
    """One warning per mechanism, listing its layers with a problem. ``problems``: a clause, or "", for every layer."""
    layers: dict[str, list[int]] = {}
    for number, problem in enumerate(problems):
        name, options = attention.for_layer(number)
        for_long_texts = {option: value for option, value in options.items() if option != EXACT_LENGTH}
        if problem:
            layers.setdefault(write_choice({"mechanism": name, **for_long_texts}), []).append(number)
    warnings = []
    for choice, numbers in layers.items():
        listed = f"{noun}{'s' * (len(numbers) > 1)} {write_numbers(numbers)}"
        where = f"every {noun}" if len(numbers) == len(problems) else listed
        warnings.append(PositionWarning(f"{choice} in {where} {problems[numbers[0]]}", advice))
    return warnings


def stack_lengths(
    source: Source, architecture: Architecture, request: ConversionConfig
) -> tuple[StackLength, StackLength | None]:
    """Lengths of the encoder (or the only stack), and of the decoder beside an encoder (otherwise ``None``).

    By default, a decoder keeps its length, since summaries do not grow, unless the head feeds it the whole text.
    """

    def stack(decoder: bool, wanted: int | None, unasked: int, what: str) -> StackLength:
        config = architecture.source_config
        table = next(
            (candidate for candidate in architecture.family.position_tables if candidate.decoder == decoder), None
        )
        rows = architecture.family.base_length(config, table)
        pad = getattr(config, "pad_token_id", None)
        if table is not None and table.offset == "padding" and (pad is None or not -1 <= pad < rows - 1):
            raise CheckpointError(
                f"The config of {source.name!r} says pad_token_id={pad}, after which a {architecture.source_class} "
                "counts its positions, "
                f"and max_position_embeddings={rows}; set pad_token_id in its config.json to the id with which it was "
                "trained."
            )
        old = rows - (0 if table is None else table.config_value(0, config))
        if old < 1:
            raise CheckpointError(
                f"The config.json of {source.name!r} says that it takes {old} tokens; it must be at least 1."
            )
        length = StackLength(old, max(old, unasked) if wanted is None else int(wanted))
        length.check_grows(what)
        return length

    decoder_alone = architecture.family.two_stacks and not architecture.family.has_encoder(architecture.long_class)
    text = stack(decoder_alone, request.max_length, 0, "length")
    if architecture.encoder_decoder:
        follows = text.new if architecture.decoder_reads_text and text.new > text.old else 0
        return text, stack(True, request.max_decoder_length, follows, "decoder length")
    return text, None


def plan_positions(
    architecture: Architecture,
    attention: LongAttentionConfig,
    positions: str,
    text: StackLength,
    decoder: StackLength | None,
    *,
    causal: bool | None,
) -> tuple[str, RopePlan | None, dict[str, int], int | None]:
    """Plan the positions of the result. ``positions`` is "auto", a strategy for tables, or "rope:" and a RoPE scaling.
    ``causal``: as :func:`form_of_distances` returns it.

    Returns the strategy, the rotary positions (``None`` without), the config fields with new lengths (none for rotary
    positions), and the maximum text length with unchanged outputs (``None``: the old length).
    """
    family, base = architecture.family, architecture.source_config
    if family.scales_rotations(base):
        rope = plan_rotary(base, attention, positions, text.old, text.new, causal=causal)
        return f"rope:{rope.scaling}", rope, {}, None if rope.exact else 0
    lengths = {
        table.field: table.config_value(decoder.new if table.decoder and decoder is not None else text.new, base)
        for table in family.position_tables
    } or {"max_position_embeddings": text.new}
    strategy = why = ""
    if family.relative:
        strategy, why = "relative", "adds its positions to the scores, which works at any length"
        lengths |= {} if decoder is None else {"max_decoder_position_embeddings": decoder.new}
    elif family.no_positions:
        strategy, why = "absent", "has no positions"
    elif family.rotary(base):
        strategy, why = "rope:none", "has rotary positions that transformers cannot scale"
    if why:
        if positions not in ("auto", strategy):
            raise OptionError(
                f"{positions!r} does not apply: a {architecture.source_class} {why}; leave --positions out."
            )
        return strategy, None, lengths, None
    learned, strategy = all(table.learned for table in family.position_tables), positions
    known = tables.KNOWN if learned else tables.DROPPED
    if positions == "auto":  # mostly "tile", which works without training
        strategy = family.config_class.default_extension if learned else tables.SINUSOIDAL
    elif positions not in tables.DROPPED and not (
        tables.extends_learned(strategy) if learned else strategy == tables.SINUSOIDAL
    ):
        of_family = "a learned position table" if learned else "sinusoidal positions, which are computed"
        raise OptionError(
            f"{positions!r} does not apply to {of_family}; expected auto or one of "
            f"{', '.join(known)}.{nearest(positions, known)}"
        )
    growing = [length for length in (text, decoder) if length is not None and length.new > length.old]
    if (kept_rows := tables.stretched_from(strategy)) is not None:
        strategy = f"{tables.STRETCH}:{kept_rows}"
        for length in growing:  # checked first, because loading the tables would hide the reason
            tables.check_stretch(length.old, kept_rows)
    exact = strategy not in tables.DROPPED and (tables.keeps_old_rows(strategy) or not growing)
    return strategy, None, lengths, None if exact else tables.unchanged_rows(strategy, text.old)


def position_warnings(
    strategy: str,
    attention: LongAttentionConfig,
    layers: Sequence[Mechanism],
    length: StackLength,
    *,
    causal: bool,
    decoder: bool = False,
    scaled: bool = False,
    auto: bool = False,
) -> list[PositionWarning]:
    """Warnings about positions of one stack that need training. ``decoder``: it is the decoder of an encoder-decoder.

    One warning about the strategy (``auto``: chosen by ``--positions auto``), or one for each mechanism in the layers.
    ``scaled``: whether rotations change.
    """
    if scaled and strategy in ("rope:yarn", *("rope:linear",) * auto):
        near = (
            f"window={length.old // 2} with num_sinks=4 and sink_positions=cache"
            if causal
            else "a window without global tokens"
        )
        advice = f"{near} needs no scaling, and --positions rope:none omits it"
        return [
            PositionWarning(
                f"{strategy} scales the rotations of all tokens",
                advice,
                "outputs change for every text, short ones too",
            )
        ]
    if (
        strategy in (tables.INTERPOLATE, "rope:linear", "rope:base") and length.new > length.old
    ) or strategy in tables.DROPPED:
        problem = f"{strategy} changes the positions of every text, short ones too"
        return [
            PositionWarning(
                problem, f"leave --positions {strategy} out, or train the result", "results become much worse"
            )
        ]
    problems = [needs_training_by(mechanism, strategy, length.old, length.new, causal) for mechanism in layers]
    width = widest_span(length.old, causal=causal)
    flags = f"--decoder-mechanism window:window={width}" if decoder else f"--mechanism window --option window={width}"
    advice = f"use a window of at most {width:,} tokens ({flags}), or train the result"
    return warnings_of_layers(attention, problems, advice, "decoder layer" if decoder else "layer")


@dataclass(frozen=True)
class ShortTexts:
    """Short texts that an encoder reads with full attention, as its source does, because of ``exact_length``."""

    length: int = 0  # maximum length in tokens; 0 if there are none
    # why outputs for short texts differ from the source's; empty if they do not, or if there are none
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"short ones are not read exactly as by the source: {self.reason}"
        return f"of up to {self.length} tokens are read exactly as by the source" if self.length else ""


@dataclass(frozen=True)
class EncodedTexts:
    """What sentence-transformers reads of a text with the source. Special tokens and a prompt count."""

    tokens: int  # at which it cuts, at most the source's length
    method: str  # of its class that reads texts

    def __str__(self) -> str:
        done = "scored" if self.method == "predict" else "embedded"
        return (
            f"of up to {self.tokens} tokens are {done} exactly as by the source; its {self.method} cuts longer ones "
            "there, and the result reads on"
        )


def encoded_texts(source: Source, saved_by: str, longest: int) -> EncodedTexts:
    """What sentence-transformers reads with a source that its class ``saved_by`` loads. ``longest``: maximum tokens of
    the source's model."""
    file = source.folder / TOKENIZER_CONFIG
    settings, tokenizer = dict[str, Any](), read_json_object(file) if file.is_file() else {}
    for settings_file in sorted(source.folder.glob(TRANSFORMER_SETTINGS)):
        settings = sentence_values(settings_file)
    limits = [settings.get(SENTENCE_LIMIT) or tokenizer.get(TOKENIZER_LIMIT)]
    if saved_by == TOKEN_VECTORS:
        limits.append(settings.get(DOCUMENT_LIMIT))
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and limit > 0]
    return EncodedTexts(
        min([*known, longest]), {RERANKER: "predict", TOKEN_VECTORS: "encode_document"}.get(saved_by, "encode")
    )


def with_short_texts(
    attention: LongAttentionConfig, windows: Sequence[int | None], length: StackLength, change: str
) -> tuple[LongAttentionConfig, ShortTexts]:
    """Set ``exact_length`` to the source's length if possible. Returns the attention, and the short texts with full
    attention.

    It is possible if the result is longer than the source, its positions do not ``change`` outputs, and every layer's
    mechanism allows it. Layers that keep one of the source's ``windows``, or have full attention for such texts
    anyway, are not changed.
    """

    changed, reason = (
        [number for number, width in enumerate(windows) if not keeps_window(attention, number, width)],
        change,
    )
    layers = [prototype(*attention.for_layer(number)) for number in changed]
    if length.new > length.old and not change and not option_values(attention, EXACT_LENGTH):
        lacking = [layer for layer in layers if not layer.covers(length.old)]
        for layer in lacking:
            objection = why_not_in_full(layer)
            if layer.capabilities.trains:
                objection = "adds parameters that need training"
            elif not layer.capabilities.takes_score_mod:
                objection = "is not full attention over fewer keys"
            if objection and not reason:
                reason = f"{layer.name!r} {objection}"
        names = {layer.name for layer in lacking}
        if lacking and not reason:
            attention = attention.with_option(
                EXACT_LENGTH, length.old, lambda name, layer: name in names and (layer is None or layer in changed)
            )
            layers = [prototype(*attention.for_layer(number)) for number in changed]
    longest = max((layer.options.exact_length or 0 for layer in layers), default=0)
    if not longest:
        return attention, ShortTexts(0, reason)
    if longest > length.old:
        raise OptionError(
            f"exact_length={longest} is beyond the {length.old} tokens that the source reads; give at most "
            f"{length.old}."
        )
    if not all(layer.options.exact_length or layer.covers(longest) for layer in layers):
        return attention, ShortTexts(0, "some layers have no exact_length")
    replaced = len(layers) > windows.count(None)
    shortest = min(layer.options.exact_length for layer in layers if layer.options.exact_length)
    return attention, ShortTexts(
        shortest, change or ("exact_length replaces windows of the source" if replaced else "")
    )


Chooser = Callable[[Source, ConversionConfig], tuple[LongAttentionConfig, Mapping[str, Any]]]
"""Function of an opened source and its settings that returns the chosen attention, and facts about the choice for
reports."""


@dataclass
class ConversionPlan(WithTowers):
    """All decisions about a conversion, made before writing. Each tower's `attention`, `shape` and `costs` are in the
    tower's plan.

    Attributes:
        modality: input type of source and result.
        old_length, new_length: maximum tokens of source and result.
        parameters: number of parameters of the result.
        generic: whether the result keeps the source's class and has mechanisms.
    """

    source: Source
    architecture: Architecture
    config: Any  # the config of the result
    inputs: InputSizes  # sizes of the inputs of source and result
    positions: str  # the strategy for positions
    attention: LongAttentionConfig
    position_change: str  # reason why new positions change outputs below the old length; empty if they do not
    skeleton: Any  # the result on the meta device
    shape: ModelShape
    costs: tuple[LengthCost, ...]
    warnings: tuple[PositionWarning, ...] = ()  # warnings about positions that need training
    short_texts: ShortTexts = field(default_factory=ShortTexts)
    encoded: EncodedTexts | None = None  # what the source's encoder reads; None for other models
    unchanged_tokens: int = 0  # if positions change outputs: maximum text length with unchanged outputs
    decoder: StackLength | None = None  # decoder lengths of an encoder-decoder; `inputs` has the encoder's
    tokenizer_length: int = 0  # the limit of the result's tokenizer; 0 keeps the source's
    looks_back: int | None = None  # positions that a query looks back if texts have no maximum length; otherwise None
    # how to train the result, for the report; None: derived from head and texts
    training: Mapping[str, Any] | None = None
    choice: Mapping[str, Any] | None = None  # with mechanism "auto": facts about the choice
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # new contents of copied JSON files
    towers: Mapping[str, ConversionPlan] = field(default_factory=dict)
    other_towers: tuple[str, ...] = ()  # towers of a plain class that keep its attention

    def __post_init__(self) -> None:
        self.modality: Modality = self.architecture.modality
        self.old_length, self.new_length = self.inputs.old.tokens, self.inputs.new.tokens
        self.parameters = sum(parameter.numel() for parameter in self.skeleton.parameters())
        self.generic = isinstance(self.architecture.family, PlainFamily)

    @property
    def lengths_in_words(self) -> str:
        """Which texts are read exactly as by the source, or that texts have no maximum length; empty if there is
        nothing to say."""
        if self.looks_back is None:
            cut = self.encoded is not None and self.encoded.tokens < self.short_texts.length
            return str(self.encoded if cut and not self.short_texts.reason else self.short_texts)
        return f"of any length: no query looks back more than {self.looks_back:,} positions, its own included"

    def input_in_words(self, when: str) -> str:
        """The maximum input of the "old" or the "new" model."""
        return " and ".join(str(getattr(part.inputs, when)) for part in self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        attention = self.by_tower(lambda tower: tower.attention.to_dict()) or self.attention.to_dict()
        old, new, decoder = self.input_in_words("old"), self.input_in_words("new"), dict[str, Any]()
        sizes = {
            f"{when}_{name}": value
            for part in self.parts.values()
            for when, size in (("old", part.inputs.old), ("new", part.inputs.new))
            for name, value in size.values.items()
        }
        if self.decoder is not None:
            of_decoder = self.config.decoder_attention.to_dict()
            decoder = {"long_attention": of_decoder, "old_length": self.decoder.old, "new_length": self.decoder.new}
        optional = {
            "generic": self.generic,
            "choice": dict(self.choice or {}),
            "decoder": decoder,
            "short_texts": self.lengths_in_words,
        }
        return {
            "source": self.source.name,
            "source_class": self.architecture.source_class,
            "original_architecture": None if self.architecture.converter is None else self.source.config["model_type"],
            "long_class": self.architecture.long_class,
            "model_type": self.config.model_type,
            "long_attention": attention,
            "old_length": self.old_length,
            "new_length": self.new_length,
            "input": f"{old} → {new}" if old != new else new if self.looks_back is None else f"{new} in training",
            **sizes,
            "positions": self.positions,
            **{name: value for name, value in {**optional, "warnings": [*map(str, self.warnings)]}.items() if value},
            "parameters": self.parameters,
            "result_bytes": self.parameters * self.shape.element_bytes,
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
    """Plan a conversion without running it.

    Args:
        destination: if given, checked as in a conversion.
        config: the settings; or its fields, and options of the mechanism, as keywords.
        choose: the function that chooses mechanisms for ``mechanism="auto"``:
            :func:`hf_longattn.search.choose_mechanisms`.

    Raises:
        LongAttentionError: the conversion would fail, for the reason in its sentence.
    """
    request = ConversionConfig.from_keywords(config, settings)
    auto = request.mechanism == AUTO
    # the default depends on the family
    if not auto and (request.mechanism is not None or request.long_attention is not None):
        request.attention()  # a mistyped name is refused before anything is fetched
    opened = (
        source if isinstance(source, Source) else open_source(source, request.revision, request.token, weights=False)
    )
    if destination is not None:
        check_destination(Path(destination), opened.folder, opened.card_folder, overwrite=request.overwrite)
    if not auto:
        return plan_source(opened, request)
    architecture = find_architecture(opened, request)  # fail before the slow search
    if (chosen := chosen_for_decoder(opened, architecture, request)) is None:
        if choose is None:
            raise OptionError(
                "mechanism='auto' searches: pass choose=hf_longattn.search.choose_mechanisms, or name a mechanism."
            )
        if not isinstance(source, Source):
            opened = open_source(source, request.revision, request.token)
        chosen = choose(opened, request)
    attention, choice = chosen
    return replace(plan_source(opened, replace(request.without_search(), long_attention=attention)), choice=choice)


def chosen_for_decoder(
    opened: Source, architecture: Architecture, request: ConversionConfig
) -> tuple[LongAttentionConfig | None, Mapping[str, Any]] | None:
    """The attention of a decoder with ``mechanism="auto"``, and the reason: a window and sinks in every layer without
    its own window.

    ``None`` for encoders, for models with two stacks, and if a budget or an input for a search is given.
    """
    base = architecture.source_config
    if request.budget is not None or request.search_input is not None or architecture.modality.noun != "text":
        return None
    if (
        architecture.original_attention is not None
        or architecture.encoder_decoder
        or not architecture.long_config(None).attending[1]
    ):
        return None
    search = "--budget 0.25 would search for other mechanisms"
    if None not in own_windows(base):
        return None, {"reason": f"Every layer keeps its own window; {search}."}
    window = min(DECODER_WINDOW, stack_lengths(opened, architecture, request)[0].old // 2)
    exception = "; layers with a window of their own keep it" if any(own_windows(base)) else ""
    reason = (
        f"window={window} with {DECODER_SINKS} sinks loses least without training in a cache of constant "
        f"size{exception}; {search}."
    )
    return LongAttentionConfig("window", window=window, num_sinks=DECODER_SINKS), {"reason": reason}


def plan_source(opened: Source, request: ConversionConfig) -> ConversionPlan:
    architecture = find_architecture(opened, request)
    return architecture.modality.plan(opened, architecture, request)


def plan_texts(opened: Source, architecture: Architecture, request: ConversionConfig) -> ConversionPlan:
    """Plan a text model from the lengths of its stacks."""
    base = architecture.source_config
    original = architecture.original_attention
    attention, decoder_attention = (
        request.attention(original) if original is not None or request.names_attention else None,
        None,
    )
    if request.decoder_long_attention is not None:
        decoder_attention = LongAttentionConfig.from_dict(request.decoder_long_attention)
    # with the family's default attention, and the base's windows
    config = architecture.long_config(attention, decoder_attention)
    attention, (encoding, causal), short_texts = config.long_attention, config.attending, ShortTexts()
    saved_by = sentence_class(opened.card_folder)
    # rerankers without modules
    if hasattr(base, "sentence_transformers") or hasattr(base, "sbert_ce_default_activation_function"):
        saved_by = saved_by or RERANKER
    pairs = architecture.source_class.endswith("ForQuestionAnswering") or saved_by == RERANKER
    marks_question = pairs and original is None
    unseparated = (
        getattr(base, "sep_token_id", None) is None and with_separator(attention, 0).to_dict() != attention.to_dict()
    )
    # loading takes seconds for a large vocabulary, and the check of the result loads it anyway
    tokenizer = load_tokenizer(opened.folder, base) if marks_question or unseparated or not request.verify else None
    separator = question_separator(tokenizer) if tokenizer is not None and (marks_question or unseparated) else None
    if unseparated and separator is not None:
        attention = with_separator(attention, separator)

    length, decoder = stack_lengths(opened, architecture, request)
    if (form := form_of_distances(architecture, config)) is None:
        attention = completed(attention.to_dict(), {SINK_POSITIONS: TEXT}, lambda choice: choice.get("num_sinks"))
    strategy, rope, lengths, same = plan_positions(
        architecture, attention, request.positions, length, decoder, causal=form
    )
    if relative := ALIBI if strategy == ALIBI else "" if rope is None else rope.relative:
        attention = with_relative(attention, relative)
        if rope is None and decoder is not None:
            decoder_attention = with_relative(decoder_attention or LongAttentionConfig("full"), relative)
    unchanged, position_change = same or 0, ""
    if same is not None:
        position_change = f"{strategy} changes the old positions {f'after the first {same}' if same > 1 else 'too'}"
    for choice in (
        choice
        for stack in (attention, decoder_attention)
        if stack is not None
        for choice in option_values(stack, RELATIVE)
    ):
        tokens = unchanged_tokens(choice)
        if tokens is not None and tokens < length.old:
            unchanged = min(tokens, unchanged) if position_change else tokens
            changed = f"texts of over {tokens} tokens" if tokens else "every score"
            position_change = position_change or f"relative={choice} changes {changed}"
    if original is None and not causal:
        # encoders with a decoder have no windows
        windows = own_windows(base) if decoder is None else [None] * encoding
        attention, short_texts = with_short_texts(attention, windows, length, position_change)
    config = architecture.long_config(attention, decoder_attention, lengths, rope, strategy)
    skeleton = architecture.skeleton(config)
    looks_back = None if form is None else positions_without_end(architecture.family, config)
    if marks_question and takes_globals(skeleton) and not chooses_by_ids(skeleton):
        config.question_separator_id = separator

    shape = model_shape(config, skeleton)
    mechanisms = layer_mechanisms(attention, shape, length.new)
    auto, scaled = request.positions == AUTO, rope is not None and not rope.exact
    warnings = position_warnings(
        strategy, attention, mechanisms, length, causal=shape.causal, scaled=scaled, auto=auto
    )
    if decoder is not None:
        decoder_attention = config.decoder_attention
        layers = layer_mechanisms(decoder_attention, ModelShape.of(config, causal=True), decoder.new)
        warnings += position_warnings(strategy, decoder_attention, layers, decoder, causal=True, decoder=True)
    inputs = architecture.modality.between(config, length.old, length.new)
    return ConversionPlan(
        source=opened,
        architecture=architecture,
        config=config,
        inputs=inputs,
        positions=strategy,
        attention=attention,
        position_change=position_change,
        short_texts=short_texts,
        encoded=None if saved_by is None else encoded_texts(opened, saved_by, length.old),
        unchanged_tokens=unchanged,
        skeleton=skeleton,
        shape=shape,
        costs=costs_of(inputs, attention, shape),
        warnings=tuple(warnings),
        decoder=decoder,
        tokenizer_length=length.new if looks_back is None or request.max_length is not None else VERY_LARGE_INTEGER,
        looks_back=looks_back,
    )


def form_of_distances(architecture: Architecture, config: Any) -> bool | None:
    """Whether the layers are causal; ``None`` if sinks keep their positions in the text, because the rotation is not
    understood."""
    layers, causal = config.attending
    with_sinks = (leading_sinks(prototype(*config.long_attention.for_layer(layer))) for layer in range(layers))
    if not causal or not architecture.family.scales_rotations(architecture.source_config) or not any(with_sinks):
        return bool(causal)
    return None if has_sinks_in_text(attached_mechanisms(architecture.skeleton(config))) else True


def option_values(attention: LongAttentionConfig, option: str) -> list[Any]:
    """The values of an option in all layers that have it."""
    choices = [attention.options, *attention.turns, *attention.layers.values()]
    return [values[option] for values in choices if values.get(option) is not None]


def with_relative(attention: LongAttentionConfig, choice: str) -> LongAttentionConfig:
    """``attention`` with ``relative=choice`` in every layer. If it moves rotary positions, only in layers with full
    attention."""
    if others := [other for other in option_values(attention, RELATIVE) if other != choice]:
        instead = "give positions='none' to keep the latter alone" if choice == ALIBI else "leave out one of them"
        raise OptionError(f"positions={choice!r} contradicts relative={others[0]!r}; {instead}.")
    moves = relative_class(choice).counts_tokens
    return attention.with_option(
        RELATIVE, choice, lambda name, layer: not moves or issubclass(mechanism_class(name), Full)
    )


def with_separator(attention: LongAttentionConfig, separator: int) -> LongAttentionConfig:
    """``attention`` with ``separator`` wherever the first segment is global and no separator is given."""
    option = "separator_token_id"
    if attention.options.get(option) is not None:
        return attention
    return completed(
        attention.to_dict(),
        {option: separator},
        lambda choice: choice.get("global_first_segment") and choice.get(option) is None,
    )


def completed(
    value: dict[str, Any], options: Mapping[str, Any], where: Callable[[Mapping[str, Any]], Any]
) -> LongAttentionConfig:
    """The configuration ``value``, with ``options`` added to every mechanism choice for which ``where(choice)`` is
    true."""

    def inside(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [inside(inner) for inner in value]
        if not isinstance(value, Mapping):
            return value
        return {**{name: inside(inner) for name, inner in value.items()}, **(options if where(value) else {})}

    return LongAttentionConfig.from_dict(inside(value))
