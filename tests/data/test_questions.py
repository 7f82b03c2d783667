"""Questions in every schema and file that people have them, and as inputs whose targets are the characters of their
answers."""

from __future__ import annotations

import csv
import gzip
import json
from itertools import chain, product
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from hf_longattn.data.qa_features import QACollator, answer_tokens, qa_inputs
from hf_longattn.data.qa_schemas import load_qa, occurrences
from hf_longattn.data.sources import DataError
from hf_longattn.errors import InputError
from hf_longattn.files import write_json
from hf_longattn.training.tasks.classify import encode_documents
from scripts import prepare_natural_questions, prepare_triviaqa
from tests.cases import every_case
from tests.lookups import lookups
from tests.training.conftest import SOURCES, write_rows

RECORD = {
    "id": "1",
    "context": "The fox is red.",
    "question": "What is red?",
    "answers": {"text": ["fox"], "answer_start": [4]},
}
QAS = [{"id": "1", "question": RECORD["question"], "answers": [{"text": "fox", "answer_start": 4}]}]
NESTED = {"data": [{"title": "t", "paragraphs": [{"context": RECORD["context"], "qas": QAS}]}]}
HOTPOT = {
    "_id": "h",
    "question": "Who painted the tower?",
    "answer": "Ann Lee",
    "supporting_facts": [["Tower", 1], ["Ann Lee", 0]],
    "context": [
        ["Tower", ["The tower is old.", " It was painted by Ann Lee."]],
        ["Ann Lee", ["Ann Lee was a painter."]],
        ["Other", ["Ann Lee."]],
    ],
}


def test_questions_are_the_same_from_every_kind_of_file(tmp_path: Path) -> None:
    write_json(tmp_path / "squad.json", NESTED)
    write_json(tmp_path / "records.json", [RECORD])
    write_rows([RECORD], tmp_path / "data.jsonl")
    flat = {name: RECORD[name] for name in ("id", "context", "question")}
    write_csv(tmp_path / "spans.csv", {**flat, "answer": "fox", "answer_start": 4})
    data = Dataset.from_list([RECORD])
    data.to_parquet(str(tmp_path / "data.parquet"))
    data.save_to_disk(str(tmp_path / "dataset"))
    DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "splits"))
    for path in tmp_path.iterdir():
        (record,) = load_qa(path, "train").to_list()
        assert {key: record[key] for key in RECORD} == RECORD, path
        assert (record["gold"], record["kind"]) == (["fox"], "span")


def write_csv(path: Path, *records: dict) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def read(rows: list[dict[str, Any]], folder: Path, **options: Any) -> list[dict[str, Any]]:
    write_rows(rows, folder / "rows.jsonl")
    return load_qa(folder / "rows.jsonl", **options).to_list()


def test_questions_may_have_other_columns_of_any_shape(tmp_path: Path) -> None:
    assert len(read([{**RECORD, "meta": [["a", 1], "b"]}, {**RECORD, "meta": 5}], tmp_path)) == 2


EMPTY_ANSWERS = (
    [],
    None,
    "",
    [""],
    [None],
    [{"text": " "}],
    [{"text": "", "answer_start": -1}],
    {"text": [], "answer_start": [-1]},
    {"text": [""], "answer_start": [0]},
    {"text": "", "answer_start": -1},
    {"text": [None], "answer_start": [None]},
)


def test_questions_are_read_from_the_columns_that_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("context,document,frage,antwort\nelsewhere,Ada built it.,Who?,Ada\n")
    named = {"question": "frage", "context": "document", "answers": "antwort"}
    (row,) = load_qa(tmp_path / "rows.csv", named=named).to_list()
    assert (row["question"], row["context"], row["answers"]) == (
        "Who?",
        "Ada built it.",
        {"text": ["Ada"], "answer_start": [0]},
    )
    with pytest.raises(
        DataError,
        match=r"has the columns .*, not 'fragen'; name one with --columns question=NAME\. Did you mean 'frage'",
    ):
        load_qa(tmp_path / "rows.csv", named={**named, "question": "fragen"})


ROW = {"id": "1", "question": "?", "context": "Ada built it."}


