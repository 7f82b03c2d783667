"""The lengths of source and result, of the encoder and of its decoder, and the positions that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..configuration import LongAttentionConfig
from ..errors import CheckpointError, LengthError, PositionError, nearest
from ..mechanisms import Mechanism
from ..modeling.family import Family, PositionTable
from ..positions import DROPPED, SINUSOIDAL, STRATEGIES, RopePlan, keeps_old_rows, rope_parameters
from .architectures import Architecture
from .flops import ModelShape, layer_mechanisms
from .plan_tensors import RenamedTensor
from .sources import Source


@dataclass(frozen=True)
class StackLength:
    """Maximum length of a stack in the source and in the result."""

    old: int
    new: int


def text_length(
    source: Source, architecture: Architecture, renamed: list[RenamedTensor], tables: Mapping[str, PositionTable], asked: int | None
) -> StackLength:
    """The length of the text: the encoder's, or that of the only stack.

    Raises:
        CheckpointError: the position table and the config contradict each other.
        LengthError: `asked` is shorter than the source.
    """
    alone = architecture.family.two_stacks and not architecture.encoder_decoder
    old = _source_length(source, architecture, renamed, tables, decoder=alone)
    return _longer(old, old if asked is None else int(asked), "--max-length")


def decoder_length(
    source: Source,
    architecture: Architecture,
    renamed: list[RenamedTensor],
    tables: Mapping[str, PositionTable],
    asked: int | None,
    text: StackLength,
) -> StackLength | None:
    """The length of the decoder of an encoder-decoder, ``None`` for other models.

    It is unchanged unless asked for, since a summary does not grow with its text, except for heads that read the whole text in the decoder.

    Raises:
        CheckpointError, LengthError: as for the text; or the model is not an encoder-decoder.
    """
    if not architecture.encoder_decoder:
        if asked is not None:
            raise LengthError(f"{architecture.source_class} is not an encoder-decoder; --max-decoder-length does not apply.")
        return None
    old = _source_length(source, architecture, renamed, tables, decoder=True)
    unasked = max(old, text.new) if architecture.decoder_reads_text and text.new > text.old else old
    return _longer(old, unasked if asked is None else int(asked), "--max-decoder-length")


def config_lengths(family: Family, text: StackLength, decoder: StackLength | None) -> dict[str, int]:
    """Field of the result's config -> its value, for a family with position tables."""
    found = {}
    for table in family.position_tables:
        new = decoder.new if table.decoder and decoder is not None else text.new
        found[table.field] = table.config_value(new)
    return found


def longest(family: Family, config: Any) -> int:
    """Maximum length of the text of a model with this config."""
    alone = family.two_stacks and not config.is_encoder_decoder
    table = next((one for one in family.position_tables if one.decoder == alone), None)
    return config.max_position_embeddings if table is None else table.tokens(config)


def _longer(old: int, new: int, flag: str) -> StackLength:
    if new < old:
        raise LengthError(f"The source takes {old} tokens and conversion only extends it: {flag} {new} is too small, give at least {old}.")
    return StackLength(old, new)


def _source_length(
    source: Source, architecture: Architecture, renamed: list[RenamedTensor], tables: Mapping[str, PositionTable], *, decoder: bool
) -> int:
    """Maximum length of a stack of the source: its position table without the special rows, or what the config says."""
    config, converter = architecture.source_config, architecture.converter
    if converter is not None and not decoder:
        length = converter.max_length(architecture.original_config)
        if length is not None:
            return length
    table = next((one for one in architecture.family.position_tables if one.decoder == decoder), None)
    field = "max_position_embeddings" if table is None else table.field
    if not hasattr(config, field):  # a plain base has one number for both stacks
        field = "max_position_embeddings"
    said = getattr(config, field)
    if table is None:
        return int(said)
    tokens = said - table.config_value(0)
    for one in renamed:
        if one.target is not None and tables.get(one.target) is table and one.shape[:1] != (tokens + table.offset,):
            rows = one.shape[0] if one.shape else "no"
            raise CheckpointError(f"The config of {source.name!r} says {field}={said}, but its table {one.header.name!r} has {rows} rows.")
    return tokens


ROPE_NONE = "rope:none"
"""The rule that leaves rotary positions unchanged."""


@dataclass(frozen=True)
class PositionPlan:
    """The positions of the result."""

    rule: str  # "tile", "rope:yarn" …
    exact: bool  # whether outputs below the old length are unchanged
    rope: dict[str, Any] | None  # rotary parameters of the result; None for tables and fixed formulas
    lengths: dict[str, int]  # field of the result's config -> its value

    @property
    def position_change(self) -> str:
        """Why positions below the old length change the outputs; empty if they do not."""
        return "" if self.exact else f"{self.rule} changes the old positions too"


