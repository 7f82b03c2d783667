"""A text to read: the user's, or the English text that comes with this package and with Python."""

from __future__ import annotations

import importlib
from pathlib import Path

from ..errors import CheckpointError
from ..files import read_text

LARGEST = 2**30
"""Maximum bytes of the user's text, which is read whole."""
PARAGRAPHS = """\
The lighthouse stands where the river meets the sea. Every evening, before the boats come home, its keeper climbs the
spiral stairs, wipes the salt from the glass and lights the lamp. In a notebook she writes down the wind, the height of
the tide and the names of the ships that pass. The notebooks fill a whole shelf by now, and whoever reads them in order
can follow forty years of weather, trade and patience.

When a storm broke the northern pier in the third winter, the town argued for months about what to do. Some wanted to
rebuild it in stone; others said that the money should go to the school, because a harbour without people who can read
a chart is of no use. In the end they did both, slowly: the school was finished first, and its oldest pupils measured
the sea bed and drew the plans from which the pier was built.

Measuring is mostly waiting. A line with a weight is lowered, the depth is read, the boat moved on by one length, and
the line is lowered again. A single reading says little, since waves lift the boat and currents bend the line; only
when many of them are put side by side does the shape of the ground appear. The keeper compared it to her notebooks:
no page is interesting, she said, but the shelf is.
"""


def verification_text(file: str | Path | None) -> tuple[str, str]:
    """(text, name of its origin), from the user's file. If ``file`` is ``None``, built-in paragraphs and Python's manual."""
    if file is None:
        try:  # 600 kB of English prose, missing in some slim installations
            topics = importlib.import_module("pydoc_data.topics").topics
        except ImportError:
            topics = {}
        return PARAGRAPHS + "\n\n".join(topics[name] for name in sorted(topics)), "built-in English text"
    return text_of(Path(file)), Path(file).name


def text_of(file: Path) -> str:
    """The text of a user's file, without a byte order mark."""
    if file.is_dir():
        raise CheckpointError(f"The text {str(file)!r} is a folder; give one file, for example a book.")
    try:
        text = read_text(file, LARGEST).removeprefix("\ufeff")
    except CheckpointError as error:
        raise CheckpointError(f"The text {error}") from error
    if not text.strip():
        raise CheckpointError(f"The text {str(file)!r} is empty; give another file.")
    return text
