"""The Trainer of every task: schedules by steps or minutes, the order of rows, and a step as the mean over all of its
labels."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from transformers import (
    BertForTokenClassification,
    MixtralForCausalLM,
    SchedulerType,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
)
from transformers.trainer_pt_utils import LabelSmoother

from hf_longattn.data.batching import TokenBudget
from hf_longattn.engines.cpu import onednn
from hf_longattn.errors import OptionError
from hf_longattn.files import read_json, write_json
from hf_longattn.training import trainer as trainer_module
from hf_longattn.training.arguments import LongTrainingArguments
from hf_longattn.training.run import load_renamed
from hf_longattn.training.tasks import task_names
from hf_longattn.training.trainer import DivergenceError, LongTrainer, Minutes, SeededGroups, SetEpoch, row_lengths
from scripts.dev.tools.small_models import Shape, small_config
from tests.cases import every_case
from tests.ranks import Ranks, announce
from tests.saved import label_config
from tests.training import test_options
from tests.training.test_options import DATA, Runner, is_one_sentence


def test_warm_up_of_a_timed_run_is_a_share_of_it() -> None:
    for steps in (14, 1000):
        scale = Minutes(1.0).rate(lambda step: 1.0, steps, 0.1)
        risen = [scale(step) for step in range(steps)]
        assert risen.index(max(risen)) <= steps // 10 + 1
        assert max(risen) > 0.85


@pytest.mark.parametrize(
    ("warmup", "expected"), [(4, [0.25, 0.5 * 0.99, 0.75 * 0.98, 0.97, 0.96]), (0, [1.0, 0.99, 0.98, 0.97, 0.96])]
)
def test_no_step_of_a_timed_schedule_is_idle(warmup: int, expected: list[float]) -> None:
    """Step k of w in the warm-up has (k + 1) / w of the rate, which falls linearly over 100 steps."""
    scale = Minutes(1.0).rate(lambda step: 1.0, 100, warmup)
    assert [scale(step) for step in range(5)] == pytest.approx(expected)


LENGTHS = [3 + number * 7 % 40 for number in range(60)]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", ["random", "groups", "budget"])
def test_resumed_epoch_has_the_row_order_of_an_uninterrupted_one(kind: str, processes: int, tmp_path: Path) -> None:
    """Also a later pass, and in every process."""

    def loader() -> DataLoader[int]:
        if kind == "budget":
            found: DataLoader[int] = DataLoader(
                range(60), batch_sampler=TokenBudget(LENGTHS, 60, seed=1, processes=processes)
            )
        else:
            groups = SeededGroups(2, lengths=LENGTHS)
            found = DataLoader(
                range(60), batch_size=2, sampler=RandomSampler(range(60)) if kind == "random" else groups
            )
        even = kind != "budget"
        return prepare_data_loader(
            found,
            num_processes=processes,
            process_index=processes - 1,
            use_seedable_sampler=True,
            put_on_device=False,
            even_batches=even,
        )

    def begin(loader: DataLoader[int], epoch: float) -> None:
        state = TrainerState(epoch=epoch)
        SetEpoch().on_epoch_begin(TrainingArguments(str(tmp_path)), state, TrainerControl(), train_dataloader=loader)

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


class Quick(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(x).pow(2).mean()}


class Slow(Quick):
    """A step takes longer in the second process."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        time.sleep(0.01 + 0.03 * dist.get_rank())
        return super().forward(x)


