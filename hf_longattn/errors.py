"""The errors of this package. Each message is one sentence: what is wrong, what was expected, what to type."""

from __future__ import annotations

import codecs
import difflib
import importlib.util
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class LongAttentionError(ValueError):
    """Base of all errors of this package. Control characters are escaped, so that quoted text cannot control a
    terminal, and cut where it is long."""

    def __str__(self) -> str:
        return visible(bounded(super().__str__()))


class OptionError(LongAttentionError):
    """An option or name that is unknown, taken, of the wrong type, invalid, or impossible for the model."""


class UsageError(OptionError):
    """A command line that cannot be parsed: exit code 2."""


class InputError(LongAttentionError):
    """A mask, length, grid, sound or memory that does not fit the model or the mechanism."""


class CheckpointError(LongAttentionError):
    """A checkpoint that is missing, incomplete, damaged, unsafe or unsupported, or a file that cannot be written."""


class BackendError(LongAttentionError):
    """An operation that the model, an installed library or this processor does not support."""


class MissingExtraError(LongAttentionError, ImportError):
    """A package of an optional part of hf_longattn that is missing."""


class HubError(LongAttentionError):
    """The Hub cannot be reached or refuses the request."""


EXTRAS = {
    "audio": ("scipy", "soundfile"),
    "compress": ("torchao",),
    "images": ("PIL", "torchvision"),
    "metrics": ("jiwer", "rouge_score", "seqeval"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "peft": ("peft",),
    "sentence": ("sentence_transformers",),
}
"""Extra -> import names of its packages, as in pyproject.toml."""


def check_extra(extra: str, *packages: str) -> None:
    """Raise an error if a package of an extra is not installed, before slow work or an import. Imports nothing.

    Args:
        extra: the extra's name.
        packages: import names of the packages that are needed; default: all of the extra.

    Raises:
        MissingExtraError: a package is not installed.
    """
    missing = [name for name in packages or EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"The package {missing[0]!r} is not installed; type pip install '.[{extra}]' in a clone of hf_longattn."
        )


@contextmanager
def checkpoint_errors(what: str) -> Iterator[None]:
    """Turn any error of another library's call into the sentence "WHAT: the error."

    Raises:
        CheckpointError: with that sentence. A LongAttentionError is raised unchanged.
    """
    try:
        yield
    except LongAttentionError:
        raise
    except BaseException as error:
        # tokenizers' panic is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{what}: {in_a_line(error)}.") from error


def shortened(text: str, limit: int = 300) -> str:
    """``text`` cut to a length that fits into a sentence."""
    return text if len(text) <= limit else f"{text[:limit]} …"


LONG_WORD, LONGEST_MESSAGE = re.compile(r"\S{4097,}"), 10_000
"""A word that is longer than a path can be, and the maximum number of characters of a message."""


def bounded(message: str) -> str:
    """A message in which values from a file, such as a name of 8 MB, are cut. What follows them stays."""
    return shortened(LONG_WORD.sub(lambda match: shortened(match[0]), message), LONGEST_MESSAGE)


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that change how a terminal or page shows the text around them: control characters except tab and line
feed, line separators and marks of writing direction. Also bytes that are not UTF-8: paths may contain them, and no
stream takes them."""


def visible(text: str) -> str:
    """External text (from a file, a server, a path) with control characters escaped as in Python, safe to show."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def in_one_line(text: str) -> str:
    """``text`` in one line, for names and values in tables and cards. In a card, a line break could begin a
    heading."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def flag(name: str) -> str:
    """The command-line form of a field's name: ``--max-steps`` of ``max_steps``."""
    return f"--{name.replace('_', '-')}"


def error_line(error: object) -> str:
    """The one line that every command prints for an error. It begins with "Error: "."""
    return f"Error: {visible(' '.join(bounded(str(error)).split()))}"


def in_a_line(error: BaseException, limit: int = 300) -> str:
    """The message of another library's error for use in a sentence: one line, shortened, without the last full
    stop."""
    text = " ".join(str(error).split("Exception raised from")[0].split()).rstrip('." ') or type(error).__name__
    return shortened(f"{text} is missing" if isinstance(error, KeyError) else text, limit)


def encoding_sentence(what: object, error: UnicodeDecodeError) -> str:
    """The sentence about a text file in another encoding, with the command that converts it."""
    encoding = "UTF-16" if error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "LATIN1"
    return f"{str(what)!r} is not UTF-8 text ({error}); convert it, for example with iconv -f {encoding} -t UTF-8."


def listed(names: Iterable[str], most: int = 4) -> str:
    """Distinct names in sorted order, as "a, b, c, d and 5 others"."""
    names = sorted(set(names))
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} others"


def nearest(name: str, choices: Iterable[str], least: float = 0.5) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of ``choices``. "" if no similarity (0 to 1) reaches
    ``least``."""
    close = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=least)
    return f" Did you mean {close[0]!r}?" if close else ""
