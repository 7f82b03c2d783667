"""What PyTorch's compiler makes of the calls of every mechanism for an H100, without one: ``python -m scripts.dev.tools.lowering``.

Runs ``tests.engines.lowering`` (kinds of calls) and ``tests.engines.lowered_mechanisms`` (mechanisms of the registry in every condition)
and stores what each found. Names on the command line are run again, and the others stay as they are stored.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from hf_longattn import list_mechanisms
from scripts.dev import ROOT
from scripts.dev.benchmarks.report import markdown_table
from tests.engines.lowered_mechanisms import CONDITIONS
from tests.engines.lowering import CASES
from tests.engines.pretended_h100 import TRITON

RESULTS = Path(__file__).parents[1] / "results"
PROGRAMS = {"cases": ("tests.engines.lowering", "case"), "mechanisms": ("tests.engines.lowered_mechanisms", "mechanism")}
"""Part of the record -> the program that makes it, and the key of a name in its lines."""
WITHOUT_KERNEL = "NoKernel: "


def versions() -> dict[str, str]:
    """Of PyTorch and Triton."""
    return {"torch": torch.__version__, "triton": TRITON[".".join(torch.__version__.split(".")[:2])]}


def run(record: dict[str, Any], part: str, names: list[str]) -> None:
    """Add the results for ``names`` to the record as they are found."""
    module, key = PROGRAMS[part]
    with subprocess.Popen([sys.executable, "-m", module, *names], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            result = json.loads(line)
            if "lacking" in result:
                sys.exit(f"There is no pretended GPU: {result['lacking']}")
            name = result.pop(key)
            record[part][name] = {"date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}", **versions(), **result}
            store(record)
            print(name, *failures_of(result), sep="; ", flush=True)


def failures_of(result: dict[str, Any]) -> list[str]:
    """Everything that went wrong in a stored result."""
    if "cells" not in result:
        return [result["failure"]] if result["failure"] else []
    return [f"{cell['form']}, {cell['condition']}, {cell['dtype']}: {failure}" for cell in result["cells"] for failure in cell["failures"]]


def store(record: dict[str, Any]) -> None:
    record["cases"] = {name: record["cases"][name] for name in CASES if name in record["cases"]}
    record["mechanisms"] = {name: record["mechanisms"][name] for name in list_mechanisms() if name in record["mechanisms"]}
    (RESULTS / "lowering.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "lowering.md").write_text(markdown(record), encoding="utf-8")


def cell_text(cells: list[dict[str, Any]]) -> str:
    """The kernels of flex_attention in bf16, or what ran without one, and those in fp32 where another path ran in bf16."""
    texts = []
    for cell in cells:
        others = [path for path in cell["paths"] if path == "flash"]
        text = " + ".join(([f"{cell['kernels']}"] if cell["kernels"] else []) + others) or "–"
        texts.append(f"{text} ({len(cell['failures'])} refused)" if cell["failures"] else text)
    return texts[0] + "".join(f"; fp32: {text}" for text in texts[1:])


def in_brief(record: dict[str, Any]) -> str:
    """How many calls were made, and how many of their kernels were generated."""
    cells = [cell for result in record["mechanisms"].values() for cell in result["cells"]]
    reached = {name for name, result in record["mechanisms"].items() if any(cell["kernels"] for cell in result["cells"])}
    refused = [failure for cell in cells for failure in cell["failures"]]
    cases = [result["failure"] for result in record["cases"].values()]
    dates = sorted({result["date"] for part in PROGRAMS for result in record[part].values()})
    return (
        f"{len(cells):,} calls of {len(record['mechanisms'])} mechanisms were made, both ways and causal, with heads of 64, 80, 128 and "
        f"256, padding, packed documents, grouped heads and gradients, in bf16 and where that takes another path in fp32. {len(reached)} "
        f"mechanisms asked for {sum(cell['kernels'] for cell in cells):,} kernels of flex_attention; "
        f"{f'{len(refused)} could not be generated' if refused else 'all were generated'}. Of {len(cases)} kinds of calls one by one, "
        f"forward or with the backward pass, {cases.count('')} have kernels, and "
        f"{sum(failure.startswith(WITHOUT_KERNEL) for failure in cases)} are known to have none. PyTorch {versions_of(record, 'torch')}, "
        f"Triton {versions_of(record, 'triton')}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."
    )


def versions_of(record: dict[str, Any], package: str) -> str:
    return ", ".join(sorted({result[package] for part in PROGRAMS for result in record[part].values()}))


def markdown(record: dict[str, Any]) -> str:
    """The table of mechanisms and conditions, and the kinds of calls."""
    rows = []
    for name, result in record["mechanisms"].items():
        for form in dict.fromkeys(cell["form"] for cell in result["cells"]):
            by_condition = [
                [cell for cell in result["cells"] if (cell["form"], cell["condition"]) == (form, condition)] for condition in CONDITIONS
            ]
            rows.append([f"`{name}`", form, *(cell_text(cells) if cells else "" for cells in by_condition)])
    of_cases = []
    for name, result in record["cases"].items():
        kernels = sum(kernel.startswith("triton_tem") for kernel in result["kernels"])
        of_cases.append([name, str(kernels), "".join(result["failure"].splitlines()[:1])[:200]])
    return f"""# Lowered for an H100, without one

By `python -m scripts.dev.tools.lowering`: PyTorch's compiler generates the Triton kernels for a pretended H100 (compute capability 9.0).
Nothing runs. {in_brief(record) if all(record.values()) else ""}

A number is how many kinds of flex_attention's kernels a call of the mechanism asks for in bf16, each of them generated; *flash* is
PyTorch's flash-attention operator, which is not generated; – is plain operations. Where the operator
serves bf16, fp32 follows.

{markdown_table(["mechanism", "form", *CONDITIONS], rows)}

{markdown_table(["kind of call", "kernels", "refused"], of_cases)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a mechanism or a case to run again; all by default")
    parser.add_argument("--missing", action="store_true", help="run those that are not stored")
    options = parser.parse_args()
    known = {"cases": list(CASES), "mechanisms": list_mechanisms()}
    if strange := [name for name in options.names if not any(name in names for names in known.values())]:
        parser.error(f"{strange[0]!r} is neither a mechanism nor a case of tests/engines/lowering.py")
    path = RESULTS / "lowering.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {part: {} for part in PROGRAMS}
    for part, names in known.items():
        chosen = [name for name in names if name in options.names or not options.names]
        if chosen := [name for name in chosen if not options.missing or name not in record[part]]:
            run(record, part, chosen)


if __name__ == "__main__":
    main()
