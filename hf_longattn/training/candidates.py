"""Choose among candidates that are read together with all documents, as Longformer does on WikiHop (Beltagy et al. 2020, appendix).

An input is ``[q] question [/q] [ent] candidate [/ent] [ent] candidate [/ent] …`` and as much of the documents as fits; further inputs of
the question have the rest. A linear layer scores every ``[ent]``; a candidate's score is the mean over the inputs, and the loss is the
cross-entropy among the candidates. The model is one for token classification with a single label, so that it loads, converts and exports
as any other; question and candidates are global by its config.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.data.lengths import input_length
from hf_longattn.data.qa_features import pad_lists
from hf_longattn.data.qa_markers import CANDIDATE, CANDIDATES, END_CANDIDATE, add_markers, marked_question, plain
from hf_longattn.data.sources import DataError, read_source
from hf_longattn.errors import CheckpointError, LengthError
from hf_longattn.evaluation import load_metric
from hf_longattn.modeling.inference import evaluating
from hf_longattn.modeling.token_globals import carry_question
from hf_longattn.training.loading import load_head, loading
from hf_longattn.training.trainer import TimedTrainer

QANGAROO = {"query", "candidates", "supports"}
"""Columns of WikiHop and MedHop."""
LEAST_TEXT = 16
"""Tokens of documents that must fit beside question and candidates."""
PREDICTIONS = "predictions.json"
_BEFORE, _AFTER = re.compile(r" (?=[.,!?)]|'s\b)"), re.compile(r"(?<=\() ")


def is_qangaroo(data: Dataset) -> bool:
    """Whether data have the columns of WikiHop."""
    return set(data.column_names) >= QANGAROO


def read_qangaroo(source: str, split: str) -> Dataset:
    """WikiHop or MedHop: id, query, candidates, supports, and answer, the text of a candidate.

    Returns:
        A dataset with the columns id, question, candidates, supports and label, the answer's number.

    Raises:
        DataError: a missing column, too few candidates, or an answer that is none of them.
    """
    data = read_source(source, split)
    missing = sorted({*QANGAROO, "answer"} - set(data.column_names))
    if missing:
        raise DataError(f"{source} lacks the column {missing[0]!r} of WikiHop's schema; its columns are {', '.join(data.column_names)}")
    rows: dict[str, list[Any]] = {name: [] for name in ("id", "question", "candidates", "supports", "label")}
    for number, row in enumerate(data, start=1):
        candidates, supports = row["candidates"], row["supports"]
        for name, value in (("candidates", candidates), ("supports", supports)):
            if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
                raise DataError(f"row {number} of {source}: {name} must be a list of texts, not {value!r}")
        if len(candidates) < 2 or row["answer"] not in candidates:
            raise DataError(f"row {number} of {source}: the answer {row['answer']!r} is none of its {len(candidates)} candidates")
        values = (str(row.get("id", number)), str(row["query"]), candidates, supports, candidates.index(row["answer"]))
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
    if not rows["id"]:
        raise DataError(f"there are no questions in {source}")
    return Dataset.from_dict(rows)


def from_choices(data: Dataset) -> Dataset:
    """Questions of ``read_choices`` in the columns of :func:`read_qangaroo`; the context is the only document."""
    columns = {
        "id": list(map(str, range(len(data)))),
        "question": data["question"][:],
        "candidates": data["choices"][:],
        "supports": [[text] if text else [] for text in data["context"]],
        "label": data["label"][:],
    }
    return Dataset.from_dict(columns)


def tidy(text: str) -> str:
    """WikiHop's words, which stand apart from their punctuation, as they are usually written."""
    return _AFTER.sub("", _BEFORE.sub("", " ".join(text.split())))


def encode_candidates(
    record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, length: int, *, truncate: bool = False
) -> tuple[list[dict[str, list[int]]], list[int]]:
    """The inputs of a question, without padding, and the token of each candidate, which is the same in all of them.

    Args:
        record: question, candidates, supports.
        length: of the longest input.
        truncate: only the first input.

    Raises:
        LengthError: question and candidates leave no tokens for documents.
    """
    told = [f"{CANDIDATE} {plain(tidy(text), CANDIDATES)} {END_CANDIDATE}" for text in record["candidates"]]
    first = " ".join([marked_question(tidy(record["question"])), *told])
    separator = tokenizer.sep_token or tokenizer.eos_token or ""
    documents = f" {separator} ".join(plain(tidy(text), CANDIDATES) for text in record["supports"])
    count = len(tokenizer(first, "")["input_ids"])
    if count + (LEAST_TEXT if documents else 0) > length:
        raise LengthError(
            f"a question and its {len(told)} candidates take {count} tokens, which leaves {max(0, length - count)} of {length} for "
            "documents; convert the model to a greater length, or raise max_length"
        )
    encoded = tokenizer(
        first, documents, truncation="only_second", max_length=length, return_overflowing_tokens=True, return_attention_mask=False
    )
    marker = tokenizer.convert_tokens_to_ids(CANDIDATE)
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    inputs = [{name: list(encoded[name][window]) for name in names} for window in range(len(encoded["input_ids"]))]
    places = [place for place, number in enumerate(inputs[0]["input_ids"]) if number == marker]
    return inputs[:1] if truncate else inputs, places


def to_candidates(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, *, truncate: bool = False) -> Dataset:
    """A row per question: lists with an entry per input, ``places`` (the token of each candidate), ``labels``, ``length`` (all inputs')."""

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        inputs, places = encode_candidates(row, tokenizer, length, truncate=truncate)
        columns = {name: [one[name] for one in inputs] for name in inputs[0]}
        return {**columns, "places": places, "labels": row["label"], "length": sum(len(one["input_ids"]) for one in inputs)}

    return data.map(encode, remove_columns=data.column_names)


