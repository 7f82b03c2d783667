"""The pre-training loop: phases, budget, checkpoints, exact resume and the log.

Files in the work folder, below one sub-folder per architecture:

* ``checkpoint.pt``: model, optimisers, progress; replaced atomically every few minutes;
* ``stable.pt``: the last checkpoint before the decay, from which a longer run can resume;
* ``log.jsonl``: one line per report;
* ``DECAY``: touch it to start the decay now; it may hold its length (``12000000`` tokens or ``15m``).
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_longattn.errors import LongAttentionError
from hf_longattn.staging import staged_file
from scripts.dev.studies.pretraining import data
from scripts.dev.studies.pretraining.models import Optimizers, build_model, causal_twin, picked_loss
from scripts.dev.studies.pretraining.schedule import Schedule, tokens_from

_EVALUATION_SEED = 1234


@dataclass(frozen=True)
class Recipe:
    """What is trained and how. A resumed run may change everything but the architecture and the seed.

    A masked model is trained left to right for ``causal_tokens`` first (masked training from scratch stays on a plateau
    for long), then by masking. Sequences have ``short_length`` pieces; every ``full_every``-th step, and every step of the
    decay, uses the whole position table.
    """

    architecture: str = "bert"
    seed: int = 0
    batch_tokens: int = 8192
    short_length: int = 256
    full_every: int = 4
    causal_tokens: int = 3_000_000
    causal_share: float = 0.5
    mask_rate: float = 0.2
    optimizer: str = "muon"
    learning_rate: float = 2e-3
    matrix_learning_rate: float = 3e-3
    warmup_tokens: int = 500_000
    decay_share: float = 0.2  # length of the decay, as a share of the tokens seen when it starts
    decay_at: int | None = None  # tokens
    max_tokens: int | None = None
    hours: float | None = None  # of active steps; pauses do not count
    report_tokens: int = 250_000
    evaluate_tokens: int = 2_000_000
    evaluation_sequences: int = 256
    checkpoint_seconds: float = 180.0
    compile: bool = False


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    schedule: Schedule = field(default_factory=lambda: Schedule(0))

    @property
    def speed(self) -> float:
        """Tokens per second of active steps."""
        return self.tokens / self.seconds if self.seconds else 0.0


class Pretraining:
    """One run in ``work_dir``; :meth:`run` starts it or resumes it from its checkpoint."""

    def __init__(self, recipe: Recipe, work_dir: Path, device: str = "cpu") -> None:
        self.recipe, self.work_dir, self.device = recipe, work_dir, torch.device(device)
        self.folder = work_dir / recipe.architecture
        self.folder.mkdir(parents=True, exist_ok=True)
        self.train, self.validation = (data.load_tokens(work_dir, split) for split in ("train", "validation"))
        self.vocab_size = len(data.load_tokenizer(work_dir))
        self.model = build_model(recipe.architecture, self.vocab_size, recipe.seed).to(self.device)
        self.causal_model = causal_twin(self.model)
        if recipe.compile:  # compiled plain attention is faster than the fused CPU kernel at these lengths
            for model in (self.model, self.causal_model):
                model.set_attn_implementation("eager")
        self.optimizers = Optimizers(self.model, recipe.optimizer, recipe.learning_rate, recipe.matrix_learning_rate)
        self.progress = Progress(schedule=Schedule(recipe.warmup_tokens))
        self._loss = torch.compile(picked_loss, dynamic=False) if recipe.compile else picked_loss
        self._stop = False
        if self.checkpoint.exists():
            self._load()

    @property
    def checkpoint(self) -> Path:
        """The file that a resumed run reads."""
        return self.folder / "checkpoint.pt"

    @property
    def positions(self) -> int:
        """The length of the position table."""
        return self.model.config.max_position_embeddings

    @property
    def masked(self) -> bool:
        """Whether the present phase is masked language modelling."""
        return self.recipe.architecture == "bert" and self.progress.tokens >= self.recipe.causal_tokens

    def run(self) -> None:
        """Train until the decay has ended, or until SIGTERM/SIGINT, after which a checkpoint is written."""
        with self._stoppable():
            self._train()
        self._save()

    def _train(self) -> None:
        progress, recipe = self.progress, self.recipe
        window: list[tuple[int, float, float]] = []  # (tokens, seconds, loss) since the last report
        last_save = time.monotonic()
        usual = 0.0
        while not self._stop and not progress.schedule.finished(progress.tokens):
            started = time.monotonic()
            drawn, loss = self.step()
            seconds = time.monotonic() - started
            seconds = min(seconds, 5 * usual) if usual else seconds  # a paused process is not training
            usual = 0.9 * usual + 0.1 * seconds if usual else seconds
            progress.seconds += seconds
            window.append((drawn, seconds, loss))
            if _crossed(progress.tokens, drawn, recipe.report_tokens):
                self._report(window)
                window.clear()
            self._maybe_decay()
            if time.monotonic() - last_save > recipe.checkpoint_seconds:
                self._save()
                last_save = time.monotonic()
        if progress.schedule.finished(progress.tokens):
            self._log({"event": "finished", "evaluation": self.evaluate(self.recipe.evaluation_sequences * 8)})

    def step(self) -> tuple[int, float]:
        """Draw one batch and update the weights; return (tokens, loss)."""
        progress = self.progress
        batch = self._batch().to(self.device)
        self.model.train()
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = self._loss(self.model if self.masked else self.causal_model, batch)
        loss.backward()
        self.optimizers.step(progress.schedule.scale(progress.tokens))
        progress.step += 1
        progress.tokens += batch.input_ids.numel()
        return batch.input_ids.numel(), loss.item()

    @torch.no_grad()
    def evaluate(self, count: int | None = None) -> dict[str, float]:
        """Return the held-out loss of the present objective: fixed sequences of full length, spread over the validation split.

        Masked: 15 % of the pieces, fixed masks. Causal: every position.
        """
        count = min(count or self.recipe.evaluation_sequences, len(self.validation) // self.positions)
        if count < 1:
            raise LongAttentionError(f"the validation split is shorter than one sequence of {self.positions} tokens")
        body = self.positions - 2
        starts = np.linspace(0, len(self.validation) - body, count).astype(np.int64)
        rng = np.random.default_rng(_EVALUATION_SEED)
        model = self.model if self.masked else self.causal_model
        model.eval()
        total = picked = 0.0
        for group in np.array_split(starts, -(-count // 16)):
            ids = np.stack([np.r_[data.CLS, self.validation[start : start + body], data.SEP] for start in group]).astype(np.int64)
            batch = self._evaluation_batch(ids, rng).to(self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                loss = picked_loss(model, batch).item()
            total, picked = total + loss * len(batch.labels), picked + len(batch.labels)
        return {"loss": total / picked, "predictions": picked, "sequences": count}

    def _evaluation_batch(self, ids: np.ndarray, rng: np.random.Generator) -> data.Batch:
        if self.masked:
            return data.masked_batch(ids, self.positions, 0.15, self.vocab_size, rng)
        return data.causal_batch(ids, self.positions, 1.0, rng)

    def _batch(self) -> data.Batch:
        recipe, progress = self.recipe, self.progress
        full = progress.schedule.decay_start is not None or progress.step % recipe.full_every == recipe.full_every - 1
        length = self.positions if full else min(recipe.short_length, self.positions)
        count = max(1, recipe.batch_tokens // length)
        ids = data.sequences(self.train, progress.tokens, count, length, recipe.seed)
        rng = np.random.default_rng((recipe.seed, progress.step))
        if self.masked:
            return data.masked_batch(ids, self.positions, recipe.mask_rate, self.vocab_size, rng)
        return data.causal_batch(ids, self.positions, recipe.causal_share, rng)

    def _maybe_decay(self) -> None:
        recipe, progress = self.recipe, self.progress
        if progress.schedule.decay_start is not None:
            return
        length = self._requested_decay()
        if length is None and self._budget_reaches_decay():
            length = round(progress.tokens * recipe.decay_share)
        if length is not None:
            self._save()
            shutil.copyfile(self.checkpoint, self.folder / "stable.pt")
            progress.schedule.start_decay(progress.tokens, length)
            self._log({"event": "decay", "tokens": progress.tokens, "decay_tokens": progress.schedule.decay_tokens})

    def _requested_decay(self) -> int | None:
        """Read the DECAY file; an empty or unreadable one means the usual share of the tokens seen."""
        request = self.folder / "DECAY"
        if not request.exists():
            return None
        usual = round(self.progress.tokens * self.recipe.decay_share)
        try:
            return tokens_from(request.read_text(encoding="utf-8"), self.progress.speed) or usual
        except ValueError:
            return usual

    def _budget_reaches_decay(self) -> bool:
        recipe, progress = self.recipe, self.progress
        tokens_limit = recipe.max_tokens and recipe.max_tokens / (1 + recipe.decay_share)
        seconds_limit = recipe.hours and recipe.hours * 3600 / (1 + recipe.decay_share)
        return any(
            limit and value >= limit
            for value, limit in ((progress.tokens, recipe.decay_at), (progress.tokens, tokens_limit), (progress.seconds, seconds_limit))
        )

    def _report(self, window: list[tuple[int, float, float]]) -> None:
        progress, recipe = self.progress, self.recipe
        drawn, seconds, _ = (sum(column) for column in zip(*window, strict=True))
        line: dict[str, Any] = {
            "step": progress.step,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 1),
            "tokens_per_second": round(drawn / seconds),
            "objective": "masked" if self.masked else "causal",
            "train_loss": round(float(np.mean([loss for *_, loss in window])), 4),
            "scale": round(progress.schedule.scale(progress.tokens), 4),
        }
        if _crossed(progress.tokens, int(drawn), recipe.evaluate_tokens):
            line["held_out_loss"] = round(self.evaluate()["loss"], 4)
        self._log(line)

    def _log(self, line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        """Write the checkpoint beside the old one, then rename."""
        state = {
            "recipe": asdict(self.recipe),
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
        }
        with staged_file(self.checkpoint) as stage:
            torch.save(state, stage)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        for key in ("architecture", "seed"):
            if state["recipe"][key] != getattr(self.recipe, key):
                raise LongAttentionError(
                    f"{self.checkpoint} was trained with {key} {state['recipe'][key]!r}, not {getattr(self.recipe, key)!r}"
                )
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        progress = dict(state["progress"])
        self.progress = Progress(**{**progress, "schedule": Schedule(**progress["schedule"])})
        self._log({"event": "resumed", "step": self.progress.step, "tokens": self.progress.tokens})

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        def stop(*_: object) -> None:
            self._stop = True

        previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _crossed(tokens: int, drawn: int, every: int) -> bool:
    """Return whether the last ``drawn`` tokens crossed a multiple of ``every``."""
    return tokens // every > (tokens - drawn) // every
