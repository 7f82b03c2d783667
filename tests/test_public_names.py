"""`import hf_longattn`: every public name is there, each imported on first use."""

from __future__ import annotations

import pytest

import hf_longattn
from tests.cases import every_case


@every_case("name", hf_longattn.__all__)
def test_public_names_of_the_package_are_imported_on_first_use(name: str) -> None:
    assert getattr(hf_longattn, name).__module__.startswith("hf_longattn.")
    assert name in dir(hf_longattn)


def test_long_classes_and_rooms_are_attributes_of_the_package() -> None:
    assert hf_longattn.LongBertForQuestionAnswering.__name__ == "LongBertForQuestionAnswering"
    assert "LongGPT2LMHeadModel" in dir(hf_longattn)
    assert hf_longattn.families.FAMILIES["bert"].config_class is hf_longattn.LongBertConfig


def test_unknown_names_of_the_package_are_attribute_errors() -> None:
    for name in ("LongNothing", "nothing", "_nothing"):
        with pytest.raises(AttributeError, match=name):
            getattr(hf_longattn, name)
