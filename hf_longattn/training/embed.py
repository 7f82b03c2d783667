"""Train embeddings of long documents, or a reranker, with sentence-transformers' own trainers.

Pairs that belong together are told from the other pairs of a batch (multiple negatives ranking, Henderson et al. 2017), with cached
gradients (Gao et al. 2021), so that the batch may be large where documents are long; pairs with a ``score`` are regressed (CoSENT).
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from datasets import Dataset
from transformers import TrainingArguments

from hf_longattn.data.pairs import labelled_pairs, read_pairs, relevant_texts, reranking, retrieval
from hf_longattn.data.sources import DataError, held_back
from hf_longattn.errors import OptionError, needs_extra
from hf_longattn.training.args import LabelledDataArguments, LongTrainingArguments, ModelArguments, argument
from hf_longattn.training.loading import loading
from hf_longattn.training.results import PERCENT, steps_of
from hf_longattn.training.trainer import TimedTrainer
from hf_longattn.training.training_loop import begin, finish, train

FLOAT32 = {"dtype": torch.float32}
"""Of the weights while they are trained; sentence-transformers takes the file's type, in which small steps are lost."""


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
    trainer, measure = (reranking_trainer if model_args.reranker else embedding_trainer)(model_args, data_args, training_args, data, held)
    before = train(trainer, run, measure)
    log = {"pairs": len(data), "held_out": {"before": before, "after": measure()}}
    return finish(trainer, run, log, describe_embeddings)


def embedding_trainer(
    model_args: EmbedModelArguments, data_args: EmbedDataArguments, args: EmbedTrainingArguments, data: Dataset, held: Dataset
) -> tuple[TimedTrainer, Any]:
    """A trainer of embeddings, and what measures them: held-out documents found by their anchors, or similarities against scores."""
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator, InformationRetrievalEvaluator
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, CoSENTLoss

    class EmbeddingTrainer(TimedTrainer, SentenceTransformerTrainer):
        pass

    with loading(model_args.model):
        model = SentenceTransformer(model_args.model, device=str(args.device), model_kwargs=FLOAT32)
    if data_args.max_length is not None:
        model.max_seq_length = data_args.max_length
    scored = "score" in data.column_names
    loss = CoSENTLoss(model) if scored else CachedMultipleNegativesRankingLoss(model, mini_batch_size=args.mini_batch_size)
    size, name = args.per_device_eval_batch_size, model.similarity_fn_name
    if scored:
        texts = list(held["anchor"]), list(held["positive"])
        evaluator: Any = EmbeddingSimilarityEvaluator(*texts, list(held["score"]), batch_size=size, write_csv=False, name="held")
        measured, n = {"spearman": f"held_spearman_{name}", "pearson": f"held_pearson_{name}"}, len(held)
    else:
        evaluator = InformationRetrievalEvaluator(*retrieval(held), batch_size=size, write_csv=False, name="held")
        measured, n = {"accuracy_at_1": f"held_{name}_accuracy@1", "mrr": f"held_{name}_mrr@10"}, len(evaluator.queries)

    def measure() -> dict[str, float]:
        scores = evaluator(model)
        values = {metric: 100 * float(scores[key]) for metric, key in measured.items()}
        return {**{metric: value for metric, value in values.items() if math.isfinite(value)}, "n": n}  # equal scores have no correlation

    given = {**_usual(args), "batch_sampler": args.batch_sampler, "prompts": prompts_of(model, scored)}
    trainer = EmbeddingTrainer(
        model, SentenceTransformerTrainingArguments(**given), train_dataset=data, loss=loss, max_minutes=args.max_minutes
    )
    return trainer, measure


def prompts_of(model: Any, scored: bool) -> dict[str, str] | None:
    """The prompt of each column of the training data: what ``encode_query`` and ``encode_document`` put before a text in inference, and
    for pairs with scores what ``encode`` does; ``None`` without any."""
    if scored:
        usual = model.prompts.get(model.default_prompt_name) or ""
        prompts = dict.fromkeys(("anchor", "positive"), usual)
    else:
        document = next((model.prompts[name] for name in ("document", "passage", "corpus") if name in model.prompts), "")
        prompts = {"anchor": model.prompts.get("query", ""), "positive": document, "negative": document}
    return {column: prompt for column, prompt in prompts.items() if prompt} or None


def reranking_trainer(
    model_args: EmbedModelArguments, data_args: EmbedDataArguments, args: EmbedTrainingArguments, data: Dataset, held: Dataset
) -> tuple[TimedTrainer, Any]:
    """A trainer of a cross-encoder on pairs and as many wrong ones, and what measures it among candidates."""
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    class RerankingTrainer(TimedTrainer, CrossEncoderTrainer):
        pass

    with loading(model_args.model):
        model = CrossEncoder(model_args.model, num_labels=1, max_length=data_args.max_length, device=str(args.device), model_kwargs=FLOAT32)
    relevant = relevant_texts(data, held)
    samples = reranking(held, relevant, args.seed)
    evaluator = CrossEncoderRerankingEvaluator(samples, batch_size=args.per_device_eval_batch_size, write_csv=False, name="held")

    def measure() -> dict[str, float]:
        scores = evaluator(model)
        return {"mrr": 100 * float(scores["held_mrr@10"]), "ndcg": 100 * float(scores["held_ndcg@10"]), "n": len(samples)}

    trainer = RerankingTrainer(
        model,
        CrossEncoderTrainingArguments(**_usual(args)),
        train_dataset=labelled_pairs(data, relevant, args.seed),
        loss=BinaryCrossEntropyLoss(model),
        max_minutes=args.max_minutes,
    )
    return trainer, measure


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
    lines = [
        ", ".join(f"{PERCENT[name]} {scores[name]:.1f} %" for name in PERCENT if name in scores) + f" {when}"
        for when, scores in log["held_out"].items()
    ]
    return f"held out ({log['held_out']['after']['n']:,}): {'; '.join(lines)}"
