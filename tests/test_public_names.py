"""`import hf_longattn`: every public name is there, each imported on first use."""

from __future__ import annotations

import importlib
import types
import warnings

import pytest
from packaging.version import Version

import hf_longattn
from hf_longattn import lazy
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


@pytest.mark.parametrize("package", ["hf_longattn", "hf_longattn.search"])
def test_a_deprecated_name_works_and_warns_once_with_what_to_write(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lazy.DEPRECATED_NAMES, f"{package}.former", ("hf_longattn.search.Design", "0.4"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(f"from {package} import former\nfrom {package} import former", namespace := {})
        assert namespace["former"] is hf_longattn.search.Design
    (warning,) = caught
    sentence = f"{package}.former is deprecated and will be removed in hf_longattn 0.4; write: from hf_longattn.search import Design"
    assert (str(warning.message), warning.category, warning.filename) == (sentence, FutureWarning, "<string>")
    assert "former" not in importlib.import_module(package).__all__


def test_deprecated_names_lead_to_public_ones_until_their_version() -> None:
    for old, (new, removed_in) in lazy.DEPRECATED_NAMES.items():
        package, _, name = new.rpartition(".")
        assert name in importlib.import_module(package).__all__
        assert Version(hf_longattn.__version__) < Version(removed_in), f"remove {old} from DEPRECATED_NAMES of hf_longattn/lazy.py"