def test_empty_answer_makes_a_question_without_an_answer(tmp_path: Path) -> None:
    """In nested and flat files, in the common schema and in tables, wherever it starts."""
    qas = [{"id": "1", "question": "?", "answers": answers, "is_impossible": True} for answers in EMPTY_ANSWERS]
    write_json(tmp_path / "nested.json", {"data": [{"paragraphs": [{"context": ROW["context"], "qas": qas}]}]})
    flat = [{**ROW, "answers": answers} for answers in EMPTY_ANSWERS]
    common = [{**each, "gold": [""], "kind": "span"} for each in flat]
    starts = [{**ROW, "answer": "", "answer_start": start} for start in ("", "0", "-1", "-1.0")]
    write_csv(tmp_path / "starts.csv", *starts)
    tables = [load_qa(tmp_path / name).to_list() for name in ("nested.json", "starts.csv")]
    assert [*map(len, tables)] == [len(qas), len(starts)]
    for example in chain(*tables, read(flat, tmp_path), read(common, tmp_path)):
        assert (example["kind"], example["gold"], example["answers"]["text"]) == ("none", [], []), example
    answers = {"text": ["", "Ada"], "answer_start": [-1, 0]}
    assert read([{**ROW, "answers": answers}], tmp_path)[0]["answers"] == {"text": ["Ada"], "answer_start": [0]}
    with pytest.raises(DataError, match=r"Question 1 of .*: It is marked as is_impossible, but has the answer 'Ada'"):
        read([{**ROW, "answers": answers, "is_impossible": True}], tmp_path)


def test_answer_counts_in_either_of_the_columns_answer_and_answers(tmp_path: Path) -> None:
    """In rows and in tables, row by row."""
    spans, text = {"text": ["Ada"], "answer_start": [0]}, {"answer": "Ada"}
    answered = [
        text,
        {"answer": ["Ada"]},
        {**text, "answer_start": 0},
        {"answer": spans},
        {"answer": {"text": "Ada", "answer_start": 0}},
        {"answer": [{"text": "Ada", "answer_start": 0}]},
        {"answers": spans},
        {"answers": spans, "answer": None},
        {"answers": spans, **text},
        *({"answers": empty, **text} for empty in EMPTY_ANSWERS),
        {"answers": {}, **text},
    ]
    unanswered = [{"answers": empty, "answer": other} for empty in EMPTY_ANSWERS for other in ("", None, [])] + [
        {"answer": ""}
    ]
    write_csv(tmp_path / "rows.csv", *({**ROW, "answers": cell, **text} for cell in ("", " ", "Ada")))
    starts = {**ROW, "answers": "", **text, "answer_start": "0"}
    write_csv(tmp_path / "starts.csv", starts, {**starts, "answer_start": ""})
    tables = [load_qa(tmp_path / name).to_list() for name in ("rows.csv", "starts.csv")]
    flat = [read([{**ROW, **each} for each in rows], tmp_path) for rows in (answered, unanswered)]
    for example in chain(*tables, flat[0]):
        assert (example["kind"], example["gold"], example["answers"]) == ("span", ["Ada"], spans), example
    for example in flat[1]:
        assert (example["kind"], example["gold"]) == ("none", []), example


def test_questions_marked_as_impossible_must_have_no_answer(tmp_path: Path) -> None:
    answer = {"answers": {"text": ["Ada"], "answer_start": [0]}}
    for mark in (True, 1.0, "TRUE ", " yes", "1"):
        assert read([{**ROW, "answers": [], "is_impossible": mark}], tmp_path)[0]["kind"] == "none"
        with pytest.raises(DataError, match=r"Question 1 of .*: .*marked as is_impossible, but has the answer 'Ada'"):
            read([{**ROW, **answer, "is_impossible": mark}], tmp_path)
    for mark in (False, 0, "NO ", None, ""):
        assert [
            one["kind"]
            for one in read([{**ROW, **each, "is_impossible": mark} for each in (answer, {"answers": []})], tmp_path)
        ] == ["span", "none"]
    common = {**ROW, **answer, "gold": ["Ada"], "kind": "none"}
    for changes in ({}, {"gold": []}, {"answers": []}):
        with pytest.raises(
            DataError, match=r"Question 1 of .*: It is marked as kind 'none', but has the answer 'Ada'"
        ):
            read([{**common, **changes}], tmp_path)
    # of a document without the answer
    unknown_place = {**common, "answers": [], "kind": "span", "is_impossible": False}
    yes = {**unknown_place, "kind": "yes", "gold": []}
    assert [one["kind"] for one in read([unknown_place, yes], tmp_path)] == ["span", "yes"]


