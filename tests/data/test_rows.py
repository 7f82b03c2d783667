"""Rows of files, folders and the Hub with explicit types, bad data in a sentence, and which rows are held out."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from hf_longattn.data import rows as rows_module
from hf_longattn.data.qa_schemas import load_qa
from hf_longattn.data.rows import read_texts, rows_of, split_held_out, trained_rows
from hf_longattn.data.sources import DataError, files_of, read_hub, read_table
from hf_longattn.errors import OptionError
from hf_longattn.files import write_json
from hf_longattn.training.lm import TextDataArguments
from hf_longattn.training.tasks.tokens import TokenDataArguments, tagged_rows
from tests.cases import every_case
from tests.training.conftest import write_rows

CARD = """---
configs:
- config_name: first
  data_files: first.jsonl
- config_name: second.part
  data_files: second.jsonl
---
"""


TEXTS = {"text": ("text",)}
LABELLED = {**TEXTS, "label": ("label",)}
PAIRS = {
    "anchor": ("anchor", "sentence1"),
    "positive": ("positive", "sentence2"),
    "negative": ("negative",),
    "score": ("score",),
}


def texts_of(source: str) -> Dataset:
    return rows_of(source, "train", TEXTS, {})


def labelled(source: str) -> Dataset:
    return rows_of(source, "train", LABELLED, {})


def pairs(source: str) -> Dataset:
    return rows_of(source, "train", PAIRS, {})


def written(source: str, *template: str) -> list[str]:
    """All texts of a template."""
    arguments = TextDataArguments(data=[source], template=list(template))
    arguments.only_scores = True
    return read_texts(arguments, 0)[0]["text"][:]


@pytest.fixture
def repository(tmp_path: Path) -> str:
    (tmp_path / "README.md").write_text(CARD)
    for name in ("first", "second"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    return str(tmp_path)


def test_dataset_subset_is_named_after_a_colon(repository: str) -> None:
    assert read_table(f"{repository}:second.part")["text"] == ["second"]
    with pytest.raises(
        DataError,
        match=r"loading it from the Hub failed; give NAME or NAME:SUBSET.*Available: \['first', 'second.part'\]",
    ):
        read_table(f"{repository}:secondpart")


def test_template_makes_a_text_of_several_columns(tmp_path: Path) -> None:
    rows = [
        {"task": "Add", "input": "1 2", "result": 3},
        {"task": "Greet", "input": "", "result": 4},
        {"task": None, "input": "x", "result": 5},
    ]
    texts = written(write_rows(rows, tmp_path / "rows.jsonl"), "{task} {input}: {result}", "{{{task}}}: {result}")
    assert sorted(texts) == ["Add 1 2: 3", "{Greet}: 4"]


def test_template_with_a_number_format_refuses_texts(tmp_path: Path) -> None:
    for name, content in (("rows.csv", "text\n3\n"), ("rows.jsonl", '{"text": "3"}\n{"text": [3]}\n')):
        with pytest.raises(DataError, match=r"does not suit .*; leave out the part after a colon"):
            written(write(tmp_path / name, content), "{text:.2f}")
    mixed = write(tmp_path / "mixed.jsonl", '{"text": "5"}\n{"text": 5}\n{"text": 5.25}\n')
    assert sorted(written(mixed, "{text}")) == ["5", "5", "5.25"]
    assert written(write(tmp_path / "number.jsonl", '{"text": 5.25}'), "{text:.1f} m") == ["5.2 m"]


@pytest.mark.parametrize(
    ("template", "kind", "sentence"),
    [
        ("{tsak}", DataError, "has the columns task, not 'tsak'; name one with --template. Did you mean 'task'"),
        ("{task", OptionError, "takes texts that name columns in braces, for example"),
        ("task", OptionError, "takes texts that name columns in braces, for example"),
        ("{task.real} {0}", DataError, "has the columns task, not 'task.real'; name one with --template"),
        ("{}", DataError, "has the columns task, not ''; name one with --template"),
    ],
)
def test_wrong_templates_are_refused(tmp_path: Path, template: str, kind: type[Exception], sentence: str) -> None:
    source = write_rows([{"task": "Add"}], tmp_path / "rows.jsonl")
    with pytest.raises(kind, match=sentence):
        written(source, template)


def write(file: Path, text: str) -> str:
    """Write a text file, compressed if its name says so, and return its name."""
    with gzip.open(file, "wt") if file.suffix == ".gz" else file.open("w") as opened:
        opened.write(text)
    return str(file)


MISSING = ("None", "null", "NA", "nan", "NaN", "N/A", "NULL", "n/a", "<NA>", "#N/A", "-nan")
"""Texts that pandas takes for missing values."""
CODES = ("001", "010", "1.0", "1e3", "1_000", "true", "True", "2024-01-01", "0x1F", " 1", "+1", "9" * 30)
"""Texts that readers take for numbers, truth values or dates."""


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz"])
def test_csv_cells_are_texts_as_they_stand_and_only_empty_ones_are_missing(ending: str, tmp_path: Path) -> None:
    between = "\t" if ending == ".tsv" else ","
    for cells in (MISSING, CODES, ("001", "010"), ("1", "2")):
        lines = ["text,label,summary,anchor,positive", *(",".join([cell] * 5) for cell in cells)]
        source = write(
            tmp_path / f"{len(cells)}{cells[0]}{ending}".replace("/", "-"),
            "\n".join(lines).replace(",", between) + "\n",
        )
        assert labelled(source).to_list() == [{"text": cell, "label": cell} for cell in cells]
        assert texts_of(source)["text"][:] == list(cells)
        assert sorted(written(source, "{text} {label}")) == sorted(f"{cell} {cell}" for cell in cells)
        assert rows_of(source, "train", {"summary": ("summary",)}, {})["summary"][:] == list(cells)
        assert pairs(source).to_list() == [{"anchor": cell, "positive": cell} for cell in cells]
    source = write(tmp_path / f"gap{ending}", f"text{between}label\na{between}\n")
    with pytest.raises(DataError, match=r"Row 1 of .* has no label"):
        labelled(source)
    source = write(tmp_path / f"texts{ending}", f"text{between}label\n{between}a\nb{between}a\n")
    assert labelled(source)["text"][:] == ["b"]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".jsonl.gz"])
def test_json_values_keep_their_texts(ending: str, tmp_path: Path) -> None:
    """Also dates, for which pyarrow's reader takes texts, and rows that look like a log of an agent."""
    for cells in (MISSING, CODES, ("2024-01-01", "2024-01-02"), ("2024-01-01T00:00:00Z",)):
        rows = [{"text": cell, "label": cell, "type": "user", "message": {"content": cell}} for cell in cells]
        content = json.dumps(rows, indent=1) if ending == ".json" else "\n".join(map(json.dumps, rows))
        source = write(tmp_path / f"{len(cells)}{cells[0]}{ending}".replace("/", "-"), content)
        assert labelled(source).to_list() == [{"text": cell, "label": cell} for cell in cells]
        assert read_table(source)["message"][0] == {"content": cells[0]}
    numbers = write(
        tmp_path / f"numbers{ending}", '{"id": 1180591620717411303424, "n": 9007199254740993}\n{"id": 5, "n": 1}'
    )
    assert read_table(numbers).to_list() == [{"id": str(2**70), "n": 2**53 + 1}, {"id": 5, "n": 1}]