class Rates(TrainerCallback):
    """The learning rates of all steps."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        self.rates.append(lr_scheduler.get_last_lr()[0])


def train_for_a_time(folder: str) -> tuple[int, list[float], list[Any]]:
    """Steps, rates and weights; the time is how often it is looked at, so that a slow machine takes as many steps."""
    announce()
    looks, rank, rates = itertools.count(), dist.get_rank(), Rates()
    clock = SimpleNamespace(monotonic=lambda: 0.02 * (1 + rank) * next(looks))  # the second process's runs fast
    arguments = LongTrainingArguments(
        folder,
        max_steps=1000,
        report_to=[],
        label_names=["x"],
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        warmup_steps=0.1,
        learning_rate=0.1,
        max_minutes=0.03,
    )
    data = [{"x": torch.randn(4)} for _ in range(64)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "time", clock)
        trainer = LongTrainer(Slow(), arguments, train_dataset=data, eval_dataset=data[:4], callbacks=[rates])
        trainer.train()
        assert trainer.state.log_history[0]["eval_loss"] > trainer.evaluate()["eval_loss"]
    # by the time, whatever the steps between entries
    assert sum("loss" in entry for entry in trainer.state.log_history) >= 5
    return (
        trainer.state.global_step,
        rates.rates,
        [weights.tolist() for weights in trainer.model.state_dict().values()],
    )


@pytest.fixture(scope="module")
def pair() -> Iterator[Ranks]:
    with Ranks() as ranks:
        yield ranks


@pytest.mark.slow
def test_processes_stop_at_the_time_of_the_first_one_with_equal_weights(pair: Ranks, tmp_path: Path) -> None:
    """Also after an evaluation before the first step, each with its rows."""
    first, second = pair.run(train_for_a_time, str(tmp_path / "out"))
    assert first == second
    steps, rates, _ = first
    assert 0 < steps < 1000
    assert rates[-1] < 0.5 * max(rates)


WARMING = [
    kind.value
    for kind in SchedulerType
    if kind.value not in ("constant", "reduce_lr_on_plateau", "greedy")  # no warm-up
]


@every_case("kind", WARMING)
@every_case(("steps", "warmup"), [(1, 1), (6, 1), (40, 8), (40, 0)])
def test_schedules_learn_in_the_first_step_and_warm_up_to_the_full_rate(kind: str, steps: int, warmup: int) -> None:
    """transformers' own schedules begin with 0: a run of one step learnt nothing."""
    lowest = {"min_lr": 0.01}
    specific = {
        "cosine_with_min_lr": lowest,
        "cosine_warmup_with_min_lr": lowest,
        "warmup_stable_decay": {"num_decay_steps": 2},
    }
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    specific_kwargs = {"scheduler_specific_kwargs": specific.get(kind)}
    (plain,) = get_scheduler(
        kind, optimizer, num_warmup_steps=warmup, num_training_steps=steps, **specific_kwargs
    ).lr_lambdas
    ours = Minutes().rate(plain, steps, warmup)
    for step in range(steps):
        assert 0 < ours(step) <= 1
        assert ours(step) == pytest.approx(min(1, plain(step) + 1 / warmup) if step < warmup else plain(step))


def test_resumed_run_follows_the_schedule_of_its_new_length(tmp_path: Path) -> None:
    """A run that had ended stored a rate of 0. With as many steps as before, the rates are those of a run that nothing
    stopped."""

    def rates(folder: str, steps: int, resume: bool, **settings: Any) -> dict[int, float]:
        arguments = LongTrainingArguments(
            str(tmp_path / folder),
            max_steps=steps,
            learning_rate=0.5,
            per_device_train_batch_size=1,
            report_to=[],
            use_cpu=True,
            logging_steps=1,
            save_steps=2,
            save_total_limit=None,
            disable_tqdm=True,
            eval_on_start=False,
            **settings,
        )
        trainer = LongTrainer(Quick(), arguments, train_dataset=[{"x": torch.ones(4)}] * 20)
        trainer.train(resume_from_checkpoint=str(tmp_path / folder / "checkpoint-4") if resume else None)
        return {
            entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry
        }

    for kind in ("linear", "cosine", "polynomial", "constant_with_warmup"):
        settings = {"lr_scheduler_type": kind, "warmup_steps": 2}
        uninterrupted = rates(f"{kind} 8", 8, False, **settings)
        rates(f"{kind} 4", 4, False, **settings)
        longer, same = (rates(f"{kind} {steps}", 8, True, **settings) for steps in (4, 8))
        for step in (5, 6, 7, 8):
            assert longer[step] == same[step] == uninterrupted[step] > 0, (kind, step)
    timed = {"max_minutes": 60.0, "warmup_steps": 0.1}
    rates("timed", 4, False, **timed)
    assert rates("timed", 8, True, **timed)[5] == pytest.approx(0.5 * 4 / 8, rel=0.01)


