"""Every metric loads by its name and by its path; examples/extend/same_length.py does as a file dropped in place."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluate
import pytest

import hf_longattn.evaluation.metrics as metrics
from hf_longattn.errors import OptionError
from hf_longattn.evaluation import load_metric
from hf_longattn.names import module_names
from tests.cases import every_case

ROOT = Path(__file__).resolve().parents[3]


def example_of(name: str) -> tuple[Any, Any, str]:
    """Its module's predictions and references that agree, and the score that is then 100."""
    module = importlib.import_module(f"{metrics.__name__}.{name}")
    example = getattr(module, "EXAMPLE", None)
    message = (
        f"{module.__file__} needs EXAMPLE = (predictions, references, score): lists that agree, and the name of the score that is "
        'then 100; see "Add a metric" in docs/extending.md.'
    )
    assert isinstance(example, tuple), message
    assert len(example) == 3, message
    return example


@every_case("source", ["name", "path"])
@every_case("name", module_names("evaluation.metrics"))
def test_every_metric_loads_by_name_and_by_path(name: str, source: str, no_network: None) -> None:
    check_metric(load_metric(name) if source == "name" else evaluate.load(str(Path(metrics.__path__[0]) / f"{name}.py")), name)


def check_metric(metric: Any, name: str) -> None:
    """It is described, and computes the example of its module; fewer than ten items have no standard error."""
    predictions, references, score = example_of(name)
    assert isinstance(metric, evaluate.Metric)
    assert metric.description.strip()
    for items in (9, 10):
        result = metric.compute(predictions=(predictions * items)[:items], references=(references * items)[:items])
        assert (result[score], result["n"]) == (pytest.approx(100.0), items)
        assert result.get(f"{score}_se") == (pytest.approx(0.0, abs=1e-6) if items >= 10 else None)
        assert items >= 10 or not any(name.endswith("_se") for name in result)


@pytest.fixture
def dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files are metrics of the package."""
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    yield tmp_path
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(f"{metrics.__name__}.{file.stem}", None)


def test_metric_file_dropped_in_place_is_found_by_name(dropped: Path, no_network: None) -> None:
    shutil.copy(ROOT / "examples" / "extend" / "same_length.py", dropped)
    assert "same_length" in module_names("evaluation.metrics")
    result = load_metric("same_length").compute(predictions=["ab", "c"] * 5, references=["xy", "xyz"] * 5)
    assert result == pytest.approx({"same_length": 50.0, "same_length_se": 50 / 3, "n": 10})
    check_metric(load_metric("same_length"), "same_length")


def test_metric_file_without_a_metric_or_an_example_is_refused(dropped: Path) -> None:
    unfinished = (
        "from hf_longattn.evaluation.metrics import DescribedMetric\n\nclass Mine(DescribedMetric):\n    items = 'string', 'string'"
    )
    for content in ("", unfinished):
        sys.modules.pop(f"{metrics.__name__}.empty", None)
        (dropped / "empty.py").write_text(content, encoding="utf-8")
        with pytest.raises(OptionError, match=r"'empty' .* no class that derives from evaluate\.Metric and has all that its base"):
            load_metric("empty")
    with pytest.raises(AssertionError, match=r"empty\.py needs EXAMPLE = \(predictions, references, score\)"):
        example_of("empty")
