"""Losses of a language model per token, and the change of a loss with its standard error.

This module also has the divergence of two models' predictions, and texts with which models are compared.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..data.tokenization import IGNORED, between
from ..errors import CheckpointError
from ..files import read_text
from ..modeling.losses import Logits, deferred_logits
from .summaries import mean_and_error

TOKENS_AT_ONCE = 256
"""Number of tokens whose loss is computed at a time, because their logits are copied."""
NEGLIGIBLE = 0.01
"""Nats per token. A smaller increase of a loss is ignored."""


@dataclass(frozen=True)
class LossChange:
    """Mean loss of the same tokens before and after a change of the model, in nats per predicted token.

    Attributes:
        before, after: the mean losses.
        change: ``after - before``.
        error: standard error of ``change``; ``None`` for fewer than ten tokens.
        predicted: number of predicted tokens.
    """

    before: float
    after: float
    change: float
    error: float | None
    predicted: int

    @classmethod
    def of(cls, before: Tensor, after: Tensor) -> LossChange | None:
        """Compare the losses ``(N,)`` of the same tokens. A loss is NaN if the token is not predicted.

        ``None`` if no token is predicted in both.
        """
        in_both = ~(before.isnan() | after.isnan())
        if not in_both.any():
            return None
        before, after = before[in_both].double(), after[in_both].double()
        change, error = mean_and_error((after - before).tolist())
        return cls(float(before.mean()), float(after.mean()), change, error, len(before))

    @property
    def worse(self) -> bool:
        """Whether the loss grew by more than :data:`NEGLIGIBLE` and by more than twice the standard error.

        Also true if a loss is not finite.
        """
        if self.error is None:
            return not math.isfinite(self.change)
        return not self.change <= max(NEGLIGIBLE, 2 * self.error)  # true for NaN

    def to_dict(self) -> dict[str, Any]:
        """The values as a dictionary for JSON."""
        return {**asdict(self), "worse": self.worse, "unit": "nats per token"}

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.3f}"
        return (
            f"{self.before:.3f} → {self.after:.3f} nats per token ({self.change:+.3f}{error}, n = {self.predicted:,})"
        )


@torch.no_grad()
def token_losses(model: Any, shown: Tensor, target: Tensor, *, causal: bool) -> Tensor:
    """The loss of each token, ``(B·N,)`` in float32; NaN for tokens that are not predicted.

    A decoder of transformers computes logits only for predicted tokens. If its head is a plain projection, it computes
    them in pieces.

    Args:
        model: a model with a language-modelling head.
        shown: the input of the model, ``(B, N)``, on the model's device.
        target: the token ids to predict, ``(B, N)``, on the CPU, with -100 for tokens that are not predicted.
        causal: whether a token is predicted at the position before it.
    """
    if causal:
        target = F.pad(target[:, 1:], (0, 1), value=IGNORED)
    losses = torch.full(target.shape, float("nan"))
    positions = (target != IGNORED).any(0).nonzero().flatten()  # at which some row predicts a token

    # Logits at these positions
    if causal and "logits_to_keep" in inspect.signature(model.forward).parameters:
        with deferred_logits(model):
            returned = model(input_ids=shown, return_dict=True, logits_to_keep=positions.to(shown.device))
    else:
        returned = model(input_ids=shown, return_dict=True)
    logits = returned.get("logits", returned.get("prediction_logits"))
    target = target[:, positions]

    # Losses
    loss_of = partial(F.cross_entropy, reduction="none", ignore_index=IGNORED)
    if isinstance(logits, Logits):  # not computed yet
        predicted = loss_of(logits.view(-1, logits.shape[-1]).float(), target.flatten().to(shown.device)).cpu()
    else:
        if logits.shape[1] != len(positions):
            logits = logits[:, positions]
        logits = logits.cpu()
        pieces = zip(logits.flatten(0, 1).split(TOKENS_AT_ONCE), target.flatten().split(TOKENS_AT_ONCE), strict=True)
        predicted = torch.cat([loss_of(rows.float(), labels) for rows, labels in pieces])
    losses[:, positions] = predicted.masked_fill(target.flatten() == IGNORED, float("nan")).view(target.shape)
    if causal:  # move each loss from the position before the token to the token
        losses = F.pad(losses[:, :-1], (1, 0), value=float("nan"))
    return losses.flatten()


def in_chunks(
    shown: Tensor, target: Tensor, chunk: int, special: tuple[Sequence[int], Sequence[int]] = ((), ())
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a text ``(1, N)`` as rows ``(N / chunk, chunk)`` for :func:`token_losses`.

    Args:
        shown, target: inputs and targets of the whole text, ``(1, N)``.
        chunk: tokens of a row; N is a multiple of it.
        special: the special tokens before and after a text. They replace the first and last tokens of each row, which
            are not predicted. Without BOS, the loss of a decoder would be too high.
    """
    labels = between(target.reshape(-1, chunk), *([IGNORED] * len(ids) for ids in special))
    return between(shown.reshape(-1, chunk), *special), labels


