"""The part of docs/mechanisms.md that describes each mechanism: formula, picture, options, cost, source, all from the registry."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import torch

from benchmarks.report import markdown_table
from hf_longattn import list_mechanisms, mechanism_info
from hf_longattn.cli.plot import draw_patterns
from hf_longattn.mechanisms import Mechanism
from hf_longattn.mechanisms.registry import mechanism_class, mechanism_from

LENGTH = 64
FORMS = {"both": "bidirectional and causal", True: "causal", False: "bidirectional"}


def sections() -> str:
    """One section per mechanism."""
    return "\n\n".join(_section(name) for name in list_mechanisms())


def picture_of(name: str) -> str:
    """File name of a mechanism's picture, in docs/pictures."""
    return f"{name}.png"


def draw(folder: Path) -> None:
    """Draw every mechanism's pattern for 64 tokens, both forms where there are two."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in list_mechanisms():
        cls = mechanism_class(name)
        torch.manual_seed(0)
        built = mechanism_from(name, cls.sample, num_heads=4, head_dim=16, max_length=LENGTH).eval()
        forms = {"bidirectional": False, "causal": True}
        shown = {(built, causal): form for form, causal in forms.items() if cls.causal in ("both", causal)}
        draw_patterns(
            {f"{form}, {_options(cls)}": one for (one, _), form in shown.items()},
            length=LENGTH,
            causal=[causal for _, causal in shown],
            file=folder / picture_of(name),
        )


def _section(name: str) -> str:
    info, cls = mechanism_info(name), mechanism_class(name)
    rows = [[f"`{o.name}`", o.type, f"`{o.default}`", o.unit, o.help] for o in info.options]
    table = markdown_table(["option", "type", "default", "unit", "meaning"], rows).replace("---:", "---") if rows else "No options."
    facts = [
        f"Cost {info.cost}; {FORMS[info.causal]}; engine: {info.engine}; equals full attention when: {info.exact_when}.",
        *["Takes `global_attention_mask`."] * info.takes_globals,
        *["Adds parameters that need training."] * info.trains,
    ]
    picture = f"![pattern of {name}](pictures/{picture_of(name)})\n\n*{LENGTH} tokens, {_options(cls)}: a query a row, a key a column.*"
    return "\n\n".join([f"### {name}", _text(cls), f"Source: {info.paper}. {' '.join(facts)}", picture, table])


def _text(cls: type[Mechanism]) -> str:
    """The definition as the mechanism's file states it."""
    return inspect.cleandoc(sys.modules[cls.__module__].__doc__ or cls.__doc__ or "")


def _options(cls: type[Mechanism]) -> str:
    return ", ".join(f"{option} {value}" for option, value in cls.sample.items()) or "no options"
