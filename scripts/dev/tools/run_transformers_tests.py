"""Run transformers' own model test suite (ModelTesterMixin, and BackboneTesterMixin on backbones, from the pinned
sdist) on the Long families and store the table.

    python -m scripts.dev.tools.run_transformers_tests                       all families
    python -m scripts.dev.tools.run_transformers_tests bert gpt2 --jobs 2    some of them

A test that fails is run on the base's plain classes as well; one that fails there, too, is no failure of ours.

The sdist is downloaded once into ~/.cache/hf_longattn. It lacks a few helper modules; empty replacements for them are
put beside it (generation and export are tested by this project's own tests). What is skipped on purpose is in
tests/reference/model_tester/skips.json, with its reason; everything else that is skipped is skipped by the suite
itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from scripts.dev import ROOT
from scripts.dev.benchmarks.report import store_study, stored_study
from scripts.dev.tools.small_models import IN_FULL

OURS = ROOT / "tests" / "reference" / "model_tester"
CACHE = Path.home() / ".cache" / "hf_longattn"
FAMILIES = IN_FULL
"""The families that the suite runs on."""
BACKBONE = "backbone "
"""Comes before the names of the tests of backbones, of which one may have the name of a test of models."""
REPLACEMENTS = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "distributed_testing_utils.py": "def run_distributed(*args, **kwargs):\n    raise NotImplementedError\n",
}


def unpacked_sdist(cache: Path, version: str) -> Path:
    """The folder of transformers' sdist, downloaded and unpacked on first use."""
    folder = cache / f"transformers-{version}"
    if not (folder / "tests" / "test_modeling_common.py").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--no-build-isolation",
        ]
        subprocess.run([*command, "--dest", str(cache), f"transformers=={version}"], check=True)
        with tarfile.open(cache / f"transformers-{version}.tar.gz") as archive:
            members = [m for m in archive.getmembers() if "/tests/" in m.name]
            archive.extractall(cache, members=members, filter="data")
    return folder


def prepare(folder: Path) -> Path:
    """Put the replacements and our test module into the sdist's tests; returns the module."""
    tests = folder / "tests"
    module = tests / "models" / "long" / "test_modeling_long.py"
    for name, text in REPLACEMENTS.items():
        path = tests / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    module.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(OURS / "long_classes.py", module)
    for package in (tests, *(path for path in tests.rglob("*") if path.is_dir() and path.name != "__pycache__")):
        (package / "__init__.py").touch()
    return module


def pytest_call(
    folder: Path, module: Path, families: list[str], with_base: bool, report: Path, only: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """The arguments of python that run the suite, or the tests called ``only``, and leave pytest's XML in ``report``;
    the environment."""
    environment = os.environ | {
        "LONGATTN_SKIPS": str(OURS / "skips.json"),
        "LONGATTN_FAMILIES": ",".join(families),
        "LONGATTN_WITH_BASE": str(int(with_base)),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "HF_HUB_OFFLINE": "1",
        "RUN_TRAINING_TESTS": "0",
    }
    arguments = [
        "-m",
        "pytest",
        "--noconftest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
        "-c",
        os.devnull,
    ]
    arguments += [f"--junitxml={report}", "--tb=short", "-W", "ignore", str(module)]
    return arguments + (["-k", " or ".join(only)] if only else []), environment


def run(
    folder: Path, module: Path, families: list[str], with_base: bool, jobs: int, report: Path, only: Sequence[str] = ()
) -> None:
    """Run the suite in ``jobs`` processes, and leave pytest's XML in ``report``."""
    arguments, environment = pytest_call(folder, module, families, with_base, report, only)
    if jobs > 1 and importlib.util.find_spec("xdist") is not None:
        arguments += ["-n", str(jobs)]
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment | {"OMP_NUM_THREADS": "1"}, check=False)


def table(report: Path) -> dict[str, dict]:
    """Counts, failures and reasons of skips for every family."""
    result: dict[str, dict] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = case.get("classname", "").rsplit(".", 1)[-1].removesuffix("Test").lower()
        family = name.removesuffix(BACKBONE.strip())
        suite = "" if family == name else BACKBONE
        family = family.replace("long", "long_", 1).removeprefix("plain")
        entry = result.setdefault(family, {"passed": 0, "failed": 0, "skipped": 0, "failures": []})
        if case.find("skipped") is not None:
            entry["skipped"] += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            entry["failed"] += 1
            entry["failures"].append(f"{suite}{case.get('name')}")
        else:
            entry["passed"] += 1
    return result


