"""Initial values of what a model's mechanisms and memory tokens add to its base, wherever a checkpoint has none.

transformers initialises module by module, by rules for the layers it knows, and considers a module without tensors of its own initialised.
Ours are initialised as a whole (``reset_parameters``); these functions see to it that this happens to exactly what was not loaded.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..mechanisms.base import Mechanism
from .memory_tokens import MemoryTokens
from .places import mechanisms_on
from .projections import copy_projections

LOADED = "_is_hf_initialized"
"""transformers' mark on tensors that it has loaded, and on modules that are initialised."""
OURS = (Mechanism, MemoryTokens)


def without_values(model: nn.Module) -> list[nn.Module]:
    """The mechanisms and memory tokens below ``model`` that are not initialised; not those inside another."""
    return list(_outermost(model))


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if not isinstance(child, OURS):
            yield from _outermost(child)
        elif not getattr(child, LOADED, False):
            yield child


def give_values(module: nn.Module) -> None:
    """Initialise all tensors of a module of ours that were not loaded, buffers included, by its ``reset_parameters``."""
    loaded: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    missing = False
    for owner in module.modules():
        for store in (owner._parameters, owner._buffers):
            for name, tensor in store.items():
                if tensor is not None and getattr(tensor, LOADED, False):
                    loaded.append((store, name, tensor))  # type: ignore[arg-type]
                else:
                    missing = missing or tensor is not None
    if not missing:
        return
    for store, name, tensor in loaded:
        store[name] = _stand_in(tensor)
    module.reset_parameters()  # type: ignore[operator]
    for store, name, tensor in loaded:
        store[name] = tensor


def _stand_in(tensor: Tensor) -> Tensor:
    """What is initialised in place of a loaded tensor, and thrown away."""
    if not isinstance(tensor, nn.Parameter):
        return torch.empty_like(tensor)
    dtype = tensor.dtype if tensor.is_floating_point() else torch.float32  # a quantised one
    return nn.Parameter(torch.empty(tensor.shape, dtype=dtype, device=tensor.device))


@torch.no_grad()
def initialise(model: nn.Module, modules: list[nn.Module]) -> None:
    """Give values to ``modules``, of :func:`without_values`, when everything else in ``model`` has some."""
    for module in modules:
        give_values(module)
    chosen = {id(module) for module in modules}
    for attention in model.modules():
        for mechanism in mechanisms_on(attention).values():
            if id(mechanism) in chosen:
                copy_projections(attention, mechanism)
