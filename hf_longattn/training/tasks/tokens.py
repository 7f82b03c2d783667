"""Fine-tune to tag the words of long documents, for example with named entities.

A document that is longer than the model's maximum is read in overlapping windows. A word that is in several windows
takes its tag from the window with the most context around it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset
from transformers import AutoModelForTokenClassification, EvalPrediction, PreTrainedTokenizerBase

from hf_longattn.data.batching import DataCollatorWithGlobals, DataCollatorWithPacking, chosen_packing
from hf_longattn.data.rows import Roles, each_part, read_rows, rows_of
from hf_longattn.data.sources import DataError
from hf_longattn.data.tokenization import IGNORED, for_words, input_length, reads_words
from hf_longattn.errors import CheckpointError, check_extra
from hf_longattn.evaluation import load_metric
from hf_longattn.loading import call_tokenizer, load_config, load_padding_tokenizer
from hf_longattn.training.arguments import (
    DataArguments,
    LongTrainingArguments,
    ModelArguments,
    argument,
    batch_size_argument,
)
from hf_longattn.training.run import begin, finish
from hf_longattn.training.tasks.classify import check_classes, load_classifier
from hf_longattn.training.trainer import LongTrainer, highest


@dataclass
class TokenDataArguments(DataArguments):
    """Documents whose words have tags, such as B-PER, I-PER and O.

    In a .conll file, each line has a word and its tag.
    """

    roles = {"words": ("tokens", "words"), "tags": ("ner_tags", "tags")}

    stride: int = argument(128, "Tokens shared by consecutive windows of a document that is longer than --max-length.")
    packing: bool | None = argument(
        None, "Pack the documents of a batch into one row without padding; default: yes where the model can."
    )


@dataclass
class TokenTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` with the defaults of this task."""

    per_device_train_batch_size: int = batch_size_argument(2)
    gradient_accumulation_steps: int = argument(
        8, "Forward passes per optimiser step; 16 inputs a step as in BERT, appendix A.3."
    )


ARGUMENTS = (ModelArguments, TokenDataArguments, TokenTrainingArguments)


def main(
    model_args: ModelArguments, data_args: TokenDataArguments, training_args: TokenTrainingArguments
) -> dict[str, Any]:
    """Train a model to tag words, evaluate and save it. Returns the log."""
    check_extra("metrics", "seqeval")
    begin(model_args, data_args, training_args)
    tokenizer = load_padding_tokenizer(model_args.model, load_config(model_args.model))
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"The tokenizer of {model_args.model!r} does not tell words apart; tagging needs a fast tokenizer."
        )
    tokenizer = for_words(tokenizer, model_args.model)
    tokenizer.padding_side = tokenizer.truncation_side = "right"  # keeps tokens and windows in the order of the words
    parts = read_tagged(data_args, training_args.seed)
    model, names = load_classifier(
        AutoModelForTokenClassification,
        model_args.model,
        tag_names(*parts),
        complete=not training_args.do_train,
    )
    inputs = tag_inputs(model, parts, names, data_args, training_args, tokenizer)
    facts = {name: inputs.pop(name) for name in ("input_length", "packed")}
    trainer = LongTrainer(model, training_args, preprocess_logits_for_metrics=highest, **inputs)
    return finish(trainer, model_args, data_args, tags=names, **facts)


def tag_inputs(
    model: Any,
    parts: tuple[Dataset, Dataset],
    names: list[str],
    data_args: TokenDataArguments,
    args: LongTrainingArguments,
    tokenizer: Any,
) -> dict[str, Any]:
    """Trainer's arguments for documents with tagged words, plus ``input_length`` and ``packed`` for the log.

    ``names`` are the tags in the order of their numbers.
    """
    length = input_length(model, tokenizer, data_args.max_length)
    pack = chosen_packing(model, data_args.packing, args)
    encode = partial(to_windows, tokenizer=tokenizer, length=length, stride=data_args.stride, names=names)
    rows, held_out = each_part(encode, *parts)
    train, scored = (part.remove_columns(["word_ids", "document"]) for part in (rows, held_out))
    padded = DataCollatorWithGlobals(tokenizer)
    return {
        "train_dataset": train,
        "eval_dataset": scored,
        "processing_class": tokenizer,
        "data_collator": DataCollatorWithPacking() if pack else padded,
        "eval_collator": padded,
        "compute_metrics": partial(tag_scores, rows=held_out, texts=parts[1], names=names),
        "input_length": length,
        "packed": pack,
    }


