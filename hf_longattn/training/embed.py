"""Train embeddings of long documents, or a reranker, with sentence-transformers' own trainers.

Pairs that belong together are told from the other pairs of a batch (multiple negatives ranking, Henderson et al. 2017), with cached
gradients (Gao et al. 2021), so that the batch may be large where documents are long; pairs with a ``score`` are regressed (CoSENT).
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from datasets import Dataset, Value
from transformers import TrainingArguments

from hf_longattn.data.sources import DataError, held_back, read_source
from hf_longattn.errors import OptionError, needs_extra
from hf_longattn.training.args import LabelledDataArguments, LongTrainingArguments, ModelArguments, argument
from hf_longattn.training.loading import loading
from hf_longattn.training.results import steps_of
from hf_longattn.training.trainer import TimedTrainer
from hf_longattn.training.training_loop import begin, finish, train

ANCHORS, POSITIVES, NEGATIVES = ("anchor", "query", "question", "sentence1"), ("positive", "document", "answer", "sentence2"), ("negative",)
FLOAT32 = {"dtype": torch.float32}
"""Of the weights while they are trained; sentence-transformers takes the file's type, in which small steps are lost."""
CANDIDATES = 10
"""Documents among which a reranker must find the right one in evaluation."""


@dataclass
class EmbedModelArguments(ModelArguments):
    """A model of embeddings, or a reranker."""

    reranker: bool = argument(False, "Train a cross-encoder that scores a query and a document together, in place of embeddings.")


@dataclass
class EmbedDataArguments(LabelledDataArguments):
    """Pairs of texts that belong together."""

    hub_task: ClassVar[str] = "sentence-similarity"
    shape: ClassVar[str] = "a file of pairs"

    data: list[str] = argument(
        [], "One or several of: a .jsonl, .json, .csv, .tsv or .parquet file, a folder written by datasets, the name of a dataset on the "
        "Hub; with the columns anchor (or query, question, sentence1) and positive (or document, answer, sentence2), and maybe negative, "
        "or score (embeddings only)."
    )  # fmt: skip


