"""Families that cannot pass global tokens to their attention take every mechanism that uses none with its options."""

from __future__ import annotations

import pytest
import torch

from hf_longattn.errors import OptionError
from hf_longattn.families import FAMILIES
from tests.cases import every_case
from tests.reference.small_models import long_model, padding, tokens

BASES = [base for base, family in FAMILIES.items() if not getattr(family.mixin, "hands_globals_down", True)]
WITHOUT = {
    "union": {"mechanism": "union", "of": "window:window=8+window:window=16"},
}
"""Composites that compute a window of 16."""
WITH = {
    "union": {"mechanism": "union", "of": "window:window=8+longformer:window=16"},
    "longformer": {"mechanism": "longformer"},
}


@pytest.mark.thorough
@every_case("name", WITHOUT)
@every_case("base", BASES)
def test_families_without_global_tokens_run_unions_without_them(base: str, name: str) -> None:
    ids, mask = tokens(3, 60), padding(3, 60)
    window, composite = (long_model(base, None, attention) for attention in ({"mechanism": "window", "window": 16}, WITHOUT[name]))
    composite.load_state_dict(window.state_dict())
    with torch.no_grad():
        expected, out = (model(ids, attention_mask=mask).last_hidden_state[mask.bool()] for model in (window, composite))
    torch.testing.assert_close(out, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0)


@every_case("name", WITH)
@every_case("base", [base for base in BASES if not getattr(FAMILIES[base].mixin, "annotates_globals", False)])
def test_families_without_global_tokens_refuse_mechanisms_that_need_them(base: str, name: str) -> None:
    with pytest.raises(OptionError, match=f"cannot pass global tokens to its attention, which mechanism '{name}' needs"):
        long_model(base, None, WITH[name])
