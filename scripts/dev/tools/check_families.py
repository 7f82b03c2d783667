"""Check every family on a realistic random checkpoint of its base, and store the table.

    python -m scripts.dev.tools.check_families                          what is not stored yet, or failed
    python -m scripts.dev.tools.check_families bert gpt2 --again        these, from the beginning

Each cell is stored as soon as it is known, in families.json and families.md, so that an interrupted run resumes where it stopped. The
column of transformers' own suite is read from model_tester.json, which `python -m scripts.dev.tools.run_transformers_tests` writes; without
a family to check, the page is made anew from both files. Exit code 1 when a stored cell of these families says "failed"."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_longattn.conversion.model_loading import quiet_libraries
from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import markdown_table, store_study
from scripts.dev.tools import family_checks
from scripts.dev.tools.family_checkpoints import make_checkpoint
from scripts.dev.tools.picture_families import PICTURE_FAMILIES, PictureSubject, make_picture_checkpoint
from scripts.dev.tools.run_transformers_tests import failed_here, failures, stored_suite
from scripts.dev.tools.small_models import TEXT_FAMILIES
from scripts.dev.tools.sound_families import SOUND_FAMILIES, SoundSubject, make_sound_checkpoint
from scripts.dev.tools.tower_families import TOWER_FAMILIES, TowersSubject, make_towers_checkpoint

TITLES = {
    "convert": "convert",
    "on_the_fly": "on the fly",
    "old_length": "equal at old length",
    "save_load": "save, load",
    "model_tester": "ModelTesterMixin",
    "lora": "LoRA",
    "compile": "compile",
    "export": "export",
    "generate": "generate",
}
INTRODUCTION = """\
# Every family, checked

Written by `python -m scripts.dev.tools.check_families` (torch {torch}, transformers {transformers}). Each base is a random
checkpoint of its default shape, scaled down, as transformers saves it; the command line converts it to four times its length, pictures
to twice their height and width, sounds to four times their duration.

- *equal at old length*: largest difference from the base
- *ModelTesterMixin*: transformers' own suite ([model_tester.md](model_tester.md))
- *LoRA*: two steps through peft, then merged
- *compile*: fullgraph, aot_eager
- *export*: ONNX in onnxruntime for encoders and pictures, otherwise torch.export; three lengths with padding
- *generate*: greedy, a padded batch
"""
KINDS = (
    (PICTURE_FAMILIES, make_picture_checkpoint, PictureSubject),
    (SOUND_FAMILIES, make_sound_checkpoint, SoundSubject),
    (TEXT_FAMILIES, make_checkpoint, family_checks.Subject),
    (TOWER_FAMILIES, make_towers_checkpoint, TowersSubject),
)
"""Families of one kind of input, how a checkpoint of one is made, and what is checked of it."""
PASSED, FAILED, NOT_RUN = family_checks.PASSED, family_checks.FAILED, family_checks.NOT_RUN


def check_family(base: str, record: dict[str, Any], store: Any, *, again: bool) -> None:
    """Fill the cells of ``record`` that are missing or failed, and call ``store`` after each."""
    if again:
        record.clear()
    cells = record.setdefault("cells", {})
    todo = [name for name in TITLES if name != "model_tester" and cells.get(name, {}).get("status") in (None, FAILED)]
    if not todo:
        return
    with tempfile.TemporaryDirectory(prefix=f"family-{base}-") as temporary:
        folder = Path(temporary)
        try:
            make, subject_class = next((make, subject) for families, make, subject in KINDS if base in families)
            checkpoint = make(base, folder / "short")
            record |= {"head": checkpoint.head, "kind": checkpoint.kind, "tokenizer": checkpoint.tokenizer, "length": checkpoint.length}
        except Exception as error:  # any architecture may have a config that cannot be made small by its fields' names
            cells |= {name: family_checks.failed(error) for name in todo}
            store()
            return
        subject = subject_class(checkpoint, folder)
        for name in todo:
            cells[name] = subject.run(name)
            record["date"] = date.today().isoformat()
            print(f"{base:20} {TITLES[name]:20} {said(cells[name])}", flush=True)
            store()


def said(cell: dict[str, Any]) -> str:
    """A cell in words."""
    return cell["detail"] if cell["status"] == PASSED else f"{cell['status']}: {cell['detail']}"


def suite_cell(base: str, suite: dict[str, Any]) -> dict[str, Any]:
    """What transformers' suite found, as `run_transformers_tests` stored it."""
    entry = suite.get(f"long_{base}")
    if entry is None:
        return {"status": NOT_RUN, "detail": f"python -m scripts.dev.tools.run_transformers_tests {base} --output scripts/dev/results"}
    detail = f"{entry['passed']} passed, {entry['failed']} failed{failures(entry)}, {entry['skipped']} skipped"
    return {"status": FAILED if failed_here(entry) else PASSED, "detail": detail}


def markdown(stored: dict[str, Any], suite: dict[str, Any]) -> str:
    """The table of all stored families; ``suite`` is what is stored of transformers' suite."""

    def words(base: str, name: str, cells: dict[str, Any]) -> str:
        cell = suite_cell(base, suite) if name == "model_tester" else cells.get(name)
        return NOT_RUN if cell is None else said(cell)

    families = sorted(stored["families"].items())
    rows = [[f"`{base}`", record.get("kind", ""), *(words(base, name, record["cells"]) for name in TITLES)] for base, record in families]
    heads = [[f"`{base}`", f"`{record.get('head', '')}`", record.get("tokenizer", ""), record.get("date", "")] for base, record in families]
    return "\n".join(
        [
            INTRODUCTION.format(**stored),
            markdown_table(["base", "kind", *TITLES.values()], rows).replace("---:", "---"),
            "",
            "The checkpoints:",
            "",
            markdown_table(["base", "head", "tokenizer or processor", "checked on"], heads).replace("---:", "---"),
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all")
    parser.add_argument("--again", action="store_true", help="also what is stored as passed")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="folder of families.json, families.md and model_tester.json, default %(default)s"
    )
    options = parser.parse_args(arguments)
    known = [base for families, _, _ in KINDS for base in families]
    unknown = [base for base in options.families if base not in known]
    if unknown:
        parser.error(f"unknown family {unknown[0]!r}, expected some of {', '.join(known)}")
    chosen = options.families or known
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "families.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"families": {}}
    stored |= {"torch": torch.__version__.partition("+")[0], "transformers": transformers.__version__}

    def store() -> None:
        ordered = {**stored, "families": {base: stored["families"][base] for base in sorted(stored["families"])}}
        store_study(file, ordered, markdown(stored, stored_suite(options.output, stored["transformers"])))

    with quiet_libraries():
        for base in chosen:
            record = stored["families"].setdefault(base, {})
            check_family(base, record, store, again=options.again)
    store()
    wrong = [(base, name) for base in chosen for name, cell in stored["families"][base]["cells"].items() if cell["status"] == FAILED]
    for base, name in wrong:
        print(f"FAILED {base}: {TITLES[name]}: {stored['families'][base]['cells'][name]['detail']}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
