"""The paths of every kind of call, in order of priority. A call runs the first path that has no reason against it.

Most reasons are ``why_not`` functions beside the engines' code. Only reasons that compare several engines are in this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import grid_windows
from .call import DENSE_CELLS, ELSEWHERE, AttentionCall, DispatchContext
from .cpu import band, block_selected, distance_band, tiles
from .cpu.kernels import drops_in_tiles
from .cuda import fla, flash_band, flex, flex_blocks, flex_kernel
from .cuda.flex_kernel import NoKernel
from .path_reports import OBSERVERS, Kind, PathName, Result, report
from .sequences import why_not_masked, why_not_packed, why_not_split, why_not_stacked

DENSE_KEYS = 768
"""Maximum keys for a dense masked call of more than :data:`DENSE_CELLS` pairs. The keys must also fit into the band's width.
Not used if the CPU's band plan decides. Measured on CPUs, untuned elsewhere."""
Reason = Callable[[DispatchContext], str | None]
"""``reason(context)``: a clause that says why the path cannot or should not run; ``None`` if it may run."""
MANY_PAIRS = f"there are more than {DENSE_CELLS:,} query-key pairs"
NEEDS_NO_MASK = "the flash-attention operator needs no N×N mask"
ONE_CALL = "one call of flex_attention has fewer launches than the parts of global tokens"
DRAWN_IN_TILES = "dropout is drawn in tiles of few queries"


def _always_runs(context: DispatchContext) -> None:
    """The check for the last path of each kind. That path supports every call, so the result is always ``None``."""


def _not_covered(context: DispatchContext) -> str | None:
    return None if context.covered else "keys are left out"


def _many_pairs(context: DispatchContext) -> str | None:
    if context.few_pairs or (context.global_tokens and torch.compiler.is_compiling()):
        return None
    return MANY_PAIRS


def _band_leaves_keys_out(context: DispatchContext) -> str | None:
    if context.exporting:
        return "an exported graph cannot check whether the band covers every length"
    if not context.pattern.covers(context.q_len, context.kv_len):
        return "the band leaves keys out"
    if context.call.batch is not None and not context.few_pairs and _flash_runs(context):
        return NEEDS_NO_MASK
    if context.call.dropout and drops_in_tiles(context):
        return DRAWN_IN_TILES
    return "the band kernel adds the score term without an N×N matrix" if _kernel_adds_term(context) else None


def _band_is_short(context: DispatchContext) -> str | None:
    pattern, kv_len = context.pattern, context.kv_len
    if context.exporting:  # one graph for all lengths
        narrow = min(pattern.left, pattern.left if pattern.causal else pattern.right) + 1
        return "the band is narrower than some inputs" if pattern.bounded and not _known(kv_len <= narrow) else None
    if context.few_pairs:
        return None
    compiling = torch.compiler.is_compiling()
    if context.device != "cpu" and not compiling and kv_len > min(DENSE_KEYS, pattern.width):
        return MANY_PAIRS
    if context.call.global_mask is None and _flash_runs(context):
        return NEEDS_NO_MASK
    if context.call.dropout and drops_in_tiles(context):
        return DRAWN_IN_TILES
    if compiling and _globals_need_mask(context):
        return None
    if compiling or band.why_not(context) is not None:
        return None if kv_len <= DENSE_KEYS and kv_len <= pattern.width and not _kernel_adds_term(context) else MANY_PAIRS
    if _kernel_adds_term(context) or context.call.batch is not None:
        return "the band kernel handles bias and padding without an N×N matrix"
    return None if band.plan_of(context).dense else "smaller blocks of queries, which mask fewer keys, cost less"


def _globals_need_mask(context: DispatchContext) -> bool:
    """Whether a graph has an unknown number of global tokens and no kernel for them: ``blockwise`` has a column for each token."""
    if context.call.global_mask is None or context.call.global_positions is not None or context.exporting:
        return False
    kernels = PATHS["band"][2:-1]
    return all(_failed(name, context) or reason(context) is not None for name, reason in kernels)


def _flash_runs(context: DispatchContext) -> bool:
    return context.device == "cuda" and not _failed("flash", context) and flash_band.why_not(context) is None


def _failed(path: str, context: DispatchContext) -> bool:
    return bool(context.failed) and any(path == name for name, _ in context.failed)


def _flash(context: DispatchContext) -> str | None:
    one_call = context.call.global_mask is not None and context.kv_len <= flex.MAX_LISTED_TOKENS and not _failed("flex", context)
    return ONE_CALL if one_call and flex_kernel.why_not(context) is None else flash_band.why_not(context)


def _no_call_for_all_documents(context: DispatchContext) -> str | None:
    return None if flash_band.why_not(context) is None else flex_kernel.why_not(context)


def _kernel_adds_term(context: DispatchContext) -> bool:
    """Whether the device's band kernel adds the score term without an N×N matrix."""
    if context.call.score_mod is None or context.call.dropout or context.failed or context.few_pairs:
        return False
    if context.device == "cpu":
        return "cpu-band" in context.call.term.engines or distance_band.why_not(context) is None
    return flex_kernel.why_not(context) is None


