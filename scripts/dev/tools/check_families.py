"""Check every family on a small checkpoint of its base with random weights, and store the table.

    python -m scripts.dev.tools.check_families                          what is not stored yet, or failed
    python -m scripts.dev.tools.check_families bert gpt2 --again        these, from the beginning

A check is a function in :data:`CHECKS`. A family needs nothing here: the package knows what it reads. Each cell is stored as soon as it is
known, in families.json and families.md, so that an interrupted run resumes where it stopped. The column of transformers' own suite is read
from model_tester.json, which `python -m scripts.dev.tools.run_transformers_tests` writes. Exit code 1 when a stored cell of these
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
from torch import Tensor

from hf_longattn import convert_checkpoint, export_checkpoint
from hf_longattn.checks import FAILED as FAILED_CHECK
from hf_longattn.conversion.long_models import CONVERTERS
from hf_longattn.conversion.model_loading import quiet_libraries
from hf_longattn.conversion.plan import plan_conversion
from hf_longattn.data.english import verification_text
from hf_longattn.families import FAMILIES
from hf_longattn.inputs.common.base import kind_of
from hf_longattn.positions.tables import moves_rows
from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import markdown_table, store_study, stored_study
from scripts.dev.tools.run_transformers_tests import failed_here, failures, stored_suite
from scripts.dev.tools.small_models import IN_FULL, Shape, known_head, of_trained_size, predicts_tokens, small_config_of

PASSED, FAILED, NOT_APPLICABLE, NOT_RUN = "passed", "failed", "not applicable", "not run"
TOLERANCE = 1e-4
"""Largest difference called equal, relative to the largest output (at least 1)."""
TOKENS, GROWTH = 64, 4
SHAPE = Shape(layers=4)
SPECIAL = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "decoder_start_token_id": 2}
SUITE = "ModelTesterMixin"
INTRODUCTION = f"""\
# Every family, checked

Written by `python -m scripts.dev.tools.check_families` (torch {{torch}}, transformers {{transformers}}). Each base is a small checkpoint
with random weights, as transformers saves it. It is converted to four times its length, images to twice their height and width, sounds to
four times their duration. Rows checked before 2026-11-28 are of the former checker (commit 8bf428dc3), whose checkpoints had a
tokenizer or a processor.

- *convert*: the conversion's own checks, and the largest difference from the base
- *LoRA*: two steps through peft, then merged
- *compile*: fullgraph, aot_eager
- *export*: ONNX in onnxruntime for encoders and images, otherwise torch.export
- *generate*: greedy, with a cache and without
- *{SUITE}*: transformers' own suite ([model_tester.md](model_tester.md))
"""
Cell = dict[str, str]


class Differs(Exception):
    """A check that does not hold, in one sentence."""


class NotApplicable(Exception):
    """A check that does not apply to this kind of model, and why."""


class Subject:
    """A family's small checkpoint, converted on first use.

    head: the class that is checked.
    short: the folder of the checkpoint.
    """

    def __init__(self, base: str, folder: Path) -> None:
        self.base, self.folder, self.family = base, folder, FAMILIES[base]
        self.kind, self.head, self.short = kind_of(self.family), known_head(base), folder / "short"
        self.reads = self.family.rule.reads if not self.family.towers else "towers"

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
        if self.kind.any_size:
            raise NotApplicable("reads images of any size, so that there is no size to convert")
        settings: dict[str, Any] = {}
        for name, part in self.kind.parts.items():
            config = self.kind.configs(self.config)[name]
            if part.any_size:
                raise NotApplicable("reads images of any size, so that there is no size to convert")
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
        rule: Any = part.rule
        if rule.reads == "grid":
            size = rule.sizes(config)[0]
            larger = "x".join(str(2 * side) for side in size)
            return {"mechanism": "window2d", "window": max(rule.of_size(config, size).sizes)}, {"image_size": larger}
        if rule.reads == "sound":
            seconds = GROWTH * rule.durations(config)[0]
            frames = rule.frames(config, rule.length(rule.durations(config)[0]))
            return {"mechanism": "window", "left": frames, "right": frames}, {"audio_seconds": seconds, "needs_training": True}
        tables = part.family.position_tables
        length = tables[0].tokens(config) if tables else part.family.base_length(config)
        return {"mechanism": "window", "window": 2 * length}, {"max_length": GROWTH * length}

    @property
    def keeps_its_attention(self) -> bool:
        """Whether the base has its own long attention, which the result keeps."""
        return any(converter.model_type == self.base for converter in CONVERTERS)

    @cached_property
    def report(self) -> Any:
        """The report of the conversion, and the result in the folder "long"."""
        return convert_checkpoint(self.short, self.folder / "long", **self.settings)

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Arguments of ``forward`` for one input of the new size: those by which the package verifies a conversion."""
        plan = plan_conversion(self.short, **self.settings)
        given: dict[str, Tensor] = {}
        for part in plan.towers.values() if self.family.towers else [plan]:
            arguments = part.kind.arguments_at(part.kind.verification_inputs(part, verification_text(None)), part.config, part.inputs.new)
            if "input_ids" in arguments:
                arguments |= part.kind.seeded(part.config, arguments["input_ids"])
            given |= arguments
        if self.config.is_encoder_decoder and "decoder_input_ids" not in given:
            some = torch.arange(1 if hasattr(self.config, "blank_token_id") else 6)[None]
            given["decoder_input_ids"] = given["input_ids"][:, :20].contiguous() if "input_ids" in given else some
        return given

    def long(self) -> Any:
        """The result, loaded."""
        assert self.report
        model: Any = self.family.model_class(self.head).from_pretrained(self.folder / "long").eval()
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False  # of no use to a pass over a whole text, and no graph has it
        return model

    def outputs(self, model: Any) -> Tensor:
        """The scores of a pass, or the hidden states where there are none; with the graph of gradients where the model trains."""
        with torch.set_grad_enabled(model.training):
            outputs = model(**self.inputs)
        names = ("logits", "logits_per_text")
        found: Tensor = next((outputs[name] for name in names if name in outputs), outputs[0])
        return found


