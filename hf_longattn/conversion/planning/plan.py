"""The plan of a conversion: what becomes of every tensor, and what the result costs. Reads headers only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...configuration import LongAttentionConfig
from ...errors import OptionError
from ...families.own_windows import own_windows, with_own_windows
from ...positions import DROPPED, keeps_old_rows
from ...positions.relative import relative_kind
from ..architectures.families import find_architecture
from ..architectures.generic import generic_architecture
from ..costs.counts import LengthCost, cost_at, layer_mechanisms, lengths_up_to
from ..costs.shape import ModelShape, generic_shape, model_shape
from ..files.staging import check_destination
from ..quiet import quiet_libraries
from ..sources.base import Source
from ..sources.opening import open_source
from .adapter import check_adapter
from .generic import attention_of, generic_config
from .lengths import StackLength, config_lengths, decoder_length, text_length
from .rotary import plan_rotary
from .settings import ALIBI, decoder_choice, fixed_rotary, parse_dtype, relative_choices, resolve_attention, table_strategy, with_alibi
from .tensors import ResultPlan, TensorPlan, moved_tensors, plan_tensors

__all__ = ["ConversionPlan", "TensorPlan", "plan_conversion"]


@dataclass(frozen=True)
class ConversionPlan(ResultPlan):
    """Everything that is decided before a byte is written."""

    attention: LongAttentionConfig
    moved: str  # why positions below the old length do not give what they gave; empty when they do
    shape: ModelShape
    costs: tuple[LengthCost, ...]
    decoder: StackLength | None = None  # of the decoder beside an encoder, whose lengths are those above
    generic: bool = False  # the plain class keeps its name, with mechanisms in it

    @property
    def positions_exact(self) -> bool:
        """Whether positions below the old length give what they gave."""
        return not self.moved

    @property
    def decoder_shape(self) -> ModelShape:
        """The shape of the decoder beside an encoder."""
        return ModelShape.of(self.config, causal=True, matrix_parameters=0, element_bytes=self.shape.element_bytes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "source": self.source.name,
            "source_class": self.architecture.source_class,
            "adopted_from": None if self.architecture.adopter is None else self.source.config["model_type"],
            "long_class": self.architecture.long_class,
            "model_type": self.config.model_type,
            **({"generic": True} if self.generic else {}),
            "long_attention": self.attention.to_dict(),
            "old_length": self.old_length,
            "new_length": self.new_length,
            **({"decoder": self._decoder()} if self.decoder is not None else {}),
            "positions": self.positions,
            **self.sizes(),
            "costs": [asdict(cost) for cost in self.costs],
        }

    def _decoder(self) -> dict[str, Any]:
        assert self.decoder is not None
        attention = self.config.decoder_attention.to_dict()
        return {"long_attention": attention, "old_length": self.decoder.old, "new_length": self.decoder.new}


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
    **options: Any,
) -> ConversionPlan:
    """Say what a conversion would do, from the source's config and the headers of its tensors.

    Args:
        source: a folder or a Hub repository id.
        destination, overwrite: when given, checked as a conversion would.
        mechanism, options: a mechanism and its options, `layers` among them.
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
        return _plan_generic(opened, given, unasked, positions, max_length, cast, max_shard_size, whole=whole)
    architecture = find_architecture(opened)
    base = architecture.source_config
    adopted = architecture.adopted_attention()
    attention = resolve_attention(mechanism, long_attention, options, adopted)
    unasked = mechanism is None and long_attention is None and not options and adopted is None
    attention = with_own_windows(architecture.family.config_class.default_attention() if unasked else attention, own_windows(base))
    decoder_attention = decoder_choice(architecture, decoder_long_attention)
    alone = "num_hidden_layers" if architecture.encoder_decoder or not architecture.family.two_stacks else "decoder_layers"
    attention.check_layers(getattr(base, alone))

    moves = moved_tensors(opened, architecture)
    tables = {one.target: table for one in moves if one.target and (table := architecture.family.table(one.target)) is not None}
    length = text_length(opened, architecture, moves, tables, max_length)
    decoder = decoder_length(opened, architecture, moves, tables, max_decoder_length, length)
    old_length, new_length = length.old, length.new
    grows = new_length > old_length or (decoder is not None and decoder.new > decoder.old)
    if architecture.family.rope:
        rope = plan_rotary(base, attention, positions, length)
        rule, exact, parameters = f"rope:{rope.kind}", rope.exact, rope.parameters
        lengths = {"max_position_embeddings": rope.max_position_embeddings}
    elif architecture.family.rotary(base):
        rule, exact, parameters = fixed_rotary(positions, architecture.source_class), True, None
        lengths = config_lengths(architecture.family, length, decoder)
    else:
        rule = table_strategy(positions, learned=all(table.learned for table in architecture.family.position_tables))
        exact, parameters = rule not in DROPPED and (keeps_old_rows(rule) or not grows), None
        if rule == ALIBI:
            attention = with_alibi(attention)
            decoder_attention = with_alibi(decoder_attention or LongAttentionConfig("full")) if decoder is not None else None
        lengths = config_lengths(architecture.family, length, decoder)
    moved = "" if exact else f"{rule} changes the old positions too"
    stacks = [attention] if decoder_attention is None else [attention, decoder_attention]
    changing = [choice for stack in stacks for choice in relative_choices(stack) if not relative_kind(choice).neutral]
    if changing and not moved:
        moved = f"relative={changing[0]} changes every score"
    config = architecture.long_config(attention, lengths, parameters, rule, decoder_attention)
    if cast is not None:
        config.dtype = cast
    skeleton = architecture.skeleton(config)
    if opened.adapter is not None:
        check_adapter(opened.adapter, architecture, skeleton)

    tensors = plan_tensors(
        opened,
        moves,
        skeleton,
        {name: (table.offset, table.rows(config)) for name, table in tables.items()},
        old_length,
        cast,
        zeroed=rule in DROPPED,
    )
    shape = model_shape(config, skeleton, [tensor.dtype for tensor in tensors])
    mechanisms = layer_mechanisms(attention, shape, new_length)
    costs = tuple(cost_at(length, shape, mechanisms) for length in lengths_up_to(old_length, new_length))
    return ConversionPlan(
        source=opened,
        architecture=architecture,
        config=config,
        old_length=old_length,
        new_length=new_length,
        positions=rule,
        tensors=tuple(tensors),
        max_shard_size=max_shard_size,
        attention=attention,
        moved=moved,
        shape=shape,
        costs=costs,
        decoder=decoder,
    )


def _plan_generic(
    source: Source,
    given: LongAttentionConfig,
    unasked: bool,
    positions: str,
    max_length: int | None,
    cast: torch.dtype | None,
    max_shard_size: str | int | None,
    *,
    whole: bool,
) -> ConversionPlan:
    """For an architecture without a family; ``whole`` is that nothing was asked for which needs to know more of it."""
    if not whole:
        raise OptionError(
            "--generic puts one attention into a plain class and knows nothing else of it; leave the options of decoders, "
            "--init-from-text and adapters out."
        )
    architecture = generic_architecture(source)
    attention = attention_of(architecture, given, unasked)
    config, length, rule, moved = generic_config(architecture, attention, positions, max_length)
    if cast is not None:
        config.dtype = cast
    skeleton = architecture.skeleton(config)
    tensors = plan_tensors(source, moved_tensors(source, architecture), skeleton, {}, length.old, cast)
    return ConversionPlan(
        source=source,
        architecture=architecture,
        config=config,
        old_length=length.old,
        new_length=length.new,
        positions=rule,
        tensors=tuple(tensors),
        max_shard_size=max_shard_size,
        attention=attention,
        moved=moved,
        shape=generic_shape(skeleton),
        costs=(),
        generic=True,
    )