def test_answer_start_must_be_a_whole_number(tmp_path: Path) -> None:
    for start in (float("nan"), 0.5, "x", True, float("inf")):
        answers = {"text": ["Ada"], "answer_start": [start]}
        with pytest.raises(
            DataError, match=r"Question 1 of .*: The answer 'Ada' has the answer_start .*; it must be a whole number"
        ):
            read([{**ROW, "answers": answers}], tmp_path)
    assert read([{**ROW, "context": "in 1920", "answers": {"text": [1920], "answer_start": [3]}}], tmp_path)[0][
        "gold"
    ] == ["1920"]
    for start in (6, 6.0):
        for changes in (
            {"answers": {"text": "it", "answer_start": 10}},
            {"answer": "built", "answer_start": start - 2},
        ):
            assert read([{**ROW, **changes}], tmp_path)[0]["answers"]["answer_start"] == [
                changes.get("answer_start", 10)
            ]
    write_csv(tmp_path / "rows.csv", {**ROW, "answer": "built", "answer_start": "5"})
    with pytest.raises(DataError, match="is not at character 5"):
        load_qa(tmp_path / "rows.csv")
    write_csv(tmp_path / "rows.csv", {**ROW, "answer": "built", "answer_start": "4.0"})
    assert load_qa(tmp_path / "rows.csv")["answers"][0]["answer_start"] == [4]


def test_answers_without_places_are_found_wherever_they_stand(tmp_path: Path) -> None:
    (record,) = read(
        [{"question": "?", "context": "Fox, a foxglove, the  red\nfox.", "answer": ["fox", "red fox", "wolf"]}],
        tmp_path,
    )
    assert record["answers"] == {"text": ["Fox", "red\nfox", "fox"], "answer_start": [0, 22, 26]}
    assert record["gold"] == ["fox", "red fox", "wolf"]
    assert occurrences("a+b a+bc", ["a+b", ""])["answer_start"] == [0]


def test_answers_are_found_in_words_and_in_scripts_without_spaces(tmp_path: Path) -> None:
    decomposed = normalize("NFD", "café")
    cases: list[tuple[str, str, list[int]]] = [
        ("河内是越南首都,越南人", "越南", [3, 8]),
        ("東京タワーは東京", "東京", [0, 6]),
        ("ประเทศไทยกรุงเทพมหานคร", "กรุงเทพ", [9]),
        ("第5章，手机iPhone手机", "5", [1]),
        ("手机iPhone手机", "iPhone", [2]),
        ("나는 서울은", "서울", [3]),
        ("서울은 서울", "서울", [4]),  # whole words come first
        ("a 5km run", "5", [2]),
        ("a 15 km run, 5 km walk", "5", [13]),
        ("US$7", "$7", [2]),
        ("US$7 or $7", "$7", [8]),
        ("Foxgloves", "fox", [0]),
        ("xa a a", "a a", [3]),
        ("कला कल", "कल", [4]),
        ("ที่ ที", "ที", [4]),
        ("ที่", "ที", [0]),  # a vowel sign continues a word
        (f"un {decomposed}", "café", [3]),
        ("un café", decomposed, [3]),
        (f"{decomposed} cafe", "cafe", [6]),
        ("a \uf914", "\uf914", [2]),  # composed, another character
    ]
    for context, answer, starts in cases:
        (record,) = read([{"question": "?", "context": context, "answer": answer}], tmp_path)
        assert record["answers"]["answer_start"] == starts, (context, answer)
        assert all(context.startswith(text, start) for text, start in zip(*record["answers"].values(), strict=True))
    for context, answer in [("河内", "越南"), ("a 6km run", "5"), ("Fo x", "fox")]:
        with pytest.raises(DataError, match="is not in the context"):
            read([{"question": "?", "context": context, "answer": answer}], tmp_path)
    # an alias of many, and a document of several
    assert occurrences("Foxgloves", ["fox"], normalised=True)["answer_start"] == []


def test_mrqa_files_and_hub_rows_give_the_same_questions(tmp_path: Path) -> None:
    qa = {
        "qid": "q",
        "question": "?",
        "answers": ["Fox"],
        "detected_answers": [{"text": "fox", "char_spans": [[4, 6]], "token_spans": [[1, 1]]}],
    }
    write_rows(
        [{"header": {"dataset": "x"}}, {"id": "", "context": RECORD["context"], "qas": [qa]}], tmp_path / "mrqa.jsonl"
    )
    (record,) = load_qa(tmp_path / "mrqa.jsonl").to_list()
    assert (record["id"], record["answers"], record["gold"]) == ("q", {"text": ["fox"], "answer_start": [4]}, ["Fox"])
    hub = {"text": ["fox"], "char_spans": [{"start": [4], "end": [6]}], "token_spans": [{"start": [1], "end": [1]}]}
    row = {"context": RECORD["context"], "qid": "q", "question": "?", "detected_answers": hub, "answers": ["Fox"]}
    Dataset.from_list([row]).save_to_disk(str(tmp_path / "hub"))
    assert load_qa(tmp_path / "hub").to_list() == load_qa(tmp_path / "mrqa.jsonl").to_list()


