"""Native twins of every mechanism in every family, scripts/dev/results/native_twins.*: which there are, and that they compute the same.

    python -m scripts.dev.tools.native_twins                        # some minutes
    python -m scripts.dev.tools.native_twins --only bert,llama      # these bases; the others stay as they are stored

Models are small and have random weights; mechanisms have the options of scripts/dev/tools/native_cases.py, with which one is transformers'
where there is such an architecture. Every twin is written and compared by `longattn export --format native`, read in an interpreter that
has transformers but not this package, and written as GGUF where llama.cpp computes the same. Of pictures, videos and sound the table says
which twin there is. What has no twin is not stored: the command says why."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

from hf_longattn import export_gguf, export_native
from hf_longattn.conversion.twins.base import LongModel, choose_twin
from hf_longattn.errors import LongAttentionError
from hf_longattn.export.gguf import gguf_refusal
from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms import list_mechanisms
from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import machine, markdown_table, store_study, stored_study

from .family_reach import OF_THE_BASE
from .native_cases import long_attention, long_values, save_long
from .small_models import (
    IN_FULL,
    TEXT_FAMILIES,
    language_model,
    small_audio_config,
    small_picture_config,
    small_towers_config,
)

OUTPUT = RESULTS / "native_twins"
PATTERNS: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8},
    "modernbert": {"local_attention": 8},
}
"""Bases that have windows in some layers: here of a width that small models notice."""
ATOL = 1e-4
OTHER_FAMILIES = [base for base in IN_FULL if base not in TEXT_FAMILIES]
"""Bases that read pictures, videos or sound, or have several towers."""
OTHER_HEADS = ("ForImageClassification", "ForVideoClassification", "ForAudioClassification", "ForCTC", "ForSequenceClassification")
"""Heads of these, the first that a base has; a base without one is asked as it is."""

Cell = dict[str, Any]
Table = dict[str, dict[str, Cell]]


def cell(base: str, mechanism: str, folder: Path) -> Cell:
    """One combination, compared; or ``{"reason": sentence}``. The long model and its twin are left in `folder`."""
    if (reason := text_refusal(base, mechanism)) is not None:
        return {"reason": reason}
    family, changes = FAMILIES[base], PATTERNS.get(base, {})
    config = family.config_class(**{**long_values(base), "long_attention": long_attention(mechanism), **changes})
    model = LongModel(config, family.model_classes[language_model(base)], family)
    choice: Any = choose_twin(model)
    save_long(folder / "long", base, long_attention(mechanism), **changes)
    checks = export_native(folder / "long", folder / "twin").checks
    generated = [check.status for check in checks if check.name.startswith("generates")]
    outputs = [check.values["max_abs_difference"] for check in checks if check.name.startswith("equal to the long model")]
    gradients = next(check for check in checks if check.name == "equal gradients")
    refusal = gguf_refusal(choice.twin.config(model))
    if refusal is None:
        export_gguf(folder / "long", folder / "gguf")  # raises unless every tensor is read back
    return {
        "twin": choice.class_name,
        "outputs": max(outputs),
        "gradients": gradients.values["max_abs_difference"],
        "generated": "the same tokens" if "passed" in generated else "generates no text",
        "gguf": "no" if refusal else "yes",
    }


def text_refusal(base: str, mechanism: str) -> str | None:
    """Why there is no twin of a mechanism in a family that reads text, by the config alone; ``None`` = there is one."""
    family = FAMILIES[base]
    try:
        values = {**long_values(base), "long_attention": long_attention(mechanism), **PATTERNS.get(base, {})}
        choice = choose_twin(LongModel(family.config_class(**values), family.model_classes[language_model(base)], family))
    except LongAttentionError as error:
        return str(error)
    return choice.reason if choice.twin is None else None


def planned_cell(base: str, mechanism: str) -> Cell:
    """The twin of a base that does not read text, or the reason why there is none, by its config alone; it is compared when it is
    exported."""
    family = FAMILIES[base]
    if family.towers:
        small = small_towers_config(base)
    else:
        small = (small_picture_config if family.rule.reads == "grid" else small_audio_config)(base)
    values = {name: value for name, value in small.to_dict().items() if name not in OF_THE_BASE}
    attention = {"towers": {name: long_attention(mechanism) for name in family.towers}} if family.towers else long_attention(mechanism)
    try:
        config = family.config_class(**values, long_attention=attention)
        head = next((name for task in OTHER_HEADS for name in family.model_classes if name.endswith(task)), family.base_model_name)
        choice = choose_twin(LongModel(config, family.model_classes[head], family))
    except LongAttentionError as error:
        return {"reason": str(error)}
    return {"twin": choice.class_name} if choice.twin is not None else {"reason": choice.reason}


def inputs_of(config: Any) -> dict[str, Tensor]:
    """Random ids of the maximum length of the small models, without padding."""
    random = torch.Generator().manual_seed(0)
    inputs = {"input_ids": torch.randint(5, 90, (2, 64), generator=random)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(5, 90, (2, 12), generator=random)
    return inputs


READER = """
import importlib.util, json, sys
if importlib.util.find_spec("hf_longattn") is not None:
    sys.exit("hf_longattn is importable here")
