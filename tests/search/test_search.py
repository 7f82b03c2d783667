"""Searches from budget to result, and conversions that choose for themselves (``--mechanism auto``)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

import hf_longattn
from hf_longattn.conversion.tokenizer import load_tokenizer
from hf_longattn.errors import CheckpointError, InputError, LongAttentionError, OptionError
from hf_longattn.files import read_json
from hf_longattn.inspect import Candidate, captured_mass
from hf_longattn.search import choose_mechanisms, search_design
from hf_longattn.search.budget import Budget
from tests.cli.test_commands import output


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("0.25", 0.25, ""),
        ("25%", 0.25, ""),
        ("1.5s", 1.5, "s"),
        ("800 ms", 0.8, "s"),
        (0.5, 0.5, ""),
    ],
)
def test_budgets_are_read(text: str | float, value: float, unit: str) -> None:
    result = Budget.read(text)
    assert result.value == pytest.approx(value)
    assert result.unit == unit
    assert Budget.read(result) is result


@pytest.mark.parametrize("text", ["", "0", "-1", "cheap", "1.5.2", "nan", "0.0s", "٣", "200MB"])
def test_texts_that_are_no_budget_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="give a number above 0 such as"):
        Budget.read(text)


def test_a_budget_without_a_unit_is_relative_to_full_attention() -> None:
    assert Budget.read("0.25").limit(8.0) == 2.0
    assert Budget.read("1.5s").limit(8.0) == 1.5


@pytest.mark.parametrize("text", ["0.2", "1s"])
@pytest.mark.parametrize("amount", [0.123456, 1.23456, 123_456.7, 12_345_678.9])
def test_a_budget_that_is_offered_is_enough_and_can_be_typed(text: str, amount: float) -> None:
    budget = Budget.read(text)
    offered = Budget.read(budget.like(amount, 2.0))
    assert offered.unit == budget.unit
    assert amount <= offered.limit(2.0) <= 1.02 * amount


CANDIDATES = ["window:window=8", "window:window=16", "longformer:window=8", "full"]
SECONDS = {
    "window:window=8": 1.0,
    "window:window=16": 2.0,
    "longformer:window=8": 1.5,
    "full": 8.0,
    "linear": 0.5,
    "window:window=64": 4.0,
    "strided:window=8,stride=8": 3.0,
}


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs that do not depend on the machine."""

    def layer_seconds(candidates: Any, *_: Any) -> Any:
        return {str(candidate): SECONDS[str(candidate)] for candidate in candidates}, {}

    monkeypatch.setattr("hf_longattn.search.search.layer_seconds", layer_seconds)


@pytest.mark.thorough
@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("budget", ["0.14", "6s", "0.5", "24s"])
def test_no_design_within_the_budget_keeps_more_than_the_chosen_one(encoder: Path, text: Path, budget: str) -> None:
    result = search_design(encoder, text, budget=budget, candidates=CANDIDATES, pieces=2)
    limit = result.budget.limit(result.full_seconds)  # type: ignore[union-attr]
    tables = result.scores
    possible = [
        names for names in itertools.product(CANDIDATES, repeat=3) if sum(SECONDS[name] for name in names) <= limit
    ]
    most = max(sum(tables[layer][name] for layer, name in enumerate(names)) for names in possible)
    assert result.chosen.score == pytest.approx(most / 3)
    assert result.chosen.seconds <= limit
    assert result.full_seconds == 24.0
    assert result.chosen.seconds == sum(SECONDS[name] for name in result.chosen.design.names)


@pytest.mark.thorough
@pytest.mark.usefixtures("priced")
def test_scores_are_the_captured_mass_of_the_checkpoint(encoder: Path, text: Path) -> None:
    result = search_design(encoder, text, budget="0.5", candidates=CANDIDATES, pieces=1)
    model = AutoModelForMaskedLM.from_pretrained(encoder)
    tokenizer = load_tokenizer(encoder)
    ids = torch.tensor(tokenizer(text.read_text(encoding="utf-8"))["input_ids"])
    piece = torch.cat([ids[:63], ids[-1:]])
    mass = captured_mass(model, piece, CANDIDATES, seed=0).mass.mean(1)
    for scores, expected in zip(result.scores, mass, strict=True):
        assert list(scores.values()) == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.thorough
