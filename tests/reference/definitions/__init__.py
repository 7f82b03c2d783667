"""What every mechanism computes, written a second time from its paper as a plain loop in float64.

A file has mechanisms that are read together. Each has two functions, which end with its name:

    define_NAME(module, q, k, v, call: Call) -> Tensor
        The output ``(B, H, Nq, D)`` in float64, differentiable. q is ``(B, H, Nq, D)``, k and v are
        ``(B, H_kv, Nk, D)``; the queries are the last Nq of Nk positions. ``module`` gives options, parameters and
        random draws, and no computation. Queries of padding, and queries that see nothing, have rows of zeros. A
        mechanism that is a mask alone has ``sees_NAME(module, k, causal, padding_mask, global_mask) -> Sees`` instead.

    draw_options_NAME(random, length) -> dict
        Options for a text of ``length`` tokens, drawn at random among all that have a meaning;
        ``longest_of_the_model`` among them is the model's longest text, ``length`` where it is left out.

A mechanism may also have

    draw_options_of_heads_NAME(random, heads, length)
                                            more options, which depend on the number of heads
    draw_parameters_NAME(module)            in place of the noise that is added to every parameter
    needs_all_queries_NAME(module)          with these options there may not be fewer queries than keys
    SEEDS_NAME                              values of the call's seed; 0 alone where they are left out

None of these files reads a mechanism's code: their authority is the paper, and the options' help where a mechanism
goes beyond it.
"""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ._loops import Call, masked_attention


@functools.cache
def _definitions() -> dict[str, Any]:
    """What the files define, by name."""
    files = (
        importlib.import_module(f"{__name__}.{path.stem}") for path in sorted(Path(__file__).parent.glob("[a-z]*.py"))
    )
    return {name: value for file in files for name, value in vars(file).items()}


def defined_mechanisms() -> list[str]:
    """Names of the mechanisms that have a definition here."""
    return sorted(
        name.removeprefix("draw_options_") for name in _definitions() if re.match("draw_options_(?!of_heads)", name)
    )


def definition_of(name: str) -> SimpleNamespace:
    """What the files define of one mechanism, without its name: ``define(module, q, k, v, **call)`` and the others."""
    found = SimpleNamespace(
        **{key.removesuffix(f"_{name}"): value for key, value in _definitions().items() if key.endswith(f"_{name}")}
    )
    written = getattr(found, "define", None)

    def define(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
        call = Call(**arguments)
        if written is not None:
            return written(module, q, k, v, call)
        return masked_attention(q, k, v, found.sees(module, k, call.causal, call.padding_mask, call.global_mask), call)

    found.define = define
    return found


def add_noise(module: nn.Module) -> None:
    """Leave no parameter where it was initialised: a zero or an identity would hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
