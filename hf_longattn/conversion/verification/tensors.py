"""Every tensor of the source is accounted for in the written files, and every written one is what it should be."""

from __future__ import annotations

import torch
from torch import Tensor

from ...positions import keeps_old_rows
from ..files.tensors import BLOCK, TensorHeader, read_blocks, read_headers, read_tensor
from ..planning.result import ResultPlan, TensorPlan
from ..report import FAILED, PASSED, Check
from ..sources.base import Source
from ..sources.peft import ADAPTER_WEIGHTS
from ..transforming.values import source_values

__all__ = ["check_tensors"]


def check_tensors(plan: ResultPlan, result: Source) -> list[Check]:
    """Compare the written files with the source, tensor by tensor.

    Args:
        plan: what was to be done.
        result: the written folder, opened anew.
    """
    wrong: list[str] = []
    infinite: dict[str, bool] = {}
    planned = {tensor.name: tensor for tensor in plan.tensors if tensor.new_shape is not None}
    accounted = {tensor.header.name for tensor in plan.tensors if tensor.header is not None}
    wrong += [f"{name} is missing" for name in planned if name not in result.tensors]
    wrong += [f"{name} was not planned" for name in result.tensors if name not in planned]
    wrong += [f"{name} of the source is in no plan" for name in plan.source.tensors if name not in accounted]
    for name, tensor in planned.items():
        if name not in result.tensors:
            continue
        written = result.tensors[name]
        if (written.shape, written.torch_dtype) != (tensor.new_shape, tensor.dtype):
            wrong.append(f"{name} is {written.torch_dtype} {written.shape}")
            finite = _is_finite(written)
        elif tensor.action == "added":
            finite = _is_finite(written)
        else:
            differences, finite = _examined(tensor, written, plan)
            wrong += differences
        if not finite:
            infinite[name] = tensor.header is not None and _is_finite(tensor.header)
    if plan.source.adapter is not None:
        adapter = read_headers(plan.source.adapter / ADAPTER_WEIGHTS)
        infinite |= {f"{name} (of the adapter)": False for name, header in adapter.items() if not _is_finite(header)}
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
        f"{len(names)} tensors of the source hold NaN or infinite numbers: {listed}; with them no output can be compared"
        " (--no-verify converts them as they are)"
    )


def _is_finite(header: TensorHeader) -> bool:
    if not header.torch_dtype.is_floating_point:
        return True
    if header.start is None:
        return _all_finite(read_tensor(header))
    return all(_all_finite(torch.frombuffer(block, dtype=header.torch_dtype)) for block in read_blocks(header))


def _all_finite(values: Tensor) -> bool:
    if values.numel() == 0 or not values.is_floating_point():
        return True
    low, high = torch.aminmax(values.float() if values.dtype.itemsize == 1 else values)  # NaN passes through
    return bool(low.isfinite() & high.isfinite())


def _examined(tensor: TensorPlan, header: TensorHeader, plan: ResultPlan) -> tuple[list[str], bool]:
    """What is wrong with a written tensor, and whether it is finite, from one reading of it."""
    if tensor.streamed is None:
        written = read_tensor(header)
        return _compare(tensor, written, plan), _all_finite(written)
    # block by block, so that the largest tensor takes no memory
    size = BLOCK * tensor.dtype.itemsize // tensor.streamed.torch_dtype.itemsize
    same = finite = True
    for a, b in zip(read_blocks(tensor.streamed, tensor.dtype), read_blocks(header, size=size), strict=True):
        same = same and _same_block(a, b)
        finite = finite and _all_finite(torch.frombuffer(b, dtype=header.torch_dtype))
    return [] if same else [f"{tensor.name} differs from the source's values ({tensor.action})"], finite


def _compare(tensor: TensorPlan, written: Tensor, plan: ResultPlan) -> list[str]:
    if not _same_bytes(written, source_values(tensor, plan)):
        return [f"{tensor.name} differs from the source's values ({tensor.action})"]
    if tensor.action == "zeroed" and bool(written.any()):
        return [f"{tensor.name} is to be zeros"]
    if tensor.action != "extended" or tensor.header is None:
        return []
    # The rule above made the new rows; that the old ones survived it is checked without that rule.
    old = read_tensor(tensor.header)
    old = (old if tensor.change is None else tensor.change(old)).to(tensor.dtype)
    kept = old.shape[0] if keeps_old_rows(plan.positions) else tensor.offset + 1
    return [] if _same_bytes(written[:kept], old[:kept]) else [f"{tensor.name} lost its first {kept} rows"]


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


def _same_block(a: memoryview, b: memoryview) -> bool:
    dtype = torch.uint8 if len(a) % 8 else torch.int64  # the wider, the faster
    return torch.equal(torch.frombuffer(a, dtype=dtype), torch.frombuffer(b, dtype=dtype))
