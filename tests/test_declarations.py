"""The command line knows mechanisms and tasks before it imports them, and says then what they say themselves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_longattn import declarations, naming
from hf_longattn.catalogue import Listed, check_early, list_early
from hf_longattn.errors import RegistrationError, UnknownMechanismError, UsageError
from hf_longattn.mechanisms import list_mechanisms, mechanism_info
from hf_longattn.mechanisms.common import registry
from hf_longattn.tasks import NO_SUMMARY, declared_arguments, evaluated_tasks, load_task, task_names, task_summary
from hf_longattn.training import tasks as tasks_folder
from hf_longattn.training.evaluation import evaluation_arguments
from hf_longattn.training.parsing import USUAL, answer_early, parse_arguments
from tests.cells import every_cell
from tests.warm import run_fresh


@pytest.fixture(scope="module")
def early(repository: Path) -> dict[str, Any]:
    done = run_fresh("-m", "tests.early_help", cwd=repository, level="interpreter")
    pages: dict[str, Any] = json.loads(done.stdout)
    return pages


def test_help_imports_no_torch(early: dict[str, Any]) -> None:
    assert not early["torch"]


@every_cell("task", task_names())
def test_the_short_help_of_a_task_is_that_of_its_arguments(
    task: str, early: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse_arguments(load_task(task).arguments, ["--help"], task_summary(task), f"longattn train {task}")
    assert early["train"][task] == capsys.readouterr().out
    kinds = declared_arguments(task)
    assert kinds is not None
    assert set(USUAL) <= set(kinds[2].__dataclass_fields__)


@pytest.mark.thorough
def test_the_short_help_of_an_evaluation_is_that_of_its_arguments(
    early: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert len(evaluated_tasks()) == 10
    for name in evaluated_tasks():
        with pytest.raises(SystemExit):
            parse_arguments(evaluation_arguments(load_task(name).arguments), ["--help"], task_summary(name), f"longattn evaluate {name}")
        assert early["evaluate"][name] == capsys.readouterr().out
        with pytest.raises(UsageError, match="--learning-rate is an option of training, and nothing is trained here; leave it out"):
            answer_early(name, ["--learning-rate", "1"], "", f"longattn evaluate {name}", is_evaluation=True)


def test_a_file_of_a_mechanism_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert naming.module_names("mechanisms") == list_mechanisms()
    monkeypatch.setattr(registry, "module_names", lambda package: ["common"])
    with pytest.raises(RegistrationError, match=r"registers no mechanism 'common'; give the file the name of its mechanism"):
        registry._discover.__wrapped__()


def test_nothing_is_refused_early_once_mechanisms_may_have_been_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    check_early("of_this_process", {})
    monkeypatch.delitem(sys.modules, registry.__name__)
    with pytest.raises(UnknownMechanismError, match=r"Did you mean 'window'\?"):
        check_early("windw", {})


def test_what_is_not_in_the_file_is_left_to_an_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(declarations, "FILE", tmp_path / "none.json")  # as in a copy bundled with a model
    declarations.declared.cache_clear()
    try:
        monkeypatch.delitem(sys.modules, registry.__name__)
        check_early("window", {"windoww": 3})
        assert declared_arguments("qa") is None
        assert evaluated_tasks()["qa"] == load_task("qa").evaluation
    finally:
        declarations.declared.cache_clear()


def test_a_task_without_a_docstring_says_so_in_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "silent.py").write_text("TASK = None\n")
    monkeypatch.setattr(tasks_folder, "__path__", [*tasks_folder.__path__, str(tmp_path)])
    assert task_summary("silent") == NO_SUMMARY


def test_the_list_of_mechanisms_is_that_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not list_early(), "others may have been registered"
    infos = [mechanism_info(name) for name in list_mechanisms()]
    monkeypatch.delitem(sys.modules, registry.__name__)
    assert list_early() == [Listed(info.name, info.summary, info.cost, info.causal) for info in infos]


def test_a_module_of_a_bundle_is_its_flat_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "FLAT_FILES", {"families": {"bert": "modeling_long_bert"}, "mechanisms": {}})
    assert naming.module_path("families", "bert") == Path(naming.__file__).with_name("modeling_long_bert.py")
    assert naming.module_path("families", "gpt2") is None
    assert naming.module_path("training.tasks", "qa") is None
