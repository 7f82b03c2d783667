"""Settings of a search, and its budget: the maximum time for the attention of all layers.

This file does not import torch, because the command line reads the help texts of the settings when it starts.
"""
# ruff: noqa: RUF009 (a setting is a dataclasses.field)

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..conversion.settings import ConversionConfig, Settings, documented, of_conversion, setting
from ..errors import OptionError

if TYPE_CHECKING:
    from ..inspect import Candidate


UNITS = {"": 1.0, "%": 0.01, "s": 1.0, "ms": 1e-3}
"""Unit of a typed budget -> factor to a share, or to seconds."""
TYPED = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z%]*)\s*")
"""A number and a unit."""
BUDGET = "0.25"
"""Default budget: this share of the time of full attention."""


@dataclass(frozen=True)
class Budget:
    """A limit on the time for the attention of all layers."""

    value: float  # seconds, or a share of the time of full attention in every layer
    unit: str  # "s" for seconds, "" for a share

    @classmethod
    def read(cls, text: str | float | Budget) -> Budget:
        """Read ``0.25``, ``25%``, ``1.5s`` or ``800ms``.

        Raises:
            OptionError: any other text, or a budget of 0.
        """
        if isinstance(text, Budget):
            return text
        match = TYPED.fullmatch(str(text))
        if match is None or match[2].lower() not in UNITS or float(match[1]) == 0:
            raise OptionError(
                f"The budget {str(text)!r:.60} is not understood; give a number above 0 such as 0.25 (of full "
                "attention's time) or 1.5s."
            )
        typed = match[2].lower()
        return cls(float(match[1]) * UNITS[typed], "s" if typed in ("s", "ms") else "")

    def limit(self, full: float) -> float:
        """The limit in seconds. ``full``: the time of full attention in every layer, in seconds."""
        if self.unit == "":
            return self.value * full
        return self.value

    def __str__(self) -> str:
        if self.unit == "":
            return f"{self.value:g} of full attention's time"
        return readable_seconds(self.value)

    def like(self, seconds: float, full: float) -> str:
        """The text of a budget with the same unit that allows this many ``seconds``. The number is rounded up.

        full: the time of full attention in every layer, in seconds.
        """
        value = seconds
        if self.unit == "":
            value = seconds / full
        digits = 4
        if value >= 1:
            digits = max(0, 3 - len(str(int(value))))
        step = 10.0**-digits
        return f"{-(-value // step) * step:.{digits}f}{self.unit}"


def readable_seconds(value: float) -> str:
    """A duration in seconds as text, such as ``1.25 s`` or ``830 ms``."""
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


@dataclass(frozen=True)
class SearchConfig(Settings):
    budget: str | float | Budget = setting(
        BUDGET,
        "What the attention of all layers may cost for one text: a share of full attention's time (0.25), or "
        "seconds (1.5s).",
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
        if self.pieces < 1:
            raise OptionError("At least one piece of text must be read; for example pieces=4.")

    def conversion(self) -> ConversionConfig:
        """The settings of the conversion for which a design is searched."""
        return ConversionConfig(
            max_length=self.length,
            image_size=self.image_size,
            audio_seconds=self.audio_seconds,
            positions=self.positions,
            revision=self.revision,
            token=self.token,
        )


documented(SearchConfig, "Settings of a search, one object or keywords of `search_design`.")
