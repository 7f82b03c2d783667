"""Which path runs: a table of named paths in order of priority.

Each path has a function that returns a reason against it. :func:`choose` takes the first path without a reason. ``HF_LONGATTN_LOG=paths``
logs every distinct choice once, and :func:`hf_longattn.explain` collects the choices of a model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch.torch_version import TorchVersion

from ..naming import LOGGER
from .common.axis_term import AxisTerm
from .common.batch import in_graph
from .common.call import AttentionCall, DistanceBias, Pattern, ScoreMod, groups_of_documents
from .common.derivatives import no_fused_kernels
from .common.distance_term import DistanceTerm, TokenDistanceTerm
from .common.document_rows import Stacking
from .common.grid_bias import GridBias
from .common.place_term import PlaceTerm
from .cpu.band import Plan, band_plan
from .cpu.dropout import drops_some
from .cuda.flash_band import LACKS
from .cuda.flex_kernel import NoKernel

LOG_VARIABLE = "HF_LONGATTN_LOG"
DENSE_CELLS = 256 * 256
"""Query-key pairs per head up to which one dense masked call replaces every sparse path. Measured on CPUs, where sparse paths take several
calls. Untuned on GPUs, where so few pairs should cost little besides the kernel launch."""
DENSE_KEYS = 768
"""Maximum keys for a dense masked call beyond :data:`DENSE_CELLS`, unless the CPU's plan decides. The band must be at least as wide, and so
leaves little out. Measured on CPUs. Untuned elsewhere."""
MAX_FLA_FEATURES = 256
"""Maximum features per head in flash-linear-attention's kernels, whose tiles hold no more."""
MIN_FLA_GROUP = 16
"""Minimum query heads per selection and tokens per block, for flash-linear-attention's selected-block kernel."""
MAX_TABLE_TOKENS = 1 << 15
"""Maximum keys for ``flex-blocks``, which looks selections up in a table. Longer texts visit many blocks for nothing. Untuned."""
MIN_FLEX_FEATURES = 16
"""Minimum width of a head in flex_attention's kernels."""
MAX_FLASH_FEATURES = 256
"""Maximum width of a head in PyTorch's flash-attention operator."""
FLASH_DTYPES = (torch.bfloat16, torch.float16)
"""Dtypes of PyTorch's flash-attention operator."""
DENSE, DENSE_MASKED = "dense", "dense-masked"
ANY_CALL = AttentionCall()
"""A placeholder for choices that do not depend on the call."""


@dataclasses.dataclass(eq=False)
class DispatchContext:
    """Everything that the choice of a path depends on."""

    device: str
    q_len: Any
    kv_len: Any
    call: AttentionCall
    covered: bool = False
    """Whether the mechanism sees every pair."""
    global_tokens: bool = False
    """Whether there are global tokens. A graph does not know how many."""
    pattern: Pattern | None = None
    learned_bias: bool = False
    """Whether the tiles have a bias that needs gradients."""
    dtype: torch.dtype | None = None
    features: int = 0
    """Width of a query head; for linear mechanisms, the larger of feature and value width."""
    by_position: bool = False
    """Whether the output depends on where a sequence starts."""
    single_call: bool = False
    """Whether the rows of a batch, or its packed documents, must be one call."""
    separate_calls: bool = False
    """Whether every sequence must be its own call."""
    stacking: Stacking | None = None
    """Which documents may be rows of one batch, padded on the right. ``None`` if none may, for instance because padding counts."""
    trims_padding: bool = False
    """Whether the engine cuts the outer padding off every row by itself."""
    selection: tuple[int, int] = (1, 1)
    """Query heads per selection of blocks, and tokens per block."""
    failed: tuple[tuple[str, str], ...] = ()
    """Paths whose attempt failed, and why."""

    @property
    def few_pairs(self) -> Any:
        """Whether one dense masked call is fastest for so few pairs, whatever the pattern."""
        return self.q_len == 1 or self.q_len * self.kv_len <= DENSE_CELLS

    @property
    def band(self) -> Pattern:
        """The pattern, which must be set. :attr:`pattern` defaults to ``None``, since Dynamo traces no default that is an object."""
        assert self.pattern is not None
        return self.pattern

    @property
    def biased(self) -> bool:
        """Whether the band kernel adds the score term without writing it out for all pairs. On the CPU: terms by distance or place."""
        if self.call.score_mod is None or self.call.dropout or self.failed or self.few_pairs:
            return False
        if self.device == "cpu":
            return _band_takes(self.call.score_mod) or _no_cpu_distances(self) is None
        return _no_flex(self) is None

    @functools.cached_property
    def plain_only(self) -> str | None:
        """Why only plain operations may run now. Asked once per call. Not for graphs, which may have fused kernels."""
        return no_fused_kernels()

    def cpu_plan(self) -> Plan:
        """The cheapest plan of the CPU's kernel for the band."""
        assert self.dtype is not None
        band, kv_len = self.band, self.kv_len
        sizes = (self.q_len, kv_len, kv_len - self.q_len, min(band.left, kv_len), min(band.right, kv_len))
        return band_plan(*sizes, self.dtype, torch.get_num_threads(), tokens=self.call.global_mask is not None)


