"""`longattn convert SRC DST`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as flags

__all__ = ["convert"]


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A checkpoint folder, a .gguf file, a PEFT adapter, or a Hub repository id.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make.")],
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
    verify_text: Annotated[Path | None, typer.Option(help="A UTF-8 text to verify with.", show_default="built-in English")] = None,
    init_from_text: Annotated[
        Path | None,
        typer.Option(help="A UTF-8 text on which the source runs, so that a learned projection begins from its keys and values."),
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not check the written files.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST once the new one is complete.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    remote_code: flags.RemoteCode = False,
    bundle_user_code: flags.UserCode = False,
    push_to_hub: Annotated[str | None, typer.Option(metavar="REPO", help="Then send DST to the Hub, as `longattn push` does.")] = None,
    private: flags.Private = False,
    as_json: flags.Json = False,
    revision: flags.Revision = None,
    token: flags.Token = None,
) -> None:
    """Convert a short checkpoint into a long one, and check the result.

    DST appears complete and verified, or not at all.
    """
    if verify_text is not None and no_verify:
        raise typer.BadParameter("contradicts --no-verify.", param_hint="--verify-text")
    if private and push_to_hub is None:
        raise typer.BadParameter("says how --push-to-hub makes the repository; add that.", param_hint="--private")
    flags.check_user_code(remote_code, bundle_user_code)
    attention = flags.attention_arguments(mechanism, option, layers)

    from ..conversion import convert_checkpoint, plan_conversion
    from ..hub import check_login
    from .hub import push_converted
    from .show import conversion_progress, print_json, print_plan, show_report

    shared = {
        "generic": generic,
        "max_length": max_length,
        "max_decoder_length": max_decoder_length,
        "decoder_long_attention": flags.parse_mechanism(decoder_mechanism),
        "positions": positions,
        "dtype": dtype,
        "max_shard_size": max_shard_size,
        "allow_pickle": allow_pickle,
        "merge_adapter": merge_adapter,
        "revision": revision,
        "token": token,
        **attention,
    }
    if dry_run:
        planned = plan_conversion(source, destination, overwrite=overwrite, **shared)
        print_plan(planned, as_json=as_json)
        return
    if push_to_hub is not None:
        check_login(push_to_hub, token)
    with conversion_progress() as progress:
        report = convert_checkpoint(
            source,
            destination,
            verify=not no_verify,
            overwrite=overwrite,
            verify_text=verify_text,
            init_from_text=init_from_text,
            remote_code=remote_code,
            user_code=bundle_user_code,
            progress=progress,
            **shared,
        )
    result = {"destination": str(report.destination), **report.to_dict()}
    if not as_json:
        show_report(report)
    if push_to_hub is not None:
        result["push"] = push_converted(destination, push_to_hub, private=private, token=token, quiet=as_json)
    if as_json:
        print_json(result)
