"""Calls of tokenizers, whose files others wrote. What they make of a text is bounded, and their errors are one sentence."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

from tokenizers import normalizers, pre_tokenizers

from .errors import CheckpointError, checkpoint_errors

MOST_GROWTH = 32
"""Maximum bytes that the rules of a tokenizer.json make of one byte. Unicode's compatibility forms make 11 of one (U+FDFA)."""
SAMPLE = "Ünïcode \ufdfa 字 a.b, 1's\n"
"""Text that rules for all characters change."""


def call_tokenizer(tokenizer: Any, *texts: Any, **options: Any) -> Any:
    """The result of ``tokenizer(*texts, **options)``.

    Raises:
        CheckpointError: the tokenizer fails, for example at a regular expression that takes too long.
    """
    with checkpoint_errors("The tokenizer is damaged, or does not fit the text"):
        return tokenizer(*texts, **options)


def check_ids(largest: int, rows: int) -> None:
    """Refuse a token id beyond the rows of a model's table of token embeddings.

    Raises:
        CheckpointError: the tokenizer belongs to another model.
    """
    if largest >= rows:
        raise CheckpointError(
            f"A text has the token id {largest:,}, but the model has {rows:,} token embeddings; the tokenizer belongs to another model."
        )


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that makes far more of a text than it has, or without a sensible maximum length.

    A token takes about 200 bytes of memory, so a few rules could fill it with the tokens of a short text.

    Args:
        tokenizer: just loaded.
        name: of its checkpoint.

    Raises:
        CheckpointError: naming the file and the rule or field.
    """
    longest = getattr(tokenizer, "model_max_length", 1)
    is_count = (type(longest) is int and longest >= 1) or (type(longest) is float and longest > 1e20)  # 1e30 stands for no limit
    if not is_count:
        raise CheckpointError(
            f"The tokenizer_config.json of {name!r} says model_max_length={longest!r:.60}, which must be a whole number of 1 or more; "
            "correct it."
        )
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        return
    file = f"The tokenizer.json of {name!r}"
    with checkpoint_errors(f"{file} is damaged"):
        if (special := backend.num_special_tokens_to_add(False)) >= longest:
            raise CheckpointError(f"{file} puts {special:,} special tokens around a text, but at most {longest:,} are read; correct it.")
        for rule in _rules(backend.post_processor, "processors"):
            for template in (rule.get("single") or [], rule.get("pair") or []):
                texts = [piece["Sequence"]["id"] for piece in template if "Sequence" in piece]
                if len(texts) > len(set(texts)):
                    raise CheckpointError(f"{file} repeats every text in a template; correct it.")
        parts = (
            ("normalizers", normalizers.Sequence, backend.normalizer),
            ("pretokenizers", pre_tokenizers.Sequence, backend.pre_tokenizer),
        )
        steps: list[tuple[str, Any, Any]] = [(key, kind([]), rule) for key, kind, part in parts for rule in _rules(part, key)]
        for key, alone, rule in steps:
            alone.__setstate__(json.dumps({"type": "Sequence", key: [rule]}).encode())
        starts = [(before, after, place) for place, (_, _, rule) in enumerate(steps, 1) for before, after in _replacements(rule)]
        for before, text, first in [(SAMPLE, SAMPLE, 0), *starts]:
            most = MOST_GROWTH * max(1, len(before.encode()))
            for key, alone, _ in steps[first:]:
                if len(text.encode()) <= most:  # what later rules make of a longer text could fill the memory
                    text = alone.normalize_str(text) if key == "normalizers" else "".join(part for part, _ in alone.pre_tokenize_str(text))
            if len(text.encode()) > most:
                raise CheckpointError(
                    f"{file} makes a text more than {MOST_GROWTH} times as long; give a checkpoint with another tokenizer."
                )


def _rules(part: Any, key: str) -> Iterator[dict[str, Any]]:
    """The rules of a part of a tokenizer, as in tokenizer.json. None for a part in Python, which no file can bring."""
    try:
        waiting = [] if part is None else [json.loads(part.__getstate__())]
    except Exception:  # tokenizers raises it for a part in Python
        return
    while waiting:
        rule = waiting.pop(0)
        if rule["type"] == "Sequence":
            waiting = [*rule[key], *waiting]
        else:
            yield rule


def _replacements(rule: dict[str, Any]) -> list[tuple[str, str]]:
    """What a rule replaces, and by what. A match of a regular expression counts as one byte."""
    if rule["type"] == "Replace":
        return [(rule["pattern"].get("String", ""), rule["content"])]
    if rule["type"] == "Prepend":
        return [("", rule["prepend"])]
    if rule["type"] == "Precompiled" and rule["precompiled_charsmap"]:  # the size of a trie, the trie, and texts that end in a zero byte
        charsmap = base64.b64decode(rule["precompiled_charsmap"])
        return [("\ufdfa", max(charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0"), key=len).decode(errors="replace"))]
    return []
