"""Benchmarks: a run, what it reports, its measures, and that both sides have the same precision."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor
from typer.core import TyperGroup
from typer.testing import CliRunner

from hf_longattn.errors import OptionError
from scripts.dev import RESULTS, ROOT
from scripts.dev.benchmarks import attention, everything, memory, stock_windows, unread_masks, whole_texts
from scripts.dev.benchmarks.app import app
from scripts.dev.benchmarks.attention import ATTENTION, Implementation, OnHeads
from scripts.dev.benchmarks.case import Case
from scripts.dev.benchmarks.everything import Job, main, read_jobs
from scripts.dev.benchmarks.memory import Memory, exponent, footprint_table, measure_memory, run_footprint
from scripts.dev.benchmarks.report import store_study, stored_study
from scripts.dev.benchmarks.run import Timing, run_benchmark, time_in_turn, times_faster
from tests.cases import Cases, every_case
from tests.fresh_processes import run_fresh
from tests.grids import pairwise

SMALL = Case("longformer", {"window": 16}, heads=2, head_dim=8, layers=1)


@every_case(("mechanism", "causal", "dtype"), pairwise(["window", "longformer"], [False, True], ["fp32", "bf16"]))
def test_benchmarked_implementations_equal_the_definition(mechanism: str, causal: bool, dtype: str) -> None:
    case = SMALL.at(mechanism=mechanism, causal=causal, dtype=dtype, num_globals=3 * (mechanism == "longformer"))
    result = run_benchmark("attention", case, [64, 96], ["sdpa"], repeats=1)
    assert result.equal, result.checks
    assert (
        {check.implementation for check in result.checks}
        == {timing.implementation for timing in result.timings}
        == {"longattn", "sdpa"}
    )


def test_benchmark_of_the_backward_pass_compares_gradients() -> None:
    result = run_benchmark("attention", SMALL.at(backward=True), [64], ["sdpa", "flex"], repeats=1)
    assert result.equal, result.checks
    assert {check.what for check in result.checks} == {"output", "gradients of q, k, v"}
    assert result.left_out[0]["implementation"] == "flex"


def test_benchmark_leaves_out_longformer_for_one_sided_windows() -> None:
    result = run_benchmark("model", SMALL.at(causal=True, head_dim=16), [64], ["hf-longformer"], repeats=1)
    assert {left["implementation"] for left in result.left_out} == {"hf-longformer"}


class SlightlyWrong(OnHeads):
    """Forgets the last key."""

    name = "slightly-wrong"

    def forward(self) -> Tensor:
        q, k, v = self.q, self.k, self.v
        return torch.nn.functional.scaled_dot_product_attention(q, k[:, :, :-1], v[:, :, :-1])


@pytest.fixture
def wrong_implementation(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(ATTENTION, SlightlyWrong.name, SlightlyWrong)
    return SlightlyWrong.name


def test_benchmark_does_not_time_a_wrong_implementation(wrong_implementation: str) -> None:
    result = run_benchmark("attention", SMALL, [64, 96], [wrong_implementation], repeats=1)
    assert not result.equal
    assert not result.timings


def test_benchmark_exits_with_one_for_a_wrong_implementation(wrong_implementation: str, tmp_path: Path) -> None:
    shape = ["--lengths", "64", "--heads", "2", "--head-dim", "8"]
    arguments = ["attention", *shape, "--against", wrong_implementation, "--output-dir", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "differs from the definition" in done.output


@pytest.mark.parametrize("backward", [pytest.param(False, marks=pytest.mark.slow), True])
def test_benchmarked_models_equal_the_plain_one_under_the_dense_mask(backward: bool) -> None:
    case, kind = SMALL.at(backward=backward, head_dim=16), "train" if backward else "model"
    result = run_benchmark(kind, case, [48, 64], ["sdpa", "hf-longformer"], repeats=1, processor_time=not backward)
    assert result.equal, result.checks
    assert result.clock == ("time" if backward else "processor time")
    assert {timing.implementation for timing in result.timings} == {"longattn", "sdpa", "hf-longformer"}


def test_attention_benchmark_stores_json(tmp_path: Path) -> None:
    arguments = [
        "attention",
        "--lengths",
        "32,64",
        "--option",
        "window=16",
        "--heads",
        "2",
        "--head-dim",
        "8",
        "--repeats",
        "2",
    ]
    done = CliRunner().invoke(app, [*arguments, "--against", "sdpa", "--output-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    [stored] = tmp_path.glob("*.json")
    record = json.loads(stored.read_text())
    assert record["equal"] is True
    assert record["lengths"] == [32, 64]
    assert {"processor", "cores", "threads", "torch", "transformers", "date"} <= set(record["machine"])
    assert len(record["timings"]) == 4
    assert all(len(timing["rounds_ms"]) == 2 for timing in record["timings"])


def test_benchmark_checks_mechanisms_without_a_mask_at_short_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "DENSE_LENGTH", 96)
    case = Case("lsh", {"bucket_size": 8}, heads=2, head_dim=8)
    result = run_benchmark("attention", case, [192], ["sdpa"], repeats=1)
    assert {check.length for check in result.checks} == {96}
    assert result.equal


def noted(called: str, calls: list[str]) -> Implementation:
    class Noted(Implementation):
        name = called

        def forward(self) -> Tensor:
            calls.append(called)
            return torch.zeros(())

    return Noted()


def test_timed_implementations_take_turns_after_a_warm_pass() -> None:
    calls: list[str] = []
    timings = time_in_turn([noted("a", calls), noted("b", calls)], 8, backward=False, repeats=2)
    assert calls == ["a", "b", *["a", "a", "b", "b"] * 2]
    assert [(timing.implementation, len(timing.rounds)) for timing in timings] == [("a", 2), ("b", 2)]


def test_ratio_of_times_survives_a_machine_that_slows_down() -> None:
    ours, other = Timing("ours", 8, (1.0, 10.0, 100.0)), Timing("other", 8, (2.0, 20.0, 200.0))
    assert times_faster(ours, other) == 2.0


def test_study_is_stored_whole_or_not_at_all(tmp_path):
    output = tmp_path / "results" / "study"
    assert stored_study(output) == {}
    assert store_study(output, {"loss": 1.5, "name": "±"}, "| 1.5 |\n") == output.with_suffix(".json")
    assert stored_study(output) == {"loss": 1.5, "name": "±"}
    assert output.with_suffix(".md").read_text(encoding="utf-8") == "| 1.5 |\n"
    with pytest.raises(TypeError):
        store_study(output, {"loss": object()}, "none")
    store_study(output, {"loss": 2})  # a study that is not complete has no text yet
    assert stored_study(output) == {"loss": 2}
    assert output.with_suffix(".md").read_text(encoding="utf-8") == "| 1.5 |\n"
    assert sorted(path.name for path in output.parent.iterdir()) == ["study.json", "study.md"]


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
    monkeypatch.setattr(
        everything, "read_jobs", lambda studies=True: [Job(("one",), good), Job(("two", "three"), bad)]
    )
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


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_exponent_of_memory_is_that_of_the_data(power: float) -> None:
    assert exponent([Memory("x", n, 3e-5 * n**power) for n in (4096, 8192, 16384, 32768)]) == pytest.approx(power)


def test_measured_peak_includes_what_a_call_allocates(repository: Path) -> None:
    """In a fresh process, which has no freed memory that the call could take again."""
    code = (
        "import torch; from scripts.dev.benchmarks.memory import growth; print(growth(lambda: torch.ones(4096, 4096)))"
    )
    done = run_fresh("-c", code, cwd=repository, level="torch")
    assert 0.9 * 64 < float(done.stdout) < 2 * 64, done.stderr


class Inline:
    """An executor that calls at once, where fakes are seen."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *args: Any) -> None: ...

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        value = function(*args)
        return type("Done", (), {"result": lambda self: value})()


