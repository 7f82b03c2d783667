"""What is read of classes of options without importing their files is what the classes say."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_longattn import naming
from hf_longattn.catalogue import check_early
from hf_longattn.declarations import UndeclaredError, class_fields, keyword_of, member_of_class
from hf_longattn.errors import RegistrationError, UnknownMechanismError, UsageError
from hf_longattn.mechanisms import list_mechanisms, mechanism_class
from hf_longattn.mechanisms.common import registry
from hf_longattn.options import Options
from hf_longattn.tasks import NO_SUMMARY, evaluated_tasks, load_task, task_names, task_summary
from hf_longattn.training import tasks as tasks_folder
from hf_longattn.training.evaluation import evaluation_arguments
from hf_longattn.training.parsing import USUAL, answer_early, parse_arguments
from tests.declared_fields import describe
from tests.warm import run_fresh


@pytest.fixture(scope="module")
def declared(repository: Path) -> dict[str, Any]:
    done = run_fresh("-m", "tests.declared_fields", cwd=repository, level="interpreter")
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def test_reading_imports_no_torch(declared: dict[str, Any]) -> None:
    assert not declared["torch"]


@pytest.mark.parametrize("task", task_names())
def test_the_declared_arguments_of_a_task_are_its_arguments(task: str, declared: dict[str, Any]) -> None:
    for (name, fields), kind in zip(declared["tasks"][task], load_task(task).arguments, strict=True):
        assert name == kind.__name__
        assert fields == describe(kind, list(fields))
    assert set(USUAL) <= set(fields)


@pytest.mark.parametrize("task", task_names())
def test_the_short_help_of_a_task_is_that_of_its_arguments(
    task: str, declared: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse_arguments(load_task(task).arguments, ["--help"], task_summary(task), f"longattn train {task}")
    assert declared["help"][task] == capsys.readouterr().out


def test_what_is_declared_of_an_evaluation_is_what_its_task_says(
    declared: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert evaluated_tasks() == {name: load_task(name).evaluation for name in task_names() if load_task(name).evaluation}
    assert len(evaluated_tasks()) == 10
    for name in evaluated_tasks():
        with pytest.raises(SystemExit):
            parse_arguments(evaluation_arguments(load_task(name).arguments), ["--help"], task_summary(name), f"longattn evaluate {name}")
        assert declared["evaluations"][name] == capsys.readouterr().out
        with pytest.raises(UsageError, match="--learning_rate is an option of training, and nothing is trained here; leave it out"):
            answer_early(name, ["--learning_rate", "1"], "", f"longattn evaluate {name}", is_evaluation=True)


@pytest.mark.parametrize("mechanism", naming.module_names("mechanisms"))
def test_the_declared_options_of_a_mechanism_are_its_options(mechanism: str, declared: dict[str, Any]) -> None:
    options_type, read = mechanism_class(mechanism).options_type, declared["mechanisms"][mechanism]
    if read is None:
        assert options_type is Options  # it assigns none, which is all that may remain unread
    else:
        assert read == json.loads(json.dumps([dataclasses.astuple(info) for info in options_type.infos()], default=str))


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


@pytest.mark.parametrize(
    "read",
    [
        lambda: keyword_of("hf_longattn.nowhere", "TASK", "arguments"),
        lambda: keyword_of("hf_longattn.training.tasks.mlm", "TASK", "nothing"),
        lambda: member_of_class("hf_longattn.mechanisms.full", "options_type"),
        lambda: member_of_class("hf_longattn.mechanisms.window", "forward"),
        lambda: class_fields(Path(__file__), "Nothing"),
    ],
)
def test_what_cannot_be_read_is_left_to_an_import(read: Any) -> None:
    with pytest.raises(UndeclaredError):
        read()


def test_a_task_without_a_docstring_says_so_in_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "silent.py").write_text("TASK = None\n")
    monkeypatch.setattr(tasks_folder, "__path__", [*tasks_folder.__path__, str(tmp_path)])
    assert task_summary("silent") == NO_SUMMARY


def test_a_module_of_a_bundle_is_its_flat_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "FLAT_FILES", {"families": {"bert": "modeling_long_bert"}, "mechanisms": {}})
    assert naming.module_path("families", "bert") == Path(naming.__file__).with_name("modeling_long_bert.py")
    assert naming.module_path("families", "gpt2") is None
    assert naming.module_path("training.tasks", "qa") is None
