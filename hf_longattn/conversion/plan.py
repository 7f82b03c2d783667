"""The plan of a conversion: every decision about the result, made before a file is written.

The plan for texts has four steps: attention, lengths, positions and short texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from ..configuration import LongAttentionConfig
from ..errors import CheckpointError, InputError, OptionError, nearest
from ..files import (
    DOCUMENT_LIMIT,
    RERANKER,
    SENTENCE_LIMIT,
    TOKEN_VECTORS,
    TOKENIZER_CONFIG,
    TOKENIZER_LIMIT,
    TRANSFORMER_SETTINGS,
    read_json_object,
    sentence_class,
    sentence_values,
)
from ..mechanisms import Mechanism
from ..mechanisms.common.masked import SINK_POSITIONS, TEXT, has_sinks_in_text, leading_sinks, needs_training_by
from ..mechanisms.common.options import EXACT_LENGTH, RELATIVE, write_choice, write_numbers
from ..mechanisms.common.registry import mechanism_class
from ..mechanisms.common.shared_options import why_not_in_full
from ..mechanisms.full import Full
from ..modeling.attach.attention_sites import layer_mechanisms as attached_mechanisms
from ..modeling.attach.global_mask import chooses_by_ids, question_separator, takes_globals
from ..modeling.costs import LengthCost, ModelShape, costs_of, layer_mechanisms, model_shape
from ..modeling.family.input_spec import InputSizes
from ..modeling.family.rotary import plan_rotary, positions_without_end
from ..modeling.family.sliding_window import keeps_window, own_windows
from ..modeling.family.towers_spec import TOWERS
from ..modeling.generic import PlainFamily
from ..positions import tables
from ..positions.relative import relative_class, unchanged_tokens
from ..positions.rope import RopePlan
from ..positions.tables import ALIBI
from ..positions.trained_distances import widest_span
from .architecture import Architecture
from .settings import AUTO, ConversionConfig
from .source import Source
from .tokenizer import load_tokenizer


@dataclass(frozen=True)
class StackLength:
    """Maximum length, in tokens, of a stack (an encoder or a decoder) in the source and in the result."""

    old: int
    new: int

    def check_grows(self, what: str = "length") -> None:
        """Raise :class:`InputError` if the result reads fewer tokens than the source."""
        if self.new < self.old:
            raise InputError(
                f"The source takes {self.old} tokens and conversion only extends it: a maximum {what} of {self.new} "
                f"is too small, give at least {self.old}."
            )


@dataclass(frozen=True)
class PositionWarning:
    """A warning against using the result without training.

    Problem, harm and advice are clauses of one sentence: "PROBLEM, so HARM; ADVICE."
    """

    problem: str
    advice: str
    harm: str = "results can become worse"

    def __str__(self) -> str:
        return f"{self.problem}, so {self.harm}; {self.advice}."


def warnings_of_layers(
    attention: LongAttentionConfig, problems: Sequence[str], advice: str, noun: str = "layer"
) -> list[PositionWarning]:
    """One warning for each mechanism that has a problem in some layers. The warning names these layers.

    Args:
        problems: for each layer the problem as a clause, or "".
        advice: what the user can do, as a clause.
        noun: name of a layer, such as "decoder layer".
    """
    layers: dict[str, list[int]] = {}  # mechanism with its options -> layers with a problem
    for number, problem in enumerate(problems):
        name, options = attention.for_layer(number)
        for_long_texts = {option: value for option, value in options.items() if option != EXACT_LENGTH}
        if problem:
            layers.setdefault(write_choice({"mechanism": name, **for_long_texts}), []).append(number)
    warnings = []
    for choice, numbers in layers.items():
        if len(numbers) == len(problems):
            where = f"every {noun}"
        elif len(numbers) == 1:
            where = f"{noun} {numbers[0]}"
        else:
            where = f"{noun}s {write_numbers(numbers)}"
        warnings.append(PositionWarning(f"{choice} in {where} {problems[numbers[0]]}", advice))
    return warnings


def completed(
    attention: LongAttentionConfig, options: Mapping[str, Any], where: Callable[[Mapping[str, Any]], Any]
) -> LongAttentionConfig:
    """``attention`` with more options in some of its mechanisms, also in mechanisms that are options of others.

    Args:
        options: the options to add.
        where: returns whether a mechanism gets the options. Its argument is a mapping with the mechanism's options,
            and perhaps with its name under "mechanism".
    """

    def with_options(value: Any) -> Any:
        """A value of the configuration, with the options added at every level."""
        if isinstance(value, list | tuple):
            return [with_options(inner) for inner in value]
        if not isinstance(value, Mapping):
            return value
        changed = {name: with_options(inner) for name, inner in value.items()}
        if where(value):
            changed |= options
        return changed

    return LongAttentionConfig.from_dict(with_options(attention.to_dict()))


@dataclass(frozen=True)
class ShortTexts:
    """The texts that an encoder reads with full attention, like its source, because of the option ``exact_length``."""

    length: int = 0  # their maximum length in tokens; 0 if there are no such texts
    # why outputs for short texts differ from the source's; empty if they are equal, or if it is not claimed
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"short ones are not read exactly as by the source: {self.reason}"
        return f"of up to {self.length} tokens are read exactly as by the source" if self.length else ""


@dataclass(frozen=True)
class EncodedTexts:
    """How much of a text sentence-transformers reads with the source. Special tokens and a prompt count."""

    tokens: int  # length in tokens to which it cuts a text, at most the source's length
    method: str  # name of the method that reads texts, such as "encode"

    def __str__(self) -> str:
        done = "scored" if self.method == "predict" else "embedded"
        return (
            f"of up to {self.tokens} tokens are {done} exactly as by the source; its {self.method} cuts longer ones "
            "there, and the result reads on"
        )


class WithTowers:
    """Base of classes that describe a model, and each tower of a model with several towers."""

    towers: Mapping[str, Any]  # name of a tower -> an object of the same class about it; empty without towers

    @property
    def parts(self) -> Mapping[str, Any]:
        """The towers by name. Without towers, this object under an empty name."""
        return self.towers or {"": self}

    def by_tower(self, describe: Callable[[Any], Any]) -> dict[str, Any]:
        """An entry for a report with the key ``towers``: name of a tower -> result of ``describe``. Empty without
        towers."""
        return {TOWERS: {name: describe(tower) for name, tower in self.towers.items()}} if self.towers else {}


@dataclass
class ConversionPlan(WithTowers):
    """All decisions about a conversion, made before a file is written.

    For a model with several towers, ``attention``, ``shape`` and ``costs`` of each tower are in the tower's plan.

    Attributes:
        old_length, new_length: maximum tokens of source and result.
        parameters: number of parameters of the result.
        generic: whether the result keeps the source's class (``--generic``).
    """

    source: Source
    architecture: Architecture
    config: Any  # the config of the result
    inputs: InputSizes  # sizes of the inputs of source and result
    positions: str  # the strategy for positions
    attention: LongAttentionConfig
    skeleton: Any  # the result on the meta device
    shape: ModelShape
    costs: tuple[LengthCost, ...]
    position_change: str = ""  # reason why new positions change outputs below the old length
    warnings: tuple[PositionWarning, ...] = ()  # warnings about positions that need training
    short_texts: ShortTexts = field(default_factory=ShortTexts)
    encoded: EncodedTexts | None = None  # what the source's encoder reads; None for other models
    unchanged_tokens: int = 0  # maximum length of texts whose outputs a position_change does not change; 0: none
    decoder: StackLength | None = None  # decoder lengths of an encoder-decoder; `inputs` has the encoder's
    tokenizer_length: int = 0  # the limit of the result's tokenizer; 0 keeps the source's
    # maximum positions that a query looks back, if texts may have any length; None if there is a maximum length
    looks_back: int | None = None
    # how to train the result, for the report; None: derived from the head (`convert.training_step`)
    training: dict[str, Any] | None = None
    choice: Mapping[str, Any] | None = None  # with mechanism "auto": facts about the choice
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # new contents of copied JSON files
    towers: Mapping[str, ConversionPlan] = field(default_factory=dict)
    other_towers: tuple[str, ...] = ()  # towers of a plain class that keep its attention

    def __post_init__(self) -> None:
        self.old_length, self.new_length = self.inputs.old.tokens, self.inputs.new.tokens
        self.parameters = sum(parameter.numel() for parameter in self.skeleton.parameters())
        self.generic = isinstance(self.architecture.family, PlainFamily)

    @property
    def lengths_in_words(self) -> str:
        """A phrase after "texts": which texts are read exactly as by the source, or that they may have any length. It
        may be empty."""
        if self.looks_back is not None:
            return f"of any length: no query looks back more than {self.looks_back:,} positions, its own included"
        if self.encoded and self.encoded.tokens < self.short_texts.length and not self.short_texts.reason:
            return str(self.encoded)
        return str(self.short_texts)

    def input_in_words(self, when: str) -> str:
        """The maximum input, such as "512 tokens". ``when``: "old" for the source, "new" for the result."""
        return " and ".join(str(getattr(part.inputs, when)) for part in self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        attention = self.by_tower(lambda tower: tower.attention.to_dict()) or self.attention.to_dict()
        old, new = self.input_in_words("old"), self.input_in_words("new")
        lengths = new
        if old != new:
            lengths = f"{old} → {new}"
        elif self.looks_back is not None:
            lengths = f"{new} in training"
        sizes = {
            f"{when}_{name}": value
            for part in self.parts.values()
            for when, size in (("old", part.inputs.old), ("new", part.inputs.new))
            for name, value in size.values.items()
        }
        decoder: dict[str, Any] = {}
        if self.decoder is not None:
            decoder = {
                "long_attention": self.config.decoder_attention.to_dict(),
                "old_length": self.decoder.old,
                "new_length": self.decoder.new,
            }
        optional = {
            "generic": self.generic,
            "choice": self.choice,
            "decoder": decoder,
            "short_texts": self.lengths_in_words,
            "warnings": [*map(str, self.warnings)],
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
            "input": lengths,
            **sizes,
            "positions": self.positions,
            **{name: value for name, value in optional.items() if value},
            "parameters": self.parameters,
            "result_bytes": self.parameters * self.shape.element_bytes,
            "costs": [cost.to_dict() for cost in self.costs],
            **self.by_tower(lambda tower: tower.to_dict()),
        }


def plan_texts(opened: Source, architecture: Architecture, request: ConversionConfig) -> ConversionPlan:
    """Plan a text model in four steps: attention, lengths, positions and short texts."""
    base, original = architecture.source_config, architecture.original_attention

    # attention
    chosen = plan_attention(opened, architecture, request)
    attention, decoder_attention = chosen.attention, chosen.decoder

    # lengths
    length, decoder = stack_lengths(opened, architecture, request)

    # positions
    causal = causal_distances(architecture, chosen.config)
    if causal is None:
        attention = completed(attention, {SINK_POSITIONS: TEXT}, lambda choice: choice.get("num_sinks"))
    positions = plan_positions(architecture, attention, request.positions, length, decoder, causal=causal)
    if positions.strategy == ALIBI:
        attention = with_relative(attention, ALIBI)
        if decoder is not None:
            decoder_attention = with_relative(decoder_attention or LongAttentionConfig("full"), ALIBI)
    elif positions.rope is not None and positions.rope.relative:
        attention = with_relative(attention, positions.rope.relative)
    position_change, unchanged = positions.change((attention, decoder_attention), length.old)

    # short texts, which an encoder reads with full attention
    short_texts = ShortTexts()
    layers, is_causal = chosen.config.attending
    if original is None and not is_causal:
        windows = [None] * layers if decoder is not None else own_windows(base)  # none in a model with two stacks
        attention, short_texts = with_short_texts(attention, windows, length, position_change)

    # the config of the result, and warnings
    config = architecture.long_config(
        attention, decoder_attention, positions.lengths, positions.rope, positions.strategy
    )
    skeleton = architecture.skeleton(config)
    looks_back = None
    if causal is not None:
        looks_back = positions_without_end(architecture.family, config)
    if chosen.marks_question and takes_globals(skeleton) and not chooses_by_ids(skeleton):
        config.question_separator_id = chosen.separator
    shape = model_shape(config, skeleton)
    warnings = position_warnings(
        positions.strategy,
        attention,
        layer_mechanisms(attention, shape, length.new),
        length,
        causal=shape.causal,
        scaled=positions.rope is not None and not positions.rope.exact,
        auto=request.positions == AUTO,
    )
    if decoder is not None:
        decoder_attention = config.decoder_attention
        mechanisms = layer_mechanisms(decoder_attention, ModelShape.of(config, causal=True), decoder.new)
        warnings += position_warnings(
            positions.strategy, decoder_attention, mechanisms, decoder, causal=True, decoder=True
        )
    inputs = architecture.family.spec.between(config, length.old, length.new)
    return ConversionPlan(
        source=opened,
        architecture=architecture,
        config=config,
        inputs=inputs,
        positions=positions.strategy,
        attention=attention,
        position_change=position_change,
        short_texts=short_texts,
        encoded=None if chosen.saved_by is None else encoded_texts(opened, chosen.saved_by, length.old),
        unchanged_tokens=unchanged,
        skeleton=skeleton,
        shape=shape,
        costs=costs_of(inputs, attention, shape),
        warnings=tuple(warnings),
        decoder=decoder,
        tokenizer_length=length.new if looks_back is None or request.max_length is not None else VERY_LARGE_INTEGER,
        looks_back=looks_back,
    )


@dataclass(frozen=True)
class TextAttention:
    """The attention of a result that reads texts, before its positions are planned."""

    config: Any  # the result's config, but with the source's positions
    attention: LongAttentionConfig  # of the encoder, or of the only stack
    decoder: LongAttentionConfig | None  # of the decoder beside an encoder; None for the default
    saved_by: str | None  # the class of sentence-transformers that saved the source
    marks_question: bool  # whether the tokens of a question or query should be global
    separator: int | None  # the token after which the second text of a pair begins, if it is needed


def plan_attention(opened: Source, architecture: Architecture, request: ConversionConfig) -> TextAttention:
    """Choose the attention of a text model, and find the separator that its global tokens need."""
    base, original = architecture.source_config, architecture.original_attention
    attention = decoder = None
    if original is not None or request.names_attention:
        attention = request.attention(original)
    if request.decoder_long_attention is not None:
        decoder = LongAttentionConfig.from_dict(request.decoder_long_attention)
    # the config fills in the family's default attention and the base's windows
    config = architecture.long_config(attention, decoder)
    attention = config.long_attention
    saved_by = sentence_class(opened.card_folder)
    if hasattr(base, "sentence_transformers") or hasattr(base, "sbert_ce_default_activation_function"):
        saved_by = saved_by or RERANKER  # a reranker without modules
    reads_pairs = architecture.source_class.endswith("ForQuestionAnswering") or saved_by == RERANKER
    marks_question = reads_pairs and original is None
    # whether a mechanism's option needs the separator, which the config does not tell
    lacks_separator = getattr(base, "sep_token_id", None) is None and with_separator(attention, 0) != attention
    separator = None
    # Loading a large vocabulary takes seconds. If no separator is needed, only the check of the result loads the
    # tokenizer.
    if marks_question or lacks_separator or not request.verify:
        tokenizer = load_tokenizer(opened.folder, base)
        if tokenizer is not None and (marks_question or lacks_separator):
            separator = question_separator(tokenizer)
    if lacks_separator and separator is not None:
        attention = with_separator(attention, separator)
    return TextAttention(config, attention, decoder, saved_by, marks_question, separator)


def stack_lengths(
    source: Source, architecture: Architecture, request: ConversionConfig
) -> tuple[StackLength, StackLength | None]:
    """The lengths of the encoder or the only stack, and the lengths of a decoder beside an encoder (or ``None``).

    By default, a decoder keeps its length, because summaries do not become longer with their texts. A decoder grows
    with the encoder if the head feeds it the whole text.
    """
    decoder_alone = architecture.family.two_stacks and not architecture.family.has_encoder(architecture.long_class)
    old = source_length(source, architecture, decoder=decoder_alone)
    text = StackLength(old, old if request.max_length is None else int(request.max_length))
    text.check_grows()
    if not architecture.encoder_decoder:
        return text, None
    old = new = source_length(source, architecture, decoder=True)
    if request.max_decoder_length is not None:
        new = int(request.max_decoder_length)
    elif architecture.decoder_reads_text and text.new > text.old:
        new = max(old, text.new)
    decoder = StackLength(old, new)
    decoder.check_grows("decoder length")
    return text, decoder


def source_length(source: Source, architecture: Architecture, *, decoder: bool) -> int:
    """Maximum tokens of the source's encoder, or of its decoder.

    Raises:
        CheckpointError: the config has no possible length.
    """
    family, config = architecture.family, architecture.source_config
    table = next((candidate for candidate in family.position_tables if candidate.decoder == decoder), None)
    length = family.base_length(config, table)
    if table is not None:
        pad = getattr(config, "pad_token_id", None)
        if table.offset == "padding" and (pad is None or not -1 <= pad < length - 1):
            raise CheckpointError(
                f"The config of {source.name!r} says pad_token_id={pad}, after which a {architecture.source_class} "
                f"counts its positions, and max_position_embeddings={length}; set pad_token_id in its config.json to "
                "the id with which it was trained."
            )
        length -= table.config_value(0, config)
    if length < 1:
        raise CheckpointError(
            f"The config.json of {source.name!r} says that it takes {length} tokens; it must be at least 1."
        )
    return length


@dataclass(frozen=True)
class TextPositions:
    """The positions of a result that reads texts."""

    strategy: str  # a strategy for tables, "rope:" and a RoPE scaling, "relative" or "absent"
    # config fields with new lengths; empty for scaled rotations
    lengths: Mapping[str, int] = field(default_factory=dict)
    rope: RopePlan | None = None  # scaled rotations
    unchanged: int | None = None  # maximum length of a text with unchanged positions; None for the old length

    def change(self, stacks: Iterable[LongAttentionConfig | None], old: int) -> tuple[str, int]:
        """Whether positions change outputs for texts of up to ``old`` tokens.

        Args:
            stacks: the attention of each stack, which may add relative positions; ``None`` adds none.
        Returns:
            The reason for a change as a clause, and the maximum length of texts without a change. They are "" and 0 if
            no output changes.
        """
        reason, unchanged = "", 0
        if self.unchanged is not None:
            unchanged = self.unchanged
            reason = f"{self.strategy} changes the old positions too"
            if unchanged > 1:
                reason = f"{self.strategy} changes the old positions after the first {unchanged}"
        choices = [choice for stack in stacks if stack is not None for choice in option_values(stack, RELATIVE)]
        for choice in choices:
            tokens = unchanged_tokens(choice)
            if tokens is None or tokens >= old:
                continue
            if reason:
                unchanged = min(tokens, unchanged)
                continue
            unchanged = tokens
            reason = f"relative={choice} changes every score"
            if tokens:
                reason = f"relative={choice} changes texts of over {tokens} tokens"
        return reason, unchanged


def plan_positions(
    architecture: Architecture,
    attention: LongAttentionConfig,
    positions: str,
    text: StackLength,
    decoder: StackLength | None,
    *,
    causal: bool | None,
) -> TextPositions:
    """Plan the positions of the result.

    Args:
        positions: "auto", a strategy for tables, or "rope:" and a RoPE scaling.
        text: lengths of the encoder or the only stack.
        decoder: lengths of the decoder beside an encoder, or ``None``.
        causal: the result of :func:`causal_distances`.
    """
    family, base = architecture.family, architecture.source_config
    if family.scales_rotations(base):
        rope = plan_rotary(base, attention, positions, text.old, text.new, causal=causal)
        return TextPositions(f"rope:{rope.scaling}", {}, rope, None if rope.exact else 0)
    lengths = {}
    for table in family.position_tables:
        length = decoder if table.decoder and decoder is not None else text
        lengths[table.field] = table.config_value(length.new, base)
    if not lengths:
        lengths["max_position_embeddings"] = text.new
    if family.relative and decoder is not None:
        lengths["max_decoder_position_embeddings"] = decoder.new
    strategy = choose_strategy(architecture, positions)
    growing = [length for length in (text, decoder) if length is not None and length.new > length.old]
    kept_rows = tables.stretched_from(strategy)
    if kept_rows is not None:
        strategy = f"{tables.STRETCH}:{kept_rows}"
        for length in growing:  # otherwise, an error while the tables are loaded would hide the reason
            tables.check_stretch(length.old, kept_rows)
    if strategy not in tables.DROPPED and (tables.keeps_old_rows(strategy) or not growing):
        return TextPositions(strategy, lengths)
    return TextPositions(strategy, lengths, unchanged=tables.unchanged_rows(strategy, text.old))


def choose_strategy(architecture: Architecture, positions: str) -> str:
    """The strategy for positions other than scaled rotations.

    Raises:
        OptionError: ``positions`` is a strategy that does not apply to the model.
    """
    family, strategy = architecture.family, ""
    # models without a table of absolute positions have a single strategy
    if family.relative:
        strategy, explanation = "relative", "adds its positions to the scores, which works at any length"
    elif family.no_positions:
        strategy, explanation = "absent", "has no positions"
    elif family.rotary(architecture.source_config):
        strategy, explanation = "rope:none", "has rotary positions that transformers cannot scale"
    if strategy:
        if positions not in ("auto", strategy):
            raise OptionError(
                f"{positions!r} does not apply: a {architecture.source_class} {explanation}; leave --positions out."
            )
        return strategy
    learned = all(table.learned for table in family.position_tables)
    if positions == "auto":  # mostly "tile", which works without training
        return family.config_class.default_extension if learned else tables.SINUSOIDAL
    extends = tables.extends_learned(positions) if learned else positions == tables.SINUSOIDAL
    if extends or positions in tables.DROPPED:
        return positions
    noun, known = "a learned position table", tables.KNOWN
    if not learned:
        noun, known = "sinusoidal positions, which are computed", tables.DROPPED
    raise OptionError(
        f"{positions!r} does not apply to {noun}; expected auto or one of {', '.join(known)}."
        f"{nearest(positions, known)}"
    )


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
    """Warnings about positions of one stack that need training.

    There is one warning about the strategy, or else one warning for each mechanism with a problem.

    Args:
        strategy: the strategy for positions.
        layers: the mechanism of each layer.
        length: maximum length in source and result.
        decoder: whether the stack is the decoder beside an encoder.
        scaled: whether rotations of old positions change.
        auto: whether the user left the strategy to ``--positions auto``.
    """
    if scaled and (strategy == "rope:yarn" or (auto and strategy == "rope:linear")):
        attention_nearby = "a window without global tokens"
        if causal:
            attention_nearby = f"window={length.old // 2} with num_sinks=4 and sink_positions=cache"
        advice = f"{attention_nearby} needs no scaling, and --positions rope:none omits it"
        problem = f"{strategy} scales the rotations of all tokens"
        return [PositionWarning(problem, advice, "outputs change for every text, short ones too")]
    moves_positions = strategy in (tables.INTERPOLATE, "rope:linear", "rope:base") and length.new > length.old
    if moves_positions or strategy in tables.DROPPED:
        problem = f"{strategy} changes the positions of every text, short ones too"
        advice = f"leave --positions {strategy} out, or train the result"
        return [PositionWarning(problem, advice, "results become much worse")]
    problems = [needs_training_by(mechanism, strategy, length.old, length.new, causal) for mechanism in layers]
    width = widest_span(length.old, causal=causal)
    noun, flags = "layer", f"--mechanism window --option window={width}"
    if decoder:
        noun, flags = "decoder layer", f"--decoder-mechanism window:window={width}"
    advice = f"use a window of at most {width:,} tokens ({flags}), or train the result"
    return warnings_of_layers(attention, problems, advice, noun)


def encoded_texts(source: Source, saved_by: str, longest: int) -> EncodedTexts:
    """How much of a text sentence-transformers reads with the source.

    Args:
        saved_by: the class of sentence-transformers that loads the source.
        longest: maximum tokens of the source's model.
    """
    file = source.folder / TOKENIZER_CONFIG
    tokenizer = read_json_object(file) if file.is_file() else {}
    settings: dict[str, Any] = {}
    for settings_file in sorted(source.folder.glob(TRANSFORMER_SETTINGS)):
        settings = sentence_values(settings_file)
    limits = [settings.get(SENTENCE_LIMIT) or tokenizer.get(TOKENIZER_LIMIT)]
    if saved_by == TOKEN_VECTORS:
        limits.append(settings.get(DOCUMENT_LIMIT))
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and limit > 0]
    methods = {RERANKER: "predict", TOKEN_VECTORS: "encode_document"}
    return EncodedTexts(min([*known, longest]), methods.get(saved_by, "encode"))


def with_short_texts(
    attention: LongAttentionConfig, windows: Sequence[int | None], length: StackLength, change: str
) -> tuple[LongAttentionConfig, ShortTexts]:
    """Let an encoder read short texts with full attention, like its source, by the option ``exact_length``.

    The option is set to the source's length if the result is longer than the source, positions do not change outputs,
    and every layer's mechanism allows the option. Layers that keep a window of the source are not changed.

    Args:
        windows: for each layer the source's window, or ``None``.
        change: the reason why positions change outputs, or "".
    Returns:
        The attention, and the texts that are read with full attention.
    """
    changed = [number for number, width in enumerate(windows) if not keeps_window(attention, number, width)]
    reason = change
    if length.new > length.old and not change and not option_values(attention, EXACT_LENGTH):
        attention, reason = with_exact_length(attention, changed, length.old)
    layers = attention.prototypes(changed)
    exact_lengths = [layer.options.exact_length for layer in layers if layer.options.exact_length]
    if not exact_lengths:
        return attention, ShortTexts(0, reason)
    longest = max(exact_lengths)
    if longest > length.old:
        raise OptionError(
            f"exact_length={longest} is beyond the {length.old} tokens that the source reads; give at most "
            f"{length.old}."
        )
    if not all(layer.options.exact_length or layer.covers(longest) for layer in layers):
        return attention, ShortTexts(0, "some layers have no exact_length")
    if not change and len(layers) > windows.count(None):
        change = "exact_length replaces windows of the source"
    return attention, ShortTexts(min(exact_lengths), change)


def with_exact_length(
    attention: LongAttentionConfig, numbers: Sequence[int], length: int
) -> tuple[LongAttentionConfig, str]:
    """Set ``exact_length`` in layers that do not compute full attention at this length.

    Args:
        numbers: the layers that may get the option.
        length: the value of the option, in tokens.
    Returns:
        The attention, and "". If a layer cannot have the option, the unchanged attention, and the reason as a clause.
    """
    names = set()
    for layer in attention.prototypes(numbers):
        if layer.covers(length):
            continue
        objection = why_not_in_full(layer)
        if layer.capabilities.trains:
            objection = "adds parameters that need training"
        elif not layer.capabilities.takes_score_mod:
            objection = "is not full attention over fewer keys"
        if objection:
            return attention, f"{layer.name!r} {objection}"
        names.add(layer.name)
    if names:
        attention = attention.with_option(
            EXACT_LENGTH, length, lambda name, layer: name in names and (layer is None or layer in numbers)
        )
    return attention, ""


def causal_distances(architecture: Architecture, config: Any) -> bool | None:
    """Whether layers are causal, for planning rotary positions.

    ``None`` if a causal window has sinks that keep their positions in the text, so that the distances to them grow
    with the text. This is so for models whose rotation this package cannot compute.
    """
    layers, causal = config.attending
    if not causal or not architecture.family.scales_rotations(architecture.source_config):
        return bool(causal)
    mechanisms = config.long_attention.prototypes(range(layers))
    if any(map(leading_sinks, mechanisms)) and has_sinks_in_text(attached_mechanisms(architecture.skeleton(config))):
        return None
    return True


def option_values(attention: LongAttentionConfig, option: str) -> list[Any]:
    """The values of an option in the default mechanism, and in all choices for layers, where it is set."""
    choices = [attention.options, *attention.turns, *attention.layers.values()]
    return [values[option] for values in choices if values.get(option) is not None]


def with_relative(attention: LongAttentionConfig, choice: str) -> LongAttentionConfig:
    """``attention`` with the option ``relative=choice`` in every layer.

    A choice that depends on positions in the sequence, such as self-extend, is only for layers with full attention.

    Raises:
        OptionError: a layer has another value of the option.
    """
    others = [other for other in option_values(attention, RELATIVE) if other != choice]
    if others:
        advice = "leave out one of them"
        if choice == ALIBI:
            advice = "give positions='none' to keep the latter alone"
        raise OptionError(f"positions={choice!r} contradicts relative={others[0]!r}; {advice}.")
    only_full = relative_class(choice).counts_tokens
    return attention.with_option(
        RELATIVE, choice, lambda name, layer: not only_full or issubclass(mechanism_class(name), Full)
    )


def with_separator(attention: LongAttentionConfig, separator: int) -> LongAttentionConfig:
    """``attention`` with ``separator`` in each mechanism whose first segment is global and that has no separator."""
    option = "separator_token_id"
    if attention.options.get(option) is not None:
        return attention
    return completed(
        attention,
        {option: separator},
        lambda choice: choice.get("global_first_segment") and choice.get(option) is None,
    )
