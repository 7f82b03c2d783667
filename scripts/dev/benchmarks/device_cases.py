"""What ``scripts.dev.benchmarks.gpu_check`` checks and times, the most valuable first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from hf_longattn import list_mechanisms, mechanism_info
from hf_longattn.mechanisms.common.registry import mechanism_class

Task = Literal["check", "compiled", "prepare", "time", "decode"]
GRIDS = {40: (5, 8), 130: (10, 13), 300: (15, 20), 2048: (32, 64), 192: (12, 16), 96: (8, 12), 4096: (64, 64), 16384: (128, 128)}
"""The rows and columns of as many tokens on a grid."""
QUICK_LENGTHS = {77: 33, 300: 40, 2048: 130, 4096: 96, 16384: 192, 65536: 192}
"""The lengths of a full run, and those of ``--quick``."""


@dataclasses.dataclass(frozen=True)
class DeviceCase:
    """One call of attention; with the default options of its mechanism where none are given.

    task: ``check`` against the float64 definition; ``compiled``, a language model by ``torch.compile`` against itself without;
        ``prepare``, a pass that leaves the kernels of a timing on the disk; ``time`` against PyTorch's kernels; or ``decode``, a
        language model with the mechanism.
    padding: ``none``, ``left``, ``right``, or ``documents``: two packed into each row.
    tokens: leading tokens that are global.
    queries: the last ones of the sequence; 0 is all.
    term: what changes the scores: ``none``, ``softcap`` or ``bias``.
    mode: ``gradients``, ``no_grad`` or ``inference``.
    grid: whether the tokens lie on a grid, see :data:`GRIDS`.
    cache: of ``decode``: ``dynamic``, or ``static``, which transformers compiles on a GPU.
    path: the one of :mod:`hf_longattn.engines.dispatch` that is to run on a GPU, also where another would compute the same.
    """

    mechanism: str
    task: Task = "check"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    length: int = 300
    causal: bool = False
    dtype: str = "bf16"
    batch: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    padding: str = "right"
    tokens: int = 0
    queries: int = 0
    dropout: float = 0.0
    term: str = "none"
    mode: str = "gradients"
    grid: bool = False
    cache: str = "dynamic"
    path: str = ""

    def at(self, **changes: Any) -> DeviceCase:
        """The same case with some fields changed."""
        return dataclasses.replace(self, **changes)

    def __str__(self) -> str:
        """What deviates from the defaults."""
        parts = [self.task, self.mechanism, "causal" if self.causal else "both ways", self.dtype, str(self.length)]
        parts += [f"{name}={value}" for name, value in self.options.items()]
        for field in dataclasses.fields(self)[6:]:
            value = getattr(self, field.name)
            if value != field.default and field.name != "path":  # which is no part of what is computed
                parts.append(f"{field.name}={value}")
        return " ".join(parts)

    @property
    def setting(self) -> str:
        """What deviates from a plain timing, in words, but for the length."""
        said = {
            "causal": self.causal,
            "grouped heads": self.heads != self.kv_heads,
            f"padding on the {self.padding}": self.padding in ("left", "right"),
            "packed documents": self.padding == "documents",
            f"{self.tokens} global tokens": self.tokens,
            f"dropout {self.dropout}": self.dropout,
            self.term: self.term != "none",
            "forward only": self.mode != "gradients",
        }
        return ", ".join([word for word, holds in said.items() if holds] + [f"{name}={value}" for name, value in self.options.items()])

    def record(self) -> dict[str, Any]:
        """What a stored result says of its case."""
        names = ("mechanism", "task", "length", "causal", "dtype", "cache")
        return {"case": str(self), **{name: getattr(self, name) for name in names}, "setting": self.setting}


WINDOW = DeviceCase("window", options={"window": 128}, length=2048)


def forms(name: str) -> list[bool]:
    """Which of both ways and causal a mechanism has."""
    causal = mechanism_info(name).causal
    return [False, True] if causal == "both" else [bool(causal)]


def first_checks() -> Iterator[DeviceCase]:
    """What most models run: windows in every setting, then the patterns that share their kernels."""
    for length in (300, 2048):
        for causal in (True, False):
            yield WINDOW.at(length=length, causal=causal)
    longformer = WINDOW.at(mechanism="longformer", tokens=3)
    yield from (longformer, longformer.at(causal=True), longformer.at(padding="left"))
    yield from (WINDOW.at(padding=padding) for padding in ("left", "documents", "none"))
    yield from (WINDOW.at(dropout=0.1), WINDOW.at(kv_heads=4), WINDOW.at(batch=1, padding="none"))
    yield from (WINDOW.at(mode=mode) for mode in ("no_grad", "inference"))
    for term in ("softcap", "bias"):
        yield from (WINDOW.at(term=term), WINDOW.at(term=term, causal=True))
    for relative in ("alibi", "t5_buckets", "shaw", "transformer_xl"):
        yield WINDOW.at(causal=True, options={"window": 128, "relative": relative})
    yield from (WINDOW.at(head_dim=head_dim) for head_dim in (8, 16, 80, 96, 128, 256))
    yield WINDOW.at(head_dim=128, dtype="fp32")
    yield from (WINDOW.at(queries=queries, causal=True, mode="no_grad") for queries in (1, 40, 300))
    yield from (WINDOW.at(dtype=dtype, causal=causal) for dtype in ("fp32", "fp16") for causal in (True, False))
    yield from (WINDOW.at(length=length) for length in (1, 77, 4096))
    yield from kernel_checks()
    for name in list_mechanisms(grid=True):  # images
        on_grid = DeviceCase(name, options=dict(mechanism_class(name).sample), length=300, padding="none", grid=True)
        yield from (on_grid, on_grid.at(length=2048), on_grid.at(dtype="fp32"), on_grid.at(term="bias"))
    yield DeviceCase("window", task="decode", causal=True, length=2048, dtype="fp32")
    yield from (
        DeviceCase(name, "decode", causal=True, length=2048, dtype="fp32", cache="static") for name in ("window", "longformer", "linear")
    )


def kernel_checks() -> Iterator[DeviceCase]:
    """Mechanisms whose kernels depend on values, each in the settings that change what it is given."""
    linear = DeviceCase("linear", causal=True, length=2048)
    yield from (linear.at(dtype=dtype) for dtype in ("bf16", "fp32"))
    yield from (linear.at(kv_heads=4, padding="none"), linear.at(padding="documents"))
    yield linear.at(queries=1000)  # after a state that has gradients
    yield from (linear.at(mechanism=name) for name in ("performer", "taylor"))  # features as logarithms, and many
    hybrid = linear.at(mechanism="hybrid")
    yield from (hybrid, hybrid.at(causal=False, kv_heads=4), hybrid.at(dtype="fp32", padding="none"), hybrid.at(padding="documents"))
    for causal in (True, False):
        yield DeviceCase("block_top_k", length=2048, causal=causal, padding="none", path="flex-blocks")
    for name in ("lsh", "routing"):
        rounds = DeviceCase(name, length=2048, causal=True, path="flex-gathered")
        yield from (rounds, rounds.at(causal=False, path=""), rounds.at(padding="documents", path=""))
    for name in ("strided", "union"):
        yield DeviceCase(name, length=2048, causal=True, padding="documents", path="split")
    yield DeviceCase("strided", "compiled", length=2048, causal=True, dtype="fp32", padding="none")


def first_timings() -> Iterator[DeviceCase]:
    """Windows and what is built on them, at two lengths, so that the growth of memory shows."""
    base = DeviceCase("window", task="time", batch=1, heads=12, kv_heads=12, padding="none")
    for length in (4096, 16384):
        at = base.at(length=length)
        yield from (at, at.at(causal=True), at.at(mode="no_grad"))
        yield from (at.at(mechanism="longformer", tokens=3), at.at(dropout=0.1), at.at(kv_heads=4), at.at(batch=2, padding="right"))
        yield from (at.at(padding="documents"), at.at(mechanism="bigbird"), at.at(term="softcap"))
    yield base.at(mode="no_grad", length=65536)
    for cache in ("dynamic", "static"):
        yield from (DeviceCase(name, task="decode", causal=True, length=16384, cache=cache) for name in ("full", "window", "linear"))
    image = base.at(mechanism="window2d", length=4096, grid=True)
    yield from (image, image.at(length=16384))


def other_checks() -> Iterator[DeviceCase]:
    """Every mechanism in every form and dtype."""
    for dtype, length in (("bf16", 300), ("bf16", 2048), ("fp32", 300), ("fp16", 2048), ("fp32", 2048)):
        for name in list_mechanisms(grid=False):
            yield from (DeviceCase(name, length=length, causal=causal, dtype=dtype) for causal in forms(name))
    for name in list_mechanisms(grid=False):
        yield DeviceCase(name, length=2048, causal=forms(name)[-1], padding="documents")


def other_timings() -> Iterator[DeviceCase]:
    """Every mechanism, forward and backward."""
    for length in (4096, 16384):
        for name in list_mechanisms(grid=False):
            if name not in ("window", "longformer", "bigbird"):
                for causal in forms(name):
                    yield DeviceCase(name, "time", length=length, causal=causal, batch=1, heads=12, kv_heads=12, padding="none")


def stages(quick: bool) -> list[tuple[bool, list[DeviceCase]]]:
    """The stages in their order: whether the cases run alone on the device, because they are timed, and the cases."""
    every = [(False, first_checks()), (True, first_timings()), (False, other_checks()), (True, other_timings())]
    if quick:
        return [(alone, _quick(cases, 2 if number < 2 else 1)) for number, (alone, cases) in enumerate(every)]
    known: set[str] = set()
    listed = []
    for alone, cases in every:
        new = {str(case): case for case in cases if str(case) not in known}
        known |= new.keys()
        listed.append((alone, list(new.values())))
    return listed


def preparations(cases: Sequence[DeviceCase]) -> list[DeviceCase]:
    """What compiles the kernels of the timings among the ``cases``, each once for all lengths, which kernels do not depend on."""
    first: dict[str, DeviceCase] = {}
    for case in cases:
        if case.task == "time":
            first.setdefault(str(case.at(length=0)), case.at(task="prepare"))
    return list(first.values())


def _quick(cases: Iterator[DeviceCase], lengths: int) -> list[DeviceCase]:
    """The cases at short lengths, of each task's first ``lengths`` only, without half precision of two kinds."""
    kept: dict[str, DeviceCase] = {}
    known: dict[str, set[int]] = {}
    for case in cases:
        seen = known.setdefault(case.task, set())
        if case.dtype != "fp16" and (case.length in seen or len(seen) < lengths or case.length < 300):
            seen.add(case.length)
            length, kv_heads, queries = QUICK_LENGTHS.get(case.length, case.length), min(case.kv_heads, 4), min(case.queries, 20)
            short = case.at(length=length, heads=4, kv_heads=kv_heads, queries=queries, path="")  # so few tokens run others
            kept.setdefault(str(short), short)
    return list(kept.values())
