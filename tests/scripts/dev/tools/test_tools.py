"""Tools of developers: ceilings, releases, tables, first looks, launches and transformers' tests."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from scripts.dev import RESULTS
from scripts.dev.benchmarks.report import machine, stored_study
from scripts.dev.tools import first_look, release
from scripts.dev.tools.ceiling import SLACK, against_ceilings, project_size
from scripts.dev.tools.launches import (
    LAYERS,
    NAMES,
    ONE_OPERATION,
    STORED,
    as_on_cuda,
    launches,
    list_modes,
    rows_of,
)
from scripts.dev.tools.launches import table as launch_table
from scripts.dev.tools.small_models import IN_FULL
from scripts.dev.tools.update_docs import stored
from tests.cases import every_case

SMALL = '''"""A module's docstring is not counted."""


def f(x):  # nor is a comment
    """Nor a function's."""
    return "a" if x else "b"
'''
BRANCHY = "def g(x):\n" + "    if x:\n        pass\n" * 21
SIZES = {
    "tokens": 12 + 6 + 21 * 4,
    "test_tokens": 12,
    "branchy_functions": 1,
    "conditional_expressions": round(1000 / 47),
}
"""Of the project that the fixture writes: ``def f ( x ) :`` has 6 tokens, its return 6, and each branch 4."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in {
        "hf_longattn/errors.py": SMALL,
        "hf_longattn/engines/band.py": BRANCHY,
        "tests/x.py": SMALL,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_size_counts_code_and_neither_comments_nor_docstrings(tree: Path) -> None:
    assert project_size(tree) == SIZES


@pytest.mark.parametrize("name", SIZES)
def test_ceiling_forbids_growth_and_follows_a_shrinking_project(tree: Path, name: str) -> None:
    size, slack = SIZES[name], SLACK[name]
    wrong = {}
    for ceiling in (size - 1, size, size + slack - 1, size + slack):
        ceilings = "\n".join(f"{key} = {number}" for key, number in (SIZES | {name: ceiling}).items())
        (tree / "pyproject.toml").write_text(f"[tool.hf_longattn.size]\n{ceilings}\n")
        wrong[ceiling - size] = against_ceilings(tree)[1]
    assert wrong[0] == wrong[slack - 1] == ""
    assert f"{size:,}, and the ceiling in pyproject.toml is {size - 1:,}" in wrong[-1]
    assert f"{size:,}; lower {name} of [tool.hf_longattn.size]" in wrong[slack]


matplotlib = pytest.importorskip("matplotlib", reason="drawing needs it")


def test_image_of_the_readme_is_the_same_bytes_and_leaves_figures_alone(tmp_path: Path) -> None:
    before = matplotlib.get_backend()
    matplotlib.use("pdf")
    from matplotlib import pyplot

    mine = pyplot.figure()
    try:
        for name in ("a.svg", "b.svg"):
            first_look.draw(stored(first_look.RESULT), tmp_path / name)
        assert matplotlib.get_backend().lower() == "pdf"
        assert pyplot.get_fignums() == [mine.number]
    finally:
        pyplot.close(mine)
        matplotlib.use(before)
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.thorough
def test_distributions_hold_the_files_that_they_should() -> None:
    """By hatchling's own list; recipes and metadata, which it adds while building, are checked by `make release`."""
    pytest.importorskip("hatchling")
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    stubs = release.stub_files()
    wheel, sdist = (builder(str(release.ROOT)) for builder in (WheelBuilder, SdistBuilder))
    # a link in one of them to a folder of the checkout would be taken for that folder
    for folder in (".tmp", "runs", "dist"):
        assert sdist.config.directory_is_excluded(folder, ""), folder
    expected = {
        name
        for name in release.wheel_files()
        if not name.startswith(("hf_longattn/configs/", f"{release.NAME}.dist-info"))
    }
    packed = {
        file.distribution_path: 0 for file in wheel.recurse_included_files() if file.distribution_path not in stubs
    }
    assert release.differences(packed, expected - stubs, size=0, largest=0) == []
    expected = release.sdist_files() - {"PKG-INFO", ".gitignore", "pyproject.toml"}
    packed = {
        file.distribution_path: 0 for file in sdist.recurse_included_files() if file.distribution_path not in stubs
    }
    assert release.differences(packed, expected - stubs, size=0, largest=0) == []


def test_release_names_files_that_are_missing_foreign_or_too_large() -> None:
    packed = {"a.py": 10, "weights.bin": 2 * 10**6}
    assert release.differences(packed, {"a.py", "b.py"}, size=5, largest=4) == [
        "lacks b.py",
        "has weights.bin, which nobody expects",
        "has weights.bin of 2000000 bytes",
        "has 5 bytes, more than 4",
    ]


def test_citation_changelog_and_security_name_the_version() -> None:
    for file, pattern in {"CITATION.cff": r"^version: (\S+)$", "CHANGELOG.md": r"^## ([\d.]+)"}.items():
        versions = re.findall(pattern, (release.ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert versions[0] == release.VERSION, file
    minor = release.VERSION.rpartition(".")[0]
    assert f"| the newest {minor}.x | yes |" in (release.ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_every_family_is_in_the_table_of_transformers_own_suite() -> None:
    ran = {name.removeprefix("long_") for name in stored_study(RESULTS / "model_tester")["families"]}
    command = "python -m scripts.dev.tools.run_transformers_tests NAME --output scripts/dev/results"
    assert not {*IN_FULL} - ran, f"missing in results/model_tester.json; type {command}"


RECORD = json.loads(STORED.read_text(encoding="utf-8"))
CEILINGS = {(row["mode"], row["layer"]): row for row in RECORD["rows"]}
PYTHON_SLACK = 1.05
"""Versions of Python differ in what they call."""


def check_ceilings(mode: str) -> None:
    versions = [
        {name: about[name].split("+")[0] for name in ("torch", "transformers")}
        for about in (RECORD["machine"], machine())
    ]
    if versions[0] != versions[1]:
        pytest.skip(f"the stored table is of {versions[0]}")
    for row in rows_of(mode):
        ceiling = CEILINGS[row["mode"], row["layer"]]
        above = {
            name: row[name] for name in NAMES if row[name] > ceiling[name] * (PYTHON_SLACK if "python" in name else 1)
        }
        assert not above, (
            f"{row['layer']} layer: {ceiling}; if more is right, store it by python -m scripts.dev.tools.launches "
            "--write"
        )


@every_case("mode", [mode for mode in list_modes() if mode.split(", ")[0] in LAYERS])
def test_layers_ask_no_more_of_a_gpu_than_the_table_says(mode: str) -> None:
    check_ceilings(mode)


@every_case("mode", [mode for mode in list_modes() if mode.split(", ")[0] not in LAYERS])
def test_models_ask_no_more_of_a_gpu_than_the_table_says(mode: str) -> None:
    check_ceilings(mode)


def test_the_stored_table_has_every_mode() -> None:
    assert [*dict.fromkeys(mode for mode, _ in CEILINGS)] == list_modes()
    assert launch_table(RECORD["rows"]).count("\n") == len(list_modes()) + 1


def test_operations_and_waits_are_those_of_a_gpu() -> None:
    x, mask = torch.randn(4, 4), torch.eye(4, dtype=torch.bool)
    cases = {
        "views": (lambda: x.view(16)[None].detach(), 0, 0),
        "a condition": (lambda: bool((x > 9).any()), 2, 1),
        "a list": (lambda: x.tolist(), 0, 1),
        "a copy, whose list and sum are on the host": (
            lambda: (x.detach().cpu()[0].tolist(), x.to("cpu").sum().item()),
            0,
            2,
        ),
        "a list that is copied": (lambda: torch.tensor([1, 2]).to(x.device) + 1, 2, 0),
        "rows by a mask": (lambda: x[mask], 1, 1),
        "rows by places": (lambda: x[torch.arange(2)], 2, 0),
    }
    for name, (run, operations, waits) in cases.items():
        counted, _ = launches(run)
        assert (counted.operations, counted.waits.total()) == (operations, waits), (name, counted.waits)


def test_a_fused_kernel_counts_as_one_operation_in_each_direction() -> None:
    q = torch.randn(1, 2, 8, 16, requires_grad=True)
    with as_on_cuda():
        forward, out = launches(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
        backward, _ = launches(lambda: out.backward(torch.ones_like(q)))
    assert forward.operations == 1
    assert backward.operations == 1 + 1 + 2, "the ones, the kernel, and the sum of three gradients"
    assert not forward.waits + backward.waits
    assert ONE_OPERATION.counting is None
