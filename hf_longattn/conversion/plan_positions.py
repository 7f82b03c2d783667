"""Plan the lengths of encoder and decoder, and the positions for these lengths. Also the short texts that get full attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..configuration import LongAttentionConfig
from ..errors import CheckpointError, InputError, OptionError, nearest
from ..mechanisms import Mechanism
from ..mechanisms.common.choice_text import write_choice, write_numbers
from ..mechanisms.common.exact import why_not_in_full
from ..mechanisms.common.locality import keys_per_query, needs_training_by
from ..mechanisms.common.options import EXACT_LENGTH
from ..mechanisms.common.registry import prototype
from ..modeling.family.rotary import plan_rotary
from ..modeling.family.sliding_window import keeps_window
from ..positions import tables as table_rules
from ..positions.distances import RANDOM, widest_span
from ..positions.rope import RopePlan
from .config import ConversionConfig
from .sources import Architecture, Source


@dataclass(frozen=True)
class StackLength:
    """Maximum length of a stack in the source and in the result."""

    old: int
    new: int

    def check_grows(self, what: str = "length", unit: str = "tokens") -> None:
        """Raise :class:`InputError` if the result reads fewer tokens than the source."""
        if self.new < self.old:
            raise InputError(
                f"The source takes {self.old} {unit} and conversion only extends it: a maximum {what} of {self.new} is too small, give at "
                f"least {self.old}."
            )


def layers_in_words(numbers: Sequence[int], count: int, noun: str = "layer") -> str:
    """Some of ``count`` layers as text: "every layer", "layer 3" or "layers 0-2,5"."""
    return f"every {noun}" if len(numbers) == count else f"{noun}{'s' if len(numbers) > 1 else ''} {write_numbers(numbers)}"


@dataclass(frozen=True)
class PositionWarning:
    """A warning against using the result without training. The problem, the advice and the harm are clauses."""

    problem: str
    advice: str
    harm: str = "results can become worse"

    def __str__(self) -> str:
        return f"{self.problem}, so {self.harm}; {self.advice}."


def stack_lengths(source: Source, architecture: Architecture, request: ConversionConfig) -> tuple[StackLength, StackLength | None]:
    """Lengths of the encoder or only stack, and of an encoder-decoder's decoder. The latter is else ``None``.

    By default the decoder's length is unchanged, since a summary does not grow with its text. If the head feeds the whole text to the
    decoder, the decoder becomes as long as the encoder.
    """

    def stack(decoder: bool, wanted: int | None, unasked: int, what: str) -> StackLength:
        config = architecture.source_config
        table = next((candidate for candidate in architecture.family.position_tables if candidate.decoder == decoder), None)
        rows = architecture.family.base_length(config, table)
        pad = getattr(config, "pad_token_id", None)
        if table is not None and table.offset == "padding" and (pad is None or not -1 <= pad < rows - 1):
            raise CheckpointError(
                f"The config of {source.name!r} says pad_token_id={pad}, after which a {architecture.source_class} counts its positions, "
                f"and max_position_embeddings={rows}; set pad_token_id in its config.json to the id with which it was trained."
            )
        old = rows - (0 if table is None else table.config_value(0, config))
        if old < 1:
            raise CheckpointError(f"The config.json of {source.name!r} says that it takes {old} tokens; it must be at least 1.")
        length = StackLength(old, max(old, unasked) if wanted is None else int(wanted))
        length.check_grows(what)
        return length

    text = stack(architecture.decoder_alone, request.max_length, 0, "length")
    if architecture.encoder_decoder:
        follows = text.new if architecture.decoder_reads_text and text.new > text.old else 0
        return text, stack(True, request.max_decoder_length, follows, "decoder length")
    if request.max_decoder_length is not None:
        raise InputError(f"{architecture.source_class} is not an encoder-decoder; --max-decoder-length does not apply.")
    return text, None


@dataclass(frozen=True)
class PositionPlan:
    """The positions of the result."""

    rule: str  # "tile", "rope:yarn" …
    rope: RopePlan | None  # rotary positions of the result; None for tables and fixed formulas
    lengths: dict[str, int]  # field of the result's config -> its value; empty for rotary positions
    unchanged: int | None = None  # maximum tokens of a text with unchanged outputs; None if all up to the old length have

    @property
    def relative(self) -> str:
        """The option ``relative`` that belongs to these positions; empty if there is none."""
        return self.rule if self.rule == table_rules.ALIBI else "" if self.rope is None else self.rope.relative

    @property
    def position_change(self) -> str:
        """Reason why the new positions change outputs below the old length. Empty if they do not."""
        if self.unchanged is None:
            return ""
        return f"{self.rule} changes the old positions {f'after the first {self.unchanged}' if self.unchanged > 1 else 'too'}"


def plan_positions(
    architecture: Architecture, attention: LongAttentionConfig, positions: str, text: StackLength, decoder: StackLength | None
) -> PositionPlan:
    """Plan the positions of the result: `positions` is "auto", a strategy for tables, or "rope:<kind>"."""
    family, base = architecture.family, architecture.source_config
    if family.scales_rotations(base):
        rope = plan_rotary(base, attention, positions, text.old, text.new)
        return PositionPlan(f"rope:{rope.kind}", rope, {}, None if rope.exact else 0)
    lengths = {
        table.field: table.config_value(decoder.new if table.decoder and decoder is not None else text.new, base)
        for table in family.position_tables
    } or {"max_position_embeddings": text.new}
    rule = why = ""
    if family.relative:
        rule, why = "relative", "has positions as terms of its scores, which hold at any length"
        of_decoder = {} if decoder is None else {"max_decoder_position_embeddings": decoder.new}
        lengths = {"max_position_embeddings": text.new, **of_decoder}
    elif family.no_positions:
        rule, why = "absent", "has no positions"
    elif family.rotary(base):
        rule, why = "rope:none", "has rotary positions that transformers cannot scale"
    if why:
        if positions not in ("auto", rule):
            raise OptionError(f"{positions!r} does not apply: a {architecture.source_class} {why}; leave --positions out.")
        return PositionPlan(rule, None, lengths)
    unasked = family.config_class.default_extension
    rule = table_strategy(positions, unasked, learned=all(table.learned for table in family.position_tables))
    growing = [length for length in (text, decoder) if length is not None and length.new > length.old]
    kept_rows = table_rules.stretched_from(rule)
    if kept_rows is not None:  # before transformers loads the tables, and hides the reason
        for length in growing:
            table_rules.check_stretch(length.old, kept_rows)
    exact = rule not in table_rules.DROPPED and (table_rules.keeps_old_rows(rule) or not growing)
    return PositionPlan(rule, None, lengths, None if exact else table_rules.unchanged_rows(rule, text.old))


def table_strategy(positions: str, unasked: str, *, learned: bool) -> str:
    """The strategy for position tables. "auto" computes more sinusoids, and extends a learned table by the family's default ``unasked``,
    mostly "tile", which works without training."""
    if positions in table_rules.DROPPED:
        return positions
    known = table_rules.KNOWN if learned else table_rules.DROPPED
    if positions != "auto" and not (table_rules.extends_learned(positions) if learned else positions == table_rules.SINUSOIDAL):
        kind = "a learned position table" if learned else "sinusoidal positions, which are computed"
        raise OptionError(f"{positions!r} does not apply to {kind}; expected auto or one of {', '.join(known)}.{nearest(positions, known)}")
    if not learned:
        return table_rules.SINUSOIDAL
    rule = unasked if positions == "auto" else positions
    kept_rows = table_rules.stretched_from(rule)
    return rule if kept_rows is None else f"{table_rules.STRETCH}:{kept_rows}"


MOVED = (table_rules.INTERPOLATE, "rope:linear", "rope:base")
"""Rules that change every position, in a way that the model was not trained on."""


def position_warnings(
    rule: str,
    attention: LongAttentionConfig,
    layers: Sequence[Mechanism],
    length: StackLength,
    *,
    causal: bool,
    decoder: bool = False,
    auto: bool = False,
) -> list[PositionWarning]:
    """Warnings about positions that need training: one about the rule, or one for each mechanism.

    Args:
        rule, auto: how positions are extended, and whether ``--positions auto`` chose it.
        attention, layers, length, causal: of one stack, whose layers have these mechanisms.
        decoder: whether the stack is the decoder of an encoder-decoder.
    """
    grows = length.new > length.old
    if auto and rule in ("rope:linear", "rope:yarn") and grows:
        localities = [layer.locality(causal) for layer in layers if (keys_per_query(layer) or length.new) > length.old]
        if all(local is not None and local.beside == "globals" and local.back < length.old for local in localities):
            problem = (
                f"{rule} scales the rotations of all tokens, though only sinks or global tokens are further away than the {length.old:,} "
                "tokens of training (--positions rope:none leaves it out)"
            )
            cost = "Gemma 3 270M with 4 sinks has a loss of 3.546 nats unscaled, 3.557 for twice the length and 3.638 for eight times"
            return [PositionWarning(problem, cost, "every text is read worse, short ones too")]
    if (rule in MOVED and grows) or rule in table_rules.DROPPED or (rule == RANDOM and grows):
        rows = f"positions from {length.old:,} on are random rows, as before training"
        problem = rows if rule == RANDOM else f"{rule} changes the positions of every text, short ones too"
        return [PositionWarning(problem, f"leave --positions {rule} out, or train the result", "results become much worse")]
    problems: dict[str, tuple[str, list[int]]] = {}
    for number, mechanism in enumerate(layers):
        if problem := needs_training_by(mechanism, rule, length.old, length.new, causal):
            name, options = attention.for_layer(number)
            for_long_texts = {option: value for option, value in options.items() if option != EXACT_LENGTH}
            problems.setdefault(write_choice({"mechanism": name, **for_long_texts}), (problem, []))[1].append(number)
    width = widest_span(length.old, causal=causal)
    flags = f"--decoder-mechanism window:window={width}" if decoder else f"--mechanism window --option window={width}"
    stack = "decoder layer" if decoder else "layer"
    advice = f"use a window of at most {width:,} tokens ({flags}), or train the result"
    warnings = []
    for name, (problem, numbers) in problems.items():
        warnings.append(PositionWarning(f"{name} in {layers_in_words(numbers, len(layers), stack)} {problem}", advice))
    return warnings


# Short texts, which a converted encoder reads with full attention, like its source: the option ``exact_length`` and its default.


@dataclass(frozen=True)
class ShortTexts:
    """The texts that an encoder reads with full attention.

    length: maximum length in tokens; 0 if there are none.
    reason: why short texts are not read exactly as by the source; empty if they are, or if that does not apply.
    """

    length: int = 0
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"short ones are not read exactly as by the source: {self.reason}"
        return f"of up to {self.length} tokens are read exactly as by the source" if self.length else ""


def with_short_texts(
    attention: LongAttentionConfig, windows: Sequence[int | None], length: StackLength, change: str
) -> tuple[LongAttentionConfig, ShortTexts]:
    """Set ``exact_length`` to the source's length if possible. Returns the texts that then get full attention, too.

    It is possible if the result is longer than the source, its positions do not change outputs, and no layer objects. Layers that keep a
    window of the source, or are full attention for such texts anyway, are left out.

    Args:
        windows: the window width of each layer in the source; ``None`` for a layer without a window.
        change: how positions change outputs of short texts; empty if they do not.
    """

    def objection(mechanism: Mechanism) -> str:
        """Reason why a layer gets no ``exact_length`` by default; empty if it can get one."""
        reason = why_not_in_full(mechanism)
        if mechanism.traits.trains:
            reason = "has parameters of its own, which need training"
        elif not mechanism.traits.takes_score_mod:
            reason = "is not full attention over fewer keys"
        return f"{mechanism.name!r} {reason}" if reason else ""

    def without_windows() -> list[Mechanism]:
        """The mechanism of every layer that keeps no window of the source."""
        numbers = (number for number, width in enumerate(windows) if not keeps_window(attention, number, width))
        return [prototype(*attention.for_layer(number)) for number in numbers]

    choices, reason = [attention.options, *attention.turns, *attention.layers.values()], change
    if length.new > length.old and not change and not any(EXACT_LENGTH in choice for choice in choices):
        lacking = [layer for layer in without_windows() if not layer.covers(length.old)]
        reason = next(filter(None, map(objection, lacking)), "")
        if lacking and not reason:
            names, kept = {layer.name for layer in lacking}, [keeps_window(attention, *layer) for layer in enumerate(windows)]
            attention = attention.with_option(
                EXACT_LENGTH, length.old, lambda name, layer: name in names and (layer is None or not kept[layer])
            )
    layers = without_windows()
    longest = max((layer.options.exact_length or 0 for layer in layers), default=0)
    if not longest:
        return attention, ShortTexts(0, reason)
    if longest > length.old:
        raise OptionError(f"exact_length={longest} is beyond the {length.old} tokens that the source reads; give at most {length.old}.")
    if not all(layer.options.exact_length or layer.covers(longest) for layer in layers):
        return attention, ShortTexts(0, "some layers have no exact_length")
    replaced = len(layers) > windows.count(None)
    shortest = min(layer.options.exact_length for layer in layers if layer.options.exact_length)
    return attention, ShortTexts(shortest, change or ("exact_length replaces windows of the source" if replaced else ""))
