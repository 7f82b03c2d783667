"""Fine-tune to transcribe speech by connectionist temporal classification (CTC).

The model reads each utterance in one piece. Utterances of similar length share a batch.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer, EvalPrediction, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from hf_longattn.data.audio import AudioCollator, to_utterances
from hf_longattn.data.rows import each_part, read_rows
from hf_longattn.data.sources import DataError
from hf_longattn.data.tokenization import IGNORED
from hf_longattn.errors import CheckpointError, check_extra, listed
from hf_longattn.evaluation import load_metric
from hf_longattn.files import GENERIC_TYPE
from hf_longattn.loading import call_tokenizer, load_config, load_model, load_part
from hf_longattn.names import missing
from hf_longattn.training.arguments import (
    DataArguments,
    LongTrainingArguments,
    ModelArguments,
    argument,
    batch_size_argument,
)
from hf_longattn.training.run import begin, finish
from hf_longattn.training.trainer import LongTrainer, highest

EXTRAS = ("audio", "metrics")
CASES: dict[str, Callable[[str], str]] = {"": str, "lower": str.lower, "upper": str.upper}
"""Value of ``--letter-case`` -> function that converts a transcript to this case."""


@dataclass
class CTCModelArguments(ModelArguments):
    """The checkpoint to start from, and whether its convolutions are trained."""

    freeze_feature_encoder: bool = argument(
        True,
        "Do not train the convolutions over samples, where the model has some; turn it off to train from random "
        "weights.",
    )


@dataclass
class UtteranceArguments(DataArguments):
    """Utterances with transcripts. Recognises the columns of ``audiofolder``, LibriSpeech, Common Voice, VoxPopuli and
    NeMo."""

    roles = {
        "audio": ("audio", "file_name", "audio_filepath", "path", "file"),
        "text": ("transcription", "text", "sentence", "transcript", "normalized_text"),
    }

    choices = {"letter_case": ("lower", "upper")}

    letter_case: str = argument("", "Case of the letters of the transcripts, lower or upper; default: as they are.")
    max_seconds: float | None = argument(
        None, "Leave out longer audio files; default: all that the model reads whole."
    )


@dataclass
class CTCDataArguments(UtteranceArguments):
    """Utterances with transcripts, and whether to create a new vocabulary."""

    new_vocabulary: bool = argument(
        False,
        "Make a new vocabulary from the characters of the transcripts, and a new head: for a model without a fitting "
        "one.",
    )


@dataclass
class CTCTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` with the defaults of this task."""

    per_device_train_batch_size: int = batch_size_argument(4)
    gradient_accumulation_steps: int = argument(4, "Forward passes per optimiser step.")
    train_sampling_strategy: str = argument(
        "group_by_length", "Order of the training data; group_by_length pads least."
    )
    learning_rate: float = argument(
        1e-4, "Peak learning rate (wav2vec 2.0, appendix B: 5e-5 to 1e-4 after pre-training)."
    )


ARGUMENTS = (CTCModelArguments, CTCDataArguments, CTCTrainingArguments)


def main(
    model_args: CTCModelArguments, data_args: CTCDataArguments, training_args: CTCTrainingArguments
) -> dict[str, Any]:
    """Train a model to transcribe speech, evaluate and save it. Returns the log."""
    check_extra("metrics", "jiwer")
    begin(model_args, data_args, training_args)
    config = load_config(model_args.model)
    if config.model_type not in MODEL_FOR_CTC_MAPPING_NAMES:
        raise CheckpointError(
            f"{model_args.model!r} ({config.model_type}) has no head for CTC; give a model of speech, such as "
            "Wav2Vec2."
        )
    extractor = load_part(AutoFeatureExtractor, model_args.model)

    # Transcripts, and the vocabulary of the checkpoint or a new one. The padding token is CTC's blank.
    parts = read_utterances(data_args, training_args.seed)
    texts = [text for part in parts for text in part["text"]]
    head: dict[str, Any] = {"ctc_loss_reduction": "mean"}  # the loss per label, averaged over utterances
    if data_args.new_vocabulary:
        tokenizer: PreTrainedTokenizerBase = character_tokenizer(texts)
        head |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    else:
        tokenizer = vocabulary(model_args.model, config)
        check_characters(texts, tokenizer)
    model = load_model(
        AutoModelForCTC, model_args.model, complete=not training_args.do_train, ignore_mismatched_sizes=True, **head
    )
    if model_args.freeze_feature_encoder and hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()

    # Labels, and the number of frames for each sound
    collator = AudioCollator(extractor)

    def fits(labels: Sequence[int], frames: int) -> bool:
        # A transcript needs a frame per label, and a blank between equal labels. Else the loss is infinite.
        return len(labels) + sum(first == second for first, second in pairwise(labels)) <= frames

    def encode(data: Dataset) -> Dataset:
        """The utterances with the tokens of their transcripts. Those that do not fit are left out."""
        labels = [call_tokenizer(tokenizer, text, add_special_tokens=False)["input_ids"] for text in data["text"]]
        return to_utterances(
            data,
            labels,
            collator,
            length=lambda sound: output_frames(model, collator.length(sound)),
            fits=fits,
            most_seconds=data_args.max_seconds,
        )

    rows, held_out = each_part(encode, *parts)

    def error_rates(evaluation: EvalPrediction) -> dict[str, float]:
        """Word and character error rates. ``predictions`` are the most likely token of each frame, ``(n, frames)``."""
        # without the frames that pad a recording to the longest one in its batch
        frames = [row[:length] for row, length in zip(evaluation.predictions, held_out["length"], strict=True)]
        predictions = tokenizer.batch_decode([row[row != IGNORED] for row in frames])
        references = tokenizer.batch_decode([row[row != IGNORED] for row in evaluation.label_ids], group_tokens=False)
        return load_metric("wer").compute(predictions=predictions, references=references)

    trainer = LongTrainer(
        model,
        training_args,
        collator,
        rows,
        held_out,
        speech_processor(config, extractor, tokenizer),
        compute_metrics=error_rates,
        preprocess_logits_for_metrics=highest,
    )
    return finish(trainer, model_args, data_args, vocabulary=len(tokenizer), utterances=len(rows))