Result = TypeVar("Result")
Reason = Callable[[DispatchContext], str | None]
"""Returns the reason against a path, as a clause, or ``None`` if it may run."""
Path = tuple[str, Reason]
MANY_PAIRS = f"there are more than {DENSE_CELLS:,} query-key pairs"
NEEDS_NO_MASK = "the flash-attention operator needs no N×N mask"
DRAWN_IN_TILES = "dropout is drawn in blocks of few queries"
NOT_IN_AN_EXPORTED_GRAPH = "an exported graph holds operations of every runtime only"


def _last(context: DispatchContext) -> None:
    """No reason: the last path of a table can do everything."""


def _not_covered(context: DispatchContext) -> str | None:
    return None if context.covered else "keys are left out"


def _many_pairs(context: DispatchContext) -> str | None:
    if context.few_pairs or (context.global_tokens and torch.compiler.is_compiling()):
        return None
    return MANY_PAIRS


def _band_leaves_keys_out(context: DispatchContext) -> str | None:
    if torch.compiler.is_exporting():
        return "a graph for all lengths cannot ask whether the band covers them"
    if not context.band.covers(context.q_len, context.kv_len):
        return "the band leaves keys out"
    if context.call.batch is not None and not context.few_pairs and _flash_runs(context):
        return NEEDS_NO_MASK
    if drops_in_tiles(context):
        return DRAWN_IN_TILES
    return "the band kernel adds the score term without an N×N matrix" if context.biased else None


def _band_is_short(context: DispatchContext) -> str | None:
    band, kv_len = context.band, context.kv_len
    if torch.compiler.is_exporting():  # one graph for all lengths
        narrow = min(band.left, band.left if band.causal else band.right) + 1
        return "the band is narrower than some inputs" if band.bounded and not _known(kv_len <= narrow) else None
    if context.few_pairs:
        return None
    if context.call.global_mask is None and _flash_runs(context):
        return NEEDS_NO_MASK
    if torch.compiler.is_compiling() or _no_cpu_band(context) is not None:
        return None if kv_len <= DENSE_KEYS and kv_len <= band.width and not context.biased else MANY_PAIRS
    if drops_in_tiles(context):
        return DRAWN_IN_TILES
    if context.biased or context.call.key_mask is not None:
        return "the band kernel adds the bias, or cuts the padding off, without an N×N matrix"
    return None if context.cpu_plan().dense else "a block of queries for which few keys are masked costs less"


def _not_on(device: str, context: DispatchContext) -> str | None:
    return None if context.device == device else "the tensors are on another device"


