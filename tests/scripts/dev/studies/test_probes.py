"""Associative recall: the task is what it says, a small model learns it, and the state is measured."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from hf_longattn import LongAttentionConfig, list_mechanisms, mechanism_info
from hf_longattn.errors import OptionError
from hf_longattn.evaluation.probes import IGNORED
from scripts.dev.studies.evaluate_probes import DEFAULT_CURVE, app
from scripts.dev.studies.probes import TASKS, Mqar, RecallSetting, measure_performer_error, measure_recall, plot_recall, recall_markdown


def test_every_key_is_asked_for_once_behind_the_pairs() -> None:
    task = Mqar(pairs=5, length=40, vocab=32)
    tokens, labels = task.batch(20, torch.Generator().manual_seed(0))
    assert tokens.shape == labels.shape == (20, 40)
    for text, wanted in zip(tokens, labels, strict=True):
        known = dict(text[:10].view(5, 2).tolist())
        assert len(known) == 5
        places = (wanted != IGNORED).nonzero().flatten().tolist()
        assert {int(text[place]) for place in places} == set(known)
        assert all(place >= 10 and known[int(text[place])] == int(wanted[place]) for place in places)
    again = task.batch(20, torch.Generator().manual_seed(0))
    assert torch.equal(tokens, again[0])
    assert torch.equal(labels, again[1])


@pytest.mark.parametrize("wrong", [{"pairs": 0}, {"pairs": 9, "length": 32}, {"pairs": 9, "length": 64, "vocab": 16}])
def test_an_impossible_task_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="pairs"):
        Mqar(**wrong)


def test_the_state_of_a_window_is_smaller_and_training_lowers_the_loss() -> None:
    task = Mqar(pairs=1, length=32, vocab=8)
    lines: list[str] = []
    settings = [
        RecallSetting(name, LongAttentionConfig(name, **options), width=32, steps=200, batch=32)
        for name, options in (("full", {}), ("window", {"window": 4}))
    ]
    full, window = measure_recall(settings, task, lines.append)
    assert full.accuracy > 0.5 > 1 / 4, lines
    assert window.state_bytes * 4 < full.state_bytes
    assert full.tokens_per_second > 0
    table = recall_markdown([window, full])
    assert table.index("| full |") < table.index("| window |")


def test_the_command_writes_table_curve_and_numbers(tmp_path: Path) -> None:
    shape = ["--pairs", "1", "--length", "16", "--vocab", "8", "--steps", "2", "--batch", "4", "--output", str(tmp_path / "mqar")]
    done = CliRunner().invoke(app, ["mqar", "--mechanism", "window:window=4,full", *shape])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "mqar.json").read_text())
    assert record["task"] == asdict(Mqar(1, 16, 8))
    assert record["results"][0]["steps"] == 2
    assert (tmp_path / "mqar.svg").read_text().startswith("<?xml")
    refused = CliRunner().invoke(app, ["mqar", "--mechanism", "windw", *shape])
    assert refused.exit_code == 1
    assert "Unknown mechanism 'windw'" in refused.output
    assert plot_recall(record["results"], tmp_path / "again.svg").read_bytes() == (tmp_path / "mqar.svg").read_bytes()


def test_single_settings_join_those_that_are_stored(tmp_path: Path) -> None:
    shape = ["--pairs", "1", "--length", "16", "--vocab", "8", "--batch", "4", "--output", str(tmp_path / "mqar")]
    curve = tmp_path / "curve.yaml"
    curve.write_text("full: {mechanism: full}\nwindow 4: {mechanism: window, window: 4}\n")

    def run(*more: str) -> str:
        done = CliRunner().invoke(app, ["mqar", "--curve", str(curve), *shape, "--steps", "2", *more])
        return done.output if done.exit_code else ""

    assert not run("--only", "window 4")
    first = json.loads((tmp_path / "mqar.json").read_text())
    assert [row["name"] for row in first["results"]] == ["window 4"]
    assert not run("--missing", "--steps", "3")
    missing = json.loads((tmp_path / "mqar.json").read_text())
    assert missing["results"][1] == first["results"][0], "the stored row is not trained again"
    assert [(row["steps"], row["most_steps"]) for row in missing["results"]] == [(3, 3), (2, 2)]
    assert not run("--only", "full", "--mechanism", "window:window=2")
    record = json.loads((tmp_path / "mqar.json").read_text())
    assert [row["name"] for row in record["results"]] == [*record["attention"]] == ["full", "window 4", "window:window=2"]
    assert record["results"][1] == first["results"][0]
    assert record["results"][0]["machine"]["torch"] == torch.__version__
    assert "give the same, or another --output" in run("--only", "full", "--seed", "3")
    assert not run("--speeds")
    timed = json.loads((tmp_path / "mqar.json").read_text())
    assert timed["speeds_measured_on"]["torch"] == torch.__version__
    assert [{**row, "tokens_per_second": 0} for row in timed["results"]] == [{**row, "tokens_per_second": 0} for row in record["results"]]
    assert all(new["tokens_per_second"] != old["tokens_per_second"] for new, old in zip(timed["results"], record["results"], strict=True))
    (tmp_path / "mqar.json").write_text(json.dumps(record))
    assert "the curve has no setting 'ful'; it has full, window 4. Did you mean 'full'?" in run("--only", "ful")
    assert json.loads((tmp_path / "mqar.json").read_text()) == record


def test_the_curve_has_every_mechanism_that_can_decode() -> None:
    curve = yaml.safe_load(DEFAULT_CURVE.read_text(encoding="utf-8"))
    shown = {name.split(" ")[0] for name in curve}
    assert {name for name in list_mechanisms() if mechanism_info(name).causal} <= shown
    for name, setting in curve.items():
        if name.startswith("based"):
            continue
        assert LongAttentionConfig.from_dict(setting).mechanism == name.split(" ")[0]


def test_the_error_of_random_features_follows_theory(tmp_path: Path) -> None:
    few, many = measure_performer_error((16, 256), draws=8, tokens=64)
    assert 0.15 < many.output / few.output < 0.4, "sixteen times the features quarter the error"
    for row in (few, many):
        assert 0.5 < row.kernel / row.theory < 1.15, "orthogonal directions are no worse than independent ones"
    done = CliRunner().invoke(app, ["performer-error", "--features", "16,32", "--draws", "2", "--output", str(tmp_path / "error")])
    assert done.exit_code == 0, done.output
    assert [row["features"] for row in json.loads((tmp_path / "error.json").read_text())["results"]] == [16, 32]
    assert (tmp_path / "error.svg").exists()


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ("compositional", ["--side", "2", "--length", "36", "--vocab", "24"]),
        ("forgetting", ["--pairs", "2", "--updates", "1", "--length", "16", "--vocab", "8"]),
        ("induction", ["--length", "12", "--vocab", "8"]),
        ("copy", ["--length", "9", "--vocab", "6"]),
        ("listops", ["--length", "24"]),
    ],
)
def test_every_task_is_learned_by_any_mechanism(task: str, shape: list[str], tmp_path: Path) -> None:
    typed = [task, "--steps", "1", *shape, "--output", str(tmp_path / task)]
    done = CliRunner().invoke(app, [*typed, "--mechanism", "full"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, [*typed, "--mechanism", "window:window=4"])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / f"{task}.json").read_text())
    assert [row["name"] for row in record["results"]] == ["full", "window:window=4"]
    assert all(0 <= row["accuracy"] <= 1 for row in record["results"])
    assert (tmp_path / f"{task}.svg").exists()
    refused = CliRunner().invoke(app, [*typed, "--seed", "5", "--mechanism", "full"])
    assert refused.exit_code == 1
    assert "give the same, or another --output" in refused.output


def test_all_tasks_in_small_are_one_resumable_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["learned", "--steps", "1", "--output", str(tmp_path / "learned"), "--mechanism", "full"]
    done = CliRunner().invoke(app, typed)
    assert done.exit_code == 0, done.output
    assert re.search(r"\| `full` \|( \d+\.\d \(1\) \|){5}", done.output)
    first = json.loads((tmp_path / "learned.json").read_text())
    done = CliRunner().invoke(app, [*typed, "--mechanism", "window:window=8"])
    record = json.loads((tmp_path / "learned.json").read_text())
    assert record["results"][:5] == first["results"], "what is stored is not trained again"
    assert [(row["name"], row["task"]) for row in record["results"][5:]] == [("window:window=8", task) for task in TASKS]
    assert (tmp_path / "learned.svg").exists()
    refused = CliRunner().invoke(app, [*typed, "--width", "48"])
    assert (refused.exit_code, "give the same, or another --output" in refused.output) == (1, True)
    refused = CliRunner().invoke(app, [*typed, "--width", "48", "--output", str(tmp_path / "other")])
    assert (refused.exit_code, "give a multiple of 32" in refused.output) == (1, True)


def test_a_task_that_does_not_fit_is_a_sentence(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["copy", "--length", "2", "--mechanism", "full", "--output", str(tmp_path / "copy")])
    assert refused.exit_code == 1
    assert "hold no copy" in refused.output
