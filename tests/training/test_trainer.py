"""The Trainer of every task: all processes stop together, short runs log enough, and the learning rate follows steps or minutes."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hf_longattn.training.trainer import Clock, timed_schedule
from tests.ranks import run_two_ranks


def test_the_warm_up_is_a_share_of_the_run() -> None:
    clock = Clock(None)
    for steps in (14, 1000):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scale = timed_schedule(optimizer, clock, steps, 0.1).lr_lambdas[0]
        risen = [scale(step) for step in range(steps)]
        assert risen.index(max(risen)) <= steps // 10 + 1
        assert max(risen) > 0.85


PROGRAM = """
import json, time
import torch.nn as nn
from transformers import TrainerCallback, TrainingArguments
from hf_longattn.training import trainer as module
from hf_longattn.training.trainer import TimedTrainer

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
    def forward(self, x):
        time.sleep(0.05 + 0.1 * rank)
        return {"loss": self.layer(x).pow(2).mean()}

clock = time.monotonic
module.time = type("Time", (), {"monotonic": staticmethod(lambda: clock() * (1 + rank))})  # the second process's clock runs fast
os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT="29555")
torch.manual_seed(0)
rates = []

class Note(TrainerCallback):
    def on_step_end(self, args, state, control, lr_scheduler=None, **_):
        rates.append(lr_scheduler.get_last_lr()[0])

arguments = TrainingArguments("out", save_strategy="no", max_steps=1000, report_to=[],
    use_cpu=True, disable_tqdm=True, warmup_steps=0.1, learning_rate=0.1)
data = [{"x": torch.randn(4)} for _ in range(64)]
trainer = TimedTrainer(Model(), arguments, train_dataset=data, max_minutes=0.03, callbacks=[Note()])
trainer.train()
weights = [value.tolist() for value in trainer.model.state_dict().values()]
print(json.dumps([trainer.state.global_step, rates, weights]))
"""


def test_all_processes_stop_at_the_first_one_s_time_with_equal_rates(repository: Path, tmp_path: Path) -> None:
    first, second = (json.loads(said.splitlines()[-1]) for said in run_two_ranks(PROGRAM, repository, tmp_path))
    assert first == second
    assert 0 < first[0] < 1000
    assert first[1][-1] < 0.5 * max(first[1])
