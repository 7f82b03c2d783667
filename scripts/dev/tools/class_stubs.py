"""Write the types of the Long classes, which exist at run time only, where editors and type checkers look for them.

    python -m scripts.dev.tools.class_stubs    hf_longattn/families/*.pyi: one for each family, and one that names all
    their classes

The signatures are those of the installed transformers. The files are not in git: ``make install``, ``make lint`` and
``make format`` write them, and builds take them along (:mod:`scripts.dev.hatch_build`).
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import importlib
import inspect
import re
import textwrap
import typing
from typing import Any

import transformers
from transformers import modeling_outputs

from hf_longattn.errors import BackendError
from hf_longattn.families import FAMILIES, Family
from scripts.dev import ROOT

FOLDER = ROOT / "hf_longattn" / "families"
HEADER = f"# Written by `make format` with transformers {transformers.__version__}; do not edit.\n"
FRONT = '''\
"""Long<Base> families: the models of transformers with long attention, one module per base architecture."""

{imports}
from ..modeling.family.definition import FAMILIES as FAMILIES
from ..modeling.family.definition import AttentionNames as AttentionNames
from ..modeling.family.definition import Family as Family
from ..modeling.family.definition import PositionTable as PositionTable
from ..modeling.generic import enable_long_attention as enable_long_attention
from ..modeling.family.registration import register as register

__all__ = [
{names}
]
'''
COMMON = {
    "Any": "typing",
    "Cache": "transformers",
    "GenerationMixin": "transformers",
    "Literal": "typing",
    "LongAttentionConfig": "..configuration",
    "Mapping": "collections.abc",
    "SegmentMemory": "..memory",
    "Tensor": "torch",
    "torch": "",
}
"""What the signatures name -> the module that it is in."""
LONG_ARGUMENTS = {
    "global_attention_mask": "Tensor | None",
    "documents": "Tensor | None",
    "memory": "SegmentMemory | None",
    "memory_reset": "Tensor | None",
}
"""What every Long ``forward`` takes besides the base's arguments."""
ANY_FORWARD = {"output_attentions": "bool | None", "output_hidden_states": "bool | None", "return_dict": "bool | None"}
"""What a ``forward`` with ``**kwargs`` hands down. Anything else is taken for a slip of the pen, as it would be lost
without a word."""
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
NAMES = {"LongTensor": "Tensor", "BoolTensor": "Tensor", "RopeParameters": "dict[str, Any]", "EsmFoldConfig": "Any"}


def made_families() -> list[Family]:
    """The families whose classes the installed transformers allows."""
    made = []
    for family in FAMILIES.values():
        with contextlib.suppress(BackendError):  # GPT-J before 5.24, for example
            family.model_class(next(iter(family.model_classes.values())))
            made.append(family)
    return made


def stubs() -> dict[str, str]:
    """File name -> text. A family that the installed transformers does not allow has none."""
    made = made_families()
    exported = [(module_of(family), sorted(family.exports)) for family in made]
    imports = "\n".join(
        f"from .{module} import {', '.join(f'{name} as {name}' for name in names)}"
        for module, names in sorted(exported)
    )
    names = "\n".join(f'    "{name}",' for name in sorted(name for _, names in exported for name in names))
    return {"__init__.pyi": HEADER + FRONT.format(imports=imports, names=names)} | {
        f"{module_of(family)}.pyi": family_stub(family) for family in made
    }


def module_of(family: Family) -> str:
    return family.module.rpartition(".")[2]


def family_stub(family: Family) -> str:
    """The stub of a family's module: its config, its entry, its classes, and what else the module defines as it is."""
    module = importlib.import_module(family.module)
    models = [*family.model_classes.values(), *family.parts.values()]
    needed = {("..modeling.family.definition", "Family")}
    bodies = ["FAMILY: Family\n"]
    for text, imports in (config_stub(family), *(model_stub(family, name) for name in models)):
        bodies.append(text)
        needed |= imports
    signatures = " ".join(
        line for body in bodies for line in body.splitlines() if re.match(r" *(class|def) \w+\(", line)
    )
    named = set(re.findall(r"\w+", re.sub(r"'[^']*'", "", signatures)))
    needed |= {(where, name) for name, where in COMMON.items() if name in named}
    homes = [importlib.import_module(where) for where, _ in sorted(needed) if where.startswith("transformers.")]
    defined = {name for _, name in needed} | {*models, family.config_class.__name__}
    for name in sorted(name for name in named - defined if name[0].isupper() and not hasattr(builtins, name)):
        home = next((home for home in (*homes, transformers, typing) if hasattr(home, name)), None)
        if home is not None:  # some arguments begin with a capital letter
            needed.add((home.__name__, name))
    further_names = [
        name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__
    ]
    further_names = sorted({*further_names} - {*models, family.config_class.__name__} - {"__getattr__"})
    if further_names:
        bodies.append("\n".join(f"{name}: Any" for name in further_names) + "\n")
        needed.add(("typing", "Any"))
    by_module: dict[str, set[str]] = {}
    for where, name in needed:
        by_module.setdefault(where, set()).add(name)
    lines = [
        f"from {where} import {', '.join(sorted(names))}" if where else f"import {', '.join(names)}"
        for where, names in by_module.items()
    ]
    summary = (module.__doc__ or "").strip()
    return HEADER + f'"""{summary}\n"""\n\n' + "\n".join(sorted(lines)) + "\n\n" + "\n".join(bodies)