class CandidateCollator:
    """The inputs of all questions of a batch as rows ``(W, L)``; ``owners (W,)``, the question of each; ``places (Q, C)``, padded with -1;
    ``labels (Q,)``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        names = [name for name in ("input_ids", "token_type_ids") if name in features[0]]
        rows = [{name: row[name][window] for name in names} for row in features for window in range(len(row["input_ids"]))]
        owners = [number for number, row in enumerate(features) for _ in row["input_ids"]]
        batch = dict(self.tokenizer.pad(rows, padding_side="right", return_tensors="pt"))
        places = pad_lists([row["places"] for row in features], -1)
        return {**batch, "owners": torch.tensor(owners), "places": places, "labels": torch.tensor([row["labels"] for row in features])}


def candidate_scores(logits: Tensor, owners: Tensor, places: Tensor) -> Tensor:
    """``(Q, C)``: the mean over a question's inputs of the logits at its candidates; -inf for padding.

    Args:
        logits: (W, L, 1), of token classification.
        owners (W,), places (Q, C): see :class:`CandidateCollator`.
    """
    at = places[owners].clamp(min=0)
    scores = logits[..., 0].float().gather(1, at)
    sums = scores.new_zeros(places.shape).index_add(0, owners, scores)
    counts = torch.bincount(owners, minlength=len(places))[:, None]
    return (sums / counts).masked_fill(places < 0, -torch.inf)


class CandidateTrainer(TimedTrainer):
    """A Trainer whose loss is the cross-entropy among a question's candidates; predictions are numbers of candidates."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """The mean over the batch's questions."""
        given = {name: value for name, value in inputs.items() if name not in ("owners", "places", "labels")}
        scores = candidate_scores(model(**given).logits, inputs["owners"], inputs["places"])
        loss = F.cross_entropy(scores, inputs["labels"])
        return (loss, {"loss": loss, "scores": scores}) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        loss, scores, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        return loss, None if scores is None else scores.argmax(-1), labels


def accuracy_by_length(found: Sequence[int], rows: Dataset) -> dict[str, Any]:
    """accuracy and accuracy_se in per cent, n, and the same by the tokens of a question's inputs."""
    right = [int(one == label) for one, label in zip(found, rows["labels"], strict=True)]
    references = [{"label": 1, "length": length} for length in rows["length"]]
    scores = load_metric("long_classification").compute(predictions=right, references=references)
    for part in (scores, *scores["buckets"].values()):
        del part["macro_f1"]  # which candidate has which number means nothing
    return dict(scores)


def load_candidate_model(name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that scores candidates (its head is new unless the checkpoint has one), whose question and candidates are global by its
    config, and its tokenizer with the markers.

    Raises:
        CheckpointError: it cannot be loaded, or its tokenizer is not a fast one.
    """
    if tokenizer is None:
        with loading(name):
            tokenizer = AutoTokenizer.from_pretrained(name)
    if not tokenizer.is_fast:
        raise CheckpointError(f"the tokenizer of {name!r} makes no further inputs of a long text; candidates need a fast tokenizer")
    model = load_head(AutoModelForTokenClassification, name, tokenizer, num_labels=1, id2label={0: "candidate"}, label2id={"candidate": 0})
    add_markers(model, tokenizer, CANDIDATES)
    carry_question(model, tokenizer)
    return model, tokenizer


@dataclass(frozen=True)
class Choice:
    """The chosen candidate, its number, and the probabilities of all."""

    text: str
    number: int
    probabilities: list[float]


class CandidateReader:
    """Chooses among candidates as the training did: all documents are read, in as many inputs as they need.

    Args:
        model, tokenizer: of :func:`load_candidate_model`.
        max_length: of an input; default: the model's.
        batch_size: inputs per forward pass.
        truncate: read only the first input of each question.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        *,
        batch_size: int = 8,
        truncate: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.batch_size, self.truncate = model, tokenizer, batch_size, truncate
        self.length = input_length(model, tokenizer, max_length)
        self.collate = CandidateCollator(tokenizer)

    def read(self, records: Iterable[Mapping[str, Any]]) -> list[Choice]:
        """The choices for records with question, candidates and supports."""
        with evaluating(self.model):
            return [self._choose(record) for record in records]

    @torch.inference_mode()
    def _choose(self, record: Mapping[str, Any]) -> Choice:
        inputs, places = encode_candidates(record, self.tokenizer, self.length, truncate=self.truncate)
        found = torch.cat([self._scores(some, places) for some in _parts(inputs, self.batch_size)])
        scores = found.mean(0)
        best = int(scores.argmax())
        return Choice(record["candidates"][best], best, scores.softmax(-1).tolist())

    def _scores(self, inputs: list[dict[str, list[int]]], places: list[int]) -> Tensor:
        """``(W, C)``."""
        batch = dict(self.tokenizer.pad(inputs, padding_side="right", return_tensors="pt").to(self.model.device))
        logits: Tensor = self.model(**batch).logits
        return logits[:, places, 0].float()


def _parts(values: list[Any], size: int) -> Iterator[list[Any]]:
    return (values[place : place + size] for place in range(0, len(values), size))


def write_choices(folder: Path, records: Dataset, numbers: Sequence[int]) -> None:
    """``predictions.json``, as QAngaroo's script reads it: the text of the chosen candidate by the question's id."""
    chosen = {name: candidates[number] for name, candidates, number in zip(records["id"], records["candidates"], numbers, strict=True)}
    (folder / PREDICTIONS).write_text(json.dumps(chosen, ensure_ascii=False, indent=1), encoding="utf-8")
