"""Verify the written files of a result, cheap checks first. The comparison of all tensors is in this module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, singledispatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, LongAttentionError, in_a_line
from ..inputs.common.sized import SizedKind
from ..inputs.plain import PlainKind
from ..inputs.towers import TowersKind
from ..positions.tables import unchanged_rows
from ..reports import FAILED, MEASURED, NEEDS_TRAINING, PASSED, Check
from .model_loading import choose_memory_mode
from .plan import ConversionPlan
from .plan_tensors import ResultPlan, TensorPlan
from .report import POSITIONS, READY, UNKNOWN, VERDICT, verdict_check
from .sources import Source, open_source
from .tensor_files import BLOCK_BYTES, TensorHeader, read_blocks, read_tensor
from .verify_generic import check_generic
from .verify_outputs import check_texts
from .verify_sizes import check_sizes
from .verify_towers import check_together
from .writing import source_values

Step = Callable[[], list[Check]]


def verify(
    plan: ConversionPlan,
    result: Path,
    inputs: Any,
    *,
    given_text: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Check]:
    """Check the written folder `result` against the source of `plan`. Ends at the first step that fails.

    Source and result run one after the other, whole in memory or with weights read from their files (`choose_memory_mode`).
    given_text: `inputs` are the user's text, so more time is spent on the losses. progress: called as progress("verify", done, total).
    """

    def compare(opened: Source, scratch: Path | None) -> list[Step]:
        return _output_steps(plan, result, inputs, scratch, given_text)

    return labelled(plan, check_written(plan, result, inputs, compare, progress=progress))


def check_written(
    plan: ResultPlan,
    result: Path,
    inputs: Any,
    compare: Callable[[Source, Path | None], list[Step]],
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Check]:
    """Check the written folder ``result`` of any command. Its tensors, tokenizer or processor, and outputs, up to the first step that
    fails.

    Args:
        plan: what was written. inputs: for verification.
        compare: makes the steps that run source and result, from the opened result and a folder for computed tensors, if the weights stay
            in their files. They are left out if the models do not fit into memory.
        progress: called as progress("verify", done, total).

    Raises:
        CheckpointError: a model does not run.
    """
    running, opened = choose_memory_mode(plan.parameters, plan.largest_tensor), open_source(result)
    checks: list[Check] = []
    with running.scratch(result) as scratch:
        steps: list[Step] = [partial(check_tensors, plan, opened), partial(plan.kind.check_reader, plan, result, inputs)]
        steps += [lambda: [running.check()], *([] if running.why_not else compare(opened, scratch))]
        for done, step in enumerate(steps):
            if progress is not None:
                progress("verify", done, len(steps))
            try:
                checks += step()
            except LongAttentionError:
                raise
            except Exception as error:  # models raise any type of error
                why = f"{type(error).__name__}: {in_a_line(error)}"
                raise CheckpointError(
                    f"Verification failed, so nothing was kept: source or result does not run ({why}); --no-verify leaves the check out."
                ) from error
            if any(check.status == FAILED for check in checks):
                return checks
    if progress is not None:
        progress("verify", len(steps), len(steps))
    return checks


def labelled(plan: ConversionPlan, checks: Sequence[Check]) -> list[Check]:
    """The checks, and the plan's warnings as checks. Warnings get the status of the check that decides on training.

    If no check decides, or the one cannot tell, the status of differing outputs and of untrained positions is "needs training".
    """
    deciding = verdict_check(checks)
    label = NEEDS_TRAINING if deciding is None or deciding.values[VERDICT] == UNKNOWN else deciding.status
    sentences = [str(warning).rstrip(".") for warning in plan.warnings]
    if deciding is not None and label == MEASURED:
        sentences = [f"{warning.problem}, but the result is {READY} ({deciding.name})" for warning in plan.warnings]
    warned = [Check(POSITIONS, label, sentence) for sentence in sentences]
    return [*(replace(check, status=label) if check.status == NEEDS_TRAINING else check for check in checks), *warned]


def check_tensors(plan: ResultPlan, result: Source) -> list[Check]:
    """Compare the written folder, opened again as `result`, with the source, tensor by tensor."""
    wrong: list[str] = []
    infinite: dict[str, bool] = {}  # name -> whether the source's tensor is finite
    planned = {tensor.name: tensor for tensor in plan.tensors if tensor.new_shape is not None}
    accounted = {tensor.header.name for tensor in plan.tensors if tensor.header is not None}
    wrong += [f"{name} is missing" for name in planned if name not in result.tensors]
    wrong += [f"{name} was not planned" for name in result.tensors if name not in planned]
    wrong += [f"{name} of the source is not in the plan" for name in plan.source.tensors if name not in accounted]
    for name, tensor in planned.items():
        if name not in result.tensors:
            continue
        written = result.tensors[name]
        if (written.shape, written.dtype) != (tensor.new_shape, tensor.dtype):
            wrong.append(f"{name} is {written.dtype} {written.shape}")
            finite = _is_finite(written)
        elif tensor.action == "added":
            finite = _is_finite(written)
        else:
            differences, finite = _examined(tensor, written, plan)
            wrong += differences
        if not finite:
            infinite[name] = tensor.header is not None and _is_finite(tensor.header)
    counts = plan.counts()
    listed = ", ".join(f"{count} {action}" for action, count in counts.items() if count)
    detail = f"{len(plan.source.tensors)} tensors of the source accounted for: {listed}"
    if wrong:
        detail = f"{len(wrong)} tensors are wrong, the first: {wrong[0]}"
    elif infinite:
        names = sorted(infinite)
        some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        detail = (
            f"{len(names)} tensors of the source hold NaN or infinite numbers: {some}; so no output can be compared"
            " (--no-verify converts them unchanged)"
        )
        if all(infinite.values()):
            dtype = str(plan.config.dtype).removeprefix("torch.")
            detail = f"{len(names)} tensors are too large for {dtype} and became infinite: {some}"
    failed = wrong or infinite
    return [Check("tensors", FAILED if failed else PASSED, detail, {**counts, "wrong": wrong[:20], "not_finite": sorted(infinite)[:20]})]


def _is_finite(header: TensorHeader) -> bool:
    if not header.dtype.is_floating_point:
        return True
    return all(_all_finite(torch.frombuffer(block, dtype=header.dtype)) for block in read_blocks(header))


def _all_finite(values: Tensor) -> bool:
    if values.numel() == 0 or not values.is_floating_point():
        return True
    low, high = torch.aminmax(values.float() if values.dtype.itemsize == 1 else values)  # NaN passes through
    return bool(low.isfinite() & high.isfinite())


def _examined(tensor: TensorPlan, header: TensorHeader, plan: ResultPlan) -> tuple[list[str], bool]:
    """Errors of a written tensor, and whether it is finite, from one read."""
    source = tensor.streamed
    if source is None:
        written = read_tensor(header)
        return _compare(tensor, written, plan), _all_finite(written)
    # block by block, so that the largest tensor need not be in memory
    same = finite = True
    size = BLOCK_BYTES * tensor.dtype.itemsize // source.dtype.itemsize
    for a, b in zip(read_blocks(source, tensor.dtype), read_blocks(header, size=size), strict=True):
        words = torch.uint8 if len(a) % 8 else torch.int64  # the wider, the faster
        same = same and torch.equal(torch.frombuffer(a, dtype=words), torch.frombuffer(b, dtype=words))
        finite = finite and _all_finite(torch.frombuffer(b, dtype=header.dtype))
    return [] if same else [f"{tensor.name} differs from the source's values ({tensor.action})"], finite


def _compare(tensor: TensorPlan, written: Tensor, plan: ResultPlan) -> list[str]:
    if not _same_bytes(written, source_values(tensor, plan)):
        return [f"{tensor.name} differs from the source's values ({tensor.action})"]
    if tensor.action == "averaged" and not bool((written[tensor.offset :] == written[-1]).all()):
        return [f"{tensor.name} must have equal rows"]
    if tensor.action != "extended" or tensor.header is None:
        return []
    # The old rows are compared directly, without the rule that computed the new rows.
    old = read_tensor(tensor.header)
    old = (old if tensor.change is None else tensor.change(old)).to(tensor.dtype)
    rows = tensor.offset + unchanged_rows(plan.position_rule(tensor.name), len(old) - tensor.offset)
    return [] if _same_bytes(written[:rows], old[:rows]) else [f"{tensor.name} lost its first {rows} rows"]


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


_checks_of = singledispatch(check_texts)
"""Runs source and result by their kind of input, and compares them: ``(kind, plan, result, inputs, scratch, given_text)``."""
_checks_of.register(SizedKind, check_sizes)
_checks_of.register(PlainKind, check_generic)
_checks_of.register(TowersKind, check_together)


def _output_steps(plan: ConversionPlan, result: Path, inputs: Any, scratch: Path | None, given_text: bool) -> list[Step]:
    """The steps that run source and result."""

    def named(name: str, step: Step) -> list[Check]:
        return [replace(check, name=f"{name}: {check.name}") for check in step()]

    of_towers = [
        partial(named, name, step)
        for name, part in ({} if plan.generic else plan.towers).items()  # check_generic compares its towers itself
        for step in _output_steps(part, result, inputs[name], scratch, given_text)
    ]
    return [*of_towers, partial(_checks_of, plan.kind, plan, result, inputs, scratch, given_text)]
