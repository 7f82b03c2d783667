"""Fine-tune to transcribe speech by connectionist temporal classification.

Utterances are read whole. Utterances of similar length share a batch.
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

from hf_longattn.data.audio import EXTRA, Hearing
from hf_longattn.data.sources import each_part
from hf_longattn.data.tokenization import IGNORED
from hf_longattn.data.transcripts import UNKNOWN, UtteranceCollator, character_tokenizer, frames_needed, to_utterances, without_unknown
from hf_longattn.errors import CheckpointError, OptionError, check_extra, sentence_case
from hf_longattn.evaluation import load_metric
from hf_longattn.loading import call_tokenizer, load_part
from hf_longattn.names import missing
from hf_longattn.training import utterances
from hf_longattn.training.args import ModelArguments, argument, batch_size_argument, check_choices
from hf_longattn.training.loading import config_with_head, load_head
from hf_longattn.training.old_trainer import LongTrainer, highest
from hf_longattn.training.results import held_out_in_words, plain_scores, steps_of
from hf_longattn.training.task import Task
from hf_longattn.training.training_args import LongTrainingArguments
from hf_longattn.training.training_loop import prepare_run, save_run, train

LOWER_IS_BETTER = ("wer", "cer")


@dataclass
class CTCModelArguments(ModelArguments):
    """The checkpoint to start from, and its trained parts."""

    training_only: ClassVar[tuple[str, ...]] = ("freeze_feature_encoder",)

    freeze_feature_encoder: bool = argument(
        True, "Do not train the convolutions over samples, where the model has some; turn it off to train from random weights."
    )


@dataclass
class CTCDataArguments(utterances.UtteranceArguments):
    """Utterances with transcripts, and how they become inputs."""

    shape: ClassVar[str] = "a table of audio files and transcripts"
    training_only: ClassVar[tuple[str, ...]] = ("new_vocabulary",)

    data: list[str] = argument(
        [], "Files, folders or names on the Hub, one or several: a folder with metadata.csv or .jsonl (file_name, transcription), a folder "
        "of audio files with a .txt file each, a .csv, .tsv, .jsonl or .parquet file, a folder written by datasets, the name of a dataset "
        "on the Hub (NAME:SUBSET)."
    )  # fmt: skip
    unknown_characters: str = argument("refuse", "Characters of the transcripts that the vocabulary lacks: refuse or drop.")
    new_vocabulary: bool = argument(
        False, "Make a new vocabulary of the characters of the transcripts, and a new head, for a model that has none or another one."
    )
    max_length: int | None = argument(None, "Not for speech: audio files are kept whole; see --max-seconds.")

    def check(self) -> None:
        super().check()
        self.check_utterances()
        check_choices(self, unknown_characters=UNKNOWN)
        if self.new_vocabulary and self.unknown_characters != "refuse":
            raise OptionError("--unknown-characters has no effect with --new-vocabulary; leave one of the two out.")
        check_extra("metrics", "jiwer")


@dataclass
class CTCTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` of transcription."""

    without_effect: ClassVar[tuple[str, ...]] = ("neftune_noise_alpha", "label_smoothing_factor")

    per_device_train_batch_size: int = batch_size_argument(4, "Utterances per forward pass and process.")
    per_device_eval_batch_size: int = argument(4, "Utterances per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(4, "Forward passes per optimiser step.")
    train_sampling_strategy: str = argument("group_by_length", "Order of the training data; group_by_length pads least.")
    learning_rate: float = argument(1e-4, "Peak learning rate (wav2vec 2.0, appendix B: 5e-5 to 1e-4 after pre-training).")
    tokens_per_batch: int = argument(0, "Frames of a training batch, rows × longest, in place of a number of utterances; 0 = off.")

    greater_is_better: bool | None = argument(None, "Whether the metric for the best model is a score; default: not for loss, wer and cer.")

    def check(self) -> None:
        super().check()
        metric = (self.metric_for_best_model or "").removeprefix("eval_")
        if metric in LOWER_IS_BETTER and self.greater_is_better is None:
            self.greater_is_better = False


CTC = (CTCModelArguments, CTCDataArguments, CTCTrainingArguments)


def finetune_ctc(model_args: CTCModelArguments, data_args: CTCDataArguments, training_args: CTCTrainingArguments) -> dict[str, Any]:
    """Train, and write the model to ``training_args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, numbers of utterances and seconds, left-out utterances, held-out
        loss and error rates before and after, Trainer's history.
    """
    run = prepare_run(model_args, data_args, training_args)
    config = config_with_head(model_args.model, "transcribing speech by CTC", MODEL_FOR_CTC_MAPPING_NAMES)
    extractor = load_part(AutoFeatureExtractor, model_args.model)
    parts = utterances.read_utterances(data_args, training_args.seed)
    tokenizer = vocabulary(model_args.model, config, data_args, [text for part in parts for text in part["text"]])
    cleaned = each_part(
        lambda part: utterances.with_texts(part, without_unknown(part["text"], tokenizer, data_args.unknown_characters)), *parts
    )
    head: dict[str, Any] = {"ctc_loss_reduction": "mean"}  # the loss per label, averaged over utterances
    if data_args.new_vocabulary:
        head |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model: Any = load_head(AutoModelForCTC, model_args.model, None, complete=model_args.only_scores, **head)
    if model_args.freeze_feature_encoder and hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()
    hearing = Hearing(extractor, data_args.resample, data_args.mono)
    (rows, left_out), (held_out, held_left_out) = each_part(
        lambda part: frame_labels(part, tokenizer, hearing, model, data_args.max_seconds), *cleaned
    )
    utterances.check_left(data_args, rows, held_out)
    trainer = LongTrainer(
        model,
        training_args,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=utterances.processor_of(config, extractor, tokenizer),
        data_collator=UtteranceCollator(hearing),
        preprocess_logits_for_metrics=highest,
        compute_metrics=error_rates_by(tokenizer, held_out["length"]),
    )
    before = train(trainer, run, lambda: plain_scores(trainer.evaluate()))
    after = plain_scores(trainer.evaluate())
    log = {
        "vocabulary": len(tokenizer),
        **utterances.log_of(rows, held_out, left_out, held_left_out),
        "held_out": {"before": before, "after": after},
    }
    return save_run(trainer, run, log, describe_ctc)


def frame_labels(
    data: Dataset, tokenizer: PreTrainedTokenizerBase, hearing: Hearing, model: Any, most_seconds: float | None = None
) -> tuple[Dataset, dict[str, list[str]]]:
    """Utterances whose ``length`` counts the model's frames; see :func:`to_utterances`. Of a transcript that needs more of them, CTC's loss
    would be infinite."""
    labels = [call_tokenizer(tokenizer, text, add_special_tokens=False)["input_ids"] for text in data["text"]]

    def frames(sound: Any) -> int:
        return max(0, output_frames(model, hearing.length(sound)))

    return to_utterances(data, labels, hearing, frames, lambda row, count: frames_needed(row) <= count, most_seconds)


def output_frames(model: Any, length: int) -> int:
    """Number of frames for which a speech model has logits. The input has ``length`` samples or rows of features.

    Raises:
        BackendError: the model has no method for it.
    """
    for name in ("_get_feat_extract_output_lengths", "_get_subsampling_output_length"):
        count = getattr(model, name, None)
        if count is not None:
            return int(count(torch.tensor([length]))[0])
    raise missing("output_frames")


def vocabulary(name: str, config: PreTrainedConfig, args: CTCDataArguments, texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, or a new one of characters.

    Raises:
        CheckpointError: the checkpoint has no vocabulary, or its padding is not the blank of the model's head.
    """
    if args.new_vocabulary:
        return character_tokenizer(texts)
    try:
        tokenizer: PreTrainedTokenizerBase = load_part(AutoTokenizer, name)
    except CheckpointError as error:
        raise CheckpointError(f"{name!r} has no vocabulary; add --new-vocabulary to make one of the transcripts.") from error
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id != config.pad_token_id or len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"The vocabulary of {name!r} ({len(tokenizer)} tokens, padding {tokenizer.pad_token_id}) is not that of its head "
            f"({config.vocab_size} tokens, blank {config.pad_token_id}); add --new-vocabulary to make both of the transcripts."
        )
    return tokenizer


def error_rates_by(tokenizer: PreTrainedTokenizerBase, lengths: Sequence[int]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the function that computes the error rates of an evaluation of ordered rows.

    Args:
        lengths: frames of each row. Later frames are padding.
    """

    def compute(evaluation: EvalPrediction) -> dict[str, float]:
        frames = [row[:length] for row, length in zip(np.asarray(evaluation.predictions), lengths, strict=True)]
        predictions = tokenizer.batch_decode([row[row != IGNORED] for row in frames])
        labels = [row[row != IGNORED] for row in np.asarray(evaluation.label_ids)]
        references = tokenizer.batch_decode(labels, group_tokens=False)
        return load_metric("wer").compute(predictions=predictions, references=references)

    return compute


def describe_ctc(log: dict[str, Any]) -> str:
    """The text of the model card about a run."""
    return f"{steps_of(log)} with `longattn train ctc` on {utterances.utterances_in_words(log)}. {sentence_case(ctc_scores(log))}."


def ctc_scores(log: dict[str, Any]) -> str:
    """The error rates of a log in words."""
    return held_out_in_words(log, utterances.error_rates_in_words, "utterance")


def ctc_result(log: dict[str, Any]) -> str:
    """The result of a run for the terminal."""
    notes = {"seconds": "longer than max_seconds", "transcript": "too short for their transcripts, which CTC cannot write in their frames"}
    return "\n".join([ctc_scores(log), *utterances.left_out_in_words(log, notes)])


TASK = Task(arguments=CTC, train=finetune_ctc, result=ctc_result, evaluation="Score transcripts of speech.", extras=(EXTRA,))