def with_context(losses: Tensor, chunk: int, *, causal: bool) -> Tensor:
    """Losses ``(N,)`` of a text that was read in chunks, with NaN for tokens that have little context.

    In a causal model, these are the tokens in the first half of a chunk. They would hide that a model fails to use
    long context. If there is only one chunk, nothing is changed.
    """
    if not causal or len(losses) <= chunk:
        return losses
    return losses.masked_fill(torch.arange(len(losses)) % chunk < chunk // 2, float("nan"))


LARGEST = 2**30
"""Maximum bytes of a text file that the user gives."""
PARAGRAPHS = """\
The lighthouse stands where the river meets the sea. Every evening, before the boats come home, its keeper climbs the
spiral stairs, wipes the salt from the glass and lights the lamp. In a notebook she writes down the wind, the height of
the tide and the names of the ships that pass. The notebooks fill a whole shelf by now, and whoever reads them in order
can follow forty years of weather, trade and patience.

When a storm broke the northern pier in the third winter, the town argued for months about what to do. Some wanted to
rebuild it in stone; others said that the money should go to the school, because a harbour without people who can read
a chart is of no use. In the end they did both, slowly: the school was finished first, and its oldest pupils measured
the sea bed and drew the plans from which the pier was built.

Measuring is mostly waiting. A line with a weight is lowered, the depth is read, the boat moved on by one length, and
the line is lowered again. A single reading says little, since waves lift the boat and currents bend the line; only
when many of them are put side by side does the shape of the ground appear. The keeper compared it to her notebooks:
no page is interesting, she said, but the shelf is.
"""


def verification_text(file: str | Path | None) -> tuple[str, str]:
    """A text with which models are compared, and the name of its origin.

    The text is from the user's file. If ``file`` is ``None``, it is :data:`PARAGRAPHS` and Python's manual.
    """
    if file is None:
        try:  # Python's manual: 600 kB of English prose
            topics = importlib.import_module("pydoc_data.topics").topics
        except ImportError:  # some slim installations of Python lack it
            topics = {}
        return PARAGRAPHS + "\n\n".join(topics[name] for name in sorted(topics)), "built-in English text"
    return text_of(Path(file)), Path(file).name


def text_of(file: Path) -> str:
    """The text of a file that the user gives, without a byte order mark."""
    if file.is_dir():
        raise CheckpointError(f"The text {str(file)!r} is a folder; give one file, for example a book.")
    try:
        text = read_text(file, LARGEST).removeprefix("\ufeff")
    except CheckpointError as error:
        raise CheckpointError(f"The text {error}") from error
    if not text.strip():
        raise CheckpointError(f"The text {str(file)!r} is empty; give another file.")
    return text


ROWS_AT_ONCE = 256
"""Number of rows of logits that are compared at a time."""


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The divergence KL(teacher ‖ student) of logits ``(n, classes)``, a mean over n, times the squared temperature.

    The factor keeps the scale of the gradients. The divergence is the cross-entropy of Hinton et al. (2015) minus the
    entropy of the teacher: it is 0 for equal predictions, and has the same gradients. ``teacher`` gets no gradients.

    It is computed in float32, for :data:`ROWS_AT_ONCE` rows at a time, and once more in the backward pass.
    """

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        """The sum over some rows."""
        log_student = (student.float() / temperature).log_softmax(-1)
        log_teacher = (teacher.float() / temperature).log_softmax(-1)
        return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)

    pieces = zip(student.split(ROWS_AT_ONCE), teacher.detach().split(ROWS_AT_ONCE), strict=True)
    losses = (checkpoint(divergence, *rows, use_reentrant=False, preserve_rng_state=False) for rows in pieces)
    total = sum(losses, start=torch.zeros((), device=student.device))
    return total * (temperature**2 / max(1, len(student)))
