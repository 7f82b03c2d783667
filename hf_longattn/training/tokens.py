"""Fine-tune a model, short or converted, to tag the words of long documents: named entities over whole documents.

Documents longer than the model are read in overlapping windows; each word is tagged in the window in which it has most context.
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import ClassLabel, Dataset, List
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

from hf_longattn.data.batching import DataCollatorWithPacking, WithoutLengths, chosen_packing
from hf_longattn.data.lengths import input_length
from hf_longattn.data.sources import DataError, check_column, held_back, read_source
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.evaluation.metrics.entities import entity_scores
from hf_longattn.training.args import LabelledDataArguments, LongTrainingArguments, ModelArguments, argument
from hf_longattn.training.loading import load_head, load_start, numbered
from hf_longattn.training.results import steps_of
from hf_longattn.training.trainer import TimedTrainer
from hf_longattn.training.training_loop import begin, finish, train

IGNORED = -100
CONLL = (".conll", ".iob", ".bio")


@dataclass
class TokenDataArguments(LabelledDataArguments):
    """Documents whose words are tagged, and how they become inputs."""

    hub_task: ClassVar[str] = "token-classification"
    shape: ClassVar[str] = "a tagged file"

    data: list[str] = argument(
        [], "One or several of: a .conll file (a word and its tag in a line; -DOCSTART- lines, or else blank ones, separate documents), a "
        ".jsonl, .json or .parquet file, a folder written by datasets, the name of a dataset on the Hub."
    )  # fmt: skip
    words_column: str = argument("tokens", "The column that holds a document's words.")
    tags_column: str = argument("ner_tags", "The column that holds their tags: names (B-PER, I-PER, O) or numbers of classes.")
    max_length: int | None = argument(None, "Tokens of the longest input; default: the model's maximum.")
    stride: int = argument(128, "Tokens shared by consecutive windows of a document that is longer than max_length.")
    packing: bool | None = argument(None, "Pack the documents of a batch into one row without padding; default: yes where the model can.")

    def check(self) -> None:
        super().check()
        if self.words_column == self.tags_column:
            raise OptionError(f"words_column and tags_column are both {self.words_column!r}; name two columns")


@dataclass
class TokenTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` of token classification."""

    per_device_train_batch_size: int = argument(2, "Inputs per forward pass and process.", ["--batch_size", "--batch-size"])
    per_device_eval_batch_size: int = argument(2, "Inputs per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(8, "Forward passes per optimiser step; 16 inputs a step as in BERT, appendix A.3.")
    learning_rate: float = argument(5e-5, "Highest learning rate (BERT, appendix A.3: 2e-5 to 5e-5).")


TOKENS = (ModelArguments, TokenDataArguments, TokenTrainingArguments)


def finetune_tokens(model_args: ModelArguments, data_args: TokenDataArguments, training_args: TokenTrainingArguments) -> dict[str, Any]:
    """Train, and write the model to ``training_args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, tags, scores before and after, Trainer's history.
    """
    run = begin(model_args, data_args, training_args)
    _, tokenizer = load_start(model_args.model, "token classification", MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES)
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"the tokenizer of {model_args.model!r} does not tell words apart; token classification needs a fast tokenizer"
        )
    texts, held_texts = read_tagged(data_args, training_args.seed)
    names = sorted({tag for tags in texts["tags"] for tag in tags}, key=lambda tag: (tag != "O", tag[2:], tag))
    model = load_head(AutoModelForTokenClassification, model_args.model, tokenizer, **numbered(names))
    length = input_length(model, tokenizer, data_args.max_length)
    rows, held_out = (to_windows(data, tokenizer, length, data_args.stride, names) for data in (texts, held_texts))
    pack = chosen_packing(model, data_args.packing, training_args)
    training_args.remove_unused_columns = False
    columns = ["word_ids", "document"]
    trainer = TimedTrainer(
        model,
        training_args,
        train_dataset=rows.remove_columns(columns),
        eval_dataset=held_out.remove_columns(columns),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPacking() if pack else TokenCollator(tokenizer),
        max_minutes=training_args.max_minutes,
    )

    def measure() -> dict[str, Any]:
        return scores(trainer, held_out, held_texts, names, tokenizer)

    before, after = train(trainer, run, measure), measure()
    log = {"input_length": length, "tags": names, "packed": pack, "documents": len(texts), "held_out": {"before": before, "after": after}}
    return finish(trainer, run, log, describe_tokens)


class TokenCollator(WithoutLengths, DataCollatorForTokenClassification):
    """transformers' collator, without lengths."""


