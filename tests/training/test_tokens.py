"""Tagging words: files of every shape, whole documents in windows."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import AutoModelForTokenClassification, EvalPrediction, PreTrainedTokenizerBase

from hf_longattn.data.sources import DataError
from hf_longattn.data.tokenization import IGNORED
from hf_longattn.errors import OptionError
from hf_longattn.training.tasks.tokens import TokenDataArguments, read_tagged, tag_scores, tagged_rows, to_windows
from tests.saved import change_json
from tests.training.conftest import checkpoint, converted, quick, write_rows

NAMES = {"tree": "THING", "file": "THING", "node": "PLACE", "path": "PLACE"}


def tagged(count: int = 24) -> list[dict[str, Any]]:
    choose = random.Random(0)
    found = []
    for _ in range(count):
        words = choose.choices(["for", "while", "return", *NAMES], k=choose.randint(10, 60))
        found.append({"tokens": words, "ner_tags": [f"B-{NAMES[word]}" if word in NAMES else "O" for word in words]})
    return found


@pytest.mark.thorough
def test_converted_model_learns_to_tag_documents_longer_than_it_reads(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = converted("mlm", tmp_path, tokenizer, max_length=96, window=16)
    data = write_rows(tagged(), tmp_path / "data.jsonl")
    run = {"max_steps": 60, "learning_rate": 2e-2, "stride": 16, "max_length": 64}
    log = quick("tokens", model, tmp_path / "out", data, **run)
    assert log["packed"]
    assert log["metrics"]["after"]["f1"] > max(80.0, log["metrics"]["before"]["f1"])
    trained = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    assert trained.config.id2label == {0: "O", 1: "B-PLACE", 2: "B-THING"}


def test_tagging_scores_and_tags_do_not_depend_on_the_padding_side(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Decoders' tokenizers pad on the left, where logits would have been taken for other words' ones; a tag that only
    held-out documents have is one to learn; and a model that knows the tags keeps their numbers."""
    short = checkpoint("mlm", tmp_path / "right", tokenizer)
    names = ["B-PLACE", "O", "B-THING", "I-THING"]
    AutoModelForTokenClassification.from_pretrained(short, id2label=dict(enumerate(names))).save_pretrained(short)
    shutil.copytree(short, tmp_path / "left")
    change_json(tmp_path / "left", "tokenizer_config.json", padding_side="left", truncation_side="left")
    data = write_rows(tagged(8), tmp_path / "data.jsonl")
    held = write_rows(
        [*tagged(6), {"tokens": ["tree", "new"], "ner_tags": ["B-THING", "I-THING"]}], tmp_path / "held.jsonl"
    )
    logs = []
    for side in ("right", "left"):
        run = {"validation": held, "max_steps": 1, "max_length": 48, "per_device_eval_batch_size": 4, "stride": 8}
        logs.append(quick("tokens", tmp_path / side, tmp_path / f"{side}-out", data, **run))
    assert logs[0]["tags"] == logs[1]["tags"] == names
    assert logs[0]["metrics"] == logs[1]["metrics"]


def test_tagged_words_are_the_same_from_every_kind_of_file(tmp_path: Path) -> None:
    rows = tagged(3)
    lines = "".join(
        "-DOCSTART- -X- O\n\n" + "".join(f"{w} NN {t}\n\n" for w, t in zip(*row.values(), strict=True)) for row in rows
    )
    (tmp_path / "a.conll").write_text(lines)
    plain = "\n\n".join("\n".join(f"{w} {t}" for w, t in zip(*row.values(), strict=True)) for row in rows)
    (tmp_path / "b.conll").write_text(plain)
    names = ["O", "B-PLACE", "B-THING"]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    coded = [{**row, "ner_tags": [names.index(tag) for tag in row["ner_tags"]]} for row in rows]
    Dataset.from_list(coded, features=features).save_to_disk(str(tmp_path / "saved"))
    for source in (
        tmp_path / "a.conll",
        tmp_path / "b.conll",
        tmp_path / "saved",
        Path(write_rows(rows, tmp_path / "c.jsonl")),
    ):
        train, _ = read_tagged(TokenDataArguments(data=[str(source)], validation=str(source)), seed=0)
        assert train["words"][:] == [row["tokens"] for row in rows], source
        assert train["tags"][:] == [row["ner_tags"] for row in rows], source


def conll(path: Path, text: str) -> list[tuple[list[str], list[str]]]:
    """The words and tags of each document of a CoNLL file."""
    path.write_bytes(text.encode())
    data = tagged_rows(str(path), "train", TokenDataArguments.roles, {})
    return list(zip(data["words"], data["tags"], strict=True))


