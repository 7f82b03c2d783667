"""The report of a transfer: in JSON, and as a page to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "transfer_report"
STAGES = {"before": "converted", "stage1": "after stage 1", "stage2": "after stage 2"}


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write ``transfer_report.json`` and ``transfer_report.md`` into the checkpoint's folder."""
    (folder / f"{NAME}.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (folder / f"{NAME}.md").write_text(markdown(report), encoding="utf-8")


def read_report(folder: Path) -> dict[str, Any] | None:
    """What :func:`write_report` wrote there, or ``None``."""
    path = folder / f"{NAME}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def recovered(original: float, before: float, after: float) -> float | None:
    """Which share of the loss that the conversion cost has been won back; ``None`` when it cost nothing."""
    return (before - after) / (before - original) if before > original else None


def markdown(report: dict[str, Any]) -> str:
    """The report as a page: loss by stage, tokens used, and each layer's error."""
    before, tokens = report["before"], report["tokens"]
    unit = {"mlm": "masked", "clm": "next"}[report["objective"]]
    lines = [
        "# Attention transfer",
        "",
        f"Nats per {unit} token on held-out inputs of {report['input_length']:,} tokens. The original is the same model with softmax "
        "attention in every layer.",
        "",
        "| model | loss | gap recovered | tokens |",
        "|---|---|---|---|",
        f"| original | {before['original']:.3f} | | |",
    ]
    stages = {name: title for name, title in STAGES.items() if name in report}
    used = 0
    for name, title in stages.items():
        used += tokens.get(name, 0)
        won = recovered(before["original"], before["loss"], report[name]["loss"])
        share = "" if name == "before" or won is None else f"{100 * won:.1f} %"
        lines.append(f"| {title} | {report[name]['loss']:.3f} | {share} | {used:,} |")
    lines += [
        "",
        "Squared error of each layer's attention output, as a share of the softmax output's mean square:",
        "",
        "| layer | " + " | ".join(stages.values()) + " |",
        "|---" * (len(stages) + 1) + "|",
    ]
    for number, row in enumerate(before["layers"]):
        cells = " | ".join(f"{report[name]['layers'][number]['share']:.4f}" for name in stages)
        lines.append(f"| {row['layer']} | {cells} |")
    return "\n".join(lines) + "\n"


def describe_transfer(report: dict[str, Any]) -> str:
    """What a model card says about a run."""
    last = [name for name in STAGES if name in report][-1]
    total = sum(report["tokens"].values())
    return (
        f"Attention transfer with `scripts/distill_attention.py` on {', '.join(report['settings']['text'])}, {total:,} tokens: "
        f"held-out loss {report['before']['original']:.3f} with softmax attention, {report['before']['loss']:.3f} after the conversion, "
        f"{report[last]['loss']:.3f} now."
    )
