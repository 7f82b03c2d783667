"""Write the types of the Long classes, which exist at run time only, where editors and type checkers look for them.

    python -m tools.class_stubs            hf_longattn/families/__init__.pyi
    python -m tools.class_stubs --check    exit code 1 when it is not what would be written

The signatures are those of the pinned transformers. ``make format`` runs it.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers import modeling_outputs

from hf_longattn.families import FAMILIES, Family

STUB = Path(__file__).resolve().parent.parent / "hf_longattn" / "families" / "__init__.pyi"
HEADER = '''\
# Written by `python -m tools.class_stubs` (part of `make format`) with transformers {version}; do not edit.
"""Long<Base> families: the models of transformers with long attention, one short file per base architecture."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Cache, GenerationMixin
{imports}

from ..configuration import LongAttentionConfig
from ..memory import SegmentMemory
from ..modeling.config import {configs}
from ..modeling.family import FAMILIES as FAMILIES
from ..modeling.family import AttentionNames as AttentionNames
from ..modeling.family import Family as Family
from ..modeling.family import PositionTable as PositionTable
from ..modeling.generic import enable_long_attention as enable_long_attention
from ..modeling.generic import load_generic as load_generic
from ..modeling.mixin import {mixins}
from ..modeling.registration import register as register

__all__ = [
{names}
]
'''
LONG_ARGUMENTS = {
    "global_attention_mask": "Tensor | None",
    "documents": "Tensor | None",
    "memory": "SegmentMemory | None",
    "memory_reset": "Tensor | None",
}
"""What every Long ``forward`` takes besides the base's arguments."""
ANY_FORWARD = {"output_attentions": "bool | None", "output_hidden_states": "bool | None", "return_dict": "bool | None"}
"""What a ``forward`` with ``**kwargs`` hands down. Anything else is taken for a slip of the pen, as it would be lost without a word."""
CONFIG_ARGUMENTS = {
    "long_attention": "Mapping[str, Any] | LongAttentionConfig | None",
    "position_extension": "str",
    "question_separator_id": "int | None",
    "attn_implementation": "str | None",
    "num_labels": "int",
}
DECODER_ARGUMENTS = {
    "decoder_long_attention": "Mapping[str, Any] | LongAttentionConfig | None",
    "max_decoder_position_embeddings": "int | None",
}
NAMES = {"LongTensor": "Tensor", "RopeParameters": "dict[str, Any]", "EsmFoldConfig": "Any"}


def stub() -> str:
    """The whole file."""
    classes: list[str] = []
    exports: list[str] = []
    named: set[str] = set()
    imports: dict[str, set[str]] = {}
    for base, family in FAMILIES.items():
        exports += family.exports
        classes.append(f"# {base}\n")
        for text, needed in (config_stub(family), *(model_stub(family, name) for name in family.heads.values())):
            classes.append(text)
            for module, name in needed:
                imports.setdefault(module, set()).add(name)
            named |= set(re.findall(r"\bLong\w+", text.partition(":")[0]))
    header = HEADER.format(
        version=transformers.__version__,
        imports="\n".join(f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(imports.items())),
        configs=", ".join(sorted(name for name in named if hasattr(importlib.import_module("hf_longattn.modeling.config"), name))),
        mixins=", ".join(sorted(name for name in named if hasattr(importlib.import_module("hf_longattn.modeling.mixin"), name))),
        names="\n".join(f'    "{name}",' for name in sorted(exports)),
    )
    return header + "\n" + "\n".join(classes)


def config_stub(family: Family) -> tuple[str, set[tuple[str, str]]]:
    config, base = family.config_class, family.base_config_class
    arguments = {
        name: f"{shown(parameter.annotation)} = {default(parameter.default)}"
        for name, parameter in inspect.signature(config.__init__).parameters.items()
        if name not in ("self", "kwargs")
    }
    arguments |= {alias: arguments[name] for alias, name in config.attribute_map.items() if name in arguments and alias not in arguments}
    added = {**CONFIG_ARGUMENTS, **(DECODER_ARGUMENTS if family.two_stacks else {})}
    arguments |= {name: f"{kind} = ..." for name, kind in added.items()}
    lines = [
        f"class {config.__name__}({', '.join(parent.__name__ for parent in config.__bases__)}):",
        docstring(config),
        f"    def __init__(self, *, {', '.join(f'{name}: {rest}' for name, rest in arguments.items())}) -> None: ...",
    ]
    return "\n".join(lines) + "\n", {(base.__module__, base.__name__)}


def model_stub(family: Family, name: str) -> tuple[str, set[tuple[str, str]]]:
    model = family.model_class(name)
    ours = [parent for parent in model.__bases__ if parent.__module__ == "hf_longattn.modeling.mixin"]
    base = next(parent for parent in model.__bases__ if parent.__module__.startswith("transformers.models."))
    signature = inspect.signature(model.forward)
    given = {
        name: f"{'Any' if parameter.annotation is parameter.empty else shown(parameter.annotation)}"
        + ("" if parameter.default is parameter.empty else f" = {default(parameter.default)}")
        for name, parameter in signature.parameters.items()
        if name not in ("self", *LONG_ARGUMENTS) and parameter.kind is not parameter.VAR_KEYWORD
    }
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    keywords = {**LONG_ARGUMENTS, **({name: kind for name, kind in ANY_FORWARD.items() if name not in given} if passes_on else {})}
    arguments = [*(f"{name}: {rest}" for name, rest in given.items()), "*", *(f"{name}: {kind} = None" for name, kind in keywords.items())]
    output, needed = output_class(signature.return_annotation, base)
    generates = ["GenerationMixin"] if transformers.GenerationMixin in model.__bases__ else []
    parents = [*(parent.__name__ for parent in ours), base.__name__, *generates]
    lines = [
        f"class {name}({', '.join(parents)}):",
        docstring(model),
        f"    config: {family.config_class.__name__}",
        f"    def __init__(self, config: {family.config_class.__name__}, *arguments: Any, **options: Any) -> None: ...",
        f"    def forward(self, {', '.join(arguments)}) -> {output}: ...",
        "    __call__ = forward",
    ]
    return "\n".join(lines) + "\n", {(base.__module__, base.__name__), *needed}


def docstring(made: Any) -> str:
    return textwrap.indent(f'"""{inspect.getdoc(made)}' + ("\n" if "\n" in str(inspect.getdoc(made)) else "") + '"""', "    ")


def shown(annotation: Any) -> str:
    """An annotation as text, without the modules of its names."""
    if annotation is inspect.Parameter.empty:
        return "Any"
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text.replace("torch.dtype", "dtype_"))
    text = re.sub(r"\w+", lambda word: NAMES.get(word[0], word[0]), text).replace("dtype_", "torch.dtype")
    return re.sub(r"\bdict\b(?!\[)", "dict[str, Any]", text)


def default(value: Any) -> str:
    return repr(value) if isinstance(value, bool | int | str) or value is None or (isinstance(value, float) and value == value) else "..."


def output_class(annotation: Any, base: type) -> tuple[str, set[tuple[str, str]]]:
    """The class of a ``forward``'s outputs and where it is; a tuple, which ``return_dict=False`` gives, is left out."""
    found = next((name for name in parts(shown(annotation)) if name[0].isupper() and name != "Any"), None)
    if found is None:
        return "Any", set()
    return found, {(modeling_outputs.__name__ if hasattr(modeling_outputs, found) else base.__module__, found)}


def parts(union: str) -> Iterator[str]:
    yield from (part.strip() for part in re.sub(r"\[.*?\]", "", union).split("|"))


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when the file is not up to date")
    text = stub()
    if not parser.parse_args(arguments if arguments is None else list(arguments)).check:
        STUB.write_text(text, encoding="utf-8")
    elif STUB.read_text(encoding="utf-8") != text:
        print(f"{STUB} is not up to date; run `python -m tools.class_stubs`.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