def test_saved_questions_are_read_as_written(tmp_path: Path) -> None:
    """Of every kind: with a span, yes, and a document of several."""
    parts = [[RECORD], [HOTPOT, {**HOTPOT, "answer": "yes"}]]
    examples = [example for rows in parts for example in read(rows, tmp_path)]
    for number, example in enumerate(examples):
        example.update(id=str(number), document=f"{number}.txt" * (number == 0))
    assert read(examples, tmp_path) == examples
    with pytest.raises(DataError, match="The kind must be one of span, yes, no, none, not 'perhaps'"):
        read([{**examples[0], "kind": "perhaps"}], tmp_path)


def test_prepare_triviaqa_makes_a_row_for_each_document_of_a_hub_question(tmp_path: Path) -> None:
    """A row on the Hub is an example for each document of a question."""
    row = {
        "question": "?",
        "question_id": "t1",
        "entity_pages": {
            "filename": ["a.txt", "b.txt"],
            "title": ["a", "b"],
            "wiki_context": ["No such animal.", "The Red Fox; a red fox."],
        },
        "search_results": {"filename": ["1/1_2.txt"], "title": ["c"], "search_context": ["vulpes"]},
        "answer": {
            "value": "Red Fox",
            "aliases": ["Vulpes"],
            "normalized_aliases": ["red fox", "vulpes"],
            "normalized_value": "red fox",
        },
    }
    empty = {"filename": [], "title": [], "search_context": []}
    Dataset.from_list([row, {**row, "question_id": "t2", "search_results": empty}]).to_parquet(
        str(tmp_path / "trivia.parquet")
    )
    with pytest.raises(
        DataError, match=r"lacks context; .* \(for TriviaQA and Natural Questions, scripts/ of a clone"
    ):
        load_qa(tmp_path / "trivia.parquet")
    prepare_triviaqa.main([str(tmp_path / "trivia.parquet"), str(tmp_path / "trivia.jsonl")])
    first, second, third, *others = load_qa(tmp_path / "trivia.jsonl").to_list()
    assert [(one["id"], one["document"]) for one in (first, second, third)] == [
        ("t1", "a.txt"),
        ("t1", "b.txt"),
        ("t1", "1/1_2.txt"),
    ]
    assert (first["answers"]["text"], first["gold"], first["kind"]) == ([], ["red fox", "vulpes"], "span")
    assert (second["answers"]["text"], third["answers"]["text"]) == (["Red Fox", "red fox"], ["vulpes"])
    assert [one["id"] for one in others] == ["t2", "t2"]


TRIVIA = {
    "Data": [
        {
            "Answer": {
                "Aliases": ["St. Petersburg", "The City of St Petersburg"],
                "NormalizedAliases": ["st petersburg", "city of st petersburg"],
                "HumanAnswers": ["Leningrad!"],
                "Value": "Saint Petersburg",
            },
            "EntityPages": [
                {"Filename": "Neva_River.txt", "DocPartOfVerifiedEval": True},
                {"Filename": "Moscow.txt", "DocPartOfVerifiedEval": False},
            ],
            "SearchResults": [{"Filename": "26/26_3.txt", "DocPartOfVerifiedEval": True}],
            "Question": "Which city lies on the Neva?",
            "QuestionId": "tc_3",
            "QuestionPartOfVerifiedEval": True,
        },
        {
            "Answer": {"Aliases": ["Fox"], "NormalizedAliases": ["fox"], "Value": "Fox"},
            "EntityPages": [{"Filename": "Fox.txt", "DocPartOfVerifiedEval": False}],
            "Question": "Which animal?",
            "QuestionId": "tc_4",
            "QuestionPartOfVerifiedEval": False,
        },
    ],
    "Domain": "Web",
    "VerifiedEval": False,
}
EVIDENCE = {
    "wikipedia/Neva_River.txt": "The Neva ends in St Petersburg. The City of the St. Petersburg (Leningrad).",
    "wikipedia/Moscow.txt": "Moscow lies elsewhere.",
    "wikipedia/Fox.txt": "A fox.",
    "web/26/26_3.txt": "It is st. petersburg’s river, leningrad's too.",
}


