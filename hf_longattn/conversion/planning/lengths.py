"""How many tokens the source and the result take; an encoder and its decoder each have a length of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError, LengthError
from ...families.registry import Family, PositionTable
from ..architectures.base import Architecture
from ..sources.base import Source
from .tensors import MovedTensor

__all__ = ["StackLength", "config_lengths", "decoder_length", "longest", "text_length"]


@dataclass(frozen=True)
class StackLength:
    """Tokens that a stack takes in the source and in the result."""

    old: int
    new: int


def text_length(
    source: Source, architecture: Architecture, moves: list[MovedTensor], tables: Mapping[str, PositionTable], asked: int | None
) -> StackLength:
    """Of the text: the encoder's, or that of the only stack.

    Raises:
        CheckpointError: the position table and the config contradict each other.
        LengthError: the length asked for is shorter than the source's.
    """
    alone = architecture.family.two_stacks and not architecture.encoder_decoder
    old = _source_length(source, architecture, moves, tables, decoder=alone)
    return _longer(old, old if asked is None else int(asked), "--max-length")


def decoder_length(
    source: Source,
    architecture: Architecture,
    moves: list[MovedTensor],
    tables: Mapping[str, PositionTable],
    asked: int | None,
    text: StackLength,
) -> StackLength | None:
    """Of the decoder beside an encoder; ``None`` where there is none. It stays as it is unless asked for, since a summary does not
    grow with its text, except under heads that read the whole text in the decoder.

    Raises:
        CheckpointError, LengthError: as for the text, or a length asked for where there is no decoder.
    """
    if not architecture.encoder_decoder:
        if asked is not None:
            raise LengthError(f"{architecture.source_class} has no decoder beside an encoder, so that --max-decoder-length means nothing.")
        return None
    old = _source_length(source, architecture, moves, tables, decoder=True)
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
    """Tokens of text that a model with this config takes."""
    alone = family.two_stacks and not config.is_encoder_decoder
    table = next((one for one in family.position_tables if one.decoder == alone), None)
    return config.max_position_embeddings if table is None else table.tokens(config)


def _longer(old: int, new: int, flag: str) -> StackLength:
    if new < old:
        raise LengthError(f"The source takes {old} tokens and conversion only extends: {flag} {new} is too small, give at least {old}.")
    return StackLength(old, new)


def _source_length(
    source: Source, architecture: Architecture, moves: list[MovedTensor], tables: Mapping[str, PositionTable], *, decoder: bool
) -> int:
    """Tokens a stack of the source takes: its position table without the special rows, or what the config says."""
    config, adopter = architecture.source_config, architecture.adopter
    if adopter is not None and not decoder:
        length = adopter.max_length(architecture.adopted_config)
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
    for one in moves:
        if one.target is not None and tables.get(one.target) is table and one.shape[:1] != (tokens + table.offset,):
            rows = one.shape[0] if one.shape else "no"
            raise CheckpointError(f"The config of {source.name!r} says {field}={said}, but its table {one.header.name!r} has {rows} rows.")
    return tokens
