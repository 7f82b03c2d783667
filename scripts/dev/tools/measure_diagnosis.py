"""What `longattn diagnose` finds in the reference encoder, and the memory and time that it takes up to 64K tokens.

    python -m scripts.dev.tools.measure_diagnosis report      numbers, page and picture (a minute of a core)
    python -m scripts.dev.tools.measure_diagnosis memory      16K, 32K and 64K tokens, each in a fresh process (three minutes of a core)

The text is the held-out part of the reference corpus, Python source that the encoder was not trained on. Results go to
scripts/dev/results/diagnosis.json and .md, the page's picture, which needs Chromium, to docs/pictures/diagnose.png.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.dev import RESULTS, ROOT

MODEL = ROOT / "model_cards" / "bert-python-512"
OUTPUT = RESULTS / "diagnosis"
PICTURE = ROOT / "docs" / "pictures" / "diagnose.png"
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
MEASURED = (16_384, 32_768, 65_536)
NEEDLE = ("\nMAGIC_NUMBER_OF_LISBON = 7481\n", "\nassert MAGIC_NUMBER_OF_LISBON == ")
SPREAD, QUERIES = 512, 256
"""Queries measured for the report, and for memory and time."""
SHOWN = 2_100
"""Pixels of the page in the picture."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("report", "memory", "one"))
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.what == "one":
        print(json.dumps(one(asked.length)))
        return 0
    stored: dict[str, Any] = json.loads(OUTPUT.with_suffix(".json").read_text()) if OUTPUT.with_suffix(".json").exists() else {}
    from scripts.dev.benchmarks.report import machine

    stored["machine" if asked.what == "report" else "memory_machine"] = machine()
    if asked.what == "report":
        stored["diagnosis"] = report()
    else:
        stored["memory"] = [in_a_process(length) for length in MEASURED]
    OUTPUT.with_suffix(".json").write_text(json.dumps(stored, ensure_ascii=False) + "\n", encoding="utf-8")
    OUTPUT.with_suffix(".md").write_text(table(stored), encoding="utf-8")
    return 0


def text(tokens: int) -> str:
    """The start of the held-out text, long enough for so many tokens."""
    from scripts.dev.studies.corpus import iter_modules

    found = ""
    for module in iter_modules("test"):
        found += module.text + "\n"
        if len(found) > 6 * tokens:
            break
    return found


def report() -> dict[str, Any]:
    """The diagnosis of the reference encoder, whose page is drawn into the picture."""
    from hf_longattn.diagnostics import Needle, diagnose, html_page

    found = diagnose(MODEL.relative_to(ROOT), text(2 * LENGTHS[-1]), lengths=LENGTHS, queries=SPREAD, extend="tile", needle=Needle(*NEEDLE))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(html_page(found), encoding="utf-8")
        draw(page, PICTURE)
    return found.to_dict()


def draw(page: Path, picture: Path) -> None:
    """The top of the page as an image, where there is a Chromium."""
    from tests.browser import CHROMIUM, browser

    if CHROMIUM is None:
        print("no Chromium: the picture is left as it is", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as tab:
        tab.open(page, 1180)
        tab.screenshot(picture, most=SHOWN)


def one(length: int) -> dict[str, Any]:
    """Memory on top of the loaded model, and time, for one length."""
    import torch

    from hf_longattn.diagnostics import diagnose
    from hf_longattn.diagnostics.loading import load_for_diagnosis

    torch.set_num_threads(1)
    loaded = load_for_diagnosis(MODEL, [length], extend="tile", mechanism={"mechanism": "longformer", "window": 512})
    model, tokenizer = loaded.model, loaded.tokenizer
    whole = text(2 * length)
    diagnose(model, whole, tokenizer=tokenizer, lengths=[512], needle=None, queries=8)  # what is loaded once
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    cpu = time.process_time()
    found = diagnose(model, whole, tokenizer=tokenizer, lengths=[length], needle=None, queries=QUERIES)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "length": length, "megabytes": (peak - before) / 1024, "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu, "candidates": len(found.applicable()),
    }  # fmt: skip


def in_a_process(length: int) -> dict[str, Any]:
    """:func:`one` in a fresh process, whose peak is its own."""
    command = [sys.executable, "-m", "scripts.dev.tools.measure_diagnosis", "one", "--length", str(length)]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()[-1]
    )
    print(found, flush=True)
    return found


def table(stored: dict[str, Any]) -> str:
    """The stored numbers as Markdown."""
    lines = []
    if "diagnosis" in stored:
        found = stored["diagnosis"]
        lines += [f"{found['conclusion']} {found['dilution']}", "", f"Measured on {_named(stored['machine'])}.", ""]
        lines += ["| layer | " + " | ".join(f"{one['length']:,} tokens" for one in found["lengths"]) + " |"]
        lines += ["|---" * (1 + len(found["lengths"])) + "|"]
        for layer in range(len(found["lengths"][0]["layers"])):
            means = [_mean(one["layers"][layer]["effective_tokens"]) for one in found["lengths"]]
            lines.append(f"| {layer} | " + " | ".join(f"{one:,.1f}" for one in means) + " |")
        lines.append("")
    if "memory" in stored:
        lines += ["| tokens | memory besides the model | CPU seconds |", "|---|---|---|"]
        lines += [f"| {one['length']:,} | {one['megabytes']:,.0f} MB | {one['cpu_seconds']:,.0f} |" for one in stored["memory"]]
        many = stored["memory"][0]["candidates"]
        lines += ["", f"{QUERIES} queries, {many} mechanisms compared, one thread, on {_named(stored['memory_machine'])}."]
    return "\n".join(lines).strip() + "\n"


def _named(machine: dict[str, Any]) -> str:
    return f"{machine.get('processor', 'an unknown processor')}, {machine.get('cores', '?')} cores"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    raise SystemExit(main())
