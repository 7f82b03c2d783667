"""Usage sections of cards. Code that loads and runs the model, and the command that trains it further.

The texts are blocks of ``usage.jinja``: one for every kind of input and every head. ``InputKind.example`` chooses the blocks of a model.
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

from ..errors import CONTROL
from ..files import EMBEDDINGS, GRAPHS, RERANKER, TOKEN_VECTORS, is_long, named_class, read_json_object, sentence_kind
from ..inputs.common.examples import DOMAINS, HEADS, TOKENIZER, Example
from ..inputs.grid import IMAGE_HEADS
from ..inputs.sound import SOUND_HEADS
from ..inputs.text import kind_in
from ..modeling.family.registration import MULTIMODAL_TYPE

TEMPLATE = Path(__file__).with_name("usage.jinja")
AUTO_CLASSES = {
    head.task: head.auto_class
    for heads in (SOUND_HEADS, HEADS, IMAGE_HEADS)
    for head in heads.values()
    if head.auto_class and head.task is not None
}
"""Task, by its name on the Hub -> the Auto class that loads models for it."""
EXPORT_REPORT = "export_report.json"
TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
"""Inputs that a tokenizer returns."""
MODEL = "{model}"
"""Placeholder for the model's name in the ``next_step`` of a conversion report."""
INSTALL = "`pip install .` in a clone of the hf_longattn repository: it is not on a package index yet"
IMPORT_LINE = "import hf_longattn  # registers the model with transformers"


def usage_section(folder: Path, config: dict[str, Any], name: str, length: int, metadata: Mapping[str, Any]) -> str:
    """The section of a card on loading the model with this package. After `--remote-code`, also in programs that do not import it.

    Args:
        folder, config: of the model.
        name: the Hub name or path that a reader types to load the model.
        length: maximum number of tokens of the model's input.
        metadata: of the model's card. Its language and tags decide which text the example reads.
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
    """The section of a card about loading a model after `--remote-code`, in programs that do not import this package."""
    code = snippet(folder, config, name, length or tokens_of(config), metadata, trusts_code=True)
    how = f"```python\n{code}\n```" if code else "Pass `trust_remote_code=True` to `from_pretrained`."
    return (
        f"## Use without importing hf_longattn\n\nhf_longattn must be installed ({INSTALL}). A file in this repository imports it:\n\n{how}"
    )


def exported_usage(folder: Path, name: str, length: int) -> str | None:
    """How to run a folder's graph. ``None`` for a folder with safetensors weights or without an exported file."""
    if any(folder.glob("*.safetensors")):
        return None
    file = next((name for name in GRAPHS.values() if (folder / name).is_file()), None)
    if file is None or not (folder / EXPORT_REPORT).is_file():
        return None
    report = read_json_object(folder / EXPORT_REPORT)
    if not TEXT_INPUTS.issuperset(map(str, report.get("inputs") or ())):
        return f"`{file}` takes and returns the tensors that `{EXPORT_REPORT}` lists."
    values = {"name": _quoted(name), "file": file, "length": length, "document": DOMAINS["text"].document, "onnx": file == GRAPHS["onnx"]}
    return f"```python\n{_block('graph', values).strip()}\n```"


def snippet(
    folder: Path, config: dict[str, Any], name: str, length: int, metadata: Mapping[str, Any], *, trusts_code: bool = False
) -> str | None:
    """Python code that loads a model as ``name`` and runs it. On up to ``length`` tokens; ``None`` if its head has no example.

    Args:
        folder, config, name, length, metadata: as for :func:`usage_section`.
        trusts_code: load the model with `trust_remote_code`, without an import of this package.
    """
    ours = is_long(config) and not trusts_code
    if (kind := sentence_kind(folder)) is not None:
        kind = kind if kind in (RERANKER, TOKEN_VECTORS) else EMBEDDINGS
        values = {"kind": kind, "name": _quoted(name), "trust": _trust(trusts_code), "ours": ours, "import_line": IMPORT_LINE}
        return _block("sentence", values).strip()
    architecture = named_class(config, "AutoModel")
    reads = kind_in(config)
    head = reads.head(architecture)
    example = None if head is None else reads.example(folder, config, head, length, metadata)
    return None if example is None else _code(example, architecture, name, ours=ours, trusts_code=trusts_code)


def _code(example: Example, architecture: str, name: str, *, ours: bool, trusts_code: bool) -> str | None:
    """The code of an example. ``None`` if ``trusts_code`` is set and no Auto class loads the model's head.

    Args:
        example, architecture, name: the parts of the code, the model's class, and the name that a reader types.
        ours: whether the code imports this package.
        trusts_code: load the model with `trust_remote_code`.
    """
    auto = example.head.auto_class
    if trusts_code and not auto:
        return None
    values = {**example.values, "name": _quoted(name), "task": example.head.task}
    body = "".join(_block(block, values) for block in example.blocks.split())
    loaded = [auto] if auto else [] if ours else [architecture]
    classes = [*loaded, *([example.reader[1]] if example.reader else []), *(["pipeline"] if example.pipeline else [])]
    uses_torch = "torch." in body or (body.strip() and example.reader != TOKENIZER)
    imports = [*example.imports, *(["import torch"] if uses_torch else []), *([IMPORT_LINE] if ours else [])]
    imports += [f"from transformers import {', '.join(sorted(classes))}"] if classes else []
    loaded_by = auto or (f"hf_longattn.{architecture}" if ours else architecture)
    values |= {"imports": imports, "reader": example.reader, "loaded_by": loaded_by, "trust": _trust(trusts_code), "body": body}
    return re.sub(r"\n{3,}", "\n\n", _block("code", values)).strip()


@cache
def _template() -> Template:
    return Environment(trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text(encoding="utf-8"))


def _block(name: str, values: Mapping[str, Any]) -> str:
    """Render a block of the template."""
    return "".join(_template().blocks[name](_template().new_context(dict(values))))


def next_step(step: Mapping[str, Any], name: str) -> str:
    """Shell command or advice on training the model ``name``, from ``next_step`` of its conversion report. Empty if there is none."""
    if step.get("command"):
        return shlex.join(word.replace(MODEL, name) for word in step["command"])
    return (step.get("advice") or "").replace(MODEL, name)


def backbone_of(config: dict[str, Any]) -> dict[str, Any]:
    """The backbone's config of a multimodal model; for any other model ``config`` itself."""
    text_config = config.get("text_config")
    return text_config if config.get("model_type") == MULTIMODAL_TYPE and isinstance(text_config, dict) else config


def tokens_of(config: dict[str, Any]) -> int:
    """Maximum input length in tokens of a model with this config. For a multimodal model, the backbone's."""
    backbone = backbone_of(config)
    return kind_in(backbone).tokens_of(backbone)


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=CONTROL.search(name) is not None)


def _trust(trusts_code: bool) -> str:
    return ", trust_remote_code=True" if trusts_code else ""
