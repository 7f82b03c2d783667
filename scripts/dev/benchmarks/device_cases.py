"""What ``scripts.dev.benchmarks.gpu_check`` checks and times, the most valuable first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from hf_longattn import list_mechanisms, mechanism_info
from hf_longattn.mechanisms.common.registry import mechanism_class

Task = Literal["check", "compiled", "prepare", "time", "model", "decode"]
GRIDS = {
    40: (5, 8),
    130: (10, 13),
    300: (15, 20),
    2048: (32, 64),
    192: (12, 16),
    96: (8, 12),
    4096: (64, 64),
    16384: (128, 128),
}
"""The rows and columns of as many tokens on a grid."""
QUICK_LENGTHS = {77: 33, 300: 40, 2048: 130, 4096: 96, 16384: 192, 65536: 192}
"""The lengths of a full run, and those of ``--quick``."""


@dataclasses.dataclass(frozen=True)
class DeviceCase:
    """One call of attention; with the default options of its mechanism where none are given.

    task: ``check`` against the float64 definition; ``compiled``, a language model by ``torch.compile`` against itself
        without; ``prepare``, a pass that leaves the kernels of a timing on the disk; ``time`` against PyTorch's
        kernels; ``model``, training steps of LongBert and of BERT; or ``decode``, a language model with the mechanism.
    padding: ``none``, ``left``, ``right``, ``holes``, or ``documents``: two packed into each row.
    tokens: leading tokens that are global; if negative, so many spread over the row.
    queries: the last ones of the sequence; 0 is all.
    term: what changes the scores: ``none``, ``softcap`` or ``bias``.
    mode: ``gradients``, ``no_grad`` or ``inference``; of a ``model`` also ``compiled``.
    grid: whether the tokens lie on a grid, see :data:`GRIDS`.
    cache: of ``decode``: ``dynamic``, or ``static``, which transformers compiles on a GPU.
    path: the one of :mod:`hf_longattn.engines.dispatch` that is to run on a GPU, also where another would compute the
        same.
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
            "holes of padding": self.padding == "holes",
            "packed documents": self.padding == "documents",
            f"{abs(self.tokens)} global tokens" + " anywhere" * (self.tokens < 0): self.tokens,
            f"dropout {self.dropout}": self.dropout,
            self.term: self.term != "none",
            "forward only": self.mode in ("no_grad", "inference"),
            "compiled": self.mode == "compiled",
        }
        return ", ".join(
            [word for word, holds in said.items() if holds]
            + [f"{name}={value}" for name, value in self.options.items()]
        )

    def record(self) -> dict[str, Any]:
        """What a stored result says of its case."""
        names = ("mechanism", "task", "length", "causal", "dtype", "cache")
        return {"case": str(self), **{name: getattr(self, name) for name in names}, "setting": self.setting}


WINDOW = DeviceCase("window", options={"window": 128}, length=2048)
LONGFORMER = WINDOW.at(mechanism="longformer", tokens=3, path="flex")
TIMED = DeviceCase("window", "time", batch=1, heads=12, kv_heads=12, padding="none")
GLOBALS = TIMED.at(mechanism="longformer", tokens=3)


def forms(name: str) -> list[bool]:
    """Which of both ways and causal a mechanism has."""
    causal = mechanism_info(name).causal
    return [False, True] if causal == "both" else [bool(causal)]


def first_checks() -> Iterator[DeviceCase]:
    """The calls that a converted model makes: bands with global tokens, padding, documents and dropout, and the
    patterns of BigBird."""
    for case in (LONGFORMER, LONGFORMER.at(length=300)):
        yield from (case.at(padding=padding) for padding in ("none", "right", "left", "holes", "documents"))
    yield from (LONGFORMER.at(tokens=tokens) for tokens in (0, 40, -5))
    yield from (
        LONGFORMER.at(causal=True),
        LONGFORMER.at(kv_heads=4),
        LONGFORMER.at(dtype="fp32"),
        LONGFORMER.at(dtype="fp16"),
    )
    front = LONGFORMER.at(dropout=0.1, length=300, path="flash")
    yield from (front.at(padding=padding) for padding in ("none", "right", "left"))
    yield from (front.at(tokens=-5), front.at(causal=True), front.at(mechanism="window", tokens=0))
    yield from (WINDOW.at(causal=causal) for causal in (True, False))
    bigbird = DeviceCase("bigbird", length=2048, path="flex")
    yield from (bigbird.at(padding=padding) for padding in ("none", "right", "left", "holes"))
    yield from (bigbird.at(tokens=3), bigbird.at(causal=True), bigbird.at(dropout=0.1, length=300, path=""))
    yield from (WINDOW.at(options={**WINDOW.options, "num_sinks": 4}), WINDOW.at(padding="holes"))


def more_checks() -> Iterator[DeviceCase]:
    """Windows in every other setting, then what shares their kernels."""
    yield from (WINDOW.at(length=300, causal=causal) for causal in (True, False))
    yield from (WINDOW.at(padding=padding) for padding in ("left", "documents", "none"))
    yield from (WINDOW.at(kv_heads=4), WINDOW.at(batch=1, padding="none"))
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
        on_grid = DeviceCase(
            name, options=dict(mechanism_class(name).about.sample), length=300, padding="none", grid=True
        )
        yield from (on_grid, on_grid.at(length=2048), on_grid.at(dtype="fp32"), on_grid.at(term="bias"))
    yield DeviceCase("window", task="decode", causal=True, length=2048, dtype="fp32")
    yield from (
        DeviceCase(name, "decode", causal=True, length=2048, dtype="fp32", cache="static")
        for name in ("window", "longformer", "linear")
    )