def config_stub(family: Family) -> tuple[str, set[tuple[str, str]]]:
    config, base = family.config_class, family.base_config_class
    arguments = {
        name: f"{shown(parameter.annotation)} = {default(parameter.default)}"
        for name, parameter in inspect.signature(config.__init__).parameters.items()
        if name not in ("self", "kwargs")
    }
    arguments |= {
        alias: arguments[name]
        for alias, name in config.attribute_map.items()
        if name in arguments and alias not in arguments
    }
    lengths = {"max_position_embeddings": "int"} if family.relative else {}
    added = {**CONFIG_ARGUMENTS, **(DECODER_ARGUMENTS if family.two_stacks else {}), **lengths}
    arguments |= {name: f"{kind} = ..." for name, kind in added.items()}
    # a mixin of a family's file has no stub, so its own bases stand in its place
    parents = [
        parent
        for of in config.__bases__
        for parent in (of.__bases__ if of.__module__.startswith("hf_longattn.families.") else (of,))
    ]
    parents = [
        parent for parent in parents if not any(other is not parent and issubclass(other, parent) for other in parents)
    ]
    lines = [
        f"class {config.__name__}({', '.join(parent.__name__ for parent in parents)}):",
        docstring(config),
        f"    def __init__(self, *, {', '.join(f'{name}: {rest}' for name, rest in arguments.items())}) -> None: ...",
    ]
    bases = {(parent.__module__.replace("hf_longattn.", "..", 1), parent.__name__) for parent in parents[:-1]}
    return "\n".join(lines) + "\n", {*bases, (base.__module__, base.__name__)}


def model_stub(family: Family, name: str) -> tuple[str, set[tuple[str, str]]]:
    model = family.model_class(name)
    base = next(parent for parent in model.__mro__ if parent.__module__.startswith("transformers.models."))
    ours = [
        of
        for of in model.__bases__
        if of.__module__.startswith("hf_longattn.modeling.") and of.__name__ != base.__name__
    ]
    signature = inspect.signature(model.forward)
    base_arguments = {
        name: optional(shown(parameter.annotation), parameter.default)
        + ("" if parameter.default is parameter.empty else f" = {default(parameter.default)}")
        for name, parameter in signature.parameters.items()
        if name not in ("self", *LONG_ARGUMENTS) and parameter.kind is not parameter.VAR_KEYWORD
    }
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    long_arguments = {name: kind for name, kind in LONG_ARGUMENTS.items() if name in signature.parameters}
    keywords = {
        **long_arguments,
        **({name: kind for name, kind in ANY_FORWARD.items() if name not in base_arguments} if passes_on else {}),
    }
    arguments = [
        *(f"{name}: {rest}" for name, rest in base_arguments.items()),
        *(["*"] if keywords else []),
        *(f"{name}: {kind} = None" for name, kind in keywords.items()),
    ]
    output, needed = output_class(signature.return_annotation, base)
    generates = ["GenerationMixin"] if transformers.GenerationMixin in model.__bases__ else []
    parents = [*(parent.__name__ for parent in ours), base.__name__, *generates]
    config = family.config_class.__name__
    lines = [
        f"class {name}({', '.join(parents)}):",
        docstring(model),
        f"    config: {config}",
        f"    def __init__(self, config: {config}, *arguments: Any, **options: Any) -> None: ...",
        f"    def forward(self, {', '.join(arguments)}) -> {output}: ...",
        "    __call__ = forward",
    ]
    return "\n".join(lines) + "\n", {
        (base.__module__, base.__name__),
        *needed,
        *((parent.__module__.replace("hf_longattn", ".", 1), parent.__name__) for parent in ours),
    }


def docstring(documented: Any) -> str:
    return textwrap.indent(
        f'"""{inspect.getdoc(documented)}' + ("\n" if "\n" in str(inspect.getdoc(documented)) else "") + '"""', "    "
    )


def shown(annotation: Any) -> str:
    """An annotation as text, without the modules of its names."""
    if annotation is inspect.Parameter.empty:
        return "Any"
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text.replace("torch.dtype", "dtype_"))
    text = re.sub(r"\blist\[(\w+)(?:, \w+)+\]", r"list[\1]", text)  # transformers means a tuple
    text = re.sub(r"\w+", lambda word: NAMES.get(word[0], word[0]), text).replace("dtype_", "torch.dtype")
    return re.sub(r"\bdict\b(?!\[)", "dict[str, Any]", text)


def optional(kind: str, value: Any) -> str:
    """The type of an argument, with ``None`` where that is its default. Some bases leave it out."""
    return (
        f"{kind} | None" if value is None and kind != "Any" and "None" not in kind and "Optional" not in kind else kind
    )


def default(value: Any) -> str:
    return (
        repr(value)
        if isinstance(value, bool | int | str) or value is None or (isinstance(value, float) and value == value)
        else "..."
    )


def output_class(annotation: Any, base: type) -> tuple[str, set[tuple[str, str]]]:
    """The class of a ``forward``'s outputs and where it is; a tuple, which ``return_dict=False`` gives, is left
    out."""
    names = (part.strip() for part in re.sub(r"\[.*?\]", "", shown(annotation)).split("|"))
    output_class = next((name for name in names if name[0].isupper() and name != "Any"), None)
    if output_class is None:
        return "Any", set()
    return output_class, {
        (modeling_outputs.__name__ if hasattr(modeling_outputs, output_class) else base.__module__, output_class)
    }


def main() -> None:
    """Write the stubs, and remove those of families that are gone."""
    expected = stubs()
    for path in FOLDER.glob("*.pyi"):
        if path.name not in expected:
            path.unlink()
    for name, text in expected.items():
        path = FOLDER / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
