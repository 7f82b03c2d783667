"""Utterances with transcripts in training: the options, the data and the notes that CTC and encoder-decoders share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, Wav2Vec2Processor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from hf_longattn.data.sources import DataError, train_test_split
from hf_longattn.data.transcripts import load_transcribed, rewritten
from hf_longattn.errors import OptionError
from hf_longattn.files import GENERIC_TYPE
from hf_longattn.training.args import LabelledDataArguments, argument, check_positive
from hf_longattn.training.results import Scores, counted, score_in_words, sources_in_words

LeftOut = dict[str, list[str]]
"""Why utterances are left out, "seconds" or "transcript" -> their names."""


@dataclass
class UtteranceArguments(LabelledDataArguments):
    """Utterances with transcripts, and how they become inputs."""

    audio_column: str = argument(
        "", "The column that holds the audio files, or their paths relative to the table; default: audio, file_name, audio_filepath, path."
    )
    text_column: str = argument(
        "", "The column that holds the transcripts; default: transcription, text, sentence, transcript or normalized_text."
    )
    resample: bool = argument(False, "Convert audio files of another sampling rate to the model's.")
    mono: bool = argument(False, "Mix the channels of audio files with several.")
    letter_case: str = argument("keep", "Letters of the transcripts: keep, lower or upper.")
    max_seconds: float | None = argument(None, "Leave out longer audio files; default: all that the model reads whole.")

    @property
    def transcript_column(self) -> str:
        """The column of transcripts; "" = the first that has one of the usual names."""
        return self.text_column

    def check_utterances(self) -> None:
        """Refuse values that do not fit utterances."""
        if self.max_length is not None:
            raise OptionError("--max-length has no effect on audio files, which are kept whole; give --max-seconds instead.")
        check_positive(self, "max_seconds")
        rewritten("", self.letter_case)
        if self.audio_column and self.audio_column == self.transcript_column:
            raise OptionError(f"--audio-column and --text-column are both {self.audio_column!r}; name two columns.")


def read_utterances(args: UtteranceArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Training and evaluation utterances; see :func:`train_test_split`.

    Raises:
        DataError: as :func:`load_transcribed`.
        OptionError: too few rows to hold some back.
    """

    def read(source: str, split: str) -> Dataset:
        rows = load_transcribed(source, split=split, audio_column=args.audio_column, text_column=args.transcript_column)
        return with_texts(rows, [rewritten(text, args.letter_case) for text in rows["text"]])

    return train_test_split(args, read, seed)


def with_texts(rows: Dataset, texts: Sequence[str]) -> Dataset:
    """Rows with other transcripts."""
    return rows.remove_columns("text").add_column("text", list(texts))


def check_left(args: UtteranceArguments, rows: Dataset, held_out: Dataset) -> None:
    """Refuse data of which no utterance is left.

    Raises:
        DataError: there are no rows to train on, or none to evaluate on.
    """
    for name, part in ((", ".join(args.data), rows), (args.validation or ", ".join(args.data), held_out)):
        if not len(part):
            raise DataError(
                f"No utterance of {name} can be used: all exceed --max-seconds, or are shorter than their transcripts; raise it."
            )


def processor_of(config: PreTrainedConfig, extractor: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The processor of a model's architecture, of its feature extractor and a tokenizer."""
    name = PROCESSOR_MAPPING_NAMES.get(config.model_type.removeprefix(GENERIC_TYPE).removeprefix("long_"))
    return (Wav2Vec2Processor if name is None else getattr(transformers, name))(extractor, tokenizer)


def log_of(rows: Dataset, held_out: Dataset, left_out: LeftOut, held_left_out: LeftOut) -> dict[str, Any]:
    """The entries of a log about the utterances of a run."""
    return {
        "utterances": {"train": len(rows), "held_out": len(held_out)},
        "seconds": {"train": sum(rows["seconds"]), "held_out": sum(held_out["seconds"]), "longest": max(rows["seconds"])},
        "left_out": {reason: list(dict.fromkeys(names + held_left_out[reason])) for reason, names in left_out.items()},
    }


def utterances_in_words(log: Mapping[str, Any]) -> str:
    """The training data of a run for a card."""
    seconds = log["seconds"]
    return (
        f"{counted(log['utterances']['train'], 'utterance')} of {sources_in_words(log['settings'])}, {seconds['train'] / 3600:.2f} hours, "
        f"the longest of {seconds['longest']:.0f} seconds"
    )


def error_rates_in_words(scores: Scores) -> str:
    """The error rates of an evaluation in words."""
    return f"{score_in_words(scores, 'wer')}, {score_in_words(scores, 'cer')}"


def left_out_in_words(log: Mapping[str, Any], notes: Mapping[str, str]) -> list[str]:
    """One line for each reason for which utterances were left out.

    Args:
        notes: reason -> its words.
    """
    return [
        f"left out, since {'it is' if len(names) == 1 else 'they are'} {notes[reason]}: {counted(len(names), 'utterance')}, "
        f"the first {names[0]}"
        for reason, names in log["left_out"].items()
        if names
    ]
