"""`import hf_longattn`: every public name is there, each imported on first use."""

from __future__ import annotations

import importlib
import types

import pytest

import hf_longattn
from tests.cells import every_cell


@every_cell("name", hf_longattn.__all__)
def test_public_names(name: str) -> None:
    assert getattr(hf_longattn, name).__module__.startswith("hf_longattn.")
    assert name in dir(hf_longattn)


def test_attend_stays_the_function_when_its_module_is_imported() -> None:
    module = importlib.import_module("hf_longattn.attend")
    assert isinstance(module, types.ModuleType)
    assert hf_longattn.attend is module.attend


def test_long_classes_and_packages() -> None:
    assert hf_longattn.LongBertForQuestionAnswering.__name__ == "LongBertForQuestionAnswering"
    assert "LongGPT2LMHeadModel" in dir(hf_longattn)
    assert hf_longattn.families.FAMILIES["bert"].config_class is hf_longattn.LongBertConfig


def test_unknown_names() -> None:
    for name in ("LongNothing", "nothing", "_nothing"):
        with pytest.raises(AttributeError, match=name):
            getattr(hf_longattn, name)
