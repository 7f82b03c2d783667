"""Choose among candidates that are read together with all documents, as Longformer does on WikiHop (Beltagy et al. 2020, appendix).

An input is ``[q] question [/q] [ent] candidate [/ent] [ent] candidate [/ent] …`` and as much of the documents as fits. Further inputs of
the question hold the rest. A linear layer scores every ``[ent]``; a candidate's score is the mean over the inputs, and the loss is the
cross-entropy among the candidates. The model is a token classifier with a single label, so that it loads, converts and exports like others.
Its config makes question and candidates global.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.data.qa_markers import CANDIDATES, add_markers
from hf_longattn.errors import CheckpointError
from hf_longattn.evaluation import load_metric
from hf_longattn.loading import check_loadable, load_part
from hf_longattn.modeling.attach.token_globals import carry_question
from hf_longattn.training.loading import load_head
from hf_longattn.training.trainer import LongTrainer

PREDICTIONS = "predictions.json"


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


class CandidateTrainer(LongTrainer):
    """A Trainer with the cross-entropy over a question's candidates. Predictions are numbers of candidates."""

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The mean over the batch's questions."""
        model_inputs = {name: value for name, value in inputs.items() if name not in ("owners", "places", "labels")}
        scores = candidate_scores(model(**model_inputs).logits, inputs["owners"], inputs["places"])
        loss = F.cross_entropy(scores, inputs["labels"])
        return loss, {"loss": loss, "scores": scores}

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        loss, scores, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        return loss, None if scores is None else scores.argmax(-1), labels


def accuracy_by_length(chosen: Sequence[int], rows: Dataset) -> dict[str, Any]:
    """Accuracy in per cent with its standard error, n, and the same by length in tokens."""
    references = [{"label": label, "length": length} for label, length in zip(rows["labels"], rows["length"], strict=True)]
    scores = load_metric("long_classification").compute(predictions=chosen, references=references)
    for part in (scores, *scores["buckets"].values()):
        for name in ("macro_f1", "macro_f1_se"):  # the numbers of candidates have no meaning
            part.pop(name, None)
    return dict(scores)


def load_candidate_model(
    name: str, tokenizer: PreTrainedTokenizerBase | None = None, *, complete: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that scores candidates, and its tokenizer with the markers. Question and candidates are global tokens.

    Args:
        name: a folder or a Hub name.
        tokenizer: its tokenizer; ``None`` = it is loaded.
        complete: refuse a checkpoint without the head and the markers; otherwise they are new, and must be trained.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, has no fast tokenizer, or, if complete, lacks weights or markers.
    """
    if tokenizer is None:
        check_loadable(name)
        tokenizer = load_part(AutoTokenizer, name)
    if not tokenizer.is_fast:
        raise CheckpointError(f"The tokenizer of {name!r} cannot split a long text; add its fast tokenizer (tokenizer.json) to the model.")
    if complete and not set(CANDIDATES) <= set(tokenizer.get_vocab()):
        raise CheckpointError(f"The tokenizer of {name!r} lacks the markers of candidates; take a model that was trained on candidates.")
    head: dict[str, Any] = {"num_labels": 1, "id2label": {0: "candidate"}, "label2id": {"candidate": 0}}
    model = load_head(AutoModelForTokenClassification, name, tokenizer, complete=complete, **head)
    add_markers(model, tokenizer, CANDIDATES)
    carry_question(model, tokenizer)
    return model, tokenizer


def write_choices(folder: Path, examples: Dataset, numbers: Sequence[int]) -> None:
    """``predictions.json``, as QAngaroo's script reads it: the text of the chosen candidate by the question's id."""
    chosen = {name: candidates[number] for name, candidates, number in zip(examples["id"], examples["candidates"], numbers, strict=True)}
    (folder / PREDICTIONS).write_text(json.dumps(chosen, ensure_ascii=False, indent=1), encoding="utf-8")
