"""Learning rates that are tried before a stage."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_longattn.errors import MissingExtraError, OptionError
from hf_longattn.training.checkpoints import RATES
from hf_longattn.training.linearise.rates import chosen_rate, rates_around
from hf_longattn.training.linearise.trainer import LineariseTrainer
from hf_longattn.training.tasks.linearise import linearise_attention
from tests.training.linearise.conftest import Start

QUICK: dict[str, Any] = {"transfer_steps": 3, "finetune_steps": 3, "rate_trials": 3, "rate_steps": 2, "held_out_inputs": 2}


def test_rates_lie_around_the_one_that_is_asked_for() -> None:
    assert rates_around(1e-2, 5) == [0.001, 0.00316, 0.01, 0.0316, 0.1]
    assert rates_around(2e-4, 2) == [0.000112, 0.000356]
    assert chosen_rate({0.1: math.inf, 0.01: 2.0, 0.03: 1.5}) == 0.03


@pytest.mark.parametrize(("loss", "full"), [("lm", True), ("kl", False)])
def test_the_best_rate_is_taken_and_trials_leave_no_trace(loss: str, full: bool, start: Start, tmp_path: Path) -> None:
    """Trained with the rates that were chosen, without trials, the result is the same bit for bit."""
    settings: dict[str, Any] = {**QUICK, "finetune_loss": loss, "full": full, "certain": True}
    report = linearise_attention(*start("tried", **settings))
    chosen = {}
    for stage, asked in (("stage1", 1e-2), ("stage2", 5e-5 if full else 2e-4)):
        found = report["learning_rates"][stage]
        assert list(found["held_out"]) == [f"{rate:g}" for rate in rates_around(asked, 3)]
        chosen[stage] = found["chosen"]
        assert found["held_out"][f"{found['chosen']:g}"] == min(found["held_out"].values())
        assert len(set(found["held_out"].values())) == 3, "every rate has its own result"
    assert not (tmp_path / "tried" / "checkpoints" / "rates").exists()
    rates = {"transfer_learning_rate": chosen["stage1"], "finetune_learning_rate": chosen["stage2"]}
    linearise_attention(*start("given", **{**settings, **rates, "rate_trials": 0}))
    tried, given = (load_file(tmp_path / folder / "model.safetensors") for folder in ("tried", "given"))
    assert all(torch.equal(tried[name], given[name]) for name in given)
    assert "Learning rate of stage 1" in (tmp_path / "tried" / "distillation_report.md").read_text()


def test_a_resumed_run_does_not_try_again(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {**QUICK, "stage": "1", "save_steps": 1}
    whole = linearise_attention(*start("whole", **settings))
    step = LineariseTrainer.training_step

    def killed(self: LineariseTrainer, *args: Any, **kwargs: Any) -> Any:
        if type(self) is LineariseTrainer and self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LineariseTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            linearise_attention(*start("killed", **settings))
    assert json.loads((tmp_path / "killed" / RATES).read_text())["stage1"] == whole["learning_rates"]["stage1"]["held_out"]
    with monkeypatch.context() as patch:
        patch.setattr("hf_longattn.training.linearise.stages.RateTrials", None)
        report = linearise_attention(*start("killed", resume=True, **settings))
    assert report["learning_rates"] == whole["learning_rates"]
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_resumed_run_says_that_other_rates_are_not_tried(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {**QUICK, "stage": "1", "transfer_steps": 1, "save_steps": 1, "rate_trials": 2}
    messages: list[str] = []
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / RATES).write_text(json.dumps({"stage1": {"0.003": 2.0, "0.01": 1.0}}))
    monkeypatch.setattr("hf_longattn.training.linearise.stages.logger.warning", messages.append)
    report = linearise_attention(*start("other", resume=True, **settings))
    assert report["learning_rates"]["stage1"]["chosen"] == 0.01
    assert messages == [
        "Stage 1 resumes with the best of the rates that were tried before (0.003, 0.01), not of 0.00562, 0.0178; start anew, without "
        "--resume, to try those."
    ]


def test_rates_that_diverge_lose(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    step, limit = LineariseTrainer.training_step, 5e-3

    def diverging(self: LineariseTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.args.learning_rate > limit:
            self.diverged("the loss")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(LineariseTrainer, "training_step", diverging)
    settings: dict[str, Any] = {**QUICK, "stage": "1", "transfer_steps": 1, "overwrite": True}
    found = linearise_attention(*start(**settings))["learning_rates"]["stage1"]
    assert found["chosen"] == 0.00316
    assert [rate for rate, loss in found["held_out"].items() if loss is None] == ["0.01", "0.0316"]
    limit = 1e-3
    with pytest.raises(OptionError, match=re.escape("with every learning rate from 0.00316 to 0.0316; lower --transfer_learning_rate")):
        linearise_attention(*start(**settings))


def test_bad_input_is_a_sentence(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, changes in (("rate_trials must be 2 or more", {"rate_trials": 1}), ("rate_steps must be at least 1", {"rate_steps": 0})):
        with pytest.raises(OptionError, match=words):
            start(**changes)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        MissingExtraError, match=re.escape("needs the package 'optuna', which is not installed; type pip install 'hf-longattn[search]'")
    ):
        start(**QUICK, stage="1")  # before anything is read
