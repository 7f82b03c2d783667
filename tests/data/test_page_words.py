"""A page's words and their boxes or paths become what transformers' own tokenizers and documented examples make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerBase

from hf_longattn.data.page_words import page_encoding, plain_boxes, text_encoding, word_argument
from hf_longattn.data.tokenization import special_ids
from hf_longattn.errors import PageError
from hf_longattn.hub.usage import snippet
from hf_longattn.inputs.common.examples import tokenizer_words
from hf_longattn.inputs.text import token_ids
from tests.byte_tokenizer import train_tokenizer
from tests.cells import every_cell

WORDS = ["Payment", "of", "the", "invoice", "12345", "is", "due", "by", "the", "end", "of", "June"]
BOXES = [[10 * word, 20, 10 * word + 9, 40] for word in range(len(WORDS))]
TAGS = {"html": 0, "body": 1, "p": 2, "span": 3, "li": 4}
BYTE_PIECES = train_tokenizer([" ".join(WORDS)] * 3, 300)
VOCABULARY = json.loads(BYTE_PIECES.backend_tokenizer.to_str())["model"]["vocab"]
OF_PAGES = ("LayoutLMv2Tokenizer", "LayoutLMv3Tokenizer", "MarkupLMTokenizer")
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    extra = {"tags_dict": TAGS} if name == "MarkupLMTokenizer" else {}
    tokenizer_class: Any = getattr(transformers, name)
    merges = {} if name == "LayoutLMv2Tokenizer" else {"merges": []}
    return tokenizer_class(vocab=VOCABULARY, model_max_length=64, **merges, **SPECIAL, **extra)


@pytest.mark.parametrize("name", OF_PAGES[:2])
@pytest.mark.parametrize("question", [None, "Which invoice is due?"])
def test_tokenizers_with_boxes_are_called_as_transformers_documents(name: str, question: str | None) -> None:
    tokenizer = tokenizer_of(name)
    expected = tokenizer(*([] if question is None else [question]), WORDS, boxes=BOXES)
    encoding = page_encoding(tokenizer, WORDS, BOXES, question=question)
    assert dict(encoding) == dict(expected)
    assert [list(row) for row in encoding["bbox"] if list(row) in BOXES]


def test_a_tokenizer_with_paths_is_called_as_transformers_documents() -> None:
    tokenizer = tokenizer_of("MarkupLMTokenizer")
    paths = [f"/html/body/p[{word}]" for word in range(len(WORDS))]
    encoding = page_encoding(tokenizer, WORDS, paths, question="Which?", return_tensors="pt")
    expected = tokenizer("Which?", WORDS, xpaths=paths, return_tensors="pt")
    assert all(torch.equal(encoding[name], expected[name]) for name in expected)
    assert encoding["xpath_tags_seq"].shape == encoding["xpath_subs_seq"].shape == (*encoding["input_ids"].shape, 50)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("question", [None, "Which invoice?"])
def test_to_other_tokenizers_boxes_are_added_as_in_the_example_of_layoutlm(kind: str, question: str | None) -> None:
    """``bbox`` of transformers' LayoutLMForQuestionAnswering: the box of the word, 1000 for the separator, 0 for everything else."""
    if kind == "bytes":
        tokenizer: Any = BYTE_PIECES
    else:
        tokenizer = transformers.BertTokenizer(
            vocab={**VOCABULARY, **{word: len(VOCABULARY) + n for n, word in enumerate({*WORDS})}}, **SPECIAL
        )
    encoding = page_encoding(tokenizer, WORDS, BOXES, question=question, return_tensors="pt")
    page = 0 if question is None else 1
    for place, (token, word, text) in enumerate(
        zip(encoding["input_ids"][0].tolist(), encoding.word_ids(0), encoding.sequence_ids(0), strict=True)
    ):
        expected = BOXES[word] if text == page else [1000 * (token == tokenizer.sep_token_id)] * 4
        assert encoding["bbox"][0, place].tolist() == expected
    body = [token for token, text in zip(encoding["input_ids"][0].tolist(), encoding.sequence_ids(0), strict=True) if text == page]
    read = tokenizer.decode(body)
    assert read.split() == WORDS or kind == "pieces"


@pytest.mark.parametrize("name", [*OF_PAGES[:2], None])
def test_windows_of_a_long_page_have_the_boxes_of_their_own_words(name: str | None) -> None:
    tokenizer = BYTE_PIECES if name is None else tokenizer_of(name)
    cut: Any = {"truncation": "only_second", "max_length": 30, "stride": 4, "return_overflowing_tokens": True}
    windows = page_encoding(tokenizer, WORDS * 8, BOXES * 8, question="Which?", **cut)
    assert len(windows["input_ids"]) == len(windows["bbox"]) > 2
    for row, boxes in enumerate(windows["bbox"]):
        places = zip(windows.word_ids(row), windows.sequence_ids(row), boxes, strict=True)
        assert all(list(box) == BOXES[word % len(WORDS)] for word, text, box in places if text == 1)


