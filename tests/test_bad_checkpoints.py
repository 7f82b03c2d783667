"""Bad checkpoints are refused: one sentence, exit 1, the destination and everything else as it was."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bad_checkpoints import CONFIGS, COUNTS, INDICES, NUMBERS, TOKENIZERS, WEIGHTS
from tests.cases import every_case
from tests.damage import (
    CONVERT,
    MODELS,
    SHARDED,
    Cases,
    check_sentence,
    contents,
    convert,
    edit_json,
    make_checkpoint,
    refused,
)
from tests.fresh_processes import run_fresh
from tests.grids import pairwise
from tests.permissions import bound_by_permissions

Place = Callable[[str], Path]


@pytest.fixture(scope="module")
def wholes() -> Iterator[dict[str, Path]]:
    """Name -> a whole checkpoint, in a folder that other users may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        made = {name: make_checkpoint(name, Path(folder) / name) for name in MODELS}
        for path in Path(folder).rglob("*.*"):
            path.chmod(0o644)
        for name, whole in made.items():
            assert convert(whole, Path(folder) / "long" / name)[0] == 0  # it is the damage that is refused
        yield made


@pytest.fixture
def place(wholes: dict[str, Path]) -> Iterator[Place]:
    """place("bert") -> a new folder with a copy of that checkpoint, called "source"."""
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o777)

        def make(name: str) -> Path:
            folder = Path(tempfile.mkdtemp(dir=root))
            folder.chmod(0o777)
            shutil.copytree(wholes[name], folder / "source")
            return folder

        yield make


def listed(cases: Cases, names: tuple[str, ...]) -> list[object]:
    """Every case with one of the checkpoints in turn; `make test-slow` has it with each."""
    return [
        pytest.param(
            name,
            *cases[case],
            id=f"{name}, {case}",
            marks=[] if name == names[number % len(names)] else pytest.mark.slow,
        )
        for number, case in enumerate(cases)
        for name in names
    ]


def check(place: Path, damage: Callable[[Path], object], sentence: str) -> None:
    damage(place / "source")
    hidden = any(path.stat().st_mode & 0o777 == 0 for path in (place / "source").iterdir() if path.exists())
    with bound_by_permissions() if hidden else contextlib.nullcontext():
        found = refused(place / "source", place)
    assert re.search(sentence, found), found


@every_case(("name", "damage", "sentence"), listed(WEIGHTS, ("bert", "gpt2")))
def test_convert_refuses_bad_weights(name: str, damage: Callable[[Path], object], sentence: str, place: Place) -> None:
    check(place(name), damage, sentence)


@every_case(("name", "damage", "sentence"), listed(INDICES, SHARDED))
def test_convert_refuses_a_bad_index_of_shards(
    name: str, damage: Callable[[Path], object], sentence: str, place: Place
) -> None:
    check(place(name), damage, sentence)


@every_case(("name", "damage", "sentence"), listed(CONFIGS, ("bert", "llama")))
def test_convert_refuses_a_bad_config(
    name: str, damage: Callable[[Path], object], sentence: str, place: Place
) -> None:
    check(place(name), damage, sentence)


@every_case(("name", "damage", "sentence"), listed(TOKENIZERS, ("gpt2",)))
def test_convert_refuses_a_bad_tokenizer(
    name: str, damage: Callable[[Path], object], sentence: str, place: Place
) -> None:
    check(place(name), damage, sentence)


@pytest.mark.thorough
@every_case(
    ("name", "field", "value"),
    pairwise(("bert", "llama"), COUNTS, NUMBERS),
    ids=repr,
    of=2,
    code=lambda name, field, value: field,
)
def test_convert_refuses_impossible_counts_in_a_config(name: str, field: str, value: object, place: Place) -> None:
    check(place(name), edit_json("config.json", **{field: value}), "")


@pytest.mark.parametrize("damage", ["one byte short", "a matrix is missing"])
def test_a_refused_convert_with_overwrite_leaves_the_old_destination_as_it_was(damage: str, place: Place) -> None:
    folder = place("bert")
    assert convert(folder / "source", folder / "long")[0] == 0
    WEIGHTS[damage][0](folder / "source")
    refused(folder / "source", folder, *CONVERT, "--overwrite")


def test_convert_names_tensors_with_nan_and_takes_them_with_no_verify(place: Place) -> None:
    folder = place("bert")
    WEIGHTS["NaN"][0](folder / "source")
    sentence = refused(folder / "source", folder)
    assert re.search(
        r"1 tensors hold NaN or infinite numbers.*: bert\.embeddings\.position_embeddings\.weight", sentence
    )
    assert convert(folder / "source", folder / "long", *CONVERT, "--no-verify")[0] == 0


def test_longattn_convert_in_a_process_refuses_bad_files(place: Place) -> None:
    folder = place("bert")
    WEIGHTS["header of 10 GB"][0](folder / "source")
    before = contents(folder)
    done = run_fresh("-m", "hf_longattn", "convert", folder / "source", folder / "long", *CONVERT)
    check_sentence(done.stderr, done.stdout)
    assert (done.returncode, contents(folder)) == (1, before)


@pytest.mark.parametrize("inside", [True, False], ids=["a file of a module", "a module"])
def test_convert_refuses_a_sentence_transformer_with_a_link_outside(inside: bool, place: Place) -> None:
    folder = place("bert")
    source = folder / "source"
    kinds = {"0": "Transformer", "1": "Pooling"}
    modules = [
        {"idx": int(i), "name": i, "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in kinds.items()
    ]
    (source / "modules.json").write_text(json.dumps([{**modules[0], "path": ""}, modules[1]]))
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text("{}")
    if inside:
        (source / "1_Pooling").mkdir()
        (source / "1_Pooling" / "config.json").symlink_to(elsewhere / "config.json")
    else:
        (source / "1_Pooling").symlink_to(elsewhere)
    assert "outside" in refused(source, folder)
