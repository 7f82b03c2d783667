"""Subsets on the Hub (a folder with a card is read as a repository is), texts from several columns, and which rows are held out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from hf_longattn.data import sources
from hf_longattn.data.qa_schemas import load_qa
from hf_longattn.data.sources import DataError, load_labelled, load_or_refuse, load_text, read_source, split_held_out, train_test_split
from hf_longattn.data.words import read_words
from hf_longattn.errors import OptionError
from hf_longattn.training.args import LabelledDataArguments
from hf_longattn.training.lm import TextDataArguments, read_documents
from tests.cells import every_cell

CARD = """---
configs:
- config_name: first
  data_files: first.jsonl
- config_name: second.part
  data_files: second.jsonl
---
"""


@pytest.fixture
def repository(tmp_path: Path) -> str:
    (tmp_path / "README.md").write_text(CARD)
    for name in ("first", "second"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    return str(tmp_path)


def test_a_subset_is_named_after_a_colon(repository: str) -> None:
    assert load_or_refuse(f"{repository}:second.part", "")["train"]["text"] == ["second"]


@pytest.mark.parametrize(
    ("subset", "sentence"),
    [
        ("", "has the subsets first, second.part; name one, for example .*:first.$"),
        (":secondpart", "has the subsets first, second.part, not 'secondpart'. Did you mean 'second.part'"),
    ],
)
def test_a_missing_or_wrong_subset_is_told_with_those_that_there_are(repository: str, subset: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_or_refuse(repository + subset, "")


def test_a_text_from_several_columns(tmp_path: Path) -> None:
    rows = [
        {"task": "Add", "input": "1 2", "result": 3},
        {"task": "Greet", "input": "", "result": 4},
        {"task": None, "input": "x", "result": 5},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = load_text([str(path)], template=["{task} {input}: {result}", "{{{task}}}: {result}"])["text"]
    assert sorted(texts) == ["Add 1 2: 3", "{Greet}: 4"]


@pytest.mark.parametrize(
    ("template", "kind", "sentence"),
    [
        ("{tsak}", DataError, "has the columns task, not 'tsak'; name one with --template. Did you mean 'task'"),
        ("{task", OptionError, "is not a format string"),
        ("task", OptionError, "must name columns in braces"),
        ("{task.real} {0}", OptionError, "must name columns in braces"),
        ("{}", OptionError, "must name columns in braces"),
    ],
)
def test_bad_templates(tmp_path: Path, template: str, kind: type[Exception], sentence: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"task": "Add"}\n')
    with pytest.raises(kind, match=sentence):
        load_text([str(tmp_path / "rows.jsonl")], template=[template])


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@every_cell("read", [read_source, load_qa])
@every_cell(
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
def test_a_damaged_folder_of_datasets(name: str, damage: Callable[[Path], Any], read: Callable[[str], Any], tmp_path: Path) -> None:
    rows = Dataset.from_list([{"question": "Which?", "context": "a tree", "answer": "tree"}] * 50)
    DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    damage(tmp_path / "saved" / name)
    with pytest.raises(DataError, match="saved' is damaged; write it again with save_to_disk"):
        read(str(tmp_path / "saved"))


def numbered(*sizes: int) -> list[Dataset]:
    """Sources whose rows are numbered from 0, 1000, 2000 …"""
    return [Dataset.from_dict({"row": list(range(1000 * place, 1000 * place + size))}) for place, size in enumerate(sizes)]


def saved(parts: list[Dataset], folder: Path) -> list[str]:
    names = [str(folder / f"source{place}") for place in range(len(parts))]
    for part, name in zip(parts, names, strict=True):
        part.save_to_disk(name)
    return names


def test_a_tenth_of_each_class_is_held_out() -> None:
    for sizes, held in (([30, 30], [3, 3]), ([50, 10], [5, 1]), ([58, 1, 1], [6, 0, 0]), ([2, 1], [1, 0]), ([40, 40, 20], [4, 4, 2])):
        labels = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
        data = Dataset.from_dict({"label": labels, "row": list(range(len(labels)))})
        chosen = []
        for seed in range(5):
            train, held_out = split_held_out([data], seed, classes="label")
            assert [held_out["label"][:].count(str(number)) for number in range(len(sizes))] == held
            assert sorted([*train["row"], *held_out["row"]]) == data["row"][:]
            chosen.append(sorted(held_out["row"]))
        assert any(rows != chosen[0] for rows in chosen)
    rows = Dataset.from_dict({"id": [str(number // 2) for number in range(80)], "kind": ["span", "span", "none", "none"] * 20})
    _, held_out = split_held_out([rows, rows], 0, unit="id", classes="kind")  # of both sources, both rows of a question
    assert [held_out["kind"][:].count(kind) for kind in ("span", "none")] == [8, 8]


def test_a_random_tenth_of_every_source_is_held_out() -> None:
    parts = numbered(100, 40, 5, 1)
    train, held_out = split_held_out(parts, seed=0)
    assert sorted([*train["row"], *held_out["row"]]) == sorted(row for part in parts for row in part["row"])
    assert [sum(row // 1000 == place for row in held_out["row"]) for place in range(4)] == [10, 4, 1, 0]
    assert sorted(row for row in held_out["row"] if row < 1000) != list(range(90, 100)), "not the last rows"
    assert split_held_out(parts, seed=0)[1]["row"] == held_out["row"]
    assert split_held_out(parts, seed=1)[1]["row"] != held_out["row"]


@pytest.mark.parametrize(("sizes", "held"), [((1, 1, 1), 1), ((2,), 1), ((1,), 0)])
def test_few_rows_are_divided_too(sizes: tuple[int, ...], held: int) -> None:
    assert [len(part) for part in split_held_out(numbered(*sizes), seed=0)] == [sum(sizes) - held, held]


def test_at_most_so_many_rows_of_a_source_are_held_out() -> None:
    assert [len(part) for part in split_held_out(numbered(100, 100), seed=0, most=3)] == [194, 6]


def test_the_rows_of_a_unit_stay_together_where_each_source_has_units_of_its_own() -> None:
    ids = [str(number // 3) for number in range(60)]
    parts = [Dataset.from_dict({"id": ids, "row": list(range(start, start + 60))}) for start in (0, 60)]
    train, held_out = split_held_out(parts, seed=0, unit="id")
    assert sorted([*train["row"], *held_out["row"]]) == list(range(120))
    of_rows = [{(row // 60, row % 60 // 3) for row in part["row"]} for part in (train, held_out)]
    assert not of_rows[0] & of_rows[1]
    assert [sum(source == place for source, _ in of_rows[1]) for place in (0, 1)] == [2, 2]
    assert not len(split_held_out([parts[0].select(range(3))], seed=0, unit="id")[1])


def test_given_data_to_evaluate_on_are_used_whole(tmp_path: Path) -> None:
    first, second = saved(numbered(20, 90), tmp_path)
    _, held_out = train_test_split(LabelledDataArguments(data=[first], validation=second), read_source, seed=0)
    assert sorted(held_out["row"]) == list(range(1000, 1090))


def test_given_text_to_evaluate_on_is_used_whole(tmp_path: Path) -> None:
    """As many as the training documents' hundredth were used once."""
    files = [tmp_path / name for name in ("train.jsonl", "held.jsonl")]
    for file, count in zip(files, (300, 200), strict=True):
        file.write_text("".join(json.dumps({"text": f"{file.stem} {number}"}) + "\n" for number in range(count)))
    train, held_out = read_documents(TextDataArguments(text=[str(files[0])], validation=str(files[1])), seed=0)
    assert (len(train), len(held_out)) == (300, 200)
    train, held_out = read_documents(TextDataArguments(text=[str(file) for file in files]), seed=0)
    assert [sum(text.startswith(name) for text in held_out["text"]) for name in ("train", "held")] == [30, 20]


