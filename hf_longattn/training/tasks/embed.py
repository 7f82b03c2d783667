"""Train embeddings of long documents, or a reranker.

sentence-transformers trains all of them; with ``--reranker`` a cross-encoder, with ``--multi-vector`` a vector for every token.
Pairs that belong together are contrasted with the other pairs of a batch (multiple negatives ranking, Henderson et al. 2017), with cached
gradients (Gao et al. 2021), so that the batch may be large where documents are long; pairs with a ``score`` are regressed (CoSENT).
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

from datasets import Dataset
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from hf_longattn.data.pairs import NAMES, labelled_pairs, read_pairs, relevant_texts, reranking, retrieval
from hf_longattn.data.sources import DataError, train_test_split
from hf_longattn.errors import CheckpointError, OptionError, flag, needs_extra
from hf_longattn.evaluation import load_metric
from hf_longattn.evaluation.summaries import means_in_percent
from hf_longattn.loading import load_sentence_model
from hf_longattn.modeling.attach.token_globals import carry_question
from hf_longattn.modeling.family.validation import UNLIMITED_LENGTH
from hf_longattn.names import LOGGER
from hf_longattn.training.args import LabelledDataArguments, ModelArguments, argument, batch_size_argument, check_least
from hf_longattn.training.old_trainer import MeasuringTrainer
from hf_longattn.training.results import PERCENT, Scores, held_out_in_words, score_in_words, sources_in_words, steps_of
from hf_longattn.training.task import Task
from hf_longattn.training.training_args import LongTrainingArguments
from hf_longattn.training.training_loop import prepare_run, save_run, train

logger = logging.get_logger(LOGGER)
NO_DUPLICATES = "no_duplicates"
"""sentence-transformers' sampler that puts no text twice into a batch, where it would be a negative."""
OF_TIMED_TRAINER = ("early_stopping_patience", "max_minutes", "save_minutes")
"""Arguments that :class:`LongTrainer` reads beside those of transformers."""


@dataclass
class EmbedModelArguments(ModelArguments):
    """A model of embeddings, or a reranker."""

    reranker: bool = argument(False, "A cross-encoder that scores a query and a document together, in place of embeddings.")
    multi_vector: bool = argument(
        False, "A vector for every token, compared by MaxSim (late interaction, as in ColBERT), in place of one for a text."
    )

    def check(self) -> None:
        super().check()
        if self.reranker and self.multi_vector:
            raise OptionError("--reranker and --multi-vector are two kinds of models; leave one of them out.")


@dataclass
class EmbedDataArguments(LabelledDataArguments):
    """Pairs of texts that belong together."""

    shape: ClassVar[str] = "a file of pairs"
    training_only: ClassVar[tuple[str, ...]] = ("max_length",)

    data: list[str] = argument(
        [], "Files, folders or names on the Hub, one or several: "
        "a .jsonl, .json, .csv, .tsv or .parquet file, a folder written by datasets, the name of a dataset on the "
        "Hub; with the columns anchor (or query, question, sentence1) and positive (or document, answer, sentence2), and maybe negative, "
        "or score (embeddings only)."
    )  # fmt: skip
    max_length: int | None = argument(None, "Tokens at which training texts are cut; scores and the saved model keep the model's maximum.")
    anchor_column: str = argument("", "The column that holds the query, if it has none of these names.")
    positive_column: str = argument("", "The column that holds the text that belongs to it, if it has none of these names.")
    negative_column: str = argument("", "The column that holds a text that does not belong to it, if it is not called negative.")
    score_column: str = argument("", "The column that holds the similarity of the pair, if it is not called score.")

    @property
    def named_columns(self) -> dict[str, str]:
        """The columns that were named, by what they hold."""
        return {role: getattr(self, f"{role}_column") for role in NAMES}


