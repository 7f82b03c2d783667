"""Batches: packed as padded ones, of a number of tokens, and the same with any number of workers and over two
processes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.accelerator
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from hf_longattn.data.batching import (
    DataCollatorForPackedText,
    DataCollatorWithGlobals,
    DataCollatorWithPacking,
    RepeatableMasks,
    TokenBudget,
    chosen_packing,
    first_tokens,
    packed,
    pooling_module,
)
from hf_longattn.data.tokenization import to_inputs
from hf_longattn.errors import OptionError
from hf_longattn.training.tasks import task_names
from tests.reference.small_models import long_model
from tests.training import test_options
from tests.training.conftest import FAST, converted, quick, start_task, write_rows
from tests.training.speech import spoken
from tests.training.test_options import DATA

WINDOW = {"mechanism": "window", "window": 8}


def documents(count: int = 4, longest: int = 40) -> list[dict[str, Any]]:
    choose = random.Random(0)
    return [{"input_ids": [choose.randrange(5, 64) for _ in range(choose.randint(3, longest))]} for _ in range(count)]


def padded(data: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in data)
    ids = torch.tensor([row["input_ids"] + [1] * (longest - len(row["input_ids"])) for row in data])
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in data])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", ["Bert", "Roberta", "Electra"])
def test_classifiers_give_packed_documents_the_logits_of_padded_ones(name: str) -> None:
    model = long_model(name.lower(), f"{name}ForSequenceClassification", WINDOW, pad_token_id=1)
    data = documents()
    lengths = torch.tensor([len(row["input_ids"]) for row in data])
    with first_tokens(model, lengths):
        found = model(**packed(data), labels=torch.tensor([0, 1, 0, 1]))
    expected = model(**padded(data), labels=torch.tensor([0, 1, 0, 1]))
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=1e-5)


def test_packing_is_refused_for_heads_that_pick_the_token_themselves() -> None:
    for base, head in (("gpt2", "GPT2"), ("distilbert", "DistilBert")):
        assert pooling_module(long_model(base, f"{head}ForSequenceClassification", WINDOW)) is None
    deberta = long_model("deberta-v2", "DebertaV2ForSequenceClassification", WINDOW)
    with pytest.raises(OptionError, match="cannot tell its attention where each starts"):
        chosen_packing(deberta, True, TrainingArguments(report_to=[], use_cpu=True))


@pytest.mark.parametrize(
    ("kind", "loader"), [("mlm", AutoModelForMaskedLM), ("clm", AutoModelForCausalLM), ("llama", AutoModelForCausalLM)]
)
def test_packed_text_has_the_loss_of_separate_documents(
    kind: str, loader: Any, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The loss of rows that hold several documents is that of the documents in separate rows."""
    model = loader.from_pretrained(converted(kind, tmp_path, tokenizer, window=16)).eval()
    texts = ["one two three", "def read(path):\n    return path", "for each line in file: pass"]
    data = to_inputs(Dataset.from_dict({"text": texts}), tokenizer, 128, pack=True)
    assert len(data) == 1
    assert set(data[0]["documents"]) == {0, 1, 2}
    batch = DataCollatorForPackedText(tokenizer, mlm=False)([data[0]])
    alone, counts = [], []
    for number in range(3):
        ids = torch.tensor(
            [
                [
                    token
                    for token, document in zip(data[0]["input_ids"], data[0]["documents"], strict=True)
                    if document == number
                ]
            ]
        )
        labels = ids.clone()
        if kind == "mlm":
            labels[:, 0] = -100
        alone.append(model(input_ids=ids, labels=labels).loss.item())
        counts.append(ids.shape[1] - 1)
    whole = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    assert model(**batch).loss.item() == pytest.approx(whole, abs=1e-4)


