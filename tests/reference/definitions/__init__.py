"""What every mechanism computes, written a second time from its paper as a plain loop in float64.

One file per mechanism, named as the mechanism is, with two functions:

    define(module, q, k, v, *, causal, padding_mask, global_mask, scaling, score_mod, hidden_states, seed) -> Tensor
        The output ``(B, H, Nq, D)`` in float64, differentiable. q is ``(B, H, Nq, D)``, k and v are ``(B, H_kv, Nk, D)``; the queries are
        the last Nq of Nk positions. ``module`` gives options, parameters and random draws, and no computation. Queries of padding, and
        queries that see nothing, have rows of zeros.

    draw_options(random, length) -> dict
        Options for a text of ``length`` tokens, drawn at random among all that have a meaning; ``longest_of_the_model`` among them is
        the model's longest text, ``length`` where it is left out.

A file may also have

    draw_options_of_heads(random, heads, length)
                                            more options, which depend on the number of heads
    draw_parameters(module)                 in place of the noise that is added to every parameter
    needs_all_queries(module)               with these options there may not be fewer queries than keys
    SEEDS                                   values of the call's seed; 0 alone where they are left out

None of these files reads a mechanism's code: their authority is the paper, and the options' help where a mechanism goes beyond it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import torch
from torch import nn


def defined_mechanisms() -> list[str]:
    """Names of the mechanisms that have a definition here."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def definition_of(name: str) -> ModuleType:
    """The file of one mechanism."""
    return importlib.import_module(f"{__name__}.{name}")


def add_noise(module: nn.Module) -> None:
    """Leave no parameter where it was initialised: a zero or an identity would hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
