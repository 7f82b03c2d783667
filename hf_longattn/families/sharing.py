"""Parameters of mechanisms that all layers of a model have in common: one tensor, saved once."""

from __future__ import annotations

import torch
from torch import nn

from .places import mechanisms_on


def shared_parameters(model: nn.Module) -> dict[str, str]:
    """Name of every parameter that is another layer's -> the name of that one, the first of the mechanisms with equal options."""
    first: dict[object, str] = {}
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        for place, mechanism in mechanisms_on(module).items():
            for parameter in mechanism.shared_by_layers:
                own = f"{name}.{place}.{parameter}".removeprefix(".")
                key = (type(mechanism), mechanism.options, parameter, mechanism.get_parameter(parameter).shape)
                if first.setdefault(key, own) != own:
                    found[own] = first[key]
    return found


def share_parameters(model: nn.Module) -> None:
    """Put one parameter in the place of those that mechanisms say all layers share."""
    for target, source in shared_parameters(model).items():
        mechanism, _, name = target.rpartition(".")
        setattr(model.get_submodule(mechanism), name, model.get_parameter(source))


def separate_parameters(model: nn.Module) -> None:
    """Undo :func:`share_parameters`; the parameters put in the place of the shared ones have no values yet."""
    for target, source in shared_parameters(model).items():
        mechanism, _, name = target.rpartition(".")
        if model.get_parameter(target) is model.get_parameter(source):
            setattr(model.get_submodule(mechanism), name, nn.Parameter(torch.empty_like(model.get_parameter(source))))
