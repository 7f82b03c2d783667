"""Checks of a written folder, for callers that have not loaded its models. The comparison of tensors by headers is for stock models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..positions.tables import unchanged_rows
from ..reports import FAILED, PASSED, Check
from .check import check_result, run_steps
from .model_loading import choose_memory_mode, load_result, load_source
from .plan import ConversionPlan
from .plan_tensors import ResultPlan, TensorPlan
from .sources import Source, open_source
from .tensor_files import BLOCK_BYTES, TensorHeader, read_blocks, read_tensor
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
    """Check the written folder `result` against the source of `plan`: load both, and call :func:`.check.check_result`."""
    source, missing = load_source(plan.source, plan.architecture, None)
    model, lacking = load_result(result, plan.architecture, plan.config)
    return check_result(plan, source, model, (missing, lacking), result, inputs, given_text=given_text, progress=progress)


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
    with running.scratch(result) as scratch:
        steps: list[Step] = [partial(check_tensors, plan, opened), partial(plan.kind.check_reader, plan, result, inputs)]
        steps += [lambda: [running.check()], *([] if running.why_not else compare(opened, scratch))]
        return run_steps(steps, progress)


LOGITS_FROM_FILES = 6.4e7


def length_from_files(plan: ResultPlan) -> int:
    """Number of tokens whose logits take little memory compared with the largest tensor."""
    limit = max(LOGITS_FROM_FILES, plan.largest_tensor)  # a quarter of its bytes in fp32
    return max(64, int(limit / (4 * plan.config.vocab_size)))


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
