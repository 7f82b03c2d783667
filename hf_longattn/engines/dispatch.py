"""Which path runs: one table of named paths by priority, each with the reasons against it.

:func:`choose` takes the first path without one. ``HF_LONGATTN_LOG=paths`` logs every distinct answer once, and :func:`hf_longattn.explain`
collects them for a model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..naming import LOGGER
from .common.batch import in_graph
from .common.call import AttentionCall, DistanceBias, Pattern
from .common.derivatives import no_fused_kernels
from .cpu.band_plan import Plan, band_plan
from .cuda.flex_kernel import NoKernel

VARIABLE = "HF_LONGATTN_LOG"
DENSE_CELLS = 256 * 256
"""Up to this many query-key pairs per head the dense kernel with a mask is faster than any sparse path: measured on CPUs, where the sparse
paths cost several calls. On a GPU it is an estimate, that so few pairs cost little besides the launch of a kernel."""
DENSE_KEYS = 768
"""It also is up to this many keys where the band is as wide, which leaves little out: measured on CPUs, elsewhere an estimate."""
MOST_FEATURES = 256
"""Features per head that the tiles of flash-linear-attention's kernels hold."""
FLEX_FEATURES = 16
"""Least width of a head in flex_attention's kernels."""
DENSE, DENSE_MASKED = "dense", "dense-masked"
CALL = AttentionCall()
"""For choices that do not depend on the call."""


@dataclasses.dataclass(eq=False)
class Facts:
    """What a choice depends on."""

    device: str
    q_len: Any
    kv_len: Any
    call: AttentionCall
    covered: bool = False
    """The mechanism sees every pair."""
    tokens: bool = False
    """Some tokens are global, whose number is not known in a graph."""
    pattern: Pattern | None = None
    learned_bias: bool = False
    """The tiles have a bias that needs gradients."""
    dtype: torch.dtype | None = None
    features: int = 0
    """Features per head of a linear mechanism; of any other, the width of a head."""
    by_position: bool = False
    """The output depends on where a sequence starts."""
    together: bool = False
    """The rows of a batch must be one call."""
    alone: bool = False
    """Every sequence is to be run alone."""
    trims: bool = False
    """The engine cuts the outer padding off every row by itself."""
    failed: str = ""
    """The path that turned out not to run on this machine."""

    @property
    def few_pairs(self) -> Any:
        """Whether there are so few pairs that a dense call with a mask is the fastest, whatever the pattern."""
        return self.q_len == 1 or self.q_len * self.kv_len <= DENSE_CELLS

    @property
    def band(self) -> Pattern:
        """The pattern. It has no default, since Dynamo traces no default that is an object."""
        assert self.pattern is not None
        return self.pattern

    @property
    def biased(self) -> bool:
        """Whether the band kernel adds the score term without writing it out for all pairs: on the CPU, a bias by distance."""
        if self.call.score_mod is None or self.call.dropout or self.failed or self.few_pairs:
            return False
        return isinstance(self.call.score_mod, DistanceBias) if self.device == "cpu" else _no_flex(self) is None

    def cpu_plan(self) -> Plan:
        """How the CPU's kernel computes the band at the least cost."""
        assert self.dtype is not None
        band, kv_len = self.band, self.kv_len
        sizes = (self.q_len, kv_len, kv_len - self.q_len, min(band.left, kv_len), min(band.right, kv_len))
        return band_plan(*sizes, self.dtype, torch.get_num_threads(), tokens=self.call.global_mask is not None)


Reason = Callable[[Facts], str | None]
"""Why a path does not run, as a clause; ``None`` where it may."""
Path = tuple[str, Reason]
MANY = f"there are more than {DENSE_CELLS:,} query-key pairs"
EXPORTED = "an exported graph holds operations of every runtime only"


def _last(facts: Facts) -> None:
    """The path that can do everything."""


def _not_covered(facts: Facts) -> str | None:
    return None if facts.covered else "keys are left out"


def _many_pairs(facts: Facts) -> str | None:
    if facts.few_pairs or (facts.tokens and torch.compiler.is_compiling()):
        return None
    return MANY


def _band_leaves_keys_out(facts: Facts) -> str | None:
    if torch.compiler.is_exporting():
        return "a graph for all lengths cannot ask whether the band covers them"
    if not facts.band.covers(facts.q_len, facts.kv_len):
        return "the band leaves keys out"
    return "the band kernel adds the score term without an N×N matrix" if facts.biased else None


def _band_is_short(facts: Facts) -> str | None:
    band, kv_len = facts.band, facts.kv_len
    if torch.compiler.is_exporting():  # one graph for all lengths
        narrow = min(band.left, band.left if band.causal else band.right) + 1
        return "the band is narrower than some inputs" if band.bounded and not _known(kv_len <= narrow) else None
    if facts.few_pairs:
        return None
    if torch.compiler.is_compiling() or _no_cpu_kernel(facts, takes_bias=True) is not None:
        return None if kv_len <= DENSE_KEYS and kv_len <= band.width and not facts.biased else MANY
    if facts.biased or facts.call.key_mask is not None:
        return "the band kernel adds the bias, or cuts the padding off, without an N×N matrix"
    return None if facts.cpu_plan().dense else "a block of queries for which few keys are masked costs less"


