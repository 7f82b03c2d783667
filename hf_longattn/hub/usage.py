"""What a card tells its reader to type: code that loads and runs the model, and the command that trains it further.

The texts are blocks of ``usage.jinja``: one for every kind of input and every head. A kind of input says which ones a model needs.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template

from ..errors import CONTROL, in_one_line
from ..inputs.common.examples import Example
from ..inputs.common.text_example import DOMAINS, HEADS, TOKENIZER
from ..inputs.grid import PICTURE_HEADS, SPECTROGRAM_HEADS, VIDEO_HEADS
from ..inputs.sound import SOUND_HEADS
from ..inputs.text import kind_in
from ..modeling.family.registration import MULTIMODAL_TYPE
from ..reading import is_generic, is_long, named_class, plain_names, read_json_object
from ..sentence_files import EMBEDDINGS, RERANKER, TOKEN_VECTORS, sentence_kind

TEMPLATE = Path(__file__).with_name("usage.jinja")


AUTO_CLASSES = {
    head.task: head.auto_class
    for heads in (SOUND_HEADS, SPECTROGRAM_HEADS, HEADS, VIDEO_HEADS, PICTURE_HEADS)
    for head in heads.values()
    if head.auto_class and head.task is not None
}
"""The Hub's name of a task -> the Auto class that loads its models."""
GRAPHS = ("model.onnx", "model.pt2")
EXPORT_REPORT = "export_report.json"
TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
"""What a tokenizer gives."""
MODEL = "{model}"
"""Stands for the model's name in the fields of a report."""
INSTALL = "`pip install .` in a clone of the hf_longattn repository: it is not on a package index yet"
IMPORT_LINE = "import hf_longattn  # registers the model with transformers"


def usage_section(folder: Path, config: dict[str, Any], name: str, length: int, metadata: Mapping[str, Any]) -> str:
    """The section about loading the model as ``name``, with this package and, if its code was bundled, without.

    Args:
        folder, config: of the model.
        name: what a reader types.
        length: tokens that it takes.
        metadata: of its card, whose language and tags tell what the example reads.
    """
    if (exported := exported_usage(folder, name, length)) is not None:
        return exported
    code = snippet(folder, config, name, length, metadata)
    if code is None:
        text = f"Import `hf_longattn`, then load it; the class is `{named_class(config, 'AutoModel')}`."
    else:
        text = (f"With hf_longattn ({INSTALL}):\n\n" if is_long(config) else "") + f"```python\n{code}\n```"
    return text if "auto_map" not in config else f"{text}\n\n{remote_usage(folder, config, name, metadata, length)}"


def remote_usage(folder: Path, config: dict[str, Any], name: str, metadata: Mapping[str, Any], length: int | None = None) -> str:
    """The section of a card about loading a model with its bundled code, where this package is not installed."""
    code = snippet(folder, config, name, length or tokens_of(config), metadata, trusts_code=True)
    how = f"```python\n{code}\n```" if code else "Pass `trust_remote_code=True` to `from_pretrained`."
    return f"## Use without hf_longattn\n\nThe model's code is in this repository. Read it before you run it:\n\n{how}"


def exported_usage(folder: Path, name: str, length: int) -> str | None:
    """How a graph or a GGUF file in a folder without weights is run; ``None`` for any other folder."""
    if any(folder.glob("*.safetensors")):
        return None
    if (folder / "model.gguf").is_file():
        command = in_one_line(
            shlex.join(["llama-cli", "-m", f"{name}/model.gguf", "-c", str(length), "-p", "A long document starts here."])
        )
        return f"With llama.cpp:\n\n```\n{command}\n```"
    file = next((name for name in GRAPHS if (folder / name).is_file()), None)
    if file is None or not (folder / EXPORT_REPORT).is_file():
        return None
    report = read_json_object(folder / EXPORT_REPORT)
    decoding = report.get("decoding") or {}
    if decoding or not TEXT_INPUTS.issuperset(map(str, report.get("inputs") or ())):
        return f"`{file}` takes and returns the tensors that `{EXPORT_REPORT}` lists. {decoding.get('note', '')}".strip()
    values = {"name": _quoted(name), "file": file, "length": length, "document": DOMAINS["text"].document, "onnx": file == GRAPHS[0]}
    return f"```python\n{_block('graph', values).strip()}\n```"


