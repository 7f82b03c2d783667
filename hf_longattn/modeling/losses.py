"""Parts of a head's training loss: auxiliary losses of mechanisms, and a batch's share of a step's loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..mechanisms.common.capabilities import AddsLoss
from .family.definition import CAUSAL_LANGUAGE_MODELS

IGNORED_LABEL = -100
"""The label of tokens that do not count in a loss, as in ``torch.nn.functional.cross_entropy``."""
LOSS_BY_ROW = ("ForCTC", "ForRNNT", "ForTDT", "ForQuestionAnswering", "ForQuestionAnsweringSimple")
"""Suffixes of class names with a loss that is a mean over rows, not over labels."""


def label_count(head: str, inputs: Mapping[str, Any]) -> Tensor | None:
    """Number of labels over which a head averages; ``None`` if it averages over rows.

    Args:
        head: the name of the model class.
        inputs: the batch, with ``labels`` (or ``shift_labels``, as Trainer counts them).
    """
    labels = inputs.get("shift_labels")
    if labels is None and isinstance(labels := inputs.get("labels"), Tensor) and head.endswith(CAUSAL_LANGUAGE_MODELS):
        labels = labels[..., 1:]  # the first token is not predicted
    if not isinstance(labels, Tensor) or head.endswith(LOSS_BY_ROW):
        return None
    return ((labels != IGNORED_LABEL) | labels.is_floating_point()).sum()  # every float is a number to predict


def auxiliary_loss(model: nn.Module) -> Tensor | None:
    """The sum of :meth:`AddsLoss.auxiliary_loss` over the mechanisms of ``model`` that have one; ``None`` without any."""
    losses = (module.auxiliary_loss() for module in model.modules() if isinstance(module, AddsLoss))
    # Outside of its layer, a parameter may be one process's share (a DTensor, under FSDP). So is a loss that is made of it.
    terms = [loss.full_tensor() if hasattr(loss, "full_tensor") else loss for loss in losses]
    return sum(terms[1:], terms[0]) if terms else None


def share_of_step(loss: Tensor, count: Tensor, items: Any) -> Tensor:
    """A batch's part of a step's mean, ``loss`` times ``count / items``. ``loss`` is a mean over ``count`` labels.

    The parts of all batches add up to that mean. A batch without labels has a part of 0; its mean is NaN.
    """
    share = count / torch.where(count > 0, torch.as_tensor(items, device=count.device), 1)
    return torch.where(count > 0, loss, 0.0) * share.to(loss)
