"""Plan a conversion: bring what was asked for and what the source is together. Reads headers only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...configuration import LongAttentionConfig
from ...families.own_windows import own_windows, with_own_windows
from ...families.token_globals import question_separator, takes_globals
from ...positions import DROPPED
from ...positions.relative import relative_kind
from ..architectures.families import find_architecture
from ..costs.counts import cost_at, layer_mechanisms, lengths_up_to
from ..costs.shape import model_shape
from ..files.staging import check_destination
from ..quiet import quiet_libraries
from ..sources.base import Source
from ..sources.opening import open_source
from ..text import load_tokenizer
from .adapter import check_adapter
from .attention import (
    ALIBI,
    all_options,
    decoder_choice,
    needs_separator,
    relative_choices,
    resolve_attention,
    with_alibi,
    with_separator,
)
from .dtypes import parse_dtype
from .generic import plan_generic
from .lengths import decoder_length, text_length
from .plan import ConversionPlan
from .positions import plan_positions
from .tensors import moved_tensors, plan_tensors

__all__ = ["plan_conversion"]


@quiet_libraries()
def plan_conversion(
    source: str | Path | Source,
    destination: str | Path | None = None,
    *,
    mechanism: str | None = None,
    long_attention: LongAttentionConfig | dict[str, Any] | None = None,
    max_length: int | None = None,
    decoder_long_attention: LongAttentionConfig | dict[str, Any] | None = None,
    max_decoder_length: int | None = None,
    positions: str = "auto",
    dtype: str | torch.dtype | None = None,
    max_shard_size: str | int | None = None,
    overwrite: bool = False,
    verify: bool = True,
    verify_text: str | Path | None = None,
    init_from_text: str | Path | None = None,
    allow_pickle: bool = False,
    merge_adapter: bool = False,
    remote_code: bool = False,
    user_code: bool = False,
    generic: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: object = None,
    options: Mapping[str, Any] | None = None,
    **more_options: Any,
) -> ConversionPlan:
    """Say what a conversion would do, from the source's config and the headers of its tensors.

    Args:
        source: a folder or a Hub repository id.
        destination, overwrite: when given, checked as a conversion would.
        mechanism: its name; its options, `layers` among them, are further arguments or stand in the mapping `options`.
        options: as for :func:`~hf_longattn.convert_checkpoint`.
        long_attention: or a whole configuration instead.
        max_length: tokens the result takes; None keeps the source's.
        decoder_long_attention, max_decoder_length: the same for the decoder beside an encoder; None keeps full attention, and the
            source's length except under heads that read the whole text in the decoder.
        positions: "auto", "tile", "interpolate", "random" (learned tables), "none" or "alibi" (any table) or "rope:<kind>" (rotary).
        dtype: cast floating tensors to it; None keeps each tensor's own.
        max_shard_size: bytes or "5GB"; None keeps the files of the source.
        revision, token: of a Hub repository.
        generic: plan for an architecture without a family, whose class and config stay as they are with mechanisms beside them.
        allow_pickle, merge_adapter: of the conversion; where a Hub repository holds only pickled weights, they are downloaded.
        verify, verify_text, init_from_text, remote_code, user_code, progress: taken so that the arguments of a conversion can be
            planned as they are.

    Raises:
        LongAttentionError: with one sentence, for anything that would make the conversion fail later.
    """
    options = all_options(options, more_options)
    if mechanism is not None or long_attention is not None:  # a mistyped name is refused before anything is fetched
        resolve_attention(mechanism, long_attention, options)
    cast = parse_dtype(dtype)
    how = {"allow_pickle": allow_pickle, "merge_adapter": merge_adapter}
    opened = source if isinstance(source, Source) else open_source(source, revision=revision, token=token, headers_only=True, **how)
    if destination is not None:
        check_destination(Path(destination), *opened.places, overwrite=overwrite)
    if generic:
        given = resolve_attention(mechanism, long_attention, options)
        unasked = mechanism is None and long_attention is None and not options
        whole = (decoder_long_attention, max_decoder_length, init_from_text) == (None, None, None) and opened.adapter is None
        return plan_generic(opened, given, unasked, positions, max_length, cast, max_shard_size, whole=whole)
    architecture = find_architecture(opened)
    base = architecture.source_config
    adopted = architecture.adopted_attention()
    attention = resolve_attention(mechanism, long_attention, options, adopted)
    unasked = mechanism is None and long_attention is None and not options and adopted is None
    attention = with_own_windows(architecture.family.config_class.default_attention() if unasked else attention, own_windows(base))
    decoder_attention = decoder_choice(architecture, decoder_long_attention)
    alone = "num_hidden_layers" if architecture.encoder_decoder or not architecture.family.two_stacks else "decoder_layers"
    attention.check_layers(getattr(base, alone))
    answers = architecture.source_class.endswith("ForQuestionAnswering") and adopted is None
    unseparated = needs_separator(attention) and getattr(base, "sep_token_id", None) is None
    tokenizer = load_tokenizer(opened.folder) if answers or unseparated else None
    separator = None if tokenizer is None else question_separator(tokenizer)
    if unseparated and separator is not None:
        attention = with_separator(attention, separator)

    moves = moved_tensors(opened, architecture)
    tables = {one.target: table for one in moves if one.target and (table := architecture.family.table(one.target)) is not None}
    length = text_length(opened, architecture, moves, tables, max_length)
    decoder = decoder_length(opened, architecture, moves, tables, max_decoder_length, length)
    planned = plan_positions(architecture, attention, positions, length, decoder)
    if planned.rule == ALIBI:
        attention = with_alibi(attention)
        decoder_attention = with_alibi(decoder_attention or LongAttentionConfig("full")) if decoder is not None else None
    moved = planned.moved
    stacks = [attention] if decoder_attention is None else [attention, decoder_attention]
    changing = [choice for stack in stacks for choice in relative_choices(stack) if not relative_kind(choice).neutral]
    if changing and not moved:
        moved = f"relative={changing[0]} changes every score"
    config = architecture.long_config(attention, planned.lengths, planned.rope, planned.rule, decoder_attention)
    if cast is not None:
        config.dtype = cast
    skeleton = architecture.skeleton(config)
    if answers and takes_globals(skeleton):  # the question sees the whole document, and the whole document the question
        config.question_separator_id = separator
    if opened.adapter is not None:
        check_adapter(opened.adapter, architecture, skeleton)

    tensors = plan_tensors(
        opened,
        moves,
        skeleton,
        {name: (table.offset, table.rows(config)) for name, table in tables.items()},
        length.old,
        cast,
        zeroed=planned.rule in DROPPED,
    )
    shape = model_shape(config, skeleton, [tensor.dtype for tensor in tensors])
    mechanisms = layer_mechanisms(attention, shape, length.new)
    costs = tuple(cost_at(one, shape, mechanisms) for one in lengths_up_to(length.old, length.new))
    return ConversionPlan(
        source=opened,
        architecture=architecture,
        config=config,
        old_length=length.old,
        new_length=length.new,
        positions=planned.rule,
        tensors=tuple(tensors),
        max_shard_size=max_shard_size,
        attention=attention,
        moved=moved,
        shape=shape,
        costs=costs,
        decoder=decoder,
    )
