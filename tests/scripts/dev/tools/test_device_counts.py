"""What one layer of every mechanism asks of a GPU, as stored by ``python -m scripts.dev.tools.device_counts NAME``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_longattn import list_mechanisms, mechanism_info
from scripts.dev.tools.device_counts import LAYERS, RESULTS, SETTINGS, page
from tests.cells import every_cell

STORED = json.loads((RESULTS / "device_counts.json").read_text(encoding="utf-8"))
COUNTED: dict[str, dict[str, Any]] = {**STORED["before"], **STORED["now"]}
CHOSEN_BY_VALUES = ("adaptive_span", "block_top_k", "lsg", "lsh", "nsa", "routing", "top_k")
"""Mechanisms whose pairs depend on the values of tokens or parameters: the host may ask for their number once a layer, and choices may be
made in float64."""
WAITING: dict[str, set[str]] = {"cosformer": {*SETTINGS}, "performer": {*SETTINGS}}
"""Mechanisms that still wait for the device more often, or compute in float64 without a choice, with the settings in which they do."""


def misses(name: str) -> set[str]:
    """The settings in which a later layer synchronises more than it should, or computes in float64."""
    allowed = int(name in CHOSEN_BY_VALUES)
    return {
        setting
        for row in COUNTED[name].values()
        for setting in SETTINGS
        if "failure" not in row[setting]
        if sum(row[setting]["later"]["synchronisations"].values()) > allowed or (not allowed and row[setting]["later"]["float64"])
    }


@every_cell("name", list_mechanisms())
def test_every_mechanism_is_counted(name: str) -> None:
    form = mechanism_info(name).causal
    assert set(COUNTED[name]) == ({"both ways", "causal"} if form == "both" else {"causal" if form else "both ways"})
    for row in COUNTED[name].values():
        assert all(set(row[setting]) in ({*LAYERS}, {"failure"}) for setting in SETTINGS)


@every_cell("name", list_mechanisms())
def test_later_layers_do_not_wait_for_the_device(name: str) -> None:
    """The first layer of a padded batch asks where its rows begin; what is left over is named, and no more than that."""
    assert misses(name) == WAITING.get(name, set())


@every_cell("name", list_mechanisms())
def test_packed_documents_are_one_call(name: str) -> None:
    """Rows of one, or one that keeps them apart; on grids, one for each grid."""
    for row in COUNTED[name].values():
        for setting in ("documents", "uneven documents"):
            paths = row[setting]["later"]["paths"]
            on_different_grids = setting == "uneven documents" and name in list_mechanisms(grid=True)
            assert paths.get("split", 0) == on_different_grids
            assert paths.get("packed", 0) + paths.get("stacked", 0) == (not on_different_grids)
            assert "stacked" not in paths or row[setting]["later"]["operations"] <= 3 * row["padded"]["later"]["operations"] + 10


def test_which_mechanisms_are_slower_than_full_attention() -> None:
    """In the model, at 16,384 tokens: searches, and what is meant for flash-linear-attention, which is not installed; two patterns of a
    grid without one are full attention."""
    slower = {name for name, rows in COUNTED.items() if any(row["of_full_attention"] > 1.005 for row in rows.values())}
    for_fla = {"cosformer", "delta", "hedgehog", "hybrid", "performer", "taylor", "nsa"}
    assert slower == {"block_top_k", "lsh", "top_k", *for_fla}


def test_the_page_is_that_of_the_counts() -> None:
    assert (RESULTS / "device_counts.md").read_text(encoding="utf-8") == page(STORED)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_mechanisms())
def test_the_counts_are_those_of_this_checkout(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.dev.tools.device_counts", name, "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "lacking" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "device_counts.json").read_text(encoding="utf-8"))["now"][name]
    for form, row in found.items():
        for setting in SETTINGS:
            assert row[setting] == COUNTED[name][form][setting], (
                f"{form}, {setting}: run `python -m scripts.dev.tools.device_counts {name}`"
            )
