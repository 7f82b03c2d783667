"""Left padding changes no encoder with rotary positions, whatever the mechanism does to queries and keys."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from hf_longattn import list_mechanisms
from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.modeling.family.long_config import LongEncoderConfig
from tests.cases import every_case
from tests.reference.small_models import long_model, tokens

ENCODERS: dict[str, dict[str, Any]] = {
    **{base: {} for base in sorted(FAMILIES) if FAMILIES[base].rope and issubclass(FAMILIES[base].config_class, LongEncoderConfig)},
    "esm": {"position_embedding_type": "rotary"},
    "esmc": {"num_key_value_heads": 4},
    "gemma3_text": {"use_bidirectional_attention": True},
}
"""The encoders with rotary positions, with the fields of their configs that make them such."""
GRID = [*itertools.product(ENCODERS, list_mechanisms(causal=False, grid=False))]
for refused in ("esmc", "modernbert", "ultrabert"):  # no embeddings as input, or layers with windows of their own
    GRID.remove((refused, "recurrent_memory"))
LENGTH, LEFT = 60, 37


def outputs(base: str, attention: dict[str, Any], masks: str, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of a text alone, and after padding."""
    model, text = long_model(base, None, attention, **ENCODERS[base], **changes), tokens(1, LENGTH)
    padded = torch.nn.functional.pad(text, (LEFT, 0), value=1)
    real = (torch.arange(LENGTH + LEFT) >= LEFT).long()[None]
    if masks == "pairs":
        real = real.bool()[:, None, None].expand(1, 1, LENGTH + LEFT, LENGTH + LEFT)
    with torch.no_grad():
        return model(text).last_hidden_state, model(padded, attention_mask=real).last_hidden_state[:, LEFT:]


@every_case(("base", "mechanism"), GRID, of=11)
def test_left_padding_changes_no_rotary_encoder(base: str, mechanism: str) -> None:
    alone, padded = outputs(base, {"mechanism": mechanism, **mechanism_class(mechanism).about.sample}, "tokens")
    assert (alone - padded).abs().max() < 1e-4 * alone.abs().max()


@every_case("base", ENCODERS, of=3)
@every_case("changes", [{"exact_length": 64}, {"exact_length": 32}, {"layers": {"1": {"mechanism": "full"}}}, {"masks": "pairs"}])
def test_left_padding_changes_no_batch_within_exact_length_mixed_layers_or_a_mask_of_pairs(base: str, changes: dict[str, Any]) -> None:
    if base == "esm" and "masks" in changes:
        return  # the base itself takes no such mask
    options = {"mechanism": "linear", "layers": {"2": {"mechanism": "window", "window": 16}}, **changes}
    if "exact_length" in changes:
        options |= {"mechanism": "routing", "layers": {"2": {"mechanism": "linear"}}}
    alone, padded = outputs(base, options, options.pop("masks", "tokens"))
    assert (alone - padded).abs().max() < 1e-4 * alone.abs().max()
