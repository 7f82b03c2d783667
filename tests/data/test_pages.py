"""Pages: words with boxes from every shape of data, and the inputs that become of them, as transformers' own tools make them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import BertTokenizerFast, LayoutLMConfig, LayoutLMv2Tokenizer, LayoutLMv3Tokenizer, MarkupLMTokenizer
from transformers.models.layoutlmv2.image_processing_pil_layoutlmv2 import normalize_box
from transformers.pipelines.document_question_answering import DocumentQuestionAnsweringPipeline, ModelType

from hf_longattn.data.batching import DocumentCollator, TokenCollator, packed
from hf_longattn.data.documents import read_labelled_pages, to_page_documents
from hf_longattn.data.pages import encode_pages, page_columns, pages_of, with_context
from hf_longattn.data.qa_features import QAEncodingConfig, cut_question, encode_qa, pad_features
from hf_longattn.data.qa_inputs import QACollator
from hf_longattn.data.qa_schemas import load_qa
from hf_longattn.data.sources import DataError
from hf_longattn.data.words import read_words, tag_names, to_windows
from hf_longattn.errors import PageError

WORDS = ("invoice", "total", "of", "the", "house", "larkfield", "sum", "is", "12", "euros", "and", "paid")
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "what", "##s", "##field", "lark", ".", "?")
PAGE = {"bbox": 0}


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizerFast:
    return BertTokenizerFast(vocab={piece: number for number, piece in enumerate(PIECES)})


def word_boxes(count: int) -> list[list[int]]:
    return [[10 * number % 900, number, 10 * number % 900 + 50, number + 9] for number in range(count)]


def document(count: int = 60, seed: int = 0) -> dict[str, Any]:
    words = random.Random(seed).choices([*WORDS, "larkfields.", "totals"], k=count)
    return {"question": "what is the total ?", "words": words, "boxes": word_boxes(count), "answers": ["12 euros"]}


def write(rows: list[dict[str, Any]], path: Path) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def in_pages(row: dict[str, Any], cuts: tuple[int, int], *columns: str) -> dict[str, Any]:
    return {**row, **{name: [row[name][: cuts[0]], row[name][cuts[0] : cuts[1]], row[name][cuts[1] :]] for name in columns}}


def test_boxes_in_pixels_are_normalised_as_by_the_processors_of_transformers() -> None:
    row = {
        "words": [["a", "b"], ["c"]],
        "boxes": [[[10, 20, 333, 444], [0, 0, 1240, 1754]], [[7, 8, 99, 100]]],
        "page_sizes": [[1240, 1754], [99, 100]],
    }
    expected = [normalize_box(box, 1240, 1754) for box in row["boxes"][0]] + [normalize_box([7, 8, 99, 100], 99, 100)]
    assert pages_of(row).boxes == expected
    flat = {
        "words": ["a", "b", "c"],
        "bboxes": [*row["boxes"][0], *row["boxes"][1]],
        "pages": [3, 3, 4],
        "width": [1240, 99],
        "height": [1754, 100],
    }
    assert pages_of(flat).boxes == expected
    assert pages_of(flat).numbers == [3, 3, 4]
    single = {"words": ["a"], "bounding_boxes": [[10, 20, 333, 444]], "width": 1240, "height": 1754}
    assert pages_of(single).boxes == expected[:1]


def test_pages_in_lists_are_one_document_whose_boxes_start_anew() -> None:
    pages = pages_of({"words": [["a", "b"], ["c"]], "boxes": [[[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 3, 4]]]})
    assert pages.text == "a b c"
    assert pages.boxes == [[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]]
    assert pages.numbers == [0, 0, 1]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"words": ["a"], "boxes": [[0, 0, 1001, 5]]}, "Page 1 has the box .* from 0 to 1000"),
        ({"words": [["a"], ["b"]], "boxes": [[[0, 0, 1, 5]], [[-1, 0, 1, 5]]]}, "Page 2 has the box .* from 0 to 1000"),
        ({"words": ["a"], "boxes": [[50, 0, 20, 5]]}, "right side lies before its left one; give \\(left, top, right, bottom\\)"),
        ({"words": ["a"], "boxes": [[0, 9, 20, 5]]}, "bottom side lies before its top one"),
        ({"words": ["a"], "boxes": [[0, 0, 0.5, 1]]}, "whole numbers .* multiply sides from 0 to 1"),
        ({"words": ["a"], "boxes": [[0, 0, 5]]}, "must be four numbers"),
        ({"words": ["a", "b"], "boxes": [[0, 0, 5, 5]]}, "2 words have 1 boxes; give one for every word"),
        ({"words": [["a", "b"], ["c"]], "boxes": [[[0, 0, 5, 5]], [[0, 0, 5, 5]]]}, "Page 1 has 2 words and 1 boxes"),
        ({"words": [["a"]], "boxes": []}, "1 pages of words have 0 pages of boxes"),
        ({"words": [["a"], []], "boxes": [[[0, 0, 5, 5]], []]}, "Page 2 has no words; leave empty pages out"),
        ({"words": [], "boxes": []}, "It has no words"),
        ({"words": ["a", None], "boxes": [[0, 0, 5, 5]] * 2}, "Word 2 is empty"),
        ({"words": ["a", "b"], "boxes": [[0, 0, 5, 5]] * 2, "pages": [1]}, "Pages must be a list of 2 whole numbers"),
        ({"words": ["a", "b"], "boxes": [[0, 0, 5, 5]] * 2, "pages": [1, 0]}, "Word 2 is on page 0, after words of page 1; sort"),
        ({"words": ["a"], "boxes": [[0, 0, 500, 5]], "page_sizes": [[400, 400]]}, "Page 1 of 400 × 400 has the box"),
        ({"words": ["a"], "boxes": [[0, 0, 500, 5]], "page_sizes": [[400, 400]] * 2}, "on 1 pages, but page_sizes are"),
        ({"words": ["a"]}, "no words with boxes; give the columns 'words' and 'boxes'"),
        ({"words": ["a"], "xpaths": ["/html", "/html/b"]}, "1 nodes have 2 xpaths"),
    ],
)  # fmt: skip
def test_pages_that_cannot_be_read_are_a_sentence(row: dict[str, Any], words: str) -> None:
    with pytest.raises(PageError, match=words):
        pages_of(row)


def test_docvqa_rows_are_questions_whose_answers_are_found_in_the_words(tmp_path: Path) -> None:
    words = ["The", "total", "is", "12", "Euros", ".", "12", "euros", "again"]
    row = {"questionId": 7, "question": "what?", "words": words, "bounding_boxes": word_boxes(9), "answers": ["12 euros", "no such"]}
    (record,) = load_qa(write([row], tmp_path / "a.jsonl"))
    assert record["context"] == "The total is 12 Euros . 12 euros again"
    assert record["answers"] == {"text": ["12 Euros", "12 euros"], "answer_start": [13, 24]}
    assert (record["gold"], record["kind"], record["id"]) == (["12 euros", "no such"], "span", "7")
    assert (record["words"], record["boxes"], record["pages"]) == (words, word_boxes(9), [0] * 9)
    paged = in_pages({**row, "answer_page_idx": 2}, (3, 6), "words", "bounding_boxes")
    Dataset.from_list([paged]).to_parquet(str(tmp_path / "b.parquet"))
    Dataset.from_list([paged]).save_to_disk(str(tmp_path / "saved"))
    for source in ("b.parquet", "saved"):
        (record,) = load_qa(tmp_path / source)
        assert record["answers"] == {"text": ["12 euros"], "answer_start": [24]}
        assert record["pages"] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    placed = {**row, "answers": {"text": ["12 Euros"], "answer_start": [13]}}
    (record,) = load_qa(write([placed], tmp_path / "c.jsonl"))
    assert record["answers"] == {"text": ["12 Euros"], "answer_start": [13]}
    query = {name: value for name, value in row.items() if name != "question"} | {"query": {"en": "what?", "de": "was?"}}
    assert load_qa(write([query], tmp_path / "d.jsonl"))[0]["question"] == "what?"
    nodes = {"question": "what?", "words": ["the total", "is 12"], "xpaths": ["/html/p[1]", "/html/p[2]"], "answer": "12"}
    (record,) = load_qa(write([nodes], tmp_path / "e.jsonl"))
    assert record["xpaths"] == nodes["xpaths"]
    assert record["answers"] == {"text": ["12"], "answer_start": [13]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answers": ["a stone"]}, "The answer 'a stone' is not on the pages"),
        ({"answers": ["total"], "answer_page": 1}, "The answer 'total' is not on page 1"),
        ({"boxes": [[0, 0, 2000, 5]] * 3}, "from 0 to 1000"),
        ({"boxes": [[0, 0, 5, 5]]}, "3 words have 1 boxes"),
        ({"words": [], "boxes": []}, "It has no words"),
        ({"answers": {"text": ["total"], "answer_start": [1]}}, "The answer 'total' is not at character 1"),
    ],
)
def test_bad_questions_about_pages_are_a_sentence(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    row = {"question": "what?", "words": ["the", "total", "sum"], "boxes": word_boxes(3), "answers": ["total"]}
    source = write([row, {**row, **change}], tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=f"1 of 2 questions .*--skip-bad-rows. Row 2: .*{words}.*") as refused:
        load_qa(source)
    assert ".." not in str(refused.value)
    assert len(load_qa(source, skip_bad_rows=True)) == 1


def test_inputs_are_those_of_the_pipeline_of_transformers(tokenizer: BertTokenizerFast) -> None:
    """Ids, types and boxes of every window, as its document-question-answering pipeline feeds LayoutLM."""
    row = document(100)
    record = {**row, "context": " ".join(row["words"]), "answers": None}
    features = encode_qa(record, tokenizer, QAEncodingConfig(48, stride=16, token_columns=PAGE))
    pipe = SimpleNamespace(tokenizer=tokenizer, model_type=ModelType.LayoutLM, image_processor=None, feature_extractor=None)
    word_boxes_ = list(zip(row["words"], row["boxes"], strict=True))
    fed = DocumentQuestionAnsweringPipeline.preprocess(
        pipe, {"question": row["question"], "word_boxes": word_boxes_}, doc_stride=16, max_seq_len=48
    )  # type: ignore[arg-type]
    spans = list(fed)
    assert len(spans) == len(features) > 3
    for span, feature in zip(spans, features, strict=True):
        for name in ("input_ids", "token_type_ids", "bbox"):
            assert span[name][0].tolist() == feature.inputs[name], name


def test_text_and_spans_are_those_of_the_same_question_without_boxes(tokenizer: BertTokenizerFast) -> None:
    row = document(100)
    context = " ".join(row["words"])
    answers = {"text": ["larkfields."], "answer_start": [context.index("larkfields.")]}
    record = {**row, "context": context, "answers": answers}
    for form in (QAEncodingConfig(48, stride=16), QAEncodingConfig(400), QAEncodingConfig(48)):
        plain = encode_qa(record, tokenizer, form)
        placed = encode_qa(record, tokenizer, QAEncodingConfig(form.max_length, form.stride, token_columns=PAGE))
        assert len(plain) == len(placed)
        for left, right in zip(plain, placed, strict=True):
            assert {name: right.inputs[name] for name in left.inputs} == left.inputs
            assert (left.offsets, left.spans) == (right.offsets, right.spans)


@pytest.mark.parametrize("kind", ["layoutlmv2", "layoutlmv3", "markuplm"])
def test_tokenizers_with_boxes_or_paths_give_their_own_inputs(kind: str) -> None:
    tokenizer = page_tokenizer(kind)
    row = document(60)
    record: dict[str, Any] = {"question": row["question"], "context": " ".join(row["words"]), "words": row["words"]}
    record["answers"] = {"text": ["larkfield"], "answer_start": [record["context"].index("larkfield ")]}
    places = {"xpaths": [f"/html/p[{number}]" for number in range(60)]} if kind == "markuplm" else {"boxes": row["boxes"]}
    columns = {"xpath_tags_seq": 216, "xpath_subs_seq": 1001} if kind == "markuplm" else PAGE
    limits: dict[str, Any] = {"truncation": "only_second", "max_length": 64, "stride": 16, "return_overflowing_tokens": True}
    features = encode_qa({**record, **places}, tokenizer, QAEncodingConfig(64, stride=16, token_columns=columns))
    own = tokenizer(row["question"], row["words"], **places, **limits)
    assert len(own["input_ids"]) == len(features) > 1
    for number, feature in enumerate(features):
        for name in ("input_ids", *columns):
            assert list(own[name][number]) == feature.inputs[name], name
        for start, end in filter(None, feature.offsets):
            assert 0 <= start <= end <= len(record["context"])
    starts = [feature for feature in features if feature.start]
    assert starts
    for feature in starts:
        first, last = feature.offsets[feature.start], feature.offsets[feature.end]
        assert first is not None
        assert last is not None
        assert record["context"][first[0] : last[1]] == "larkfield"
    assert len(cut_question("what is the total " * 30, tokenizer, 8)) < 40


def page_tokenizer(kind: str) -> Any:
    if kind == "layoutlmv2":
        return LayoutLMv2Tokenizer(vocab={piece: number for number, piece in enumerate(PIECES)})
    characters = [*map(chr, range(33, 127)), "Ġ"]
    vocab = {piece: number for number, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *characters])}
    if kind == "layoutlmv3":
        return LayoutLMv3Tokenizer(vocab=vocab, merges=[])
    return MarkupLMTokenizer(vocab=vocab, merges=[], tags_dict={"html": 0, "p": 1})


def test_batches_pad_boxes_with_nothing_and_pack_them(tokenizer: BertTokenizerFast) -> None:
    records = [{**document(count), "answers": None} for count in (20, 9)]
    features = [encode_qa(with_context(record), tokenizer, QAEncodingConfig(99, token_columns=PAGE))[0] for record in records]
    batch = pad_features(features, {"input_ids": 0, "bbox": 0})
    rows = [{**feature.inputs, "starts": [0], "ends": [0], "kinds": 0, "length": len(feature)} for feature in features]
    collated = QACollator(tokenizer, token_columns=PAGE)([{**row, "attention_mask": [1] * row["length"]} for row in rows])
    for name in ("input_ids", "bbox", "attention_mask", "token_type_ids"):
        assert collated[name].tolist() == batch[name].tolist(), name
    assert batch["bbox"].shape == (2, len(features[0]), 4)
    assert not batch["bbox"][1, len(features[1]) :].any()
    row = packed([feature.inputs for feature in features])
    assert row["bbox"].shape == (1, sum(map(len, features)), 4)
    left = BertTokenizerFast(vocab=tokenizer.get_vocab(), padding_side="left")
    tokens = [{**feature.inputs, "labels": [0] * len(feature)} for feature in features]
    on_the_left = TokenCollator(left, token_columns=PAGE)(tokens)
    assert not on_the_left["bbox"][1, : len(features[0]) - len(features[1])].any()
    assert on_the_left["bbox"][1, -len(features[1]) :].tolist() == features[1].inputs["bbox"]


def test_words_of_funsd_are_tagged_with_their_boxes(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    """As LayoutLMv2's tokenizer labels words (``word_labels``), with the boxes that it gives them but for the separator's."""
    tags = ["B-QUESTION", "O", "B-ANSWER"]
    row = {"words": ["total", "of", "larkfields.", "12", "euros"] * 12, "bboxes": word_boxes(60)}
    row["ner_tags"] = [tags[number % 3] for number in range(60)]
    data = read_words(
        write([row, in_pages(row, (20, 50), "words", "bboxes", "ner_tags")], tmp_path / "a.jsonl"), "train", "words", "ner_tags", "bboxes"
    )
    assert data[0]["boxes"] == data[1]["boxes"] == row["bboxes"]
    assert data[0]["tags"] == data[1]["tags"] == row["ner_tags"]
    names = tag_names(data)
    windows = to_windows(data, tokenizer, 40, 8, names, ("bbox",))
    own = page_tokenizer("layoutlmv2")(
        [row["words"]], boxes=[row["bboxes"]], word_labels=[[names.index(tag) for tag in row["ner_tags"]]], truncation=True, max_length=40,
        stride=8, return_overflowing_tokens=True,
    )  # fmt: skip
    first = [window for window in windows if window["document"] == 0]
    assert len(first) == len(own["input_ids"]) > 2
    separator = tokenizer.sep_token_id
    for number, window in enumerate(first):
        assert window["input_ids"] == own["input_ids"][number]
        assert window["bbox"] == own["bbox"][number]
        assert window["bbox"][window["input_ids"].index(separator)] == [1000] * 4
        if number == 0:
            assert window["labels"] == own["labels"][number]
    assert read_words(str(tmp_path / "a.jsonl"), "train", None, "ner_tags", "bboxes")[0]["words"] == row["words"]
    with pytest.raises(DataError, match=r"not 'tokens'; name one with --words-column\.$"):
        read_words(str(tmp_path / "a.jsonl"), "train", "tokens", "ner_tags", "bboxes")
    with pytest.raises(DataError, match=r"Row 1 of .*: 60 words have 59 boxes"):
        read_words(write([{**row, "bboxes": word_boxes(59)}], tmp_path / "b.jsonl"), "train", "words", "ner_tags", "bboxes")
    with pytest.raises(DataError, match="not 'boxes'"):
        read_words(str(tmp_path / "a.jsonl"), "train", "words", "ner_tags", "boxes")
    with pytest.raises(DataError, match="has no boxes of its words"):
        read_words(str(tmp_path / "a.conll"), "train", "words", "ner_tags", "bboxes")


def test_a_model_says_what_it_reads_of_pages() -> None:
    assert page_columns(LayoutLMConfig()) == PAGE
    assert page_columns(None) == {}


def test_a_record_of_words_becomes_one_with_a_context(tokenizer: BertTokenizerFast) -> None:
    row = with_context({"question": "what?", "words": [["a", "b"], ["c"]], "boxes": [word_boxes(2), word_boxes(1)]})
    assert (row["context"], row["words"], row["pages"]) == ("a b c", ["a", "b", "c"], [0, 0, 1])
    text = {"question": "what?", "context": "a"}
    assert with_context(text) is text
    encoded = encode_pages(row, "what ?", tokenizer, return_tensors="pt")
    assert encoded["bbox"].dtype == torch.long


def test_windows_of_words_are_those_of_text(tokenizer: BertTokenizerFast) -> None:
    from hf_longattn.data.tokenization import word_windows

    rows = [document(50, seed)["words"] for seed in (1, 2)]
    plain = word_windows(rows, tokenizer, 32, 8)
    placed = word_windows(rows, tokenizer, 32, 8, [word_boxes(50)] * 2)
    assert {name: placed[0][name] for name in plain[0]} == plain[0]
    assert placed[1:] == plain[1:]


def test_pages_to_classify_are_the_example_of_layoutlm(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    """Tokens and boxes of transformers' example of LayoutLMForSequenceClassification; a longer page is cut, and pads lie nowhere."""
    rows = [{"words": document(count)["words"], "bboxes": document(count)["boxes"], "label": name} for count, name in ((9, "a"), (40, "b"))]
    data = read_labelled_pages(write(rows, tmp_path / "rows.jsonl"), "train", "words", "bboxes", "label")
    inputs = to_page_documents(data, tokenizer, 30, ["a", "b"], ("bbox",))
    tokens: list[str] = []
    token_boxes: list[list[int]] = []
    for word, box in zip(rows[0]["words"], rows[0]["bboxes"], strict=True):  # as in the example
        word_tokens = tokenizer.tokenize(word)
        tokens.extend(word_tokens)
        token_boxes.extend([box] * len(word_tokens))
    token_boxes = [[0, 0, 0, 0], *token_boxes, [1000, 1000, 1000, 1000]]
    assert (
        inputs[0]["input_ids"]
        == tokenizer(" ".join(rows[0]["words"]))["input_ids"]
        == tokenizer.convert_tokens_to_ids(["[CLS]", *tokens, "[SEP]"])
    )
    assert inputs[0]["bbox"] == token_boxes
    assert (inputs[1]["length"], inputs[1]["document"] > 30, inputs[1]["input_ids"][-1]) == (30, True, tokenizer.sep_token_id)
    assert inputs[1]["bbox"][-1] == [1000] * 4
    batch = DocumentCollator(tokenizer, token_columns=PAGE)([inputs[0], inputs[1]])
    assert batch["bbox"].shape == (2, 30, 4)
    assert not batch["bbox"][0, inputs[0]["length"] :].any()
    in_a_row = DocumentCollator(tokenizer, pack=True, token_columns=PAGE)([inputs[0], inputs[1]])
    assert in_a_row["bbox"][0].tolist() == [*inputs[0]["bbox"], *inputs[1]["bbox"]]