def _no_fused_cpu(context: DispatchContext, exports: bool = False, drops: bool = False) -> str | None:
    """Why PyTorch's fused kernel for the CPU does not run, whatever the score term.

    exports: whether the path has a form for exported graphs.
    drops: whether the path has tiles that draw dropout.
    """
    if torch.compiler.is_exporting() and not exports:
        return NOT_IN_AN_EXPORTED_GRAPH
    if context.device != "cpu":
        return _not_on("cpu", context)
    if not torch.compiler.is_compiling() and context.plain_only is not None:
        return context.plain_only
    if not context.call.dropout or (drops and drops_in_tiles(context)):
        return None
    return "the fused kernel has no dropout"


def drops_in_tiles(context: DispatchContext) -> bool:
    """Whether the CPU's engines draw the dropout of this call in tiles.

    They do so outside graphs, where fused kernels may run, without score terms, and for more than a few pairs.
    """
    call = context.call
    if context.device != "cpu" or torch.compiler.is_compiling() or call.score_mod is not None or not drops_some(call.dropout):
        return False
    return not context.few_pairs and context.plain_only is None


def _band_takes(score_mod: ScoreMod | None) -> bool:
    """Whether the CPU's band kernel adds this score term. It takes distance biases, and place terms without gradients."""
    return isinstance(score_mod, DistanceBias) or (isinstance(score_mod, PlaceTerm) and not score_mod.learned)


def _no_cpu_kernel(context: DispatchContext, takes_bias: bool, drops: bool) -> str | None:
    if (why := _no_fused_cpu(context, exports=not takes_bias, drops=drops)) is not None:
        return why
    if context.call.score_mod is not None and not (takes_bias and _band_takes(context.call.score_mod)):
        return (
            "the fused kernel adds no score term other than a bias by distance or place"
            if takes_bias
            else "the fused kernel adds no score term"
        )
    return "the bias of its tiles needs gradients" if context.learned_bias else None


def _no_cpu_distances(context: DispatchContext) -> str | None:
    if (why := _no_fused_cpu(context)) is not None:
        return why
    if isinstance(context.call.score_mod, DistanceTerm | TokenDistanceTerm):
        return None
    return "the score term is not one of the distance and the query or the key"


def _no_cpu_band(context: DispatchContext) -> str | None:
    return _no_cpu_kernel(context, takes_bias=True, drops=True)


def _no_cpu_gathered(context: DispatchContext) -> str | None:
    return _no_cpu_kernel(context, takes_bias=False, drops=True)


def _no_cpu_tiles(context: DispatchContext) -> str | None:
    return _no_cpu_kernel(context, takes_bias=False, drops=False)


def _no_flash(context: DispatchContext) -> str | None:
    """Why PyTorch's flash-attention operator does not run a band."""
    call = context.call
    if context.device != "cuda":
        return _not_on("cuda", context)
    if torch.compiler.is_exporting():
        return NOT_IN_AN_EXPORTED_GRAPH
    if call.score_mod is not None:
        return "the flash-attention operator adds no score term"
    if context.dtype not in FLASH_DTYPES:
        return "the flash-attention operator computes in half precision only"
    if context.features > MAX_FLASH_FEATURES:
        return f"the flash-attention operator takes heads of up to {MAX_FLASH_FEATURES} numbers"
    if (why := LACKS or no_fused_kernels()) is not None:
        return why
    return None if call.batch is None and call.global_mask is None else _no_flash_sequences(context)


def _no_flash_sequences(context: DispatchContext) -> str | None:
    """Why the operator does not run a band with global tokens, padding or packed sequences."""
    batch = context.call.batch
    if in_graph():
        return "a graph knows neither where sequences start nor how many tokens are global"
    if batch is None:
        return None
    if batch.documents is not None and context.call.global_mask is not None:
        return "the global tokens of a document are seen by it alone"
    if context.q_len != context.kv_len:
        return "the queries are some tokens of a batch with padding"
    if any(span.holes for span in batch.sequences):
        return "there is padding between the tokens of a sequence"
    return None


