"""Check every family on a small checkpoint of its base with random weights, and store the table.

    python -m scripts.dev.tools.check_families                          what is not stored yet, or failed
    python -m scripts.dev.tools.check_families bert gpt2 --again        these, from the beginning

A check is a function in :data:`CHECKS`. A family needs nothing here: the package knows what it reads. Each cell is stored as soon as it is
known, in families.json and families.md, so that an interrupted run resumes where it stopped. Exit code 1 when a stored cell of these
families says "failed". :mod:`check_derived` has the families that follow from transformers alone."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_longattn import convert_checkpoint, export_checkpoint
from hf_longattn.conversion.adopt import ADOPTIONS
from hf_longattn.conversion.source_models import quiet_libraries
from hf_longattn.families import FAMILIES
from hf_longattn.inputs.modality import modality_of
from hf_longattn.modeling.family.definition import tower_field
from hf_longattn.positions.tables import moves_rows
from hf_longattn.reports import FAILED as FAILED_CHECK
from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import markdown_table, store_study, stored_study
from scripts.dev.tools.small_models import IN_FULL, Shape, known_head, of_trained_size, predicts_tokens, small_config_of

PASSED, FAILED, NOT_APPLICABLE, NOT_RUN = "passed", "failed", "not applicable", "not run"
TOKENS, GROWTH = 64, 4
SHAPE = Shape(layers=4)
SPECIAL = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "decoder_start_token_id": 2}
INTRODUCTION = """\
# Every family, checked

Written by `python -m scripts.dev.tools.check_families` (torch {torch}, transformers {transformers}). Each base is a small checkpoint
with random weights, as transformers saves it. It is converted to four times its length, images to twice their height and width, sounds to
four times their duration. Rows checked before 2026-11-28 are of the former checker (commit 8bf428dc3), whose checkpoints had a
tokenizer or a processor.

- *convert*: the conversion's own checks, and the largest difference from the base
- *export*: ONNX in onnxruntime, of encoders of texts
- *generate*: greedy, with a cache and without

[model_tester.md](model_tester.md) has transformers' own suite.
"""
Cell = dict[str, str]


class Differs(Exception):
    """A check that does not hold, in one sentence."""


class NotApplicable(Exception):
    """A check that does not apply to this model, and why."""


class Subject:
    """A family's small checkpoint, converted on first use.

    head: the class that is checked.
    short: the folder of the checkpoint.
    """

    def __init__(self, base: str, folder: Path) -> None:
        self.base, self.folder, self.family = base, folder, FAMILIES[base]
        self.modality, self.head, self.short = modality_of(self.family), known_head(base), folder / "short"
        self.reads = self.family.spec.reads if not self.family.towers else "towers"

    @cached_property
    def config(self) -> Any:
        """The base's config; its checkpoint is saved on the way."""
        torch.manual_seed(0)
        model: Any = self.family.base_class(self.head)(small_config_of(self.base, SHAPE, **SPECIAL))
        of_trained_size(model).save_pretrained(self.short)
        return model.config

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Those of a conversion to larger inputs by a window of all that the base sees, and positions that keep its outputs."""
        if any(getattr(part.spec, "shapes", None) for part in self.modality.parts.values()):
            raise NotApplicable("reads images of any size, so that there is no size to convert")
        settings: dict[str, Any] = {}
        for name, part in self.modality.parts.items():
            config = getattr(self.config, tower_field(name)) if name else self.config
            attention, size = self.of_part(part, config)
            settings |= size
            if name:
                settings.setdefault("towers", {})[name] = attention
            elif not self.keeps_its_attention:
                settings |= {"mechanism": attention.pop("mechanism"), "options": attention}
        if not self.family.towers and moves_rows(self.family.config_class.default_extension):
            settings["positions"] = "tile"
        return settings | ({"positions": "rope:none"} if self.family.rope else {})

    def of_part(self, part: Any, config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The attention of a stack, and the settings of its size."""
        spec: Any = part.spec
        if spec.reads == "grid":
            size = spec.sizes(config)[0]
            larger = "x".join(str(2 * side) for side in size)
            return {"mechanism": "window2d", "window": max(spec.of_size(config, size).sizes)}, {"image_size": larger}
        if spec.reads == "sound":
            seconds = GROWTH * spec.durations(config)[0]
            frames = spec.frames(config, spec.length(spec.durations(config)[0]))
            return {"mechanism": "window", "left": frames, "right": frames}, {"audio_seconds": seconds, "needs_training": True}
        tables = part.family.position_tables
        length = tables[0].tokens(config) if tables else part.family.base_length(config)
        return {"mechanism": "window", "window": 2 * length}, {"max_length": GROWTH * length}

    @property
    def keeps_its_attention(self) -> bool:
        """Whether the base has its own long attention, which the result keeps."""
        return self.base in ADOPTIONS

    @cached_property
    def report(self) -> Any:
        """The report of the conversion, and the result in the folder "long"."""
        return convert_checkpoint(self.short, self.folder / "long", **self.settings)

    def long(self) -> Any:
        """The result, loaded."""
        assert self.report
        model: Any = self.family.model_class(self.head).from_pretrained(self.folder / "long").eval()
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False  # of no use to a pass over a whole text, and no graph has it
        return model