def trivia(folder: Path, name: str, **changes: Any) -> Path:
    """The questions of a release, prepared with their evidence."""
    for document, text in EVIDENCE.items():
        (folder / "evidence" / document).parent.mkdir(parents=True, exist_ok=True)
        (folder / "evidence" / document).write_text(text, encoding="utf-8")
    write_json(folder / f"{name}.json", {**TRIVIA, **changes})
    output = folder / f"{name}.jsonl"
    prepare_triviaqa.main([str(folder / f"{name}.json"), str(output), "--evidence", str(folder / "evidence")])
    return output


def test_prepare_triviaqa_reads_the_released_files_with_their_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = load_qa(trivia(tmp_path, "dev")).to_list()
    named = [("tc_3", "Neva_River.txt"), ("tc_3", "Moscow.txt"), ("tc_3", "26/26_3.txt"), ("tc_4", "Fox.txt")]
    assert [(one["id"], one["document"]) for one in records] == named
    first, second, third, fourth = records
    assert first["answers"]["text"] == ["St Petersburg", "City of the St. Petersburg", "St. Petersburg", "Leningrad"]
    for one in records:
        assert all(
            one["context"].startswith(text, start) for text, start in zip(*one["answers"].values(), strict=True)
        )
    assert (second["answers"]["text"], third["answers"]["text"]) == ([], ["st. petersburg", "leningrad"])
    assert first["gold"] == ["st petersburg", "city of st petersburg", "leningrad"]
    assert (fourth["question"], fourth["gold"]) == ("Which animal?", ["fox"])
    with pytest.raises(SystemExit):
        trivia(tmp_path, "dev")
    assert "already exists" in capsys.readouterr().err


def test_prepare_triviaqa_keeps_verified_documents_as_the_official_script(tmp_path: Path) -> None:
    """On the Web, only the verified documents of verified questions."""
    web, wikipedia = (
        load_qa(trivia(tmp_path, domain, VerifiedEval=True, Domain=domain))["document"]
        for domain in ("Web", "Wikipedia")
    )
    assert web[:] == ["Neva_River.txt", "26/26_3.txt"]
    assert wikipedia[:] == ["Neva_River.txt", "Moscow.txt", "26/26_3.txt"]


def test_prepare_triviaqa_refuses_evidence_outside_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is outside of"):
        prepare_triviaqa.inside(tmp_path / "evidence" / "web", "../../qa/web-dev.json")


def prepared_natural(rows: list[dict[str, Any]], folder: Path, name: str) -> dict[str, Any]:
    """The example of a row on the Hub."""
    Dataset.from_list(rows).save_to_disk(str(folder / name))
    prepare_natural_questions.main([str(folder / name), str(folder / f"{name}-lines.jsonl")])
    (record,) = load_qa(folder / f"{name}-lines.jsonl").to_list()
    return record


