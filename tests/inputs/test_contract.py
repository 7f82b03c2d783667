"""What every modality promises, with the default config of each family that is not derived; and excerpts of
recordings."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_longattn.inputs.modality import SETTINGS, Modality, modality_of
from hf_longattn.inputs.sound_inputs import Sounds
from hf_longattn.modeling.family.definition import FAMILIES, stored_facts

NAMES = [name for name in FAMILIES if name not in stored_facts()["derived"]]


@pytest.fixture(params=NAMES)
def modality(request: pytest.FixtureRequest) -> Modality:
    return modality_of(FAMILIES[request.param])


@pytest.mark.thorough
def test_modalities_have_nouns_and_settings_for_messages(modality: Modality) -> None:
    assert modality.noun
    assert modality.nouns
    assert {*modality.settings} <= {*SETTINGS}


def test_modality_sizes_have_words_and_tokens(modality: Modality) -> None:
    sizes = modality.sizes(modality.family.config_class())
    assert sizes.old.tokens > 0
    assert sizes.new.tokens >= sizes.old.tokens
    assert all((str(sizes.old), str(sizes.new)))
    assert sizes.steps()[0] == sizes.old
    assert sizes.steps()[-1] == sizes.new
    double = tuple(2 * side for side in sizes.old.value) if isinstance(sizes.old.value, tuple) else 2 * sizes.old.value
    assert sizes.at(double).tokens > sizes.old.tokens


def test_base_models_take_the_inputs_of_a_verification(modality: Modality, tmp_path: Path) -> None:
    family, config = modality.family, modality.family.config_class()
    size = modality.sizes(config).old
    if not size.name or getattr(modality.spec, "shapes", None) is not None:  # texts, and images of any size
        return
    inputs = modality.inputs(config, tmp_path)
    assert inputs.describe()
    assert {*inputs.at(size)} <= {*inspect.signature(family.base_class(family.base_model_name).forward).parameters}


def test_excerpts_take_every_recording_before_a_second_of_any() -> None:
    """The first of each, then the second of each."""
    spec: Any = SimpleNamespace(length=int, step=lambda config: 1, as_input=lambda row: row, arguments=lambda row: row)
    sounds, size = Sounds(spec, None, Path(), count=3, processor=object()), SimpleNamespace(value=4)
    vars(sounds)["rows"] = [torch.arange(10)[None], 100 + torch.arange(9)[None]]
    assert [values.tolist() for values in sounds.pieces(size)] == [
        [[0, 1, 2, 3]],
        [[100, 101, 102, 103]],
        [[4, 5, 6, 7]],
    ]  # type: ignore[arg-type, attr-defined]