def read_tagged(args: TokenDataArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Documents to train on and to evaluate on, with the columns ``words`` and ``tags`` (names).

    Raises:
        DataError: a missing column, words without tags, or a tag that only the validation data have.
    """
    data, held_out = held_back(args, lambda source, split: _load(source, args, split), seed)
    known = {tag for tags in data["tags"] for tag in tags}
    unknown = sorted({tag for tags in held_out["tags"] for tag in tags} - known)
    if unknown:
        raise DataError(f"the tag {unknown[0]!r} of the validation data is not one of the tags to learn ({', '.join(sorted(known))})")
    if len(known) < 2:
        raise DataError(f"all words of {', '.join(args.data)} have the tag {next(iter(known), '')!r}; there is nothing to learn")
    return data, held_out


def _load(source: str, args: TokenDataArguments, split: str) -> Dataset:
    if Path(source).suffix in CONLL:
        return _read_conll(Path(source))
    data = read_source(source, split)
    words = check_column(data, args.words_column, source, "--words-column")
    tags = check_column(data, args.tags_column, source, "--tags-column")
    feature = data.features[tags]
    names = feature.feature.names if isinstance(feature, List) and isinstance(feature.feature, ClassLabel) else None
    rows: dict[str, list[Any]] = {"words": [], "tags": []}
    for number, (some, their) in enumerate(zip(data[words], data[tags], strict=True), start=1):
        if not isinstance(some, list) or not isinstance(their, list) or len(some) != len(their) or None in their:
            raise DataError(f"row {number} of {source}: {words!r} and {tags!r} must be lists of the same length, a tag for every word")
        if names is not None and any(not 0 <= tag < len(names) for tag in their):
            raise DataError(f"row {number} of {source} has the tag {max(their, key=abs)}, but there are {len(names)} classes")
        if some:
            rows["words"].append([str(word) for word in some])
            rows["tags"].append([names[tag] if names is not None else str(tag) for tag in their])
    if not rows["words"]:
        raise DataError(f"there are no words in {source}")
    return Dataset.from_dict(rows)


def _read_conll(path: Path) -> Dataset:
    """Words in the first column, tags in the last."""
    if not path.is_file():
        raise DataError(f"data file {str(path)!r} does not exist")
    lines = path.read_text(encoding="utf-8").splitlines()
    marked = any(line.startswith("-DOCSTART-") for line in lines)
    documents: list[tuple[list[str], list[str]]] = [([], [])]
    for number, line in enumerate(lines, start=1):
        if line.startswith("-DOCSTART-") or (not marked and not line.strip()):
            documents.append(([], []))
        elif line.strip():
            columns = line.split()
            if len(columns) < 2:
                raise DataError(f"line {number} of {str(path)!r} has no tag; a line is a word and its tag, separated by spaces")
            documents[-1][0].append(columns[0])
            documents[-1][1].append(columns[-1])
    found = [document for document in documents if document[0]]
    if not found:
        raise DataError(f"there are no words in {str(path)!r}")
    return Dataset.from_dict({"words": [words for words, _ in found], "tags": [tags for _, tags in found]})


def to_windows(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, stride: int, names: list[str]) -> Dataset:
    """Model inputs of tagged documents, as many per document as it has windows.

    Returns:
        A dataset with the tokenizer's columns, ``labels`` (of each word's first token, elsewhere -100), ``word_ids`` (-1 for none),
        ``document`` (its number) and ``length``.
    """
    numbers = {name: number for number, name in enumerate(names)}

    def encode(rows: dict[str, list[Any]], places: list[int]) -> dict[str, list[Any]]:
        encoded = tokenizer(
            rows["words"], is_split_into_words=True, truncation=True, max_length=length, stride=min(stride, length // 4),
            return_overflowing_tokens=True, return_attention_mask=False,
        )  # fmt: skip
        owners = encoded.pop("overflow_to_sample_mapping")
        columns: dict[str, list[Any]] = {name: encoded[name] for name in encoded}
        columns |= {name: [] for name in ("labels", "word_ids", "document", "length")}
        for window, owner in enumerate(owners):
            words = [-1 if word is None else word for word in encoded.word_ids(window)]
            firsts = [word >= 0 and (at == 0 or words[at - 1] != word) for at, word in enumerate(words)]
            tags = rows["tags"][owner]
            columns["labels"].append([numbers[tags[word]] if first else IGNORED for word, first in zip(words, firsts, strict=True)])
            columns["word_ids"].append(words)
            columns["document"].append(places[owner])
            columns["length"].append(len(words))
        return columns

    return data.map(encode, with_indices=True, batched=True, batch_size=100, remove_columns=data.column_names)


def scores(trainer: TimedTrainer, rows: Dataset, texts: Dataset, names: list[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Entity scores of whole documents; every word takes its tag from the window in which it is farthest from an edge."""
    usual: Any = getattr(trainer, "data_collator")  # noqa: B009 - Trainer's
    strategy = trainer.args.train_sampling_strategy
    trainer.data_collator, trainer.args.train_sampling_strategy = TokenCollator(tokenizer), "random"  # padded rows, in their order
    found = trainer.predict(rows.remove_columns(["word_ids", "document"])).predictions
    trainer.data_collator, trainer.args.train_sampling_strategy = usual, strategy
    return tag_scores(found, rows, texts, names) if trainer.is_world_process_zero() else {}


def tag_scores(found: Iterable[Any], rows: Dataset, texts: Dataset, names: list[str]) -> dict[str, float]:
    """Entity scores of whole documents from the logits of each window."""
    best: list[dict[int, tuple[int, str]]] = [defaultdict(lambda: (-1, "O")) for _ in range(len(texts))]
    for logits, words, labels, document in zip(found, rows["word_ids"], rows["labels"], rows["document"], strict=True):
        choices = np.asarray(logits).argmax(-1)
        for at, (word, label) in enumerate(zip(words, labels, strict=True)):
            context = min(at, len(words) - 1 - at)
            if label != IGNORED and context > best[document][word][0]:
                best[document][word] = (context, names[int(choices[at])])
    predicted = [[best[number][word][1] for word in range(len(tags))] for number, tags in enumerate(texts["tags"])]
    return entity_scores(predicted, texts["tags"][:])


def describe_tokens(log: dict[str, Any]) -> str:
    """What a model card says about a run."""
    return (
        f"{steps_of(log)} with `longattn train tokens` on {log['documents']:,} documents of {', '.join(log['settings']['data'])} with "
        f"{len(log['tags'])} tags, inputs of up to {log['input_length']:,} tokens. {tokens_result(log)}."
    )


def tokens_result(log: dict[str, Any]) -> str:
    """What is printed at the end of a run."""
    told = [
        f"F1 of entities {scores['f1']:.1f} ± {scores['f1_se']:.1f} %, words {scores['accuracy']:.1f} % {when}"
        for when, scores in log["held_out"].items()
        if scores
    ]
    return f"held out: {'; '.join(told)}"
