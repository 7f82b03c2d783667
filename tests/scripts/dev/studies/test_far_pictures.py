"""Pictures of tasks with far-apart evidence: what is drawn, how it is read, and a tiny run of each study."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ViTForImageClassification

pytest.importorskip("sklearn")
from scripts.dev.studies import far_running
from scripts.dev.studies.far_digits import Compare, Sum, TwoDigits
from scripts.dev.studies.far_drawing import CELL, TRAINING_DIGITS, Textures, far_places
from scripts.dev.studies.far_legend import COLOURS, Legend
from scripts.dev.studies.far_paths import ALIKE, BETWEEN, BOTH_DOTS, MARGIN, NO_DOT, ONE_DOT, Paths, curves, distances, pairs_of_curves
from scripts.dev.studies.far_running import arguments, loss_of, page, run_study, stage, wilson
from scripts.dev.studies.far_systems import PictureTask, down_scaled, in_tiles, waves
from scripts.dev.studies.far_task import Shown

TASKS: tuple[type[PictureTask], ...] = (Sum, Compare, Legend, Paths)


@pytest.fixture(scope="module")
def digits() -> Sum:
    return Sum()


@pytest.mark.parametrize("size", [32, 128, 1024])
def test_digits_lie_half_the_picture_apart_and_inside_it(size: int) -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        (row, column), (other_row, other_column) = far_places(size, random)
        assert math.hypot(row - other_row, column - other_column) >= size / 2
        assert min(row, column, other_row, other_column) >= 0
        assert max(row, column, other_row, other_column) <= size - CELL


@pytest.mark.parametrize("kind", [Sum, Compare])
def test_every_label_is_as_frequent_and_held_out_digits_are_others(kind: type[TwoDigits]) -> None:
    task, random = kind(), np.random.default_rng(0)
    for held_out in (False, True):
        drawn = [task.two_digits(Shown(32, held_out), random) for _ in range(600)]
        counts = np.bincount([number for _, number in drawn], minlength=task.classes) / len(drawn)
        assert np.abs(counts - 1 / task.classes).max() < 0.06
        assert all((digit >= TRAINING_DIGITS) == held_out for chosen, _ in drawn for digit in chosen)
        for (first, second), number in drawn:
            left, right = int(task.handwriting.names[first]), int(task.handwriting.names[second])
            assert number == ((left + right) % 10 if kind is Sum else [0, 1, 2][1 + (left > right) - (left < right)])


def test_the_control_is_the_same_picture_without_one_digit(digits: Sum) -> None:
    """The other digit may be another copy of it."""
    full, control = (digits.picture(Shown(64, held_out=True, control=control), np.random.default_rng(3)) for control in (False, True))
    assert full[1] == control[1]
    cells = np.abs(full[0].astype(int) - control[0]).max(-1).reshape(64 // CELL, CELL, 64 // CELL, CELL).max((1, 3))
    assert (cells > 0).sum() == 1


def test_digits_keep_their_shape_in_sixteen_pixels(digits: Sum) -> None:
    """The first copy is the digit itself, resized: its means over 2 × 2 pixels are near the digit's 8 × 8 cells."""
    from sklearn.datasets import load_digits

    means = np.stack([copies[0].reshape(8, 2, 8, 2).mean((1, 3)) for copies in digits.handwriting.strokes[:50]])
    images = load_digits().images[:50] / 16
    assert np.corrcoef(means.ravel(), images.ravel())[0, 1] > 0.9


def test_textures_of_any_size_are_cut_from_photographs() -> None:
    textures = Textures(canvas=1_200)
    crop = textures.crop(1_024, np.random.default_rng(0))
    assert crop.shape == (1_024, 1_024, 3)
    assert 10 < crop.mean() < 100


