"""Utterances with transcripts, for CTC and for encoder-decoders: reading, tokens, and batches."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Value
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Wav2Vec2CTCTokenizer

from hf_longattn.data.audio import RECORDING_FILES, Hearing, Samples
from hf_longattn.data.files import CELL, file_rows
from hf_longattn.data.sources import UTF_8, DataError, check_column, named_columns, read_source, saved_by_datasets
from hf_longattn.data.tokenization import IGNORED
from hf_longattn.errors import OptionError, encoding_sentence

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables of a folder of audio files, as ``datasets`` reads an ``audiofolder``."""
COLUMNS = {
    "audio": ("audio", "file_name", "audio_filepath", "path", "file"),
    "text": ("transcription", "text", "sentence", "transcript", "normalized_text"),
}
"""Columns that are recognised: those of ``audiofolder``, LibriSpeech, Common Voice, VoxPopuli and NeMo's manifests."""
CASES: dict[str, Callable[[str], str]] = {"keep": str, "lower": str.lower, "upper": str.upper}
"""Treatment of the case of letters -> function."""
UNKNOWN = ("refuse", "drop")
"""Treatments of characters that the vocabulary lacks."""
MOST_NAMED = 20
"""Characters that a message names."""
PADDING, UNKNOWN_TOKEN, WORD_DELIMITER = "[PAD]", "[UNK]", "|"
"""Tokens of a new vocabulary: CTC's blank, which is also the padding, the unknown token, and the space between words."""


def load_transcribed(source: str, *, split: str = "train", audio_column: str = "", text_column: str = "") -> Dataset:
    """Read the paths and transcripts of utterances. :func:`read_audio` reads the sound.

    Args:
        source: a folder with ``metadata.csv``, ``.jsonl`` or ``.parquet`` (``file_name`` and ``transcription``, as ``datasets`` reads an
            ``audiofolder``); a folder of audio files, each with a .txt file of the same name; either for each split, in a folder of its
            name; or a table, a folder written by ``datasets``, or a name on the Hub: see :func:`read_source`.
        split: which split, if the source has several.
        audio_column: the column of audio files: ``datasets.Audio``, bytes, or paths relative to the table; "" = the first existing one of
            ``COLUMNS["audio"]``.
        text_column: the column of transcripts; "" = the first of ``COLUMNS["text"]``.

    Returns:
        A dataset with the columns ``audio`` (path or bytes), ``text``, in one line, and ``name``, the row's name in messages.

    Raises:
        DataError: the source cannot be read, a column is missing or holds something else, or a row has no audio file or no transcript.
    """
    path = Path(source)
    if path.is_dir() and not saved_by_datasets(path):
        roots = [path / split, path] if (path / split).is_dir() else [path]
        table = next((root / name for root in roots for name in METADATA if (root / name).is_file()), None)
        if table is None:
            return _files_with_texts(roots[0])
        source = str(table)
    data = read_source(source, split)
    columns = named_columns(data, COLUMNS, {"audio": audio_column, "text": text_column}, source)
    if missing := next((role for role in COLUMNS if role not in columns), None):
        raise DataError(
            f"{source} has the columns {', '.join(data.column_names)}, and none of them is called {', '.join(COLUMNS[missing])}; name the "
            f"one with {'audio files' if missing == 'audio' else 'transcripts'} by --{missing}-column."
        )
    check_column(data, columns["text"], source, "--text-column", text=True)
    rows = file_rows(RECORDING_FILES, data, columns["audio"], source)
    return _with_texts(rows, data[columns["text"]], "leave such rows out")


def _files_with_texts(root: Path) -> Dataset:
    """The audio files of a folder, each with the text of the .txt file that has its name."""
    files = RECORDING_FILES.files(root)
    if bare := [file for file in files if not file.with_suffix(".txt").is_file()]:
        raise DataError(
            f"{str(root)!r} has no {METADATA[0]}, and {len(bare):,} of its {len(files):,} audio files have no transcript, the first "
            f"{str(bare[0])!r}; write {bare[0].with_suffix('.txt').name} next to it, or {METADATA[0]} with file_name,transcription."
        )
    cells = [{"path": str(file), "bytes": None} for file in files]
    features = Features({"audio": CELL, "name": Value("string")})
    rows = Dataset.from_dict({"audio": cells, "name": [cell["path"] for cell in cells]}, features=features)
    texts = [_transcript(file.with_suffix(".txt")) for file in files]
    return _with_texts(rows, texts, "leave such audio files out")


def _transcript(file: Path) -> str:
    try:
        return file.read_text(encoding=UTF_8)
    except UnicodeDecodeError as error:
        raise DataError(encoding_sentence(file, error)) from error


