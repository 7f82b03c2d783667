"""Audit the reach of every family, and store the table: `longattn audit` of a small long model with random weights.

    python -m scripts.dev.tools.family_reach                 # what is not stored yet
    python -m scripts.dev.tools.family_reach bert vit        # these, again

Every row is stored as soon as it is known, in reach.json and reach.md, so that an interrupted run resumes where it stopped. Exit code 1
when a measured reach of these families is not the declared one."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_longattn.conversion.model_loading import quiet_libraries
from hf_longattn.errors import LongAttentionError
from hf_longattn.families import FAMILIES, Family
from hf_longattn.inspect import ReachAudit, audit_reach
from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import markdown_table, store_study
from scripts.dev.tools.small_models import IN_FULL, Shape, small_audio_config, small_config, small_picture_config

TOKENS = 48
"""Tokens, or frames, of an audit; pictures have as many patches as the small model reads."""
SPECIAL = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "decoder_start_token_id": 2}
WINDOWS: dict[str, dict[str, Any]] = {
    "text": {"mechanism": "window", "window": 8},
    "pictures": {"mechanism": "window2d", "window": 3},
    "sound": {"mechanism": "window", "left": 5, "right": 3},
}
"""The mechanism of each kind of input that is audited, unless the family has an attention of its own."""
OF_THE_BASE = ("model_type", "transformers_version", "architectures")
"""Fields that the Long config does not take from its base's."""
INTRODUCTION = """\
# The reach of every family

Written by `python -m scripts.dev.tools.family_reach` (torch {torch}, transformers {transformers}). Small long models with random weights:
tokens, patches or frames are replaced, and every layer's outputs must change where the config lets them, bit for bit, and nowhere else
(`longattn audit`). A family of several towers is audited by that of each.
"""


def kind_of(family: Family) -> str:
    """What a family reads, in a word."""
    return {"grid": "pictures"}.get(family.rule.reads, family.rule.reads)


def small_long_model(base: str) -> Any:
    """A small long model of a family with windows, and weights that are large enough to be seen in outputs."""
    family = FAMILIES[base]
    kind = kind_of(family)
    shape = Shape(tokens=2 * TOKENS)
    if kind == "text":
        source = small_config(base, shape, attention_type="original_full", **SPECIAL)
    else:
        source = (small_audio_config if kind == "sound" else small_picture_config)(base, shape)
    values = {name: value for name, value in source.to_dict().items() if name not in OF_THE_BASE}
    chosen = {} if family.own_attention else {"long_attention": WINDOWS[kind]}
    config = family.config_class(**values, **chosen)
    torch.manual_seed(0)
    model = family.model_class(family.model_classes[family.base_model_name])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter.requires_grad:
                parameter.mul_(4)
    return model


def row_of(base: str) -> dict[str, Any]:
    """What the audit of a family found, or why there is none."""
    family = FAMILIES[base]
    kind = kind_of(family)
    if kind == "towers":
        names = ", ".join(tower.base_model_type for tower in family.towers.values())
        return {"kind": kind, "reason": f"audited as {names}"}
    try:
        model = small_long_model(base)
        fixed_size = kind == "pictures" or base == "whisper"
        audit = audit_reach(model, length=None if fixed_size else TOKENS)
        assert isinstance(audit, ReachAudit), "towers are audited as families of their own"
    except LongAttentionError as error:
        return {"kind": kind, "reason": str(error)}
    return {
        "kind": kind,
        "mechanism": model.config.long_attention.mechanism,
        "agrees": bool(audit.agrees),
        "stages": len(audit.stages),
        "tested": float(audit.tested),
    }


def in_words(row: dict[str, Any]) -> list[str]:
    """The cells of a row after its base and kind."""
    if "reason" in row:
        return ["", "–", "–", row["reason"]]
    verdict = "as declared" if row["agrees"] else "NOT as declared"
    return [f"`{row['mechanism']}`", str(row["stages"]), f"{100 * row['tested']:.0f} %", verdict]


def page(stored: dict[str, Any]) -> str:
    """The table in Markdown."""
    rows = []
    for base, row in sorted(stored["families"].items()):
        cells = in_words(row)
        rows.append([f"`{base}`", row["kind"], cells[0] or "–", *cells[1:]])
    columns = ["base", "reads", "mechanism", "stages measured", "pairs tested", "reach"]
    return "\n".join([INTRODUCTION.format(**stored), markdown_table(columns, rows).replace("---:", "---"), ""])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: those that are not stored")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of reach.json and reach.md, default %(default)s")
    options = parser.parse_args(arguments)
    if unknown := sorted({*options.families} - {*IN_FULL}):
        parser.error(f"unknown family {unknown[0]!r}, expected some of {', '.join(IN_FULL)}")
    file = options.output / "reach.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"families": {}}
    stored |= {"torch": torch.__version__.partition("+")[0], "transformers": transformers.__version__}
    chosen = options.families or [base for base in IN_FULL if base not in stored["families"]]
    with quiet_libraries():
        for base in chosen:
            stored["families"][base] = row_of(base)
            print(base, in_words(stored["families"][base]), flush=True)
            stored["families"] = dict(sorted(stored["families"].items()))
            store_study(file, stored, page(stored))
    wrong = [base for base in chosen if stored["families"][base].get("agrees") is False]
    for base in wrong:
        print(f"FAILED {base}: the reach is not the declared one", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
