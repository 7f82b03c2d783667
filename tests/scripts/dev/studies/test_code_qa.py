"""Documents of code questions: whole files, bundles, excerpts, splits."""

from __future__ import annotations

import ast
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import LongAttentionError
from scripts.dev.studies import corpus
from scripts.dev.studies.build_qa import main
from scripts.dev.studies.code_qa import SPLITS, build_code_qa, modules_of, read_records
from scripts.dev.studies.corpus import Module

FILL = "".join(f"def filler_{n}(x):\n    '''Text between the two.'''\n    return x + {n}\n\n" for n in range(40))
ONE = f"import os\n\ndef flow(capacity, source, sink):\n    return capacity\n\n{FILL}def go(graph):\n    return flow(graph, 5, graph.end)\n"
BASE = f"from core.shapes import Polygon\n\n{FILL}class Square(Polygon):\n    pass\n"
USER = f"from .source import flow\nimport pkg as p\n\n{FILL}def go(graph):\n    flow(graph, 5, 6)\n    p.other(graph.x, 7, 8)\n"
FILES = [
    Module("pkg", "pkg/user.py", USER),
    Module("pkg", "pkg/source.py", "def flow(capacity, start, sink):\n    return capacity\n"),
    Module("pkg", "pkg/more.py", "def other(red, green, blue):\n    return red\n"),
    Module("pkg", "pkg/distractor.py", FILL.replace("filler", "spare")),
]


def check(records: list[dict]) -> None:
    for record in records:
        (text,), (start,) = record["answers"]["text"], record["answers"]["answer_start"]
        assert record["context"].startswith(text, start)
        assert record["trail"][-1] == start
    assert len({record["id"] for record in records}) == len(records)


def build(task: str, modules: list[Module], tokenizer: PreTrainedTokenizerBase, **options: object) -> list[dict]:
    found = build_code_qa(task, "test", tokenizer, modules=modules, **{"min_tokens": 100, "min_distance": 50, **options})  # type: ignore[arg-type]
    check(found)
    return found


def test_a_file_is_read_whole_and_its_answer_is_far(tokenizer: PreTrainedTokenizerBase) -> None:
    left_out: Counter[str] = Counter()
    records = build("argument", [Module("a", "a/one.py", ONE)], tokenizer, left_out=left_out)
    assert {record["question"]: record["answers"]["text"][0] for record in records} == {
        "In `go`, which parameter receives `graph`?": "capacity",
        "In `go`, which parameter receives `5`?": "source",
        "In `go`, which parameter receives `graph.end`?": "sink",
    }
    assert {record["context"] for record in records} == {ONE}
    assert all(record["distance"] > 500 for record in records)
    assert [records[0]["context"][at:][:5] for at in records[0]["trail"][1:3]] == ["flow(", "flow("]
    assert build("argument", [Module("a", "a/one.py", ONE)], tokenizer, min_distance=10**6) == []
    assert len(build("argument", [Module("a", "a/one.py", ONE)], tokenizer, per_file=2)) == 2
    assert [record["answers"]["text"] for record in build("base", [Module("a", "a/b.py", BASE)], tokenizer)] == [["core.shapes"]]


@pytest.mark.parametrize("seed", range(4))
def test_a_bundle_has_the_files_of_the_call_and_of_the_definition(seed: int, tokenizer: PreTrainedTokenizerBase) -> None:
    records = build("import", FILES, tokenizer, seed=seed, min_distance=0, max_tokens=20_000)
    answers = {record["question"].partition("receives ")[2]: record["answers"]["text"][0] for record in records}
    assert answers == {"`graph`?": "capacity", "`5`?": "start", "`6`?": "sink", "`graph.x`?": "red", "`7`?": "green", "`8`?": "blue"}
    for record in records:
        ast.parse(record["context"])
        source = "more" if record["answers"]["text"][0] in ("red", "green", "blue") else "source"
        assert f"# file: pkg/{source}.py\n" in record["context"]
        assert record["context"].count("# file: pkg/user.py\n") == 1


