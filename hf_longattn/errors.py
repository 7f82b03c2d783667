"""The errors of this package. Each message is one sentence: what is wrong, what was expected, what to type."""

from __future__ import annotations

import codecs
import difflib
import importlib.util
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class LongAttentionError(ValueError):
    """Base of all errors of this package.

    A message may quote text from a file. Its control characters are escaped, so that they cannot control a terminal.
    Very long words and messages are shortened.
    """

    def __str__(self) -> str:
        return visible(bounded(super().__str__()))


class OptionError(LongAttentionError):
    """An option or name that is unknown, taken, of the wrong type, invalid, or impossible for the model."""


class UsageError(OptionError):
    """A command line that cannot be parsed: exit code 2."""


class InputError(LongAttentionError):
    """An input, such as a mask, a length or a grid, that does not fit the model or the mechanism."""


class CheckpointError(LongAttentionError):
    """A checkpoint that is missing, incomplete, damaged, unsafe or unsupported, or a file that cannot be written."""


class BackendError(LongAttentionError):
    """An operation that the model, an installed library or this processor does not support."""


class MissingExtraError(LongAttentionError, ImportError):
    """A package that an optional part of hf_longattn needs is not installed."""


class HubError(LongAttentionError):
    """The Hub cannot be reached or refuses the request."""


EXTRAS = {
    "audio": ("scipy", "soundfile"),
    "compress": ("torchao",),
    "images": ("PIL", "torchvision"),
    "metrics": ("jiwer", "rouge_score", "seqeval"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("openvino",),
    "peft": ("peft",),
    "sentence": ("sentence_transformers",),
}
"""Extra -> import names of its packages, as in pyproject.toml."""


def check_extra(extra: str, *packages: str) -> None:
    """Raise an error if a package of an optional extra is not installed. No package is imported for this.

    Args:
        extra: the extra's name, a key of :data:`EXTRAS`.
        packages: import names of the needed packages. By default, the extra needs all its packages.

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
    """Turn any error that another library raises in this context into a :class:`CheckpointError`.

    The message is ``what``, a colon, and the library's message. A :class:`LongAttentionError` is raised unchanged.
    """
    try:
        yield
    except LongAttentionError:
        raise
    except BaseException as error:
        # the tokenizers library panics with a BaseException; KeyboardInterrupt and SystemExit pass
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{what}: {in_a_line(error)}.") from error


def shortened(text: str, limit: int = 300) -> str:
    """``text``, cut after ``limit`` characters."""
    return text if len(text) <= limit else f"{text[:limit]} …"


LONG_WORD = re.compile(r"\S{4097,}")
"""A word of more characters than a path can have (4,096)."""
LONGEST_MESSAGE = 10_000
"""Maximum characters of a message."""


def bounded(message: str) -> str:
    """A message with shortened long words, such as a name of 8 MB from a file. The words after them are kept."""
    return shortened(LONG_WORD.sub(lambda match: shortened(match[0]), message), LONGEST_MESSAGE)


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that change how a terminal or a page shows the text around them. These are control characters except tab
and line feed, line separators, and marks of writing direction. The last range is for bytes of a path that are not
UTF-8, which Python reads as surrogates and cannot print."""


def visible(text: str) -> str:
    """``text`` with control characters escaped as in Python, so that text from a file or server is safe to print."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def in_one_line(text: str) -> str:
    """``text`` with escaped line breaks and tabs, for tables and model cards. Otherwise, a line break in a value could
    begin a heading."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def flag(name: str) -> str:
    """The command-line form of a field's name: ``--max-steps`` of ``max_steps``."""
    return f"--{name.replace('_', '-')}"


def error_line(error: object) -> str:
    """The one line that every command prints for an error. It begins with "Error: "."""
    return f"Error: {visible(' '.join(bounded(str(error)).split()))}"


def in_a_line(error: BaseException, limit: int = 300) -> str:
    """The message of another library's error, for use inside a sentence: one line, cut, without the last full stop."""
    message = str(error).split("Exception raised from")[0]  # what follows is torch's stack of C++ calls
    text = " ".join(message.split()).rstrip('." ') or type(error).__name__
    if isinstance(error, KeyError):
        text += " is missing"
    return shortened(text, limit)


def encoding_sentence(what: object, error: UnicodeDecodeError) -> str:
    """The message for a text file that is not UTF-8. It contains the command that converts the file."""
    encoding = "UTF-16" if error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "LATIN1"
    return f"{str(what)!r} is not UTF-8 text ({error}); convert it, for example with iconv -f {encoding} -t UTF-8."


def listed(names: Iterable[str], most: int = 4) -> str:
    """The distinct names in sorted order, such as "a, b, c, d and 5 others" for nine names if ``most`` is 4."""
    names = sorted(set(names))
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} others"


def nearest(name: str, choices: Iterable[str], least: float = 0.5) -> str:
    """The hint ``" Did you mean 'x'?"`` with the choice that is most similar to ``name``.

    The hint is empty if no choice has a similarity of at least ``least``, from 0 to 1.
    """
    close = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=least)
    return f" Did you mean {close[0]!r}?" if close else ""
