"""How a base rotates queries and keys is what the package reads from its modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hf_longattn.families as families
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.base import Mechanism
from tests.cases import every_case
from tests.reference.small_models import BASES, long_model, plain_config

LENGTH, FURTHER = 20, 7
ROTARY = [base for base in BASES if families.FAMILIES[base].scales_rotations(plain_config(base)) and base != "esm"]
SOME_LAYERS = ("smollm3",)
"""Bases that rotate in some layers only."""


def met(base: str, relative: str) -> list[tuple[Mechanism, torch.Tensor, torch.Tensor]]:
    """Each mechanism with the queries and keys that it gets for one token, repeated, so that they differ by their positions only."""
    torch.manual_seed(0)
    model, found = long_model(base, None, {"mechanism": "full", "relative": relative}).eval(), list[Any]()
    for mechanism in model.modules():
        if isinstance(mechanism, Mechanism) and mechanism.relative is not None:
            mechanism.register_forward_pre_hook(lambda module, args: found.append((module, *args[:2])), prepend=True)
    with torch.no_grad():
        model(torch.full((1, LENGTH), 50))
    assert found
    return found


@pytest.mark.thorough
@every_case("base", [base for base in ROTARY if base not in SOME_LAYERS])
def test_a_further_rotation_gives_the_queries_and_keys_of_later_tokens(base: str) -> None:
    for mechanism, *vectors in met(base, "self_extend:window=64,group=4"):
        rotation = mechanism.relative.rotation()  # type: ignore[union-attr, operator]
        for x in vectors:
            turned = rotation.turned(x[:, :, :-FURTHER], torch.full((1, LENGTH - FURTHER), FURTHER))
            torch.testing.assert_close(turned, x[:, :, FURTHER:], atol=1e-4, rtol=0)
            assert (x[:, :, FURTHER:] - x[:, :, :-FURTHER]).abs().max() > 0.01


@every_case("base", ["bert", "gpt2", "esm", *SOME_LAYERS])
def test_self_extend_is_refused_for_bases_that_do_not_rotate_every_layer(base: str) -> None:
    with pytest.raises(OptionError, match=r"does not rotate queries and keys by their positions in a way that can be followed"):
        long_model(base, None, {"mechanism": "full", "relative": "self_extend"})