def _not_on(device: str, facts: Facts) -> str | None:
    return None if facts.device == device else "the tensors are on another device"


def _no_cpu_kernel(facts: Facts, takes_bias: bool) -> str | None:
    if torch.compiler.is_exporting() and takes_bias:
        return EXPORTED
    if facts.device != "cpu":
        return _not_on("cpu", facts)
    if (why := no_fused_kernels()) is not None:
        return why
    if facts.call.dropout:
        return "the fused kernel has no dropout"
    if facts.call.score_mod is not None and not (takes_bias and isinstance(facts.call.score_mod, DistanceBias)):
        return "the fused kernel adds no score term other than a bias by distance" if takes_bias else "the fused kernel adds no score term"
    return "the bias of its tiles needs gradients" if facts.learned_bias else None


def _no_cpu_tiles(facts: Facts) -> str | None:
    return _no_cpu_kernel(facts, takes_bias=False)


def _no_flex(facts: Facts) -> str | None:
    if torch.compiler.is_exporting():
        return EXPORTED
    if facts.device != "cuda":
        return _not_on("cuda", facts)
    if facts.features < FLEX_FEATURES:
        return f"flex_attention takes heads of {FLEX_FEATURES} numbers or more"
    return "flex_attention has no dropout" if facts.call.dropout else no_fused_kernels()


def _no_flex_tiles(facts: Facts) -> str | None:
    return _no_flex(facts) or ("tiles are laid out by values, which a graph does not know" if torch.compiler.is_compiling() else None)


def _no_fla(facts: Facts, taken: tuple[torch.dtype, ...]) -> str | None:
    if facts.device != "cuda":
        return _not_on("cuda", facts)
    if torch.compiler.is_compiling():
        return "the package's kernels cannot be traced"
    if (why := no_fused_kernels()) is not None:
        return why
    if facts.dtype not in taken:
        return "its kernel does not take this dtype"
    if facts.q_len <= 1:
        return "there is one token"
    if facts.features > MOST_FEATURES:
        return f"there are more than {MOST_FEATURES} features"
    return None if fla_installed() else "flash-linear-attention is not installed"