def convert(subject: Subject) -> str:
    """The conversion, with the package's checks: of tensors, of outputs at the old size and of those at the new one."""
    checks = subject.report.checks
    if wrong := [check.name for check in checks if check.status == FAILED_CHECK]:
        raise Differs(f"failed: {', '.join(wrong)}")
    same = [check for check in checks if check.status == PASSED and "max_abs_difference" in check.values]
    if not same:
        raise Differs("no outputs were compared")
    largest = max(check.values["max_abs_difference"] for check in same)
    return f"{sum(check.status == PASSED for check in checks)} checks, {largest:.0e}"


def export(subject: Subject) -> str:
    """An ONNX graph of an encoder of texts, compared by the package."""
    if subject.reads != "text" or subject.config.is_encoder_decoder or getattr(subject.family.config_class, "is_decoder", True):
        raise NotApplicable("no encoder of texts")
    assert subject.report
    checks = export_checkpoint(subject.folder / "long", subject.folder / "graph").checks
    return f"ONNX, {max(check.values['difference'] for check in checks):.0e}"


def generate(subject: Subject) -> str:
    """The same tokens with and without a cache."""
    if subject.reads != "text" or not predicts_tokens(subject.base) or not subject.long().can_generate():
        raise NotApplicable("writes no text")
    ids = torch.randint(5, SHAPE.vocabulary, (1, 100), generator=torch.Generator().manual_seed(0))
    settings = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    with torch.no_grad():
        texts = [subject.long().generate(ids, **settings, use_cache=use_cache) for use_cache in (True, False)]
    if not torch.equal(*texts):
        raise Differs("other tokens with the cache than without")
    return "same tokens with and without cache"


CHECKS: dict[str, Callable[[Subject], str]] = {"convert": convert, "export": export, "generate": generate}
"""Column -> the check, which says what it found in a few words, or raises."""


def cell_of(check: Callable[[Subject], str], subject: Subject) -> Cell:
    """The cell of one check; never raises what the checked code raises."""
    try:
        return {"status": PASSED, "detail": check(subject)}
    except NotApplicable as reason:
        return {"status": NOT_APPLICABLE, "detail": str(reason)}
    except Exception as error:  # whatever the model, transformers or peft raise is the result
        kind = "" if isinstance(error, Differs) else f"{type(error).__name__}: "
        return {"status": FAILED, "detail": kind + " ".join(str(error).split())[:240].replace("|", "/")}


def check_family(base: str, record: dict[str, Any], store: Callable[[], None]) -> None:
    """Fill the cells of ``record`` that are missing or failed, and call ``store`` after each."""
    cells = record.setdefault("cells", {})
    with tempfile.TemporaryDirectory(prefix=f"family-{base}-") as folder:
        subject = Subject(base, Path(folder))
        record |= {"head": subject.head, "kind": subject.reads}
        for name, check in CHECKS.items():
            if cells.get(name, {}).get("status") in (None, FAILED):
                cells[name] = cell_of(check, subject)
                record["date"] = date.today().isoformat()
                print(f"{base:20} {name:20} {said(cells[name])}", flush=True)
                store()


def said(cell: Cell) -> str:
    """A cell in words."""
    return cell["detail"] if cell["status"] == PASSED else f"{cell['status']}: {cell['detail']}"


def markdown(stored: dict[str, Any]) -> str:
    """The table of all stored families."""
    rows = []
    for base, record in sorted(stored["families"].items()):
        cells = [said(record["cells"][name]) if name in record["cells"] else NOT_RUN for name in CHECKS]
        rows.append([f"`{base}`", record["kind"], f"`{record['head']}`", *cells, record["date"]])
    header = ["base", "reads", "head", *CHECKS, "checked on"]
    return f"{INTRODUCTION.format(**stored)}\n{markdown_table(header, rows).replace('---:', '---')}\n"


def main(arguments: list[str] | None = None) -> int:
    """Check the families and store what is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all")
    parser.add_argument("--again", action="store_true", help="also what is stored as passed")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of families.json, default %(default)s")
    options = parser.parse_args(arguments)
    if unknown := [base for base in options.families if base not in IN_FULL]:
        parser.error(f"unknown family {unknown[0]!r}, expected some of {', '.join(IN_FULL)}")
    file = options.output / "families.json"
    stored = {"families": {}, **stored_study(file)}
    stored |= {"torch": torch.__version__.partition("+")[0], "transformers": transformers.__version__}
    families: dict[str, Any] = stored["families"]

    def store() -> None:
        ordered = {**stored, "families": dict(sorted(families.items()))}
        store_study(file, ordered, markdown(stored))

    chosen = options.families or IN_FULL
    with quiet_libraries():
        for base in chosen:
            if options.again:
                families.pop(base, None)
            check_family(base, families.setdefault(base, {}), store)
    store()
    wrong = [(base, name) for base in chosen for name, cell in families[base]["cells"].items() if cell["status"] == FAILED]
    for base, name in wrong:
        print(f"FAILED {base}: {name}: {families[base]['cells'][name]['detail']}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
