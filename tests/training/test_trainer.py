"""The Trainer of every task: all processes stop together, short runs log enough, and the learning rate follows steps or minutes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, RandomSampler
from transformers import SchedulerType, TrainerControl, TrainerState, TrainingArguments, get_scheduler
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_longattn.data.batching import TokenBudget
from hf_longattn.errors import OptionError
from hf_longattn.training import trainer as trainer_module
from hf_longattn.training.trainer import Clock, FollowClock, OrderOfPass, SeededGroups, timed_schedule, without_idle_step
from tests.ranks import run_two_ranks


def test_the_warm_up_is_a_share_of_the_run() -> None:
    clock = Clock(None)
    for steps in (14, 1000):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scale = timed_schedule(optimizer, clock, steps, 0.1).lr_lambdas[0]
        risen = [scale(step) for step in range(steps)]
        assert risen.index(max(risen)) <= steps // 10 + 1
        assert max(risen) > 0.85


LENGTHS = [3 + number * 7 % 40 for number in range(60)]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", ["random", "groups", "budget"])
def test_a_resumed_pass_has_the_order_of_an_uninterrupted_one(kind: str, processes: int, tmp_path: Path) -> None:
    """Also a later pass, and in every process."""

    def loader() -> DataLoader[int]:
        if kind == "budget":
            found: DataLoader[int] = DataLoader(range(60), batch_sampler=TokenBudget(LENGTHS, 60, seed=1, processes=processes))
        else:
            groups = SeededGroups(LengthGroupedSampler(2, lengths=LENGTHS), seed=1)
            found = DataLoader(range(60), batch_size=2, sampler=RandomSampler(range(60)) if kind == "random" else groups)
        even = kind != "budget"
        return prepare_data_loader(
            found, num_processes=processes, process_index=processes - 1, use_seedable_sampler=True, put_on_device=False, even_batches=even
        )

    def begin(loader: DataLoader[int], epoch: float) -> None:
        state = TrainerState(epoch=epoch)
        OrderOfPass().on_epoch_begin(TrainingArguments(str(tmp_path)), state, TrainerControl(), train_dataloader=loader)

    torch.manual_seed(42)
    whole, passes = loader(), []
    for epoch in (0, 1):
        begin(whole, epoch)
        passes.append([batch.tolist() for batch in whole])
    resumed = loader()
    begin(resumed, 1.3)
    rest = skip_first_batches(resumed, 4)
    rest.set_epoch(1)  # as Trainer
    assert [batch.tolist() for batch in rest] == passes[1][4:]
    assert passes[0] != passes[1]
    assert len(passes[1]) > 6


PROGRAM = """
import contextlib, itertools, json, time
import torch.nn as nn
from transformers import TrainerCallback
from hf_longattn.training import trainer as module, training_loop
from hf_longattn.training.args import DataArguments, ModelArguments
from hf_longattn.training.training_args import LongTrainingArguments, TaskArguments
from hf_longattn.training.trainer import TimedTrainer

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
    def forward(self, x):
        time.sleep(0.01 + 0.03 * rank)
        return {"loss": self.layer(x).pow(2).mean()}

looks = itertools.count()  # the time is how often it is looked at, so that a slow machine takes as many steps
module.time = type("Time", (), {"monotonic": staticmethod(lambda: 0.02 * (1 + rank) * next(looks))})  # the second process's runs fast
os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT="29555")
torch.manual_seed(0)
rates = []

class Note(TrainerCallback):
    def on_step_end(self, args, state, control, lr_scheduler=None, **_):
        rates.append(lr_scheduler.get_last_lr()[0])

arguments = LongTrainingArguments("out", max_steps=1000, report_to=[], label_names=["x"], bf16=False,
    use_cpu=True, disable_tqdm=True, warmup_steps=0.1, learning_rate=0.1)
