"""What every kind of input promises, with the default config of each family that has a file."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from hf_longattn.inputs.common.base import SEARCH, SETTINGS, SIZE, VERIFICATION, InputKind, kind_of
from hf_longattn.inputs.common.sized import SizedKind
from hf_longattn.modeling.family.definition import FAMILIES, module_name
from hf_longattn.names import module_names

IN_FILES = {*module_names("families")}
NAMES = [name for name in FAMILIES if module_name(name) in IN_FILES]


@pytest.fixture(params=NAMES)
def kind(request: pytest.FixtureRequest) -> InputKind:
    return kind_of(FAMILIES[request.param])


@pytest.mark.thorough
def test_input_kinds_have_nouns_and_settings_for_messages(kind: InputKind) -> None:
    assert kind.noun
    assert kind.nouns
    assert set(kind.settings) <= set(SETTINGS)
    assert set(kind.instead) <= {SIZE, SEARCH, VERIFICATION}
    assert SIZE in kind.instead
    if isinstance(kind, SizedKind):
        assert kind.size_noun
        assert kind.smaller


def test_input_kind_sizes_have_words_and_tokens(kind: InputKind) -> None:
    sizes = kind.sizes(kind.family.config_class())
    assert sizes.old.tokens > 0
    assert sizes.new.tokens >= sizes.old.tokens
    assert all((sizes.old_words, sizes.new_words, sizes.longest, sizes.new.typed, sizes.new.heading))


@pytest.mark.thorough
def test_input_kinds_count_more_tokens_for_larger_sizes(kind: InputKind) -> None:
    if not isinstance(kind, SizedKind) or kind.any_size:
        return
    config = kind.family.config_class()
    old = kind.sizes(config).old.value
    doubled = kind.doubled(old)
    tokens = [kind.size(config, value).tokens for value in (old, kind.halved(config, doubled, old), doubled)]
    assert tokens == sorted(tokens)
    assert tokens[0] < tokens[-1]
    assert kind.limited(doubled, old) == old


def test_base_models_take_the_inputs_of_a_verification(kind: InputKind, tmp_path: Path) -> None:
    if not isinstance(kind, SizedKind) or kind.any_size:
        return
    family, config = kind.family, kind.family.config_class()
    inputs = kind.inputs(config, tmp_path)
    assert inputs.describe()
    assert set(inputs.at(kind.sizes(config).old)) <= set(inspect.signature(family.base_class(family.base_model_name).forward).parameters)