def test_labels_of_patches_follow_the_legend() -> None:
    picture, labels = Legend().picture(Shown(128, held_out=True), np.random.default_rng(0))
    grid = labels.reshape(8, 8)
    assert (grid[0, :3] == -100).all()
    assert set(labels.tolist()) == {-100, 0, 1, 2}
    signs = [picture[CELL // 2, CELL // 2 + place * CELL] for place in range(3)]
    assert sorted(map(tuple, signs)) == sorted(map(tuple, COLOURS.tolist()))
    for row in range(2, 8):
        for column in range(8):
            patch = picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL].reshape(-1, 3).mean(0)
            nearest = min(range(3), key=lambda place: np.abs(patch - patch.mean() - (signs[place] - signs[place].mean())).sum())
            assert nearest == grid[row, column]


def test_paths_are_as_long_as_asked_and_inside_the_picture() -> None:
    paths = curves(128, 95, 64, np.random.default_rng(0))
    assert 0 < len(paths) <= 64
    assert np.linalg.norm(np.diff(paths, axis=1), axis=2).sum(1) == pytest.approx(95, abs=5.01)
    assert paths.min() >= MARGIN
    assert paths.max() <= 128 - MARGIN


def test_dots_are_as_far_apart_on_one_path_as_on_two() -> None:
    pairs = pairs_of_curves(128, np.random.default_rng(0))
    assert pairs
    for first, second in pairs:
        joined, apart = (np.linalg.norm(first[0] - end) for end in (first[-1], second[-1]))
        assert min(joined, apart) >= 64
        assert abs(joined - apart) <= ALIKE * 128
        assert distances(first[None], second[None])[0] > BETWEEN


def test_without_the_long_paths_nothing_says_whether_they_join() -> None:
    task = Paths()
    pictures = []
    for control in (False, True):
        task.pairs.clear()
        pictures.append(task.picture(Shown(128, control=control), np.random.default_rng(1))[0])
    assert (pictures[0] > 0).sum() > (pictures[1] > 0).sum() + 100
    assert not (pictures[1][pictures[0] == 0]).any()
    answers = [task.picture(Shown(128), np.random.default_rng(seed))[1][0] for seed in range(60)]
    assert set(answers) == {ONE_DOT, BOTH_DOTS}
    assert 15 < answers.count(BOTH_DOTS) < 45


def test_patches_of_long_paths_have_labels_in_training_alone() -> None:
    task, random = Paths(), np.random.default_rng(0)
    for _ in range(20):
        answer, *patches = task.picture(Shown(128), random)[1]
        assert set(patches) == {-100, *((BOTH_DOTS, NO_DOT) if answer == BOTH_DOTS else (ONE_DOT,))}
        answer, *patches = task.picture(Shown(128, held_out=True), random)[1]
        assert answer >= 0
        assert set(patches) == {-100}


def test_a_loss_of_both_kinds_of_tokens_is_the_sum_of_their_means() -> None:
    logits, labels = torch.randn(2, 5, 3), torch.tensor([[1, -100, -100, 2, 0], [0, 1, -100, -100, -100]])
    mean = torch.nn.functional.cross_entropy
    expected = mean(logits[:, 0], labels[:, 0]) + mean(logits[:, 1:].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(loss_of(logits, labels, "both"), expected)
    assert loss_of(logits, torch.full_like(labels, -100), "tokens") == 0


def test_positions_as_far_apart_are_as_alike() -> None:
    table = waves(6, 6, 32)
    table = (table @ table.T).view(6, 6, 6, 6)
    assert table[0, 0, 2, 1] == pytest.approx(float(table[3, 2, 5, 3]), abs=1e-4)


def test_tiles_answer_for_their_own_patches() -> None:
    """A model whose logits are the mean of each patch gives every patch of the picture its own mean."""

    class Means(torch.nn.Module):
        def vit(self, pixels: torch.Tensor, **arguments: bool) -> argparse.Namespace:
            means = torch.nn.functional.avg_pool2d(pixels[:, :1], 4).flatten(1)
            return argparse.Namespace(last_hidden_state=torch.cat([means[:, :1], means], 1)[..., None])

        classifier = torch.nn.Identity()

    pixels = torch.rand(2, 3, 32, 32)
    read = in_tiles(16, 4, "mean")(Means(), pixels, "tokens")
    assert torch.allclose(read[..., 0], torch.nn.functional.avg_pool2d(pixels[:, :1], 4).flatten(1))
    both = in_tiles(16, 4, "mean")(Means(), pixels, "both")
    assert torch.equal(both[:, 1:], read)
    torch.testing.assert_close(both[:, 0, 0], read[:, [0, 4, 32, 36], 0].mean(1))
    assert down_scaled(16, 4)(Means(), pixels, "both").shape == (2, 1 + 64, 1)


def test_intervals_are_wilsons() -> None:
    """Values of statsmodels' ``proportion_confint(…, method="wilson")``."""
    assert wilson(10, 100) == pytest.approx((5.5229, 17.4366), abs=1e-3)
    assert wilson(0, 20) == pytest.approx((0.0, 16.1125), abs=1e-2)


def row(name: str, shares: list[float]) -> dict[str, Any]:
    """What a system has measured."""
    cell = {"accuracy": 100 * float(np.mean(shares)), "n": len(shares), "seconds": 0.5, "shares": shares}
    part = {"size": 256, "examples": 20, "batch": 2, "seconds": 4.0, "losses": [1.0]}
    return {"name": name, "before": cell, "after": cell, "control": cell, "stages": [part, part], "MB": 12.0}


def test_the_page_compares_systems_picture_by_picture(digits: Sum) -> None:
    settings = {
        "stages": [[128, 20, 2], [256, 20, 2]], "short_size": 64, "patch": 16, "layers": 4, "width": 64, "test_examples": 4,
        "other_examples": 4, "memory_batch": 2,
    }  # fmt: skip
    rows = {"full": row("full attention", [1.0, 1.0, 1.0, 0.0]), "global": row("window2d", [1.0, 0.0, 1.0, 0.0])}
    run = {"seed": 0, "short": {"held_out": {"accuracy": 90.0}}, "systems": rows}
    text = page({"settings": settings, "runs": [run, run], "command": "python -m x", "machine": "m", "notes": ["A note."]}, digits)
    scores = "50.0 ± 18.9 | 50.0 ± 18.9 (50.0, 50.0: ± 0.0) | 25.0 ± 16.4 (25.0, 25.0: ± 0.0) | 50.0 ± 18.9"
    assert f"| window2d | {scores} | 0.200 | 0.500 | 8 | 12 |" in text
    assert "| full attention | 75.0 ± 16.4 | 75.0 ± 16.4 (75.0, 75.0: ± 0.0) | – |" in text
    assert "(256 patches)" in text
    assert "2 seeds" in text
    assert text.endswith("- A note.\n- Machine: m.\n- Command: `python -m x`\n")


@pytest.mark.parametrize("kind", TASKS)
def test_a_tiny_run_measures_every_system(kind: type[PictureTask], tmp_path: Path) -> None:
    """In this process; the study's own line starts one for each system."""
    line = [
        "--task", kind.name, "--seeds", "0", "--stages", "128:2:2", "--short-size", "64", "--scaled", "96", "--width", "32", "--layers",
        "2", "--short-minutes", "0.002", "--halved", "0", "--short-batch", "2", "--test-examples", "2", "--other-examples", "2",
        "--memory-batch", "1", "--work-dir", str(tmp_path),
    ]  # fmt: skip
    args = arguments([kind], line)
    task = kind()
    far_running.pretrained(task, args, 0)
    for name, system in task.systems(args).items():
        measured = far_running.run_system(task, args, 0, system)
        assert 0 <= measured["after"]["accuracy"] <= 100, name
        assert measured["stages"][0]["examples"] == 2, name


def test_a_small_model_starts_from_that_of_smaller_pictures(tmp_path: Path) -> None:
    line = ["--width", "32", "--layers", "1", "--work-dir", str(tmp_path), "--start-from", "paths", "--start-size", "32", "--short-size"]
    task = Paths()
    earlier = task.small_model(arguments([Paths], [*line[:6], "--short-size", "32"]), 0)
    earlier.save_pretrained(tmp_path / "paths-32-32-1-0")
    task.small_model(arguments([Paths], [*line, "64"]), 0).save_pretrained(tmp_path / "larger")
    model = ViTForImageClassification.from_pretrained(tmp_path / "larger")
    assert model.config.image_size == 64
    assert model.vit.embeddings.position_embeddings.shape == (1, 1 + 8 * 8, 32)
    assert torch.equal(model.classifier.weight, earlier.classifier.weight)
    pixels = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(model.eval()(pixels).logits, earlier.eval()(pixels, interpolate_pos_encoding=True).logits)


def test_a_study_runs_its_systems_in_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def run(command: list[str], check: bool) -> None:
        started.append(command)
        name = command[-1]
        measured = {**row(name, [1.0, 0.0]), "settings": far_running.measuring(arguments([Sum], line))}
        (tmp_path / "sum-32-32-2-0" / f"{name}.json").write_text(json.dumps(measured))

    monkeypatch.setattr(far_running.subprocess, "run", run)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", argparse.Namespace(name="scripts.dev.studies.far_digits"), raising=False)
    line = [
        "--seeds", "0", "--stages", "64:2:2", "--short-size", "32", "--width", "32", "--layers", "2", "--short-minutes", "0.002",
        "--halved", "0", "--short-batch", "2", "--test-examples", "2", "--systems", "global", "full", "--work-dir", str(tmp_path),
        "--output", str(tmp_path / "table.json"),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["far_digits", *line])
    run_study([Sum])
    assert [line[-1] for line in started] == ["global", "full"]
    assert "| full | 50.0" in (tmp_path / "table.md").read_text()
    command = json.loads((tmp_path / "table.json").read_text())["command"]
    assert command.startswith("python -m scripts.dev.studies.far_digits --seeds 0 --systems global full --stages 64:2:2 --short-size 32")
    run_study([Sum])
    assert len(started) == 2


def test_a_stage_is_written_as_size_pictures_and_batch() -> None:
    assert stage("256:2048:32") == (256, 2048, 32)
