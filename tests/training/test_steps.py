"""A step is that of all its labels together: one large batch has the gradient of the same batch accumulated, in every task.

The list of tasks is that of `longattn train`: a new task is tried on arrival, by the runner of ``test_options.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LabelSmoother

from hf_longattn.modeling.losses import share_of_step
from hf_longattn.training.tasks import load_task, task_names
from hf_longattn.training.trainer import LongTrainer, Minutes
from tests.cases import every_case
from tests.training import test_options
from tests.training.test_options import DATA, Runner, is_one_sentence

models, runner = test_options.models, test_options.runner
ROWS = 4
CASES = {
    "qa": ["--packing false", "--packing true"],
    "classify": ["--packing false", "--packing true"],
    "tokens": ["--packing false", "--packing true"],
    "clm": ["--packing false", "--packing true"],
    "mlm": ["--packing false"],  # packed rows are masked by the tokens of a batch
    "embed": ["--reranker"],  # embeddings are contrasted with the others of a batch, which accumulation does not change
    "distill": ["--method tinybert", "--method logits"],
}
"""What is typed besides, by tasks, once for each of their losses and kinds of batches; the others are tried as they are."""


class Stop(Exception):
    """Ends a command whose trainer was compared."""


def test_step_of_two_processes_is_the_mean_over_all_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are averaged over the processes, so that of three labels and of one count as the four together."""
    labels, losses, parts = (3, 1), (1.0, 2.0), []
    for own, other, loss in zip(labels, labels[::-1], losses, strict=True):
        trainer: Any = object.__new__(LongTrainer)
        trainer.state, trainer.minutes = SimpleNamespace(global_step=0, max_steps=1), Minutes()
        trainer.args = SimpleNamespace(average_tokens_across_devices=True)
        trainer.accelerator = SimpleNamespace(reduce=lambda count, _, other=other: (count + other) / 2)
        trainer.items_of = lambda batch: batch["labels"]
        monkeypatch.setattr(transformers.Trainer, "get_batch_samples", lambda *_, own=own: ([{"labels": own}], None))
        _, items = LongTrainer.get_batch_samples(trainer, iter(()), 1, torch.device("cpu"))
        parts.append(float(share_of_step(torch.tensor(loss), torch.tensor(own), items)))
    assert sum(parts) / 2 == pytest.approx((3 * 1.0 + 1 * 2.0) / 4)


def parts_of(batch: dict[str, Any], first: int) -> list[dict[str, Any]]:
    """A batch cut into its first rows and the others."""
    by_row = {name for name, value in batch.items() if isinstance(value, Tensor | list)}
    assert {len(batch[name]) for name in by_row} == {ROWS}, list(batch)
    cut = (slice(first), slice(first, None))
    return [{name: value[rows] if name in by_row else value for name, value in batch.items()} for rows in cut]