def snippet(
    folder: Path, config: dict[str, Any], name: str, length: int, metadata: Mapping[str, Any], *, trusts_code: bool = False
) -> str | None:
    """Python that loads a saved model as ``name`` and runs it once on an input of up to ``length`` tokens; ``None`` for unknown heads.

    Args:
        folder, config, name, length, metadata: as for :func:`usage_section`.
        trusts_code: load it with its bundled code, without this package.
    """
    if is_generic(config):
        return _block("generic", {"name": _quoted(name), "base": named_class(plain_names(config), "model")}).strip()
    ours = is_long(config) and not trusts_code
    if (kind := sentence_kind(folder)) is not None:
        kind = kind if kind in (RERANKER, TOKEN_VECTORS) else EMBEDDINGS
        values = {"kind": kind, "name": _quoted(name), "trust": _trust(trusts_code), "ours": ours, "import_line": IMPORT_LINE}
        return _block("sentence", values).strip()
    architecture = named_class(config, "AutoModel")
    reads = kind_in(config)
    head = reads.head(folder, architecture)
    example = None if head is None else reads.example(folder, config, head, length, metadata)
    return None if example is None else _code(example, architecture, name, ours=ours, trusts_code=trusts_code)


def _code(example: Example, architecture: str, name: str, *, ours: bool, trusts_code: bool) -> str | None:
    """The code; ``None`` where the model's own code is to be loaded, and no Auto class of transformers loads it.

    Args:
        example, architecture, name: the code's parts, the model's class, and what a reader types.
        ours: whether it imports this package.
        trusts_code: load the model with its bundled code.
    """
    auto = example.head.auto_class
    if trusts_code and not auto:
        return None
    values = {**example.values, "name": _quoted(name), "task": example.head.task}
    body = "".join(_block(block, values) for block in example.blocks.split())
    loaded = [auto] if auto else [] if ours else [architecture]
    classes = [*loaded, *([example.reader[1]] if example.reader else []), *(["pipeline"] if example.pipeline else [])]
    first, last = example.imports
    imports = [*first, *(["import torch"] if "torch." in body or example.reader != TOKENIZER else []), *([IMPORT_LINE] if ours else [])]
    imports += [*last, *([f"from transformers import {', '.join(sorted(classes))}"] if classes else [])]
    loaded_by = auto or (f"hf_longattn.{architecture}" if ours else architecture)
    values |= {"imports": imports, "reader": example.reader, "loaded_by": loaded_by, "trust": _trust(trusts_code), "body": body}
    return re.sub(r"\n{3,}", "\n\n", _block("code", values)).strip()


@cache
def _template() -> Template:
    return Environment(trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text(encoding="utf-8"))


def _block(name: str, values: Mapping[str, Any]) -> str:
    """A block of the template."""
    return "".join(_template().blocks[name](_template().new_context(dict(values))))


def next_step(step: Mapping[str, Any], name: str) -> str:
    """How to train the model ``name`` that needs training, from the report's ``next_step``: a shell command, or advice."""
    if step.get("command"):
        return shlex.join(word.replace(MODEL, name) for word in step["command"])
    return (step.get("advice") or "").replace(MODEL, name)


def backbone_of(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the backbone of a model of several modalities; of any other model its own."""
    text_config = config.get("text_config")
    return text_config if config.get("model_type") == MULTIMODAL_TYPE and isinstance(text_config, dict) else config


def tokens_of(config: dict[str, Any]) -> int:
    """Maximum length of a model with this config: the rows of its position table, less those that are not positions."""
    backbone = backbone_of(config)
    return kind_in(backbone).tokens_of(backbone)


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=CONTROL.search(name) is not None)


def _trust(trusts_code: bool) -> str:
    return ", trust_remote_code=True" if trusts_code else ""
