import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from hf_longattn.errors import OptionError
from scripts.dev import RESULTS, ROOT
from scripts.dev.benchmarks import everything
from scripts.dev.benchmarks.app import app
from scripts.dev.benchmarks.everything import Job, main, read_jobs
from tests.cases import Cases

PAGES_ALONE = ("mutations.md",)
"""Stored pages without JSON."""


def test_every_stored_result_has_one_command() -> None:
    made = [name for job in read_jobs() for name in job.results]
    assert len(made) == len(set(made))
    stored = {path.stem for path in RESULTS.iterdir() if path.suffix == ".json" or path.name in PAGES_ALONE}
    assert set(made) == stored


def test_every_command_of_results_names_a_program_of_this_checkout() -> None:
    for job in read_jobs():
        words = shlex.split(job.command)
        path = f"{words[2].replace('.', '/')}" if words[1] == "-m" else words[1].removesuffix(".py")
        here = (ROOT / f"{path}.py").exists() or (ROOT / path / "__main__.py").exists()
        assert here, job.command


def test_benchmarks_take_the_commands_of_results() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    with group.make_context("benchmarks", [], resilient_parsing=True) as context, Cases() as cases:
        for job in read_jobs():
            words = shlex.split(job.command)
            if words[1:3] == ["-m", "scripts.dev.benchmarks"]:
                with cases(job.command):
                    _, command, rest = group.resolve_command(context, words[3:])
                    assert command is not None
                    command.make_context(words[3], rest).close()


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commands, of which the second one fails until a file is there; they count how often they run."""
    ran = tmp_path / "ran"
    good = f"python -c \"open('{ran}', 'a').write('a')\""
    bad = f"python -c \"open('{ran}', 'a').write('b'); open('{tmp_path / 'there'}')\""
    monkeypatch.setattr(everything, "read_jobs", lambda studies=True: [Job(("one",), good), Job(("two", "three"), bad)])
    monkeypatch.setattr(everything, "DONE", tmp_path / "done.json")
    return tmp_path


def test_run_of_all_results_goes_on_where_it_stopped(jobs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--busy"]) == 1
    assert "These commands failed:" in capfd.readouterr().out
    (jobs / "there").touch()
    assert main(["--busy"]) == 0
    assert (jobs / "ran").read_text() == "abb"
    assert main(["--busy", "--again", "--only", "one"]) == 0
    assert (jobs / "ran").read_text() == "abba"


@pytest.mark.usefixtures("jobs")
def test_run_of_all_results_refuses_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (1.7, 1.0, 1.0))
    with pytest.raises(OptionError, match=r"Other programs use 1\.7 processors"):
        main([])
    with pytest.raises(OptionError, match="has 'four' in its name"):
        main(["--only", "four"])