def test_packed_token_labels_have_the_loss_of_padded_ones(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForTokenClassification.from_pretrained(
        converted("mlm", tmp_path, tokenizer, window=16), num_labels=3
    ).eval()
    data = [{**row, "labels": [token % 3 for token in row["input_ids"]]} for row in documents()]
    found = model(**DataCollatorWithPacking()(data))
    rows_ = padded(data)
    labels = torch.full_like(rows_["input_ids"], -100)
    for number, row in enumerate(data):
        labels[number, : len(row["labels"])] = torch.tensor(row["labels"])
    torch.testing.assert_close(found.loss, model(**rows_, labels=labels).loss, atol=1e-5, rtol=1e-5)


@pytest.mark.thorough
def test_language_model_training_packs_converted_models_by_default(
    texts: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    long, short = converted("clm", tmp_path, tokenizer, window=16), str(tmp_path / "short")
    start = partial(quick, "clm", output=tmp_path / "out", data=texts, max_steps=2, per_device_train_batch_size=2)
    assert start(model=long)["packed"]
    assert not start(model=short)["packed"]
    with pytest.raises(OptionError, match=r"--packing cannot be used here; .* convert it"):
        start(model=short, packing=True)
    with pytest.raises(OptionError, match="rows of known length"):
        start(model=long, segments=16, tokens_per_batch=500)


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("pads", [True, False])
def test_token_budget_batches_hold_every_row_within_the_budget(pads: bool, processes: int) -> None:
    choose = random.Random(0)
    lengths = [choose.randint(1, 100) for _ in range(200)] + [700]
    batches = TokenBudget(lengths, 512, seed=1, padded=pads, processes=processes)
    first, again = list(batches), list(batches)
    assert len(first) == len(batches)
    assert len(first) % processes == 0
    assert first == again
    assert sorted({row for batch in first for row in batch}) == list(range(201))
    for batch in first:
        size = [lengths[row] for row in batch]
        assert len(batch) == 1 or (max(size) * len(size) if pads else sum(size)) <= 512
    batches.set_epoch(1)
    assert list(batches) != first
    cells = sum(max(lengths[row] for row in batch) * len(batch) for batch in first)
    assert sum(lengths) / cells > 0.9  # similar lengths share a batch
    # the budget may be filled
    assert {len(batch) for batch in TokenBudget([5] * 12, 10, padded=pads, processes=processes)} == {2}


def test_packing_is_refused_for_questions_of_a_bigbird() -> None:
    """Its head takes one question in a row out of its answers; other heads read several documents in a row."""
    args: Any = SimpleNamespace(torch_compile=False, n_gpu=1)
    assert chosen_packing(long_model("big_bird", "BigBirdForTokenClassification", WINDOW), None, args) is True
    model = long_model("big_bird", "BigBirdForQuestionAnswering", WINDOW)
    assert chosen_packing(model, None, args) is False
    with pytest.raises(
        OptionError, match=r"--packing cannot be used here; leave it out\. A LongBigBirdForQuestionAnswering reads one"
    ):
        chosen_packing(model, True, args)


@pytest.mark.parametrize(
    ("side", "expected"), [("right", [[1, 0, 0, 0], [1, 1, 0, 0]]), ("left", [[1, 0, 0, 0], [0, 0, 1, 1]])]
)
def test_global_tokens_are_padded_where_the_text_is(
    side: str, expected: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    before, tokenizer.padding_side = tokenizer.padding_side, side
    try:
        rows = [
            {"input_ids": [5, 6, 7, 8], "global_attention_mask": [1, 0, 0, 0]},
            {"input_ids": [5, 6], "global_attention_mask": [1, 1]},
        ]
        batch = DataCollatorWithGlobals(tokenizer)(
            [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        )
        assert batch["global_attention_mask"].tolist() == expected
        assert (batch["global_attention_mask"] <= batch["attention_mask"]).all()
        plain = DataCollatorWithGlobals(tokenizer)([{"input_ids": [5, 6, 7]}, {"input_ids": [5]}])
        assert "global_attention_mask" not in plain
    finally:
        tokenizer.padding_side = before


models = test_options.models

BATCHES = 4
"""Batches of a pass of one process; with as many in each of two processes where batches have no end."""
ROWS = 2
"""Rows of a batch."""
FURTHER: dict[str, dict[str, Any]] = {"qa": {"stride": 16}, "distill": {"method": "tinybert"}}
"""What a task is given beside its model and its data."""


def settings_of(task: str, models: dict[str, str], folder: Path) -> dict[str, Any]:
    """A model and data in files, of which all rows are trained on; texts fill up to 30 inputs of 16 tokens."""
    data = write_rows(DATA[task][: ROWS * BATCHES], folder / "data.jsonl")
    given: dict[str, Any] = {"model": models[task], **FURTHER.get(task, {})}
    if task == "distill":
        given["teacher"] = models["short"]
    if task == "ctc":
        spoken(folder, ROWS * BATCHES)
    if task == "multitask":
        words = write_rows(DATA["tokens"][: ROWS * BATCHES], folder / "words.jsonl")
        return {
            **given,
            "tasks": [f"topic=classify:{data}", f"names=tokens:{words}"],
            "validation": [f"topic={data}", f"names={words}"],
        }
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
        *(
            (name, (1, 2) if name in COUNTED_OR_STREAMED else ())
            for name in [*task_names(), *OTHERS]
            if name not in AS_OTHERS
        ),
        *(pytest.param(name, (), marks=pytest.mark.slow) for name in AS_OTHERS),
        *(
            pytest.param(name, (2,), marks=pytest.mark.slow)
            for name in [*task_names(), *OTHERS]
            if name not in COUNTED_OR_STREAMED
        ),
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
        whole = [
            json.loads(batch)
            for batch in batches(trainer_of(name, models, tmp_path / "whole", monkeypatch), 0, BATCHES)
        ]
        halves = [[json.loads(batch) for batch in part] for part in shared]
        for both, *parts in zip(whole, *halves, strict=True):
            assert {column: parts[0][column] + parts[1][column] for column in both} == both
        return
    together = [batch for step in zip(*shared, strict=True) for batch in step]
    assert together[: len(alone)] == alone
    assert len(together) <= len(alone) + 1  # the last step of two processes may repeat a batch


@pytest.mark.parametrize("name", ["linearise", "distill"])
def test_distillation_reads_text_as_training(
    name: str, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        trainer_of(each, models, tmp_path / each, monkeypatch).train_dataset["input_ids"][:]
        for each in ("mlm unpacked", name)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("name", ["qa", "classify", "tokens", "seq2seq", "ctc"])
def test_epoch_holds_every_row_once(
    name: str, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