def test_labels_of_every_format_are_the_same_texts(tmp_path: Path) -> None:
    """Numbers and truth values of JSON and Parquet, categories of pandas, and classes with names."""
    texts = ["a", "b", "c"]

    def parquet(name: str, labels: Any, **features: Any) -> str:
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), tmp_path / name)
        return str(tmp_path / name)

    named = Dataset.from_dict({"text": texts, "label": [0, 1, 0]}).cast_column(
        "label", ClassLabel(names=["007", "None"])
    )
    named.to_parquet(str(tmp_path / "named.parquet"))
    named.save_to_disk(str(tmp_path / "saved"))
    numbered, truths = ["1", "10", "0"], ["true", "false", "true"]
    sources = {
        write(tmp_path / "a.csv", "text,label\na,1\nb,10\nc,0\n"): numbered,
        write(
            tmp_path / "b.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 10}\n{"text": "c", "label": 0}'
        ): numbered,
        write(
            tmp_path / "c.json", '[{"text": "a", "label": 1}, {"text": "b", "label": 10.0}, {"text": "c", "label": 0}]'
        ): numbered,
        parquet("d.parquet", [1, 10, 0]): numbered,
        parquet("e.parquet", pyarrow.array(["1", "10", "0"]).dictionary_encode()): numbered,
        parquet("f.parquet", pyarrow.array(["1", "10", "0"], pyarrow.large_string())): numbered,
        parquet("g.parquet", pyarrow.array(["1", "10", "0"], pyarrow.string_view())): numbered,
        write(tmp_path / "h.csv", "text,label\na,true\nb,false\nc,true\n"): truths,
        write(tmp_path / "i.jsonl", "".join(f'{{"text": "a", "label": {value}}}\n' for value in truths)): truths,
        parquet("j.parquet", [True, False, True]): truths,
        str(tmp_path / "named.parquet"): ["007", "None", "007"],
        str(tmp_path / "saved"): ["007", "None", "007"],
    }
    for source, labels in sources.items():
        assert labelled(source)["label"][:] == labels, source
    for values in ([1, None, 0], [1.0, float("nan"), 0.0]):
        with pytest.raises(DataError, match=r"Row 2 of .* has no label"):
            labelled(parquet("gap.parquet", values))