@pytest.mark.slow
def test_memory_of_a_pass_is_measured_in_a_process_of_its_own() -> None:
    measured = measure_memory("attention", "longattn", Case("window", {"window": 64}, length=8192, heads=8))
    assert 5 < measured.extra < 500


@pytest.mark.thorough
def test_memory_benchmark_stores_mebibytes_and_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "ProcessPoolExecutor", Inline)
    shape = ["--lengths", "512,2K", "--heads", "2", "--head-dim", "16", "--output-dir", str(tmp_path)]
    done = CliRunner().invoke(app, ["memory", "--mechanism", "linear", "--causal", *shape])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "memory-causal.json").read_text())
    assert record["case"]["backward"]
    assert len(record["results"][0]["mebibytes"]) == 2
    assert "`linear`" in footprint_table(record)


@pytest.mark.parametrize(("mechanisms", "lengths"), [([], [64, 128]), (["full"], [64])])
def test_memory_benchmark_needs_mechanisms_and_two_lengths(mechanisms: list[str], lengths: list[int]) -> None:
    with pytest.raises(OptionError, match="two lengths or more"):
        run_footprint(mechanisms, lengths, Case())


NARROW = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 50368}


def test_unread_masks_are_equal_before_their_times_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(unread_masks, "EXACT_LENGTH", 300)
    monkeypatch.setattr(unread_masks, "PASSES", {300: [(1, False), (2, False), (1, True)]})
    monkeypatch.setattr(unread_masks, "ProcessPoolExecutor", Inline)
    unread_masks.main(["--quick", "--output", str(tmp_path / "result")])
    record = json.loads((tmp_path / "result.json").read_text())
    assert [(row["layers"], len(row["turns"])) for row in record["rows"]] == 2 * [(1, 3), (2, 3), (1, 3)]
    assert all(max(found) < 1e-5 for found in record["differences"].values())
    assert "| prefix | 300 | 1 layer, both ways |" in capsys.readouterr().out
    monkeypatch.setattr(unread_masks, "TOLERANCES", {torch.float64: 0.0})
    with pytest.raises(SystemExit, match="differs in torch"):
        unread_masks.main(["--quick"])


