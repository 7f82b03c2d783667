import pytest

from scripts.dev.benchmarks.report import store_study, stored_study


def test_study_is_stored_whole_or_not_at_all(tmp_path):
    output = tmp_path / "results" / "study"
    assert stored_study(output) == {}
    assert store_study(output, {"loss": 1.5, "name": "±"}, "| 1.5 |\n") == output.with_suffix(".json")
    assert stored_study(output) == {"loss": 1.5, "name": "±"}
    assert output.with_suffix(".md").read_text(encoding="utf-8") == "| 1.5 |\n"
    with pytest.raises(TypeError):
        store_study(output, {"loss": object()}, "none")
    store_study(output, {"loss": 2})  # a study that is not complete has no text yet
    assert stored_study(output) == {"loss": 2}
    assert output.with_suffix(".md").read_text(encoding="utf-8") == "| 1.5 |\n"
    assert sorted(path.name for path in output.parent.iterdir()) == ["study.json", "study.md"]