def contents(ending: str) -> str:
    """A file with the ending that has "Grüße" in it."""
    row = {"text": "Grüße", "question": "Wer?", "context": "Grüße", "answer": "Grüße"}
    tables = {".csv": ",", ".tsv": "\t"}
    if ending in tables:
        return "\n".join(tables[ending].join(cells) for cells in (row, row.values())) + "\n"
    return {".json": json.dumps([row], ensure_ascii=False), ".jsonl": json.dumps(row, ensure_ascii=False), ".conll": "Grüße O\n"}.get(
        ending, "Grüße"
    )


def words_of(source: str) -> str:
    return read_words(source, "train", None, "tags")["words"][0][0]


READERS = [
    *((ending, lambda source: read_source(source)["text"][0]) for ending in (".txt", ".csv", ".tsv", ".json", ".jsonl")),
    *((ending, lambda source: load_qa(source)["gold"][0][0]) for ending in (".csv", ".tsv", ".json", ".jsonl")),
    (".conll", words_of),
]


@every_cell(("ending", "read"), READERS)
def test_names_and_encodings_of_files(ending: str, read: Callable[[str], Any], tmp_path: Path) -> None:
    """Names are no patterns, endings may be capitals, a mark of UTF-8 is no text, and other encodings are one sentence."""
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


