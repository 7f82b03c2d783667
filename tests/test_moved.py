"""Import paths of the first 0.1 that have moved: a sentence with the new one."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from hf_longattn.lazy import MOVED_MODULES

BEFORE = json.loads((Path(__file__).parent / "names_of_0_1.json").read_text(encoding="utf-8"))
"""The modules of the first 0.1 (commit c68cb07), and the public names of its packages."""


@pytest.mark.parametrize(("old", "new"), MOVED_MODULES.items())
def test_an_import_of_a_moved_module_names_the_new_one(old: str, new: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=rf"hf_longattn\.{old} has moved; import hf_longattn\.{new}$"):
        importlib.import_module(f"hf_longattn.{old}")
    assert importlib.import_module(f"hf_longattn.{new}")


def test_a_moved_name_says_where_it_is() -> None:
    with pytest.raises(ImportError, match=r"has moved; write: from hf_longattn\.export import compress_checkpoint"):
        from hf_longattn.conversion import compress_checkpoint  # type: ignore[attr-defined]  # noqa: F401


def test_every_module_of_the_first_0_1_is_there_or_says_where_it_is() -> None:
    silent = []
    for module in BEFORE["modules"]:
        try:
            importlib.import_module(f"hf_longattn.{module}")
        except ModuleNotFoundError as error:
            if "has moved; import hf_longattn." not in str(error):
                silent.append(module)
    assert not silent, f"enter them in MOVED_MODULES of hf_longattn/lazy.py: {silent}"


@pytest.mark.parametrize("package", BEFORE["public"])
def test_every_public_name_of_the_first_0_1_is_there_or_says_where_it_is(package: str) -> None:
    module = importlib.import_module(f"hf_longattn.{package}".rstrip("."))
    silent = []
    for name in BEFORE["public"][package]:
        try:
            getattr(module, name)
        except AttributeError:
            silent.append(name)
        except ImportError as error:
            if "write: from hf_longattn" not in str(error):
                silent.append(name)
    assert not silent, f"hf_longattn.{package} lacks {silent}; give its public_names(moved=…, renamed=…) their new places"
