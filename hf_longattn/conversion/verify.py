"""Verify the written files of a result: all checks, in order of their cost, and the comparison of every tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, LongAttentionError, in_a_line
from ..positions import keeps_old_rows
from .disk_offload import Running, choose_running
from .plan import ConversionPlan
from .plan_tensors import ResultPlan, TensorPlan
from .report import FAILED, PASSED, SKIPPED, Check
from .sources import Source, open_source
from .tensor_files import BLOCK, TensorHeader, read_blocks, read_tensor
from .text import VerificationText, load_tokenizer
from .verify_long_models import why_no_gradients
from .verify_loss import check_loss
from .verify_outputs import check_generic, check_outputs, choose_lengths
from .writing import source_values


def verify(
    plan: ConversionPlan,
    result: Path,
    text: VerificationText,
    *,
    given_text: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Check]:
    """Check the written folder `result` against the source of `plan`.

    Source and result run one after the other, whole in memory or with their weights in their files, see `choose_running`.

    Args:
        plan: of the conversion.
        result: the written folder.
        text: what to run the models on.
        given_text: the user gave the text, so that more time is spent on the losses.
        progress: called as progress("verify", done, total).
    """
    running = _running(plan)
    with running.scratch(result) as scratch:
        steps: list[Callable[[], list[Check]]] = [
            lambda: check_tensors(plan, open_source(result)),
            lambda: check_tokenizer(plan, result, text),
            lambda: [running.check()],
        ]
        if not running.why_not and plan.generic:
            steps.append(lambda: check_generic(plan, result, scratch))
        elif not running.why_not:
            lengths = choose_lengths(plan, from_files=running.from_files)
            steps.append(lambda: check_outputs(plan, result, text, lengths, scratch))
            steps.append(lambda: check_loss(plan, result, text, lengths, scratch, given_text=given_text))
        return run_steps(steps, progress)


def _running(plan: ConversionPlan) -> Running:
    """How the models are run; gradients need them whole in memory."""
    gradients = plan.architecture.converter is not None and why_no_gradients(plan) is None
    return choose_running(plan.parameters, plan.largest_tensor, whole=gradients)


def run_steps(steps: Sequence[Callable[[], list[Check]]], progress: Callable[[str, int, int], None] | None = None) -> list[Check]:
    """The checks of all steps, up to the first that fails.

    Raises:
        CheckpointError: a model does not run.
    """
    checks: list[Check] = []
    for done, step in enumerate(steps):
        if progress is not None:
            progress("verify", done, len(steps))
        try:
            checks += step()
        except LongAttentionError:
            raise
        except Exception as error:  # models raise any type of error
            why = f"{type(error).__name__}: {in_a_line(error)}"
            raise CheckpointError(f"Verification failed, so nothing was kept: source or result does not run ({why}).") from error
        if any(check.status == FAILED for check in checks):
            return checks
    if progress is not None:
        progress("verify", len(steps), len(steps))
    return checks


def check_tokenizer(plan: ResultPlan, result: Path, text: VerificationText) -> list[Check]:
    """The written tokenizer gives the same ids as the source's, and its limit is the result's length."""
    if text.source_tokenizer is None:
        return [Check("tokenizer", SKIPPED, "the source has no tokenizer")]
    try:
        written = load_tokenizer(result)
    except CheckpointError as error:
        return [Check("tokenizer", FAILED, str(error).rstrip("."))]
    same = written is not None and written(text.text[:20_000])["input_ids"] == text.source_tokenizer(text.text[:20_000])["input_ids"]
    limit = getattr(written, "model_max_length", None)
    good = same and (limit == plan.new_length or not plan.new_length)
    detail = f"token ids {'equal to' if same else 'differ from'} the source's, model_max_length {limit}"
    return [Check("tokenizer", PASSED if good else FAILED, detail)]


def check_tensors(plan: ResultPlan, result: Source) -> list[Check]:
    """Compare the written files with the source, tensor by tensor.

    Args:
        plan: of the conversion or reversal.
        result: the written folder, opened again.
    """
    wrong: list[str] = []
    infinite: dict[str, bool] = {}
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
    infinite |= {name: False for name, header in plan.source.tensors_beside().items() if not _is_finite(header)}
    counts = plan.counts()
    listed = ", ".join(f"{count} {action}" for action, count in counts.items() if count)
    detail = f"{len(plan.source.tensors)} tensors of the source accounted for: {listed}"
    if wrong:
        detail = f"{len(wrong)} tensors are wrong, the first: {wrong[0]}"
    elif infinite:
        detail = _say_infinite(infinite, plan)
    failed = wrong or infinite
    return [Check("tensors", FAILED if failed else PASSED, detail, {**counts, "wrong": wrong[:20], "not_finite": sorted(infinite)[:20]})]


def _say_infinite(found: dict[str, bool], plan: ResultPlan) -> str:
    """`found`: names of tensors with NaN or infinity -> whether the source's are finite."""
    names = sorted(found)
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    if all(found.values()):
        return f"{len(names)} tensors are too large for {str(plan.config.dtype).removeprefix('torch.')} and became infinite: {listed}"
    return (
        f"{len(names)} tensors of the source hold NaN or infinite numbers: {listed}; so no output can be compared"
        " (--no-verify converts them unchanged)"
    )


