"""Budgets: what the attention of all layers may cost for one text of the target length, or how many layers keep full attention."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rich.filesize import pick_unit_and_suffix

from ..errors import OptionError

UNITS = {"": 1.0, "%": 0.01, "s": 1.0, "ms": 1e-3, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
TYPED = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z%]*)\s*")
BUDGET = "0.25"
"""The share of full attention's time, if none is given."""
EXAMPLES = "0.25 (of full attention's time), 1.5s, or 200MB"


@dataclass(frozen=True)
class Budget:
    """A limit on time, memory or layers with full attention.

    value: seconds, bytes, a number of layers, or a share of the time of full attention in every layer.
    unit: "s", "B", "layers", or "" for a share.
    """

    value: float
    unit: str

    @classmethod
    def read(cls, text: str | float | Budget) -> Budget:
        """Read ``0.25``, ``25%``, ``1.5s``, ``800ms``, ``200MB`` or ``2GiB``.

        Raises:
            OptionError: anything else, or nothing at all.
        """
        if isinstance(text, Budget):
            return text
        match = TYPED.fullmatch(str(text))
        if match is None or match[2].lower() not in UNITS or float(match[1]) == 0:
            raise OptionError(f"The budget {str(text)!r:.60} is not understood; give a number above 0 such as {EXAMPLES}.")
        unit = match[2].lower()
        kind = "" if unit in ("", "%") else "s" if unit in ("s", "ms") else "B"
        return cls(float(match[1]) * UNITS[unit], kind)

    @classmethod
    def read_layers(cls, text: str | float | Budget) -> Budget:
        """Read a number of layers; raises :class:`OptionError` for anything else."""
        number = str(text).strip()
        if not (number.isascii() and number.isdigit() and int(number)):
            raise OptionError(f"In the mode full-layers the budget is a number of layers, for example --budget 2, not {number!r:.40}.")
        return cls(int(number), "layers")

    @property
    def of_layers(self) -> bool:
        return self.unit == "layers"

    @property
    def of_memory(self) -> bool:
        return self.unit == "B"

    def limit(self, full: float) -> float:
        """The limit in seconds or bytes, where full attention in every layer takes ``full`` seconds."""
        return self.value * full if self.unit == "" else self.value

    def __str__(self) -> str:
        if self.of_layers:
            return f"{self.value}"
        if self.unit == "":
            return f"{self.value:g} of full attention's time"
        return readable_seconds(self.value) if self.unit == "s" else readable_bytes(self.value)

    def like(self, amount: float, full: float) -> str:
        """``amount`` in the form in which this budget is typed, rounded up so that it is enough."""
        if self.unit == "B":
            return f"{-int(-amount // 1000) / 1000:g}MB" if amount < 1e6 else f"{-int(-amount // 1e4) / 100:g}MB"
        value = amount / full if self.unit == "" else amount
        digits = max(0, 2 - len(str(int(value))) + 1) if value >= 1 else 4
        step = 10.0**-digits
        return f"{-(-value // step) * step:.{digits}f}{self.unit}"


def readable_seconds(value: float) -> str:
    """``1.25 s`` or ``830 ms``."""
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def readable_bytes(value: float) -> str:
    """``120 MB``."""
    size, unit = pick_unit_and_suffix(int(value), ["bytes", "kB", "MB", "GB"], 1000)
    return f"{value / size:.3g} {unit}"