def kernel_checks() -> Iterator[DeviceCase]:
    """Mechanisms whose kernels depend on values, each in the settings that change what it is given."""
    linear = DeviceCase("linear", causal=True, length=2048)
    yield from (linear.at(dtype=dtype) for dtype in ("bf16", "fp32"))
    yield from (linear.at(kv_heads=4, padding="none"), linear.at(padding="documents"))
    yield linear.at(queries=1000)  # after a state that has gradients
    yield from (linear.at(mechanism=name) for name in ("performer", "taylor"))  # features as logarithms, and many
    hybrid = linear.at(mechanism="hybrid")
    yield from (
        hybrid,
        hybrid.at(causal=False, kv_heads=4),
        hybrid.at(dtype="fp32", padding="none"),
        hybrid.at(padding="documents"),
    )
    for causal in (True, False):
        yield DeviceCase("block_top_k", length=2048, causal=causal, padding="none", path="flex")
    for name in ("lsh", "routing"):
        rounds = DeviceCase(name, length=2048, causal=True)
        yield from (rounds, rounds.at(causal=False), rounds.at(padding="documents"))
    for name in ("strided", "union"):
        yield DeviceCase(name, length=2048, causal=True, padding="documents")
    yield DeviceCase("strided", "compiled", length=2048, causal=True, dtype="fp32", padding="none")


def first_timings() -> Iterator[DeviceCase]:
    """A layer with windows and what is built on them, at two lengths."""
    padded = {"batch": 2, "padding": "right"}
    most = [
        GLOBALS,
        TIMED,
        GLOBALS.at(dropout=0.1),
        GLOBALS.at(**padded),
        TIMED.at(mechanism="bigbird"),
        TIMED.at(**padded),
    ]
    less = [
        GLOBALS.at(padding="documents", tokens=0),
        TIMED.at(padding="documents"),
        GLOBALS.at(tokens=-40),
        TIMED.at(dropout=0.1),
    ]
    less += [
        GLOBALS.at(dropout=0.1, **padded),
        TIMED.at(causal=True),
        GLOBALS.at(mode="no_grad"),
        TIMED.at(mode="no_grad"),
    ]
    for cases in (most, less):
        yield from (case.at(length=length) for length in (4096, 16384) for case in cases)


def models() -> Iterator[DeviceCase]:
    """Training steps of whole models."""
    model = TIMED.at(task="model", dropout=0.1)
    for name in ("longformer", "window"):
        yield from (model.at(mechanism=name, length=length) for length in (4096, 512, 16384, 1024))


def other_timings() -> Iterator[DeviceCase]:
    """Models in ``torch.compile``, settings that are met less often, and every mechanism."""
    compiled = GLOBALS.at(task="model", length=4096, mode="compiled", tokens=0)
    yield from (compiled, compiled.at(dropout=0.1))
    for length in (4096, 16384):
        yield from (TIMED.at(length=length, kv_heads=4), TIMED.at(length=length, term="softcap"))
    image = TIMED.at(mechanism="window2d", grid=True)
    yield from (image.at(length=4096), image.at(length=16384))
    for length in (4096, 16384):
        for name in list_mechanisms(grid=False):
            if name not in ("window", "longformer", "bigbird"):
                for causal in forms(name):
                    yield TIMED.at(mechanism=name, length=length, causal=causal)


def other_checks() -> Iterator[DeviceCase]:
    """Every mechanism in every form and dtype."""
    yield from more_checks()
    yield DeviceCase("longformer", "compiled", length=2048, causal=True, dtype="fp32", padding="none")
    for dtype, length in (("bf16", 300), ("bf16", 2048), ("fp32", 300), ("fp16", 2048), ("fp32", 2048)):
        for name in list_mechanisms(grid=False):
            yield from (DeviceCase(name, length=length, causal=causal, dtype=dtype) for causal in forms(name))
    for name in list_mechanisms(grid=False):
        yield DeviceCase(name, length=2048, causal=forms(name)[-1], padding="documents")


def stages(quick: bool) -> list[tuple[bool, list[DeviceCase]]]:
    """The stages in their order: whether the cases run alone on the device, because they are timed, and the cases."""
    every = [
        (False, first_checks()),
        (True, first_timings()),
        (True, models()),
        (False, other_checks()),
        (True, other_timings()),
    ]
    known: set[str] = set()
    listed = []
    for number, (alone, cases) in enumerate(every):
        cases = _quick(cases, 2 if number < 3 else 1) if quick else cases
        new = {str(case): case for case in cases if str(case) not in known}
        known |= new.keys()
        listed.append((alone, list(new.values())))
    return listed


def preparations(cases: Sequence[DeviceCase]) -> list[DeviceCase]:
    """What compiles the kernels of the timings among the ``cases``, each once for all lengths, which kernels do not
    depend on."""
    first: dict[str, DeviceCase] = {}
    for case in cases:
        if case.task == "time":
            first.setdefault(str(case.at(length=0)), case.at(task="prepare"))
    return list(first.values())


def _quick(cases: Iterator[DeviceCase], lengths: int) -> Iterator[DeviceCase]:
    """The cases at short lengths, of each task's first ``lengths`` only, without half precision of two kinds."""
    known: dict[str, set[int]] = {}
    for case in cases:
        seen = known.setdefault(case.task, set())
        if case.dtype != "fp16" and (case.length in seen or len(seen) < lengths or case.length < 300):
            seen.add(case.length)
            length, kv_heads, queries = (
                QUICK_LENGTHS.get(case.length, case.length),
                min(case.kv_heads, 4),
                min(case.queries, 20),
            )
            # so few tokens run others
            yield case.at(length=length, heads=4, kv_heads=kv_heads, queries=queries, path="")