def _flash_runs(context: DispatchContext) -> bool:
    return context.device == "cuda" and not any(path == "flash" for path, _ in context.failed) and _no_flash(context) is None


def _no_flex(context: DispatchContext) -> str | None:
    if torch.compiler.is_exporting():
        return NOT_IN_AN_EXPORTED_GRAPH
    if context.device != "cuda":
        return _not_on("cuda", context)
    if context.features < MIN_FLEX_FEATURES:
        return f"flex_attention takes heads of {MIN_FLEX_FEATURES} numbers or more"
    return "flex_attention has no dropout" if context.call.dropout else no_fused_kernels()


def _no_flex_by_values(context: DispatchContext) -> str | None:
    return _no_flex(context) or ("its lists are made of values, which a graph lacks" if torch.compiler.is_compiling() else None)


def _no_fla_blocks(context: DispatchContext) -> str | None:
    if (why := _no_fla(context, (torch.bfloat16, torch.float16))) is not None:
        return why
    call, (group, size) = context.call, context.selection
    if not call.causal or call.key_mask is not None or call.score_mod is not None or call.dropout:
        return "its kernel is causal, without padding, score terms and dropout"
    if group < MIN_FLA_GROUP or group.bit_count() > 1 or size < MIN_FLA_GROUP or size.bit_count() > 1:
        return f"its kernel takes groups of {MIN_FLA_GROUP}, 32 … query heads to a selection, and such blocks"
    return None


def _no_flex_blocks(context: DispatchContext) -> str | None:
    if context.kv_len > MAX_TABLE_TOKENS:
        return f"beyond {MAX_TABLE_TOKENS:,} tokens many blocks are visited for nothing"
    return _no_flex_by_values(context)


def _no_fla(context: DispatchContext, dtypes: tuple[torch.dtype, ...]) -> str | None:
    if context.device != "cuda":
        return _not_on("cuda", context)
    if torch.compiler.is_compiling():
        return "the package's kernels cannot be traced"
    if (why := no_fused_kernels()) is not None:
        return why
    if context.dtype not in dtypes:
        return "its kernel does not take this dtype"
    if context.q_len <= 1:
        return "there is one token"
    if context.features > MAX_FLA_FEATURES:
        return f"there are more than {MAX_FLA_FEATURES} features"
    return None if fla_installed() else "flash-linear-attention is not installed"


def _no_linear_fla(context: DispatchContext) -> str | None:
    return _no_fla(context, (torch.float32, torch.bfloat16))


def _no_delta_fla(context: DispatchContext) -> str | None:
    return _no_fla(context, (torch.bfloat16, torch.float16)) or _delta_fault()


@functools.cache
def _delta_fault() -> str | None:
    """Why flash-linear-attention refuses the delta rule's backward pass on this GPU (its issue 640)."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9 or importlib.util.find_spec("tilelang") is not None:
        return None
    version = TorchVersion(importlib.metadata.version("triton"))
    return f"Triton {version} computes its gradients wrongly on Hopper GPUs: 3.7.1 does not" if "3.4" <= version < "3.7.1" else None


@functools.cache
def fla_installed() -> bool:
    """Whether flash-linear-attention and the Triton that it needs are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("fla", "triton"))


def _no_windows(context: DispatchContext) -> str | None:
    masked = context.call.key_mask is not None and not torch.compiler.is_exporting()
    if masked and not context.few_pairs and _no_cpu_tiles(context) is None:
        return "padding lies between the cells, and the fused kernel runs the listed pairs"
    return None if isinstance(context.call.score_mod, AxisTerm) else _no_halo(context)


def _no_halo(context: DispatchContext) -> str | None:
    if context.call.score_mod is None or isinstance(context.call.score_mod, GridBias):
        return None
    return "a score term other than a bias by distance on the grid is added to listed pairs"


