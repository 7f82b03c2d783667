"""Fine-tune to tag the words of long documents.

Named entities, for example. Documents longer than the model are read in overlapping windows; each word is tagged in the window in which it
has most context.
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from transformers import AutoModelForTokenClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

from hf_longattn.data.batching import DataCollatorWithPacking, TokenCollator, chosen_packing
from hf_longattn.data.lengths import input_length
from hf_longattn.data.sources import DataError, each_part, train_test_split
from hf_longattn.data.tokenization import IGNORED, for_words
from hf_longattn.data.words import IOB_TAG, read_words, tag_names, to_windows
from hf_longattn.errors import CheckpointError, OptionError, check_extra, listed
from hf_longattn.evaluation import load_metric
from hf_longattn.evaluation.metrics.entities import is_iob1
from hf_longattn.training.args import LabelledDataArguments, ModelArguments, argument, batch_size_argument
from hf_longattn.training.loading import load_classifier, load_start
from hf_longattn.training.old_trainer import LongTrainer
from hf_longattn.training.results import held_out_in_words, score_in_words, sources_in_words, steps_of
from hf_longattn.training.task import Task
from hf_longattn.training.training_args import LongTrainingArguments
from hf_longattn.training.training_loop import prepare_run, save_run, train


@dataclass
class TokenDataArguments(LabelledDataArguments):
    """Tagged documents, and their encoding."""

    shape: ClassVar[str] = "a tagged file"
    training_only: ClassVar[tuple[str, ...]] = ("packing",)

    data: list[str] = argument(
        [], "Files, folders or names on the Hub, one or several: "
        "a .conll file (a word and its tag in a line; -DOCSTART- lines, or else blank ones, separate documents), a "
        ".jsonl, .json or .parquet file, a folder written by datasets, the name of a dataset on the Hub."
    )  # fmt: skip
    words_column: str | None = argument(None, "The column that holds a document's words; default: tokens, or words where that is missing.")
    tags_column: str = argument("ner_tags", "The column that holds their tags: names (B-PER, I-PER, O) or numbers of classes.")
    max_length: int | None = argument(None, "Tokens of the longest input; default: the model's maximum.")
    stride: int = argument(128, "Tokens shared by consecutive windows of a document that is longer than --max-length.")
    packing: bool | None = argument(None, "Pack the documents of a batch into one row without padding; default: yes where the model can.")

    def check(self) -> None:
        super().check()
        if self.words_column == self.tags_column:
            raise OptionError(f"--words-column and --tags-column are both {self.words_column!r}; name two columns.")
        check_extra("metrics", "seqeval")


@dataclass
class TokenTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` of token classification."""

    per_device_train_batch_size: int = batch_size_argument(2)
    per_device_eval_batch_size: int = argument(2, "Inputs per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(8, "Forward passes per optimiser step; 16 inputs a step as in BERT, appendix A.3.")
    learning_rate: float = argument(5e-5, "Peak learning rate (BERT, appendix A.3: 2e-5 to 5e-5).")


TOKENS = (ModelArguments, TokenDataArguments, TokenTrainingArguments)


def finetune_tokens(model_args: ModelArguments, data_args: TokenDataArguments, training_args: TokenTrainingArguments) -> dict[str, Any]:
    """Train, and write the model to ``training_args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, tags, scores before and after, Trainer's history.
    """
    run = prepare_run(model_args, data_args, training_args)
    _, tokenizer = load_start(model_args.model, "token classification", MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES)
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"The tokenizer of {model_args.model!r} does not tell words apart; token classification needs a fast tokenizer."
        )
    tokenizer = for_words(tokenizer, model_args.model)
    tokenizer.padding_side = tokenizer.truncation_side = "right"  # tokens and windows keep the order of the words
    texts, held_texts = read_tagged(data_args, training_args.seed)
    tags, complete = tag_names(texts, held_texts), training_args.only_scores
    model, names = load_classifier(AutoModelForTokenClassification, model_args.model, tokenizer, tags, complete=complete)
    length = input_length(model, tokenizer, data_args.max_length)
    encode = partial(to_windows, tokenizer=tokenizer, length=length, stride=data_args.stride, names=names)
    rows, held_out = each_part(encode, texts, held_texts)
    pack = chosen_packing(model, data_args.packing, training_args)
    apart = ["word_ids", "document"]
    trainer = LongTrainer(
        model,
        training_args,
        train_dataset=rows.remove_columns(apart),
        eval_dataset=held_out.remove_columns(apart),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPacking() if pack else TokenCollator(tokenizer),
        eval_collator=TokenCollator(tokenizer),
    )

    def measure() -> dict[str, Any]:
        logits = trainer.predict(held_out.remove_columns(apart)).predictions
        return tag_scores(logits, held_out, held_texts, names) if trainer.is_world_process_zero() else {}

    before, after = train(trainer, run, measure), measure()
    log = {"input_length": length, "tags": names, "packed": pack, "documents": len(texts), "held_out": {"before": before, "after": after}}
    return save_run(trainer, run, log, describe_tokens)