data = [{"x": torch.randn(4)} for _ in range(64)]
trainer = TimedTrainer(Model(), arguments, train_dataset=data, eval_dataset=data[:4], max_minutes=0.03, callbacks=[Note()])
training_loop.watch_processes = lambda folder: contextlib.nullcontext()  # which meets at MASTER_PORT
run = TaskArguments(ModelArguments("m"), DataArguments(), arguments)
before = training_loop.train(trainer, run, lambda: trainer.evaluate()["eval_loss"])
assert before == trainer.state.log_history[0]["eval_loss"] > trainer.evaluate()["eval_loss"]
weights = [value.tolist() for value in trainer.model.state_dict().values()]
print(json.dumps([trainer.state.global_step, rates, weights]))
"""


def test_all_processes_stop_at_the_first_one_s_time_with_equal_rates_and_weights(repository: Path, tmp_path: Path) -> None:
    """Also after an evaluation before the first step, each with its rows."""
    first, second = (json.loads(said.splitlines()[-1]) for said in run_two_ranks(PROGRAM, repository, tmp_path))
    assert first == second
    assert 0 < first[0] < 1000
    assert first[1][-1] < 0.5 * max(first[1])


WARMING = [
    kind.value for kind in SchedulerType
    if kind.value not in ("constant", "reduce_lr_on_plateau", "greedy")  # no warm-up
]  # fmt: skip


@pytest.mark.parametrize("kind", WARMING)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 1), (6, 1), (40, 8), (40, 0)])
def test_the_first_step_learns_and_the_warm_up_ends_at_the_full_rate(kind: str, steps: int, warmup: int) -> None:
    """transformers' own schedules begin with 0: a run of one step learnt nothing."""
    lowest = {"min_lr": 0.01}
    specific = {"cosine_with_min_lr": lowest, "cosine_warmup_with_min_lr": lowest, "warmup_stable_decay": {"num_decay_steps": 2}}
    optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5) for _ in range(2)]
    plain, ours = (
        get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=steps, scheduler_specific_kwargs=specific.get(kind))
        for optimizer in optimizers
    )
    ours = without_idle_step(ours, warmup)
    for step in range(steps):
        before, now = plain.get_last_lr()[0], ours.get_last_lr()[0]
        assert now == optimizers[1].param_groups[0]["lr"]
        assert 0 < now <= 0.5
        assert now == pytest.approx(min(0.5, before + 0.5 / warmup) if step < warmup else before)
        for optimizer, scheduler in zip(optimizers, (plain, ours), strict=True):
            optimizer.step()
            if step + 1 < steps:
                scheduler.step()


def test_the_clock_counts_the_evaluation_before_the_first_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    args, control = TrainingArguments(str(tmp_path), use_cpu=True, save_strategy="steps"), TrainerControl()

    def begin(state: TrainerState) -> FollowClock:
        follow = FollowClock(Clock(10.0), save_minutes=3.0)
        follow.on_train_begin(args, state, control)
        return follow

    follow = begin(TrainerState())
    now[0] += 60 * 2  # the evaluation
    follow.on_epoch_begin(args, TrainerState(), control)
    assert (follow.clock.elapsed(), follow.clock.fraction()) == (2.0, 0.0)
    saved = []
    for minute in range(8):
        now[0] += 60
        follow.on_optimizer_step(args, TrainerState(), control)
        control.should_save = False
        follow.on_step_end(args, TrainerState(), control)
        assert follow.clock.fraction() == pytest.approx((minute + 1) / 8)
        if control.should_save:
            saved.append(follow.clock.elapsed())
            follow.on_save(args, TrainerState(), control)
    assert control.should_training_stop
    assert saved == [3.0, 6.0, 9.0, 10.0]

    state = TrainerState(global_step=4, log_history=[{"minutes": 6.0}])
    state.stateful_callbacks = {"FollowClock": follow.state()}
    resumed = begin(state)
    resumed.on_epoch_begin(args, state, control)
    assert resumed.clock.fraction() == 0.5

    short = begin(TrainerState())
    now[0] += 60 * 11
    with pytest.raises(OptionError, match=r"before the first step took 11.0 of the 10 minutes; give more --max_minutes, add --no_eval"):
        short.on_epoch_begin(args, TrainerState(), control)
