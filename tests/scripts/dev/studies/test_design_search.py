"""The study of a searched design: baselines cost at least as much as the design, and the table says what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hf_longattn.errors import LongAttentionError
from scripts.dev.studies import design_search
from scripts.dev.studies.design_search import BY_MASS, FOUND, markdown, systems

STORED = Path(__file__).resolve().parents[4] / "scripts" / "dev" / "results" / "search.json"


def chosen(*layers: str) -> dict[str, Any]:
    return {"chosen": {"layers": list(layers)}}


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Windows cost their width, longformer 50 more."""

    def costs(walk: object, names: list[str]) -> dict[str, float]:
        return {name: float(name.rpartition("=")[2] or 1e4) + 50 * name.startswith("longformer") for name in names if "=" in name}

    monkeypatch.setattr(design_search, "measured_costs", costs)
    return SimpleNamespace(work=tmp_path, options=SimpleNamespace(also=["window:window=1024"]))


def test_baselines_cost_as_much_as_the_design(walk: Any) -> None:
    design = ("window:window=64", "window:window=320", "window:window=100", "window:window=320")  # 201 a layer
    found, costs = systems(walk, chosen(*design), chosen(*["window:window=96"] * 4))
    assert [one.name for one in found] == [FOUND, BY_MASS, "longformer:window=160", "window:window=208", "window:window=1024"]
    assert found[0].layers == design
    assert all(sum(costs[name] for name in one.layers) >= sum(costs[name] for name in design) for one in found[2:])
    assert found[3].flags == ("--mechanism", "window", "--option=window=208")


def test_a_design_that_no_width_reaches(walk: Any) -> None:
    with pytest.raises(LongAttentionError, match=r"no longformer costs as much as the design, .* give a smaller --budget"):
        systems(walk, chosen("window:window=5000"), chosen("window:window=96"))


def test_the_stored_table() -> None:
    record = json.loads(STORED.read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in record["rows"]}
    baselines = [row for row in rows.values() if row["name"] not in (FOUND, BY_MASS)]
    assert all(row["attention_seconds"] >= rows[FOUND]["attention_seconds"] for row in baselines)
    assert all(len(row["trained"]) == record["about"]["seeds"] for row in baselines)
    assert markdown(record) == STORED.with_suffix(".md").read_text(encoding="utf-8")
