"""The table of native twins, docs/results/native_twins.md: every mechanism in every family, its twin or the reason why there is none.

    python -m tools.native_twins

From configs alone. Mechanisms have the options of tools/native_cases.py, with which one is transformers' where there is such an
architecture; whether outputs are equal is compared whenever a twin is written (tests/conversion/test_native.py).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_longattn.conversion.gguf_export import gguf_refusal
from hf_longattn.conversion.twins.base import LongModel, choose_twin
from hf_longattn.errors import LongAttentionError
from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms import list_mechanisms

from .native_cases import long_attention, long_values
from .small_models import language_model

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


def cell(base: str, mechanism: str) -> dict[str, Any]:
    """One combination: ``{"twin": class, "gguf": "yes" or the reason}`` or ``{"reason": sentence}``."""
    family = FAMILIES[base]
    head = family.heads[language_model(base)]
    try:
        config = family.config_class(**{**long_values(base), "long_attention": long_attention(mechanism)})
    except LongAttentionError as error:
        return {"reason": str(error)}
    model = LongModel(config, head, family)
    choice = choose_twin(model)
    if choice.twin is None:
        return {"reason": choice.reason}
    refusal = gguf_refusal(choice.twin.config(model))
    return {"twin": choice.class_name, "gguf": refusal or "yes", **({"note": choice.note} if choice.note else {})}


def table() -> dict[str, dict[str, dict[str, Any]]]:
    """Mechanism -> base -> cell."""
    return {mechanism: {base: cell(base, mechanism) for base in FAMILIES} for mechanism in list_mechanisms()}


def markdown(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The page."""
    shown = [mechanism for mechanism, cells in found.items() if any("twin" in one for one in cells.values())]
    lines = [
        "# Native twins",
        "",
        "*Made by `python -m tools.native_twins` from configs; all sentences are in `native_twins.json`. A cell is the class of transformers that",
        "computes what the long model with a language-model head does; G marks those for which a GGUF file can be written.*",
        "",
        "| base | " + " | ".join(f"`{mechanism}`" for mechanism in shown) + " |",
        "|---|" + "---|" * len(shown),
    ]
    reasons: Counter[str] = Counter()
    for base in FAMILIES:
        row = []
        for mechanism in shown:
            one = found[mechanism][base]
            row.append(one["twin"] + (" G" if one["gguf"] == "yes" else "") if "twin" in one else "none")
        lines.append(f"| {base} | " + " | ".join(row) + " |")
    lines += ["", "## Why there is none", ""]
    for mechanism in found:
        for one in found[mechanism].values():
            if "reason" in one:
                reasons[f"`{mechanism}`: {one['reason']}"] += 1
    lines += [f"- {reason}" + (f" ({count} families)" if count > 1 else "") for reason, count in sorted(reasons.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    logging.set_verbosity_error()
    found = table()
    (RESULTS / "native_twins.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (RESULTS / "native_twins.md").write_text(markdown(found), encoding="utf-8")


if __name__ == "__main__":
    main()
