"""Terms of query and distance against plain operations, and models of sound: a check before any time, and one table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_longattn.errors import LongAttentionError
from scripts.dev.benchmarks import distance_terms, sound_models
from scripts.dev.benchmarks.app import app
from scripts.dev.benchmarks.case import Case


def test_the_command_stores_times_of_both_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance_terms, "_memory", lambda case: {"mebibytes": {"cpu-distances": 1, "blockwise": 2}})
    shape = ["--lengths", "600", "--sides", "20", "--heads", "2", "--head-dim", "16", "--repeats", "1", "--output-dir", str(tmp_path)]
    done = CliRunner().invoke(app, ["distances", *shape])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "distances.json").read_text())
    rows = [(result["term"], result["sees"], result["length"]) for result in record["results"]]
    assert [row for row in rows if "chunk" not in row[1]] == [(term, "20 keys on each side", 600) for term in distance_terms.TERMS]
    assert [row for row in rows if "chunk" in row[1]] == [("Transformer-XL", "its chunk of 20, 1 before", 600)]
    assert (tmp_path / "distances.md").read_text() == distance_terms.distance_table(record)


@pytest.mark.parametrize("path", ["cpu-distances", "blockwise"])
def test_the_memory_of_a_path_is_that_of_a_pass(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance_terms, "CHECKED", 300)
    case = distance_terms.TermCase(distance_terms.DEBERTA, 600, 20, Case(heads=2, head_dim=16))
    assert distance_terms._measured(path, dataclasses.asdict(case))["mebibytes"] >= 0


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = distance_terms.Fused.forward
    monkeypatch.setattr(distance_terms.Fused, "forward", lambda self: forward(self) * 1.01)
    with pytest.raises(LongAttentionError, match="nothing was timed"):
        distance_terms.run_distance_terms([600], [20], Case(heads=2, head_dim=16), repeats=1)


@pytest.mark.parametrize("name", sound_models.SHAPES)
def test_a_model_of_sound_is_the_stock_one_with_full_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, config_class, model_class, values = sound_models.SHAPES[name]
    small = {**values, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_conv_pos_embedding_groups": 4}
    known = config_class().to_dict()
    small = {field: value for field, value in small.items() if field in known}
    monkeypatch.setitem(sound_models.SHAPES, name, (base, config_class, model_class, small))
    monkeypatch.setattr(sound_models, "CHECKED_SECONDS", 1.0)
    assert sound_models._check(name, 1) <= sound_models.TOLERANCE


def test_the_table_of_models_has_a_line_for_each_duration() -> None:
    row = {"model": "parakeet", "minutes": 5, "layers": 24, "seconds": 2.0, "mebibytes": 100, "frames": 3750}
    window = {"implementation": sound_models.WINDOW, "side": 128}
    results = [row | window, row | {"implementation": sound_models.FULL, "seconds": 5.0}, row | {"implementation": sound_models.STOCK}]
    results += [row | window | {"side": 64, "seconds": 1.0}]
    results += [row | window | {"minutes": 60, "layers": 4, "mebibytes": 1_200, "frames": 45_000}]
    table = sound_models.sound_table({"results": results})
    assert "| parakeet | 24 | 5 | 3,750 | 128 | 2.0 | 100 | 5.0 | 100 | 2.0 | 100 | 1.0× | 2.5× |" in table
    assert "| parakeet | 24 | 5 | 3,750 | 64 | 1.0 | 100 | 5.0 | 100 | 2.0 | 100 | 2.0× | 5.0× |" in table
    assert "| parakeet | 4 | 60 | 45,000 | 128 | 2.0 | 1,200 | – | – | – | – | – | – |" in table
    assert "parakeet: from 3,750 to 45,000 frames, memory of windows grows as frames^1.00." in table
