"""What every family's spec promises, with the default config of each family that is not derived; and excerpts of
recordings."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_longattn.conversion.convert import MODALITIES
from hf_longattn.conversion.modality import SETTINGS
from hf_longattn.conversion.sounds import Sounds
from hf_longattn.modeling.family.definition import FAMILIES, Family, stored_facts

NAMES = [name for name in FAMILIES if name not in stored_facts()["derived"]]


@pytest.fixture(params=NAMES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.mark.thorough
def test_families_have_nouns_and_settings_for_messages(family: Family) -> None:
    assert family.spec.noun
    assert family.spec.nouns
    assert {*MODALITIES[family.spec.reads].settings} <= {*SETTINGS}


def test_sizes_of_a_family_have_words_and_tokens(family: Family) -> None:
    sizes = family.spec.sizes(family, family.config_class())
    assert sizes.old.tokens > 0
    assert sizes.new.tokens >= sizes.old.tokens
    assert all((str(sizes.old), str(sizes.new)))
    assert sizes.steps()[0] == sizes.old
    assert sizes.steps()[-1] == sizes.new
    double = tuple(2 * side for side in sizes.old.value) if isinstance(sizes.old.value, tuple) else 2 * sizes.old.value
    assert sizes.at(double).tokens > sizes.old.tokens


def test_base_models_take_the_inputs_of_a_verification(family: Family, tmp_path: Path) -> None:
    config = family.config_class()
    size = family.spec.sizes(family, config).old
    if not size.name:  # texts
        return
    inputs = MODALITIES[family.spec.reads].inputs(family, config, tmp_path, ("", ""), None)
    assert inputs.describe()
    assert {*inputs.at(size)} <= {*inspect.signature(family.base_class(family.base_model_name).forward).parameters}


def test_excerpts_take_every_recording_before_a_second_of_any(tmp_path: Path) -> None:
    """The first of each, then the second of each."""
    spec: Any = SimpleNamespace(length=int, step=lambda config: 1, as_input=lambda row: row, arguments=lambda row: row)
    sounds, size = Sounds(spec, None, tmp_path, count=3), SimpleNamespace(value=4)
    vars(sounds)["rows"] = [torch.arange(10)[None], 100 + torch.arange(9)[None]]
    assert [values.tolist() for values in sounds.pieces(size)] == [
        [[0, 1, 2, 3]],
        [[100, 101, 102, 103]],
        [[4, 5, 6, 7]],
    ]  # type: ignore[arg-type, attr-defined]
