"""The contract of pre-training: fixed batches, the schedule, exact resume, the export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_longattn.errors import LongAttentionError
from scripts.dev.studies.corpus import TextFolder
from scripts.dev.studies.pretraining import data, loop, models
from scripts.dev.studies.pretraining.export import export
from scripts.dev.studies.pretraining.loop import Pretraining, Recipe
from scripts.dev.studies.pretraining.schedule import Schedule, tokens_from

TINY = Recipe(batch_tokens=1024, short_length=128, causal_tokens=2048, warmup_tokens=1024, max_tokens=6000, evaluation_sequences=2,
              report_tokens=1024, evaluate_tokens=2048)  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder prepared from a small text folder."""
    texts, work_dir = tmp_path_factory.mktemp("texts"), tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    words = [f"word{index}" for index in range(50)]
    for index in range(120):
        (texts / f"{index}.txt").write_text("\n".join(" ".join(rng.choice(words, 10)) for _ in range(20)))
    data.prepare(TextFolder(texts), work_dir, vocab_size=320)
    return work_dir


@pytest.fixture
def work_dir(prepared: Path, tmp_path: Path) -> Path:
    for path in prepared.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_prepare_describes_the_splits(prepared: Path) -> None:
    splits = json.loads((prepared / "data.json").read_text())["splits"]
    assert sum(split["documents"] for split in splits.values()) == 120
    assert all(len(data.load_tokens(prepared, name)) == split["tokens"] for name, split in splits.items())


def test_an_epoch_draws_every_chunk_once() -> None:
    tokens = np.arange(10, 10 + 62 * 9, dtype=np.uint16)
    rows = np.concatenate([data.sequences(tokens, position, 2, 64, seed=1) for position in range(0, 8 * 62, 2 * 62)])
    assert (rows[:, 0] == data.CLS).all()
    assert (rows[:, -1] == data.SEP).all()
    assert len({tuple(row) for row in rows}) == 8
    assert len(np.unique(rows[:, 1:-1])) == 8 * 62


def test_masking_follows_bert() -> None:
    ids = np.full((64, 256), 7)
    ids[:, 0], ids[:, -1] = data.CLS, data.SEP
    batch = data.masked_batch(ids, 512, 0.2, 300, np.random.default_rng(0))
    assert batch.picked.shape == (64 * 51,)
    assert (batch.labels == 7).all()
    corrupted = batch.input_ids.flatten()[batch.picked]
    assert (corrupted == data.MASK).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (corrupted == 7).float().mean().item() == pytest.approx(0.1, abs=0.03)
    untouched = torch.ones(64 * 256, dtype=torch.bool)
    untouched[batch.picked] = False
    assert (batch.input_ids.flatten() == torch.from_numpy(ids).flatten())[untouched].all()
    assert batch.position_ids.min() >= 0
    assert 256 < batch.position_ids.max() < 512


def test_causal_labels_are_the_next_pieces() -> None:
    ids = np.arange(2 * 16).reshape(2, 16)
    batch = data.causal_batch(ids, 16, 1.0, np.random.default_rng(0))
    assert (batch.labels == batch.picked + 1).all()
    assert len(batch.picked) == 30


def test_the_causal_twin_shares_the_weights_and_sees_no_future() -> None:
    model = models.build_model("bert", 320, seed=0).eval()
    twin = models.causal_twin(model).eval()
    own = dict(model.named_parameters())
    assert all(parameter is own[name] for name, parameter in twin.named_parameters())
    ids = torch.randint(5, 320, (1, 12))
    changed = ids.clone()
    changed[0, 8] = 6 if ids[0, 8] != 6 else 7
    with torch.no_grad():
        before, after = twin(ids).logits, twin(changed).logits
        both = model(ids).logits - model(changed).logits
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert both[:, :8].abs().max() > 1e-4


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_every_architecture_learns(work_dir: Path, architecture: str) -> None:
    run = Pretraining(replace(TINY, architecture=architecture, causal_tokens=0, warmup_tokens=0), work_dir)
    losses = [run.step()[1] for _ in range(8)]
    assert losses[-1] < losses[0] - 0.5


def test_unknown_names() -> None:
    with pytest.raises(LongAttentionError, match="bert, gpt2, llama"):
        models.build_model("t5", 320, 0)
    with pytest.raises(LongAttentionError, match="muon or adamw"):
        models.Optimizers(models.build_model("bert", 320, 0), "sgd", 1e-3, 1e-3)


def test_the_schedule_may_end_whenever_asked() -> None:
    schedule = Schedule(warmup_tokens=100)
    assert schedule.scale(49) == 0.5
    assert schedule.scale(10_000) == 1.0
    assert not schedule.finished(10_000)
    schedule.start_decay(10_000, 1000)
    schedule.start_decay(10_500, 9999)
    assert schedule.scale(10_250) == 0.75
    assert schedule.finished(11_000)
    assert tokens_from("1200\n", 10.0) == 1200
    assert tokens_from("2m", 10.0) == 1200


def test_a_resumed_run_is_the_same_run(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = Pretraining(TINY, work_dir)
    straight.step(), straight._save()
    expected = [straight.step()[1] for _ in range(3)]
    resumed = Pretraining(TINY, work_dir)
    assert resumed.progress.step == 1
    assert [resumed.step()[1] for _ in range(3)] == pytest.approx(expected, rel=1e-5)
    assert resumed.masked
    with pytest.raises(LongAttentionError, match="trained with seed 0, not 1"):
        Pretraining(replace(TINY, seed=1), work_dir)


def test_run_decays_evaluates_and_exports(work_dir: Path) -> None:
    (work_dir / "bert").mkdir()
    (work_dir / "bert" / "DECAY").write_text("2048")
    run = Pretraining(TINY, work_dir)
    run.run()
    assert run.progress.tokens == 1024 + 2048
    assert (run.folder / "stable.pt").exists()
    events = [json.loads(line).get("event") for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert events[-1] == "finished"
    assert "decay" in events
    out = export(work_dir, "bert", work_dir / "out")
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.dtype == torch.float16
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 512
    assert "Held-out loss after training" in (out / "README.md").read_text()
    with pytest.raises(LongAttentionError, match="exists"):
        export(work_dir, "bert", out)
    with pytest.raises(LongAttentionError, match="train the gpt2 model first"):
        export(work_dir, "gpt2", work_dir / "other")


def test_a_pause_is_not_training_time(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, durations = [0.0], iter([1.0, 1.0, 500.0, 1.0, 1.0])
    run = Pretraining(replace(TINY, max_tokens=4800, decay_share=0.2), work_dir)

    def step() -> tuple[int, float]:
        clock[0] += next(durations)
        run.progress.tokens += 1000
        return 1000, 1.0

    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(run, "step", step)
    monkeypatch.setattr(run, "evaluate", lambda count=None: {"loss": 1.0})
    run.run()
    assert run.progress.tokens == 5000
    assert run.progress.seconds == pytest.approx(4 * 1.0 + 5 * 1.0, rel=0.3)
