"""Utterances with transcripts, for CTC and for encoder-decoders: reading, characters, labels and batches."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, Wav2Vec2CTCTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import logging

from hf_longattn.data.audio import Hearing, Samples
from hf_longattn.data.rows import each_part, read_rows
from hf_longattn.data.sources import DataError
from hf_longattn.data.tokenization import IGNORED
from hf_longattn.files import GENERIC_TYPE
from hf_longattn.names import LOGGER

ROLES: dict[str, tuple[str, ...]] = {
    "audio": ("audio", "file_name", "audio_filepath", "path", "file"),
    "text": ("transcription", "text", "sentence", "transcript", "normalized_text"),
}
"""Columns that are recognised: those of ``audiofolder``, LibriSpeech, Common Voice, VoxPopuli and NeMo's manifests."""
CASES: dict[str, Callable[[str], str]] = {"": str, "lower": str.lower, "upper": str.upper}
"""Treatment of the case of letters -> function."""
MOST_NAMED = 20
"""Characters that a message names."""
PADDING, UNKNOWN_TOKEN, WORD_DELIMITER = "[PAD]", "[UNK]", "|"
"""Tokens of a new vocabulary: CTC's blank, which is also the padding, the unknown token, and the space between words."""
logger = logging.get_logger(LOGGER)


def read_utterances(args: Any, seed: int) -> tuple[Dataset, Dataset]:
    """Training and held-out utterances: the columns ``audio`` (path or bytes), ``text``, in one line, and ``name``, for messages.

    Args:
        args, seed: see :func:`read_rows`. ``args.letter_case`` is one of :data:`CASES`.
    """
    case = CASES[args.letter_case]

    def in_one_line(data: Dataset) -> Dataset:
        return data.remove_columns("text").add_column("text", [case(" ".join(text.split())) for text in data["text"]])

    train, held_out = each_part(in_one_line, *read_rows(args, seed, ROLES))
    return train, held_out


def check_characters(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse transcripts with characters that a vocabulary lacks.

    Raises:
        DataError: there are some.
    """

    def knows(character: str) -> bool:
        ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(character))
        return None not in ids and tokenizer.unk_token_id not in ids

    lacking = sorted(character for character in {character for text in texts for character in text} if not knows(character))
    if lacking:
        named = " ".join(map(repr, lacking[:MOST_NAMED]))
        others = f" and {len(lacking) - MOST_NAMED} others" if len(lacking) > MOST_NAMED else ""
        first = next(text for text in texts if set(text) & set(lacking))
        fitting = next((case for case in CASES if all(knows(CASES[case](character)) for character in lacking)), None)
        advice = f"add --letter-case {fitting}" if fitting else "leave them out of the data, or add --new-vocabulary"
        raise DataError(f"Transcripts have characters that the vocabulary lacks: {named}{others} (first in {first[:40]!r}); {advice}.")


def character_tokenizer(texts: Sequence[str]) -> Wav2Vec2CTCTokenizer:
    """A new vocabulary: CTC's blank, an unknown token, a space between words, and all characters of some transcripts, sorted."""
    characters = sorted({character for text in texts for character in text} - {" "})
    if WORD_DELIMITER in characters:
        raise DataError(f"Transcripts contain {WORD_DELIMITER!r}, which in a vocabulary is the space between words; leave it out of them.")
    vocabulary = {token: number for number, token in enumerate([PADDING, UNKNOWN_TOKEN, WORD_DELIMITER, *characters])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vocab.json")
        path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        special = {"unk_token": UNKNOWN_TOKEN, "pad_token": PADDING, "word_delimiter_token": WORD_DELIMITER}
        return Wav2Vec2CTCTokenizer(str(path), bos_token=None, eos_token=None, **special)


def frames_needed(labels: Sequence[int]) -> int:
    """Minimum number of frames for CTC: one for each label, and a blank between equal labels."""
    return len(labels) + sum(first == second for first, second in pairwise(labels))


def to_utterances(
    data: Dataset,
    labels: list[list[int]],
    hearing: Hearing,
    length: Callable[[Samples], int],
    fits: Callable[[list[int], int], bool],
    most_seconds: float | None = None,
) -> Dataset:
    """Read every utterance once, so that a bad one is refused before the training.

    Utterances that are too long, or have longer transcripts than the model writes, are left out with a warning.

    Args:
        data: rows of :func:`read_utterances`.
        labels: the tokens of each transcript.
        length: the length of a sound, by which batches are grouped.
        fits: whether the model can write these labels for a sound of this length.
        most_seconds: ``None`` = no limit.

    Returns:
        The rows with ``labels`` and ``length``.

    Raises:
        InputError: as :func:`read_audio`.
        DataError: no utterance is left.
    """
    lengths, fitting = [], []
    too_long: list[str] = []
    transcript_too_long: list[str] = []
    for number, row in enumerate(data.select_columns(["audio", "name"])):
        sound = hearing.samples(row)
        lengths.append(length(sound))
        if most_seconds is not None and len(sound) / hearing.sampling_rate > most_seconds:
            too_long.append(row["name"])
        elif not fits(labels[number], lengths[-1]):
            transcript_too_long.append(row["name"])
        else:
            fitting.append(number)
    limit = f"are longer than {most_seconds or 0:g} seconds"
    for reason, names in ((limit, too_long), ("have longer transcripts than the model can write", transcript_too_long)):
        if names:
            logger.warning(f"{len(names):,} of {len(data):,} utterances {reason}, and are left out; the first is {names[0]}.")
    if not fitting:
        raise DataError(f"None of the {len(data):,} utterances can be used; give shorter ones, or raise --max-seconds.")
    return data.add_column("labels", labels).add_column("length", lengths).select(fitting)


def speech_processor(config: PreTrainedConfig, extractor: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The processor of a model's architecture, made of its feature extractor and a tokenizer."""
    name = PROCESSOR_MAPPING_NAMES.get(config.model_type.removeprefix(GENERIC_TYPE).removeprefix("long_"), "Wav2Vec2Processor")
    return getattr(transformers, name)(extractor, tokenizer)


class UtteranceCollator:
    """Batches of utterances: the feature extractor's inputs, padded, and ``labels (B, T)``, padded with -100.

    Args:
        hearing: how audio files become inputs.
    """

    def __init__(self, hearing: Hearing) -> None:
        self.hearing = hearing

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch of rows of :func:`to_utterances`.

        Raises:
            InputError: an audio file cannot be read.
        """
        labels = [torch.as_tensor(row["labels"], dtype=torch.long) for row in features]
        padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        return {**self.hearing.batch(features), "labels": padded}