def plan_positions(
    architecture: Architecture, attention: LongAttentionConfig, asked: str, text: StackLength, decoder: StackLength | None
) -> PositionPlan:
    """Plan the positions of the result.

    Args:
        architecture: of the source.
        attention: of the result.
        asked: "auto", a strategy for tables, or "rope:<kind>".
        text, decoder: lengths of the text, and of the decoder of an encoder-decoder.

    Raises:
        PositionError: unknown, or for positions that the source does not have.
    """
    family, base = architecture.family, architecture.source_config
    if family.rope:
        rope = plan_rotary(base, attention, asked, text)
        return PositionPlan(f"rope:{rope.kind}", rope.exact, rope.parameters, {"max_position_embeddings": rope.max_position_embeddings})
    lengths = config_lengths(family, text, decoder)
    if family.rotary(base):
        return PositionPlan(_fixed_rotary(asked, architecture.source_class), True, None, lengths)
    rule = _table_strategy(asked, learned=all(table.learned for table in family.position_tables))
    grows = text.new > text.old or (decoder is not None and decoder.new > decoder.old)
    return PositionPlan(rule, rule not in DROPPED and (keeps_old_rows(rule) or not grows), None, lengths)


def _table_strategy(positions: str, *, learned: bool = True) -> str:
    """The strategy for a position table; "auto" tiles a learned one, which works without training, and computes more sinusoids.

    Raises:
        PositionError: unknown, or for rotary positions.
    """
    if positions in DROPPED:
        return positions
    if not learned:
        if positions not in ("auto", SINUSOIDAL):
            raise PositionError(
                f"{positions!r} does not apply to sinusoidal positions, which are computed; expected auto, {' or '.join(DROPPED)}."
            )
        return SINUSOIDAL
    if positions == "auto":
        return "tile"
    if positions not in STRATEGIES:
        known = [*STRATEGIES, *DROPPED]
        raise PositionError(
            f"{positions!r} does not apply to a learned position table; expected auto or one of"
            f" {', '.join(known)}.{nearest(positions, known)}"
        )
    return positions


def _fixed_rotary(positions: str, source_class: str) -> str:
    """The rule for rotary positions that transformers cannot scale: they are unchanged at any length.

    Raises:
        PositionError: another rule was asked for.
    """
    if positions not in ("auto", ROPE_NONE):
        raise PositionError(
            f"{positions!r} does not apply: transformers cannot scale the rotary positions of a {source_class};"
            f" expected auto or {ROPE_NONE}."
        )
    return ROPE_NONE


def plan_rotary(config: Any, attention: LongAttentionConfig, positions: str, length: StackLength) -> RopePlan:
    """Plan the rotary parameters of the result.

    If they are given by layer type (Gemma 3), only those of layers that see beyond the old length are scaled.

    Args:
        config: of the source.
        attention: of the result.
        positions: "auto" or "rope:<kind>".
        length: of the text.

    Raises:
        PositionError: as `hf_longattn.positions.rope_parameters`.
    """
    shape = ModelShape.of(config, causal=True, matrix_parameters=0, element_bytes=4)
    mechanisms = layer_mechanisms(attention, shape, length.new)
    old = config.rope_parameters or {}
    partial = old.get("partial_rotary_factor", 1.0)

    def plan(kind: str, parameters: dict[str, Any], layers: list[Mechanism]) -> RopePlan:
        frequencies = int(shape.head_dim * partial) // 2
        lengths = {"old_length": length.old, "new_length": length.new}
        return rope_parameters(kind, parameters, **lengths, reach=_reach(layers), frequencies=frequencies)

    if not all(isinstance(parameters, dict) for parameters in old.values()):
        return plan(positions, old, mechanisms)
    found: dict[str, RopePlan] = {}
    for kind, parameters in old.items():
        layers = [mechanism for mechanism, own in zip(mechanisms, config.layer_types, strict=True) if own == kind]
        planned = plan(positions, parameters, layers)
        reach = _reach(layers)
        near = reach is not None and reach <= length.old
        found[kind] = plan("rope:none", parameters, layers) if near else planned
    decisive = next((one for one in found.values() if one.kind != "none"), next(iter(found.values())))
    parameters = {kind: one.parameters for kind, one in found.items()}
    return RopePlan(decisive.kind, parameters, decisive.max_position_embeddings, all(one.exact for one in found.values()))


def _reach(layers: list[Mechanism]) -> int | None:
    """How far the layers see back; ``None`` if unbounded."""
    reaches = [layer.reach(True) for layer in layers]
    return None if None in reaches else max((reach for reach in reaches if reach is not None), default=0)
