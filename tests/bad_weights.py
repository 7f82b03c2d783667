"""Ways in which a weight file can be bad: name -> (damage, words of the sentence that refuses it)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from tests.damage import Cases, Damage, dangling, edit_header, edit_tensor, instead, join, loop, outside, parts, unreadable, weights


def cut(count: int) -> Damage:
    """The weight file's first bytes; counted from its end where negative."""
    return lambda source: weights(source).write_bytes(weights(source).read_bytes()[:count])


def header_length(change: int | None = None, exact: int = 0) -> Damage:
    def damage(source: Path) -> None:
        raw = weights(source).read_bytes()
        length = exact if change is None else int.from_bytes(raw[:8], "little") + change
        weights(source).write_bytes(length.to_bytes(8, "little") + raw[8:])

    return damage


def header_text(text: bytes) -> Damage:
    return lambda source: join(weights(source), text, parts(weights(source))[1])


def header_twice(source: Path) -> None:
    """The header names its first tensor twice, as two different ones."""
    header, data = parts(weights(source))
    name = next(name for name in header if name != "__metadata__")
    other = json.dumps({name: {**header[name], "shape": [1, *header[name]["shape"]]}})
    join(weights(source), (json.dumps(header)[:-1] + ", " + other[1:]).encode(), data)


def instead_of_weights(content: bytes) -> Damage:
    return lambda source: weights(source).write_bytes(content)


def field(name: str, value: Any) -> Damage:
    """A field of the first tensor's entry in the header; `...` takes it out."""

    def edit(header: dict[str, Any], tensor: str) -> None:
        header[tensor] = {key: one for key, one in {**header[tensor], name: value}.items() if one is not ...}

    return edit_header(edit)


def shifted(start: int, end: int) -> Damage:
    def edit(header: dict[str, Any], tensor: str) -> None:
        a, b = header[tensor]["data_offsets"]
        header[tensor]["data_offsets"] = [a + start, b + end]

    return edit_header(edit)


def overlapping(header: dict[str, Any], tensor: str) -> None:
    """Every tensor of that size begins where the first does."""
    for entry in header.values():
        if entry.get("shape") == header[tensor]["shape"]:
            entry["data_offsets"] = header[tensor]["data_offsets"]
    header["again"] = header[tensor]


def filled(value: float, match: str = "") -> Damage:
    def edit(weight: torch.Tensor) -> torch.Tensor:
        weight[1, 2] = value
        return weight

    return edit_tensor(edit, match)


def only_pickles(source: Path) -> None:
    for file in [*source.glob("*.safetensors"), *source.glob("*.index.json")]:
        file.unlink()
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04}\x94.")


LFS = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea423c2713d436b5ee50593a9640e0018c1550b5a0002f74190d6caea8\nsize 87102\n"
)
BROKEN = "cannot be loaded"

WEIGHTS: Cases = {
    "one byte short": (cut(-1), BROKEN),
    "header only": (cut(100), BROKEN),
    "no bytes": (cut(0), BROKEN),
    "bytes too many": (lambda source: weights(source).write_bytes(weights(source).read_bytes() + b"more"), BROKEN),
    "header length 0": (header_length(exact=0), BROKEN),
    "header one byte shorter": (header_length(-1), BROKEN),
    "header one byte longer": (header_length(1), BROKEN),
    "header of 10 GB": (header_length(exact=10 * 2**30), BROKEN),
    "header of 2^64 - 1 bytes": (header_length(exact=2**64 - 1), BROKEN),
    "header no JSON": (header_text(b"{"), BROKEN),
    "header a list": (header_text(b"[]"), BROKEN),
    "header names a tensor twice": (header_twice, "has the shape"),
    "metadata no text": (edit_header(lambda header, _: header.update(__metadata__={"format": 1})), BROKEN),
    "no dtype": (field("dtype", ...), BROKEN),
    "unknown dtype": (field("dtype", "F13"), BROKEN),
    "dtype twice as wide": (field("dtype", "F64"), BROKEN),
    "negative shape": (field("shape", [-1, 32]), BROKEN),
    "shape of text": (field("shape", "32"), BROKEN),
    "shape overflows": (field("shape", [2**62, 2**62]), BROKEN),
    "offsets overlap": (edit_header(overlapping), BROKEN),
    "offsets leave a gap": (shifted(0, -4), BROKEN),
    "offsets beyond the file": (field("data_offsets", [10**9, 10**9 + 4]), BROKEN),
    "offsets negative": (field("data_offsets", [-4, 0]), BROKEN),
    "a web page": (instead_of_weights(b"<!DOCTYPE html><html><body>404: Not Found</body></html>"), BROKEN),
    "a Git LFS pointer": (instead_of_weights(LFS), "git lfs pull"),
    "a pickle": (instead_of_weights(b"PK\x03\x04" + b"\0" * 200), BROKEN),
    "a folder": (instead("weights", Path.mkdir), "is a folder"),
    "a pipe": (instead("weights", os.mkfifo), "is not a regular file"),
    "a link to nowhere": (instead("weights", dangling), "link"),
    "a link to itself": (instead("weights", loop), "link"),
    "a link to another folder": (instead("weights", outside), "outside"),
    "not readable": (unreadable("weights"), "Permission denied"),
    "gone": (lambda source: weights(source).unlink(), "has no weights, or |No such file"),
    "only pickles": (only_pickles, "only as pickle"),
    "NaN": (filled(float("nan")), "NaN or infinit"),
    "a matrix is missing": (edit_tensor(lambda weight: None), "missing"),
    "a matrix of one more row": (edit_tensor(lambda weight: torch.cat([weight, weight[:1]])), "shape|conversion of the weights"),
    "a matrix without rows": (edit_tensor(lambda weight: weight[:0]), "shape|conversion of the weights"),
    "a number for a matrix": (edit_tensor(lambda weight: weight.sum()), "shape|conversion of the weights"),
    "whole numbers": (edit_tensor(lambda weight: weight.long()), "holds I64 numbers"),
    "truth values": (edit_tensor(lambda weight: weight > 0), "holds BOOL numbers"),
    "complex numbers": (edit_tensor(lambda weight: weight.to(torch.complex64)), "holds C64 numbers"),
}
"""Of the weight file, or the last of several."""