def test_prepare_natural_questions_reads_hub_rows_and_released_files(tmp_path: Path) -> None:
    words = ["<p>", "The", "red", "fox", "</p>", "runs"]
    note = {"short_answers": [{"start_token": [2], "end_token": [5]}], "yes_no_answer": [-1]}
    row = {
        "id": "n",
        "document": {"title": "Fox", "tokens": {"token": words, "is_html": [word.startswith("<") for word in words]}},
        "question": {"text": "what runs"},
        "annotations": note,
    }
    record = prepared_natural([row], tmp_path, "nq")
    assert (record["context"], record["answers"]) == ("The red fox runs", {"text": ["red fox"], "answer_start": [4]})
    spaced = {**row["document"], "tokens": {"token": ["The", "red", "", "fox"], "is_html": [False] * 4}}
    until_space = {"short_answers": [{"start_token": [1], "end_token": [3]}], "yes_no_answer": [-1]}
    empty_word = prepared_natural([{**row, "document": spaced, "annotations": until_space}], tmp_path, "spaced")
    assert (empty_word["context"], empty_word["answers"]) == ("The red  fox", {"text": ["red "], "answer_start": [4]})
    simple = {"example_id": 5, "document_text": " ".join(words), "question_text": "what runs"}
    plain = {"short_answers": [{"start_token": 2, "end_token": 5}], "yes_no_answer": "NONE"}
    said = {"short_answers": [], "yes_no_answer": "YES"}
    rows = [{**simple, "annotations": [plain]}, {**simple, "annotations": [said]}]
    with gzip.open(tmp_path / "simplified.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    tokens = [{"token": word, "html_token": word.startswith("<"), "start_byte": 0, "end_byte": 1} for word in words]
    write_rows(
        [{"example_id": 5, "document_tokens": tokens, "question_text": "what runs", "annotations": [plain]}],
        tmp_path / "nq.jsonl",
    )
    prepare_natural_questions.main([str(tmp_path / name) for name in ("simplified.jsonl.gz", "nq.jsonl", "out.jsonl")])
    first, second, whole = load_qa(tmp_path / "out.jsonl").to_list()
    assert whole == first
    assert (first["context"], first["answers"]) == (record["context"], record["answers"])
    assert (second["kind"], second["gold"], second["answers"]["text"]) == ("yes", ["yes"], [])
    with pytest.raises(DataError, match=r"lacks context and answers; .* \(for TriviaQA and Natural Questions"):
        load_qa(tmp_path / "nq")


def test_hotpot_files_and_hub_rows_give_the_same_questions(tmp_path: Path) -> None:
    (record,) = read([HOTPOT], tmp_path)
    assert (
        record["context"]
        == "Tower\nThe tower is old. It was painted by Ann Lee.\nAnn Lee\nAnn Lee was a painter.\nOther\nAnn Lee.\n"
    )
    assert record["answers"]["answer_start"] == [
        record["context"].index("Ann Lee."),
        record["context"].index("Ann Lee was"),
    ]
    hub = {
        **{name: HOTPOT[name] for name in ("question", "answer")},
        "id": "h",
        "supporting_facts": {"title": ["Tower", "Ann Lee"], "sent_id": [1, 0]},
        "context": {
            "title": [title for title, _ in HOTPOT["context"]],
            "sentences": [texts for _, texts in HOTPOT["context"]],
        },
    }
    Dataset.from_list([hub]).save_to_disk(str(tmp_path / "hub"))
    assert load_qa(tmp_path / "hub").to_list() == [record]
    (no,) = read([{**HOTPOT, "answer": "no"}], tmp_path)
    assert (no["kind"], no["gold"], no["answers"]["text"]) == ("no", ["no"], [])


@every_case(
    ("record", "message"),
    [
        (
            {k: v for k, v in RECORD.items() if k != "answers"},
            "has the columns context, id, question, and lacks answers; name a column with --columns answers=NAME",
        ),
        ({"text": "a", "label": 1}, "has the columns label, text, and lacks context and question and answers"),
        ({**RECORD, "answers": {"text": ["fox"], "answer_start": [5]}}, "is not at character 5"),
        ({**RECORD, "answers": ["wolf"]}, "'wolf' is not in the context"),
        ({**RECORD, "answers": {"texts": ["fox"]}}, "as in SQuAD"),
        (
            {**RECORD, "answers": {"text": ["yes"], "answer_start": [-1]}},
            "must be a whole number from 0, .* Give empty lists",
        ),
        ({**RECORD, "question": " "}, "All questions of .* are empty"),
        ({**RECORD, "question": 5}, "question must be one text, not int"),
        ({**HOTPOT, "answer": "wolf"}, "'wolf' is not in the context"),
        ({**HOTPOT, "context": "text"}, "It matches no schema"),
    ],
)
def test_question_rows_of_a_wrong_schema_are_refused(record: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read([record], tmp_path)


def test_bad_question_rows_are_refused_and_left_out_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [
        {**RECORD, "id": f"bad{number}", "answers": {"text": ["wolf"], "answer_start": [number]}}
        for number in range(5)
    ]
    with pytest.raises(
        DataError,
        match=r"^Question bad0 of .*jsonl: The answer 'wolf' is not at .* Leave such rows out, with --skip-bad-rows",
    ):
        read([*bad, RECORD], tmp_path)
    assert [record["id"] for record in read([*bad, RECORD], tmp_path, skip_bad_rows=True)] == ["1"]
    with pytest.raises(DataError, match=r"All questions of .* are empty or cannot be used"):
        read(bad, tmp_path, skip_bad_rows=True)


def test_question_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    for name, contents, message in (
        ("bad.json", "{", "not valid JSON"),
        ("other.json", "{}", "has no rows"),
        ("number.json", "5", "holds 5, which is not a row"),
        (
            "broken.jsonl",
            '{"question": "a"}\n\n{"question": "a"\n',
            "Line 3 of .* is not valid JSON: Expecting ',' delimiter at character 17.$",
        ),
        ("rows.json", '{"data": 5}', "lacks context and question"),
        ("half.jsonl", '{"question": "\\ud800"}', "Row 1 of .* has half of a character"),
        (
            "article.json",
            '{"data": [{"paragraphs": [{"context": "a tree"}]}]}',
            "Row 1 of .* cannot be read: 'qas' is missing",
        ),
        (
            "context.json",
            '{"data": [{"paragraphs": [{"qas": [{"id": "1", "question": "which?"}]}]}]}',
            "context must be one text",
        ),
    ):
        (tmp_path / name).write_text(contents)
        with pytest.raises(DataError, match=message):
            load_qa(tmp_path / name)
    data = Dataset.from_list([RECORD])
    DatasetDict({"train": data, "validation": data}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(DataError, match="Did you mean 'validation'"):
        load_qa(tmp_path / "splits", "validaton")


def inputs_of(
    record: dict[str, Any], tokenizer: PreTrainedTokenizerBase, length: int, stride: int | None = None
) -> list[dict[str, Any]]:
    """The windows of one question, each a row."""
    columns = {name: [record[name]] for name in ("question", "context", "answers")}
    inputs = qa_inputs(columns, [0], tokenizer, length, stride)
    return [dict(zip(inputs, values, strict=True)) for values in zip(*inputs.values(), strict=True)]


@pytest.fixture
def record(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return lookups(SOURCES, tokenizer, 900, seed=3)[0]


def test_question_without_room_for_the_document_is_refused(
    record: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(
        InputError,
        match=r"not more than the stride 64; lower --stride, or raise --max-length if the model takes longer",
    ):
        inputs_of(record, tokenizer, 40, stride=64)
    for stride in (None, 0, 64):
        with pytest.raises(
            InputError, match="leaves 0 tokens for the document beside the question; shorten the question, or raise"
        ):
            inputs_of({**record, "question": "why " * 50}, tokenizer, 40, stride=stride)


def test_windows_are_labelled_with_the_answers_that_they_hold(tokenizer: PreTrainedTokenizerBase) -> None:
    """Every target of every window begins or ends an answer, and a window without targets holds no complete answer."""
    seen = set()
    for record in lookups(SOURCES, tokenizer, 900, seed=5):
        (text,), (start,) = record["answers"].values()
        record["answers"] = {"text": [text] * 2, "answer_start": [start, record["context"].rindex(text)]}
        places = {(first, first + len(text)) for first in record["answers"]["answer_start"]}
        for row in inputs_of(record, tokenizer, 64, stride=24):
            inside = [offset for offset in row["offsets"] if offset != (-1, -1)]
            held = {(first, last) for first, last in places if inside[0][0] <= first and last <= inside[-1][1]}
            seen.add(len(held))
            assert (row["starts"] == [0]) == (not held)
            for offsets, characters in (
                (row["starts"], {first for first, _ in held}),
                (row["ends"], {last - 1 for _, last in held}),
            ):
                found = [row["offsets"][place] for place in offsets if held]
                assert len(found) == len(characters)
                assert all(any(begin <= character < end for begin, end in found) for character in characters)
    assert {0, 1} <= seen


def test_special_tokens_typed_in_questions_and_documents_are_text(tokenizer: PreTrainedTokenizerBase) -> None:
    for special in (*tokenizer.all_special_tokens, "[SEP][SEP]", "[SEP] [CLS]"):
        for question in (f"what {special} is it", f"{special} what", f"what {special}"):
            context = f"It is a {special} red fox {special}"
            record = {
                "question": question,
                "context": context,
                "answers": {"text": ["red fox"], "answer_start": [context.index("red")]},
            }
            for length, stride in ((512, None), (48, 8)):
                for row in inputs_of(record, tokenizer, length, stride):
                    ids, first = (
                        row["input_ids"],
                        next(place for place, offset in enumerate(row["offsets"]) if offset != (-1, -1)),
                    )
                    assert [token for token in ids if token in tokenizer.all_special_ids] == [
                        ids[0],
                        ids[first - 1],
                        ids[-1],
                    ], special
                    assert tokenizer.decode(ids[1 : first - 1]).strip() == question
                    found = context[row["offsets"][row["starts"][0]][0] : row["offsets"][row["ends"][0]][1]]
                    assert row["starts"] == [0] or found.strip() == "red fox"
    data = Dataset.from_list([{"question": "a [SEP] b", "text": "c [SEP] d", "label": "x"}])
    (row,) = encode_documents(data, tokenizer, 64, ["x"])
    assert row["input_ids"].count(tokenizer.sep_token_id) == 2


def test_targets_are_the_tokens_of_the_visible_characters_of_an_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Whatever white space and invisible characters belong to an answer, its words are the target."""
    before, after = ["", "This is"], ["", " in Judah."]
    for around in (" ", "  ", "\n", "\t", "\u00a0", "\u200b", "\ufeff", "\u00ad", "\u2028", "\u3000", " \u200e ", ""):
        for beginning, end in product(before, after):
            for answer in (
                f"{around}Tamar{around}",
                f"{around}Tamar",
                f"Tamar{around}",
                f"{around}Tamar of Judah{around}",
            ):
                context = beginning + around + answer + around + end
                start = len(beginning + around)
                answers = {"text": [answer], "answer_start": [start]}
                (row,) = inputs_of({"question": "Who?", "context": context, "answers": answers}, tokenizer, 64, 8)
                (first,), (last,) = row["starts"], row["ends"]
                place = context.index("Tamar")
                assert row["offsets"][first][0] <= place < row["offsets"][first][1], (context, answer)
                assert (
                    row["offsets"][last][0] < place + len(answer.strip(around or None)) <= row["offsets"][last][1]
                ), context


def test_targets_hold_a_mark_at_the_end_that_the_tokenizer_drops() -> None:
    """As an uncased BERT reads it, the accent belongs to no token; byte-level tokenizers make it one of its own."""
    answers = {"text": ["cafe\u0301"], "answer_start": [4]}
    assert answer_tokens([(-1, -1), (0, 3), (4, 8)], answers) == [(2, 2)]
    assert answer_tokens([(-1, -1), (0, 3), (3, 8), (8, 9), (9, 12)], answers) == [(2, 3)]


def test_answers_of_a_table_may_be_json_or_python_text(tmp_path: Path) -> None:
    answers = {"text": ["fox"], "answer_start": [4]}
    right = load_qa(write_rows([RECORD], tmp_path / "rows.jsonl"))["answers"][0]
    for written in (
        json.dumps(answers),
        repr(answers),
        repr([answers]),
        "['fox']",
        '["fox"]',
        "fox",
        " {'text': ['fox']}",
    ):
        path = tmp_path / "pandas.csv"
        write_csv(path, {"id": "1", "question": "What?", "context": RECORD["context"], "answers": written})
        assert load_qa(path)["answers"][0] == right, written
    for written in ("{'text': array(['fox'], dtype=object), 'answer_start': array([4], dtype=int32)}", "['fox'"):
        path.write_text(path.read_text().splitlines()[0] + f'\n1,What?,{RECORD["context"]},"{written}"\n')
        with pytest.raises(
            DataError, match=r"as pandas writes arrays into a CSV; write rows as JSON lines: frame\.to_json"
        ):
            load_qa(path)
    code = {"question": "What?", "context": "Type ['fox'] here.", "answers": "['fox']"}
    assert read([code], tmp_path)[0]["answers"] == {"text": ["['fox']"], "answer_start": [5]}


def test_answer_without_text_is_the_token_where_it_starts() -> None:
    offsets = [(-1, -1), (0, 3), (3, 4), (4, 7)]
    for start, token in ((0, 1), (3, 2), (4, 3)):
        assert answer_tokens(offsets, {"text": [""], "answer_start": [start]}) == [(token, token)]


def test_qa_batches_are_padded_or_packed_with_the_same_labels(
    record: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = inputs_of(record, tokenizer, 96, stride=32)
    rows = [min(rows, key=lambda row: row["length"]), max(rows, key=lambda row: row["length"])]
    lengths = [row["length"] for row in rows]
    tokenizer.padding_side = "left"  # which says nothing here
    padded, packed = QACollator(tokenizer)(rows), QACollator(tokenizer, pack=True)(rows)
    assert padded["attention_mask"].sum(1).tolist() == lengths
    assert padded["attention_mask"][0, : lengths[0]].all()
    assert torch.equal(padded["input_ids"][padded["attention_mask"].bool()], packed["input_ids"][0])
    assert torch.equal(padded["labels"], packed["labels"])
    for labels, row in zip(padded["labels"], rows, strict=True):
        assert (labels[:, 0] == 1).nonzero().flatten().tolist() == row["starts"]
        assert (labels[:, 1] == 1).nonzero().flatten().tolist() == row["ends"]
        assert int((labels[:, 0] >= 0).sum()) == row["length"]
