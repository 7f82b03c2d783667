"""Documents of code questions: whole files, with answers far from what is asked."""

from __future__ import annotations

import random

from transformers import PreTrainedTokenizerBase

from scripts.dev.studies.code_qa import build_code_qa
from scripts.dev.studies.corpus import Module

FILL = "".join(f"def filler_{n}(x):\n    '''Text between the two.'''\n    return x + {n}\n\n" for n in range(40))
ONE = f"import os\n\ndef flow(capacity, source, sink):\n    return capacity\n\n{FILL}def go(graph):\n    return flow(graph, 5, graph.end)\n"
BASE = f"from core.shapes import Polygon\n\n{FILL}class Square(Polygon):\n    pass\n"


def build(task: str, modules: list[Module], tokenizer: PreTrainedTokenizerBase, **options: object) -> list[dict]:
    found = build_code_qa(task, "test", tokenizer, modules=modules, **{"min_tokens": 100, "min_distance": 50, **options})  # type: ignore[arg-type]
    for record in found:
        (text,), (start,) = record["answers"]["text"], record["answers"]["answer_start"]
        assert record["context"].startswith(text, start)
        assert record["trail"][-1] == start
    assert len({record["id"] for record in found}) == len(found)
    return found


def test_code_qa_reads_a_file_whole_with_the_answer_far_away(tokenizer: PreTrainedTokenizerBase) -> None:
    one = [Module("a", "a/one.py", ONE)]
    records = build("argument", one, tokenizer)
    assert {record["question"]: record["answers"]["text"][0] for record in records} == {
        "In `go`, which parameter receives `graph`?": "capacity",
        "In `go`, which parameter receives `5`?": "source",
        "In `go`, which parameter receives `graph.end`?": "sink",
    }
    assert {record["context"] for record in records} == {ONE}
    assert all(record["distance"] > 500 for record in records)
    assert [records[0]["context"][at:][:5] for at in records[0]["trail"][1:3]] == ["flow(", "flow("]
    assert build("argument", one, tokenizer, min_distance=10**6) == build("argument", one, tokenizer, max_tokens=200) == []
    assert len(build("argument", one, tokenizer, per_file=2)) == 2
    assert [record["answers"]["text"] for record in build("base", [Module("a", "a/b.py", BASE)], tokenizer)] == [["core.shapes"]]


def test_code_qa_gives_equal_questions_for_equal_seeds(tokenizer: PreTrainedTokenizerBase) -> None:
    files = [Module("a", f"a/{number}.py", f"# {number}\n{ONE}") for number in range(6)]
    shuffled = random.Random(1).sample(files, len(files))
    assert build("argument", files, tokenizer) == build("argument", shuffled, tokenizer)
    assert build("argument", files, tokenizer) != build("argument", files, tokenizer, seed=1)