def test_hub_tables_are_read_like_files_with_the_features_of_the_card(tmp_path: Path) -> None:
    for name, files in {"csv": ["a [1].csv", "b.csv.gz"], "json": ["a.jsonl", "b.json.gz"]}.items():
        (tmp_path / name).mkdir()
        for file, label in zip(files, ("010", "None"), strict=True):
            row = {"text": "NA", "label": label, "day": "2024-01-01"}
            content = json.dumps([row]) if name == "json" else "\n".join(map(",".join, (row, row.values())))
            write(tmp_path / name / file, content)
        data = read_hub(str(tmp_path / name))["train"]
        assert sorted(data["label"]) == ["010", "None"]
        assert {*data["text"], *data["day"]} == {"NA", "2024-01-01"}
    features = "[{name: text, dtype: string}, {name: label, dtype: {class_label: {names: {'0': 'no', '1': 'yes'}}}}]"
    (tmp_path / "csv" / "README.md").write_text(
        f"---\nconfigs: [{{config_name: default, data_files: b.csv}}]\ndataset_info: {{features: {features}}}\n---\n"
    )
    write(tmp_path / "csv" / "b.csv", "text,label\nNone,1\n")
    data = read_hub(str(tmp_path / "csv"))["train"]
    assert data.features["label"].names == ["no", "yes"]
    assert data.to_list() == [{"text": "None", "label": 1}]


def test_folders_are_the_labels_of_their_texts(tmp_path: Path) -> None:
    names = ["bad/a.txt", "bad/b.txt", "good/c.txt"]
    for name in names:
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "texts" / name, name)
    assert labelled(str(tmp_path / "texts")).to_list() == [
        {"text": name, "label": name.partition("/")[0]} for name in names
    ]


