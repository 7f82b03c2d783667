"""The report of a conversion: settings, plan, and checks of the written files."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..hub import next_step
from ..reports import FAILED, MEASURED, NEEDS_TRAINING, SKIPPED, TOLERANCE, Check

POSITIONS = "positions at the new length"
"""Name of the checks that repeat the plan's warnings about positions."""
SHORT_TEXTS = "equal for short texts"
"""Name of the check of texts that get full attention by the option ``exact_length``."""
VERDICT, READY, TRAIN, UNKNOWN = "verdict", "ready to use", "train before use", "cannot tell"
"""The key in the values of the check that decides whether the result needs training, and its three values."""
WOULD_TELL = "would_tell"
"""The key in the values of a check that cannot tell: what would, as a noun phrase."""

StageProgress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`: "write" counts bytes, "verify" counts checks."""


def decision(name: str, ready: bool, detail: str, values: dict[str, Any]) -> Check:
    """The check that decides whether the result needs training.

    The model's purpose is measured: the loss of a language model (:mod:`.check_loss`), the embeddings of a sentence encoder
    (:mod:`.check_embeddings`). Other heads cannot be measured without labels (:func:`undecided`).

    Args:
        values: for the report. Their "tokens" say on how many tokens the result was measured.
    """
    verdict = READY if ready else TRAIN
    return Check(name, MEASURED if ready else NEEDS_TRAINING, f"{detail}; {verdict}", {**values, VERDICT: verdict})


def undecided(name: str, reason: str, would_tell: str, values: dict[str, Any] | None = None) -> Check:
    """The check that cannot tell whether the result needs training.

    Args:
        reason: a clause. would_tell: the input or measurement that would, as a noun phrase.
        values: what was measured; ``None`` if nothing was.
    """
    detail = f"{reason}, so this cannot tell whether the result is {READY}; {would_tell} would"
    return Check(name, SKIPPED if values is None else MEASURED, detail, {**(values or {}), VERDICT: UNKNOWN, WOULD_TELL: would_tell})


def verdict_check(checks: Iterable[Check]) -> Check | None:
    """The check that decides whether the result needs training, or that cannot tell; ``None`` if there is none."""
    return next((check for check in checks if VERDICT in check.values), None)


def train_command(task: str, *arguments: str, output: str = "trained") -> dict[str, Any]:
    """The ``next_step`` of a report: the `longattn train` command for the result. "{model}" stands for the model's name."""
    return {"command": ["longattn", "train", task, "--model", "{model}", *arguments, "--output", f"{{model}}-{output}"]}


@dataclass(frozen=True)
class ConversionReport:
    """A finished conversion.

    Attributes:
        destination: the folder that was written.
        config: settings that are not the default.
        plan: the plan, as :meth:`ConversionPlan.to_dict` gives it.
        checks: what was checked, each with a status and a sentence.
        text: description of the inputs on which the models were run.
        files: names of the files that were written.
        bytes_written: total size of the written tensors.
        seconds: the time of each stage.
        versions: of this package, Python and the libraries.
        next_step: unless the result is known to need no training, how to train it, with "{model}" for the model's name; else ``None``.
    """

    destination: Path
    config: dict[str, Any]
    plan: dict[str, Any]
    checks: tuple[Check, ...]
    text: str
    files: tuple[str, ...]
    bytes_written: int
    seconds: dict[str, float]
    versions: dict[str, str]
    next_step: dict[str, Any] | None

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.status != FAILED for check in self.checks)

    @property
    def train_command(self) -> str | None:
        """The command that trains the result, or advice; ``None`` if it is known to need no training."""
        return None if self.next_step is None else next_step(self.next_step, str(self.destination))

    @property
    def verdict(self) -> str | None:
        """Whether the result needs training: "ready to use", "train before use" or "cannot tell". ``None`` without a check of that."""
        return None if (check := verdict_check(self.checks)) is None else check.values[VERDICT]

    @property
    def needs_training(self) -> bool:
        return any(check.status == NEEDS_TRAINING for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, as in conversion_report.json."""
        return {
            "passed": self.passed,
            "verified": bool(self.checks),
            "verdict": self.verdict,
            "needs_training": self.needs_training,
            "next_step": self.next_step,
            "train_command": self.train_command,
            "config": self.config,
            "plan": self.plan,
            "text": self.text,
            "tolerance": TOLERANCE,
            "checks": [check.to_dict() for check in self.checks],
            "files": list(self.files),
            "bytes_written": self.bytes_written,
            "seconds": self.seconds,
            "versions": self.versions,
        }


def versions(*further: str) -> dict[str, str]:
    """Versions of this package, Python, and the installed libraries, with ``further`` libraries added."""
    from .. import __version__

    libraries = {name: version(name) for name in ("transformers", "torch", "safetensors", *further)}
    return {"hf_longattn": __version__, **libraries, "python": platform.python_version()}
