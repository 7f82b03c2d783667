"""The fields of a base model's output, and the kind of each. No other module knows which fields have a token axis."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...cache_argument import CACHE
from ...errors import BackendError


class Kind(enum.Enum):
    """The kind of a field's contents, with the shape."""

    TOKENS = "a value for each token (B, N, …)"
    SEQUENCES = "a value for each row (B, …)"
    ROUTES = "a value for each token of all rows (B·N, experts)"
    WEIGHTS = "attention weights (B, H, Nq, Nk)"
    STATE = "a cache or a memory"


FIELDS: Mapping[str, Kind] = {
    "last_hidden_state": Kind.TOKENS,
    "hidden_states": Kind.TOKENS,
    "pooler_output": Kind.SEQUENCES,
    "router_logits": Kind.ROUTES,
    "attentions": Kind.WEIGHTS,
    "cross_attentions": Kind.WEIGHTS,
    CACHE: Kind.STATE,
}
"""Every output field of base models that read texts. Fields with a value for each layer hold a tuple of values."""
Join = Callable[[Sequence[Tensor]], Tensor]


def joined(parts: Sequence[Any], joins: Mapping[Kind, Join], mode: str) -> Any:
    """The outputs of one or several runs, joined to those of the whole input. Of a base model.

    Args:
        parts: outputs by name, all with the same fields. The first is changed and returned.
        joins: for each kind of field that the mode can restore, a function of the runs' tensors.
        mode: the mode's name in messages, such as ``"packed batches"``.

    Raises:
        BackendError: there is a field that the mode cannot restore.
    """
    outputs = parts[0]
    for name in list(outputs):
        join = joins.get(FIELDS[name]) if name in FIELDS else None
        if join is None:
            holds = f" ({FIELDS[name].value})" if name in FIELDS else ""
            raise BackendError(
                f"{type(outputs).__name__}.{name}{holds} cannot be returned with {mode}; do not request it, or run the model without."
            )
        outputs[name] = _joined([part[name] for part in parts], join)
    return outputs


def _joined(values: Sequence[Any], join: Join) -> Any:
    if isinstance(values[0], tuple | list):
        return tuple(_joined(layers, join) for layers in zip(*values, strict=True))
    return join(values) if isinstance(values[0], Tensor) else values[0]


def by_rows(join: Join, rows: int) -> Join:
    """``join``, which takes tensors ``(B, n, …)``, adapted to flattened tensors ``(B·n, …)``. ``B = rows``."""

    def join_flat(values: Sequence[Tensor]) -> Tensor:
        return join([value.unflatten(0, (rows, -1)) for value in values]).flatten(0, 1)

    return join_flat


def scattered(value: Tensor, places: Tensor, rows: int, length: int) -> Tensor:
    """``value (T, …)`` at the flat indices ``places (T,)`` of ``(rows, length, …)``; zeros elsewhere."""
    batch = torch.zeros(rows * length, *value.shape[1:], dtype=value.dtype, device=value.device)
    return batch.index_copy(0, places, value).unflatten(0, (rows, length))


def wants_tuple(model: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether a call of ``model`` requests its outputs as a tuple."""
    by_name = arguments.get("return_dict")
    return (model.config.return_dict if by_name is None else by_name) is False
