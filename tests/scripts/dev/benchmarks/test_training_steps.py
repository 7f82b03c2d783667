"""What attention dropout costs: each system takes its path, and ratios are medians of paired turns."""

from __future__ import annotations

import torch

from hf_longattn.engines.common.paths import observe
from hf_longattn.families import LongBertConfig, LongBertModel
from scripts.dev.benchmarks.training_steps import NONE, PLAIN, SYSTEMS, TILES, markdown, time_steps


def test_every_system_takes_its_path() -> None:
    shape = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    models = {
        name: LongBertModel(
            LongBertConfig(**shape, attention_probs_dropout_prob=p, long_attention={"mechanism": "window", "window": 16})
        ).train()
        for name, p in ((NONE, 0.0), (TILES, 0.1), (PLAIN, 0.1))
    }
    paths: list[str] = []
    with observe(lambda _mechanism, choice: paths.append(choice.path)):
        turns = time_steps(models, torch.ones(1, 300, dtype=torch.long), turns=1)
    assert [set(turn) for turn in turns] == [set(models)]
    assert paths == ["cpu-band", "cpu-band", "blockwise"] * 2


def test_ratios_are_those_of_the_turns() -> None:
    about = {"processor": "a processor", "threads": 2, "torch": "2", "transformers": "5", "date": "2026-01-01"}
    turns = [{name: 2.0 + number for number, name in enumerate(SYSTEMS)}] * 3
    table = markdown({"machine": about, "seconds": {"2 × 2,048": turns}})
    assert "| 2 × 2,048 | dropout in tiles | 20.0 | 1.50 × |" in table
