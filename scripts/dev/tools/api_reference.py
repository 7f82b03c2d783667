"""docs/reference.md: the public names with their signatures and docstrings, as Markdown."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import textwrap
from typing import Any

MODULES = {
    "hf_longattn": "The package",
    "hf_longattn.hub": "Hub",
    "hf_longattn.training": "Training",
    "hf_longattn.streaming": "Streaming",
}
"""Every module whose ``__all__`` is documented, and its heading."""
SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields):\s*(.*)$")
ENTRY = re.compile(r"^([\w*., ]+?):\s+(.*)$", re.DOTALL)


def reference() -> str:
    """All modules, their names in alphabetical order."""
    parts = []
    for module, heading in MODULES.items():
        documented = importlib.import_module(module)
        parts += [f"## {heading}: `{module}`", _prose(_paragraphs(documented.__doc__ or "")[0])]
        parts += [entry(f"{module}.{name}", getattr(documented, name)) for name in sorted(documented.__all__, key=str.lower)]
    return "\n\n".join(parts)


def entry(name: str, thing: Any) -> str:
    """One function or class: its signature, its docstring, and a class's public methods."""
    short = name.rpartition(".")[2]
    parts = [f"### `{short}`", f"```text\n{_signature(name, thing)}\n```", markdown(_docstring(thing))]
    if inspect.isclass(thing):
        for method, value in vars(thing).items():
            function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if not method.startswith("_") and inspect.isfunction(function) and inspect.getdoc(function):
                parts += [f"**`{_signature(f'{short}.{method}', function)}`**", markdown(inspect.getdoc(function) or "")]
    return "\n\n".join(part for part in parts if part)


def markdown(docstring: str) -> str:
    """A docstring in Google's style as Markdown: its sections as lists, indented code as code."""
    parts = []
    for paragraph in _paragraphs(docstring):
        first, _, rest = paragraph.partition("\n")
        section = SECTION.match(first)
        if section is None:
            code = paragraph.startswith("    ")
            parts.append(f"```python\n{textwrap.dedent(paragraph)}\n```" if code else _prose(paragraph))
            continue
        inline, entries = section[2], _entries(textwrap.dedent(rest))
        lines = [f"- `{match[1]}`: {_prose(match[2])}" if (match := ENTRY.match(text)) else f"- {_prose(text)}" for text in entries]
        title = {"Args": "Parameters"}.get(section[1], section[1])
        parts.append("\n".join([f"**{title}**{': ' + _prose(inline) if inline else ''}", *([""] if lines else []), *lines]))
    return "\n\n".join(parts)


def _docstring(thing: Any) -> str:
    """The thing's own docstring; dataclasses and exceptions inherit or make up one that says nothing."""
    docstring = thing.__doc__ if inspect.isclass(thing) else inspect.getdoc(thing)
    made_up = inspect.isclass(thing) and dataclasses.is_dataclass(thing) and (docstring or "").startswith(f"{thing.__name__}(")
    return "" if made_up or not docstring else inspect.cleandoc(docstring)


def _paragraphs(text: str) -> list[str]:
    text = re.sub(r"^(?=(Args|Returns|Raises|Attributes|Yields):)", "\n", text.strip("\n"), flags=re.MULTILINE)
    return [part.strip("\n") for part in re.split(r"\n\s*\n", text) if part.strip()]


def _entries(text: str) -> list[str]:
    """The entries of a section: a new one starts at every line that is not indented further."""
    entries: list[str] = []
    for line in text.splitlines():
        if entries and line.startswith(" "):
            entries[-1] += f" {line.strip()}"
        elif line.strip():
            entries.append(line.strip())
    return entries


def _prose(text: str) -> str:
    """One paragraph: roles and double backticks as code, lines joined."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`")


def _signature(name: str, thing: Any) -> str:
    """The call as it is written, one argument a line where the line is long."""
    short = name.rpartition(".")[2] if name.startswith("hf_longattn.") else name  # of a method, with its class
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return short
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name not in ("self", "cls")]
    text = _unquoted(f"{short}{signature.replace(parameters=parameters)}")
    if len(text) <= 100:
        return text
    lines, starred = [], False
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            starred = True
            lines.append("    *,")
        starred = starred or parameter.kind is inspect.Parameter.VAR_POSITIONAL
        lines.append(_unquoted(f"    {parameter},"))
    returns = (
        "" if signature.return_annotation is inspect.Signature.empty else f" -> {inspect.formatannotation(signature.return_annotation)}"
    )
    returns = _unquoted(returns)
    return "\n".join([f"{short}(", *lines, f"){returns}"])


def _unquoted(text: str) -> str:
    """Annotations as they are written in the source, which does not evaluate them."""
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