def equal(expected: Tensor, measured: Tensor) -> str:
    """The largest difference, in words."""
    if expected.shape != measured.shape:
        raise Differs(f"outputs have the shapes {tuple(measured.shape)} and {tuple(expected.shape)}")
    largest = (expected - measured).abs().max().item()
    if not largest <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise Differs(f"outputs differ by {largest:.1e}, the largest is {expected.abs().max().item():.1f}")
    return f"{largest:.0e}" if largest else "0"


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


def lora(subject: Subject) -> str:
    """Two steps with adapters, which are merged."""
    import peft

    model = peft.get_peft_model(subject.long(), peft.LoraConfig(r=4, target_modules="all-linear"))
    before = subject.outputs(model.eval())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # the first step trains B, which is initialised to zero, and the second A
        loss = subject.outputs(model.train()).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = subject.outputs(model.eval())
    if not torch.isfinite(loss) or torch.equal(before, after):
        raise Differs(f"two steps with loss {loss:.3f} did not change the outputs")
    return f"trains, merges ({equal(after, subject.outputs(model.merge_and_unload().eval()))})"


def compiled(subject: Subject) -> str:
    """One graph without a break; of a transducer, whose decoder is an LSTM, the encoder's."""
    model = subject.long()
    if hasattr(model, "joint"):
        model = model.get_encoder()
        subject.inputs.pop("decoder_input_ids", None)
    torch.compiler.reset()
    return equal(subject.outputs(model), subject.outputs(torch.compile(model, fullgraph=True, backend="aot_eager")))


def export(subject: Subject) -> str:
    """A graph, compared by the package."""
    if subject.reads != "text":
        raise NotApplicable("only models of texts are exported as graphs")
    if subject.config.is_encoder_decoder:
        raise NotApplicable("a graph has no encoder and decoder")
    format = "torch" if getattr(subject.family.config_class, "is_decoder", True) else "onnx"
    assert subject.report
    report = export_checkpoint(subject.folder / "long", subject.folder / "graph", format=format)
    largest = max(check.values["difference"] for check in report.checks)
    return f"{'ONNX' if format == 'onnx' else 'torch.export'}, {largest:.0e}"


def generate(subject: Subject) -> str:
    """The same tokens with and without a cache."""
    if subject.reads != "text" or not predicts_tokens(subject.base) or not subject.long().can_generate():
        raise NotApplicable("writes no text")
    model, inputs = subject.long(), {"input_ids": subject.inputs["input_ids"][:, :100]}
    inputs |= {name: value[:, :100] for name, value in subject.inputs.items() if name not in ("input_ids", "decoder_input_ids")}
    settings = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    with torch.no_grad():
        texts = [model.generate(**inputs, **settings, use_cache=use_cache) for use_cache in (True, False)]
    if not torch.equal(*texts):
        raise Differs("other tokens with the cache than without")
    return "same tokens with and without cache"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "convert": convert, "LoRA": lora, "compile": compiled, "export": export, "generate": generate,
}  # fmt: skip
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


def suite_cell(base: str, suite: dict[str, Any]) -> Cell:
    """What transformers' suite found, as `run_transformers_tests` stored it."""
    entry = suite.get(f"long_{base}")
    if entry is None:
        return {"status": NOT_RUN, "detail": f"python -m scripts.dev.tools.run_transformers_tests {base} --output scripts/dev/results"}
    detail = f"{entry['passed']} passed, {entry['failed']} failed{failures(entry)}, {entry['skipped']} skipped"
    return {"status": FAILED if failed_here(entry) else PASSED, "detail": detail}


def markdown(stored: dict[str, Any], suite: dict[str, Any]) -> str:
    """The table of all stored families; ``suite`` is what is stored of transformers' suite."""
    rows = []
    for base, record in sorted(stored["families"].items()):
        cells = [record["cells"].get(name) for name in CHECKS]
        words = [NOT_RUN if cell is None else said(cell) for cell in (*cells, suite_cell(base, suite))]
        rows.append([f"`{base}`", record["kind"], f"`{record['head']}`", *words, record["date"]])
    header = ["base", "reads", "head", *CHECKS, SUITE, "checked on"]
    return f"{INTRODUCTION.format(**stored)}\n{markdown_table(header, rows).replace('---:', '---')}\n"


def main(arguments: list[str] | None = None) -> int:
    """Check the families and store what is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all")
    parser.add_argument("--again", action="store_true", help="also what is stored as passed")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of families.json and model_tester.json, default %(default)s")
    options = parser.parse_args(arguments)
    if unknown := [base for base in options.families if base not in IN_FULL]:
        parser.error(f"unknown family {unknown[0]!r}, expected some of {', '.join(IN_FULL)}")
    file = options.output / "families.json"
    stored = {"families": {}, **stored_study(file)}
    stored |= {"torch": torch.__version__.partition("+")[0], "transformers": transformers.__version__}
    families: dict[str, Any] = stored["families"]

    def store() -> None:
        ordered = {**stored, "families": dict(sorted(families.items()))}
        store_study(file, ordered, markdown(stored, stored_suite(options.output, stored["transformers"])))

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