@pytest.mark.usefixtures("priced")
def test_designs_replace_the_windows_of_the_base(
    windowed: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layers with a window keep it in a conversion unless they are named: what is measured, reported and converted is
    the design."""
    file, names = tmp_path / "design.yaml", ["window:window=8", "full"]
    result = search_design(windowed, text, file, budget="0.2", length=128, candidates=names, pieces=1)
    rows = result.scores
    assert [set(row) for row in rows] == [{*names, "window:window=16"}] * 3
    assert [row["window:window=8"] < 1 - 1e-6 for row in rows] == [True] * 3
    assert [row["window:window=16"] > 1 - 1e-6 for row in rows] == [True, False, True]
    assert result.chosen.design.names.count("full") == 0
    output(capsys, "convert", windowed, tmp_path / "long", "--config", file, "--no-verify")
    attention = result.chosen.design.attention()
    hf_longattn.convert_checkpoint(windowed, tmp_path / "same", long_attention=attention, max_length=128, verify=False)
    for folder in ("long", "same"):
        config = AutoConfig.from_pretrained(tmp_path / folder)
        runs = [str(Candidate(*config.long_attention.for_layer(layer))) for layer in range(3)]
        assert runs == list(result.chosen.design.names)


@pytest.mark.usefixtures("priced")
def test_mechanisms_that_keep_no_share_of_the_softmax_are_left_out(encoder: Path, text: Path) -> None:
    result = search_design(encoder, text, budget="0.3", candidates=["linear", "window:window=16"], pieces=1)
    assert "linear" in result.reasons
    assert set(result.chosen.design.names) == {"window:window=16"}
    with pytest.raises(OptionError, match=r"No candidate can be judged by captured mass \(is not .*\); give other"):
        search_design(encoder, text, budget="0.3", candidates=["linear"], pieces=1)


@pytest.mark.thorough
@pytest.mark.usefixtures("priced")
def test_candidates_that_tiled_positions_do_not_suit_are_left_out(encoder: Path, text: Path) -> None:
    """With tiled positions full attention sees every position twice, to which scores at the trained length are
    blind."""
    settings: dict[str, Any] = {"budget": "24s", "pieces": 1, "candidates": ["window:window=8", "full"]}
    result = search_design(encoder, text, length=128, **settings)
    assert set(result.chosen.design.names) == {"window:window=8"}
    assert result.reasons["full"] == "sees keys at any distance, and tiled positions repeat every 64 tokens."
    assert "full" not in search_design(encoder, text, length=64, **settings).reasons
    assert "full" not in search_design(encoder, text, length=128, positions="interpolate", **settings).reasons
    with pytest.raises(
        OptionError, match=r"No candidate is left: full sees .*; give one that sees less with --candidate"
    ):
        search_design(encoder, text, length=128, **{**settings, "candidates": ["full"]})


@pytest.mark.thorough
@pytest.mark.usefixtures("priced")
def test_a_search_says_the_held_out_loss_of_its_design(
    encoder: Path, decoder: Path, text: Path, tmp_path: Path
) -> None:
    for source in (encoder, decoder):
        result = search_design(source, text, budget="0.9", length=128, candidates=["window:window=16"], pieces=2)
        change = result.loss_change
        assert change is not None
        assert 4.0 < change.before < 9.0
        assert result.to_dict()["loss_change"]["after"] == pytest.approx(change.after)
        assert str(change) in result.loss_sentence
        attention = result.chosen.design.attention()
        report = hf_longattn.convert_checkpoint(
            source, tmp_path / f"{source.name}-128", long_attention=attention, max_length=128
        )
        loss = next(check.values["change"] for check in report.checks if "change" in check.values)
        assert loss["before"] == pytest.approx(change.before, rel=0.3)
    model = AutoModel.from_pretrained(encoder)
    model.save_pretrained(tmp_path / "headless")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "headless")
    result = search_design(
        tmp_path / "headless", text, budget="0.9", length=128, candidates=["window:window=16"], pieces=1
    )
    assert "is a BertModel, which predicts no tokens" in result.loss_sentence


@pytest.mark.usefixtures("priced")
def test_a_held_out_loss_needs_a_tokenizer_with_a_mask_token(encoder: Path, tmp_path: Path) -> None:
    AutoModelForMaskedLM.from_pretrained(encoder).save_pretrained(tmp_path / "bare")
    ids = torch.randint(5, 500, (600,))
    result = search_design(tmp_path / "bare", ids, budget="0.9", length=128, candidates=["window:window=16"], pieces=1)
    assert "needs a tokenizer with a mask token" in result.loss_sentence


@pytest.mark.usefixtures("priced")
def test_a_budget_that_nothing_meets_names_the_cheapest_and_leaves_no_file(
    encoder: Path, text: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"length": 128, "candidates": CANDIDATES, "pieces": 1}
    with pytest.raises(
        OptionError,
        match=r"No design meets the budget of 0.05 .* window:window=8 in every layer, needs 0.1250; give --budget",
    ):
        search_design(encoder, text, tmp_path / "design.yaml", budget="0.05", **settings)
    assert list(tmp_path.iterdir()) == []
    search_design(encoder, text, budget="0.1250", **settings)


@pytest.mark.usefixtures("priced")
def test_a_decoder_is_searched_in_the_causal_form(decoder: Path, text: Path) -> None:
    result = search_design(decoder, text, budget="0.5", length=128, candidates=CANDIDATES, pieces=1)
    assert result.compared_at == 64
    assert len(result.scores) == 2


BAD: dict[str, tuple[dict[str, Any], type[LongAttentionError], str]] = {
    "a budget": ({"budget": "much"}, OptionError, "give a number above 0"),
    "no pieces": ({"pieces": 0}, OptionError, "At least one piece"),
    "no setting": (
        {"peices": 3},
        OptionError,
        "'peices' is not a setting of SearchConfig; expected one of .* 'pieces'",
    ),
    "a mechanism": ({"candidates": ["windw"]}, OptionError, "Did you mean 'window'"),
    "an option": ({"candidates": ["window:windw=3"]}, OptionError, "Did you mean 'window'"),
    "no candidate": ({"candidates": []}, OptionError, "There is no candidate"),
    "segments": ({"candidates": ["recurrent_memory"]}, OptionError, "reads a text segment by segment"),
    "a device": ({"device": "toaster"}, OptionError, "There is no device 'toaster'"),
    "too long a comparison": ({"compare_at": 65}, InputError, "compared on texts of up to 64 tokens"),
    "too short a result": ({"length": 32}, InputError, "The source takes 64 tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_search_refuses_settings_that_do_not_fit(case: str, encoder: Path, text: Path) -> None:
    settings, kind, sentence = BAD[case]
    with pytest.raises(kind, match=sentence) as raised:
        search_design(encoder, text, **{"length": 128, "pieces": 1, **settings})
    assert "\n" not in str(raised.value)


def test_a_search_refuses_texts_that_are_too_short_or_missing(encoder: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("A few words.", encoding="utf-8")
    with pytest.raises(InputError, match=r"has \d+ tokens, but the search reads 64 at once; give a longer text"):
        search_design(encoder, short, tmp_path / "design.yaml", length=128)
    assert not (tmp_path / "design.yaml").exists()
    with pytest.raises(LongAttentionError, match=r"The text .* cannot be read"):
        search_design(encoder, tmp_path / "none.txt", length=128)


def test_a_search_does_not_write_over_a_file(encoder: Path, text: Path, tmp_path: Path) -> None:
    """Before anything is measured."""
    (tmp_path / "design.yaml").write_text("mine")
    with pytest.raises(CheckpointError, match=r"design\.yaml' already exists; choose another file"):
        search_design(encoder, text, tmp_path / "design.yaml", length=128, candidates=CANDIDATES)
    assert (tmp_path / "design.yaml").read_text() == "mine"


@pytest.fixture
def priced_by_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs by the width of a window."""

    def layer_seconds(candidates: Any, *_: Any) -> Any:
        return {str(candidate): float(candidate.options.get("window", 4096)) / 4096 for candidate in candidates}, {}

    monkeypatch.setattr("hf_longattn.search.search.layer_seconds", layer_seconds)


@pytest.mark.thorough
@pytest.mark.usefixtures("priced_by_width")
def test_plan_and_report_say_what_auto_chose_and_why(encoder: Path, text: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"mechanism": "auto", "budget": "0.03", "max_length": 128, "search_input": text}
    plan = hf_longattn.plan_conversion(encoder, choose=choose_mechanisms, **settings)
    assert plan.choice is not None
    assert "keeps the most of the layers' attention within 0.03 of full attention's time" in plan.choice["reason"]
    design = hf_longattn.search_design(encoder, text, budget="0.03", length=128).chosen.design
    assert plan.attention == design.attention().with_option("exact_length", 64)  # which a conversion adds
    report = hf_longattn.convert_checkpoint(encoder, tmp_path / "long", choose=choose_mechanisms, **settings)
    assert report.plan["choice"] == json.loads(json.dumps(plan.to_dict()["choice"]))
    assert report.config["mechanism"] == "auto"
    assert report.config["budget"] == "0.03"
    written = read_json(tmp_path / "long" / "config.json")
    assert hf_longattn.LongAttentionConfig.from_dict(written["long_attention"]) == plan.attention
    stored = read_json(tmp_path / "long" / "conversion_report.json")
    assert stored["plan"]["choice"]["reason"] == plan.choice["reason"]


@pytest.mark.thorough
@pytest.mark.usefixtures("priced_by_width")
def test_plan_and_convert_print_the_reason_of_auto(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for typed in (["plan", encoder], ["convert", encoder, tmp_path / "long"]):
        said = output(capsys, *typed, "--mechanism", "auto", "--max-length", "128")
        assert "keeps the most of the layers' attention within 0.25" in " ".join(said.split())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mechanism": "auto", "window": 8}, "--mechanism auto and --option exclude each other"),
        ({"mechanism": "auto", "layers": {0: "full"}}, "--mechanism auto and --layers exclude each other"),
        ({"mechanism": "auto", "generic": True}, "--mechanism auto and --generic exclude each other"),
        ({"budget": "0.5"}, "are for --mechanism auto"),
        ({"mechanism": "auto", "budget": "0.0001"}, "No design meets the budget"),
    ],
)
@pytest.mark.usefixtures("priced_by_width")
def test_auto_refuses_options_and_budgets_that_do_not_fit(
    settings: dict[str, Any], sentence: str, encoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=sentence):
        hf_longattn.convert_checkpoint(
            encoder, tmp_path / "long", choose=choose_mechanisms, max_length=128, **settings
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("priced_by_width")
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