def read_tagged(args: TokenDataArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Training and evaluation documents with the columns ``words`` and ``tags`` (names).

    Raises:
        DataError: a missing column, words without tags, a single tag, or a kind of entity in ``--validation`` only.
    """
    data, held_out = train_test_split(args, lambda source, split: read_words(source, split, args.words_column, args.tags_column), seed)
    known = tag_names(data)
    if len(known) < 2 and not args.only_scores:
        raise DataError(f"All words of {', '.join(args.data)} have the tag {known[0]!r}; there is nothing to learn.")
    if args.validation and not args.only_scores and args.max_train_samples is None:
        kinds = {"O", *known, *(tag[2:] for tag in known if IOB_TAG.fullmatch(tag))}
        if new := [tag for tag in tag_names(held_out) if (tag[2:] if tag != "O" and IOB_TAG.fullmatch(tag) else tag) not in kinds]:
            raise DataError(
                f"{args.validation} has the tags {listed(new)}, but {', '.join(args.data)} only {listed(known)}; write the same tags in "
                "both, or leave such documents out."
            )
    return data, held_out


def tag_scores(window_logits: Iterable[Any], rows: Dataset, texts: Dataset, names: list[str]) -> dict[str, float]:
    """Entity scores of whole documents from the logits of each window. A word takes its tag from the window in which it is farthest from an
    edge."""
    best: list[dict[int, tuple[int, str]]] = [defaultdict(lambda: (-1, "O")) for _ in range(len(texts))]
    for logits, words, labels, document in zip(window_logits, rows["word_ids"], rows["labels"], rows["document"], strict=True):
        choices = np.asarray(logits).argmax(-1)
        for at, (word, label) in enumerate(zip(words, labels, strict=True)):
            context = min(at, len(words) - 1 - at)
            if label != IGNORED and context > best[document][word][0]:
                best[document][word] = (context, names[int(choices[at])])
    predicted = [[best[number][word][1] for word in range(len(tags))] for number, tags in enumerate(texts["tags"])]
    gold = texts["tags"][:]
    return load_metric("entities").compute(predictions=predicted, references=gold, scheme="IOB1" if is_iob1(gold) else None)


def describe_tokens(log: dict[str, Any]) -> str:
    """The text of the model card about a run."""
    return (
        f"{steps_of(log)} with `longattn train tokens` on {log['documents']:,} documents of {sources_in_words(log['settings'])} with "
        f"{len(log['tags'])} tags, inputs of up to {log['input_length']:,} tokens. {tokens_result(log)}."
    )


def tokens_result(log: dict[str, Any]) -> str:
    """The result of a run for the terminal."""
    return held_out_in_words(
        log,
        lambda scores: f"{score_in_words(scores, 'f1', 'F1 of entities')}, {score_in_words(scores, 'accuracy', 'words')}",
        "document",
    )


TASK = Task(arguments=TOKENS, train=finetune_tokens, result=tokens_result, evaluation="Score the tags of words in long documents.")