def _is_finite(header: TensorHeader) -> bool:
    if not header.dtype.is_floating_point:
        return True
    if header.start is None:
        return _all_finite(read_tensor(header))
    return all(_all_finite(torch.frombuffer(block, dtype=header.dtype)) for block in read_blocks(header))


def _all_finite(values: Tensor) -> bool:
    if values.numel() == 0 or not values.is_floating_point():
        return True
    low, high = torch.aminmax(values.float() if values.dtype.itemsize == 1 else values)  # NaN passes through
    return bool(low.isfinite() & high.isfinite())


def _examined(tensor: TensorPlan, header: TensorHeader, plan: ResultPlan) -> tuple[list[str], bool]:
    """Errors of a written tensor, and whether it is finite, from one read."""
    if tensor.streamed is None:
        written = read_tensor(header)
        return _compare(tensor, written, plan), _all_finite(written)
    # block by block, so that the largest tensor need not be in memory
    size = BLOCK * tensor.dtype.itemsize // tensor.streamed.dtype.itemsize
    same = finite = True
    for a, b in zip(read_blocks(tensor.streamed, tensor.dtype), read_blocks(header, size=size), strict=True):
        same = same and _same_block(a, b)
        finite = finite and _all_finite(torch.frombuffer(b, dtype=header.dtype))
    return [] if same else [f"{tensor.name} differs from the source's values ({tensor.action})"], finite


def _compare(tensor: TensorPlan, written: Tensor, plan: ResultPlan) -> list[str]:
    if not _same_bytes(written, source_values(tensor, plan)):
        return [f"{tensor.name} differs from the source's values ({tensor.action})"]
    if tensor.action == "zeroed" and bool(written.any()):
        return [f"{tensor.name} must be zero"]
    if tensor.action != "extended" or tensor.header is None:
        return []
    # The old rows are checked without the rule that made the new ones.
    old = read_tensor(tensor.header)
    old = (old if tensor.change is None else tensor.change(old)).to(tensor.dtype)
    kept = old.shape[0] if keeps_old_rows(plan.positions) else tensor.offset + 1
    return [] if _same_bytes(written[:kept], old[:kept]) else [f"{tensor.name} lost its first {kept} rows"]


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


def _same_block(a: memoryview, b: memoryview) -> bool:
    dtype = torch.uint8 if len(a) % 8 else torch.int64  # the wider, the faster
    return torch.equal(torch.frombuffer(a, dtype=dtype), torch.frombuffer(b, dtype=dtype))
