"""Every task gives the same batches with any number of workers and over one process or two: no row twice, none lost, equal masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import accelerate.accelerator
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from hf_longattn.data.batching import RepeatableMasks
from hf_longattn.training.tasks import task_names
from tests.training import test_options
from tests.training.conftest import FAST, start_task
from tests.training.speech import spoken
from tests.training.test_options import DATA

models = test_options.models

BATCHES = 4
"""Batches of a pass of one process; with as many in each of two processes where batches have no end."""
ROWS = 2
"""Rows of a batch."""
FURTHER: dict[str, dict[str, Any]] = {
    "qa": {"stride": 16},
    "distill": {"method": "tinybert"},
}
"""What a task is given beside its model and its data."""


def write(rows: list[dict[str, Any]], path: Path) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def settings_of(task: str, models: dict[str, str], folder: Path) -> dict[str, Any]:
    """A model and data in files, of which all rows are trained on; texts fill up to 30 inputs of 16 tokens."""
    data = write(DATA[task][: ROWS * BATCHES], folder / "data.jsonl")
    given: dict[str, Any] = {"model": models[task], **FURTHER.get(task, {})}
    if task == "distill":
        given["teacher"] = models["short"]
    if task == "ctc":
        spoken(folder, ROWS * BATCHES)
    if task == "multitask":
        words = write(DATA["tokens"][: ROWS * BATCHES], folder / "words.jsonl")
        return {**given, "tasks": [f"topic=classify:{data}", f"names=tokens:{words}"], "validation": [f"topic={data}", f"names={words}"]}
    if DATA[task] is DATA["mlm"]:
        return {**given, "data": [data], "validation": data, "max_length": 16, "max_train_samples": 30}
    return {**given, "data": [data], "validation": data}


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "clm --segments": ("clm", {"segments": 8, "max_length": None, "max_steps": 4}),
    "embed --reranker": ("embed", {"reranker": True}),
    "classify --tokens-per-batch": ("classify", {"tokens_per_batch": 80}),
    "mlm unpacked": ("mlm", {"packing": False}),
}
"""Further ways in which tasks make batches."""


class Stopped(Exception):
    """A run is where its training begins."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer


def trainer_of(name: str, models: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """The Trainer of a run, before its first step."""

    def stop(self: Trainer, *_: Any, **__: Any) -> None:
        raise Stopped(self)

    folder.mkdir()
    base, changes = OTHERS.get(name, (name, {}))
    settings = {**settings_of(base, models, folder), **FAST, "per_device_train_batch_size": ROWS, **changes}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", stop)
        with pytest.raises(Stopped) as stopped:
            start_task(base, output_dir=str(folder / "out"), **settings)
    return stopped.value.trainer


def batches(trainer: Trainer, workers: int, count: int | None) -> list[str]:
    """The batches of a pass, or the first ``count``, as text."""
    trainer.args.dataloader_num_workers = workers
    with suppress(AttributeError):
        trainer.train_dataset.set_epoch(0)
    return [shown(batch) for batch in islice(trainer.get_train_dataloader(), count)]


def shown(batch: dict[str, Any]) -> str:
    values = {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    return json.dumps(values, sort_keys=True)


@pytest.fixture
def of_two(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """of_two(rank) lets loaders and arguments take this process for the first or the second of two."""
    prepare = accelerate.accelerator.prepare_data_loader

    def use(rank: int) -> None:
        def prepared(*args: Any, **kwargs: Any) -> Any:
            return prepare(*args, **{**kwargs, "num_processes": 2, "process_index": rank})

        monkeypatch.setattr(accelerate.accelerator, "prepare_data_loader", prepared)
        monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 2))
        monkeypatch.setattr(TrainingArguments, "process_index", property(lambda self: rank))

    return use


COUNTED_OR_STREAMED = ("tokens", "clm --segments")
"""Tasks of which one process alone is seen with workers, too: rows that are counted, and a stream."""
AS_OTHERS = ("ctc", "distill", "embed", "mlm", "multitask")
"""Ways that have a data set and a sampler of the same kind as another one: rows of a table, packed text, pairs."""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "several_workers"),
    [
        *((name, (1, 2) if name in COUNTED_OR_STREAMED else ()) for name in [*task_names(), *OTHERS] if name not in AS_OTHERS),
        *(pytest.param(name, (), marks=pytest.mark.slow) for name in AS_OTHERS),
        *(pytest.param(name, (2,), marks=pytest.mark.slow) for name in [*task_names(), *OTHERS] if name not in COUNTED_OR_STREAMED),
    ],
    ids=str,
)
def test_workers_and_processes_share_the_batches(
    name: str,
    several_workers: tuple[int, ...],
    models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    of_two: Callable[[int], None],
) -> None:
    if name.startswith("embed"):
        pytest.importorskip("sentence_transformers")
    trainer = trainer_of(name, models, tmp_path / "alone", monkeypatch)
    endless = name == "clm --segments"
    alone = batches(trainer, 0, 2 * BATCHES if endless else None)
    for workers in several_workers:
        assert batches(trainer, workers, 2 * BATCHES if endless else None) == alone, f"{workers} workers"
    shared = []
    for rank in range(2):
        of_two(rank)
        other = trainer_of(name, models, tmp_path / f"rank{rank}", monkeypatch)
        shared.append(batches(other, 2 * rank, BATCHES if endless else None))  # the second process has two workers
    assert len(shared[0]) == len(shared[1])
    if name == "clm --segments":  # a row of a batch is a stream of documents: two processes have twice as many
        monkeypatch.undo()
        monkeypatch.setitem(OTHERS, name, ("clm", {**OTHERS[name][1], "per_device_train_batch_size": 2 * ROWS}))
        whole = [json.loads(batch) for batch in batches(trainer_of(name, models, tmp_path / "whole", monkeypatch), 0, BATCHES)]
        halves = [[json.loads(batch) for batch in part] for part in shared]
        for both, *parts in zip(whole, *halves, strict=True):
            assert {column: parts[0][column] + parts[1][column] for column in both} == both
        return
    together = [batch for step in zip(*shared, strict=True) for batch in step]
    assert together[: len(alone)] == alone
    assert len(together) <= len(alone) + 1  # the last step of two processes may repeat a batch


@pytest.mark.parametrize("name", ["linearise", "distill"])
def test_distillation_reads_text_as_training(name: str, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [trainer_of(each, models, tmp_path / each, monkeypatch).train_dataset["input_ids"][:] for each in ("mlm unpacked", name)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("name", ["qa", "classify", "tokens", "seq2seq", "ctc"])
def test_epoch_holds_every_row_once(name: str, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(name, models, tmp_path / "run", monkeypatch)
    collated: list[str] = []
    usual = trainer.data_collator

    def noting(rows: list[dict[str, Any]]) -> Any:
        collated.extend(shown(row) for row in rows)
        return usual(rows)

    trainer.data_collator = noting
    list(trainer.get_train_dataloader())
    data = trainer.train_dataset
    assert isinstance(data, Dataset)
    assert sorted(collated) == sorted(shown(row) for row in data)
    assert len(set(collated)) == len(data) == ROWS * BATCHES


def test_masks_change_with_the_epoch_and_not_with_the_workers(tokenizer: PreTrainedTokenizerBase) -> None:
    """Workers that go on from pass to pass are told the number of the next one."""
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in (row["text"] for row in DATA["mlm"][:6])]

    def passes(workers: int) -> Iterator[list[str]]:
        masks = RepeatableMasks(tokenizer, seed=0)
        loader = DataLoader(rows, collate_fn=masks, num_workers=workers, persistent_workers=workers > 0)  # type: ignore[arg-type]
        for number in range(2):
            masks.epoch = number
            yield [shown(batch) for batch in loader]

    first, second = passes(0)
    assert [first, second] == list(passes(2))
    assert all(one != other for one, other in zip(first, second, strict=True))