class Gradient(TrainerCallback):
    """Notes the gradient before it would be taken, and takes no step."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        learning = [p for p in model.parameters() if p.requires_grad]
        self.parts.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().double() for p in learning]))
        for p in learning:
            p.grad = None


def gradient_of(trainer: Any, batches: Sequence[dict[str, Any]], train: Callable[..., Any]) -> tuple[Tensor, float]:
    """The gradient of one step over these batches, and its logged loss."""
    noted = Gradient()
    trainer.add_callback(noted)
    trainer.args.max_steps, trainer.args.gradient_accumulation_steps, trainer.args.max_grad_norm = 1, len(batches), 0.0
    trainer.args.weight_decay, trainer.get_train_dataloader = 0.0, lambda: [dict(batch) for batch in batches]
    trainer.optimizer = trainer.lr_scheduler = None
    train(trainer)
    trainer.remove_callback(noted)
    return noted.parts[0], next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry)


def far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def differences(trainer: Any, train: Callable[..., Any]) -> Iterator[tuple[str, float]]:
    """Relative difference between the gradients of accumulated batches and of one batch, by kind of batch."""
    batch = next(iter(type(trainer).get_train_dataloader(trainer)))
    packed = {"lengths", "documents", "owners"} & set(batch)  # whose rows are not those of a tensor
    kinds = {"even": batch}
    labels = batch.get("labels")
    if packed:
        rows = [trainer.train_dataset[place] for place in range(ROWS)]
        batch, *cut = (trainer.data_collator(part) for part in (rows, rows[:3], rows[3:]))
        kinds = {"packed": batch}
    elif isinstance(labels, Tensor) and labels.dim() == 2:
        columns = torch.arange(labels.shape[1])
        few, none = labels.clone(), labels.clone()
        few[:2] = torch.where(columns < 3, few[:2], -100)
        none[3] = -100
        kinds |= {"few labels": {**batch, "labels": few}, "no labels": {**batch, "labels": none}}
    for name, whole in kinds.items():
        parts = cut if packed else parts_of(whole, 3)
        (together, loss), (apart, losses) = (gradient_of(trainer, batches, train) for batches in ([whole], parts))
        yield name, far(apart, together)
        yield f"the logged loss, {name}", abs(losses - loss) / abs(loss)


@pytest.mark.thorough
@every_case("task", task_names(), of=3)
def test_accumulated_batches_are_one_batch(task: str, runner: Runner, models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    if task == "embed":
        pytest.importorskip("sentence_transformers")
    for path in {models[task], models["short"]}:
        without_dropout(Path(path))
    train, found = transformers.Trainer.train, {}

    def compare(self: Any, *args: Any, **kwargs: Any) -> None:
        sharpen(self.model)
        smoothed = [0.0] if "label_smoothing_factor" in getattr(load_task(task).ARGUMENTS[2], "without_effect", ()) else [0.0, 0.3]
        for factor in smoothed:
            self.label_smoother = LabelSmoother(factor) if factor else None
            found.update({f"{case} {factor} {name}": value for name, value in differences(self, train)})
        raise Stop

    monkeypatch.setattr(transformers.Trainer, "train", compare)
    for number, case in enumerate(CASES.get(task, [""])):
        with pytest.raises(Stop):
            runner(task, f"--batch-size {ROWS} {case}", output=str(number))
    assert found
    assert not {name: value for name, value in found.items() if not value < 2e-6}


def without_dropout(folder: Path) -> None:
    """Two passes of a model give the same."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text())
        still = {name: 0.0 for name in config if "drop" in name or (name.startswith("mask_") and name.endswith("prob"))}
        path.write_text(json.dumps({**config, **still}))


@torch.no_grad()
def sharpen(model: torch.nn.Module) -> None:
    """Make the outputs of a batch's rows differ, so that gradients do not cancel out."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.mul_(5)


def test_multitask_step_weighs_tasks_by_batches_and_labels_alike(
    runner: Runner, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches of tags, with many and few labels, and one of classes: tags count by two thirds."""
    without_dropout(Path(models["multitask"]))
    train, found = transformers.Trainer.train, {}

    def compare(self: Any, *args: Any, **kwargs: Any) -> None:
        sharpen(self.model)

        def batch(name: str, places: range, most: int = 64) -> dict[str, Any]:
            rows = [{"task": name, **self.tasks[name].rows[place]} for place in places]
            made = self.data_collator(rows)
            if name == "tags":
                made["labels"] = made["labels"].where(torch.arange(made["labels"].shape[1]) < most, -100)
            return made

        many, few, classes = batch("tags", range(2)), batch("tags", range(2, 4), most=4), batch("classes", range(2))
        tags = {name: torch.cat([many[name], few[name]]) if isinstance(many[name], Tensor) else many[name] for name in many}
        (mixed, loss), *alone = (gradient_of(self, batches, train) for batches in ([many, classes, few], [tags], [classes]))
        (gradient, tag_loss), (other, class_loss) = alone
        found["gradient"], found["loss"] = far(mixed, (2 * gradient + other) / 3), abs(3 * loss / (2 * tag_loss + class_loss) - 1)
        raise Stop

    monkeypatch.setattr(transformers.Trainer, "train", compare)
    rows = [{**row, **tagged} for row, tagged in zip(DATA["classify"], DATA["tokens"], strict=True)]
    data = tmp_path / "data.jsonl"
    with pytest.raises(Stop):
        runner("multitask", "--batch-size 2", rows=rows, more=["--tasks", f"classes=classify:{data}", f"tags=tokens:{data}"])
    assert max(found.values()) < 2e-6, found


@pytest.mark.thorough
@every_case("task", task_names(), of=4)
def test_training_that_diverges_ends_in_a_sentence_without_a_model(task: str, runner: Runner) -> None:
    if task == "embed":
        pytest.importorskip("sentence_transformers")
    code, run = runner(task, "--learning-rate 1e30 --no-eval-on-start")
    assert code == 1, run.said
    is_one_sentence(run.said, r"The (held-out )?(loss|gradient).* not a finite number (at|after) step \d.*lower --learning.rate")
    assert not [path for path in run.folder.rglob("*") if path.suffix in (".safetensors", ".md") and path.parent == run.folder]