def test_long_files_are_cut_at_statements(tokenizer: PreTrainedTokenizerBase) -> None:
    records = build("import", FILES, tokenizer, min_distance=0, max_tokens=2000)
    assert records
    for record in records:
        assert record["tokens"] <= 2000
        ast.parse(record["context"])
        assert "def go(graph):" in record["context"]
        assert USER not in record["context"]


def test_a_call_in_a_decorator_does_not_stop_the_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    decorated = Module(
        "pkg", "pkg/user.py", USER.replace("def go(graph):", "@flow(1, 2, 3)\ndef go(graph):").replace("    flow(graph, 5, 6)\n", "")
    )
    records = build("import", [decorated, *FILES[1:]], tokenizer, min_distance=0, max_tokens=2000)
    assert {record["answers"]["text"][0] for record in records} == {"red", "green", "blue"}


def places_of(links: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """Return each argument's and parameter's place in its list, from the ``links`` to what they belong to: (character, place)."""
    count: Counter[int] = Counter()
    found = []
    for start, name in links:
        found.append((start, count[name]))
        count[name] += 1
    return found


@pytest.mark.parametrize(("task", "files"), [("argument", [Module("a", "a/one.py", ONE)]), ("import", FILES)])
def test_excerpts_keep_what_the_question_needs(task: str, files: list[Module], tokenizer: PreTrainedTokenizerBase) -> None:
    records = build(task, files, tokenizer, short=(200, 300), variants=5, max_tokens=20_000)
    assert len(records) == 15 if task == "argument" else 30
    for record in records:
        assert record["tokens"] < 330
        assert "def go(" in record["context"]
        assert "def flow(" in record["context"] or "def other(" in record["context"]
        assert (task == "import") == ("# file: pkg/user.py" in record["context"])
        places = dict(places_of(record["links"]))
        assert places[record["trail"][0]] == places[record["trail"][3]] == record["place"]
    assert len({record["context"] for record in records}) > len(records) // 2
    assert build(task, files, tokenizer, short=(5, 5)) == []


def test_equal_seeds_give_equal_questions(tokenizer: PreTrainedTokenizerBase) -> None:
    shuffled = FILES.copy()
    random.Random(1).shuffle(shuffled)
    first = build("import", FILES, tokenizer, min_distance=0)
    assert first == build("import", shuffled, tokenizer, min_distance=0)
    assert first != build("import", FILES, tokenizer, min_distance=0, seed=1)


def test_splits_share_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"train": ["sympy", "ast"], "validation": ["numpy"], "test": ["pandas"]}
    text = {name: "".join(f"{name}_{n} = 'a long enough line {n}'\n" for n in range(5)) for names in made.values() for name in names}

    def modules(split: str) -> list[Module]:
        return [Module(name, f"{name}.py", text[name]) for name in made[split]]

    monkeypatch.setattr(corpus, "iter_modules", modules)
    found = {split: [module.package for module in modules_of(split)] for split in SPLITS}
    assert found == {"train": ["sympy"], "validation": ["numpy"], "test": ["pandas"], "stdlib": ["ast"]}


def test_the_command_writes_questions_and_counts(tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("scripts.dev.studies.code_qa.modules_of", lambda split: [Module("a", "a/one.py", ONE)])
    asset = str(repository / "model_cards" / "bert-python-512")
    arguments = ["argument", "--split", "test", "--min-tokens", "100", "--tokenizer", asset, "--output", str(tmp_path / "q.jsonl")]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["questions"], report["files"]) == (3, 1)
    check(read_records(tmp_path / "q.jsonl"))
    with pytest.raises(LongAttentionError, match="does not exist"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(LongAttentionError, match="unknown task"):
        build_code_qa("docstring", "test", None)  # type: ignore[arg-type]
