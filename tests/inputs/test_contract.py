"""What every modality of input promises, with the default config of each family that is not derived."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from hf_longattn.inputs.modality import SETTINGS, Modality, modality_of
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
