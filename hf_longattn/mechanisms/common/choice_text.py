"""Mechanisms with their options in one line of text, for command lines, recipes and short configurations:

    CHOICE   window                     window:window=256,dilation=2
    MEMBERS  window:window=256+strided:stride=64
    RULES    0-5=window:window=64;6-11=full        numbered: layers, counted from 0
             0-5:window=64;11:mechanism=full       numbered, changing options of the default mechanism
             window:window=256,window:window=256,full      or  2*window:window=256,full       not numbered: repeated in turn
    TOWERS   text=window:window=64,vision=full     towers of a model, each with a choice

A value that contains these signs goes in brackets: ``union:of=[window:window=64,dilation=2+strided]``. Everything is read into plain
mappings such as ``{"mechanism": "window", "window": "256"}``; the options of the mechanisms check and convert the values.

Nothing here knows which mechanisms there are, so that the command line refuses a typo before it imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import OptionError, nearest

NUMBERED = re.compile(r"\s*(\d[\d\s,-]*)([=:])(.*)", re.DOTALL | re.ASCII)
REPEATED = re.compile(r"\s*(\d+)\s*\*(.*)", re.DOTALL | re.ASCII)
HIGHEST_LAYER = 9999
"""Largest number of a layer: above any model's, and it bounds what a typo can allocate."""
IN_TURN = "in_turn"
"""Key of ``layers`` for the mechanisms that layers take in turn."""
TOWERS = ("text", "vision", "audio", "video", "speech", "qformer", "backbone", "depth_decoder", "codec", "encoder", "decoder")
"""Names of towers: in transformers, those of the config fields that hold a tower's config (``text_config``)."""
OPTION = re.compile(r"\s*\w+\s*=")
LETTER = re.compile(r"\s*[A-Za-z_\[]")


def read_choice(text: str, pairs: Sequence[str] = ()) -> dict[str, Any]:
    """``window:window=256`` as ``{"mechanism": "window", "window": "256"}``, with further options from ``NAME=VALUE`` pairs."""
    name, _, options = _unwrapped(text).partition(":")
    if not name.strip() or OPTION.match(name):
        raise OptionError(f"{text!r} must read MECHANISM[:NAME=VALUE,...], for example window:window=256.")
    return {"mechanism": name.strip(), **read_options(options), **read_options(",".join(pairs))}


def read_options(text: str) -> dict[str, Any]:
    """``window=256,dilation=2`` as a mapping of text to text; lists are joined by plus signs, as in ``global_tokens=0+7``."""
    return {name: _unwrapped(value) for name, value in read_pairs(split(text, ",")).items()}


def read_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """``["window=256", "dilation=2"]`` as a mapping of text to text; dashes in names become underscores."""
    values: dict[str, str] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name:
            raise OptionError(f"{pair!r} must read NAME=VALUE, for example window=512.")
        if name in values:
            raise OptionError(f"{name!r} is given twice.")
        values[name] = value.strip()
    return values


def read_members(text: str) -> list[dict[str, Any]]:
    """``window:window=256+strided:stride=64`` as a list of choices; a piece that starts with a digit continues the list before it."""
    return [read_choice(piece) for piece in _joined(split(_unwrapped(text), "+"), "+", LETTER.match)]


def read_rules(text: str) -> list[tuple[list[int] | None, dict[str, Any]]]:
    """Rules in order: the numbers that each applies to (``None``: in turn) and its mapping."""
    rules: list[tuple[list[int] | None, dict[str, Any]]] = []
    for piece in split(text, ";"):
        if numbered := NUMBERED.fullmatch(piece):
            where, sign, what = numbered.groups()
            rules.append((read_numbers(where), read_choice(what) if sign == "=" else read_options(what)))
            continue
        for choice in _joined(split(piece, ","), ",", lambda part: not OPTION.match(part)):
            times, choice = repeated.groups() if (repeated := REPEATED.fullmatch(choice)) else ("1", choice)
            if len(times) > 4:
                raise OptionError(
                    f"{piece.strip()!r} repeats a mechanism more than {HIGHEST_LAYER} times, but no model has so many layers."
                )
            rules += [(None, read_choice(choice)) for _ in range(int(times))]
    if not rules:
        raise OptionError(f"{text!r} names no mechanism; write for example 0-5=window:window=64;6-11=full.")
    return rules


