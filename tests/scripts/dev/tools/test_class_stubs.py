"""Editors and type checkers find every Long class, though it exists at run time only."""

from __future__ import annotations

import ast
import functools
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from hf_longattn.families import FAMILIES
from hf_longattn.names import release
from scripts.dev.tools import class_stubs

OFF_THE_INTERFACE = {"gptj"} if release(transformers.__version__) < (5, 24) else set[str]()
"""Families that an older transformers does not allow."""
ALLOWED = [family for base, family in FAMILIES.items() if base not in OFF_THE_INTERFACE]
EXPORTS = [(family, name) for family in ALLOWED for name in family.exports]
SNIPPET = """
import torch
from hf_longattn import LongAttentionConfig, LongBertConfig, LongBertModel

config = LongBertConfig(max_position_embeddings=4096, long_attention={"mechanism": "window", "window": 512})
model = LongBertModel(config)
ids = torch.ones(1, 4, dtype=torch.long)
outputs = model(ids, attention_mask=ids, global_attention_mask=ids)
chosen: LongAttentionConfig = model.config.long_attention
number: int = chosen.mechanism  # E: Incompatible types in assignment
memory = model.new_memory(positions=3)  # E: incompatible type "int"
model(ids, global_mask=ids)  # E: Unexpected keyword argument "global_mask"
LongBertConfig(long_atention={})  # E: did you mean "long_attention"?
from hf_longattn import LongBertForNothing  # E: has no attribute "LongBertForNothing"
from hf_longattn.families.bert import LongBertModel as FromItsModule
from hf_longattn.families.bert import LongBertModels  # E: has no attribute "LongBertModels"; maybe "LongBertModel"
same: type[LongBertModel] = FromItsModule
FromItsModule(config).new_memory(positions=3)  # E: incompatible type "int"
"""
SETTINGS = """
[mypy]
follow_imports = silent
[mypy-transformers.*,torch.*]
follow_imports = skip
ignore_missing_imports = True
"""


@functools.cache
def trees() -> dict[str, ast.Module]:
    """The stubs by their module; made by the first test, since they import every class."""
    return {Path(name).stem: ast.parse(text) for name, text in class_stubs.stubs().items()}


@functools.cache
def classes() -> dict[str, tuple[ast.ClassDef, ast.Module]]:
    """The definition of every class, and its stub."""
    return {
        node.name: (node, tree) for tree in trees().values() for node in tree.body if isinstance(node, ast.ClassDef)
    }


def test_stubs_of_families_that_are_gone_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_stubs, "FOLDER", tmp_path)
    monkeypatch.setattr(class_stubs, "FAMILIES", {"bert": FAMILIES["bert"]})
    (tmp_path / "gone.pyi").touch()
    (tmp_path / "bert.pyi").write_text("old", encoding="utf-8")
    class_stubs.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["__init__.pyi", "bert.pyi"]
    assert "class LongBertModel" in (tmp_path / "bert.pyi").read_text(encoding="utf-8")


def test_stubs_define_every_long_class() -> None:
    front = [
        alias for node in ast.walk(trees()["__init__"]) if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    # to jedi, a name without "as" is not exported
    named = {alias.name for alias in front if alias.asname == alias.name}
    assert {name for _, name in EXPORTS} <= named & classes().keys()
    inner = {name for family in ALLOWED for name in family.parts.values()}
    assert classes().keys() == {name for _, name in EXPORTS} | inner
    for name, (definition, tree) in classes().items():
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert ast.get_docstring(definition), name
        assert {base.id for base in definition.bases if isinstance(base, ast.Name)} <= imported, name


def assert_mypy_reads_the_classes(packages: Path, folder: Path) -> None:
    """mypy finds the mistakes in :data:`SNIPPET`, and no others, with the package in ``packages``."""
    (folder / "snippet.py").write_text(SNIPPET, encoding="utf-8")
    (folder / "mypy.ini").write_text(SETTINGS, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "snippet.py"]
    done = subprocess.run(
        command, cwd=folder, env={"MYPYPATH": str(packages)}, capture_output=True, text=True, check=False
    )
    errors = {int(line.split(":")[1]): line for line in done.stdout.splitlines() if ": error:" in line}
    expected = {
        number: line.split("# E: ")[1] for number, line in enumerate(SNIPPET.splitlines(), 1) if "# E: " in line
    }
    assert errors.keys() == expected.keys(), done.stdout + done.stderr
    assert all(expected[number] in errors[number] for number in expected), done.stdout


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """A checkout without stubs, as after `git clone`."""
    folder = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyi", "results")
    for name in ("hf_longattn", "configs", "scripts"):
        shutil.copytree(repository / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, folder)
    return folder


@pytest.mark.slow
def test_mypy_checks_what_a_user_writes_with_a_checkout(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_stubs, "FOLDER", checkout / "hf_longattn" / "families")
    class_stubs.main()
    assert_mypy_reads_the_classes(checkout, tmp_path)


def test_isolated_build_warns_if_it_has_no_stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hatchling")
    from scripts.dev import hatch_build

    warnings: list[str] = []
    app: Any = SimpleNamespace(display_warning=warnings.append)
    hook = hatch_build.WheelContents(str(tmp_path), {}, None, None, str(tmp_path), "wheel", app)
    monkeypatch.setattr(hatch_build.importlib.util, "find_spec", lambda name: None)
    hook.initialize("standard", {"force_include": {}})
    assert warnings == [hatch_build.WITHOUT_STUBS.format(missing="torch and transformers")]
    (tmp_path / "hf_longattn" / "families").mkdir(parents=True)
    (tmp_path / "hf_longattn" / "families" / "__init__.pyi").touch()
    hook.initialize("standard", {"force_include": {}})
    assert len(warnings) == 1
