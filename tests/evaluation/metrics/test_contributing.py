"""Every metric loads by its name and by its path; the one of CONTRIBUTING.md does as a file dropped in place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import evaluate
import pytest

import hf_longattn.evaluation.metrics as metrics
from hf_longattn.evaluation import list_metrics, load_metric

ROOT = Path(__file__).resolve().parents[3]
SECTION = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add a metric\n")[2].partition("\n## ")[0]
(SNIPPET,) = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)

QUESTION = {"answer": "a red fox", "facts": [{"title": "Fox", "sentence": 1}]}
INPUTS: dict[str, tuple[Any, Any, str]] = {
    "entities": (["B-A", "O"], ["B-A", "O"], "f1"),
    "hotpot": (QUESTION, QUESTION, "joint_f1"),
    "long_classification": (1, {"label": 1, "length": 9}, "accuracy"),
    "long_qa": ({"id": "1", "prediction_text": "fox"}, {"id": "1", "answers": {"text": ["fox"], "answer_start": [0]}, "length": 9}, "f1"),
    "rouge": ("a red fox", "a red fox", "rougeL"),
}
"""A prediction and a reference that agree, and the score that is then 100."""


def test_every_metric_is_tested() -> None:
    assert list_metrics() == sorted(INPUTS)


@pytest.mark.parametrize("source", ["name", "path"])
@pytest.mark.parametrize("name", INPUTS)
def test_a_metric_loads_by_name_and_by_path(name: str, source: str, no_network: None) -> None:
    prediction, reference, score = INPUTS[name]
    metric = load_metric(name) if source == "name" else evaluate.load(str(Path(metrics.__path__[0]) / f"{name}.py"))
    assert isinstance(metric, evaluate.Metric)
    assert metric.description.strip()
    result = metric.compute(predictions=[prediction] * 2, references=[reference] * 2)
    assert (result[score], result[f"{score}_se"], result["n"]) == (pytest.approx(100.0), 0.0, 2)


def test_a_metric_dropped_in_place_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    (tmp_path / "same_length.py").write_text(SNIPPET, encoding="utf-8")
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    assert "same_length" in list_metrics()
    result = load_metric("same_length").compute(predictions=["ab", "c"], references=["xy", "xyz"])
    assert result == pytest.approx({"same_length": 50.0, "same_length_se": 50.0, "n": 2})
