"""What is added to the loss of a head in training, and by what Trainer divides it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...mechanisms.common.base import Mechanism
from ..family.definition import FAMILIES

IGNORED_LABEL = -100
"""The label of tokens that are left out of a loss, as in ``torch.nn.functional.cross_entropy``."""


def divides_by_items(model_class: Any) -> bool:
    """Whether a class of transformers divides its loss by ``num_items_in_batch``; see :meth:`Family.divides_by_items`.

    For a class of which neither it nor a family says so: no, since the mean of the batches is nearly right everywhere.
    """
    accepts = getattr(model_class, "accepts_loss_kwargs", None)
    if isinstance(accepts, bool):
        return accepts
    family = FAMILIES.get(getattr(getattr(model_class, "config_class", None), "model_type", ""))
    return family is not None and model_class.__name__ in family.heads and family.divides_by_items(model_class.__name__)


def auxiliary_loss(model: nn.Module) -> Tensor | None:
    """The sum of :meth:`hf_longattn.Mechanism.auxiliary_loss` over all mechanisms of ``model``; ``None`` when none has one."""
    losses = (module.auxiliary_loss() for module in model.modules() if isinstance(module, Mechanism))
    # Outside of its layer a parameter may be one process's share (a DTensor, under FSDP), and so the loss that is made of it.
    terms = [loss.full_tensor() if hasattr(loss, "full_tensor") else loss for loss in losses if loss is not None]
    return sum(terms[1:], terms[0]) if terms else None


def with_auxiliary_loss(model: nn.Module, outputs: Any, arguments: Mapping[str, Any]) -> Any:
    """``outputs`` of a forward pass with the auxiliary loss added to their loss, where they have one.

    With ``num_items_in_batch``, by which Trainer makes the losses of accumulated batches add up to one mean, each batch adds its share.
    """
    by_name = hasattr(outputs, "loss")
    loss = outputs.loss if by_name else outputs[0] if isinstance(outputs, tuple) and outputs else None
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        return outputs
    added = auxiliary_loss(model)
    if added is None:
        return outputs
    labels, items = arguments.get("labels"), arguments.get("num_items_in_batch")
    if isinstance(labels, Tensor) and items is not None:
        added = added * (labels != IGNORED_LABEL).sum() / torch.as_tensor(items, device=labels.device)
    loss = loss + added.to(loss)
    if not by_name:
        return (loss, *outputs[1:])
    outputs.loss = loss
    return outputs