def test_column_may_have_two_roles(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", "text\none\ntwo\n")
    rows = rows_of(source, "train", PAIRS, {"anchor": "text", "positive": "text"})
    assert rows.to_list() == [{"anchor": "one", "positive": "one"}, {"anchor": "two", "positive": "two"}]


def test_scores_of_pairs_must_be_numbers(tmp_path: Path) -> None:
    scored = pairs(write(tmp_path / "a.csv", "sentence1,sentence2,score\n001,NA,0.5\n2,3,1\n")).to_list()
    assert scored == [
        {"anchor": "001", "positive": "NA", "score": 0.5},
        {"anchor": "2", "positive": "3", "score": 1.0},
    ]
    for score in ("high", "nan", "inf", ""):
        with pytest.raises(DataError, match=r"Row 1 of .* (has '.*' in the column 'score', no number|has no score)"):
            pairs(write(tmp_path / "a.csv", f"sentence1,sentence2,score\na,b,{score}\n"))


def test_rows_with_more_cells_than_columns_are_refused(tmp_path: Path) -> None:
    for lines in ("Hello, world,1\na,b\n", "a,b\nHello, world,1\n", "a,b,\nc,d,\n"):
        with pytest.raises(
            DataError, match=r"Row \d of .* has more cells than columns; put texts with separators into double quotes"
        ):
            labelled(write(tmp_path / "rows.csv", "text,label\n" + lines))


def test_csv_cells_that_swallow_rows_by_quotation_marks_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    swallowed = ('"quoted start\tpos\nsecond\tneg\n4th"\tneg\n', '"start\tpos\n"next" one\tneg\n')
    for first, rows in enumerate(swallowed):
        for name in ("rows.tsv", "rows.tsv.gz"):
            source = write(tmp_path / name, "text\tlabel\n" + "a\tpos\n" * first + rows)
            with pytest.raises(
                DataError, match=rf"Row {first + 1} of '.*{name}' has a (cell that runs over|quotation mark)"
            ):
                labelled(source)
    for separator, name in ((",", "rows.csv"), ("\t", "rows.tsv")):
        for lines, place in (("a|b\n" * 10_001 + '"c|d\n', "Row 10002"), ('"c|d\n"e|f\n"g|h\n', r"Row \d")):
            source = write(tmp_path / name, ("text|label\n" + lines).replace("|", separator))
            with pytest.raises(
                DataError, match=rf"{place} of .*{name}' has a quotation mark that is not closed or not doubled"
            ):
                labelled(source)
        with pytest.raises(DataError, match=r"The header of .* has a quotation mark"):
            labelled(write(tmp_path / name, '"text|label\na|b\n'.replace("|", separator)))
        quoted = 'text|label\n"a ""b"" c"|x\n"two\nlines"|y\na "mark" within|x\n'.replace("|", separator)
        assert read_table(write(tmp_path / name, quoted))["text"] == ['a "b" c', "two\nlines", 'a "mark" within']
    assert not caplog.records


def test_tables_with_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    for name, header in (
        ("a.csv", "text,text,label"),
        ("b.csv", '\ufeff"text",label,text'),
        ("c.tsv.gz", "text\tlabel\ttext"),
    ):
        with pytest.raises(DataError, match=rf"The header of '.*{name}' names the column 'text' more than once"):
            labelled(write(tmp_path / name, header + "\n" + re.sub("[a-z]+", "a", header) + "\n"))
    for header in ("text,text.1,label", "text,,,label", "text,NA,label,nan"):
        assert read_table(write(tmp_path / "rows.csv", f"{header}\n{header}\n"))["label"] == ["label"]


def test_pipes_archives_broken_and_empty_files_are_refused_by_what_they_are(tmp_path: Path) -> None:
    for name in ("rows.csv", "rows", "rows.jsonl.gz"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match=f"{name}' is a pipe or a device, not a regular file"):
            read_table(str(tmp_path / name))
    for name in ("rows.zip", "rows.csv.zip", "rows.parquet.gz", "rows.csv.bz2", "rows.xlsx", "plain"):
        (tmp_path / name).write_text("PK")
        with pytest.raises(DataError, match=r"is of no format that is read: .txt, .jsonl.*; unpack an archive"):
            read_table(str(tmp_path / name))
    for content in (b"no gzip", gzip.compress(b"text,label\n" + b"a,b\n" * 500)[:-12]):
        (tmp_path / "bad.csv.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"is not a whole .gz file"):
            read_table(str(tmp_path / "bad.csv.gz"))
    (tmp_path / "latin.csv.gz").write_bytes(gzip.compress("text,label\nü,a\n".encode("latin-1")))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_table(str(tmp_path / "latin.csv.gz"))
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], "string")}), tmp_path / "empty.parquet")
    for source in (
        write(tmp_path / "blank.csv", "\n\n"),
        write(tmp_path / "none.json", "[]"),
        str(tmp_path / "empty.parquet"),
    ):
        with pytest.raises(DataError, match=r"has no rows|empty.parquet' is damaged"):
            read_table(source)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@every_case(
    ("name", "damage"),
    [
        ("train/data-00000-of-00001.arrow", Path.unlink),
        ("train/data-00000-of-00001.arrow", cut),
        ("train/state.json", cut),
        ("train/state.json", lambda file: file.write_text("[]")),
        ("train/dataset_info.json", Path.unlink),
        ("dataset_dict.json", cut),
        ("dataset_dict.json", lambda file: file.write_text('{"splits": ["train", "test"]}')),
    ],
)
def test_damaged_dataset_folder_is_refused(name: str, damage: Callable[[Path], Any], tmp_path: Path) -> None:
    rows = Dataset.from_list([{"text": "a tree"}] * 50)
    DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    damage(tmp_path / "saved" / name)
    with pytest.raises(DataError, match="saved' is damaged; write it again"):
        read_table(str(tmp_path / "saved"))


