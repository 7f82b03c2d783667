"""``--mechanism auto``: a conversion that chooses for itself, and says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hf_longattn
from hf_longattn.cli import main
from hf_longattn.errors import OptionError
from hf_longattn.search import choose_mechanisms
from hf_longattn.search.costs import LayerCost, LayerCosts


@pytest.fixture(autouse=True)
def _priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs by the width of a window."""

    def measure(self: LayerCosts, candidates: Any, progress: Any = None, memory: bool = False) -> dict[str, LayerCost]:
        return {str(candidate): LayerCost(float(candidate.options.get("window", 4096)) / 4096) for candidate in candidates}

    monkeypatch.setattr(LayerCosts, "measure", measure)


@pytest.mark.thorough
def test_plan_and_report_say_what_auto_chose_and_why(encoder: Path, text: Path, tmp_path: Path) -> None:
    plan = hf_longattn.plan_conversion(
        encoder, choose=choose_mechanisms, mechanism="auto", budget="0.03", max_length=128, search_input=text
    )
    assert plan.choice is not None
    assert "keeps the most of the layers' attention within 0.03 of full attention's time" in plan.choice["reason"]
    design = hf_longattn.search_design(encoder, text, budget="0.03", length=128).chosen.design
    assert plan.attention == design.attention().with_option("exact_length", 64)  # which a conversion adds
    report = hf_longattn.convert_checkpoint(
        encoder, tmp_path / "long", choose=choose_mechanisms, mechanism="auto", budget="0.03", max_length=128, search_input=text
    )
    assert report.plan["choice"] == json.loads(json.dumps(plan.to_dict()["choice"]))
    assert report.config["mechanism"] == "auto"
    assert report.config["budget"] == "0.03"
    written = json.loads((tmp_path / "long" / "config.json").read_text(encoding="utf-8"))
    assert hf_longattn.LongAttentionConfig.from_dict(written["long_attention"]) == plan.attention
    stored = json.loads((tmp_path / "long" / "conversion_report.json").read_text(encoding="utf-8"))
    assert stored["plan"]["choice"]["reason"] == plan.choice["reason"]


@pytest.mark.thorough
def test_plan_and_convert_print_the_reason_of_auto(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for typed in (["plan", str(encoder)], ["convert", str(encoder), str(tmp_path / "long")]):
        with pytest.raises(SystemExit) as ended:
            main([*typed, "--mechanism", "auto", "--max-length", "128"])
        assert not ended.value.code
        assert "keeps the most of the layers' attention within 0.25" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mechanism": "auto", "window": 8}, "--mechanism auto and --option exclude each other"),
        ({"mechanism": "auto", "layers": {0: "full"}}, "--mechanism auto and --layers exclude each other"),
        ({"mechanism": "auto", "generic": True}, "--mechanism auto and --generic exclude each other"),
        ({"budget": "0.5"}, "are for --mechanism auto"),
        ({"mechanism": "auto", "budget": "0.0001"}, "No design meets the budget"),
        ({"mechanism": "auto", "budget": "cheap"}, "give a number above 0"),
    ],
)
def test_auto_refuses_options_and_budgets_that_do_not_fit(settings: dict[str, Any], sentence: str, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=sentence):
        hf_longattn.convert_checkpoint(encoder, tmp_path / "long", choose=choose_mechanisms, max_length=128, **settings)
    assert list(tmp_path.iterdir()) == []


def test_auto_takes_the_function_that_chooses(encoder: Path, tmp_path: Path) -> None:
    """Conversion is below search, and imports nothing of it."""
    with pytest.raises(OptionError, match=r"pass choose=hf_longattn\.search\.choose_mechanisms"):
        hf_longattn.plan_conversion(encoder, mechanism="auto", max_length=128)
    chosen = hf_longattn.LongAttentionConfig("window", window=8)
    plan = hf_longattn.plan_conversion(
        encoder, mechanism="auto", max_length=128, choose=lambda source, config: (chosen, {"reason": "mine"})
    )
    assert plan.attention == chosen.with_option("exact_length", 64)  # which a conversion adds
    assert plan.to_dict()["choice"] == {"reason": "mine"}
