"""Whatever stands in a checkpoint's files: it is refused with one sentence, or the result is whole and verified."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.damage import MODELS, contents, make_checkpoint, refused_or_whole, weights
from tests.grids import drawn

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-3, 130) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE"]


@pytest.fixture(scope="module")
def wholes() -> Iterator[dict[str, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        yield {name: make_checkpoint(name, Path(folder) / name) for name in MODELS}


def examples(count: int) -> settings:
    return drawn(count, count // 5, database=None, suppress_health_check=list(HealthCheck))


def tried(whole: Path, damage: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        shutil.copytree(whole, source)
        damage(source)
        refused_or_whole(source, Path(folder))
        assert set(contents(Path(folder))) >= {"source"}


@pytest.mark.parametrize("name", ["bert", "llama"])
@examples(20)
@given(st.data())
def test_convert_refuses_or_converts_any_value_in_a_field_of_the_config(name: str, wholes: dict[str, Path], data: st.DataObject) -> None:
    config = json.loads((wholes[name] / "config.json").read_text())
    field = data.draw(st.sampled_from(sorted(config)))
    config[field] = data.draw(JSON)
    tried(wholes[name], lambda source: (source / "config.json").write_text(json.dumps(config)))


@pytest.mark.thorough
@examples(25)
@given(st.data())
def test_convert_refuses_or_converts_weights_with_changed_bytes(wholes: dict[str, Path], data: st.DataObject) -> None:
    raw = bytearray(weights(wholes["bert"]).read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    at = data.draw(st.integers(0, header - 1) | st.integers(0, len(raw) - 1))
    new = data.draw(st.binary(max_size=9))
    raw[at : at + data.draw(st.integers(0, 9))] = new
    tried(wholes["bert"], lambda source: weights(source).write_bytes(raw))


@pytest.mark.thorough
@examples(30)
@given(st.data())
def test_convert_refuses_or_converts_any_file_cut_short(wholes: dict[str, Path], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(MODELS)))
    file = data.draw(st.sampled_from(sorted(path.name for path in wholes[name].iterdir())))
    raw = (wholes[name] / file).read_bytes()
    tried(wholes[name], lambda source: (source / file).write_bytes(raw[: data.draw(st.integers(0, len(raw)))]))


@examples(30)
@given(st.sampled_from(FILES), st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_convert_refuses_or_converts_any_bytes_as_a_file(wholes: dict[str, Path], file: str, content: bytes) -> None:
    tried(wholes["bert"], lambda source: (source / file).write_bytes(content))
