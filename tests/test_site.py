"""The documentation as a site: it builds without a network and without a warning, and every public name has its place on it."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.fresh_processes import run_fresh

MODULES = ("hf_longattn", "hf_longattn.hub", "hf_longattn.training")
DIRECTIVE = re.compile(r"^\.\. (?:autofunction|autoclass|autoexception|autodata):: (\S+)$|^\.\. py:data:: (\w+)\n   :module: (\S+)$", re.M)

NOTEBOOKS = sorted(path.stem for path in (Path(__file__).parent.parent / "docs" / "notebooks").glob("[0-9]*.md"))


def test_every_public_name_is_on_one_page_of_the_api(repository: Path) -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (repository / "docs" / "api").glob("*.md"))
    shown = Counter(name or f"{module}.{data}" for name, data, module in DIRECTIVE.findall(pages))
    public = Counter(f"{module}.{name}" for module in MODULES for name in importlib.import_module(module).__all__)
    assert shown == public


def build_site(repository: Path, tmp_path: Path, *options: str, timeout: float = 280) -> Path:
    """The folder of the documentation's pages, built with every warning as an error."""
    pytest.importorskip("sphinx", reason="Sphinx needs Python 3.11")
    site = tmp_path / "site"
    command = ("-m", "sphinx", "-W", "--keep-going", "-q", *options, "-d", str(tmp_path / "doctrees"), "-c", "docs", ".", str(site))
    done = run_fresh(*command, cwd=repository, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return site / "docs"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(repository: Path, tmp_path: Path) -> None:
    pages = build_site(repository, tmp_path)
    text = (pages / "api" / "attention.html").read_text(encoding="utf-8")
    assert 'id="hf_longattn.attend"' in text
    assert "https://docs.pytorch.org/docs/stable/" in text


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_cells_of_a_notebook_run_without_warnings(notebook: str, repository: Path, tmp_path: Path) -> None:
    """Cases that are not shown assert what the text says of the outputs; the links are checked with the whole site."""
    page = f"docs/notebooks/{notebook}"
    alone = {"root_doc": page, "include_patterns": f"{page}.md", "suppress_warnings": "myst.xref_missing"}
    options = [part for name, value in (alone | {"nb_execution_mode": "force"}).items() for part in ("-D", f"{name}={value}")]
    text = (build_site(repository, tmp_path, *options, timeout=900) / "notebooks" / f"{notebook}.html").read_text(encoding="utf-8")
    assert "cell_output" in text
    assert "Warning" not in text
