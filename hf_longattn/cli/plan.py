"""`longattn plan SRC`."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as flags

__all__ = ["plan"]


def plan(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A checkpoint folder, a .gguf file, a PEFT adapter, or a Hub repository id.")
    ],
    config: flags.Recipe = None,
    mechanism: flags.Mechanism = None,
    max_length: flags.MaxLength = None,
    option: flags.OptionFlag = None,
    layers: flags.Layers = None,
    decoder_mechanism: flags.DecoderMechanism = None,
    max_decoder_length: flags.MaxDecoderLength = None,
    positions: flags.Positions = "auto",
    dtype: flags.Dtype = None,
    max_shard_size: flags.ShardSize = None,
    allow_pickle: flags.AllowPickle = False,
    merge_adapter: flags.MergeAdapter = False,
    generic: flags.Generic = False,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Say what a conversion would do: tensors, sizes, memory and cost at each length. Reads headers only."""
    attention = flags.attention_arguments(mechanism, option, layers)

    from ..conversion import plan_conversion
    from .show import print_plan

    planned = plan_conversion(
        source,
        max_length=max_length,
        decoder_long_attention=flags.parse_mechanism(decoder_mechanism),
        max_decoder_length=max_decoder_length,
        positions=positions,
        dtype=dtype,
        max_shard_size=max_shard_size,
        allow_pickle=allow_pickle,
        merge_adapter=merge_adapter,
        generic=generic,
        revision=revision,
        token=token,
        **attention,
    )
    print_plan(planned, as_json=as_json)
