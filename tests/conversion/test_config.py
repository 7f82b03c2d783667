"""The settings of a conversion are listed once: keywords, one object, the command line and the report have the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from hf_longattn import LongAttentionConfig
from hf_longattn.cli.app import app
from hf_longattn.conversion import ConversionConfig, convert_checkpoint, plan_conversion
from hf_longattn.errors import OptionError
from tests.cases import every_case

FIELDS = {one.name: one for one in dataclasses.fields(ConversionConfig)}


@pytest.mark.thorough
@every_case("name", FIELDS)
def test_every_conversion_setting_has_its_help_in_docstring_and_command(name: str) -> None:
    about = FIELDS[name].metadata
    assert about["help"].endswith(".")
    assert f"    {name}: {about['help']}" in (ConversionConfig.__doc__ or "")
    commands: Any = typer.main.get_command(app)
    flag = (about["flag"] or f"--{name.replace('_', '-')}").partition("/")[0]
    for command in ("convert", "plan"):
        flags = {one: found.help for found in commands.commands[command].params for one in found.opts}
        assert flags.get(flag) == (about["help"] if about["flag"] != "-" else None)


def test_conversion_config_is_made_of_keywords_and_refuses_contradictions() -> None:
    assert ConversionConfig.from_keywords(None, {"mechanism": "window", "window": 16, "options": {"num_sinks": 2}}) == ConversionConfig(
        mechanism="window", options={"num_sinks": 2, "window": 16}
    )
    for values, sentence in (
        ({"window": 16, "options": {"window": 8}}, "given twice"),
        ({"options": {"mechanism": "window"}}, "not an option of a mechanism"),
        ({"layers": {0: {}}, "options": {"layers": {}}}, "not an option of a mechanism"),
        ({"generic": True, "remote_code": True}, "leave one of them out"),
    ):
        with pytest.raises(OptionError, match=sentence):
            ConversionConfig.from_keywords(None, values)
    with pytest.raises(OptionError, match="'window' was given together with a config"):
        ConversionConfig.from_keywords(ConversionConfig(), {"window": 16})


def test_conversion_config_does_what_keywords_do(built: Callable[[str], Path], tmp_path: Path) -> None:
    layers = {0: {"mechanism": "full"}}
    config = ConversionConfig(mechanism="window", options={"window": 16}, layers=layers, max_length=200, verify=False)
    plan = plan_conversion(built("BertForMaskedLM"), tmp_path / "long", config)
    keywords = {"mechanism": "window", "window": 16, "layers": layers, "max_length": 200}
    assert plan.to_dict() == plan_conversion(built("BertForMaskedLM"), **keywords).to_dict()
    report = convert_checkpoint(built("BertForMaskedLM"), tmp_path / "long", config)
    written = json.loads((tmp_path / "long" / "conversion_report.json").read_text())["config"]
    assert written == report.config == json.loads(json.dumps(config.to_dict()))
    assert written["layers"] == {"0": {"mechanism": "full"}}


def test_conversion_report_keeps_no_token_and_no_path() -> None:
    config = ConversionConfig(token="hf_secret", verify_text="/home/somebody/text.txt", long_attention=LongAttentionConfig("full"))
    assert config.to_dict() == {"verify_text": "text.txt", "long_attention": {"mechanism": "full"}}
    assert "hf_secret" not in repr(config)
