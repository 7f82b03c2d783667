"""Whether a result can be used as it is. What its model is for decides what is measured, and the measurement labels all other checks.

A language model predicts tokens, so its loss decides (:mod:`.verify_loss`). A sentence encoder embeds texts, so its embeddings decide
(:mod:`.verify_embeddings`). Other heads need labels to be measured: their results need training if outputs or positions differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from .plan import ConversionPlan
from .report import MEASURED, NEEDS_TRAINING, POSITIONS, READY, VERDICT, Check

TRAIN = "train before use"


class Measurement(Protocol):
    """Measures source and result, each while it is loaded for the comparison of outputs."""

    skipped: list[Check] | None
    """The checks in place of a measurement, which say why there is none; ``None`` if it is measured."""

    def measure_source(self, source: Any) -> None:
        """Measure the source, whose weights must not be rounded."""

    def check(self, result: Any, states: Mapping[str, Tensor]) -> list[Check]:
        """Measure the result, and compare; :attr:`skipped` without a measurement.

        states: the result's last hidden states ``(1, N, D)`` of the text at the new length, by the name of the output.
        """


def decision(name: str, ready: bool, detail: str, values: dict[str, Any]) -> Check:
    """The check of a measurement that decides."""
    verdict = READY if ready else TRAIN
    return Check(name, MEASURED if ready else NEEDS_TRAINING, f"{detail}; {verdict}", {**values, VERDICT: verdict})


def labelled(plan: ConversionPlan, checks: Sequence[Check]) -> list[Check]:
    """The checks, with what warns of the plan's positions, labelled by the measurement that decides.

    Without one, outputs that differ from the source's and positions that were not trained need training.
    """
    deciding = next((check for check in checks if VERDICT in check.values), None)
    label = NEEDS_TRAINING if deciding is None else deciding.status
    sentences = [str(warning).rstrip(".") for warning in plan.warnings]
    if deciding is not None and label == MEASURED:
        sentences = [f"{warning.problem}, but the result is {READY} ({deciding.name})" for warning in plan.warnings]
    warned = [Check(POSITIONS, label, sentence) for sentence in sentences]
    return [*(replace(check, status=label) if check.status == NEEDS_TRAINING else check for check in checks), *warned]
