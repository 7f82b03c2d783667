"""The files beside the weights: config, tokenizer, chat template, generation config, licence. The lengths in them follow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ...reading import read_json_object
from ..files.writing import write_json
from ..planning.lengths import StackLength
from ..report import REPORT
from ..sources.base import SIDECARS
from ..sources.opening import READ_FOLDERS

__all__ = ["write_sidecars"]

LEFT_OUT = ("config.json", REPORT, "revert_report.json", "README.md", "README.txt", "trainer_state.json", "all_results.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def write_sidecars(
    source: Path,
    folder: Path,
    config: Any,
    *,
    base_type: str,
    old_length: int,
    new_length: int,
    generated: StackLength | None = None,
) -> list[str]:
    """Write config.json and everything else that belongs to the model, except its weights and its card.

    Args:
        source: the source's folder.
        folder: where to write.
        config: the config of the result.
        base_type: the source's model_type, which names the tokenizer class when the source leaves it to that.
        old_length, new_length: in tokens; 0 where the config does not say.
        generated: the same of what is generated, where that is a text of its own.

    Returns:
        The names of the files written.

    Raises:
        CheckpointError: a tokenizer or generation config that is not valid JSON.
    """
    written = ["config.json"]
    decodes = generated or StackLength(old_length, new_length)
    write_json(folder / "config.json", json.loads(config.to_json_string()))
    for path in sorted({path for pattern in SIDECARS for path in source.glob(pattern) if path.is_file()}):
        if path.name in LEFT_OUT or path.name.endswith(".index.json"):
            continue
        if path.name == "tokenizer_config.json" and new_length:
            write_json(folder / path.name, _longer_tokenizer(read_json_object(path), base_type, new_length))
        elif path.name == "generation_config.json":
            write_json(folder / path.name, _longer_generation(read_json_object(path), decodes))
        else:
            shutil.copyfile(path, folder / path.name)
        written.append(path.name)
    for name in READ_FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
            written.append(name)
    if new_length and "tokenizer_config.json" not in written and any(name in written for name in TOKENIZER_FILES):
        write_json(folder / "tokenizer_config.json", _longer_tokenizer({}, base_type, new_length))
        written.append("tokenizer_config.json")
    return written


def _longer_generation(values: dict[str, Any], length: StackLength) -> dict[str, Any]:
    """`max_length` follows where it was the model's limit; a shorter one is the author's choice and stays."""
    if values.get("max_length") == length.old:
        return {**values, "max_length": length.new}
    return values


def _longer_tokenizer(values: dict[str, Any], base_type: str, new_length: int) -> dict[str, Any]:
    """The new limit; and the class by name where the source left it to its model_type, which the result does not share."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    named = TOKENIZER_MAPPING_NAMES.get(base_type)
    default = {"tokenizer_class": named} if isinstance(named, str) else {}
    return {**default, **values, "model_max_length": new_length}