def numbered(*sizes: int) -> list[Dataset]:
    """Sources whose rows are numbered from 0, 1000, 2000 …"""
    return [
        Dataset.from_dict({"row": list(range(1000 * place, 1000 * place + size))}) for place, size in enumerate(sizes)
    ]


def test_split_holds_out_a_tenth_of_each_class() -> None:
    for sizes, held in (
        ([30, 30], [3, 3]),
        ([50, 10], [5, 1]),
        ([58, 1, 1], [6, 0, 0]),
        ([2, 1], [1, 0]),
        ([40, 40, 20], [4, 4, 2]),
    ):
        labels = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
        data = Dataset.from_dict({"label": labels, "row": list(range(len(labels)))})
        chosen = []
        for seed in range(5):
            train, held_out = split_held_out([data], seed, classes="label")
            assert [held_out["label"][:].count(str(number)) for number in range(len(sizes))] == held
            assert sorted([*train["row"], *held_out["row"]]) == data["row"][:]
            chosen.append(sorted(held_out["row"]))
        assert any(rows != chosen[0] for rows in chosen)
    rows = Dataset.from_dict(
        {"id": [str(number // 2) for number in range(80)], "kind": ["span", "span", "none", "none"] * 20}
    )
    # of both sources, both rows of a question
    _, held_out = split_held_out([rows, rows], 0, unit="id", classes="kind")
    assert [held_out["kind"][:].count(kind) for kind in ("span", "none")] == [8, 8]


def test_split_holds_out_a_random_tenth_of_every_source() -> None:
    parts = numbered(100, 40, 5, 1)
    train, held_out = split_held_out(parts, seed=0)
    assert sorted([*train["row"], *held_out["row"]]) == sorted(row for part in parts for row in part["row"])
    assert [sum(row // 1000 == place for row in held_out["row"]) for place in range(4)] == [10, 4, 1, 0]
    assert sorted(row for row in held_out["row"] if row < 1000) != list(range(90, 100)), "not the last rows"
    assert split_held_out(parts, seed=0)[1]["row"] == held_out["row"]
    assert split_held_out(parts, seed=1)[1]["row"] != held_out["row"]


@pytest.mark.parametrize(("sizes", "held"), [((1, 1, 1), 1), ((2,), 1), ((1,), 0)])
def test_split_of_few_rows_holds_out_one(sizes: tuple[int, ...], held: int) -> None:
    assert [len(part) for part in split_held_out(numbered(*sizes), seed=0)] == [sum(sizes) - held, held]


def test_split_holds_out_at_most_the_given_number_of_rows() -> None:
    assert [len(part) for part in split_held_out(numbered(100, 100), seed=0, most=3)] == [194, 6]


def test_split_keeps_the_rows_of_a_unit_together_within_each_source() -> None:
    ids = [str(number // 3) for number in range(60)]
    parts = [Dataset.from_dict({"id": ids, "row": list(range(start, start + 60))}) for start in (0, 60)]
    train, held_out = split_held_out(parts, seed=0, unit="id")
    assert sorted([*train["row"], *held_out["row"]]) == list(range(120))
    of_rows = [{(row // 60, row % 60 // 3) for row in part["row"]} for part in (train, held_out)]
    assert not of_rows[0] & of_rows[1]
    assert [sum(source == place for source, _ in of_rows[1]) for place in (0, 1)] == [2, 2]
    assert not len(split_held_out([parts[0].select(range(3))], seed=0, unit="id")[1])


def test_validation_texts_are_used_whole(tmp_path: Path) -> None:
    """As many as the training documents' hundredth were used once."""
    files = [
        write_rows([{"text": f"{name} {number}"} for number in range(count)], tmp_path / f"{name}.jsonl")
        for name, count in (("train", 300), ("held", 200))
    ]
    train, held_out = read_texts(TextDataArguments(data=files[:1], validation=files[1]), 0)
    assert (len(train), len(held_out)) == (300, 200)
    train, held_out = read_texts(TextDataArguments(data=files), 0)
    assert [sum(text.startswith(name) for text in held_out["text"]) for name in ("train", "held")] == [30, 20]


def contents(ending: str) -> str:
    """A file with the ending that has "Grüße" in it."""
    row = {"text": "Grüße", "label": "a"}
    tables = {".csv": ",", ".tsv": "\t"}
    if ending in tables:
        return "\n".join(tables[ending].join(cells) for cells in (row, row.values())) + "\n"
    return {
        ".json": json.dumps([row], ensure_ascii=False),
        ".jsonl": json.dumps(row, ensure_ascii=False),
        ".conll": "Grüße O\n",
    }.get(ending, "Grüße")


READERS = [
    *(
        (ending, lambda source: read_table(source)["text"][0])
        for ending in (".txt", ".csv", ".tsv", ".json", ".jsonl")
    ),
    (".conll", lambda source: tagged_rows(source, "train", TokenDataArguments.roles, {})["words"][0][0]),
]


@every_case(("ending", "read"), READERS)
def test_file_names_are_no_patterns_and_encodings_beside_utf8_are_refused(
    ending: str, read: Callable[[str], Any], tmp_path: Path
) -> None:
    """Names are no patterns, endings may be capitals, a mark of UTF-8 is no text, and other encodings are one
    sentence."""
    for name in ("a [1] *b ü?", "PLAIN"):
        path = tmp_path / (name + (ending.upper() if name.isupper() else ending))
        path.write_text(contents(ending), encoding="utf-8-sig")
        assert read(str(path)) == "Grüße", path
    path.write_text(contents(ending), encoding="latin-1")
    with pytest.raises(DataError, match=r"PLAIN.* is not UTF-8 text .*iconv -f LATIN1"):
        read(str(path))
    path.write_text(contents(ending), encoding="utf-16")
    with pytest.raises(DataError, match=r"PLAIN.* is not UTF-8 text .*iconv -f UTF-16"):
        read(str(path))


def test_too_long_text_is_refused_with_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "LARGEST_TEXT", 1_000_000)
    long, rows = "ü" * 1_500_000, ["a", "b"]
    write_rows([{"text": text} for text in (*rows, long)], tmp_path / "rows.jsonl")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "book.txt").write_text(long)
    for name, place in {"rows.jsonl": 3, "folder": 1, "folder/book.txt": 1}.items():
        with pytest.raises(
            DataError, match=f"^Row {place} of .*{name} has a text of 1,500,000 characters, but at most 1,000,000 are"
        ):
            texts_of(str(tmp_path / name))
    assert len(texts_of(write_rows([{"text": long[:500_000]}], tmp_path / "rows.jsonl"))) == 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}")])
def test_json_nested_too_deeply_is_refused(opening: str, closing: str, name: str, tmp_path: Path) -> None:
    """pyarrow's reader ends the process at 100,000 levels."""
    for depth in (5000, 100_000):
        write(tmp_path / name, f'{{"text": "b"}}\n{{"text": "a", "x": {opening * depth}1{closing * depth}}}\n')
        with pytest.raises(
            DataError, match="cannot be read: its JSON is nested too deeply; give rows of texts and numbers"
        ):
            texts_of(str(tmp_path / name))
    write(tmp_path / name, f'{{"text": "a", "x": {opening * 120}1{closing * 120}}}\n{{"text": "b"}}\n')
    assert sorted(texts_of(str(tmp_path / name))["text"]) == ["a", "b"], "a column that nobody reads may be deep"


def test_csv_with_other_separators_is_refused(tmp_path: Path) -> None:
    for name, wrong, right in (("a.csv", ";", ","), ("b.csv", "|", ","), ("c.csv", "\t", ","), ("d.tsv", ",", "\t")):
        table = tmp_path / name
        table.write_text(f"text{wrong}label\ngood, really{wrong}1\n")
        sentence = f"is the one column {f'text{wrong}label'!r}; separate its columns by {right!r}, not by {wrong!r}"
        with pytest.raises(DataError, match=re.escape(sentence)):
            labelled(str(table))


def test_label_in_a_list_is_that_label_and_several_are_refused(tmp_path: Path) -> None:
    feelings = ClassLabel(names=["joy", "love"])
    features = Features({"text": Value("string"), "labels": List(feelings)})
    for name, rows, columns in (
        ("classes", Dataset.from_dict({"text": ["a", "b"], "labels": [[1], [0]]}, features=features), ["love", "joy"]),
        ("names", Dataset.from_dict({"text": ["a", "b"], "labels": [["love"], ["joy"]]}), ["love", "joy"]),
        ("numbers", Dataset.from_dict({"text": ["a", "b"], "labels": [[1], [0]]}), ["1", "0"]),
    ):
        rows.to_parquet(str(tmp_path / f"{name}.parquet"))
        data = rows_of(str(tmp_path / f"{name}.parquet"), "train", {"text": ["text"], "label": ["labels"]}, {})
        assert data["label"][:] == columns, name
    for labels, sentence in (
        ([[0, 1]], "2 labels in the column 'labels'"),
        ([[]], "0 labels"),
        ([[-1]], "no name or"),
    ):
        path = str(tmp_path / "several.parquet")
        Dataset.from_dict({"text": ["a"], "labels": labels}, features=features).to_parquet(path)
        with pytest.raises(DataError, match=f"^Row 1 of .*{sentence}"):
            rows_of(path, "train", {"text": ["text"], "label": ["labels"]}, {})


def test_every_file_of_a_folder_is_read_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "my [texts]"
    folder.mkdir()
    names = ["a.txt", "b [draft].txt", "c d.txt", "ü*.txt", "CAPITALS.TXT"]
    for name in names:
        (folder / name).write_text(name, encoding="utf-8")
    (folder / "of a folder.txt").mkdir()
    assert sorted(texts_of(str(folder))["text"]) == sorted(names)
    (folder / "e.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match=r"e\.txt' is not UTF-8 text"):
        texts_of(str(folder))


def test_links_out_of_a_folder_are_followed_and_others_than_files_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "a folder.txt").mkdir(parents=True)
    (folder / "a.txt").write_text("inside")
    (tmp_path / "elsewhere").write_text("outside")
    (folder / "b.txt").symlink_to(tmp_path / "elsewhere")
    assert read_table(str(folder))["text"][:] == ["inside", "outside"]
    for target in ("missing", "c.txt", "pipe"):
        (folder / "c.txt").unlink(missing_ok=True)
        if target == "pipe":
            os.mkfifo(folder / "c.txt")
        else:
            (folder / "c.txt").symlink_to(target)
        with pytest.raises(DataError, match="is a link to nothing, or no regular file; remove it"):
            files_of(folder, "text")


def test_files_of_a_folder_are_those_of_their_kind(tmp_path: Path) -> None:
    for name in ("b/2.flac", "a.WAV", ".hidden.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert files_of(tmp_path, "audio") == [tmp_path / "a.WAV", tmp_path / "b/2.flac"]
    assert files_of(tmp_path / "a.WAV", "audio") == [tmp_path / "a.WAV"]
    with pytest.raises(DataError, match="holds no images"):
        files_of(tmp_path, "image")
    with pytest.raises(DataError, match="does not exist; give a file, or a folder of audio files"):
        files_of(tmp_path / "nowhere", "audio")


def test_trained_rows_are_found_by_content(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(6)]
    write_rows(rows, tmp_path / "a.jsonl")
    (tmp_path / "b.csv").write_text(
        "label,text\n" + "".join(f"{row['label']},{row['text']}\n" for row in reversed(rows[2:])) + "a,other\n"
    )
    train, scored = (labelled(str(tmp_path / name)) for name in ("a.jsonl", "b.csv"))
    assert (trained_rows(train, scored), trained_rows(train, train), trained_rows(train.select([]), scored)) == (
        4,
        6,
        0,
    )
    assert trained_rows(*(texts_of(str(tmp_path / name)) for name in ("b.csv", "a.jsonl"))) == 4
    assert trained_rows(train, Dataset.from_list([{"text": "text 0", "label": "b"}])) == 0

    words = Dataset.from_list([{"words": ["a", "b"], "tags": ["O", "O"]}, {"words": ["a b"], "tags": ["O"]}])
    assert trained_rows(words, words.select([1])) == 1
    assert trained_rows(words.select([0]), words) == 1


def test_trained_questions_are_found_whatever_their_ids_and_schema(tmp_path: Path) -> None:
    question: dict[str, Any] = {"question": "which?", "answers": [{"text": "tree", "answer_start": 2}]}
    nested = {"data": [{"title": "t", "paragraphs": [{"context": "a tree", "qas": [{**question, "id": "x"}]}]}]}
    write_json(tmp_path / "a.json", nested)
    flat = {"question": "which?", "context": "a tree", "answers": {"text": ["tree"], "answer_start": [2]}}
    write_rows([flat, {**flat, "question": "who?"}], tmp_path / "b.jsonl")
    assert trained_rows(load_qa(tmp_path / "a.json"), load_qa(tmp_path / "b.jsonl")) == 1