def test_minutes_count_the_evaluation_before_the_first_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    args, control = TrainingArguments(str(tmp_path), use_cpu=True), TrainerControl()

    def begin(state: TrainerState) -> Minutes:
        minutes = Minutes(10.0)
        minutes.on_train_begin(args, state, control)
        return minutes

    minutes = begin(TrainerState())
    now[0] += 60 * 2  # the evaluation
    minutes.on_epoch_begin(args, TrainerState(), control)
    assert (minutes.spent, minutes.fraction()) == (2.0, 0.0)
    for minute in range(8):
        assert not control.should_training_stop
        now[0] += 60
        minutes.on_optimizer_step(args, TrainerState(), control)
        minutes.on_step_end(args, TrainerState(), control)
        assert minutes.fraction() == pytest.approx((minute + 1) / 8)
    assert control.should_training_stop

    minutes.spent = 6.0
    state = TrainerState(global_step=4)
    state.stateful_callbacks = {"Minutes": minutes.state()}
    resumed = begin(state)
    resumed.on_epoch_begin(args, state, control)
    assert resumed.fraction() == 0.5

    short = begin(TrainerState())
    now[0] += 60 * 11
    with pytest.raises(
        OptionError, match=r"before the first step took 11.0 of the 10 minutes; give more --max-minutes, add --no-eval"
    ):
        short.on_epoch_begin(args, TrainerState(), control)


def test_checkpoint_whose_tensors_have_the_names_of_older_versions_is_loaded(tmp_path: Path) -> None:
    """transformers saves a mixture's experts under the names of older versions, and its Trainer leaves out what has
    another name."""
    model = MixtralForCausalLM(small_config("mixtral"))
    model.save_pretrained(tmp_path)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data.zero_()
    load_renamed(model, tmp_path)
    torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)


def tagging(folder: str, labels: Sequence[int], batch: int, nan_in: int | None = None) -> LongTrainer:
    """A trainer of tags for rows with these numbers of labels; ``nan_in``: the row whose tokens have embeddings of
    NaN."""
    torch.manual_seed(0)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    shape = Shape(width=16, layers=1, heads=2, inner=16, tokens=16, vocabulary=40)
    model = BertForTokenClassification(small_config("bert", shape, **still, **label_config(list("abc"))))
    rows = []
    for number, count in enumerate(labels):
        tags = torch.arange(12).remainder(3).where(torch.arange(12) < count, -100)
        rows.append(
            {
                "input_ids": torch.randint(1, 40, (12,)) if number != nan_in else torch.zeros(12, dtype=torch.long),
                "labels": tags,
            }
        )
    if nan_in is not None:
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight[0] = torch.nan
    arguments = TrainingArguments(
        folder,
        max_steps=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=2 if batch == 1 else 1,
        learning_rate=1.0,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,
    )
    return LongTrainer(model, arguments, train_dataset=rows)


LABELS = (12, 3, 1, 0)


def weights_after_a_step(folder: str) -> tuple[list[float], float]:
    announce()
    trainer = tagging(folder, LABELS, 1)
    trainer.train()
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).tolist(), trainer.state.log_history[
        0
    ]["loss"]


def sentence_of_a_nan(folder: str) -> str:
    announce()
    try:
        tagging(folder, LABELS, 1, nan_in=1).train()
    except DivergenceError as error:
        return str(error)
    return ""


@pytest.mark.thorough
def test_two_accumulating_processes_take_the_step_of_one_large_batch(pair: Ranks, tmp_path: Path) -> None:
    """And where one of them meets NaN, both end with the same sentence."""
    large = tagging(str(tmp_path), LABELS, 4)
    large.train()
    expected = torch.cat([p.detach().flatten() for p in large.model.parameters()])
    for found, loss in pair.run(weights_after_a_step, str(tmp_path)):
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-6, atol=1e-7)
        assert loss == pytest.approx(large.state.log_history[0]["loss"], rel=1e-6)
    first, second = pair.run(sentence_of_a_nan, str(tmp_path))
    assert "is not a finite number at step 1; lower --learning-rate" in first
    assert second.partition(" is")[2] == first.partition(" is")[2]