def read_utterances(args: UtteranceArguments, seed: int) -> list[Dataset]:
    """Training and held-out utterances.

    The columns are ``audio`` (a path or bytes), ``text`` (the transcript in one line) and ``name`` (for messages).
    """
    change_case = CASES[args.letter_case]

    def clean(data: Dataset) -> Dataset:
        texts = [change_case(" ".join(text.split())) for text in data["text"]]
        return data.remove_columns("text").add_column("text", texts)

    return each_part(clean, *read_rows(args, seed, UtteranceArguments.roles))


def output_frames(model: Any, length: int) -> int:
    """Number of frames for which a speech model computes logits.

    ``length`` is the length of the input: samples, or frames of features.
    """
    for name in ("_get_feat_extract_output_lengths", "_get_subsampling_output_length"):
        output_length = getattr(model, name, None)
        if output_length is not None:
            return max(0, int(output_length(torch.tensor([length]))[0]))
    raise missing("output_frames")


def vocabulary(name: str, config: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Raises:
        CheckpointError: there is no tokenizer, its padding token is not the blank of the model's head, or it has more
            tokens than the head.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = load_part(AutoTokenizer, name)
    except CheckpointError as error:
        raise CheckpointError(
            f"{name!r} has no vocabulary; add --new-vocabulary to make one from the transcripts."
        ) from error
    if (
        tokenizer.pad_token_id is None
        or tokenizer.pad_token_id != config.pad_token_id
        or len(tokenizer) > config.vocab_size
    ):
        raise CheckpointError(
            f"The vocabulary of {name!r} ({len(tokenizer)} tokens, padding {tokenizer.pad_token_id}) does not fit its "
            f"head ({config.vocab_size} tokens, blank {config.pad_token_id}); add --new-vocabulary to make both from "
            "the transcripts."
        )
    return tokenizer


def check_characters(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise :class:`DataError` if transcripts have characters that the vocabulary lacks."""

    def knows(character: str) -> bool:
        ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(character))
        return None not in ids and tokenizer.unk_token_id not in ids

    lacking = sorted(character for character in {*"".join(texts)} if not knows(character))
    if not lacking:
        return
    example = next(text for text in texts if {*text} & {*lacking})
    advice = "leave them out of the data, or add --new-vocabulary"
    for case in ("lower", "upper"):
        if all(knows(CASES[case](character)) for character in lacking):
            advice = f"add --letter-case {case}"
            break
    raise DataError(
        f"Transcripts have characters that the vocabulary lacks: {listed(map(repr, lacking))} (first in "
        f"{example[:40]!r}); {advice}."
    )


def character_tokenizer(texts: Sequence[str]) -> transformers.Wav2Vec2CTCTokenizer:
    """A tokenizer with a new vocabulary.

    Its tokens are CTC's blank, an unknown token, the space between words, and the characters of the transcripts.
    """
    characters = sorted({*"".join(texts)} - {" "})
    if "|" in characters:
        raise DataError(
            "Transcripts contain '|', but a new vocabulary uses '|' for the space between words; leave it out of them."
        )
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "|", *characters])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vocab.json")
        path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return transformers.Wav2Vec2CTCTokenizer(
            str(path),
            unk_token="[UNK]",
            pad_token="[PAD]",
            word_delimiter_token="|",
            bos_token=None,
            eos_token=None,
        )


def speech_processor(config: Any, extractor: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """transformers' processor for the model type, made of a feature extractor and a tokenizer."""
    name = PROCESSOR_MAPPING_NAMES.get(
        config.model_type.removeprefix(GENERIC_TYPE).removeprefix("long_"), "Wav2Vec2Processor"
    )
    return getattr(transformers, name)(extractor, tokenizer)
