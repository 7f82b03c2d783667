"""For every mechanism in every family: the class of transformers that computes the same, its native twin. Stores the table.

    python -m scripts.dev.tools.native_twins

A twin follows from the config alone. `longattn export --format native` writes it and compares its outputs, and tests/conversion does that
for one twin of each kind.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hf_longattn.conversion.twins.base import LongModel, choose_twin
from hf_longattn.errors import LongAttentionError
from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms import list_mechanisms
from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import machine, markdown_table, store_study

from .native_cases import long_attention, long_values
from .small_models import IN_FULL, language_model, small_config_of, values_of_base

OUTPUT = RESULTS / "native_twins"
PATTERNS: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8},
    "modernbert": {"local_attention": 8},
}
"""Bases that have windows in some layers: here of a width that small models notice."""
OTHER_HEADS = ("ForImageClassification", "ForVideoClassification", "ForAudioClassification", "ForCTC", "ForSequenceClassification")
"""Heads of models that read no text, the first that a base has; a base without one is asked as it is."""


def twin_of(base: str, mechanism: str) -> str | None:
    """The class of the twin of a small long model; ``None`` where it has none."""
    family = FAMILIES[base]
    attention = {"towers": {name: long_attention(mechanism) for name in family.towers}} if family.towers else long_attention(mechanism)
    if family.reads_text:
        values, head = {**long_values(base), **PATTERNS.get(base, {})}, family.model_classes[language_model(base)]
    else:
        values = values_of_base(small_config_of(base))
        head = family.model_classes[
            next((name for task in OTHER_HEADS for name in family.model_classes if name.endswith(task)), family.base_model_name)
        ]
    try:
        choice = choose_twin(LongModel(family.config_class(**{**values, "long_attention": attention}), head, family))
    except LongAttentionError:
        return None
    return None if choice.twin is None else choice.class_name


def twins_of(base: str) -> dict[str, str]:
    """Mechanism -> the twin of a base that has it."""
    return {name: twin for name in list_mechanisms() if (twin := twin_of(base, name)) is not None}


def markdown(record: dict[str, Any]) -> str:
    """The page."""
    rows = [[base, ", ".join(f"`{name}`: {twin}" for name, twin in twins.items())] for base, twins in record["twins"].items() if twins]
    return (
        f"# Native twins\n\n*Made by `python -m scripts.dev.tools.native_twins` with transformers {record['machine']['transformers']}. A "
        "twin is the class of transformers that computes what the long model does, of a text with the head of a language model. Other "
        "mechanisms have none in this base; `longattn export --format native` says why.*\n\n"
        f"{markdown_table(['base', 'mechanism: twin'], rows).replace('---:', '---')}\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Store the table of all families."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="path without suffix (default: %(default)s)")
    output = parser.parse_args(arguments).output
    record = {"machine": machine(), "twins": {base: twins_of(base) for base in sorted(IN_FULL)}}
    store_study(output, record, markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