def test_measured_stock_models_are_equal_before_they_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = stock_windows.Shape("modernbert", NARROW, "sdpa", 3, {512: 2})
    monkeypatch.setattr(stock_windows, "SHAPES", {"a/small": shape})
    monkeypatch.setattr(stock_windows, "STOCK_GIB", 2048**2 / 2**31)  # less than the mask of 2,048 tokens
    monkeypatch.setattr(stock_windows, "ProcessPoolExecutor", Inline)
    stock_windows.main(["--quick", "--output", str(tmp_path / "result")])
    record = json.loads((tmp_path / "result.json").read_text())
    first, second = record["rows"]
    assert [first["layers"], second["layers"]] == [2, 3]
    assert 0 < first["difference"] < 1e-5
    assert len(first["mebibytes"]) == 2
    assert len(second["mebibytes"]) == 1  # stock did not run
    assert "| small, 3 of 3 layers | 2,048 | – |" in capsys.readouterr().out
    monkeypatch.setattr(stock_windows, "TOLERANCE", 0.0)
    with pytest.raises(SystemExit, match="outputs differ"):
        stock_windows.main(["--quick", "--only", "small"])


@pytest.mark.thorough
def test_whole_texts_are_timed_beside_truncation_and_windows_by_hand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(whole_texts, "QUICK", (10, 700))
    monkeypatch.setattr(whole_texts, "TURNS", 1)
    whole_texts.main(["--quick"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert len(rows) == len(whole_texts.HEADS)
    assert all("| 2 |" in row for row in rows)
    monkeypatch.setattr(whole_texts.Row, "by_hand", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(whole_texts, "HEADS", {"feature-extraction": ""})
    spans = property(lambda windows: [(0, 5)])
    monkeypatch.setattr("hf_longattn.evaluation.windows.Windows.spans", spans)
    with pytest.raises(SystemExit, match="leaves a part of 10 tokens out"):
        whole_texts.main(["--quick"])
