"""Losses of a language model per token, and the change of a loss with its standard error.

Also the divergence of two models' predictions, and texts for comparisons.
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
"""Tokens per piece of the loss, since each piece copies its logits."""
NEGLIGIBLE = 0.01
"""Maximum increase of a loss that is ignored, in nats per token."""


@dataclass(frozen=True)
class LossChange:
    """Mean loss of the same tokens before and after a change, in nats per predicted token.

    change: ``after - before``. error: standard error of ``change``; ``None`` for fewer than ten tokens. predicted:
        number of tokens.
    """

    before: float
    after: float
    change: float
    error: float | None
    predicted: int

    @classmethod
    def of(cls, before: Tensor, after: Tensor) -> LossChange | None:
        """Compare two losses ``(N,)`` of the same tokens, nan for unpredicted tokens. ``None`` if no token is
        predicted in both."""
        both = ~(before.isnan() | after.isnan())
        if not both.any():
            return None
        before, after = before[both].double(), after[both].double()
        change, error = mean_and_error((after - before).tolist())
        return cls(float(before.mean()), float(after.mean()), change, error, len(before))

    @property
    def worse(self) -> bool:
        """Whether the loss grew by more than :data:`NEGLIGIBLE` and twice its standard error, or is not finite."""
        if self.error is None:
            return not math.isfinite(self.change)
        return not self.change <= max(NEGLIGIBLE, 2 * self.error)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {**asdict(self), "worse": self.worse, "unit": "nats per token"}

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.3f}"
        return (
            f"{self.before:.3f} → {self.after:.3f} nats per token ({self.change:+.3f}{error}, n = {self.predicted:,})"
        )


@torch.no_grad()
def token_losses(model: Any, shown: Tensor, target: Tensor, *, causal: bool) -> Tensor:
    """The loss of each token, ``(B·N,)`` float32; NaN at tokens that are not predicted.

    A transformers decoder computes logits only for predicted tokens, and in pieces if its head is a plain projection.

    Args:
        model: a model with a language-modelling head.
        shown, target: ``(B, N)``: the input on the model's device, and the targets on the CPU.
        causal: whether a token is predicted at the position before it.
    """
    if causal:
        target = F.pad(target[:, 1:], (0, 1), value=IGNORED)
    losses = torch.full(target.shape, float("nan"))
    positions = (target != IGNORED).any(0).nonzero().flatten()
    if causal and "logits_to_keep" in inspect.signature(model.forward).parameters:
        with deferred_logits(model):
            returned = model(input_ids=shown, return_dict=True, logits_to_keep=positions.to(shown.device))
    else:
        returned = model(input_ids=shown, return_dict=True)
    logits = returned.get("logits", returned.get("prediction_logits"))
    target = target[:, positions]
    loss_of = partial(F.cross_entropy, reduction="none", ignore_index=IGNORED)
    if isinstance(logits, Logits):
        predicted = loss_of(logits.view(-1, logits.shape[-1]).float(), target.flatten().to(shown.device)).cpu()
    else:
        if logits.shape[1] != len(positions):
            logits = logits[:, positions]
        logits = logits.cpu()
        pieces = zip(logits.flatten(0, 1).split(TOKENS_AT_ONCE), target.flatten().split(TOKENS_AT_ONCE), strict=True)
        predicted = torch.cat([loss_of(rows.float(), labels) for rows, labels in pieces])
    losses[:, positions] = predicted.masked_fill(target.flatten() == IGNORED, float("nan")).view(target.shape)
    if causal:  # the loss of a token stands at the position before it
        losses = F.pad(losses[:, :-1], (1, 0), value=float("nan"))
    return losses.flatten()


def in_chunks(
    shown: Tensor, target: Tensor, chunk: int, special: tuple[Sequence[int], Sequence[int]] = ((), ())
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a text ``(1, N)`` as rows ``(N / chunk, chunk)`` for :func:`token_losses`.

    Args:
        chunk: tokens per chunk; divides N.
        special: tokens before and after a text. They replace the first and last tokens of each chunk, which are not
            predicted. Without BOS, a decoder's loss would be too high.
    """
    labels = between(target.reshape(-1, chunk), *([IGNORED] * len(ids) for ids in special))
    return between(shown.reshape(-1, chunk), *special), labels


def with_context(losses: Tensor, chunk: int, *, causal: bool) -> Tensor:
    """Losses ``(N,)`` of a text that was read in chunks, NaN for tokens with little context. These are the first half
    of each chunk of a causal model. They would hide a loss of long context. A single chunk is not changed."""
    if not causal or len(losses) <= chunk:
        return losses
    return losses.masked_fill(torch.arange(len(losses)) % chunk < chunk // 2, float("nan"))


LARGEST = 2**30
"""Maximum bytes of the user's text file."""
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
    """(text, name of its origin), from the user's file. If ``file`` is ``None``, built-in paragraphs and Python's
    manual."""
    if file is None:
        try:  # 600 kB of English prose, missing in some slim installations
            topics = importlib.import_module("pydoc_data.topics").topics
        except ImportError:
            topics = {}
        return PARAGRAPHS + "\n\n".join(topics[name] for name in sorted(topics)), "built-in English text"
    return text_of(Path(file)), Path(file).name


def text_of(file: Path) -> str:
    """The text of a user's file, without a byte order mark."""
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
"""Rows of logits that are compared at a time, and again in the backward pass."""


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) of logits ``(n, classes)``, mean over n. It is multiplied by the squared temperature, so
    that gradients keep their scale.

    It is the cross-entropy of Hinton et al. (2015) minus the teacher's entropy: 0 for equal predictions, with the same
    gradients; ``teacher`` gets none. Computed in float32 over chunks of :data:`ROWS_AT_ONCE` rows.
    """

    def summed(student: Tensor, teacher: Tensor) -> Tensor:
        predicted, expected = ((logits.float() / temperature).log_softmax(-1) for logits in (student, teacher))
        return F.kl_div(predicted, expected, reduction="sum", log_target=True)

    chunks = zip(student.split(ROWS_AT_ONCE), teacher.detach().split(ROWS_AT_ONCE), strict=True)
    losses = (checkpoint(summed, *rows, use_reentrant=False, preserve_rng_state=False) for rows in chunks)
    total = sum(losses, start=torch.zeros((), device=student.device))
    return total * (temperature**2 / max(1, len(student)))
