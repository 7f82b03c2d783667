"""Every task gives the same batches with any number of workers and over one process or two: no row twice, none lost, equal masks."""

from __future__ import annotations

import json
import random
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
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerBase, Trainer, TrainingArguments

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.masking import RepeatableMasks
from hf_longattn.tasks import load_task, task_names
from hf_longattn.training.parsing import build_arguments
from tests.training.conftest import FAST, checkpoint
from tests.training.speech import speech_checkpoint, spoken

WORDS = ("tree", "file", "node", "path", "line", "code", "name", "type")
BATCHES = 4
"""Batches of a pass of one process; with as many in each of two processes where batches have no end."""
ROWS = 2
"""Rows of a batch."""


def texts(count: int, least: int = 4) -> list[str]:
    """Different texts of different length."""
    choose = random.Random(0)
    return [f"{number} {' '.join(choose.choices(WORDS, k=least + 3 * (number % 5)))}" for number in range(count)]


def write(rows: list[dict[str, Any]], path: Path) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(count: int) -> list[dict[str, Any]]:
    return [{"id": str(n), "question": "what?", "context": text, "answer": text.split()[1]} for n, text in enumerate(texts(count))]


def tagged(count: int) -> list[dict[str, Any]]:
    return [{"tokens": text.split(), "ner_tags": ["B-X", *["O"] * (len(text.split()) - 1)]} for text in texts(count)]


class Models:
    """Checkpoints that the tasks start from, made when they are first asked for."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.folder, self.tokenizer = folder, tokenizer

    def short(self, kind: str) -> str:
        if not (self.folder / kind).exists():
            checkpoint(kind, self.folder / kind, self.tokenizer)
        return str(self.folder / kind)

    def long(self, kind: str, mechanism: str = "window") -> str:
        place = self.folder / f"{kind}-{mechanism}"
        if not place.exists():
            convert_checkpoint(self.short(kind), place, mechanism=mechanism, max_length=64, verify=False)
        return str(place)

    def bart(self) -> str:
        place, tokenizer = self.folder / "bart", self.tokenizer
        if not place.exists():
            shape = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 1, "d_model": 8}
            ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3, "forced_eos_token_id": None}
            sizes = {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_position_embeddings": 64, "vocab_size": len(tokenizer)}
            BartForConditionalGeneration(BartConfig(**shape, **ends, **sizes)).save_pretrained(place)
            tokenizer.save_pretrained(place)
        return str(place)


def labelled(make: Callable[[int], list[dict[str, Any]]]) -> Callable[[Models, Path], dict[str, Any]]:
    """Data in files, of which all rows are trained on."""

    def settings(models: Models, folder: Path) -> dict[str, Any]:
        data = write(make(ROWS * BATCHES), folder / "data.jsonl")
        return {"model": models.long("mlm"), "data": [data], "validation": data, "validation_split": "train"}

    return settings


def plain(kind: str, **more: Any) -> Callable[[Models, Path], dict[str, Any]]:
    """Text that fills that many inputs of 16 tokens."""

    def settings(models: Models, folder: Path) -> dict[str, Any]:
        data = write([{"text": text} for text in texts(60, 8)], folder / "text.jsonl")
        return {"model": models.long(kind), "text": [data], "validation": data, "max_length": 16, "max_train_samples": 30, **more}

    return settings


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"anchor": f"query {number}", "positive": text} for number, text in enumerate(texts(count))]


def summaries(count: int) -> list[dict[str, Any]]:
    return [{"document": text, "summary": text[:8]} for text in texts(count)]


def several(models: Models, folder: Path) -> dict[str, Any]:
    """Three tasks in one run."""
    classes = write([{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(texts(8))], folder / "classes.jsonl")
    words, asked = write(tagged(8), folder / "words.jsonl"), write(questions(8), folder / "asked.jsonl")
    tasks = [f"topic=classify:{classes}", f"names=tokens:{words}", f"ask=qa:{asked}"]
    return {"model": models.long("mlm"), "tasks": tasks, "validation": [f"topic={classes}", f"names={words}", f"ask={asked}"]}


def speech(models: Models, folder: Path) -> dict[str, Any]:
    """Recordings of several lengths."""
    data = write(spoken(folder, ROWS * BATCHES), folder / "data.jsonl")
    place = models.folder / "ctc"
    return {"model": speech_checkpoint(place), "data": [data], "validation": data, "validation_split": "train"}


DISTILLED = {"transfer_steps": 1, "finetune_steps": 1, "mechanism": "hedgehog"}
SETTINGS: dict[str, Callable[[Models, Path], dict[str, Any]]] = {
    "qa": lambda models, folder: {**labelled(questions)(models, folder), "stride": 16},
    "classify": labelled(lambda count: [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(texts(count))]),
    "tokens": labelled(tagged),
    "mlm": plain("mlm"),
    "clm": plain("clm"),
    "seq2seq": lambda models, folder: {**labelled(summaries)(models, folder), "model": models.bart()},
    "embed": labelled(pairs),
    "multitask": several,
    "linearise": lambda models, folder: {**plain("mlm")(models, folder), "model": models.short("mlm"), **DISTILLED},
    "ctc": speech,
    "distill": lambda models, folder: {**plain("mlm")(models, folder), "method": "tinybert", "teacher": models.short("mlm")},
}
"""What each task of `longattn train` is given."""
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "clm --segments": ("clm", {"segments": 8, "max_length": None, "max_steps": 4}),
    "embed --reranker": ("embed", {"reranker": True}),
    "classify --tokens-per-batch": ("classify", {"tokens_per_batch": 40}),
    "mlm unpacked": ("mlm", {"packing": False}),
}
"""Further ways in which tasks make batches."""


def test_every_task_has_settings_for_the_loader_tests() -> None:
    assert set(SETTINGS) == set(task_names())


class Stopped(Exception):
    """A run is where its training begins."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Models:
    return Models(tmp_path_factory.mktemp("models"), tokenizer)


