"""Chains of residues and series with far-apart evidence: nothing but the evidence tells what is asked; a tiny run of each study."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EsmForTokenClassification

import hf_longattn
from hf_longattn.conversion import convert_checkpoint
from scripts.dev.studies import far_lags
from scripts.dev.studies.far_residues import ALPHABET, SITES, TASKS, Residues, in_crops, whole
from scripts.dev.studies.far_running import arguments
from scripts.dev.studies.far_task import Shown


def test_sites_are_labelled_by_a_residue_in_the_first_quarter() -> None:
    task, random = Residues(), np.random.default_rng(0)
    for control in (False, True):
        tokens, labels = task.batch(Shown(256, control=control), 32, random)
        assert tokens.shape == labels.shape == (32, 256)
        for chain, of_chain in zip(tokens.tolist(), labels.tolist(), strict=True):
            letters = [ALPHABET[token] for token in chain]
            assert (letters[0], letters[-1]) == ("<cls>", "<eos>")
            first_class = 0
            for site, binding in SITES:
                places = [place for place, letter in enumerate(letters) if letter in binding]
                assert len(places) == (0 if control else 1)
                sites = {(label - first_class) for letter, label in zip(letters, of_chain, strict=True) if letter == site}
                assert len(sites) == 1
                if not control:
                    assert places[0] <= 64
                    assert sites == {binding.index(letters[places[0]])}
                first_class += len(binding)
            assert all(letter in "PQ" for letter, label in zip(letters, of_chain, strict=True) if label >= 0)
            assert min(place for place, label in enumerate(of_chain) if label >= 0) >= 128


@pytest.mark.parametrize("kind", TASKS)
def test_crops_are_read_alone_and_converted_models_take_whole_chains(kind: type[Residues], tmp_path: Path) -> None:
    """Rotary positions and a table: the converted model equals the source at the old length, and takes sixteen times as much."""
    task = kind()
    args = arguments(TASKS, ["--width", "32", "--layers", "2", "--work-dir", str(tmp_path)])
    torch.manual_seed(0)
    model = task.small_model(args, 0).eval()
    tokens, _ = task.batch(Shown(4096), 1, np.random.default_rng(0))
    with torch.no_grad():
        cropped = in_crops(256)(model, tokens, "tokens")
        first = whole(model, torch.cat([tokens[:, :255], tokens[:, -1:]], 1), "tokens")
    assert cropped.shape == (1, 4096, task.classes)
    assert torch.allclose(cropped[:, :255], first[:, :255], atol=1e-5)
    model.save_pretrained(tmp_path / "short")
    attention = {"mechanism": "window", "window": 64, "layers": {1: {"mechanism": "full"}}}
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", long_attention=attention, max_length=4096)
    statuses = {check.name: check.status for check in report.checks}
    assert statuses["equal at the old length with full attention"] == "passed"
    long = hf_longattn.LongEsmForTokenClassification.from_pretrained(tmp_path / "long").eval()
    with torch.no_grad():
        changed = torch.cat([tokens[:, :1], tokens[:, 1:2] + 1, tokens[:, 2:]], 1)
        assert not torch.equal(whole(long, tokens, "tokens")[:, 3000:], whole(long, changed, "tokens")[:, 3000:])
        assert torch.equal(in_crops(256)(model, tokens, "tokens")[:, 3000:], in_crops(256)(model, changed, "tokens")[:, 3000:])
    loaded = EsmForTokenClassification.from_pretrained(tmp_path / "short")
    assert loaded.config.position_embedding_type == task.positions


def test_a_burst_repeats_the_one_before() -> None:
    random = np.random.default_rng(0)
    series, future = far_lags.draw(64, far_lags.LONG, far_lags.LAG, random)
    start = far_lags.LONG - far_lags.LAG
    naive = (series[:, start : start + far_lags.PATCH] - future).square().mean()
    assert float(naive) == pytest.approx(2 * far_lags.NOISE**2, rel=0.2)
    recent = series[:, -far_lags.SHORT :]
    assert float(recent.std()) == pytest.approx(far_lags.NOISE, rel=0.1)  # the old context holds noise alone


def test_a_tiny_run_of_the_study_of_lags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ["--short-batches", "2", "--batches", "1", "--batch", "2", "--test-series", "4", "--width", "16", "--seeds", "0", "1"]
    monkeypatch.setattr("sys.argv", ["far_lags", *sizes, "--work-dir", str(tmp_path), "--output", str(tmp_path / "lags.json")])
    far_lags.main()
    result = json.loads((tmp_path / "lags.json").read_text())
    assert [run["seed"] for run in result["runs"]] == [0, 1]
    text = (tmp_path / "lags.md").read_text()
    assert all(title in text for title, _ in far_lags.SYSTEMS.values())
    assert "| seasonal naive |" in text
