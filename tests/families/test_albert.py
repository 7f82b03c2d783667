"""ALBERT: one attention module serves several layers, each with its mechanism."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.errors import OptionError
from hf_longattn.training.run import low_rank_updates
from hf_longattn.training.tasks.linearise import prepared_layers, transferring
from tests.reference.small_models import pair, plain_model, tokens

MIXED = {"mechanism": "window", "window": 8, "layers": {1: {"mechanism": "full"}, 2: {"window": 4}}}


def test_layers_of_albert_have_their_own_options() -> None:
    model = pair("albert", None, MIXED)[1]
    with torch.no_grad():
        attentions = model(tokens(1, 30), output_attentions=True).attentions
    assert [int((weights[0, 0, 15] > 0).sum()) for weights in attentions] == [9, 30, 5]


@pytest.mark.parametrize(
    "shape", [{"num_hidden_layers": 5, "num_hidden_groups": 2}, {"num_hidden_groups": 3, "inner_group_num": 2}]
)
def test_albert_with_groups_of_layers_equals_the_base(shape: dict[str, int]) -> None:
    plain, longer = pair("albert", None, {"mechanism": "full"}, **shape)
    with torch.no_grad():
        assert torch.equal(plain(tokens()).last_hidden_state, longer(tokens()).last_hidden_state)


def test_groups_of_albert_that_no_layer_uses_are_refused(tmp_path: Path) -> None:
    plain_model("albert", num_hidden_groups=3, num_hidden_layers=3).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 2}))
    with pytest.raises(
        OptionError,
        match="num_hidden_layers=2 and num_hidden_groups=3, so that no layer has the weights of group 2; corr",
    ):
        plan_conversion(tmp_path, mechanism="window")


def test_learned_mechanisms_of_albert_have_parameters_for_every_layer(tmp_path: Path) -> None:
    plain = plain_model("albert", "AlbertForMaskedLM")
    plain.save_pretrained(tmp_path / "short")
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="hedgehog", max_length=600)
    assert report.verified
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "long")
    learning = {name: parameter for name, parameter in model.named_parameters() if ".long_attention." in name}
    assert {name.split(".long_attention.")[1][0] for name in learning} == {"0", "1", "2"}
    base = model.base_model
    layers = prepared_layers(base)
    with transferring(base, layers):
        base(tokens(1, 40))["loss"].backward()
    assert len(layers) == 3
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in learning.values())
    with low_rank_updates(model, 2):
        updated = {name for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(updated) == 4


def test_the_cost_of_albert_counts_shared_weights_as_often_as_they_run(tmp_path: Path) -> None:
    plain_model("albert").save_pretrained(tmp_path)
    once, thrice = 4 * 64 * 64 + 2 * 64 * 96, 32 * 64
    pooler = 64 * 64
    assert plan_conversion(tmp_path, mechanism="window").shape.matrix_parameters == 3 * once + thrice + pooler
