"""Settings of a search, and its budget: the maximum cost of the attention of all layers.

Used by the command line and the search. Imports nothing heavy, as ``conversion/settings.py``.
"""
# ruff: noqa: RUF009 (a setting is a dataclasses.field)

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.filesize import decimal

from ..conversion.settings import ConversionConfig, Settings, documented, of_conversion, setting
from ..errors import OptionError

if TYPE_CHECKING:
    from ..inspect import Candidate


UNITS = {
    "": 1.0,
    "%": 0.01,
    "s": 1.0,
    "ms": 1e-3,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
TYPED = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z%]*)\s*")
BUDGET = "0.25"
"""Default budget, as a share of the time of full attention."""
EXAMPLES = "0.25 (of full attention's time), 1.5s, or 200MB"


@dataclass(frozen=True)
class Budget:
    """A limit on time or memory.

    value: seconds, bytes, or a share of the time of full attention in every layer.
    unit: "s", "B", or "" for a share.
    """

    value: float
    unit: str

    @classmethod
    def read(cls, text: str | float | Budget) -> Budget:
        """Read ``0.25``, ``25%``, ``1.5s``, ``800ms``, ``200MB`` or ``2GiB``.

        Raises:
            OptionError: any other text, or a budget of 0.
        """
        if isinstance(text, Budget):
            return text
        match = TYPED.fullmatch(str(text))
        if match is None or match[2].lower() not in UNITS or float(match[1]) == 0:
            raise OptionError(
                f"The budget {str(text)!r:.60} is not understood; give a number above 0 such as {EXAMPLES}."
            )
        typed = match[2].lower()
        unit = "" if typed in ("", "%") else "s" if typed in ("s", "ms") else "B"
        return cls(float(match[1]) * UNITS[typed], unit)

    @property
    def of_memory(self) -> bool:
        return self.unit == "B"

    def limit(self, full: float) -> float:
        """The limit in seconds or bytes. ``full``: seconds of full attention in every layer, for a budget that is a
        share."""
        return self.value * full if self.unit == "" else self.value

    def __str__(self) -> str:
        if self.unit == "":
            return f"{self.value:g} of full attention's time"
        return readable_seconds(self.value) if self.unit == "s" else decimal(int(self.value))

    def like(self, amount: float, full: float) -> str:
        """``amount`` as a budget text of the same unit, rounded up so that it suffices."""
        if self.unit == "B":
            return f"{-int(-amount // 1000) / 1000:g}MB" if amount < 1e6 else f"{-int(-amount // 1e4) / 100:g}MB"
        value = amount / full if self.unit == "" else amount
        digits = max(0, 2 - len(str(int(value))) + 1) if value >= 1 else 4
        step = 10.0**-digits
        return f"{-(-value // step) * step:.{digits}f}{self.unit}"


def readable_seconds(value: float) -> str:
    """``1.25 s`` or ``830 ms``."""
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


@dataclass(frozen=True)
class SearchConfig(Settings):
    budget: str | float | Budget = setting(
        BUDGET,
        "What the attention of all layers may cost for one text: a share of full attention's time (0.25), seconds "
        "(1.5s) or memory (200MB).",
    )
    length: int | None = of_conversion("max_length")
    image_size: str | int | Sequence[int] | None = of_conversion("image_size")
    audio_seconds: float | None = setting(
        None, "Duration of the result's sounds.", unset="the checkpoint's", type=float, metavar="SECONDS"
    )
    candidates: Sequence[str | Candidate] | None = setting(
        None,
        "A mechanism that layers may run, for example window:window=256. Repeatable.",
        unset="windows of several widths, longformer, bigbird, block_top_k, full; for images those on grids",
        flag="--candidate",
        type=list[str],
        metavar="MECHANISM[:NAME=VALUE,...]",
    )
    score: str = setting(
        "mass",
        "How a candidate is judged in a layer: mass, the share of the softmax that it keeps, or kl, how much it "
        "changes the predictions.",
    )
    pieces: int = setting(4, "Pieces of TEXT, or images, that are read at most.", type=int, minimum=1)
    compare_at: int | None = setting(
        None,
        "Tokens, pixels of an image's sides, or seconds of sound at which candidates are judged.",
        unset="what the checkpoint was trained to read; for images --image-size, for sound --audio-seconds up to 60",
        type=int,
        minimum=1,
    )
    positions: str = setting("auto", "How positions are extended, as --positions of `longattn convert`.")
    device: str | None = setting(None, "cpu, cuda …", unset="the accelerator, if there is one")
    revision: str | None = of_conversion("revision")
    token: str | bool | None = of_conversion("token")

    def __post_init__(self) -> None:
        if self.score not in ("mass", "kl"):
            raise OptionError(f"score is {self.score!r}, but must be 'mass' or 'kl'.")
        if self.pieces < 1:
            raise OptionError("At least one piece of text must be read; for example pieces=4.")

    def conversion(self) -> ConversionConfig:
        return ConversionConfig(
            max_length=self.length,
            image_size=self.image_size,
            audio_seconds=self.audio_seconds,
            positions=self.positions,
            revision=self.revision,
            token=self.token,
        )


documented(SearchConfig, "Settings of a search, one object or keywords of `search_design`.")