@pytest.mark.parametrize("name", OF_PAGES)
def test_text_alone_is_read_as_a_plain_page(name: str) -> None:
    tokenizer, text = tokenizer_of(name), " ".join(WORDS)
    assert token_ids(tokenizer, text) == page_encoding(tokenizer, WORDS)["input_ids"] == text_encoding(tokenizer, text)["input_ids"]
    assert special_ids(tokenizer) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    assert token_ids(tokenizer, text, special_tokens=False) == token_ids(tokenizer, text)[1:-1]


def test_text_of_other_tokenizers_is_read_as_it_is() -> None:
    assert dict(text_encoding(BYTE_PIECES, "two  spaces")) == dict(BYTE_PIECES("two  spaces"))


def test_plain_boxes_start_anew_with_each_page() -> None:
    boxes = torch.tensor(plain_boxes(1001))
    assert torch.equal(boxes[:501], boxes[500:])
    assert 0 <= boxes.min() <= boxes.max() <= 1000
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(set(map(tuple, boxes[:500].tolist()))) == 500


@every_cell("name", ["LayoutLMv3Tokenizer", None])
@every_cell(
    ("words", "boxes", "sentence"),
    [
        ([], [], "The page has no words; read it with OCR"),
        ("  ", None, "The page has no words"),
        (["", " "], [[0, 0, 1, 1]] * 2, "The page has no words"),
        (["a", "b"], [[0, 0, 1, 1]], "The page has 2 words, but 1 boxes; give one box for every word"),
        (["a"], [[0, 0, 1001, 1]], r"boxes has the box \[0, 0, 1001, 1\], but sides lie from 0 to 1000; divide pixels by"),
        (["a"], [[-1, 0, 1, 1]], "but sides lie from 0 to 1000"),
        (["a"], [[5, 0, 4, 1]], r"whose right side lies before its left one; give \(left, top, right, bottom\)"),
        (["a"], [[0, 9, 4, 1]], "whose bottom side lies before its top one"),
        (["a"], [[0.5, 0, 4, 1]], r"The box \[0.5, 0, 4, 1\] is not four whole numbers"),
        (["a"], [[0, 0, 4]], "is not four whole numbers"),
        (["a"], ["/html/p"], r"The words have XPaths, but this model reads boxes \(\w+\); take a MarkupLM for them"),
    ],
)
def test_pages_that_cannot_be_read_are_refused(name: str | None, words: Any, boxes: Any, sentence: str) -> None:
    with pytest.raises(PageError, match=sentence):
        page_encoding(BYTE_PIECES if name is None else tokenizer_of(name), words, boxes)


def test_boxes_for_a_model_of_paths_are_refused() -> None:
    with pytest.raises(PageError, match=r"The words have boxes, but this model reads XPaths \(MarkupLMTokenizer\); take a LayoutLM"):
        page_encoding(tokenizer_of("MarkupLMTokenizer"), ["a"], [[0, 0, 1, 1]])


@every_cell("name", OF_PAGES)
@every_cell("head", ["LiltForQuestionAnswering", "MarkupLMForTokenClassification", "LiltModel"])
def test_the_example_of_a_card_calls_the_tokenizer_as_it_wants_to_be_called(tmp_path: Path, name: str, head: str) -> None:
    tokenizer = tokenizer_of(name)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_words(tmp_path) == word_argument(tokenizer)
    code = snippet(tmp_path, {"architectures": [head]}, "name", 64, {})
    assert code is not None
    lines = [line for line in code.splitlines() if line.startswith(("question =", "document =", "inputs ="))]
    names: dict[str, Any] = {"tokenizer": tokenizer}
    exec("\n".join(lines), names)  # the lines of the card that read a text
    assert names["inputs"]["input_ids"].shape == (1, 64)


@pytest.mark.parametrize("head", ["LiltForQuestionAnswering", "LiltForTokenClassification", "LiltForSequenceClassification"])
def test_the_example_of_a_card_of_lilt_reads_words_with_their_boxes(head: str, tmp_path: Path) -> None:
    code = snippet(tmp_path, {"architectures": [head], "long_attention": {"mechanism": "full"}}, "name", 64, {})
    assert code is not None
    names: dict[str, Any] = {"tokenizer": BYTE_PIECES, "torch": torch}
    exec(code.partition(".eval()\n")[2].partition("with torch")[0], names)  # the lines of the card that read a page
    places = {"question": names.get("question"), "truncation": "only_second" if "question" in names else True}
    expected = page_encoding(BYTE_PIECES, names["words"], names["boxes"], **places, max_length=64, return_tensors="pt")
    assert all(torch.equal(names["inputs"][name], expected[name]) for name in ("input_ids", "bbox"))