def _no_cpu_halo(context: DispatchContext) -> str | None:
    return _no_fused_cpu(context) or _no_halo(context)


def _no_lines(context: DispatchContext) -> str | None:
    if not torch.compiler.is_exporting() and _no_cpu_tiles(context) is None:
        return "the fused kernel runs the listed pairs"
    return _no_halo(context)


def _many_cells(context: DispatchContext) -> str | None:
    return "an exported graph has no N×N matrix" if torch.compiler.is_exporting() else _many_pairs(context)


def _no_split(context: DispatchContext) -> str | None:
    if in_graph():
        return "a graph does not know where sequences start"
    if context.single_call:
        return "the mechanism draws or learns something once per call, or its queries belong to another sequence"
    if context.separate_calls or (context.by_position and context.q_len < context.kv_len):  # rolling would copy all keys for a few queries
        return None
    if context.device != "cpu":
        return "one call serves all rows of a batch on this device"
    if context.trims_padding and (not context.call.dropout or drops_in_tiles(context)) and _no_mask(context) is None:
        return "the band engine cuts padding off every row by itself"
    return None if context.q_len * context.kv_len > DENSE_CELLS else "one call with a mask costs less for so few pairs"


def _not_packed(context: DispatchContext) -> str | None:
    if in_graph():
        return "a graph does not know where sequences start"
    if context.separate_calls or context.q_len < context.kv_len:
        return "every document is to be run alone, or the queries are not those of the keys"
    if context.device != "cpu":
        return None
    if context.call.batch is not None and any(sequence.holes for sequence in context.call.batch.sequences):
        return "there is padding between the tokens of a document"
    return no_fused_kernels()


def _no_stack(context: DispatchContext) -> str | None:
    """Why packed documents are not rows of a batch."""
    if context.device == "cpu" and not context.single_call:
        return "on the CPU a document alone costs what its tokens cost"
    if context.stacking is None or context.q_len < context.kv_len:
        return "padding counts, every document is to be run alone, or the queries are not those of the keys"
    if in_graph():
        return "a graph does not know where sequences start"
    if (why := no_fused_kernels()) is not None:
        return why
    batch, groups = context.call.batch, groups_of_documents(context.call, context.stacking)
    return "no two documents may share a call" if batch is None or len(groups) == len(batch.sequences) else None


def _no_mask(context: DispatchContext) -> str | None:
    batch = context.call.batch
    return "its positions count from each row's first token" if context.by_position and batch is not None and batch.padded_left else None


ROW_PATHS: tuple[Path, ...] = (("split", _no_split), ("masked", _no_mask), ("rolled", _last))
DOCUMENT_PATHS: tuple[Path, ...] = (("stacked", _no_stack), ("split", _last))
PATHS: dict[str, tuple[Path, ...]] = {
    "rows": ROW_PATHS,
    "packed rows": (("packed", _not_packed), *DOCUMENT_PATHS),
    "packed bands": (("packed", _no_flash), *DOCUMENT_PATHS),
    "documents": DOCUMENT_PATHS,
    "documents under a band": (("flash", _no_flash), *DOCUMENT_PATHS),
    "pairs": ((DENSE, _not_covered), (DENSE_MASKED, _many_pairs), ("sparse", _last)),
    "selected": ((DENSE, _not_covered), ("selected", _last)),
    "low-rank": ((DENSE, _not_covered), ("low-rank", _last)),
    "band": (
        (DENSE, _band_leaves_keys_out),
        (DENSE_MASKED, _band_is_short),
        ("cpu-band", _no_cpu_band),
        ("cpu-distances", _no_cpu_distances),
        ("flash", _no_flash),
        ("flex", _no_flex),
        ("blockwise", _last),
    ),
    "chunks": ((DENSE_MASKED, _many_pairs), ("cpu-distances", _no_cpu_distances), ("tiles", _last)),
    "tiles": (
        ("cpu-gathered", _no_cpu_gathered),
        ("flex-gathered", _no_flex),
        ("plain-gathered", _last),
    ),
    "windows": ((DENSE, _not_covered), ("windows", _no_windows), ("tiles", _last)),
    "lines": ((DENSE, _not_covered), (DENSE_MASKED, _many_cells), ("lines", _no_lines), ("tiles", _last)),
    "halo": ((DENSE, _not_covered), (DENSE_MASKED, _many_cells), ("cpu-halo", _no_cpu_halo), ("halo", _no_halo), ("tiles", _last)),
    "chosen blocks": (
        ("cpu-blocks", _no_cpu_tiles),
        ("fla-blocks", _no_fla_blocks),
        ("flex-blocks", _no_flex_blocks),
        ("tiles", _last),
    ),
    "linear": (("linear-fla", _no_linear_fla), ("linear-chunks", _last)),
    "delta": (("delta-fla", _no_delta_fla), ("delta-chunks", _last)),
}
"""The paths for each kind of call, in order of preference. Mechanisms and engines name the kind."""
ATTEMPTED_PATHS = ("flash", "flex", "flex-gathered", "flex-blocks")
"""Paths for which only an attempt shows whether this machine has their kernel."""