def test_a_text_that_no_tokenizer_could_take_is_refused_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LARGEST_TEXT", 1_000_000)
    long, rows = "ü" * 1_500_000, ["a", "b"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in (*rows, long)))
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{text},a\n" for text in (long, *rows)))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "book.txt").write_text(long)
    Dataset.from_dict({"text": [*rows, long]}).save_to_disk(str(tmp_path / "saved"))
    Dataset.from_dict({"text": [*rows, long]}).to_parquet(str(tmp_path / "rows.parquet"))
    places = {"rows.jsonl": "Line 3", "rows.csv": "Row 1", "folder": "Row 1", "folder/book.txt": "Document 1", "saved": "Row 3"}
    for name, place in {**places, "rows.parquet": "Row 3"}.items():
        with pytest.raises(DataError, match=f"^{place} of '.*{name}' has 3 MB of text, but at most 1 are read; split it.$"):
            load_text([str(tmp_path / name)])
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": long[:500_000]}))
    assert len(load_text([str(tmp_path / "rows.jsonl")])) == 1


@pytest.mark.parametrize(("opening", "closing", "depth"), [("[", "]", 120), ("[", "]", 1000), ('{"a": ', "}", 120), ('{"a": ', "}", 5000)])
def test_rows_that_are_nested_too_deeply_are_a_sentence(opening: str, closing: str, depth: int, tmp_path: Path) -> None:
    nested = f"{opening * depth}1{closing * depth}"
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "a", "x": {nested}}}\n{{"text": "b"}}\n')
    with pytest.raises(DataError, match="cannot be read: its JSON is nested too deeply; give rows of texts and numbers"):
        load_text([str(tmp_path / "rows.jsonl")])


def test_a_table_with_other_separators_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "semicolons.csv"
    table.write_text("text;label\ngood;1\n")
    with pytest.raises(DataError, match=r"a single column, 'text;label'; separate its columns by commas, not by ';'\.$"):
        load_labelled(str(table))


def test_every_file_of_a_folder_is_read_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "my [texts]"
    folder.mkdir()
    names = ["a.txt", "b [draft].txt", "c d.txt", "ü*.txt", "CAPITALS.TXT"]
    for name in names:
        (folder / name).write_text(name, encoding="utf-8")
    (folder / "of a folder.txt").mkdir()
    assert sorted(load_text([str(folder)])["text"]) == sorted(names)
    (folder / "e.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match=r"e\.txt' is not UTF-8 text"):
        load_text([str(folder)])
    (folder / "e.txt").unlink()
    (folder / "d.txt").symlink_to("missing.txt")
    with pytest.raises(DataError, match=r"d\.txt' is a link to nothing"):
        load_text([str(folder)])
