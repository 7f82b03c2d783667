"""The helpers of the tests: tables of cases, grids, fresh processes and hash seeds."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import cases
from tests.cases import Cases, every_case
from tests.fresh_processes import LEVELS, run_fresh
from tests.grids import all_pairs

SLOW = pytest.param(5, marks=pytest.mark.slow)


def groups(test: Any) -> dict[str, bool]:
    """The tests of a table by name, and whether each is slow."""
    (mark,) = (mark for mark in test.pytestmark if mark.args[0] == "_group")
    return {value.values[0]: bool(value.marks) for value in mark.args[1]}


def test_every_case_runs_all_cases_and_names_all_that_fail() -> None:
    @every_case("x", [1, 2, 3, 4])
    def even(x: int) -> None:
        if x == 4:
            pytest.skip("four")
        if x == 3:
            pytest.fail("three is odd")
        assert x % 2 == 0, f"{x} is odd"

    with pytest.raises(AssertionError) as caught:
        even()
    assert str(caught.value).startswith("2 of 3 cases failed: 1, 3\n\n[1] at test_helpers.py:")
    assert all(words in str(caught.value) for words in ("1 is odd", "Failed: three is odd"))


def test_every_case_fails_without_cases() -> None:
    with pytest.raises(AssertionError, match="no case ran"), Cases():
        pass


def test_every_case_has_the_seed_and_a_monkeypatch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, patched = [], []

    @every_case("x", range(3))
    def draws(x: int, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn.append(torch.rand(()).item())
        patched.append(hasattr(cases, "patched"))
        monkeypatch.setattr(cases, "patched", x, raising=False)

    draws(monkeypatch=monkeypatch)
    assert len(drawn) == 3
    assert len({*drawn}) == 1
    assert not any(patched)
    assert not hasattr(cases, "patched")


def test_every_case_multiplies_decorators_and_has_slow_cases_in_a_slow_test() -> None:
    seen = []

    @pytest.mark.filterwarnings("ignore")
    @every_case("y", ["a", SLOW])
    @every_case(("x", "z"), [(1, 2), (3, 4)], by="x")
    def table(x: int, y: Any, z: int, recwarn: object) -> None:
        seen.append((x, y, z))

    assert groups(table) == {"1": False, "1-slow": True, "3": False, "3-slow": True}
    assert [*inspect.signature(table).parameters] == ["recwarn", "_group"]
    for group in groups(table):
        table(recwarn=None, _group=group)
    assert seen == [(1, "a", 2), (1, 5, 2), (3, "a", 4), (3, 5, 4)]


def test_every_case_with_pairs_has_every_two_values_in_the_quick_test() -> None:
    seen: list[tuple[int, ...]] = []

    @every_case("x", range(3), pairs=True)
    @every_case("y", range(3))
    @every_case("z", range(3))
    def table(x: int, y: int, z: int) -> None:
        seen.append((x, y, z))

    table(_group="quick")
    assert len(seen) < 15
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert {(case[a], case[b]) for case in seen} == {(i, j) for i in range(3) for j in range(3)}
    table(_group="slow")
    assert len({*seen}) == len(seen) == 27


def test_every_case_with_code_has_a_quick_value_for_every_code() -> None:
    @every_case(
        ("name", "size"),
        [("a", 1), ("a", 2), ("b", 1), ("c", 1), ("c", 2), pytest.param("d", 1, marks=pytest.mark.slow)],
        of=2,
        code=lambda name, size: name,
    )
    def test(name: str, size: int) -> None:
        pass

    assert [case["name"] for _, case, slow in test.every_case.cases if not slow] == ["a", "b", "c"]


@pytest.mark.parametrize("sizes", [(1, 1), (5, 3), (2, 2, 2), (30, 3, 2, 2), (4, 1, 7)])
def test_all_pairs_has_every_two_values_of_two_axes(sizes: tuple[int, ...]) -> None:
    cells = all_pairs(*sizes)
    assert cells == all_pairs(*sizes)
    for first, second in itertools.combinations(range(len(sizes)), 2):
        assert {(cell[first], cell[second]) for cell in cells} == {
            *itertools.product(range(sizes[first]), range(sizes[second]))
        }


def say(*words: str) -> None:
    """Run in the process."""
    print(Path.cwd(), os.environ.get("SAID"), *words, "hf_longattn" in sys.modules, "transformers" in sys.modules)


def fail() -> None:
    raise ValueError("on purpose")


def fall() -> None:
    os.kill(os.getpid(), 9)


def hang() -> None:
    import time

    time.sleep(60)


def test_run_fresh_keeps_environment_folder_output_and_status(tmp_path: Path) -> None:
    done = run_fresh(say, 1, "a b", env={**os.environ, "SAID": "yes"}, cwd=tmp_path)  # type: ignore[arg-type]
    assert (done.stdout, done.returncode) == (f"{tmp_path} yes 1 a b False True\n", 0)
    failed = run_fresh(fail)
    assert failed.returncode == 1
    assert failed.stderr.endswith("ValueError: on purpose\n")
    assert run_fresh(fall).returncode == -9
    with pytest.raises(subprocess.TimeoutExpired):
        run_fresh(hang, timeout=0.1)


def test_run_fresh_applies_variables_that_libraries_read_at_import() -> None:
    code = (
        "import os, huggingface_hub.constants as c, hf_longattn; print(c.HF_HOME, os.environ['HF_TOKEN'], "
        "hf_longattn.__file__)"
    )
    environment = {**os.environ, "HF_HOME": "/nowhere", "HF_TOKEN": "mine"}
    done = run_fresh("-c", code, env=environment)
    assert done.stdout.split()[:2] == ["/nowhere", "mine"], done.stderr
    with pytest.raises(ValueError, match="PYTHONHASHSEED would not be read"):
        run_fresh("-c", "", env={**os.environ, "PYTHONHASHSEED": "7"})


@pytest.mark.parametrize("level", LEVELS)
def test_run_fresh_at_a_level_has_imported_nothing_of_the_next(level: str) -> None:
    done = run_fresh(
        "-c", "import sys; print([name for name in ('torch', 'transformers') if name in sys.modules])", level=level
    )
    assert (
        done.stdout
        == {"interpreter": "[]\n", "torch": "['torch']\n", "transformers": "['torch', 'transformers']\n"}[level]
    )


@pytest.mark.slow
@pytest.mark.parametrize("what", ["inputs", "search"])
def test_training_inputs_and_searches_are_the_same_under_every_hash_seed(
    what: str, tmp_path: Path, repository: Path
) -> None:
    """With a seed of its own, and with that of this run's fresh processes, which is random unless the run has one."""
    from tests.trained import tokenizer_of  # a fresh process that imports this file has no hf_longattn yet
    from tests.training.conftest import checkpoint

    checkpoint("mlm", tmp_path / "model", tokenizer_of("bert", 64))
    command = ["-m", "tests.hash_seeds", what]
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    runs = [
        subprocess.run(
            [sys.executable, *command, str(folders[0]), str(tmp_path / "model")],
            cwd=repository,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        ),
        run_fresh(*command, folders[1], tmp_path / "model", cwd=repository),
    ]
    for done in runs:
        assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads(done.stdout.splitlines()[-1]) for done in runs)
    assert first == second
    assert first
