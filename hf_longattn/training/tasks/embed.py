"""Train embeddings of long documents, or a reranker, with sentence-transformers.

``--reranker`` trains a cross-encoder, ``--multi-vector`` a model with a vector for every token, as in ColBERT.

Without a score, a text learns to be closer to its own document than to the other documents of the batch (multiple
negatives ranking, Henderson et al. 2017). Cached gradients (Gao et al. 2021) allow large batches of long documents. If
the pairs have a ``score``, their similarity learns to follow the score (CoSENT).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from typing import Any

from datasets import Dataset, Features, Value
from transformers import TrainingArguments

from hf_longattn.data.rows import read_rows
from hf_longattn.data.sources import DataError
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.loading import load_sentence_model
from hf_longattn.modeling.attach.global_mask import carry_question
from hf_longattn.training.arguments import (
    DataArguments,
    LongTrainingArguments,
    ModelArguments,
    argument,
    batch_size_argument,
)
from hf_longattn.training.run import begin, finish
from hf_longattn.training.trainer import LongTrainer

EXTRAS = ("sentence",)
SCORES = {
    "accuracy_at_1": "accuracy@1",
    "mrr": "mrr@10",
    "ndcg": "ndcg@10",
    "spearman": "spearman_cosine",
    "pearson": "pearson_cosine",
}
"""Name of a score in a log -> end of its name in the results of sentence-transformers."""


@dataclass
class EmbedModelArguments(ModelArguments):
    """A model of embeddings, or a reranker, which scores a query and a document together."""

    reranker: bool = argument(
        False, "A cross-encoder that scores a query and a document together, in place of embeddings."
    )
    multi_vector: bool = argument(
        False,
        "A vector for every token, compared by MaxSim (late interaction, as in ColBERT), in place of one for a text.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reranker and self.multi_vector:
            raise OptionError("--reranker and --multi-vector are two kinds of models; leave one of them out.")


@dataclass
class EmbedDataArguments(DataArguments):
    """Pairs of texts that belong together. A pair may have a negative text, or a score of its similarity.

    ``max_length`` cuts only the training texts.
    """

    roles = {
        "anchor": ("anchor", "query", "question", "sentence1"),
        "positive": ("positive", "document", "answer", "sentence2"),
        "negative": ("negative",),
        "score": ("score",),
    }


@dataclass
class EmbedTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` with the defaults of this task, and the size of parts of a batch."""

    mini_batch_size: int = argument(
        2, "Texts embedded at once; the batch, and so the number of negatives, may be larger (GradCache)."
    )
    per_device_train_batch_size: int = batch_size_argument(32)
    per_device_eval_batch_size: int = argument(2, "Texts per forward pass and process in evaluation.")
    learning_rate: float = argument(2e-5, "Peak learning rate (SBERT, Reimers & Gurevych 2019: 2e-5).")


ARGUMENTS = (EmbedModelArguments, EmbedDataArguments, EmbedTrainingArguments)


def main(
    model_args: EmbedModelArguments, data_args: EmbedDataArguments, training_args: EmbedTrainingArguments
) -> dict[str, Any]:
    """Train a model of embeddings or a reranker, evaluate and save it. Returns the log."""
    begin(model_args, data_args, training_args)
    if model_args.lora_rank:
        if training_args.load_best_model_at_end:
            raise OptionError(
                "Sentence-transformers loads no checkpoints of LoRA updates; leave --load-best-model-at-end out."
            )
        training_args.save_strategy = "no"
    pairs, held_out = read_rows(data_args, training_args.seed)
    if "score" in pairs.column_names and (model_args.reranker or model_args.multi_vector):
        raise DataError(
            f"{', '.join(data_args.data)} has scores, but rerankers and token vectors learn only from pairs that "
            "belong together; leave out the scores and the pairs that do not belong together, or train embeddings."
        )
    make_trainer = reranking_trainer if model_args.reranker else embedding_trainer
    trainer = make_trainer(model_args, data_args, training_args, pairs, held_out)
    return finish(trainer, model_args, data_args, pairs=len(pairs), input_length=trainer.model.max_seq_length)