def _with_texts(rows: Dataset, texts: Sequence[str | None], otherwise: str) -> Dataset:
    """Rows with their transcripts, whose white space becomes single spaces.

    Raises:
        DataError: one is empty, or there are no rows.
    """
    lines = [" ".join((text or "").split()) for text in texts]
    if not lines:
        raise DataError("There are no utterances in the data; give others.")
    if "" in lines:
        raise DataError(f"{rows['name'][lines.index('')]} has no transcript; {otherwise}.")
    return rows.add_column("text", lines)


def rewritten(text: str, case: str) -> str:
    """A transcript with its letters in one case.

    Raises:
        OptionError: there is no such case.
    """
    if case not in CASES:
        raise OptionError(f"--letter-case must be one of {', '.join(CASES)}, not {case!r}.")
    return CASES[case](text)


def without_unknown(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, unknown: str) -> list[str]:
    """Transcripts of characters that the vocabulary has.

    Args:
        unknown: "refuse", or "drop", which leaves such characters out.

    Raises:
        DataError: a transcript has unknown characters, which ``unknown`` refuses, or no known ones.
    """
    counts = Counter(character for text in texts for character in set(text))
    lacking = sorted(character for character in counts if not knows(tokenizer, character))
    if not lacking:
        return list(texts)
    if unknown == "refuse":
        named = " ".join(map(repr, lacking[:MOST_NAMED]))
        others = f" and {len(lacking) - MOST_NAMED} others" if len(lacking) > MOST_NAMED else ""
        cases = (case for case in CASES if all(knows(tokenizer, CASES[case](character)) for character in lacking))
        fitting = next(cases, None)
        advice = f"add --letter-case {fitting}" if fitting else "add --unknown-characters drop, or --new-vocabulary for a new one"
        raise DataError(
            f"Transcripts have characters that the vocabulary lacks: {named}{others} (first in {_first(texts, lacking)!r}); {advice}."
        )
    table = str.maketrans(dict.fromkeys(lacking, ""))
    cleaned = [" ".join(text.translate(table).split()) for text in texts]
    if "" in cleaned:
        raise DataError(f"The transcript {texts[cleaned.index('')]!r} has no character of the vocabulary; leave its row out.")
    return cleaned


def _first(texts: Sequence[str], characters: Sequence[str], limit: int = 40) -> str:
    """The beginning of the first text with one of the characters."""
    text = next(text for text in texts if set(text) & set(characters))
    return text if len(text) <= limit else f"{text[:limit]} …"


def knows(tokenizer: PreTrainedTokenizerBase, character: str) -> bool:
    """Whether a vocabulary can write a character."""
    ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(character))
    return None not in ids and tokenizer.unk_token_id not in ids


def character_tokenizer(texts: Sequence[str]) -> Wav2Vec2CTCTokenizer:
    """A new vocabulary of all characters of some transcripts, sorted, with a space between words, an unknown token and CTC's blank."""
    characters = sorted({character for text in texts for character in text} - {" "})
    if WORD_DELIMITER in characters:
        raise DataError(f"Transcripts contain {WORD_DELIMITER!r}, which in a vocabulary is the space between words; leave it out of them.")
    return ctc_tokenizer(characters)


def ctc_tokenizer(tokens: Sequence[str]) -> Wav2Vec2CTCTokenizer:
    """A tokenizer of CTC's blank, an unknown token, a space between words, and ``tokens``, numbered in this order."""
    vocabulary = {token: number for number, token in enumerate([PADDING, UNKNOWN_TOKEN, WORD_DELIMITER, *tokens])}
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
) -> tuple[Dataset, dict[str, list[str]]]:
    """Read every utterance once, so that a bad one is refused before the training.

    Args:
        data: rows of :func:`load_transcribed`.
        labels: the tokens of each transcript.
        length: the length of a sound, by which batches are grouped.
        fits: whether the model can write these labels for a sound of this length. CTC cannot write more than one label a frame.
        most_seconds: longer utterances are left out; ``None`` = no limit.

    Returns:
        The rows with ``labels``, ``length`` and ``seconds``, and the names of rows that are left out: "seconds" (too long) and
        "transcript" (its labels do not fit).

    Raises:
        InputError: as :func:`read_audio`.
    """
    lengths, seconds, keep = [], [], []
    left_out: dict[str, list[str]] = {"seconds": [], "transcript": []}
    for number, row in enumerate(data.select_columns(["audio", "name"])):
        sound = hearing.samples(row)
        lengths.append(length(sound))
        seconds.append(len(sound) / hearing.sampling_rate)
        if most_seconds is not None and seconds[-1] > most_seconds:
            left_out["seconds"].append(row["name"])
        elif not fits(labels[number], lengths[-1]):
            left_out["transcript"].append(row["name"])
        else:
            keep.append(number)
    rows = data.add_column("labels", labels).add_column("length", lengths).add_column("seconds", seconds)
    return rows.select(keep), left_out


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
