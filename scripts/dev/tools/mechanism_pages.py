"""docs/mechanisms/: a page for each mechanism with its formula, image, options, cost and source, all from the
registry."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import torch

from hf_longattn import list_mechanisms, mechanism_info
from hf_longattn.mechanisms import Mechanism
from hf_longattn.mechanisms.common.options import EXACT_LENGTH, RELATIVE
from hf_longattn.mechanisms.common.registry import input_in_words, mechanism_class, mechanism_from
from scripts.dev.benchmarks.report import markdown_table
from scripts.dev.tools.drawing import DRAWN_GRID, draw_patterns

LENGTH = 64
MADE = "<!-- `make docs` writes this page from the registry -->"
SHARED = (RELATIVE, EXACT_LENGTH)
MORE_OPTIONS = (
    "The options that most mechanisms share are on [the page of all "
    "mechanisms](../mechanisms.md#options-of-most-mechanisms)."
)
FORMS = {"both": "bidirectional and causal", True: "causal", False: "bidirectional"}


def pages() -> dict[str, str]:
    """The file name of every page, and what it says."""
    return {f"{name}.md": f"{MADE}\n{_section(name)}\n" for name in list_mechanisms()}


def draw(folder: Path) -> None:
    """Draw every mechanism's pattern for 64 tokens, both forms where there are two."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in list_mechanisms():
        cls = mechanism_class(name)
        torch.manual_seed(0)
        built = mechanism_from(name, cls.about.sample, num_heads=4, head_dim=16, max_length=LENGTH).eval()
        forms = {"bidirectional": False, "causal": True}
        shown = {form: (built, causal) for form, causal in forms.items() if cls.causal in ("both", causal)}
        draw_patterns(shown, length=LENGTH, file=folder / f"{name}.png")


def _section(name: str) -> str:
    info, cls = mechanism_info(name), mechanism_class(name)
    rows = [
        [f"`{o.name}`", o.type_in_words, f"`{o.readable(o.default)}`", o.unit, o.help]
        for o in info.options
        if o.name not in SHARED
    ]
    table = (
        markdown_table(["option", "type", "default", "unit", "meaning"], rows).replace("---:", "---")
        if rows
        else "This mechanism has no options of its own."
    )
    facts = {
        "when": info.when,
        "forms": FORMS[info.causal],
        "cost": f"{info.cost} ([what the letters mean](../mechanisms.md))",
        "equals full attention": info.exact_when,
        "training": "adds parameters that need training" if info.trains else "",
        "global tokens": "takes `global_attention_mask`" if info.takes_globals else "",
        "input": "" if (words := input_in_words(name)).startswith("a text; an image") else words,
    }
    rest = "the cells that the marked one sees" if info.needs_grid else "rows are queries, columns keys"
    size = f"{DRAWN_GRID}" if info.needs_grid else f"{LENGTH} tokens"
    options = ", ".join(f"{option} {_shown(value)}" for option, value in cls.about.sample.items()) or "no options"
    image = f"![pattern of {name}](../images/{name}.png)\n\n*{size}, {options}; {rest}.*"
    about = "\n".join(f"- **{key}**: {value}" for key, value in facts.items() if value)
    summary, _, definition = _text(cls).partition("\n\n")
    definition = f"## Definition\n\n{definition}\n\n" if definition else ""
    return f"# {name}\n\n{summary}\n\n{about}\n\n{image}\n\n{definition}## Options\n\n{table}\n\n{MORE_OPTIONS}"


def shared_options() -> str:
    """The options that most mechanisms have, described once."""
    lines = []
    for shared in SHARED:
        without = [
            f"`{name}`"
            for name in list_mechanisms()
            if shared not in {option.name for option in mechanism_info(name).options}
        ]
        option = next(option for option in mechanism_info("full").options if option.name == shared)
        lines.append(
            f"- `{shared}` (default none): {option.help}. All mechanisms except {', '.join(without)} have it."
        )
    return "\n".join(lines)


def _text(cls: type[Mechanism]) -> str:
    """The definition as the mechanism's file states it, with Sphinx's roles as plain code."""
    return re.sub(
        r":\w+:`~?([^`]+)`", r"`\1`", inspect.cleandoc(sys.modules[cls.__module__].__doc__ or cls.__doc__ or "")
    )


def _shown(value: Any) -> str:
    """A value of an option as a reader writes it."""
    values = [str(one) for one in (value if isinstance(value, tuple | list) else (value,))]
    return ", ".join(values) or "none"