def embedding_trainer(
    model_args: EmbedModelArguments,
    data_args: EmbedDataArguments,
    args: EmbedTrainingArguments,
    pairs: Dataset,
    held_out: Dataset,
) -> LongTrainer:
    """A trainer of embeddings.

    Evaluations search the held-out documents with the anchors as queries. For pairs with scores, they correlate
    similarities with scores.
    """
    import sentence_transformers as st
    from sentence_transformers.sentence_transformer import evaluation, losses

    # Classes for one vector per text, or for a vector per token
    name = "SentenceTransformer"
    evaluator_class, loss_class = evaluation.InformationRetrievalEvaluator, losses.CachedMultipleNegativesRankingLoss
    if model_args.multi_vector:
        from sentence_transformers.multi_vector_encoder.evaluation import MultiVectorInformationRetrievalEvaluator
        from sentence_transformers.multi_vector_encoder.losses import CachedMultiVectorMultipleNegativesRankingLoss

        name = "MultiVectorEncoder"
        evaluator_class = MultiVectorInformationRetrievalEvaluator
        loss_class = CachedMultiVectorMultipleNegativesRankingLoss
    encoder, trainer, arguments_class = (getattr(st, name + part) for part in ("", "Trainer", "TrainingArguments"))
    model = load_sentence_model(encoder, model_args.model, complete=not args.do_train, device=str(args.device))

    # Loss and evaluation
    scored = "score" in pairs.column_names
    settings = {"batch_size": args.per_device_eval_batch_size, "write_csv": False}
    if scored:
        loss: Any = losses.CoSENTLoss(model)
        columns = (list(held_out[name]) for name in ("anchor", "positive", "score"))
        evaluator: Any = evaluation.EmbeddingSimilarityEvaluator(*columns, **settings)
    else:
        loss = loss_class(model, mini_batch_size=args.mini_batch_size)
        evaluator = evaluator_class(*retrieval(held_out, relevant_texts(pairs, held_out)), **settings)
    arguments = arguments_of(
        arguments_class,
        args,
        "spearman" if scored else "mrr",
        batch_sampler="no_duplicates",  # a duplicate in a batch would be its own negative
        prompts=prompts_of(model, scored),
    )
    arguments.max_length = training_length(model, data_args)  # sentence-transformers' collator truncates texts to it
    return type("EmbeddingTrainer", (LongTrainer, trainer), {})(
        model,
        arguments,
        loss=loss,
        train_dataset=pairs,
        eval_dataset=held_out,
        measure=partial(scores_of, evaluator, model),
    )


def reranking_trainer(
    model_args: EmbedModelArguments,
    data_args: EmbedDataArguments,
    args: EmbedTrainingArguments,
    pairs: Dataset,
    held_out: Dataset,
) -> LongTrainer:
    """A trainer of a cross-encoder, with a wrong pair for each right pair.

    Evaluations rank :data:`CANDIDATES` documents for each held-out query.
    """
    from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    class RerankingTrainer(LongTrainer, CrossEncoderTrainer):
        """sentence-transformers' trainer, in which ``--max-length`` cuts only training pairs."""

        def mean_loss(self, *args: Any) -> Any:
            """The mean loss of training pairs, cut to ``--max-length``.

            The loss function tokenises the pairs itself, so the maximum length of the model is changed meanwhile.
            """
            model_length = model.max_seq_length
            model.max_seq_length = length or model_length
            try:
                return super().mean_loss(*args)
            finally:
                model.max_seq_length = model_length

    head: dict[str, Any] = {"complete": True}
    if args.do_train:
        head = {"num_labels": 1, "config_kwargs": {"problem_type": None}}
    model = load_sentence_model(CrossEncoder, model_args.model, device=str(args.device), **head)
    if model.num_labels != 1:
        raise CheckpointError(
            f"{model_args.model!r} has {model.num_labels} outputs, but a reranker has 1; give a reranker as --model."
        )
    if args.do_train:
        carry_question(model.transformers_model, model.tokenizer)
    length = training_length(model, data_args)
    relevant = relevant_texts(pairs, held_out)
    samples = reranking(held_out, relevant, args.seed)
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False  # DDP would find no tensors in the outputs of a cross-encoder
    evaluator = CrossEncoderRerankingEvaluator(samples, batch_size=args.per_device_eval_batch_size, write_csv=False)
    return RerankingTrainer(
        model,
        arguments_of(CrossEncoderTrainingArguments, args, "mrr"),
        loss=BinaryCrossEntropyLoss(model),
        train_dataset=labelled_pairs(pairs, relevant, args.seed),
        eval_dataset=held_out,
        measure=partial(scores_of, evaluator, model),
    )


