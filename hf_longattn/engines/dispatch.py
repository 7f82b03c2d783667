"""The paths of every pattern type, in order of priority, and the callbacks that record which path ran.

A path is an algorithm or kernel that computes attention. A call runs the first path whose ``why_not`` function gives
no reason against it. Most of these functions are in the file of their path. This file has those that compare several
engines.

:func:`hf_longattn.explain` collects the paths that a model took.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import grid_windows
from .batch import in_graph
from .call import DENSE_CELLS, AttentionCall, DispatchContext, PathName, PatternType
from .cpu import band, block_selected, distance_band, visible_blocks
from .cpu.kernels import drops_in_tiles, why_not_tiles
from .cuda import flash_band, flex, flex_kernel
from .cuda.flex_kernel import NoKernel

DENSE_KEYS = 768
"""Maximum keys for a dense masked call of more than :data:`DENSE_CELLS` pairs. The keys must also fit into the band's
width. Not used if the CPU's band plan decides. Measured on CPUs, untuned elsewhere."""
Reason = Callable[[DispatchContext], str | None]
"""``reason(context)``: a clause that says why the path cannot or should not run; ``None`` if it may run."""
MANY_PAIRS = f"there are more than {DENSE_CELLS:,} query-key pairs"
NEEDS_NO_MASK = "the flash-attention operator needs no N×N mask"
ONE_CALL = "one call of flex_attention launches fewer kernels than the three parts"
DRAWN_IN_TILES = "another CPU path draws dropout in tiles"
Result = TypeVar("Result")


def _always_runs(context: DispatchContext) -> None:
    """The check for the last path of each pattern type. That path supports every call, so the result is always
    ``None``."""


def _many_pairs(context: DispatchContext) -> str | None:
    """Why a call other than a band does not run densely with a mask."""
    if not context.maskable:
        return "no mask over all keys gives this attention"
    if context.few_pairs or (context.global_tokens and in_graph()):
        return None
    return MANY_PAIRS


def _band_leaves_keys_out(context: DispatchContext) -> str | None:
    """Why a band does not run as full attention."""
    if context.exporting:
        return "an exported graph cannot check whether the band covers every length"
    if not context.pattern.covers(context.q_len, context.kv_len):
        return "the band leaves keys out"
    if context.call.batch is not None and not context.few_pairs and _flash_runs(context):
        return NEEDS_NO_MASK
    if context.call.dropout and drops_in_tiles(context):
        return DRAWN_IN_TILES
    if _kernel_adds_term(context):
        return "the band kernel adds the score term without an N×N matrix"
    return None


def _band_is_long(context: DispatchContext) -> str | None:
    """Why a band does not run densely with a mask."""
    pattern, kv_len, call = context.pattern, context.kv_len, context.call
    if context.exporting:  # one graph for all lengths
        narrow = pattern.left if pattern.causal else min(pattern.left, pattern.right)
        if pattern.bounded and not _known(kv_len <= narrow + 1):
            return "the band is narrower than some inputs"
        return None
    if context.few_pairs:
        return None
    if context.device != "cpu":
        if not torch.compiler.is_compiling() and kv_len > min(DENSE_KEYS, pattern.width):
            return MANY_PAIRS
        if call.global_mask is None and _flash_runs(context):
            return NEEDS_NO_MASK
    if call.dropout and drops_in_tiles(context):
        return DRAWN_IN_TILES
    return _kernel_costs_less(context)


def _kernel_costs_less(context: DispatchContext) -> str | None:
    """Why a kernel for bands, or blocks of queries, cost less than a dense masked call. ``None`` if they cost more."""
    pattern, kv_len, call = context.pattern, context.kv_len, context.call
    # In a graph, a mask does not say how many global tokens there are. If no kernel takes it, a dense call is best:
    # ``plain`` would compute a column of scores for each token.
    uncounted = call.global_mask is not None and call.global_positions is None and in_graph()
    if uncounted and all(name in dict(context.failed) or reason(context) is not None for name, reason in BAND_KERNELS):
        return None
    adds_term = call.score_mod is not None and _kernel_adds_term(context)
    if torch.compiler.is_compiling() or band.why_not(context) is not None:
        if kv_len <= DENSE_KEYS and kv_len <= pattern.width and not adds_term:
            return None
        return MANY_PAIRS
    if adds_term or call.batch is not None:
        return "the band kernel handles bias and padding without an N×N matrix"
    if band.plan_of(context).dense:
        return None
    return "smaller blocks of queries, which mask fewer keys, cost less"


def _flash_runs(context: DispatchContext) -> bool:
    return "flash" not in dict(context.failed) and flash_band.why_not(context) is None


def _no_flash(context: DispatchContext) -> str | None:
    """Why the flash-attention operator does not run a band. With global tokens, it needs three parts."""
    one_call = (
        context.call.global_mask is not None
        and context.kv_len <= flex.MAX_LISTED_TOKENS
        and "flex" not in dict(context.failed)
    )
    if one_call and flex_kernel.why_not(context) is None:
        return ONE_CALL
    return flash_band.why_not(context)


def _kernel_adds_term(context: DispatchContext) -> bool:
    """Whether the device's band kernel adds the score term without an N×N matrix."""
    if context.call.score_mod is None or context.call.dropout or context.failed or context.few_pairs:
        return False
    if context.device == "cpu":
        return "cpu-band" in context.call.term.engines or distance_band.why_not(context) is None
    return flex_kernel.why_not(context) is None