@dataclasses.dataclass(frozen=True)
class PathChoice:
    """The path that ran, and why the paths before it did not."""

    path: str
    refused: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.path + "".join(f"; no {name}: {reason}" for name, reason in self.refused)


def fastest_path(kind: str, context: DispatchContext) -> str:
    """The path that :func:`choose` would choose; no observer is notified."""
    return _first(kind, context)[0]


def choose(kind: str, context: DispatchContext) -> str:
    """The path to run. If it is in :data:`ATTEMPTED_PATHS`, run it by :func:`attempt`, since it may fail.

    Args:
        kind: a key of :data:`PATHS`.
    """
    path, refused = _first(kind, context)
    if OBSERVERS and path not in ATTEMPTED_PATHS:
        _report(path, refused)
    return path


def attempt(kind: str, context: DispatchContext, run: Callable[..., Result], *arguments: Any) -> tuple[Result | None, str]:
    """Run the chosen path: ``(run(*arguments), path)``. If it raises :class:`NoKernel`, the result is ``None`` with the path to run or
    attempt instead, and the context records the failure."""
    out, (path, refused) = None, _first(kind, context)
    try:
        out = run(*arguments)
    except NoKernel as error:
        context.failed = (*context.failed, (path, str(error)))
        path, refused = _first(kind, context)
    if out is not None or path not in ATTEMPTED_PATHS:
        _report(path, refused)
    return out, path


def _first(kind: str, context: DispatchContext) -> tuple[str, list[tuple[str, str]]]:
    """The first path without a reason against it, and the reasons against earlier paths."""
    refused: list[tuple[str, str]] = []
    for name, reason_of in PATHS[kind]:
        reason = next((why for path, why in context.failed if path == name), None) if context.failed else None
        reason = reason_of(context) if reason is None else reason
        if reason is None:
            return name, refused
        refused.append((name, reason))
    raise AssertionError(f"the last path of {kind!r} takes everything")


def _report(path: str, refused: Sequence[tuple[str, str]]) -> None:
    if OBSERVERS and not in_graph():
        notify(PathChoice(path, tuple(refused)))


def choose_pairs(q: Any, k: Any, call: AttentionCall, covered: bool = False, tokens: bool = False) -> str:
    """The path of a mechanism that compares some pairs: ``"dense"``, ``"dense-masked"`` or ``"sparse"``."""
    return choose("pairs", DispatchContext(q.device.type, q.shape[2], k.shape[2], call, covered=covered, global_tokens=tokens))


def choose_covered(kind: str, q: Any, k: Any, call: AttentionCall, covered: bool) -> str:
    """``"dense"`` where a mechanism of ``kind`` sees every pair, otherwise its own path."""
    return choose(kind, DispatchContext(q.device.type, q.shape[2], k.shape[2], call, covered=covered))