@dataclass
class EmbedTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` of embeddings and rerankers."""

    shards: ClassVar[bool] = False
    without_effect: ClassVar[tuple[str, ...]] = ("label_smoothing_factor", "neftune_noise_alpha")

    mini_batch_size: int = argument(2, "Texts embedded at once; the batch, and so the number of negatives, may be larger (GradCache).")
    per_device_train_batch_size: int = batch_size_argument(32, "Pairs in a batch; each is contrasted with the others.")
    per_device_eval_batch_size: int = argument(2, "Texts per forward pass and process in evaluation.")
    learning_rate: float = argument(2e-5, "Peak learning rate (SBERT, Reimers & Gurevych 2019: 2e-5).")

    def check(self) -> None:
        super().check()
        if self.tokens_per_batch:
            raise OptionError("--tokens-per-batch does not apply to embed, whose batches are of pairs; give --batch-size instead.")
        check_least(self, mini_batch_size=1)


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
    run = prepare_run(model_args, data_args, training_args)
    if model_args.use_peft:
        check_without_checkpoints(training_args)
        training_args.save_strategy = SaveStrategy.NO
    read = partial(read_pairs, named=data_args.named_columns)
    data, held = train_test_split(data_args, read, training_args.seed, least=3)
    kind = next((name for name in ("reranker", "multi_vector") if getattr(model_args, name)), None)
    if kind and "score" in data.column_names:
        raise DataError(
            f"{flag(kind)} learns from pairs that belong together, not from a score, which {', '.join(data_args.data)} has; leave it "
            f"out and keep the pairs that belong together, or train embeddings, without {flag(kind)}."
        )
    trainer = (reranking_trainer if model_args.reranker else embedding_trainer)(model_args, data_args, training_args, data, held)
    before = train(trainer, run, trainer.measure)
    log = {"pairs": len(data), "read_length": read_length(trainer.model), "held_out": {"before": before, "after": trainer.measure()}}
    return save_run(trainer, run, log, describe_embeddings)


def check_without_checkpoints(args: EmbedTrainingArguments) -> None:
    """Refuse options that need checkpoints with LoRA updates, which sentence-transformers' trainers do not load.

    Raises:
        OptionError: such an option is set.
    """
    names = ("resume", "resume_from_checkpoint", "load_best_model_at_end", "save_steps", "save_minutes", "save_strategy")
    values = {name: args.explicit[name] for name in names if name in args.explicit}
    contradicting = next((name for name, value in values.items() if (name, value) != ("save_strategy", "no")), None)
    if contradicting is not None:
        raise OptionError(
            "Sentence-transformers' trainers do not load checkpoints with LoRA updates, so that none are written; leave --use-peft or "
            f"{flag(contradicting)} out."
        )
    logger.warning("No checkpoints are written, since sentence-transformers' trainers do not load those with LoRA updates.")


class Kind(NamedTuple):
    """The classes of sentence-transformers for one kind of embeddings."""

    model: Any
    trainer: Any
    arguments: Any
    evaluator: Any
    loss: Any

    @classmethod
    def of(cls, multi_vector: bool) -> Kind:
        """The classes for a vector per token, or for a vector per text."""
        if multi_vector:
            from sentence_transformers import MultiVectorEncoder as Encoder
            from sentence_transformers import MultiVectorEncoderTrainer as Trainer
            from sentence_transformers import MultiVectorEncoderTrainingArguments as Arguments
            from sentence_transformers.multi_vector_encoder.evaluation import MultiVectorInformationRetrievalEvaluator as Evaluator
            from sentence_transformers.multi_vector_encoder.losses import CachedMultiVectorMultipleNegativesRankingLoss as Loss

            return cls(Encoder, Trainer, Arguments, Evaluator, Loss)
        from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

        retrieval, loss = InformationRetrievalEvaluator, CachedMultipleNegativesRankingLoss
        return cls(SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments, retrieval, loss)


def embedding_trainer(
    model_args: EmbedModelArguments, data_args: EmbedDataArguments, args: EmbedTrainingArguments, data: Dataset, held: Dataset
) -> MeasuringTrainer:
    """A trainer of embeddings. It measures the retrieval of held-out documents by their anchors, or similarities against scores."""
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    kind = Kind.of(model_args.multi_vector)
    EmbeddingTrainer: Any = type("EmbeddingTrainer", (MeasuringTrainer, kind.trainer), {})

    class Retrieval(kind.evaluator):  # type: ignore[name-defined]
        """Ranks the documents for each query."""

        def compute_metrics(self, queries_result_list: list[Any]) -> Any:
            self.ranking = load_metric("ranking").compute(
                predictions=[[hit["score"] for hit in hits] for hits in queries_result_list],
                references=[
                    [int(hit["corpus_id"] in self.relevant_docs[key]) for hit in hits]
                    for key, hits in zip(self.queries_ids, queries_result_list, strict=True)
                ],
            )
            return super().compute_metrics(queries_result_list)

    model = load_sentence_model(kind.model, model_args.model, complete=args.only_scores, device=str(args.device))
    body = model.transformers_model
    if body is not None and body.main_input_name != "input_ids":
        raise CheckpointError(
            f"{model_args.model!r} ({body.config.model_type}) reads {body.main_input_name}, and embeddings are trained on texts; take a "
            "model of texts."
        )
    scored, size, cut = ("score" in data.column_names), args.per_device_eval_batch_size, training_length(model, data_args)

    def measure(pairs: Dataset = held) -> dict[str, float]:
        if not scored:
            evaluator: Any = Retrieval(*retrieval(pairs, relevant_texts(data, held, pairs)), batch_size=size, write_csv=False, name="held")
            evaluator(model)
            return {name: value for name, value in evaluator.ranking.items() if not name.startswith("ndcg")}
        quiet = {"batch_size": size, "show_progress_bar": False, "convert_to_tensor": True}
        anchors, positives = (model.encode(list(pairs[column]), **quiet) for column in ("anchor", "positive"))
        similarities = model.similarity_pairwise(anchors, positives).tolist()
        return dict(load_metric("correlation").compute(predictions=similarities, references=list(pairs["score"])))

    more = {"batch_sampler": NO_DUPLICATES, "prompts": prompts_of(model, scored)}
    arguments = trainer_arguments(kind.arguments, args, "spearman" if scored else "mrr", **more)
    arguments.max_length = cut  # sentence-transformers' trainer cuts inputs there
    loss = CoSENTLoss(model) if scored else kind.loss(model, mini_batch_size=args.mini_batch_size)
    trainer: MeasuringTrainer = EmbeddingTrainer(model, arguments, train_dataset=data, loss=loss, evaluator=[measure], measure=measure)
    return trainer


def read_length(model: Any) -> int | None:
    """Tokens of the longest text that a model of sentence-transformers reads; ``None`` without a limit."""
    length: int | None = model.max_seq_length
    return length if length is not None and length < UNLIMITED_LENGTH else None


def training_length(model: Any, data_args: EmbedDataArguments) -> int | None:
    """Tokens at which training inputs are cut; evaluations and the saved model read ``model.max_seq_length``.

    Raises:
        OptionError: ``max_length`` is more than that.
    """
    length, longest = data_args.max_length, read_length(model)
    if length is not None and longest is not None and length > longest:
        raise OptionError(
            f"--max-length {length} exceeds the {longest} tokens that the model reads (max_seq_length); give at most {longest}, or convert "
            "the model to that length first."
        )
    return length


def prompts_of(model: Any, scored: bool) -> dict[str, str] | None:
    """The prompt of each column of the training data; ``None`` without any. In inference, ``encode_query`` and ``encode_document`` use
    them, or ``encode`` for pairs with scores."""
    if scored:
        default_prompt = model.prompts.get(model.default_prompt_name) or ""
        prompts = dict.fromkeys(("anchor", "positive"), default_prompt)
    else:
        document = next((model.prompts[name] for name in ("document", "passage", "corpus") if name in model.prompts), "")
        prompts = {"anchor": model.prompts.get("query", ""), "positive": document, "negative": document}
    return {column: prompt for column, prompt in prompts.items() if prompt} or None


def reranking_trainer(
    model_args: EmbedModelArguments, data_args: EmbedDataArguments, args: EmbedTrainingArguments, data: Dataset, held: Dataset
) -> MeasuringTrainer:
    """A trainer of a cross-encoder on pairs and as many wrong ones that measures it among candidates."""
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    class RerankingTrainer(MeasuringTrainer, CrossEncoderTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            """The loss, which tokenises the pairs itself. Only training pairs are cut at the training length."""
            read = model.max_seq_length
            model.max_seq_length = cut or read
            try:
                return super().compute_loss(*args, **kwargs)
            finally:
                model.max_seq_length = read

    class Reranking(CrossEncoderRerankingEvaluator):
        """Keeps the scores of each query."""

        rows: list[tuple[float, float]] = []

        def compute_metrics(self, is_relevant: Any, pred_score: Any) -> Any:
            mrr, ndcg, precision = super().compute_metrics(is_relevant, pred_score)
            self.rows.append((mrr, ndcg))
            return mrr, ndcg, precision

    new_head = {"num_labels": 1, "config_kwargs": {"problem_type": None}}
    size: dict[str, Any] = {"complete": True} if args.only_scores else new_head
    model = load_sentence_model(CrossEncoder, model_args.model, device=str(args.device), **size)
    if model.num_labels != 1:
        raise CheckpointError(f"{model_args.model!r} has {model.num_labels} outputs, and a reranker has 1; take a reranker.")
    if not args.only_scores:
        carry_question(model.transformers_model, model.tokenizer)
    cut = training_length(model, data_args)
    relevant = relevant_texts(data, held)
    samples = reranking(held, relevant, args.seed)

    def measure(pairs: Dataset | None = None) -> dict[str, float]:
        candidates = samples if pairs is None else reranking(pairs, relevant_texts(data, held, pairs), args.seed)
        evaluator = Reranking(candidates, batch_size=args.per_device_eval_batch_size, write_csv=False, name="held")
        evaluator.rows = []
        evaluator(model)
        return means_in_percent(("mrr", "ndcg"), evaluator.rows)

    return RerankingTrainer(
        model,
        trainer_arguments(CrossEncoderTrainingArguments, args, "mrr"),
        train_dataset=labelled_pairs(data, relevant, args.seed),
        loss=BinaryCrossEntropyLoss(model),
        evaluator=[measure],
        measure=measure,
    )


def trainer_arguments(kind: type[Any], args: EmbedTrainingArguments, best: str, **more: Any) -> Any:
    """The arguments of a sentence-transformers trainer: transformers' as fields, :class:`LongTrainer`'s as attributes.

    Args:
        kind: their class.
        best: the score by which the best model is chosen, unless ``metric_for_best_model`` says so.
        **more: arguments of this class only.
    """
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(TrainingArguments) if field.init}
    if args.load_best_model_at_end and "metric_for_best_model" not in args.explicit:
        values |= {"metric_for_best_model": best, "greater_is_better": True}
    arguments = kind(**{**values, "remove_unused_columns": False, **more})
    for name in OF_TIMED_TRAINER:
        setattr(arguments, name, getattr(args, name))
    return arguments


def describe_embeddings(log: dict[str, Any]) -> str:
    """The text of the model card about a run."""
    pairs, sources, cut = f"{log['pairs']:,} pairs", sources_in_words(log["settings"]), log["settings"].get("max_length")
    cut_at = f", cut at {cut:,} tokens" if cut else ""
    return f"{steps_of(log)} with `longattn train embed` on {pairs} of {sources}{cut_at}. {embeddings_result(log)}."


def embeddings_result(log: dict[str, Any]) -> str:
    """The result of a run for the terminal."""
    rows = "pair" if {"spearman", "pearson"} & set(log["held_out"]["after"]) else "query"
    read = log["read_length"]
    lengths = f", texts of up to {read:,} tokens" if read else ""
    return f"{held_out_in_words(log, _in_words, rows)}{lengths}"


def _in_words(scores: Scores) -> str:
    return ", ".join(score_in_words(scores, name) for name in PERCENT if name in scores)


TASK = Task(
    arguments=EMBED,
    train=finetune_embeddings,
    result=embeddings_result,
    evaluation="Score the embeddings of documents, or a reranker.",
    extras=("sentence",),
)
