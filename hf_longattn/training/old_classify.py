"""Fine-tune to classify long documents, large images (--images) or long audio files (--audio)."""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from hf_longattn.data.audio import EXTRA as AUDIO_EXTRA
from hf_longattn.data.audio import RECORDING_FILES, Hearing, RecordingCollator, with_lengths
from hf_longattn.data.batching import DocumentCollator, chosen_packing, first_tokens, pooling_module
from hf_longattn.data.documents import label_names, to_documents
from hf_longattn.data.files import FileKind, load_labelled_files
from hf_longattn.data.images import EXTRA, IMAGE_FILES, ImageCollator, augmentation_of, check_augmentation, checked_size, count_transparent
from hf_longattn.data.lengths import input_length
from hf_longattn.data.sources import DataError, each_part, load_labelled, train_test_split
from hf_longattn.errors import CheckpointError, OptionError, check_extra, flag, listed, sentence_case
from hf_longattn.evaluation import load_metric
from hf_longattn.loading import load_part
from hf_longattn.modeling.attach.token_globals import carry_question
from hf_longattn.training.args import LabelledDataArguments, ModelArguments, argument, batch_size_argument
from hf_longattn.training.loading import config_with_head, load_classifier, load_start
from hf_longattn.training.old_trainer import LongTrainer, highest
from hf_longattn.training.results import Scores, counted, held_out_in_words, score_in_words, sources_in_words, steps_of
from hf_longattn.training.task import Task
from hf_longattn.training.training_args import LongTrainingArguments
from hf_longattn.training.training_loop import prepare_run, save_run, train

OPTIONS_OF = {
    "texts": ("text_column", "question_column", "packing", "max_length"),
    "images": ("image_column", "augmentation"),
    "audio": ("audio_column", "resample", "mono"),
}
"""Options that not all kinds of data have."""
NO_LENGTH = -1
"""Length of an image, or of a document of unknown length, for the metric."""


@dataclass
class ClassificationDataArguments(LabelledDataArguments):
    """Documents, images or audio files to classify."""

    shape: ClassVar[str] = "a labelled file"
    training_only: ClassVar[tuple[str, ...]] = ("augmentation", "packing")

    data: list[str] = argument(
        [], "Files, folders or names on the Hub, one or several: "
        "a .csv, .tsv, .jsonl or .parquet file, a folder with one sub-folder of text files per label (of images with --images, of "
        "audio files with --audio), "
        "a folder written by datasets, the name of a dataset on the Hub (NAME:SUBSET)."
    )  # fmt: skip
    images: bool = argument(False, "Classify images, with a model that reads them (ViT, DeiT, DINOv2 …), short or converted.")
    image_column: str = argument("image", "The column that holds the images, or their paths relative to the table.")
    augmentation: str = argument(
        "", "Random changes of the images in training: crop+flip, crop, flip or none; default: crop+flip where torchvision is installed."
    )
    audio: bool = argument(False, "Classify audio files, with a model that hears them (Wav2Vec2, HuBERT …), short or converted.")
    audio_column: str = argument("audio", "The column that holds the audio files, or their paths relative to the table.")
    resample: bool = argument(False, "Convert audio files of another sampling rate to the model's.")
    mono: bool = argument(False, "Mix the channels of audio files with several.")
    text_column: str = argument("text", "The column that holds the text.")
    question_column: str = argument(
        "", "A column of what is asked or claimed about each text, read before it; a converted model makes its tokens global."
    )  # fmt: skip
    label_column: str = argument("label", "The column that holds the label: a name or a whole number.")
    validation: str = argument(
        "", "Labelled data to evaluate on, all of them; default: a tenth of every source of --data, chosen by --seed."
    )
    packing: bool | None = argument(
        None, "Pack the documents of a training batch into one row without padding; default: yes where model and head allow it."
    )

    def check(self) -> None:
        super().check()
        if self.images and self.audio:
            raise OptionError("--images and --audio are two kinds of data; leave one of them out.")
        kind = self.reader.kind
        for other, names in OPTIONS_OF.items():
            others = [name for name in names if name not in OPTIONS_OF[kind]]
            if (unused := next((name for name in others if name in self.explicit), None)) is not None:
                advice = f"leave it out, or leave --{kind} out" if other == "texts" else f"add --{other}"
                raise OptionError(f"{flag(unused)} is an option for {other}; {advice}.")
        column = self.reader.column
        if getattr(self, column) == self.label_column:
            raise OptionError(f"{flag(column)} and --label-column are both {self.label_column!r}; name two columns.")
        check_augmentation(self.augmentation)
        if self.images:
            check_extra(EXTRA, "PIL", *(["torchvision"] if self.augmentation not in ("", "none") else []))
        if self.audio:
            check_extra(AUDIO_EXTRA, "soundfile", *(["scipy"] if self.resample else []))

    @property
    def reader(self) -> Reader:
        """The reader of the data."""
        return IMAGES if self.images else AUDIO if self.audio else TEXTS


