"""The loss of a language model token by token, before and after a change of the model, with the standard error of the difference."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..data.tokenization import IGNORED, between
from .summaries import mean_and_error

TOKENS_AT_ONCE = 256
"""Tokens per piece of the loss, since each piece copies its logits."""
NEGLIGIBLE = 0.01
"""Nats per token: a larger loss by no more than this does not count."""


@dataclass(frozen=True)
class LossChange:
    """Nats per predicted token before and after a change, over the same tokens.

    before, after: means. change: ``after - before``. error: standard error of ``change`` over the tokens' differences; ``None``
    for fewer than ten. predicted: number of tokens.
    """

    before: float
    after: float
    change: float
    error: float | None
    predicted: int

    @classmethod
    def of(cls, before: Tensor, after: Tensor) -> LossChange | None:
        """From the losses ``(N,)`` of the same tokens, nan where a token is not predicted; ``None`` if no token is predicted by both."""
        both = ~(before.isnan() | after.isnan())
        if not both.any():
            return None
        before, after = before[both].double(), after[both].double()
        change, error = mean_and_error((after - before).tolist())
        return cls(float(before.mean()), float(after.mean()), change, error, len(before))

    @property
    def worse(self) -> bool:
        """Whether the loss grew by more than twice its standard error, and by more than :data:`NEGLIGIBLE`; also if it is not finite."""
        return not self.change <= max(NEGLIGIBLE, math.inf if self.error is None else 2 * self.error)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {**asdict(self), "worse": self.worse, "unit": "nats per token"}

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.3f}"
        return f"{self.before:.3f} → {self.after:.3f} nats per token ({self.change:+.3f}{error}, n = {self.predicted:,})"


def token_losses(model: Any, shown: Tensor, target: Tensor, *, causal: bool) -> Tensor:
    """The loss of each token, ``(B·N,)`` float32; NaN at tokens that are not predicted.

    A decoder of transformers computes logits only where a token is predicted, so that those of a large vocabulary fit into memory.

    Args:
        model: with a language-modelling head.
        shown, target: ``(B, N)``: the input on the model's device, and the targets on the CPU.
        causal: whether a token is predicted at the place before it.
    """
    if causal:
        target = functional.pad(target[:, 1:], (0, 1), value=IGNORED)
    losses = torch.full(target.shape, float("nan"))
    places = (target != IGNORED).any(0).nonzero().flatten()
    selects = causal and len(places) < target.shape[1] - 1 and "logits_to_keep" in inspect.signature(model.forward).parameters
    with torch.no_grad():
        returned = model(input_ids=shown, return_dict=True, **({"logits_to_keep": places.to(shown.device)} if selects else {}))
    logits = (returned["logits"] if "logits" in returned else returned["prediction_logits"]).cpu()
    logits, target = logits if logits.shape[1] == len(places) else logits[:, places], target[:, places]
    pieces = zip(logits.flatten(0, 1).split(TOKENS_AT_ONCE), target.flatten().split(TOKENS_AT_ONCE), strict=True)
    predicted = torch.cat([functional.cross_entropy(a.float(), b, reduction="none", ignore_index=IGNORED) for a, b in pieces])
    losses[:, places] = predicted.masked_fill(target.flatten() == IGNORED, float("nan")).view(target.shape)
    return functional.pad(losses[:, : -1 if causal else None], (int(causal), 0), value=float("nan")).flatten()


def chunk_losses(
    model: Any,
    shown: Tensor,
    target: Tensor,
    chunk: int,
    *,
    causal: bool,
    together: int = 1,
    special: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> Tensor:
    """:func:`token_losses` of a text ``(1, N)``, read in chunks.

    Args:
        chunk: tokens of each, which divides N.
        together: number of chunks in a batch.
        special: tokens before and after a text. They replace the first and last tokens of each chunk, which are not predicted. Without its
            first token (BOS) a decoder is worse than it is.
    """
    shown = between(shown.reshape(-1, chunk), *special)
    target = between(target.reshape(-1, chunk), *([IGNORED] * len(ids) for ids in special))
    return torch.cat([*map(partial(token_losses, model, causal=causal), shown.split(together), target.split(together))])


def with_context(losses: Tensor, chunk: int, *, causal: bool) -> Tensor:
    """The losses ``(N,)`` of a text that was read in chunks. For a causal model, the first half of each chunk is NaN: its tokens have
    little context and would hide a loss of long context. One chunk is left as it is."""
    if not causal or len(losses) <= chunk:
        return losses
    return losses.masked_fill(torch.arange(len(losses)) % chunk < chunk // 2, float("nan"))