def test_conll_comments_are_no_words_and_hash_words_are(tmp_path: Path) -> None:
    file = tmp_path / "a.conll"
    mary = (["Mary", "lives"], ["B-PER", "O"])
    comments = ("# id 52\tdomain=en", "# sent_id = 1\n# text = Mary lives", "#newdoc", "# newdoc", "#", "# a b")
    for space in (" ", "\t", " _ _ "):
        body = f"Mary{space}B-PER\nlives{space}O\n"
        for comment in comments:
            assert conll(file, f"{comment}\n{body}\n{comment}\n{body}") == [mary, mary], (comment, space)
            assert conll(file, f"-DOCSTART- -X- O\n\n{comment}\n{body}\n{comment}\n") == [mary], (comment, space)
        for tag in ("O", "B-TAG"):  # also the first words of a sentence
            first = f"#{space}{tag}\n#go{space}{tag}\n{body}"
            assert conll(file, first) == [(["#", "#go", *mary[0]], [tag, tag, *mary[1]])], (space, tag)
        assert conll(file, f"{body}#{space}NEW\n") == [([*mary[0], "#"], [*mary[1], "NEW"])]


def test_conll_words_keep_white_space_that_separates_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.conll"
    for character in "\xa0\u2009\u3000\u2028\u2029\x85\x0b\x0c\x1c\x1e":
        for word in (character, f"10{character}000", f"a{character}"):
            for space in (" ", "\t"):
                for end in ("\n", "\r\n"):
                    text = end.join([f"Mary{space}B-PER", f"{word}{space}O", ""])
                    assert conll(file, text) == [(["Mary", word], ["B-PER", "O"])], repr(text)
    assert conll(file, "New York\tB-LOC\n \tO\na  b\tX\tO") == [(["New York", " ", "a  b"], ["B-LOC", "O", "O"])]
    assert conll(file, "Mary   NN    B-PER  \n \t\nlives V O") == [(["Mary"], ["B-PER"]), (["lives"], ["O"])]
    for wrong in ("Mary\tB-PER\nNew York\n", "Mary\tB-PER\nlives O\n", "Mary B-PER\rlives O\r"):
        with pytest.raises(DataError, match="has no tag"):
            conll(file, wrong)


def test_conll_empty_cells_move_no_columns(tmp_path: Path) -> None:
    mary = "Mary\tNNP\tB-PER\n"
    for wrong in ("runs\tVBZ\t", "runs\t\t", "runs\tVBZ\t ", "runs\tVBZ\t\t"):
        with pytest.raises(DataError, match=r"Line 2 .* has no tag"):
            conll(tmp_path / "a.conll", mary + wrong)
    for text, line in ((mary + "\tNNP\tB-PER", 2), ("Mary\tB-PER\n\tO\n", 2)):
        with pytest.raises(DataError, match=f"Line {line} .* has no word"):
            conll(tmp_path / "a.conll", text)
    assert conll(tmp_path / "a.conll", mary + "runs\t\tO\n\t\t\nit\t_\tO") == [
        (["Mary", "runs"], ["B-PER", "O"]),
        (["it"], ["O"]),
    ]


def test_conll_numbers_of_words_are_refused_and_numbers_are_words(tmp_path: Path) -> None:
    """As CoNLL-U, UNER and GermEval number them, from 0 or from 1."""
    file = tmp_path / "a.conll"
    for numbered in (
        "1 Im O\n2 Haus B-LOC\n3 1 O\n\n1 Ja O\n",
        "0 Im O\n1 Haus B-LOC\n\n0 Ja O\n",
        "1-2 Im _\n1 I O\n2 m O\n",
    ):
        for text in (numbered, numbered.replace(" ", "\t"), "# text = Im Haus\n" + numbered):
            with pytest.raises(DataError, match="numbers its words, as CoNLL-U does; write a word and its tag"):
                conll(file, text)
    assert conll(file, "1 CD\n2 CD\n3 CD\n") == [(["1", "2", "3"], ["CD"] * 3)]
    assert conll(file, "1 CD O\n2 CD O\n\nIt PR O\n") == [(["1", "2"], ["O", "O"]), (["It"], ["O"])]


def test_marks_of_conll_2012_documents_are_no_words(tmp_path: Path) -> None:
    text = "#begin document (x); part 000\nMary B-PER\n\nruns O\n#end document\n"
    assert conll(tmp_path / "a.conll", text * 2) == [(["Mary", "runs"], ["B-PER", "O"])] * 2


