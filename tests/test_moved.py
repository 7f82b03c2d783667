"""Import paths of the first 0.1 that have moved: a sentence with the new one."""

from __future__ import annotations

import importlib

import pytest

from hf_longattn.lazy import MOVED_MODULES


@pytest.mark.parametrize(("old", "new"), MOVED_MODULES.items())
def test_an_import_of_a_moved_module_names_the_new_one(old: str, new: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=rf"hf_longattn\.{old} has moved; import hf_longattn\.{new}$"):
        importlib.import_module(f"hf_longattn.{old}")
    assert importlib.import_module(f"hf_longattn.{new}")


def test_a_moved_name_says_where_it_is() -> None:
    with pytest.raises(ImportError, match=r"has moved; write: from hf_longattn\.export import compress_checkpoint"):
        from hf_longattn.conversion import compress_checkpoint  # type: ignore[attr-defined]  # noqa: F401
