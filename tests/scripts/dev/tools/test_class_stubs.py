"""Editors and type checkers find every Long class, though it exists at run time only."""

from __future__ import annotations

import ast
import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import hf_longattn
from hf_longattn.families import FAMILIES
from scripts.dev.tools import class_stubs

TREES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in class_stubs.FOLDER.glob("*.pyi")}
CLASSES = {node.name: (node, tree) for tree in TREES.values() for node in tree.body if isinstance(node, ast.ClassDef)}
EXPORTS = [(family, name) for family in FAMILIES.values() for name in family.exports]
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


def written_by() -> str:
    first = (class_stubs.FOLDER / "bert.pyi").read_text(encoding="utf-8").splitlines()[0]
    return re.search(r"transformers ([\d.]+);", first)[1]  # type: ignore[index]


@pytest.mark.skipif(transformers.__version__ != written_by(), reason="signatures differ between versions of transformers")
def test_the_stubs_are_up_to_date() -> None:
    assert class_stubs.main(["--check"]) == 0, "run `make format`"


def test_stubs_that_are_not_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(class_stubs, "FOLDER", tmp_path)
    monkeypatch.setattr(class_stubs, "FAMILIES", {"bert": FAMILIES["bert"]})
    (tmp_path / "gone.pyi").touch()
    assert class_stubs.main([]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["__init__.pyi", "bert.pyi"]
    assert class_stubs.main(["--check"]) == 0
    stale = tmp_path / "bert.pyi"
    stale.write_text(stale.read_text(encoding="utf-8").replace("LongBertModel", "LongBertModels"), encoding="utf-8")
    assert class_stubs.main(["--check"]) == 1
    assert "bert.pyi; run `python -m scripts.dev.tools.class_stubs`" in capsys.readouterr().err


def test_every_long_class_has_a_definition_to_go_to() -> None:
    front = [alias for node in ast.walk(TREES["__init__"]) if isinstance(node, ast.ImportFrom) for alias in node.names]
    named = {alias.name for alias in front if alias.asname == alias.name}  # to jedi, a name without "as" is not exported
    assert {name for _, name in EXPORTS} <= named & CLASSES.keys()
    inner = {name for family in FAMILIES.values() for name in family.parts.values()}
    assert CLASSES.keys() == {name for _, name in EXPORTS} | inner
    for name, (definition, tree) in CLASSES.items():
        imported = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert ast.get_docstring(definition), name
        assert {base.id for base in definition.bases if isinstance(base, ast.Name)} <= imported, name


def test_the_front_of_the_package_names_them_for_type_checkers() -> None:
    front = ast.parse(Path(hf_longattn.__file__).read_text(encoding="utf-8"))
    stars = [node.module for node in ast.walk(front) if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]
    assert stars == ["families"]
    assert Path(hf_longattn.__file__).with_name("py.typed").is_file()


@pytest.mark.parametrize("name", ["LongBertModel", "LongBertConfig", "LongGPT2LMHeadModel", "LongBartForConditionalGeneration"])
def test_documentation_tools_show_them(name: str) -> None:
    """Sphinx' autodoc and mkdocstrings read what pydoc does: docstring, signature, and the module's list of names."""
    made = getattr(hf_longattn.families, name)
    assert name in dir(hf_longattn.families)
    assert (inspect.getdoc(made) or "").splitlines()[0] == (ast.get_docstring(CLASSES[name][0]) or "").splitlines()[0]
    assert name in pydoc.render_doc(made, renderer=pydoc.plaintext)
    if not name.endswith("Config"):
        assert "global_attention_mask" in str(inspect.signature(made.forward))


@pytest.mark.slow
def test_mypy_checks_what_a_user_writes(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "snippet.py").write_text(SNIPPET, encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(SETTINGS, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "snippet.py"]
    done = subprocess.run(command, cwd=tmp_path, env={"MYPYPATH": str(repository)}, capture_output=True, text=True, check=False)
    found = {int(line.split(":")[1]): line for line in done.stdout.splitlines() if ": error:" in line}
    expected = {number: line.split("# E: ")[1] for number, line in enumerate(SNIPPET.splitlines(), 1) if "# E: " in line}
    assert found.keys() == expected.keys(), done.stdout + done.stderr
    assert all(expected[number] in found[number] for number in expected), done.stdout