@dataclass
class ClassificationTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` of classification."""

    per_device_train_batch_size: int = batch_size_argument(2, "Documents, images or audio files per forward pass and process.")
    per_device_eval_batch_size: int = argument(2, "Documents, images or audio files per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(4, "Forward passes per optimiser step.")
    train_sampling_strategy: str = argument("group_by_length", "Order of the training data; group_by_length pads least.")


CLASSIFICATION = (ModelArguments, ClassificationDataArguments, ClassificationTrainingArguments)


def finetune_classification(
    model_args: ModelArguments, data_args: ClassificationDataArguments, training_args: ClassificationTrainingArguments
) -> dict[str, Any]:
    """Train, and write the model to ``training_args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, classes, how many rows there are of each part, scores on the
        held-out ones before and after, Trainer's history. Of several processes only the first has the scores.
    """
    run = prepare_run(model_args, data_args, training_args)
    reader = data_args.reader
    if training_args.tokens_per_batch and isinstance(reader, Files):
        raise OptionError(f"--tokens-per-batch has no effect with --{reader.kind}; give --batch-size instead.")
    _, processor = reader.load_start(model_args.model)
    parts = read_labelled(data_args, training_args.seed)
    tokenizer = processor if isinstance(processor, PreTrainedTokenizerBase) else None
    labels, complete = label_names(*parts), training_args.only_scores
    problem = {"problem_type": "single_label_classification"}
    model, names = load_classifier(reader.head, model_args.model, tokenizer, labels, complete=complete, **problem)
    inputs = reader.inputs(model, processor, parts, names, data_args, training_args)
    trainer = ClassificationTrainer(
        model,
        training_args,
        train_dataset=inputs.train,
        eval_dataset=inputs.held_out,
        processing_class=processor,
        data_collator=inputs.collator,
        eval_collator=inputs.eval_collator,
        preprocess_logits_for_metrics=highest,
        compute_metrics=_accuracy,
    )
    before = train(trainer, run, lambda: trainer.scores(inputs.held_out))
    after = trainer.scores(inputs.held_out)
    log = {**inputs.log, "classes": names, "held_out": {"before": before, "after": after}}
    return save_run(trainer, run, log, describe_classification)


class Inputs(NamedTuple):
    """The rows of a run, and their collator.

    train, held_out: rows to train on and to evaluate on.
    collator, eval_collator: make batches of them.
    log: entries for the log.
    """

    train: Dataset
    held_out: Dataset
    collator: Callable[..., Any]
    eval_collator: Callable[..., Any]
    log: dict[str, Any]


class Texts:
    """Documents, and models that read them."""

    kind, unit, content, column = "texts", "document", "text", "text_column"
    head = AutoModelForSequenceClassification

    def load_start(self, name: str) -> tuple[Any, Any]:
        """Config and tokenizer of a checkpoint."""
        return load_start(name, "text classification", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, otherwise_of(self.kind))

    def load_rows(self, args: ClassificationDataArguments, source: str, split: str) -> Dataset:
        """The documents of a source, with the names of their labels."""
        columns = {"text_column": args.text_column, "label_column": args.label_column, "question_column": args.question_column}
        return load_labelled(source, split=split, **columns)

    def inputs(
        self, model: PreTrainedModel, processor: Any, rows: tuple[Dataset, Dataset], names: list[str], args: Any, training_args: Any
    ) -> Inputs:
        """The documents' tokens, packed if model and head allow it."""
        length = input_length(model, processor, args.max_length)
        if args.question_column and not args.only_scores:
            carry_question(model, processor)
        no_pooling = "The head picks the first token of a row itself." if pooling_module(model) is None else None
        pack = chosen_packing(model, args.packing, training_args, no_pooling)
        documents, held_out = each_part(lambda data: to_documents(data, processor, length, names), *rows)
        counts = {"train": len(documents), "held_out": len(held_out), "cut": sum(map(_cut, {documents, held_out}))}
        log = {"input_length": length, "packed": pack, "documents": counts}
        unpacked = DocumentCollator(processor)  # several processes gather a row for each document
        return Inputs(documents, held_out, DocumentCollator(processor, pack=pack), unpacked, log)

    def described(self, log: Mapping[str, Any]) -> str:
        """The text of the model card about the inputs."""
        cut = log["documents"]["cut"]
        return f"inputs of up to {log['input_length']:,} tokens ({cut:,} documents were cut)"

    def notes(self, log: Mapping[str, Any]) -> list[str]:
        """Notes about the inputs for the terminal."""
        cut = log["documents"]["cut"]
        return [f"{cut:,} documents are longer than {log['input_length']:,} tokens and were cut"] if cut else []


class Files:
    """Files, and models with a head for classes that read them. ``processor`` makes inputs of files."""

    kind: ClassVar[str]
    task: ClassVar[str]
    types: ClassVar[Any]
    head: ClassVar[Any]
    processor: ClassVar[Any]
    files: ClassVar[FileKind]
    column: ClassVar[str]

    def load_rows(self, args: ClassificationDataArguments, source: str, split: str) -> Dataset:
        """The files of a source, with the names of their labels."""
        return load_labelled_files(self.files, source, split=split, column=getattr(args, self.column), label_column=args.label_column)

    def load_start(self, name: str) -> tuple[Any, Any]:
        """Config and processor of a checkpoint."""
        return config_with_head(name, self.task, self.types, otherwise_of(self.kind)), load_part(self.processor, name, "processor")


class Images(Files):
    """Images, and models that read them."""

    kind, unit, content, column = "images", "image", "image", "image_column"
    task, types, processor = "image classification", MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, AutoImageProcessor
    head, files = AutoModelForImageClassification, IMAGE_FILES

    def inputs(
        self, model: PreTrainedModel, processor: Any, rows: tuple[Dataset, Dataset], names: list[str], args: Any, training_args: Any
    ) -> Inputs:
        """The image processor's pixels, in training after an augmentation."""
        training_args.train_sampling_strategy = "random"
        size = checked_size(model, processor, rows[0][0])
        transparent = sum(map(count_transparent, set(rows)))
        collator = ImageCollator(processor, names, augmentation_of(args.augmentation, size), training_args.seed)
        counts = {"train": len(rows[0]), "held_out": len(rows[1]), "transparent": transparent}
        log = {"input_size": list(size), "augmented": collator.augmentation is not None, "images": counts}
        return Inputs(*rows, collator, collator.for_evaluation(), log)

    def described(self, log: Mapping[str, Any]) -> str:
        """The text of the model card about the inputs."""
        return f"{' × '.join(map(str, log['input_size']))} pixels each, {'with' if log['augmented'] else 'without'} random augmentation"

    def notes(self, log: Mapping[str, Any]) -> list[str]:
        """Notes about the inputs for the terminal."""
        transparent = log["images"]["transparent"]
        return [f"{counted(transparent, 'image')} with transparent parts, which are shown on white"] if transparent else []


class Recordings(Files):
    """Audio files, and models that hear them."""

    kind, unit, content, column = "audio", "audio file", "audio file", "audio_column"
    task, types, processor = "audio classification", MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES, AutoFeatureExtractor
    head, files = AutoModelForAudioClassification, RECORDING_FILES

    def inputs(
        self, model: PreTrainedModel, processor: Any, rows: tuple[Dataset, Dataset], names: list[str], args: Any, training_args: Any
    ) -> Inputs:
        """The feature extractor's inputs of whole audio files. Files of similar length share a batch.

        Raises:
            InputError: an audio file cannot be read.
            CheckpointError: the feature extractor makes spectrograms of another length than the model was converted for.
        """
        hearing = Hearing(processor)
        train_rows, held_out = each_part(lambda data: with_lengths(data, hearing), *rows)
        longest = max(map(max, (train_rows["length"], held_out["length"]))) / hearing.sampling_rate
        converted, read = getattr(model.config, "long_max_length", None), getattr(processor, "max_length", None)
        if converted is not None and converted != read:
            raise CheckpointError(
                f"The feature extractor of {model.name_or_path!r} makes spectrograms of {read} frames, but the model was converted for "
                f"{converted}; set max_length in its preprocessor_config.json to that."
            )
        most = hearing.most_samples
        cut = 0 if most is None else sum(length > most for data in {train_rows, held_out} for length in data["length"])
        counts = {"train": len(train_rows), "held_out": len(held_out), "cut": cut}
        log = {
            "longest_seconds": longest, "read_seconds": None if most is None else most / hearing.sampling_rate, "audio_files": counts,
        }  # fmt: skip
        collator = RecordingCollator(hearing, names)
        return Inputs(train_rows, held_out, collator, collator, log)

    def described(self, log: Mapping[str, Any]) -> str:
        """The text of the model card about the inputs."""
        return f"the longest of {log['longest_seconds']:.1f} seconds ({log['audio_files']['cut']:,} audio files were cut)"

    def notes(self, log: Mapping[str, Any]) -> list[str]:
        """Notes about the inputs for the terminal."""
        cut = log["audio_files"]["cut"]
        return [f"{counted(cut, 'audio file')} longer than the {log['read_seconds']:g} seconds of the model's input, cut"] if cut else []


Reader = Texts | Images | Recordings
TEXTS, IMAGES, AUDIO = Texts(), Images(), Recordings()
READS = {
    "texts": ("it reads texts: leave --{flag} out", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    "images": ("it reads images: add --images", MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
    "audio": ("it hears audio files: add --audio", MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES),
}
"""Kind of data -> advice for its models, and their types."""


def otherwise_of(kind: str) -> dict[str, Any]:
    """Advice for models of other kinds of data than ``kind``."""
    return {words.format(flag=kind): types for other, (words, types) in READS.items() if other != kind}


def rows_key(reader: Reader) -> str:
    """The entry of a log with the numbers of rows: "documents", "images" or "audio_files"."""
    return f"{reader.unit}s".replace(" ", "_")


def _reader_of(log: Mapping[str, Any]) -> Reader:
    """The reader of the data of a log's run."""
    return next(reader for reader in (IMAGES, AUDIO, TEXTS) if rows_key(reader) in log)


class ClassificationTrainer(LongTrainer):
    """Trains on packed rows or padded ones, on images or audio files, and scores documents by their length."""

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        if "lengths" not in inputs:
            return super().mean_loss(model, inputs)
        model_inputs = {name: value for name, value in inputs.items() if name != "lengths"}
        with first_tokens(self.accelerator.unwrap_model(model), inputs["lengths"]):
            return super().mean_loss(model, model_inputs)

    def scores(self, data: Dataset) -> dict[str, Any]:
        """Accuracy and macro F1 in per cent, by document length; empty in all processes but the first."""
        output: Any = self.predict(data)
        if not self.is_world_process_zero():
            return {}
        lengths = data["document"] if "document" in data.column_names else [NO_LENGTH] * len(data)
        references = [{"label": int(label), "length": length} for label, length in zip(output.label_ids, lengths, strict=True)]
        return load_metric("long_classification").compute(predictions=[int(number) for number in output.predictions], references=references)


def read_labelled(args: ClassificationDataArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Training and evaluation rows of documents, images or audio files; see :func:`train_test_split`.

    Raises:
        DataError: as :func:`load_labelled` and :func:`load_labelled_files`; fewer than two classes; or a class of ``--validation`` that the
            training data lack.
        OptionError: too few rows to hold some back.
    """
    reader = args.reader
    read = partial(reader.load_rows, args)
    train, held_out = train_test_split(args, read, seed, least=3, classes="label")
    if not len(held_out):
        raise DataError(f"There is no {reader.content} in {args.validation or ', '.join(args.data)}; give other data.")
    if not args.only_scores and len(set(train["label"])) < 2:
        raise DataError(
            f"All {reader.unit}s of {', '.join(args.data)} have the label {train['label'][0]!r}; give data with two labels or more."
            if len(train) else f"There is no {reader.content} in {', '.join(args.data)}; give other data."
        )  # fmt: skip
    if args.validation and not args.only_scores and args.max_train_samples is None:
        labels = set(train["label"])
        if new := set(held_out["label"]) - labels:
            raise DataError(
                f"{args.validation} has the labels {listed(new)}, but {', '.join(args.data)} only {listed(labels)}; write the same labels "
                "in both, or leave such rows out."
            )
    return train, held_out


def describe_classification(log: dict[str, Any]) -> str:
    """The text of the model card about a run."""
    reader, settings = _reader_of(log), log["settings"]
    return (
        f"{steps_of(log)} with `longattn train classify` on {counted(log[rows_key(reader)]['train'], reader.unit)} of "
        f"{sources_in_words(settings)} in {len(log['classes'])} classes, {reader.described(log)}. "
        f"{sentence_case(held_out_in_words(log, _in_words, reader.unit))}."
    )


def describe_classification_result(log: dict[str, Any]) -> str:
    """The result of a run for the terminal."""
    reader = _reader_of(log)
    return "\n".join([held_out_in_words(log, _in_words, reader.unit), *reader.notes(log)])


def _accuracy(evaluation: EvalPrediction) -> dict[str, float]:
    """The scores that an evaluation during training logs in addition to the loss."""
    references = [{"label": label, "length": NO_LENGTH} for label in evaluation.label_ids.tolist()]
    scores = load_metric("long_classification").compute(predictions=evaluation.predictions.tolist(), references=references)
    return {name: scores[name] for name in ("accuracy", "macro_f1")}


def _cut(data: Dataset) -> int:
    return sum(document > length for document, length in zip(data["document"], data["length"], strict=True))


def _in_words(scores: Scores) -> str:
    return f"{score_in_words(scores, 'accuracy')}, {score_in_words(scores, 'macro_f1')}"


TASK = Task(
    arguments=CLASSIFICATION,
    train=finetune_classification,
    result=describe_classification_result,
    evaluation="Score the classes of documents, images or audio files.",
)