@functools.cache
def fla_installed() -> bool:
    """Whether flash-linear-attention and the Triton that it needs are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("fla", "triton"))


def _no_split(facts: Facts) -> str | None:
    batch = facts.call.batch
    if batch is not None and batch.documents is not None:
        return None
    if in_graph():
        return "a graph does not know where sequences start"
    if facts.together:
        return "the mechanism draws or learns something once per call, or its queries belong to another sequence"
    if facts.alone or (facts.by_position and facts.q_len < facts.kv_len):  # rolling would copy all keys for a few queries
        return None
    if facts.device != "cpu":
        return "one call serves all rows of a batch on this device"
    if facts.trims and not facts.call.dropout and _no_mask(facts) is None:
        return "the band engine cuts padding off every row by itself"
    return None if facts.q_len * facts.kv_len > DENSE_CELLS else "one call with a mask costs less for so few pairs"


def _not_packed(facts: Facts) -> str | None:
    if in_graph():
        return "a graph does not know where sequences start"
    if facts.alone or facts.together or facts.q_len < facts.kv_len:
        return "every document is to be run alone, or the queries are not those of the keys"
    if facts.call.batch is not None and any(one.holes for one in facts.call.batch.sequences):
        return "there is padding between the tokens of a document"
    return _not_on("cpu", facts) or no_fused_kernels()


def _no_mask(facts: Facts) -> str | None:
    batch = facts.call.batch
    return "its positions count from each row's first token" if facts.by_position and batch is not None and batch.padded_left else None


ROWS: tuple[Path, ...] = (("split", _no_split), ("masked", _no_mask), ("rolled", _last))
PATHS: dict[str, tuple[Path, ...]] = {
    "rows": ROWS,
    "packed rows": (("packed", _not_packed), *ROWS),
    "pairs": ((DENSE, _not_covered), (DENSE_MASKED, _many_pairs), ("sparse", _last)),
    "selected": ((DENSE, _not_covered), ("selected", _last)),
    "low-rank": ((DENSE, _not_covered), ("low-rank", _last)),
    "band": (
        (DENSE, _band_leaves_keys_out),
        (DENSE_MASKED, _band_is_short),
        ("cpu-band", lambda facts: _no_cpu_kernel(facts, takes_bias=True)),
        ("flex", _no_flex),
        ("blockwise", _last),
    ),
    "tiles": (
        ("cpu-gathered", _no_cpu_tiles),
        ("flex-gathered", _no_flex_tiles),
        ("plain-gathered", _last),
    ),
    "chosen blocks": (("cpu-blocks", _no_cpu_tiles), ("tiles", _last)),
    "sorted chunks": (("cpu-chunks", _no_cpu_tiles), ("tiles", _last)),
    "linear": (("linear-fla", lambda facts: _no_fla(facts, (torch.float32,))), ("linear-chunks", _last)),
    "delta": (("delta-fla", lambda facts: _no_fla(facts, (torch.bfloat16, torch.float16))), ("delta-chunks", _last)),
}
"""By what a mechanism or engine asks for: the paths, the first choice first."""
TRIED = ("flex", "flex-gathered")
"""Paths of which only a try can say whether this machine has their kernel."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """One answer: which path ran, and why those before it did not."""

    path: str
    refused: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.path + "".join(f"; no {name}: {reason}" for name, reason in self.refused)


def fastest_path(kind: str, facts: Facts) -> str:
    """The path that :func:`choose` would choose, without telling anybody."""
    return _first(kind, facts)[0]


def choose(kind: str, facts: Facts) -> str:
    """The path that runs; for one of :data:`TRIED`, :func:`attempt` says whether it does.

    Args:
        kind: a key of :data:`PATHS`.
    """
    path, refused = _first(kind, facts)
    if path not in TRIED:
        _report(path, refused)
    return path


def attempt(kind: str, facts: Facts, run: Callable[..., Tensor], *arguments: Any) -> tuple[Tensor | None, str]:
    """The output of ``run(*arguments)``, which is the chosen path, and that path; or ``None`` and the path to run in its place."""
    out, (path, refused) = None, _first(kind, facts)
    try:
        out = run(*arguments)
    except NoKernel as error:
        path, refused = _first(kind, dataclasses.replace(facts, failed=path), str(error))
    _report(path, refused)
    return out, path


def _first(kind: str, facts: Facts, failure: str = "") -> tuple[str, list[tuple[str, str]]]:
    """The first path without a reason against it, and the reasons against those before; ``failure`` is that of the path that failed."""
    refused: list[tuple[str, str]] = []
    for name, reason_of in PATHS[kind]:
        reason = failure if name == facts.failed else reason_of(facts)
        if reason is None:
            return name, refused
        refused.append((name, reason))
    raise AssertionError(f"the last path of {kind!r} takes everything")


def _report(path: str, refused: Sequence[tuple[str, str]]) -> None:
    if LISTENERS and not in_graph():
        tell(Choice(path, tuple(refused)))


def choose_pairs(q: Any, k: Any, call: AttentionCall, covered: bool = False, tokens: bool = False) -> str:
    """How a mechanism that compares some pairs runs: as full attention, with a mask over all pairs, or sparsely."""
    return choose("pairs", Facts(q.device.type, q.shape[2], k.shape[2], call, covered=covered, tokens=tokens))


def choose_covered(kind: str, q: Any, k: Any, call: AttentionCall, covered: bool) -> str:
    """``"dense"`` where a mechanism of ``kind`` sees every pair, otherwise its own path."""
    return choose(kind, Facts(q.device.type, q.shape[2], k.shape[2], call, covered=covered))


Listener = Callable[[Any, Choice], None]
"""``listener(mechanism, choice)``."""
LISTENERS: list[Listener] = []
"""Those of every thread; asked first, so that paths cost nothing to watch while nobody does."""
_everywhere: list[Listener] = []
_listening: ContextVar[tuple[Listener, ...]] = ContextVar("listening", default=())
_running: ContextVar[Any] = ContextVar("running", default=None)


def tell(choice: Choice) -> None:
    """Tell the listeners of this thread what ran in the innermost mechanism."""
    for listener in (*_everywhere, *_listening.get()):
        listener(_running.get(), choice)


@contextlib.contextmanager
def running(mechanism: Any) -> Iterator[None]:
    """Mark ``mechanism`` as the one whose paths are chosen in this thread."""
    before = _running.set(mechanism)
    try:
        yield
    finally:
        _running.reset(before)


@contextlib.contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Call ``listener(mechanism, choice)`` whenever a path is chosen in this thread."""
    LISTENERS.append(listener)
    before = _listening.set((*_listening.get(), listener))
    try:
        yield
    finally:
        _listening.reset(before)
        LISTENERS.remove(listener)


def _known(condition: Any) -> bool:
    """Whether a comparison of lengths holds for all lengths that a graph is exported for."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # experimental, and needed for exporting only

    return statically_known_true(condition)


def log_paths() -> None:
    """Log every distinct answer once, as ``HF_LONGATTN_LOG=paths`` does."""
    from transformers.utils import logging as transformers_logging  # whose handlers print it; imported by those who ask only

    logger, logged = transformers_logging.get_logger(LOGGER), set[str]()

    def log(mechanism: Any, choice: Choice) -> None:
        line = f"{getattr(mechanism, 'name', 'attention')}: {choice}"
        if line not in logged:
            logged.add(line)
            logger.info(line)

    logger.setLevel(logging.INFO)
    LISTENERS.append(log)
    _everywhere.append(log)


if "paths" in os.environ.get(VARIABLE, "").split(","):
    log_paths()
