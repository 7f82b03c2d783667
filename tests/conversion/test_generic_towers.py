"""`longattn convert --generic --towers`: plain classes of several towers, each with mechanisms of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel
from typer.testing import CliRunner

import hf_longattn
from hf_longattn import convert_checkpoint, plan_conversion, revert_checkpoint
from hf_longattn.cli.app import app
from hf_longattn.errors import LongAttentionError, OptionError
from hf_longattn.modeling.generic import towers_of
from tests.modeling.test_generic_towers import build, mechanisms, output

WINDOW = {"mechanism": "window", "window": 4}
CASES = ["siglip", "llava", "pixtral", "qwen2_vl", "qwen2_5_vl"]


@pytest.mark.parametrize("case", CASES)
def test_each_tower_is_planned_written_compared_and_loaded(case: str, tmp_path: Path) -> None:
    model, inputs = build(case)
    model.save_pretrained(tmp_path / "plain")
    text = {"mechanism": "window", "window": 8}
    report = convert_checkpoint(tmp_path / "plain", tmp_path / "long", generic=True, towers={"text": text, "vision": {"mechanism": "full"}})
    checks = {check.name: check for check in report.checks}
    assert checks["equal with the source's attention"].status == "passed"
    assert checks["with the mechanism of the tower text"].status == "needs training"
    assert checks["with the mechanism"].status == "needs training"
    assert checks["finite"].status == "passed"
    assert set(report.plan["towers"]) == {"text", "vision"}
    assert report.plan["long_attention"] == {"towers": {"text": text, "vision": {"mechanism": "full"}}}
    card = (tmp_path / "long" / "README.md").read_text()
    assert "`window` attention in the tower text and `full` attention in the tower vision" in card
    assert "load_generic" in card
    loaded = hf_longattn.load_generic(tmp_path / "long")
    assert {name: mechanisms(tower) for name, tower in towers_of(loaded).items()} == {"text": {"window"}, "vision": {"full"}}
    hf_longattn.enable_long_attention(model, {"towers": {"text": text, "vision": {"mechanism": "full"}}})
    assert torch.allclose(output(loaded, inputs), output(model, inputs), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="does not recognize this architecture"):
        AutoModel.from_pretrained(tmp_path / "long")


@pytest.mark.parametrize("case", CASES)
def test_full_attention_in_every_tower_is_the_source(case: str, tmp_path: Path) -> None:
    build(case)[0].save_pretrained(tmp_path / "plain")
    full = {"mechanism": "full"}
    report = convert_checkpoint(tmp_path / "plain", tmp_path / "long", generic=True, towers={"text": full, "vision": full})
    assert not report.needs_training
    names = ["with the mechanism of the tower text", "with the mechanism of the tower vision", "with the mechanism"]
    assert [check.status for check in report.checks if check.name in names] == ["passed"] * 3
    written = load_file(tmp_path / "long" / "model.safetensors")
    assert all(torch.equal(written[name], values) for name, values in load_file(tmp_path / "plain" / "model.safetensors").items())


def test_the_language_model_of_pictures_and_texts_grows(tmp_path: Path) -> None:
    build("llava")[0].save_pretrained(tmp_path / "plain")
    towers = {"text": {"mechanism": "window", "window": 64}}
    report = convert_checkpoint(tmp_path / "plain", tmp_path / "long", generic=True, towers=towers, max_length=8192)
    assert (report.plan["old_length"], report.plan["new_length"]) == (2048, 8192)
    assert hf_longattn.load_generic(tmp_path / "long").config.text_config.max_position_embeddings == 8192


@pytest.mark.parametrize("case", ["siglip", "llava", "qwen2_vl"])
def test_reverting_gives_the_plain_model_back(case: str, tmp_path: Path) -> None:
    build(case)[0].save_pretrained(tmp_path / "plain")
    towers = {"text": {"mechanism": "hedgehog"} if case == "siglip" else WINDOW, "vision": WINDOW}
    convert_checkpoint(tmp_path / "plain", tmp_path / "long", generic=True, towers=towers, verify=False)
    report = revert_checkpoint(tmp_path / "long", tmp_path / "again")
    assert {check.name: check.status for check in report.checks}["equal to the source with the class's attention"] == "passed"
    files = [load_file(tmp_path / folder / "model.safetensors") for folder in ("plain", "again")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[1][name], values) for name, values in files[0].items())
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("plain", "again")]
    assert configs[0]["model_type"] == configs[1]["model_type"]
    assert "long_attention" not in configs[1]
    assert type(AutoModel.from_pretrained(tmp_path / "again")) is type(AutoModel.from_pretrained(tmp_path / "plain"))
    with pytest.raises(OptionError, match="left its positions as they were; leave --max-length out"):
        revert_checkpoint(tmp_path / "long", tmp_path / "other", max_length=20)


def test_from_the_command_line(tmp_path: Path) -> None:
    build("siglip")[0].save_pretrained(tmp_path / "plain")
    towers = "text=full,vision=window:window=8,dilation=2"
    shown = CliRunner().invoke(app, ["plan", str(tmp_path / "plain"), "--generic", "--towers", towers])
    assert shown.exit_code == 0, shown.output
    assert "tower text" in shown.output
    assert "tower vision" in shown.output
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "plain"), str(tmp_path / "long"), "--generic", "--towers", towers, "--json"])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "long" / "config.json").read_text())["long_attention"]["towers"]
    assert written == {"text": {"mechanism": "full"}, "vision": {"mechanism": "window", "window": 8, "dilation": [2]}}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"towers": {"audio": WINDOW}}, "has no tower 'audio'; its towers are "),
        ({"towers": {"text": WINDOW}, "mechanism": "full"}, "--towers gives each tower its mechanism"),
        ({"towers": {"text": {"mechanism": "windw"}}}, "windw"),
        ({"towers": {"text": {"mechanism": "window", "widow": 4}}}, "widow"),
        ({"towers": {"text": WINDOW}, "max_length": 4096}, "cannot change the positions of a SiglipModel"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    build("siglip")[0].save_pretrained(tmp_path)
    with pytest.raises(LongAttentionError, match=sentence) as caught:
        plan_conversion(tmp_path, generic=True, **settings)
    assert "\n" not in str(caught.value)


def test_a_model_of_one_stack_has_no_towers(tmp_path: Path) -> None:
    config = AutoConfig.for_model("bert", vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="a BertModel has one stack; give --mechanism"):
        plan_conversion(tmp_path, towers={"text": WINDOW})
