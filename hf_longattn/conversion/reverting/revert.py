"""From a long checkpoint back to a plain one of its base: plan → write → verify, in a folder that appears whole or not at all."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import torch

from ...hub import write_model_card
from ..files.staging import check_destination, destination_path, staged_folder
from ..files.writing import write_json, write_weights
from ..planning.lengths import StackLength
from ..quiet import quiet_libraries
from ..report import Check, ConversionReport, StageProgress, require_passed, seconds, versions
from ..sources.opening import open_source
from ..text import VerificationText, beginning, load_tokenizer, verification_text
from ..transforming.sentence import write_sentence_modules
from ..transforming.sidecars import write_sidecars
from ..transforming.values import files_of
from .plan import AUTO, RevertPlan, plan_reversion
from .verification import verify_reversion

__all__ = ["REVERT_REPORT", "revert_checkpoint"]

REVERT_REPORT = "revert_report.json"


def revert_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    max_length: int | None = None,
    positions: str = AUTO,
    dtype: str | torch.dtype | None = None,
    max_shard_size: str | int | None = None,
    verify: bool = True,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    verify_text: str | Path | None = None,
    progress: StageProgress | None = None,
) -> ConversionReport:
    """Turn a long checkpoint, converted or trained further, into a plain one that loads without this package.

    The result attends to everything. Parameters of the mechanisms are left out, and positions become those before the conversion; a
    ``UserWarning`` says what is lost by either. A conversion and its reversal give the tensors of the source; a table that was interpolated
    is solved back, up to the rounding of its dtype, and one that was dropped (``positions="none"``, ``"alibi"``) cannot come back.

    Args:
        source: a folder, or a Hub repository id.
        destination: a folder that does not exist yet; it appears complete or not at all.
        max_length: tokens the result takes, at most the long model's; None takes the length that it was converted from. Rotary
            positions become what they were; above that length they stay as they were stretched.
        positions: of a table: "auto" gives the rows before the conversion, "truncate" keeps the first rows, "interpolate" squeezes all of
            them into the new length.
        dtype, max_shard_size, verify, overwrite, revision, token, verify_text, progress: as for `convert_checkpoint`.

    Returns:
        The report, which is also in the destination's revert_report.json.

    Raises:
        LongAttentionError: with one sentence; nothing was written then.
    """
    report = _reverted(
        source, destination, max_length, positions, dtype, max_shard_size, verify, overwrite, revision, token, verify_text, progress
    )
    for sentence in report.plan["warnings"]:
        warnings.warn(sentence, stacklevel=2)
    return report


@quiet_libraries()
def _reverted(
    source: str | Path,
    destination: str | Path,
    max_length: int | None,
    positions: str,
    dtype: str | torch.dtype | None,
    max_shard_size: str | int | None,
    verify: bool,
    overwrite: bool,
    revision: str | None,
    token: str | bool | None,
    verify_text: str | Path | None,
    progress: StageProgress | None,
) -> ConversionReport:
    target = destination_path(destination)
    clock = {"start": time.perf_counter()}
    text, origin = verification_text(verify_text)
    opened = open_source(source, revision=revision, token=token)
    for place in opened.places:
        check_destination(target, place, overwrite=overwrite)
    plan = plan_reversion(opened, max_length=max_length, positions=positions, dtype=dtype, max_shard_size=max_shard_size)
    text = beginning(text, plan.new_length)
    tokens = VerificationText(text, origin, load_tokenizer(plan.source.folder), plan.config.vocab_size) if verify else None
    with staged_folder(target, needed_bytes=plan.total_bytes + 2**20, overwrite=overwrite) as stage:
        files = _write(plan, stage, progress)
        clock["written"] = time.perf_counter()
        checks: list[Check] = verify_reversion(plan, stage, tokens) if tokens else []
        require_passed(checks)
        clock["verified"] = time.perf_counter()
        report = ConversionReport(
            destination=target,
            plan=plan.to_dict(),
            checks=tuple(checks),
            text=tokens.describe() if tokens is not None else "not verified",
            files=(*files, REVERT_REPORT, "README.md"),
            bytes_written=plan.total_bytes,
            seconds=seconds(clock),
            versions=versions(),
            train_command=None,
        )
        write_json(stage / REVERT_REPORT, report.to_dict())
        _write_card(plan, stage, str(source), str(destination), report)
    return report


def _write_card(plan: RevertPlan, stage: Path, source: str, destination: str, report: ConversionReport) -> None:
    """The card, with the licence, language, datasets and tags of the long model's but for those that say it is long."""
    on_the_hub = not Path(source).expanduser().exists()
    called = source if on_the_hub else plan.source.folder.name
    grown = f"for inputs of up to {plan.new_length:,} tokens" if plan.new_length else "for inputs of any length"
    write_model_card(
        stage,
        base_model=source if on_the_hub else None,
        source=plan.source.sentence or plan.source.folder,
        report=report.to_dict(),
        name=destination,
        introduction=f"A plain `{plan.architecture.source_class}` {grown}, made from the long model `{called}` by `longattn revert`.",
    )


def _write(plan: RevertPlan, stage: Path, progress: StageProgress | None) -> list[str]:
    advance = None if progress is None else (lambda done, total: progress("write", done, total))
    files = write_weights(stage, files_of(plan, {}), advance)
    lengths = StackLength(plan.old_length, plan.new_length)
    base_type = plan.architecture.family.base_model_type
    files += write_sidecars(
        plan.source.folder, stage, plan.config, base_type=base_type, old_length=lengths.old, new_length=lengths.new, generated=lengths
    )
    if plan.source.sentence is not None:
        files += write_sentence_modules(plan.source.sentence, stage, plan.new_length)
    return list(dict.fromkeys(files))