def test_tagging_refuses_files_words_and_tags_that_do_not_fit(tmp_path: Path) -> None:
    good = tagged(4)
    (tmp_path / "empty.conll").write_text("\n")

    (tmp_path / "a.ner").write_text("word O\n")
    cases = [
        (
            DataError,
            "Row 2 .* has 2 words and 1 tags; give a tag for every word",
            [write_rows([*good[:1], {"tokens": ["a", "b"], "ner_tags": ["O"]}], tmp_path / "2.jsonl")],
        ),
        (
            DataError,
            "All rows .* have the label 'O'",
            [write_rows([{"tokens": ["a"], "ner_tags": ["O"]}] * 3, tmp_path / "3.jsonl")],
        ),
        (DataError, "has no rows", [str(tmp_path / "empty.conll")]),
        (OptionError, "only one row", [write_rows(good[:1], tmp_path / "5.jsonl")]),
        (
            DataError,
            "Row 1 .* in the column 'ner_tags', no list of names or whole numbers",
            [write_rows([{"tokens": ["a"], "ner_tags": [0.5]}], tmp_path / "9.jsonl")],
        ),
        (
            DataError,
            "Row 2 .* no list of names",
            [write_rows([*good[:1], {"tokens": ["a", "b"], "ner_tags": ["O", ""]}], tmp_path / "10.jsonl")],
        ),
        (DataError, "no format that is read.*.conll, .iob, .bio", [str(tmp_path / "a.ner")]),
    ]
    for error, words, data in cases:
        with pytest.raises(error, match=words):
            read_tagged(TokenDataArguments(data=data), seed=0)


def test_words_and_tags_that_are_not_text_are_written_as_in_json(tmp_path: Path) -> None:
    cases = [
        ([True, "a"], [True, False], ["true", "a"], ["true", "false"]),
        ([1, 2.5], [0, 1.0], ["1", "2.5"], ["0", "1"]),
    ]
    for number, (words, tags, texts, names) in enumerate(cases):
        source = write_rows([{"tokens": words, "ner_tags": tags}], tmp_path / f"{number}.jsonl")
        train, _ = read_tagged(TokenDataArguments(data=[source], validation=source), seed=0)
        assert train[0] == {"words": texts, "tags": names}


def test_entity_kinds_of_the_validation_data_alone_are_refused(tmp_path: Path) -> None:
    def read(train: list[str], held_out: list[str], **settings: Any) -> Any:
        files = [
            write_rows([{"tokens": tags, "ner_tags": tags}], tmp_path / f"{tags}.jsonl") for tags in (train, held_out)
        ]
        return read_tagged(TokenDataArguments(data=files[:1], validation=files[1], **settings), seed=0)

    for train, held_out in (
        (["O", "B-PER"], ["O", "I-PER"]),
        (["B-A", "I-B"], ["O", "S-A", "B-B"]),
        (["NN", "VB"], ["VB"]),
    ):
        assert read(train, held_out)[1]["tags"][:] == [held_out]
    for train, held_out, new in (
        (["O", "B-PER"], ["B-LOC", "I-PER"], "LOC"),
        (["NN", "O"], ["NN", "VB", "ADJ"], "ADJ, VB"),
    ):
        with pytest.raises(DataError, match=f"has the labels {new}, but .*; write the same in both"):
            read(train, held_out)
        read(train, held_out, max_train_samples=1)


def test_tag_scores_read_iob1_data_in_their_scheme() -> None:
    """Of CoNLL-2003's own files, strict IOB2 would find no entity that begins with I-."""
    names, tags = ["O", "I-A", "B-A"], ["I-A", "I-A", "B-A", "O", "I-A"]
    rows = Dataset.from_list(
        [{"word_ids": list(range(5)), "labels": [names.index(tag) for tag in tags], "document": 0}]
    )
    scores = tag_scores(EvalPrediction([rows[0]["labels"]], None), rows, Dataset.from_list([{"tags": tags}]), names)
    assert [scores[name] for name in ("precision", "recall", "f1", "accuracy")] == [100.0] * 4


def test_a_word_longer_than_a_window_has_one_tag(tokenizer: PreTrainedTokenizerBase) -> None:
    names = ["O", "B-A", "E-A", "S-A"]
    document = {"words": ["tree", "x1" * 100, "node"], "tags": ["B-A", "E-A", "S-A"]}
    rows = to_windows(Dataset.from_list([document]), tokenizer, 24, 6, names)
    assert len(rows) > 5
    tagged = [
        (word, label)
        for row in rows
        for word, label in zip(row["word_ids"], row["labels"], strict=True)
        if label != IGNORED
    ]
    assert tagged == [(0, 1), (1, 2), (2, 3)]
    assert all(len(row["input_ids"]) <= 24 for row in rows)
    scores = tag_scores(EvalPrediction(rows["labels"], None), rows, Dataset.from_list([document]), names)
    assert scores["f1"] == 100
