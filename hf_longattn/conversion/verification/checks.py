"""All checks of a written result, in the order in which they cost time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import CheckpointError, LongAttentionError, in_a_line
from ..planning.plan import ConversionPlan
from ..planning.result import ResultPlan
from ..report import FAILED, PASSED, SKIPPED, Check
from ..running.memory import Running, choose_running
from ..sources.opening import open_source
from ..text import VerificationText, load_tokenizer
from .generic import check_generic
from .gradients import why_no_gradients
from .loss import check_loss
from .outputs import check_outputs, choose_lengths
from .tensors import check_tensors

__all__ = ["check_tokenizer", "run_steps", "verify"]


def verify(
    plan: ConversionPlan,
    result: Path,
    text: VerificationText,
    *,
    given_text: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Check]:
    """Check the written folder `result` against the source of `plan`.

    Source and result run one after the other, whole in memory or with their weights in their files, see `choose_running`.

    Args:
        plan: of the conversion.
        result: the written folder.
        text: what to run the models on.
        given_text: the text is the user's own, so that the losses are worth more time.
        progress: called as progress("verify", done, total).
    """
    running = _running(plan)
    with running.scratch(result) as scratch:
        steps: list[Callable[[], list[Check]]] = [
            lambda: check_tensors(plan, open_source(result)),
            lambda: check_tokenizer(plan, result, text),
            lambda: [running.check()],
        ]
        if not running.why_not and plan.generic:
            steps.append(lambda: check_generic(plan, result, scratch))
        elif not running.why_not:
            lengths = choose_lengths(plan, from_files=running.from_files)
            steps.append(lambda: check_outputs(plan, result, text, lengths, scratch))
            steps.append(lambda: check_loss(plan, result, text, lengths, scratch, given_text=given_text))
        return run_steps(steps, progress)


def _running(plan: ConversionPlan) -> Running:
    """Gradients need whole models."""
    gradients = plan.architecture.adopter is not None and why_no_gradients(plan) is None
    return choose_running(plan.parameters, plan.largest_tensor, whole=gradients)


def run_steps(steps: Sequence[Callable[[], list[Check]]], progress: Callable[[str, int, int], None] | None = None) -> list[Check]:
    """The checks of all steps, up to the first that fails.

    Raises:
        CheckpointError: a model does not run.
    """
    checks: list[Check] = []
    for done, step in enumerate(steps):
        if progress is not None:
            progress("verify", done, len(steps))
        try:
            checks += step()
        except LongAttentionError:
            raise
        except Exception as error:  # models raise what they happen to raise
            why = f"{type(error).__name__}: {in_a_line(error)}"
            raise CheckpointError(f"Verification failed, so nothing was kept: source or result does not run ({why}).") from error
        if any(check.status == FAILED for check in checks):
            return checks
    if progress is not None:
        progress("verify", len(steps), len(steps))
    return checks


def check_tokenizer(plan: ResultPlan, result: Path, text: VerificationText) -> list[Check]:
    """The written tokenizer gives the source's ids, and its limit is the result's length."""
    if text.source_tokenizer is None:
        return [Check("tokenizer", SKIPPED, "the source has no tokenizer")]
    try:
        written = load_tokenizer(result)
    except CheckpointError as error:
        return [Check("tokenizer", FAILED, str(error).rstrip("."))]
    same = written is not None and written(text.text[:20_000])["input_ids"] == text.source_tokenizer(text.text[:20_000])["input_ids"]
    limit = getattr(written, "model_max_length", None)
    good = same and (limit == plan.new_length or not plan.new_length)
    detail = f"{'same' if same else 'other'} token ids as the source's, model_max_length {limit}"
    return [Check("tokenizer", PASSED if good else FAILED, detail)]
