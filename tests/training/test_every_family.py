"""Every task trains every family that has its head, with the task's defaults: a step of a small Long model each."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto

from hf_longattn.families import FAMILIES
from hf_longattn.training.tasks import task_names
from scripts.dev.tools.small_models import IN_FULL, Shape, small_config, small_values
from tests.byte_tokenizer import train_tokenizer
from tests.cases import every_case
from tests.shared_code import kind_of_family
from tests.training.conftest import start_task, write_rows

WORDS = "the tree is a file of lines"
SHAPE = Shape(tokens=256, vocabulary=300)
DECODED = 200
"""Tokens that the decoder beside an encoder reads: fewer than the default of seq2seq, and more than the stride of
question answering."""
SPECIAL = {
    "pad_token_id": 0,
    "bos_token_id": 2,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "eos_token_id": 3,
    "mask_token_id": 4,
}
WINDOW, HEDGEHOG = {"mechanism": "window", "window": 16}, {"mechanism": "hedgehog"}
QUICK: dict[str, Any] = {"bf16": False, "disable_tqdm": True, "report_to": []}
"""What makes a run quick and quiet; all else is as a user who types no option has it."""
STEP = {**QUICK, "max_steps": 1}

CAUSAL, MASKED = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"
CLASSES = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
TOKENS = "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES"
QUESTIONS = "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES"
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlm": (MASKED, {"data": ["texts.jsonl"], **STEP}),
    "clm": (CAUSAL, {"data": ["texts.jsonl"], **STEP}),
    "qa": (QUESTIONS, {"data": ["questions.jsonl"], **STEP}),
    "classify": (CLASSES, {"data": ["labels.jsonl"], **STEP}),
    "tokens": (TOKENS, {"data": ["tags.jsonl"], **STEP}),
    "seq2seq": (
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        {"data": ["summaries.jsonl"], "eval_on_start": False, "generation_num_beams": 1, **STEP},
    ),
    "embed": ("MODEL_MAPPING_NAMES", {"data": ["pairs.jsonl"], **STEP}),
    "embed reranker": (CLASSES, {"data": ["pairs.jsonl"], "reranker": True, **STEP}),
    "distill": ("MODEL_MAPPING_NAMES", {"data": ["texts.jsonl"], "method": "hidden", "teacher": "model", **STEP}),
    "distill masked": (MASKED, {"data": ["texts.jsonl"], "method": "logits", "teacher": "model", **STEP}),
    "linearise": (CAUSAL, {"data": ["texts.jsonl"], **STEP}),
    "multitask": (
        TOKENS,
        {"tasks": ["topic=classify:labels.jsonl", "names=tokens:tags.jsonl", "ask=qa:questions.jsonl"], **STEP},
    ),
}
"""A task, with an option in a second word -> the table of the classes that have its head, and the arguments of a run.

Tests of their own train what reads sound or images."""
OTHERS = ("ctc",)


APART = ("xmod",)
"""Families whose checkpoints must be told the language of their texts first."""


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file."""
    texts = [f"{WORDS} {' '.join(WORDS.split()[: number % 7])}" for number in range(8)]
    labels = ["even", "odd"] * 4
    answers = {"text": ["tree"], "answer_start": [4]}
    tags = [{"tokens": text.split(), "ner_tags": ["O", "B-PLANT"] + ["O"] * (len(text.split()) - 2)} for text in texts]
    return {
        "texts": [{"text": text * 4} for text in texts],
        "questions": [
            {"id": str(at), "question": "what?", "context": text * 4, "answers": answers}
            for at, text in enumerate(texts)
        ],
        "labels": [{"text": text * 12, "label": label} for text, label in zip(texts, labels, strict=True)],
        "tags": tags,
        "summaries": [{"document": text * 4, "summary": WORDS * 4} for text in texts],
        "pairs": [{"query": text.split()[-1] + str(at), "document": f"{text} {at}"} for at, text in enumerate(texts)],
    }[name]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of all tasks."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("texts", "questions", "labels", "tags", "summaries", "pairs"):
        write_rows(rows(name), folder / f"{name}.jsonl")
    return folder


