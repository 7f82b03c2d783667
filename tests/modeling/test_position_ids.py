"""Positions of a call: with left padding, and in models without positions."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_longattn
from hf_longattn import list_mechanisms
from hf_longattn.errors import InputError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.family.long_config import LongEncoderConfig
from scripts.dev.tools.check_derived import LONG, TOKENS, decoded, small_model
from scripts.dev.tools.derived import WITHOUT_POSITIONS
from tests.cases import every_case
from tests.reference.small_models import long_model, tokens
from tests.samples import sample_of


def short(base: str, folder: Path, **config: Any) -> Any:
    auto, model = small_model(base)
    if config:
        for name, value in config.items():
            setattr(model.config, name, value)
        model = auto.from_config(model.config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.thorough
@every_case("base", WITHOUT_POSITIONS, of=2)
def test_models_without_positions_read_longer_texts_as_the_stock_model(base: str, tmp_path: Path) -> None:
    stock = short(base, tmp_path / "short")
    report = hf_longattn.convert_checkpoint(
        tmp_path / "short",
        tmp_path / "long",
        mechanism="window",
        options={"window": 2 * LONG},
        max_length=LONG,
        verify=False,
    )
    assert report.plan["positions"] == "absent"
    long = AutoModelForCausalLM.from_pretrained(tmp_path / "long").eval()
    assert long.config.max_position_embeddings == LONG
    ids = torch.randint(5, 150, (2, LONG), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = stock(ids).logits
        found = long(ids).logits
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
        assert decoded(long, ids[:, :90], found[:, :90], prompt=70) < 1e-3


def test_positions_are_refused_for_models_without_them(tmp_path: Path) -> None:
    short("jamba", tmp_path / "short")
    with pytest.raises(OptionError, match=r"'rope:yarn' does not apply: a JambaForCausalLM has no positions"):
        hf_longattn.convert_checkpoint(
            tmp_path / "short", tmp_path / "long", mechanism="window", positions="rope:yarn", max_length=LONG
        )


@pytest.mark.thorough
@every_case(
    ("base", "chosen"), [("granitemoehybrid", {"position_embedding_type": "rope"}), ("zamba2", {"use_mem_rope": True})]
)
def test_a_config_may_choose_rotary_positions_for_granite_and_zamba(
    base: str, chosen: dict[str, Any], tmp_path: Path
) -> None:
    stock = short(base, tmp_path / "short", **chosen, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    report = hf_longattn.convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="full", max_length=LONG)
    assert report.plan["positions"] == "rope:yarn"
    long = AutoModelForCausalLM.from_pretrained(tmp_path / "long").eval()
    kept = hf_longattn.convert_checkpoint(
        tmp_path / "short", tmp_path / "kept", mechanism="window", options={"window": 16}, max_length=LONG
    )
    assert kept.plan["positions"] == "rope:none"
    ids = torch.randint(5, 150, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert not torch.allclose(stock(ids).logits, long(ids).logits, atol=1e-6)


def test_packed_documents_are_refused_for_recurrent_layers(tmp_path: Path) -> None:
    short("jamba", tmp_path / "short")
    hf_longattn.convert_checkpoint(
        tmp_path / "short",
        tmp_path / "long",
        mechanism="window",
        options={"window": 16},
        max_length=LONG,
        verify=False,
    )
    long = AutoModelForCausalLM.from_pretrained(tmp_path / "long").eval()
    ids = torch.randint(5, 150, (1, 60))
    documents = (torch.arange(60) > 30).long()[None]
    with pytest.raises(
        InputError, match="recurrent layers of this model read across their borders; give each document its own row"
    ):
        long(ids, documents=documents)


ENCODERS: dict[str, dict[str, Any]] = {
    **{
        base: {}
        for base in sorted(FAMILIES)
        if FAMILIES[base].rope and issubclass(FAMILIES[base].config_class, LongEncoderConfig)
    },
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
    model = long_model(base, None, attention, **ENCODERS[base], **changes)
    text = tokens(1, LENGTH)
    padded = torch.nn.functional.pad(text, (LEFT, 0), value=1)
    real = (torch.arange(LENGTH + LEFT) >= LEFT).long()[None]
    if masks == "pairs":
        real = real.bool()[:, None, None].expand(1, 1, LENGTH + LEFT, LENGTH + LEFT)
    with torch.no_grad():
        return model(text).last_hidden_state, model(padded, attention_mask=real).last_hidden_state[:, LEFT:]


@every_case(("base", "mechanism"), GRID, of=11)
def test_left_padding_changes_no_rotary_encoder(base: str, mechanism: str) -> None:
    alone, padded = outputs(base, sample_of(mechanism), "tokens")
    assert (alone - padded).abs().max() < 1e-4 * alone.abs().max()


@every_case("base", ENCODERS, of=3)
@every_case(
    "changes",
    [{"exact_length": 64}, {"exact_length": 32}, {"layers": {"1": {"mechanism": "full"}}}, {"masks": "pairs"}],
)
def test_left_padding_changes_no_batch_within_exact_length_mixed_layers_or_a_mask_of_pairs(
    base: str, changes: dict[str, Any]
) -> None:
    if base == "esm" and "masks" in changes:
        return  # the base itself takes no such mask
    options = {"mechanism": "linear", "layers": {"2": {"mechanism": "window", "window": 16}}, **changes}
    if "exact_length" in changes:
        options |= {"mechanism": "routing", "layers": {"2": {"mechanism": "linear"}}}
    alone, padded = outputs(base, options, options.pop("masks", "tokens"))
    assert (alone - padded).abs().max() < 1e-4 * alone.abs().max()