def read_towers(text: str) -> dict[str, dict[str, Any]]:
    """``text=window:window=64,dilation=2,vision=full`` as ``{"text": {"mechanism": "window", …}, "vision": {"mechanism": "full"}}``.

    A piece between commas that begins with the name of a tower and "=" starts a tower; any other is an option of the tower before it.
    Values with such signs go in brackets: ``vision=full:layers=[0-5=window:window=64;6-11=window2d]``.

    Raises:
        OptionError: an unknown tower, one that is given twice or without a mechanism, or no tower at all.
    """
    example = "write for example text=full,vision=window:window=64"
    towers: dict[str, str] = {}
    for piece in split(text, ","):
        name, sign, value = (part.strip() for part in piece.partition("="))
        if sign and name in TOWERS:
            if name in towers:
                raise OptionError(f"The tower {name!r} is given twice; put all its options after one {name}=.")
            if not value:
                raise OptionError(f"The tower {name!r} has no mechanism; {example}.")
            towers[name] = value
        elif not towers or len(split(value, "=")) > 1:  # an option's value has no such sign outside brackets
            meant = f"{name!r} is not a tower; expected {', '.join(TOWERS)}" if sign else f"{piece.strip()!r} names no tower"
            raise OptionError(f"{meant}; {example}.{nearest(name, TOWERS) if sign else ''}")
        else:
            towers[next(reversed(towers))] += f",{piece}"
    if not towers:
        raise OptionError(f"{text!r} names no tower; {example}.")
    return {name: read_choice(value) for name, value in towers.items()}


def read_numbers(where: str) -> list[int]:
    """``0-3,7`` as ``[0, 1, 2, 3, 7]``."""
    listed: list[int] = []
    for part in where.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not _is_number(first) or (dash and (not _is_number(last) or int(last) < int(first))):
            raise OptionError(f"{where.strip()!r} must be numbers from 0 to {HIGHEST_LAYER}, for example 0-3,7.")
        listed += range(int(first), int(last or first) + 1)
    return listed


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= HIGHEST_LAYER


def write_choice(values: Mapping[str, Any]) -> str:
    """A mapping with ``mechanism`` as text that reads back as the same mapping."""
    written = ",".join(f"{name}={_written(value)}" for name, value in values.items() if name != "mechanism")
    return values["mechanism"] + (f":{written}" if written else "")


def write_choices(values: Sequence[Mapping[str, Any]]) -> str:
    """Members of a union."""
    return "+".join(write_choice(choice) for choice in values)


def write_numbers(numbers: Sequence[int]) -> str:
    """``[0, 1, 2, 3, 7]`` as ``0-3,7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def split(text: str, sign: str) -> list[str]:
    """The non-empty pieces of ``text`` between occurrences of ``sign`` outside brackets."""
    pieces, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == sign and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [piece for piece in pieces if piece.strip()]


def _joined(pieces: list[str], sign: str, begins: Any) -> list[str]:
    """Append every piece that does not begin a new entry to the one before it."""
    entries: list[str] = []
    for piece in pieces:
        if entries and not begins(piece):
            entries[-1] += sign + piece
        else:
            entries.append(piece)
    return entries


def _unwrapped(text: str) -> str:
    """``text`` without a pair of brackets around all of it, unless it is JSON."""
    text = text.strip()
    return text[1:-1] if text.startswith("[") and text.endswith("]") and not text[1:].lstrip().startswith(("{", "]")) else text


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        nested = any(isinstance(entry, Mapping) for entry in value)
        return f"[{write_choices(value)}]" if nested else "+".join(map(str, value))
    return str(value)
