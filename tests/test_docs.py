"""The documents: made parts are up to date, links lead somewhere, code compiles, commands exist."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from hf_longattn import attend, build_mechanism, list_mechanisms
from hf_longattn.attend import reference_attend
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms import mechanism_class, registry
from tools import update_docs

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]


def test_made_parts_are_up_to_date() -> None:
    assert update_docs.main(["--check"]) == 0, "type: make docs"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_documents_compiles(path: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL):
        ast.parse(code)


# CHANGELOG.md is not among them: it names what has been.
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.stem != "CHANGELOG"], ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_and_targets_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+(?:-[a-z]+)*)(?: |`|\n|,)", "\n".join(re.findall(r"`+[^`]*`+", text)))) <= targets
    named = re.findall(r"(?<![\w/])(?:configs|research|scripts|tools)/[\w/]+\.(?:py|yaml)", text)
    named += [f"{name.replace('.', '/')}.py" for name in re.findall(r"python -m ((?:research|tools)\.[\w.]+\w)", text)]
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_mechanism_that_contributing_shows_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(\"\"\"My attention.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert code is not None
    (tmp_path / "my_attention.py").write_text(code[1], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    list_mechanisms()  # all of the package's are found before
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setitem(sys.modules, "my_attention", importlib.import_module("my_attention"))

    q, k, v = torch.randn(3, 2, 4, 300, 16, generator=torch.Generator().manual_seed(0)).unbind()
    for causal in (False, True):
        expected = reference_attend(q, k, v, "window", window=32, causal=causal)
        torch.testing.assert_close(attend(q, k, v, "mine", window=32, causal=causal).double(), expected, atol=1e-5, rtol=0)
        assert build_mechanism("mine", num_heads=4, head_dim=16, **mechanism_class("mine").covering(300, causal)).covers(300, causal)
    with pytest.raises(OptionError, match="must be at least 1"):
        build_mechanism("mine", num_heads=4, head_dim=16, window=0)