def scores_of(evaluator: Any, model: Any) -> dict[str, float]:
    """The scores of a sentence-transformers evaluator in per cent, by their names in a log, and the number of rows."""
    results = evaluator(model)
    scores: dict[str, float] = {}
    for name, end in SCORES.items():
        values = [value for key, value in results.items() if key.endswith(end)]
        if values:
            scores[name] = float(100 * values[0])
    rows_name = next(name for name in ("queries", "samples", "scores") if hasattr(evaluator, name))
    scores["n"] = len(getattr(evaluator, rows_name))
    return scores


def training_length(model: Any, data_args: EmbedDataArguments) -> int | None:
    """Maximum tokens of a training text (``--max-length``), or ``None`` for the maximum of the model.

    Evaluations and the saved model always read up to ``model.max_seq_length`` tokens.

    Raises:
        CheckpointError: the model does not read texts.
        OptionError: ``--max-length`` exceeds the maximum of the model.
    """
    body, length, longest = model.transformers_model, data_args.max_length, model.max_seq_length
    if body is not None and body.main_input_name != "input_ids":
        raise CheckpointError(
            f"The model ({body.config.model_type}) reads {body.main_input_name}, not texts; take a model of texts."
        )
    if length is not None and longest is not None and length > longest:
        raise OptionError(
            f"--max-length {length} exceeds the {longest} tokens that the model takes; convert it to that length "
            "first."
        )
    return length


def prompts_of(model: Any, scored: bool) -> dict[str, str] | None:
    """The prompt before the texts of each column of the training data; ``None`` if there are no prompts.

    They are the prompts of ``encode_query`` and ``encode_document``. For pairs with scores (``scored``), it is the
    prompt of ``encode``.
    """
    if scored:
        default_prompt = model.prompts.get(model.default_prompt_name) or ""
        prompts = dict.fromkeys(("anchor", "positive"), default_prompt)
    else:
        names = [name for name in ("document", "passage", "corpus") if name in model.prompts]
        document = model.prompts[names[0]] if names else ""
        prompts = {"anchor": model.prompts.get("query", ""), "positive": document, "negative": document}
    return {column: prompt for column, prompt in prompts.items() if prompt} or None


def arguments_of(arguments_class: type[Any], args: EmbedTrainingArguments, best: str, **more: Any) -> Any:
    """The arguments of a sentence-transformers trainer, with the values of ``args``.

    Args:
        arguments_class: the class of the arguments. Its instance also gets the attributes of ``args`` that
            ``TrainingArguments`` does not have.
        best: name of the score that selects the best model, unless ``metric_for_best_model`` is given.
        more: further arguments of the class.
    """
    values = {field.name: getattr(args, field.name) for field in fields(TrainingArguments) if field.init}
    if args.load_best_model_at_end and "metric_for_best_model" not in args.settings:
        values |= {"metric_for_best_model": best, "greater_is_better": True}
    arguments = arguments_class(**values, **more)
    for name, value in vars(args).items():
        if not hasattr(arguments, name):
            setattr(arguments, name, value)
    return arguments


LABELLED_PAIRS = Features({"anchor": Value("string"), "positive": Value("string"), "label": Value("float32")})
"""Columns of the training data of a reranker."""
CANDIDATES = 10
"""Number of documents that a reranker ranks for each query in evaluation."""
Relevant = Mapping[str, Sequence[str]]
"""Anchor -> all texts in the data that match it. They are never used as negatives of this anchor."""