def trainer_of(name: str, models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """The Trainer of a run, before its first step."""

    def stop(self: Trainer, *_: Any, **__: Any) -> None:
        raise Stopped(self)

    folder.mkdir()
    base, changes = OTHERS.get(name, (name, {}))
    task = load_task(base)
    settings = {**SETTINGS[base](models, folder), **FAST, "per_device_train_batch_size": ROWS, **changes}
    if base == "linearise":
        settings["overwrite"] = True
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", stop)
        with pytest.raises(Stopped) as stopped:
            task.train(*build_arguments(task.arguments, output_dir=str(folder / "out"), **settings))
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
        *((name, (1, 2) if name in COUNTED_OR_STREAMED else ()) for name in [*SETTINGS, *OTHERS] if name not in AS_OTHERS),
        *(pytest.param(name, (), marks=pytest.mark.slow) for name in AS_OTHERS),
        *(pytest.param(name, (2,), marks=pytest.mark.slow) for name in [*SETTINGS, *OTHERS] if name not in COUNTED_OR_STREAMED),
    ],
    ids=str,
)
def test_workers_and_processes_share_the_batches(
    name: str,
    several_workers: tuple[int, ...],
    models: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    of_two: Callable[[int], None],
) -> None:
    if name.startswith("embed"):
        pytest.importorskip("sentence_transformers")
    trainer = trainer_of(name, models, tmp_path / "alone", monkeypatch)
    endless = not hasattr(trainer.train_dataset, "__len__")
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
def test_distillation_reads_text_as_language_models_do(name: str, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [trainer_of(each, models, tmp_path / each, monkeypatch).train_dataset["input_ids"][:] for each in ("mlm unpacked", name)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("name", ["qa", "classify", "tokens", "seq2seq", "ctc"])
def test_epoch_holds_every_row_once(name: str, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts(6, 20)]

    def passes(workers: int) -> Iterator[list[str]]:
        masks = RepeatableMasks(tokenizer, seed=0)
        loader = DataLoader(rows, collate_fn=masks, num_workers=workers, persistent_workers=workers > 0)  # type: ignore[arg-type]
        for number in range(2):
            masks.epoch = number
            yield [shown(batch) for batch in loader]

    first, second = passes(0)
    assert [first, second] == list(passes(2))
    assert all(one != other for one, other in zip(first, second, strict=True))