def read_tagged(args: TokenDataArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Training and evaluation documents with the columns ``words`` and ``tags``, lists of texts.

    Training data must have at least two types of entities (counting O), and all types of ``--validation``.
    """
    train, held_out = read_rows(args, seed, read=partial(tagged_rows, roles=args.roles, named=args.named))

    def entity_types(data: Dataset) -> list[str]:  # PER for B-PER and I-PER
        return [*dict.fromkeys(tag.partition("-")[2] or tag for tag in tag_names(data))]

    check_classes(args, entity_types(train), [name for name in entity_types(held_out) if name != "O"])
    return train, held_out


def tag_scores(prediction: EvalPrediction, rows: Dataset, texts: Dataset, names: list[str]) -> dict[str, float]:
    """Entity scores of whole documents, from the predicted tags of their windows.

    A word takes its tag from the window in which it is farthest from an edge. A word without a token is tagged O.

    Args:
        prediction: the number of the predicted tag of each token, ``(windows, L)``.
        rows: the windows, from :func:`to_windows`.
        texts: the documents, with ``words`` and ``tags``.
        names: the tags in the order of their numbers.
    """
    # for each document: number of a word -> tokens between it and the nearest edge of the window, and its tag
    best: list[dict[int, tuple[int, str]]] = [defaultdict(lambda: (-1, "O")) for _ in range(len(texts))]
    for predicted_tags, words, labels, document in zip(
        prediction.predictions, rows["word_ids"], rows["labels"], rows["document"], strict=True
    ):
        for index, (word, label) in enumerate(zip(words, labels, strict=True)):
            context = min(index, len(words) - 1 - index)
            if label != IGNORED and context > best[document][word][0]:
                best[document][word] = (context, names[int(predicted_tags[index])])
    predicted = [[best[number][word][1] for word in range(len(tags))] for number, tags in enumerate(texts["tags"])]
    return load_metric("entities").compute(predictions=predicted, references=texts["tags"][:])


def tagged_rows(source: str, split: str, roles: Roles, named: Mapping[str, str]) -> Dataset:
    """Documents of :func:`hf_longattn.data.rows.rows_of`, with as many ``tags`` as ``words``.

    Documents without words are left out.

    Raises:
        DataError: a document has more words than tags or fewer, or no document has words.
    """
    data = rows_of(source, split, roles, named)
    for number, row in enumerate(data, 1):
        words, tags = map(len, (row["words"], row["tags"]))
        if words != tags:
            raise DataError(f"Row {number} of {source} has {words} words and {tags} tags; give a tag for every word.")
    data = data.filter(lambda row: bool(row["words"]))
    if not len(data):
        raise DataError(f"There are no words in {source}; give other data.")
    return data


def tag_names(*parts: Dataset) -> list[str]:
    """All tags of ``parts``: first O, then all other tags, sorted by the type of entity (the tag without B- or I-)."""
    tags: Iterable[str] = {tag for part in parts for row in part["tags"] for tag in row}
    return sorted(tags, key=lambda tag: (tag != "O", tag[2:], tag))


def to_windows(
    data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, stride: int, names: list[str]
) -> Dataset:
    """Model inputs of tagged documents, one row per window. If no word of a document has a token, it has no row.

    Args:
        length: maximum tokens of a window.
        stride: tokens that consecutive windows share, a quarter of ``length`` at most.
        names: the tags in the order of their numbers.

    Returns:
        A dataset with the tokenizer's columns and three others, of which the first two have a value for each token.
        ``labels`` is the number of the tag for the first token of a word, and -100 for all other tokens, as in
        ``run_ner``. ``word_ids`` is the number of the token's word, and -1 for special tokens. ``document`` is the
        number of the document.
    """
    numbers = {name: number for number, name in enumerate(names)}
    share = min(stride, length // 4)
    needs_spaces = not reads_words(tokenizer)  # else a byte-level BPE would join the words

    def encode(rows: dict[str, list[Any]], documents: list[int]) -> dict[str, list[Any]]:
        """The columns of all windows of some documents. ``documents`` are their numbers."""
        texts = [[f" {word}" if word and needs_spaces else word for word in words] for words in rows["words"]]
        encoded = call_tokenizer(
            tokenizer,
            texts,
            truncation=True,
            max_length=length,
            stride=share,
            return_overflowing_tokens=True,
            return_attention_mask=False,
            is_split_into_words=True,
        )
        owners = encoded.pop("overflow_to_sample_mapping")
        windows = [
            [-1 if word is None else word for word in encoded.word_ids(window)] for window in range(len(owners))
        ]

        # The first token of each word has a label.
        labels = []
        for window, (owner, words) in enumerate(zip(owners, windows, strict=True)):
            previous = -1  # the word of the previous token
            if window and owners[window - 1] == owner:  # the previous token is the last one before the overlap
                previous = [word for word in windows[window - 1] if word >= 0][-1 - share]
            labels.append([IGNORED] * len(words))
            for index, word in enumerate(words):
                if word < 0:
                    continue
                if word != previous:
                    labels[-1][index] = numbers[rows["tags"][owner][word]]
                previous = word
        return {**encoded, "labels": labels, "word_ids": windows, "document": [documents[owner] for owner in owners]}

    rows = data.map(encode, with_indices=True, batched=True, batch_size=100, remove_columns=data.column_names)
    return rows if any(label != IGNORED for labels in rows["labels"] for label in labels) else rows.select([])
