"""Files of saved models: what they hold, and changes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


def run_card(folder: Path) -> dict[str, Any]:
    """Run the examples of a model card, each by itself; the names that the first defines."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", card, flags=re.DOTALL | re.MULTILINE)
    names: list[dict[str, Any]] = [{} for _ in examples]
    for code, own in zip(examples, names, strict=True):
        exec(compile(code, "card", "exec"), own)
    return names[0]


def label_config(names: list[str]) -> dict[str, Any]:
    """The arguments of a config with these classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def read_json(folder: Path, file: str = "config.json") -> Any:
    """The values of a file."""
    return json.loads((folder / file).read_text(encoding="utf-8"))


def change_json(folder: Path, file: str = "config.json", **values: Any) -> Path:
    """The folder, a file of which gets other values."""
    (folder / file).write_text(json.dumps({**read_json(folder, file), **values}))
    return folder


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Let ``change`` write into the tensors of a checkpoint."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
