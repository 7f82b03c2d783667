"""The documentation as a site: it builds without a network and without a warning, and every public name has its place on it."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.warm import run_fresh

MODULES = ("hf_longattn", "hf_longattn.hub", "hf_longattn.training", "hf_longattn.streaming")
DIRECTIVE = re.compile(r"^\.\. (?:autofunction|autoclass|autoexception|autodata):: (\S+)$|^\.\. py:data:: (\w+)\n   :module: (\S+)$", re.M)


def test_every_public_name_is_on_one_page(repository: Path) -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (repository / "docs" / "api").glob("*.md"))
    shown = Counter(name or f"{module}.{data}" for name, data, module in DIRECTIVE.findall(pages))
    public = Counter(f"{module}.{name}" for module in MODULES for name in importlib.import_module(module).__all__)
    assert shown == public


def test_the_site_builds_without_a_warning(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="Sphinx needs Python 3.11")
    site = tmp_path / "site"
    done = run_fresh(
        "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(tmp_path / "doctrees"), "-c", "docs", ".", str(site), cwd=repository
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = (site / "docs" / "api" / "attention.html").read_text(encoding="utf-8")
    assert 'id="hf_longattn.attend"' in text
    assert "https://docs.pytorch.org/docs/stable/" in text