@dataclass
class EmbedTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` of embeddings and rerankers."""

    mini_batch_size: int = argument(2, "Texts embedded at once; the batch, and so the number of negatives, may be larger (GradCache).")
    per_device_train_batch_size: int = argument(32, "Pairs of which each is told from the others.", ["--batch_size", "--batch-size"])
    per_device_eval_batch_size: int = argument(2, "Texts per forward pass and process in evaluation.")
    learning_rate: float = argument(2e-5, "Highest learning rate (SBERT, Reimers & Gurevych 2019: 2e-5).")
    batch_sampler: str = argument(
        "no_duplicates", "batch_sampler, or no_duplicates: no text twice in a batch, where it would be a negative."
    )

    def check(self) -> None:
        super().check()
        if self.mini_batch_size < 1:
            raise OptionError(f"mini_batch_size must be at least 1, not {self.mini_batch_size}")


EMBED = (EmbedModelArguments, EmbedDataArguments, EmbedTrainingArguments)


def finetune_embeddings(
    model_args: EmbedModelArguments, data_args: EmbedDataArguments, training_args: EmbedTrainingArguments
) -> dict[str, Any]:
    """Train, and write a sentence-transformers folder to ``training_args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, retrieval scores before and after, Trainer's history.

    Raises:
        LongAttentionError: sentence-transformers is not installed, or pairs for a reranker have scores.
    """
    with needs_extra("sentence"):
        import sentence_transformers  # noqa: F401
    run = begin(model_args, data_args, training_args)
    data, held = held_back(data_args, read_pairs, training_args.seed, least=3)
    if model_args.reranker and "score" in data.column_names:
        raise DataError(
            f"a reranker learns from pairs that belong together, not from a score, which {', '.join(data_args.data)} has; leave the column "
            "out and keep the pairs that belong together, or train embeddings, without --reranker"
        )
    trainer, measure = (_reranker if model_args.reranker else _embedder)(model_args, data_args, training_args, data, held)
    before = train(trainer, run, measure)
    log = {"pairs": len(data), "held_out": {"before": before, "after": measure()}}
    return finish(trainer, run, log, describe_embeddings)


def read_pairs(source: str, split: str) -> Dataset:
    """Pairs of texts in the columns anchor and positive, and negative or score if the source has them.

    Raises:
        DataError: a missing column, empty texts, or scores that are no numbers.
    """
    data = read_source(source, split)
    names = {"anchor": ANCHORS, "positive": POSITIVES, "negative": NEGATIVES, "score": ("score",)}
    found = {role: next((name for name in some if name in data.column_names), None) for role, some in names.items()}
    for role in ("anchor", "positive"):
        if found[role] is None:
            raise DataError(
                f"{source} has no column for the {role} ({', '.join(names[role])}); its columns are {', '.join(data.column_names)}"
            )
    data = data.select_columns([name for name in found.values() if name is not None])
    data = data.rename_columns({name: role for role, name in found.items() if name is not None and name != role})
    for role in data.column_names:
        kind = float | int if role == "score" else str
        wrong = next((place for place, value in enumerate(data[role], start=1) if not isinstance(value, kind) or value == ""), None)
        if wrong is not None:
            what = "a number" if role == "score" else "a text"
            raise DataError(f"row {wrong} of {source}: {found[role]!r} must be {what}, not {data[role][wrong - 1]!r}")
    if not len(data):
        raise DataError(f"there are no pairs in {source}")
    return data.cast_column("score", Value("float32")) if "score" in data.column_names else data


def _embedder(
    model_args: EmbedModelArguments, data_args: EmbedDataArguments, args: EmbedTrainingArguments, data: Dataset, held: Dataset
) -> tuple[TimedTrainer, Any]:
    """A trainer of embeddings, and what measures retrieval of the held-out documents by their anchors."""
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, CoSENTLoss

    class EmbeddingTrainer(TimedTrainer, SentenceTransformerTrainer):
        pass

    with loading(model_args.model):
        model = SentenceTransformer(model_args.model, device=str(args.device), model_kwargs=FLOAT32)
    if data_args.max_length is not None:
        model.max_seq_length = data_args.max_length
    loss = (
        CoSENTLoss(model)
        if "score" in data.column_names
        else CachedMultipleNegativesRankingLoss(model, mini_batch_size=args.mini_batch_size)
    )
    texts = {f"d{number}": text for number, text in enumerate(dict.fromkeys(held["positive"]))}
    keys = {text: key for key, text in texts.items()}
    asked = {f"q{number}": text for number, text in enumerate(held["anchor"])}
    right = {f"q{number}": {keys[text]} for number, text in enumerate(held["positive"])}
    evaluator = InformationRetrievalEvaluator(asked, texts, right, batch_size=args.per_device_eval_batch_size, write_csv=False, name="held")

    def measure() -> dict[str, float]:
        found = evaluator(model)
        return {"accuracy_at_1": 100 * found["held_cosine_accuracy@1"], "mrr": 100 * found["held_cosine_mrr@10"]}

    given = {**_usual(args), "batch_sampler": args.batch_sampler}
    trainer = EmbeddingTrainer(
        model, SentenceTransformerTrainingArguments(**given), train_dataset=data, loss=loss, max_minutes=args.max_minutes
    )
    return trainer, measure


def _reranker(
    model_args: EmbedModelArguments, data_args: EmbedDataArguments, args: EmbedTrainingArguments, data: Dataset, held: Dataset
) -> tuple[TimedTrainer, Any]:
    """A trainer of a cross-encoder on pairs and as many wrong ones, and what measures it among candidates."""
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    class RerankingTrainer(TimedTrainer, CrossEncoderTrainer):
        pass

    with loading(model_args.model):
        model = CrossEncoder(model_args.model, num_labels=1, max_length=data_args.max_length, device=str(args.device), model_kwargs=FLOAT32)
    choose = random.Random(args.seed)
    wrong = data["negative"] if "negative" in data.column_names else [_other(data["positive"], text, choose) for text in data["positive"]]
    rows = {"anchor": [*data["anchor"]] * 2, "positive": [*data["positive"], *wrong], "label": [1.0] * len(data) + [0.0] * len(data)}
    candidates = [[text, *{_other(held["positive"], text, choose) for _ in range(CANDIDATES - 1)}] for text in held["positive"]]

    def measure() -> dict[str, float]:
        ranks = []
        for anchor, texts in zip(held["anchor"], candidates, strict=True):
            scores = model.predict([(anchor, text) for text in texts], batch_size=args.per_device_eval_batch_size, show_progress_bar=False)
            ranks.append(1 + int((scores[1:] >= scores[0]).sum()))
        return {
            "accuracy_at_1": 100 * sum(rank == 1 for rank in ranks) / len(ranks),
            "mrr": 100 * sum(1 / rank for rank in ranks) / len(ranks),
        }

    trainer = RerankingTrainer(
        model,
        CrossEncoderTrainingArguments(**_usual(args)),
        train_dataset=Dataset.from_dict(rows),
        loss=BinaryCrossEntropyLoss(model),
        max_minutes=args.max_minutes,
    )
    return trainer, measure


def _other(texts: Sequence[str], text: str, choose: random.Random) -> str:
    """A text that is not this one, if there is any."""
    others = [one for one in choose.choices(texts, k=8) if one != text]
    return others[0] if others else text


def _usual(args: EmbedTrainingArguments) -> dict[str, Any]:
    """The arguments that every trainer of transformers has."""
    values = {each.name: getattr(args, each.name) for each in dataclasses.fields(TrainingArguments) if each.init}
    return {**values, "remove_unused_columns": False}


def describe_embeddings(log: dict[str, Any]) -> str:
    """What a model card says about a run."""
    pairs, sources = f"{log['pairs']:,} pairs", ", ".join(log["settings"]["data"])
    return f"{steps_of(log)} with `longattn train embed` on {pairs} of {sources}. {embeddings_result(log)}."


def embeddings_result(log: dict[str, Any]) -> str:
    """What is printed at the end of a run."""
    told = [
        f"right document first {scores['accuracy_at_1']:.1f} %, MRR {scores['mrr']:.1f} % {when}"
        for when, scores in log["held_out"].items()
    ]
    return f"held out: {'; '.join(told)}"