def relevant_texts(*parts: Dataset) -> dict[str, list[str]]:
    """Anchor -> matching texts in all parts, without duplicates."""
    relevant: dict[str, dict[str, None]] = {}
    for part in parts:
        for row in part.select_columns(["anchor", "positive"]):
            relevant.setdefault(row["anchor"], {})[row["positive"]] = None
    return {anchor: list(texts) for anchor, texts in relevant.items()}


def retrieval(held_out: Dataset, relevant: Relevant) -> tuple[dict[str, str], dict[str, str], dict[str, set[str]]]:
    """The arguments of sentence-transformers' ``InformationRetrievalEvaluator``.

    Returns:
        Key of a query -> its text, key of a document -> its text, and key of a query -> keys of the documents to find.
        Every anchor is a query once. The documents are the positives and negatives of all anchors.
    """
    texts = [text for name in ("positive", "negative") if name in held_out.column_names for text in held_out[name]]
    document_keys = {text: f"d{number}" for number, text in enumerate(dict.fromkeys(texts))}
    queries = {f"q{number}": anchor for number, anchor in enumerate(dict.fromkeys(held_out["anchor"]))}
    to_find = {
        key: {document_keys[text] for text in relevant[anchor] if text in document_keys}
        for key, anchor in queries.items()
    }
    return queries, {key: text for text, key in document_keys.items()}, to_find


def labelled_pairs(data: Dataset, relevant: Relevant, seed: int) -> Dataset:
    """The training data of a reranker, with :data:`LABELLED_PAIRS` as columns.

    They have every pair with the label 1, and every anchor with a wrong text and the label 0. The wrong text is the
    row's negative, or else a text of another anchor, drawn by ``seed``.
    """
    anchors, right = data["anchor"][:], data["positive"][:]
    if "negative" in data.column_names:
        wrong = data["negative"][:]
    else:
        pool = list(dict.fromkeys(chain.from_iterable(relevant.values())))
        wrong = [
            _wrong_texts(anchor, pool, relevant, f"{seed}:{number}", 1)[0] for number, anchor in enumerate(anchors)
        ]
    columns = {"anchor": anchors * 2, "positive": right + wrong, "label": [1.0] * len(right) + [0.0] * len(wrong)}
    return Dataset.from_dict(columns, features=LABELLED_PAIRS)


def reranking(held_out: Dataset, relevant: Relevant, seed: int) -> list[dict[str, Any]]:
    """Samples for sentence-transformers' ``CrossEncoderRerankingEvaluator``.

    A sample has a held-out anchor as its query, the anchor's positives, and at least one negative. Texts of other
    anchors, drawn by ``seed``, are added as negatives until a sample has :data:`CANDIDATES` documents.
    """
    pool = list(dict.fromkeys(chain.from_iterable(relevant.values())))
    negatives: dict[str, list[str]] = {}
    if "negative" in held_out.column_names:
        for row in held_out:
            negatives.setdefault(row["anchor"], []).append(row["negative"])
    samples = []
    for anchor, positives in relevant_texts(held_out).items():
        wrong = [text for text in dict.fromkeys(negatives.get(anchor, [])) if text not in relevant[anchor]]
        missing = CANDIDATES - len(positives) - len(wrong)
        if not wrong or (missing > 0 and len(pool) > len(relevant[anchor])):
            drawn = _wrong_texts(anchor, pool, relevant, f"{seed}:{anchor}", max(1, missing))
            wrong = list(dict.fromkeys([*wrong, *drawn]))
        samples.append({"query": anchor, "positive": positives, "negative": wrong})
    return samples


def _wrong_texts(anchor: str, pool: Sequence[str], relevant: Relevant, seed: str, count: int) -> list[str]:
    """Up to ``count`` different texts of ``pool`` that do not belong to the anchor, drawn by ``seed``."""
    right = set(relevant[anchor])
    drawn = random.Random(seed).sample(pool, min(len(pool), count + len(right)))
    wrong_texts = [text for text in drawn if text not in right][:count]
    if not wrong_texts:
        advice = "give pairs with other texts, or a column 'negative'"
        raise DataError(f"All texts belong to {anchor!r:.80}, so a reranker has nothing to tell them from; {advice}.")
    return wrong_texts
