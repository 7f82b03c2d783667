"""The auxiliary losses of a model's mechanisms, added to the model's own loss while it trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..mechanisms.base import Mechanism


def auxiliary_loss(model: nn.Module) -> Tensor | None:
    """The sum of :meth:`hf_longattn.Mechanism.auxiliary_loss` over all mechanisms of ``model``; ``None`` when none has one."""
    losses = [module.auxiliary_loss() for module in model.modules() if isinstance(module, Mechanism)]
    found = [loss for loss in losses if loss is not None]
    return sum(found[1:], found[0]) if found else None


def with_auxiliary_loss(model: nn.Module, outputs: Any, arguments: dict[str, Any]) -> Any:
    """``outputs`` of a forward pass with the auxiliary loss in their loss, where they have one.

    With ``num_items_in_batch``, by which Trainer makes the losses of accumulated batches add up to one mean, each batch brings its share.
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
        added = added * (labels != -100).sum() / torch.as_tensor(items, device=labels.device)
    loss = loss + added.to(loss)
    if not by_name:
        return (loss, *outputs[1:])
    outputs.loss = loss
    return outputs