import torch, transformers
from pathlib import Path
from safetensors.torch import load_file, save_file
transformers.utils.logging.set_verbosity_error()
for folder in map(Path, sys.argv[1:]):
    name = json.loads((folder / "twin" / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder / "twin").eval()
    with torch.no_grad():
        output = model(**load_file(folder / "inputs.safetensors"))[0]
    save_file({"output": output.contiguous()}, folder / "output.safetensors")
"""


def clean_python(folder: Path) -> Path:
    """An environment with the packages of this one, except those that are installed from a checkout: without hf_longattn."""
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "packages.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return folder / "bin" / "python"


def read_elsewhere(results: Table, work: Path) -> None:
    """Let every twin be read without this package, and put the largest difference of its logits (or first output)
    from the long model's into its cell."""
    cells = {work / mechanism / base: twin for mechanism, row in results.items() for base, twin in row.items() if "twin" in twin}
    expected: dict[Path, Tensor] = {}
    for folder in cells:
        family = FAMILIES[folder.name]
        model: Any = family.model_class(family.model_classes[language_model(folder.name)]).from_pretrained(folder / "long").eval()
        inputs = inputs_of(model.config)
        save_file(inputs, folder / "inputs.safetensors")
        with torch.no_grad():
            expected[folder] = model(**inputs)[0]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(clean_python(work / "venv")), "-c", READER, *map(str, cells)]
    done = subprocess.run(command, cwd=work, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"The twins could not be read in a clean environment: {done.stderr.strip().splitlines()[-1]}")
    for folder, twin in cells.items():
        output = load_file(folder / "output.safetensors")["output"]
        difference = float((output - expected[folder]).abs().max())
        if not difference <= ATOL * max(1.0, float(expected[folder].abs().max())):
            raise SystemExit(f"{folder}: read without hf_longattn, its first output differs by {difference:.1e}")
        twin["without_hf_longattn"] = difference


def table(bases: list[str], work: Path) -> Table:
    """Mechanism -> base -> cell."""
    results: Table = {}
    for mechanism in list_mechanisms(grid=False):
        results[mechanism] = {}
        for base in bases:
            result = results[mechanism][base] = cell(base, mechanism, work / mechanism / base)
            print(f"{mechanism} {base}: {result.get('twin') or result['reason']}", file=sys.stderr, flush=True)
    read_elsewhere(results, work)
    return results


def markdown(results: Table, others: Table, how: str) -> str:
    """The page.

    Args:
        results: of bases that read text, compared.
        others: of the other bases, by their configs.
        how: where it was made.
    """
    by_base: dict[str, list[str]] = {}
    for mechanism, cells in {**results, **{name: {**results.get(name, {}), **cells} for name, cells in others.items()}}.items():
        for base, found in cells.items():
            by_base.setdefault(base, []).append(f"`{mechanism}`: {found['twin']}")
    lines = [
        "# Native twins",
        "",
        f"*Made by `python -m scripts.dev.tools.native_twins` on {how}.",
        "A twin is the class of transformers that computes what the long model does, of a text with the head of a language model.",
        "Other mechanisms have none in this base; `longattn export --format native` says why.*",
        "",
        markdown_table(["base", "mechanism: twin"], [[base, ", ".join(found)] for base, found in by_base.items()]).replace("---:", "---"),
        "",
        "## Compared",
        "",
        "Small models with random weights, at a short and at the maximum length, with padding where the twin takes it: the largest",
        "difference of any output or hidden state, of any gradient after one step, and the tokens generated; then the largest difference",
        "of the logits of the twin in an environment without hf_longattn; and whether a GGUF file is written, read back tensor by tensor.",
        "Twins of pictures, videos, sound and towers are compared when they are exported.",
        "",
        "| mechanism | base | twin | outputs | gradients | generated | without hf_longattn | GGUF |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for mechanism, cells in results.items():
        for base, result in cells.items():
            differences = [f"{result[what]:.0e}" for what in ("outputs", "gradients", "without_hf_longattn")]
            row = [f"`{mechanism}`", base, result["twin"], *differences[:2], result["generated"], differences[2], result["gguf"]]
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def only_twins(found: Table) -> Table:
    """The cells with a twin."""
    return {
        mechanism: twins for mechanism, cells in found.items() if (twins := {base: cell for base, cell in cells.items() if "twin" in cell})
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(TEXT_FAMILIES), help="bases that read text, separated by commas, or none (default: all)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="path without suffix (default: %(default)s)")
    options = parser.parse_args(arguments)
    bases = [] if options.only == "none" else options.only.split(",")
    if unknown := sorted({*bases} - {*TEXT_FAMILIES}):
        parser.error(f"unknown base {unknown[0]!r}; expected some of {', '.join(TEXT_FAMILIES)}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as work:
        results = table(bases, Path(work)) if bases else {}
    others = {mechanism: {base: planned_cell(base, mechanism) for base in OTHER_FAMILIES} for mechanism in list_mechanisms()}
    where = machine()
    stored: Table = stored_study(options.output).get("twins", {})
    kept = {mechanism: {base: cell for base, cell in cells.items() if base not in bases} for mechanism, cells in stored.items()}
    merged = {mechanism: {**kept.get(mechanism, {}), **results.get(mechanism, {})} for mechanism in list_mechanisms(grid=False)}
    results = only_twins({mechanism: {base: row[base] for base in TEXT_FAMILIES if base in row} for mechanism, row in merged.items()})
    others = only_twins(others)
    described = f"{where['processor']} with transformers {where['transformers']}"
    store_study(options.output, {"machine": where, "twins": results, "others": others}, markdown(results, others, described))
    return 0


if __name__ == "__main__":
    sys.exit(main())
