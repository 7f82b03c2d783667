"""Positions that a conversion drops, puts ALiBi in place of, or adds relative ones to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hf_longattn
from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.errors import OptionError, PositionError
from hf_longattn.modeling.family import family_of

WITH_TABLES = [
    "BertForMaskedLM",
    "RobertaForMaskedLM",
    "GPT2LMHeadModel",
    "BartForConditionalGeneration",
    "PegasusForConditionalGeneration",
]


def tables(model: Any) -> dict[str, torch.nn.Parameter]:
    family = family_of(model.config)
    return {name: parameter for name, parameter in model.named_parameters() if family.table(name) is not None}


@pytest.mark.parametrize("positions", ["alibi", "none"])
@pytest.mark.parametrize("name", WITH_TABLES)
def test_a_dropped_table_is_zeros_and_not_trained(name: str, positions: str, built: Callable[[str], Path], tmp_path: Path) -> None:
    report = convert_checkpoint(built(name), tmp_path / "long", mechanism="window", window=16, max_length=200, positions=positions)
    assert report.passed
    assert report.needs_training
    assert report.train_command
    found = {check.name: check for check in report.checks}
    assert found["equal where the mechanism covers the input"].status == "needs training"
    assert f"{positions} changes the old positions too" in found["equal where the mechanism covers the input"].detail
    assert found["padding changes nothing"].status == "passed"
    assert report.plan["tensor_counts"]["zeroed"] == (2 if "Conditional" in name else 1)
    config = json.loads((tmp_path / "long" / "config.json").read_text())
    relative = {"relative": "alibi"} if positions == "alibi" else {}
    assert config["long_attention"] == {"mechanism": "window", "window": 16, **relative}
    if "Conditional" in name:
        assert config.get("decoder_long_attention") == ({"mechanism": "full", **relative} if relative else None)
    assert config["position_extension"] == "none"
    model = getattr(hf_longattn, f"Long{name}").from_pretrained(tmp_path / "long")
    assert tables(model)
    for table in tables(model).values():
        assert not table.requires_grad
        assert not table.any()
    zeroed = [value for value in load_file(next((tmp_path / "long").glob("*.safetensors"))).values() if not value.any() and value.ndim == 2]
    assert zeroed


def test_without_positions_an_encoder_sees_a_bag_of_words(built: Callable[[str], Path], tmp_path: Path) -> None:
    convert_checkpoint(built("BertModel"), tmp_path / "none", mechanism="full", positions="none")
    convert_checkpoint(built("BertModel"), tmp_path / "alibi", mechanism="full", positions="alibi")
    ids, order = torch.randint(1000, 2000, (1, 40)), torch.randperm(40)
    for kind, blind in (("none", True), ("alibi", False)):
        model = hf_longattn.LongBertModel.from_pretrained(tmp_path / kind).eval()
        with torch.no_grad():
            plain, mixed = (model(x).last_hidden_state for x in (ids, ids[:, order]))
        assert torch.allclose(plain[:, order], mixed, atol=1e-5) == blind


def test_a_short_checkpoint_loads_without_its_table(built: Callable[[str], Path]) -> None:
    from hf_longattn import LongBertConfig, LongBertModel

    attention = {"mechanism": "window", "window": 16, "relative": "alibi"}
    config = LongBertConfig.from_pretrained(
        built("BertModel"), max_position_embeddings=300, long_attention=attention, position_extension="none"
    )
    for model in (LongBertModel.from_pretrained(built("BertModel"), config=config), LongBertModel(config)):
        (table,) = tables(model).values()
        assert table.shape[0] == 300
        assert not table.any()
        assert not table.requires_grad


def test_relative_positions_beside_a_table(built: Callable[[str], Path], tmp_path: Path) -> None:
    source = built("BertForMaskedLM")
    report = convert_checkpoint(source, tmp_path / "t5", mechanism="full", relative="t5_buckets")
    assert report.passed
    assert not report.needs_training  # they begin at zero
    assert report.plan["tensor_counts"]["added"] == 2
    report = convert_checkpoint(source, tmp_path / "alibi", mechanism="full", relative="alibi")
    (check,) = [check for check in report.checks if check.status == "needs training"]
    assert "relative=alibi changes every score" in check.detail
    model = hf_longattn.LongBertForMaskedLM.from_pretrained(tmp_path / "alibi")
    assert all(table.any() and table.requires_grad for table in tables(model).values())


def test_alibi_stands_in_every_layer(built: Callable[[str], Path]) -> None:
    layers = {1: {"mechanism": "full"}}
    plan = plan_conversion(built("GPT2LMHeadModel"), mechanism="window", window=16, layers=layers, positions="alibi")
    assert [plan.attention.for_layer(index)[1]["relative"] for index in range(2)] == ["alibi", "alibi"]
    plan = plan_conversion(
        built("GPT2LMHeadModel"), long_attention={"layers": [{"mechanism": "window"}, {"mechanism": "full"}]}, positions="alibi"
    )
    assert [plan.attention.for_layer(index)[1]["relative"] for index in range(2)] == ["alibi", "alibi"]


def test_what_cannot_be_done_is_said(built: Callable[[str], Path]) -> None:
    bert, llama = built("BertForMaskedLM"), built("LlamaForCausalLM")
    with pytest.raises(PositionError, match=r"does not fit a model with rotary positions.*--option relative=alibi"):
        plan_conversion(llama, mechanism="window", positions="alibi")
    with pytest.raises(PositionError, match=r"contradicts relative='shaw'; give positions='none'"):
        plan_conversion(bert, mechanism="window", relative="shaw", positions="alibi")
    with pytest.raises(OptionError, match="has no scores that relative positions could be added to"):
        plan_conversion(bert, mechanism="linear", positions="alibi")
    with pytest.raises(PositionError, match=r"expected auto or one of .*none, alibi.*Did you mean 'alibi'"):
        plan_conversion(bert, mechanism="window", positions="alibbi")
    with pytest.raises(PositionError, match=r"sinusoidal positions, which are computed; expected auto, none or alibi"):
        plan_conversion(built("PegasusForConditionalGeneration"), positions="tile")