def choose_documents(q: Any, k: Any, call: AttentionCall) -> str:
    """How to separate packed documents: ``"stacked"`` or ``"split"``. For mechanisms that ignore padding after a sequence."""
    return choose("documents", DispatchContext(q.device.type, q.shape[2], k.shape[2], call, stacking=Stacking()))


def choose_chunks(context: DispatchContext) -> bool:
    """Whether the CPU's fused kernel computes chunks with a distance term. If not, :func:`choose_pairs` chooses the path."""
    path, refused = _first("chunks", context)
    if path == "cpu-distances":
        _report(path, refused)
    return path == "cpu-distances"


def choose_on_grid(kind: str, q: Any, k: Any, call: AttentionCall, covered: bool) -> str:
    """The path of a mechanism on a grid. ``kind`` is ``"windows"`` (no overlap), ``"halo"`` (overlapping windows) or ``"lines"``. Paths are
    full attention, calls for all windows, tiles or lines of one size, and listed pairs."""
    context = DispatchContext(q.device.type, q.shape[2], k.shape[2], call, covered=covered)
    path, refused = _first(kind, context)
    if path not in (DENSE, DENSE_MASKED, "tiles"):  # choose_pairs chooses and reports these
        _report(path, refused)
    return path


Observer = Callable[[Any, PathChoice], None]
"""``observer(mechanism, choice)``."""
OBSERVERS: list[Observer] = []
"""The observers of all threads. Checked first, so that a choice costs nothing while nobody observes."""
_process_observers: list[Observer] = []
_context_observers: ContextVar[tuple[Observer, ...]] = ContextVar("observers", default=())
_running: ContextVar[Any] = ContextVar("running", default=None)
_reports: ContextVar[int] = ContextVar("reports", default=0)
"""Number of choices that this thread has reported."""


def notify(choice: PathChoice) -> None:
    """Tell the observers which path ran in this thread's innermost mechanism."""
    _reports.set(_reports.get() + 1)
    for observer in (*_process_observers, *_context_observers.get()):
        observer(_running.get(), choice)


@contextlib.contextmanager
def running(mechanism: Any) -> Iterator[None]:
    """Attribute the paths that are chosen in this thread to ``mechanism``."""
    before = _running.set(mechanism)
    try:
        yield
    finally:
        _running.reset(before)


def reporting(mechanism: Any, run: Callable[..., Result]) -> Callable[..., Result]:
    """Wrap ``run`` so that the mechanism's only path is reported whenever ``run`` reports none."""

    def reported(*arguments: Any) -> Result:
        before, out = _reports.get(), run(*arguments)
        if _reports.get() == before:
            _report(mechanism.only_path, ())
        return out

    return reported


@contextlib.contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Call ``observer(mechanism, choice)`` whenever a path is chosen in this thread."""
    OBSERVERS.append(observer)
    before = _context_observers.set((*_context_observers.get(), observer))
    try:
        yield
    finally:
        _context_observers.reset(before)
        OBSERVERS.remove(observer)


def _known(condition: Any) -> bool:
    """Whether a comparison of lengths holds for all lengths that a graph is exported for."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # experimental, and needed for exporting only

    return statically_known_true(condition)


def log_paths() -> None:
    """Log every distinct choice of a path once, as ``HF_LONGATTN_LOG=paths`` does."""
    from transformers.utils import logging as transformers_logging  # its handlers print the log; imported only on request

    logger, logged = transformers_logging.get_logger(LOGGER), set[str]()

    def log(mechanism: Any, choice: PathChoice) -> None:
        line = f"{getattr(mechanism, 'name', 'attention')}: {choice}"
        if line not in logged:
            logged.add(line)
            logger.info(line)

    logger.setLevel(logging.INFO)
    OBSERVERS.append(log)
    _process_observers.append(log)


if "paths" in os.environ.get(LOG_VARIABLE, "").split(","):
    log_paths()