def _chunks_add_no_distances(context: DispatchContext) -> str | None:
    return "a mask costs less for few pairs" if context.few_pairs else distance_band.why_not(context)


def _no_split(context: DispatchContext) -> str | None:
    trims = context.trims_padding and (not context.call.dropout or drops_in_tiles(context))
    return why_not_split(context, trimmed=trims)


ROW_PATHS: tuple[tuple[PathName, Reason], ...] = (("split", _no_split), ("masked", why_not_masked), ("rolled", _always_runs))
DOCUMENT_PATHS: tuple[tuple[PathName, Reason], ...] = (("stacked", why_not_stacked), ("split", _always_runs))
PAIR_PATHS: tuple[tuple[PathName, Reason], ...] = (("dense", _not_covered), ("dense-masked", _many_pairs), ("sparse", _always_runs))
PATHS: dict[Kind, tuple[tuple[PathName, Reason], ...]] = {
    "rows": ROW_PATHS,
    "packed rows": (("packed", why_not_packed), *DOCUMENT_PATHS),
    "packed bands": (("packed", _no_call_for_all_documents), *DOCUMENT_PATHS),
    "documents": DOCUMENT_PATHS,
    "documents under a band": (("flash", _flash), ("flex", flex_kernel.why_not), *DOCUMENT_PATHS),
    "pairs": PAIR_PATHS,
    "chunks": (("cpu-distances", _chunks_add_no_distances), *PAIR_PATHS),
    "selected": (("dense", _not_covered), ("selected", _always_runs)),
    "low-rank": (("dense", _not_covered), ("low-rank", _always_runs)),
    "band": (
        ("dense", _band_leaves_keys_out),
        ("dense-masked", _band_is_short),
        ("cpu-band", band.why_not),
        ("cpu-distances", distance_band.why_not),
        ("flash", _flash),
        ("flex", flex_kernel.why_not),
        ("blockwise", _always_runs),
    ),
    "tiles": (("cpu-gathered", tiles.why_not), ("flex-gathered", flex_kernel.why_not), ("plain-gathered", _always_runs)),
    "chosen blocks": (
        ("cpu-blocks", block_selected.why_not),
        ("flex-blocks", flex_blocks.why_not),
        ("tiles", _always_runs),
    ),
    "table of blocks": (("flex-blocks", flex_blocks.why_no_table), ("tiles", _always_runs)),
    "windows": (
        ("dense", _not_covered),
        ("windows", grid_windows.why_not),
        ("dense-masked", _many_pairs),
        ("sparse", _always_runs),
    ),
    "linear": (("linear-fla", fla.why_not), ("linear-chunks", _always_runs)),
}
"""Kind of call -> paths in order of priority, each with a function that returns why it does not run (``None`` if it may)."""


def choose(kind: Kind, q: Tensor, k: Tensor, call: AttentionCall, **about: Any) -> PathName:
    """Choose and report the path of a call. Use :func:`try_path` for kernels that a machine may lack (flash, flex).

    Args:
        q, k: ``(B, H, Nq, D)`` and ``(B, H_kv, Nk, D)``.
        about: other fields of :class:`DispatchContext`.
    """
    path, refused = first_path(kind, DispatchContext.of(q, k, call, **about))
    if OBSERVERS:
        report(path, refused)
    return path


def try_path(kind: Kind, context: DispatchContext, runs: Mapping[str, Callable[[], Result]]) -> tuple[Result | None, PathName]:
    """Choose a path and, if it is in ``runs``, run it. A kernel that this machine lacks is skipped.

    Returns:
        ``(result, path)`` if the path ran; otherwise ``(None, path)``, and the caller must run it.
    """
    while True:
        path, refused = first_path(kind, context)
        try:
            out = runs[path]() if path in runs else None
        except NoKernel as error:
            context = dataclasses.replace(context, failed=(*context.failed, (path, str(error))))
        else:
            if OBSERVERS:
                report(path, refused)
            return out, path


def first_path(kind: Kind, context: DispatchContext) -> tuple[PathName, list[tuple[str, str]]]:
    """The first path that may run, and ``(path, reason)`` for each path before it."""
    refused: list[tuple[str, str]] = []
    for name, reason_of in PATHS[kind]:
        reason = next((why for path, why in context.failed if path == name), None) if context.failed else None
        if reason is None:
            elsewhere = context.device != "cpu" and name.startswith("cpu-")
            reason = ELSEWHERE if elsewhere else reason_of(context)
        if reason is None:
            return name, refused
        refused.append((name, reason))
    raise AssertionError(f"the last path of {kind!r} supports every call")


def _known(condition: Any) -> bool:
    """Whether a condition on lengths holds for every length of the exported graph."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # experimental; only export needs it

    return statically_known_true(condition)