Paths = tuple[tuple[PathName, Reason], ...]
PAIR_PATHS: Paths = (
    ("dense", lambda context: None if context.covered else "keys are left out"),
    ("dense-masked", _many_pairs),
    ("sparse", _always_runs),
)
BAND_KERNELS: Paths = (
    ("cpu-band", band.why_not),
    ("cpu-distances", distance_band.why_not),
    ("flash", _no_flash),
    ("flex", flex_kernel.why_not),
)
PATHS: dict[PatternType, Paths] = {
    "documents of a band": (("flash", _no_flash), ("flex", flex_kernel.why_not), ("split", _always_runs)),
    "pairs": PAIR_PATHS,
    "chunks": (
        (
            "cpu-distances",
            lambda context: "a mask costs less for few pairs" if context.few_pairs else distance_band.why_not(context),
        ),
        *PAIR_PATHS,
    ),
    "windows": (PAIR_PATHS[0], ("windows", grid_windows.why_not), ("dense-masked", _always_runs)),
    "band": (
        ("dense", _band_leaves_keys_out),
        ("dense-masked", _band_is_long),
        *BAND_KERNELS,
        ("plain", _always_runs),
    ),
    "tiles": (("cpu-gathered", why_not_tiles), ("plain", _always_runs)),
    "blocks": (("cpu-blocks", block_selected.why_not), ("flex", flex.why_not_blocks), ("tiles", _always_runs)),
    "mask": (("cpu-visible-blocks", visible_blocks.why_not), ("dense-masked", _always_runs)),
}
"""Pattern type -> paths in order of priority, each with a function that returns why it does not run (``None`` if it
may)."""


def choose(pattern_type: PatternType, q: Tensor, k: Tensor, call: AttentionCall, **about: Any) -> PathName:
    """Choose and report the path of a call. Use :func:`try_path` for kernels that a machine may lack (flash, flex).

    Args:
        q, k: ``(B, H, Nq, D)`` and ``(B, H_kv, Nk, D)``.
        about: other fields of :class:`DispatchContext`.
    """
    _, path = try_path(pattern_type, DispatchContext.of(q, k, call, **about), {})
    return path


def try_path(
    pattern_type: PatternType, context: DispatchContext, runs: Mapping[str, Callable[[], Result]]
) -> tuple[Result | None, PathName]:
    """Choose a path and, if it is in ``runs``, run it. A kernel that this machine lacks is skipped.

    Args:
        runs: path -> a function that computes the result by it.
    Returns:
        ``(result, path)`` if the path ran; otherwise ``(None, path)``, and the caller must run it.
    """
    while True:
        path, refused = first_path(pattern_type, context)
        try:
            out = runs[path]() if path in runs else None
        except NoKernel as error:
            context = dataclasses.replace(context, failed=(*context.failed, (path, str(error))))
        else:
            if OBSERVERS:
                report(path, refused)
            return out, path


def first_path(pattern_type: PatternType, context: DispatchContext) -> tuple[PathName, list[tuple[str, str]]]:
    """The first path that may run, and ``(path, reason)`` for each path before it."""
    failed = dict(context.failed)
    refused: list[tuple[str, str]] = []
    for name, why_not in PATHS[pattern_type]:
        reason = failed.get(name) or why_not(context)
        if reason is None:
            return name, refused
        refused.append((name, reason))
    raise AssertionError(f"the last path of {pattern_type!r} supports every call")


def _known(condition: Any) -> bool:
    """Whether a condition on lengths holds for every length of the exported graph."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # experimental; only export needs it

    return statically_known_true(condition)


@dataclasses.dataclass(frozen=True)
class PathChoice:
    """The path that ran, and ``(path, reason)`` for each path of higher priority that did not."""

    path: str
    refused: tuple[tuple[str, str], ...] = ()


Observer = Callable[[Any, PathChoice], None]
OBSERVERS: list[Observer] = []
"""All observers, of every thread. While it is empty, choices are not reported, which saves time."""
_context_observers: ContextVar[tuple[Observer, ...]] = ContextVar("observers", default=())
_running: ContextVar[Any] = ContextVar("running", default=None)
"""The mechanism for which this thread chooses paths."""
_reports: ContextVar[int] = ContextVar("reports", default=0)
"""Number of choices that this thread has reported."""


@contextlib.contextmanager
def running(mechanism: Any) -> Iterator[None]:
    """Context manager: paths chosen in this thread are reported for ``mechanism``."""
    before = _running.set(mechanism)
    try:
        yield
    finally:
        _running.reset(before)


def reporting(mechanism: Any, run: Callable[..., Result]) -> Callable[..., Result]:
    """Wrap ``run`` so that, if it reports no path, the name of the mechanism's engine is reported."""

    def reported(*arguments: Any) -> Result:
        before = _reports.get()
        out = run(*arguments)
        if _reports.get() == before:
            report(mechanism.about.engine.replace("_", "-"), ())
        return out

    return reported


@contextlib.contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Context manager: call ``observer(mechanism, choice)`` whenever a path is chosen in this thread."""
    OBSERVERS.append(observer)
    before = _context_observers.set((*_context_observers.get(), observer))
    try:
        yield
    finally:
        _context_observers.reset(before)
        OBSERVERS.remove(observer)


def report(path: str, refused: Sequence[tuple[str, str]] = ()) -> None:
    """Report the path that the innermost running mechanism took, except in a graph. Callers check :data:`OBSERVERS`
    first."""
    if in_graph():
        return
    _reports.set(_reports.get() + 1)
    choice = PathChoice(path, tuple(refused))
    for observer in _context_observers.get():
        observer(_running.get(), choice)