def test_evaluation_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    trainer = tagging(str(tmp_path), LABELS, 1)
    trainer.args.per_device_eval_batch_size = 1
    alone = [trainer.evaluate([row])["eval_loss"] for row in trainer.train_dataset[:3]]
    # one row has no label
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] == pytest.approx(sum(alone) / 3, rel=1e-6)
    broken = tagging(str(tmp_path), LABELS, 1, nan_in=1)
    with pytest.raises(
        DivergenceError, match="The held-out loss is not a finite number before any training: the model computes NaN"
    ):
        broken.evaluate(broken.train_dataset)
    broken.state.global_step = 3
    with pytest.raises(
        DivergenceError, match="The held-out loss is not a finite number at step 3; lower --learning-rate, which is 1,"
    ):
        broken.evaluate(broken.train_dataset)


@pytest.mark.parametrize(
    ("instructions", "has_bf16"),
    [
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
    ],
)
def test_cpu_computes_bf16_by_instructions_alone(
    instructions: dict[str, bool], has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    monkeypatch.setattr(onednn, "look_up", lambda name: lambda: True)
    assert onednn.cpu_computes_bf16() == has_bf16


def test_row_lengths_are_the_column_length_or_counted() -> None:
    assert row_lengths(Dataset.from_dict({"input_ids": [[1, 2], [3]], "length": [8, 4]})) == [8, 4]
    assert row_lengths(Dataset.from_dict({"input_ids": [[1, 2, 3], [3]]})) == [3, 1]


models, runner = test_options.models, test_options.runner
ROWS = 4
CASES = {
    "qa": ["--packing false", "--packing true"],
    "classify": ["--packing false", "--packing true"],
    "tokens": ["--packing false", "--packing true"],
    "clm": ["--packing false", "--packing true"],
    "mlm": ["--packing false"],  # packed rows are masked by the tokens of a batch
    # embeddings are contrasted with the others of a batch, which accumulation does not change
    "embed": ["--reranker"],
    "distill": ["--method tinybert", "--method logits"],
}
"""What is typed besides, by tasks, once for each of their losses and kinds of batches; the others are tried as they
are."""


class Stop(Exception):
    """Ends a command whose trainer was compared."""


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
        self.parts.append(
            torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().double() for p in learning])
        )
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
def test_accumulated_batches_are_one_batch(
    task: str, runner: Runner, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if task == "embed":
        pytest.importorskip("sentence_transformers")
    for path in {models[task], models["short"]}:
        without_dropout(Path(path))
    train, found = transformers.Trainer.train, {}

    def compare(self: Any, *args: Any, **kwargs: Any) -> None:
        sharpen(self.model)
        for factor in (0.0, 0.3):
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
        config = read_json(path)
        still = {
            name: 0.0 for name in config if "drop" in name or (name.startswith("mask_") and name.endswith("prob"))
        }
        write_json(path, {**config, **still})


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
        tags = {
            name: torch.cat([many[name], few[name]]) if isinstance(many[name], Tensor) else many[name] for name in many
        }
        (mixed, loss), *alone = (
            gradient_of(self, batches, train) for batches in ([many, classes, few], [tags], [classes])
        )
        (gradient, tag_loss), (other, class_loss) = alone
        found["gradient"], found["loss"] = (
            far(mixed, (2 * gradient + other) / 3),
            abs(3 * loss / (2 * tag_loss + class_loss) - 1),
        )
        raise Stop

    monkeypatch.setattr(transformers.Trainer, "train", compare)
    rows = [{**row, **tagged} for row, tagged in zip(DATA["classify"], DATA["tokens"], strict=True)]
    data = tmp_path / "data.jsonl"
    with pytest.raises(Stop):
        runner(
            "multitask",
            "--batch-size 2",
            rows=rows,
            more=["--tasks", f"classes=classify:{data}", f"tags=tokens:{data}"],
        )
    assert max(found.values()) < 2e-6, found


@pytest.mark.thorough
@every_case("task", task_names(), of=4)
def test_training_that_diverges_ends_in_a_sentence_without_a_model(task: str, runner: Runner) -> None:
    if task == "embed":
        pytest.importorskip("sentence_transformers")
    code, run = runner(task, "--learning-rate 1e30 --no-eval-on-start")
    assert code == 1, run.said
    is_one_sentence(
        run.said, r"The (held-out )?(loss|gradient).* not a finite number (at|after) step \d.*lower --learning.rate"
    )
    assert not [
        path for path in run.folder.rglob("*") if path.suffix in (".safetensors", ".md") and path.parent == run.folder
    ]