@pytest.fixture(scope="module")
def tokenizers() -> dict[bool, PreTrainedTokenizerBase]:
    """The tokenizer of decoders, with a first and an end token alone, and that of other models."""
    usual, decoders = (train_tokenizer([WORDS] * 3, SHAPE.vocabulary, SHAPE.tokens) for _ in range(2))
    usual.eos_token = "[SEP]"
    decoders = transformers.PreTrainedTokenizerFast(
        tokenizer_object=decoders.backend_tokenizer,
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=SHAPE.tokens,
    )
    return {False: usual, True: decoders}


def class_with_head(table: str, base: str) -> str | None:
    """The Long class of a base in a table of heads; ``None`` if the family has none."""
    named = getattr(modeling_auto, table).get(f"long_{base}")
    name = named[0] if isinstance(named, tuple) else named
    return name if name in FAMILIES[base].model_classes.values() else None


def is_decoder(base: str) -> bool:
    """Whether a family has one stack, which predicts the next token."""
    return class_with_head(MASKED, base) is None and not FAMILIES[base].two_stacks


def pairs() -> Iterator[tuple[str, str]]:
    """Every task with every family that has its head; of derived decoders, which are alike, ``check_derived`` knows
    small models."""
    texts = (
        base
        for base in FAMILIES
        if FAMILIES[base].spec.reads == "text" and not FAMILIES[base].spec.further and base not in APART
    )
    for base in (base for base in texts if base in IN_FULL or not is_decoder(base)):
        for task, (table, _) in TASKS.items():
            refused = {
                "clm": not is_decoder(base),  # an encoder
                "linearise": not is_decoder(base) or FAMILIES[base].config_class.score_cap is not None,
                "distill": FAMILIES[base].two_stacks,
                "multitask": class_with_head(QUESTIONS, base) is None
                or bool(FAMILIES[base].two_stacks and FAMILIES[base].relative),
            }
            if class_with_head(table, base) is not None and not refused.get(task):
                yield task, base


def small_checkpoint(
    folder: Path, base: str, name: str, tokenizer: PreTrainedTokenizerBase, mechanism: dict[str, Any]
) -> None:
    """Write a small model of a Long class or of a base's, with random weights; a Long decoder reads fewer tokens than
    its encoder."""
    torch.manual_seed(0)
    family, without = FAMILIES[base], "pad_token_id" if tokenizer.pad_token is None else ""
    special = {key: value for key, value in {**SPECIAL, "decoder_start_token_id": 3}.items() if key != without}
    values = small_values(base, SHAPE, attention_type="original_full", **special)
    if without:
        values["pad_token_id"] = None
    if name in family.model_classes:
        model = getattr(transformers, name)(small_config(base, SHAPE, **values))
    else:
        decoder = {"max_decoder_position_embeddings": DECODED} if family.two_stacks else {}
        model = family.model_class(name)(family.config_class(**values, **decoder, long_attention=mechanism))
    model.save_pretrained(folder)
    if getattr(model.config, "type_vocab_size", 2) < 2:  # whose tokenizers give no types
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)


ALIKE = {
    "distill masked": "mlm",
    "linearise": "clm",
    "multitask": "qa",
    "tokens": "classify",
    "embed reranker": "classify",
    "distill": "embed",
}
"""Tasks whose inputs and outputs are made as those of another task: the quick test has each kind of family with one of
them."""


def kind_of_pair(task: str, base: str) -> Any:
    """What a pair shares with others: the kind of task, and the parts of the family."""
    return ALIKE.get(task, task), kind_of_family(base)


def test_every_task_is_in_the_table_of_families_and_tasks() -> None:
    assert {name.split()[0] for name in TASKS} | {*OTHERS} == {*task_names()}


@every_case("task, base", [*pairs()], by="task", of=10**6, code=kind_of_pair)
def test_every_task_trains_every_family_with_the_defaults(
    task: str,
    base: str,
    tmp_path: Path,
    data: Path,
    tokenizers: dict[bool, PreTrainedTokenizerBase],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, arguments = TASKS[task]
    name, model = class_with_head(table, base), str(tmp_path / "model")
    assert name is not None
    small_checkpoint(
        tmp_path / "model", base, name, tokenizers[is_decoder(base)], HEDGEHOG if task == "linearise" else WINDOW
    )
    monkeypatch.chdir(data)
    teacher = {"teacher": model} if "teacher" in arguments else {}
    log = start_task(task.split()[0], **{**arguments, **teacher}, model=model, output_dir=str(tmp_path / "out"))
    assert log["versions"]
    assert (tmp_path / "out" / "model.safetensors").exists()