def compare_with_bases(result: dict[str, dict], folder: Path, module: Path) -> None:
    """Run the tests that failed on the bases' plain classes, and keep the names of those that fail there, too."""
    for name, entry in result.items():
        base = name.removeprefix("long_")
        if name == base or not entry["failures"]:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            report = Path(temporary) / "report.xml"
            run(folder, module, [base], True, 1, report, [name_on_base(base, test) for test in entry["failures"]])
            plain = table(report).get(base, {"failures": []})
        entry["failures_of_base"] = sorted(set(entry["failures"]) & set(plain["failures"]))


def name_on_base(base: str, test: str) -> str:
    """A test that failed, as pytest's ``-k`` finds it on the base's plain classes."""
    name = test.removeprefix(BACKBONE)
    return f"(Plain{base.capitalize()}{BACKBONE.strip().capitalize() if name != test else ''}Test and {name})"


def failed_here(entry: dict[str, Any]) -> list[str]:
    """The tests that fail on a family's Long classes and not on its base's."""
    return sorted(set(entry["failures"]) - set(entry.get("failures_of_base", ())))


def failures(entry: dict[str, Any]) -> str:
    """Which tests failed, in parentheses: `` (test_config, as in the base)``."""
    shared = entry.get("failures_of_base", ())
    named = ", ".join(f"{name}, as in the base" if name in shared else name for name in sorted(entry["failures"]))
    return f" ({named})" if named else ""


def markdown(result: dict[str, dict], version: str) -> str:
    lines = [
        f"# transformers {version}: ModelTesterMixin on the Long families, BackboneTesterMixin on their backbones",
        "",
        "Written by `python -m scripts.dev.tools.run_transformers_tests`. tests/reference/model_tester/skips.json has "
        "what is skipped on",
        "purpose, with its reason; the suite itself skips the rest.",
        "",
    ]
    lines += ["| family | passed | failed | skipped |", "|---|---|---|---|"]
    lines += [
        f"| {family} | {entry['passed']} | {entry['failed']}{failures(entry)} | {entry['skipped']} |"
        for family, entry in sorted(result.items())
    ]
    return "\n".join(lines) + "\n"


def stored_suite(folder: Path, version: str = transformers.__version__) -> dict[str, dict]:
    """What ``folder``/model_tester.json says of every family, if it was written with this ``version`` of
    transformers."""
    stored = stored_study(folder / "model_tester")
    return stored["families"] if stored.get("transformers") == version else {}


def store(result: dict[str, dict], folder: Path) -> None:
    """Write model_tester.json and .md; families that did not run stay as they are stored, if transformers is still the
    same."""
    folder.mkdir(parents=True, exist_ok=True)
    families = {**stored_suite(folder), **result}
    stored = {"transformers": transformers.__version__, "families": families}
    store_study(folder / "model_tester", stored, markdown(families, transformers.__version__))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"among {', '.join(FAMILIES)}; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes (with pytest-xdist), default %(default)s")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for model_tester.json and .md, for example scripts/dev/results, whose other families stay; "
        "default: none",
    )
    options = parser.parse_args()
    unknown = [family for family in options.families if family not in FAMILIES]
    if unknown:
        parser.error(f"unknown family {unknown[0]!r}, expected some of {', '.join(FAMILIES)}")
    families = options.families or list(FAMILIES)

    folder = unpacked_sdist(CACHE, transformers.__version__)
    module = prepare(folder)
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.xml"
        run(folder, module, families, False, options.jobs, report)
        result = table(report)
    compare_with_bases(result, folder, module)
    print(markdown(result, transformers.__version__))
    for family, entry in sorted(result.items()):
        for name in failed_here(entry):
            print(f"FAILED {family}: {name}", file=sys.stderr)
    if options.output:
        store(result, options.output)
    return (
        0
        if all(f"long_{family}" in result and not failed_here(result[f"long_{family}"]) for family in families)
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())
