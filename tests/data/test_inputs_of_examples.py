"""What models are trained on is what transformers' examples feed, for every kind of tokenizer and every task.

The statements here are independent of the package: they say what ``run_ner``, ``run_mlm``, ``run_clm``, ``run_qa``,
``run_summarization`` and ``run_classification`` (transformers, examples/pytorch) do with a text, and what
sentence-transformers reads. The package goes on where the examples stop: windows for documents that they cut, the end
token after a document where the tokenizer adds nothing, the tokens that are left over at the end, several right
answers.
"""

from __future__ import annotations

import functools
import random
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_longattn.conversion.tokenizer import token_ids
from hf_longattn.data.batching import DataCollatorForPackedText, RepeatableMasks
from hf_longattn.data.qa_features import qa_rows
from hf_longattn.data.tokenization import IGNORED, for_words, reads_words, special_ids, text_encoding, to_inputs
from hf_longattn.data.tokenization import to_documents as to_whole_documents
from hf_longattn.training.tasks.classify import encode_documents
from hf_longattn.training.tasks.embed import (
    EmbedDataArguments,
    EmbedModelArguments,
    EmbedTrainingArguments,
    embedding_trainer,
)
from hf_longattn.training.tasks.seq2seq import to_summaries
from hf_longattn.training.tasks.tokens import to_windows
from hf_longattn.training.trainer import row_lengths
from scripts.dev.tools.small_models import Shape, small_config
from tests.cases import every_case
from tests.trained import REAL_TEXT, tokenizer_of

KINDS = (
    "wordpiece",
    "bytes",
    "bytes-framed",
    "bytes-prefixed",
    "bytes-bos",
    "metaspace",
    "metaspace-bos",
    "unigram",
    "unigram-end",
)
CLASSES = {
    "wordpiece": "bert",
    "bytes": "gpt2",
    "bytes-framed": "roberta",
    "unigram": "xlm-roberta",
    "unigram-end": "t5",
}
"""Kinds that are a class of transformers."""
RUN_NER_PREFIXES = ("bytes", "bytes-framed", "bytes-prefixed")
"""Kinds that ``run_ner`` loads with ``add_prefix_space=True``: those of GPT-2 and RoBERTa."""
LLAMA_3 = Regex(
    r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3's tokenizer splits a text before its byte-level pieces."""


@functools.cache
def folder_of(kind: str, parent: Path) -> str:
    """A folder with the tokenizer, which pads and masks, for every test of a session."""
    folder = parent / kind
    if kind == "bytes-prefixed":
        tokenizer = AutoTokenizer.from_pretrained(folder_of("bytes-framed", parent), add_prefix_space=True)
    else:
        tokenizer = tokenizer_of(CLASSES[kind]) if kind in CLASSES else made(kind)
    missing = {f"{name}_token": f"<{name}>" for name in ("pad", "mask") if getattr(tokenizer, f"{name}_token") is None}
    tokenizer.add_special_tokens(missing)
    tokenizer.save_pretrained(folder)
    return str(folder)


def load(kind: str, parent: Path) -> PreTrainedTokenizerBase:
    """A tokenizer of its own, which a test may change."""
    return AutoTokenizer.from_pretrained(folder_of(kind, parent))


def made(kind: str) -> PreTrainedTokenizerBase:
    """Byte-level BPE split as in Llama 3 with a first token, or SentencePiece-like BPE with and without one, as in
    Llama 2."""
    special = ["<s>", "</s>"]
    if kind == "bytes-bos":
        tokenizer, alphabet = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
        split = pre_tokenizers.Split(LLAMA_3, "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer, alphabet = Tokenizer(models.BPE(unk_token="<unk>")), sorted(set(REAL_TEXT))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        special.append("<unk>")
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(REAL_TEXT.splitlines(), trainer)
    if kind.endswith("-bos"):
        first = [("<s>", 0)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=first
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def word_ids(word: str, tokenizer: PreTrainedTokenizerBase, kind: str) -> list[int]:
    """The tokens of a word inside a text: byte-level pieces begin with its space."""
    text = f" {word}" if kind.startswith("bytes") else word
    return tokenizer(text, add_special_tokens=False)["input_ids"]


SENTENCES = [line for line in REAL_TEXT.splitlines() if len(line.split()) > 5]
TEXTS = [" ".join(SENTENCES[first : first + size]) for first, size in ((0, 3), (3, 1), (4, 12), (20, 2))]
LENGTH = 40


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tokenizer(kind: str, folders: Path) -> PreTrainedTokenizerBase:
    return load(kind, folders)


# ---- run_ner


def tagged() -> list[dict[str, Any]]:
    """Documents of different length, words with and without tags."""
    choose = random.Random(0)
    documents = [[word.strip(".,;()") or "." for word in text.split()] for text in TEXTS]
    return [{"words": words, "tags": choose.choices(["O", "B-PER", "I-PER"], k=len(words))} for words in documents]


NAMES = ["O", "B-PER", "I-PER"]


def test_tagged_words_have_ids_of_running_text_and_label_first_pieces(
    kind: str, tokenizer: PreTrainedTokenizerBase, folders: Path
) -> None:
    before, after = special_ids(tokenizer)
    data = Dataset.from_list(tagged())
    rows = to_windows(data, for_words(tokenizer, folder_of(kind, folders)), 10_000, 0, NAMES)
    for row, document in zip(rows, data, strict=True):
        pieces = [word_ids(word, tokenizer, kind) for word in document["words"]]
        labels = [
            [NAMES.index(tag), *[IGNORED] * (len(ids) - 1)] for tag, ids in zip(document["tags"], pieces, strict=True)
        ]
        assert row["input_ids"] == [*before, *chain.from_iterable(pieces), *after]
        assert row["labels"] == [*[IGNORED] * len(before), *chain.from_iterable(labels), *[IGNORED] * len(after)]


def test_first_window_of_tagged_words_is_that_of_run_ner(
    kind: str, tokenizer: PreTrainedTokenizerBase, folders: Path
) -> None:
    if kind == "bytes-bos":
        pytest.skip("run_ner reads the words of such a tokenizer as if there were no spaces between them")
    document = tagged()[2]
    prefix = {"add_prefix_space": True} if kind in RUN_NER_PREFIXES else {}
    theirs = AutoTokenizer.from_pretrained(folder_of(kind, folders), **prefix)
    expected = theirs(document["words"], truncation=True, max_length=LENGTH, is_split_into_words=True)
    labels, previous = [], None
    for word in expected.word_ids():
        labels.append(NAMES.index(document["tags"][word]) if word is not None and word != previous else IGNORED)
        previous = word
    first = to_windows(
        Dataset.from_list([document]), for_words(tokenizer, folder_of(kind, folders)), LENGTH, 8, NAMES
    )[0]
    assert (first["input_ids"], first["labels"]) == (expected["input_ids"], labels)


@every_case("stride", [0, 1, 7])
def test_windows_of_tagged_words_cover_the_document_with_its_labels(
    stride: int, kind: str, tokenizer: PreTrainedTokenizerBase, folders: Path
) -> None:
    """Every token of the document is in some window, and no piece but a word's first has a label, also where a window
    begins with it."""
    tokenizer = for_words(tokenizer, folder_of(kind, folders))
    before, after = special_ids(tokenizer)
    data = Dataset.from_list(tagged())
    windows = to_windows(data, tokenizer, LENGTH, stride, NAMES)
    for number, whole in enumerate(to_windows(data, tokenizer, 10_000, 0, NAMES)):
        inner = slice(len(before), len(whole["labels"]) - len(after))
        expected = list(zip(whole["input_ids"][inner], whole["labels"][inner], strict=True))
        found: list[tuple[int, int]] = []
        for row in windows.filter(lambda row, number=number: row["document"] == number):
            body = slice(len(before), len(row["labels"]) - len(after))
            part = list(zip(row["input_ids"][body], row["labels"][body], strict=True))
            assert found == [] or found[-stride:] == part[:stride] or stride == 0
            found += part[stride if found else 0 :]
        assert found == expected


def test_saved_tokenizer_reads_words_as_training_did(
    kind: str, tokenizer: PreTrainedTokenizerBase, folders: Path, tmp_path: Path
) -> None:
    chosen = for_words(tokenizer, folder_of(kind, folders))
    chosen.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert reads_words(again, tokenizer) == (kind != "bytes-bos")
    assert again.pad_token == tokenizer.pad_token


# ---- run_mlm, run_clm


def example_stream(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """run_mlm and run_clm: each text as the tokenizer frames it, one after the other; and the end token where nothing
    ends it."""
    framed = tokenizer(texts)["input_ids"]
    end = tokenizer.eos_token_id
    ends = tokenizer("")["input_ids"][-1:] == framed[0][-1:] and len(special_ids(tokenizer)[1]) > 0
    return [token for ids in framed for token in (ids if ends else [*ids, end])]


@every_case("pack", [False, True])
def test_text_is_cut_as_in_run_mlm_and_run_clm(pack: bool, tokenizer: PreTrainedTokenizerBase) -> None:
    stream = example_stream(TEXTS, tokenizer)
    rows = to_inputs(Dataset.from_dict({"text": TEXTS}), tokenizer, LENGTH, pack)
    whole = len(stream) // LENGTH
    assert rows["input_ids"][:whole] == [stream[LENGTH * number : LENGTH * (number + 1)] for number in range(whole)]
    assert rows["input_ids"][whole:] in ([stream[LENGTH * whole :]], [])
    if pack:
        numbers = [number for number, text in enumerate(TEXTS) for _ in example_stream([text], tokenizer)]
        assert list(chain.from_iterable(rows["documents"])) == numbers[: sum(map(len, rows["input_ids"]))]


def test_training_texts_begin_as_in_inference(kind: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """With the first token (BOS, CLS) that the tokenizer puts there; segments of a document are cut from the same
    tokens."""
    rows = to_inputs(Dataset.from_dict({"text": TEXTS}), tokenizer, LENGTH, True)
    begins = {
        "bytes-bos": tokenizer.bos_token_id,
        "metaspace-bos": tokenizer.bos_token_id,
        "wordpiece": tokenizer.cls_token_id,
    }
    documents = to_whole_documents(Dataset.from_dict({"text": TEXTS}), tokenizer)["input_ids"]
    for number, text in enumerate(TEXTS):
        ids = [
            token
            for row in rows
            for token, document in zip(row["input_ids"], row["documents"], strict=True)
            if document == number
        ]
        inference = tokenizer(text)["input_ids"]
        assert ids[: len(inference)] == inference
        assert ids[0] == begins.get(kind, ids[0])
        assert documents[number][: len(ids)] == ids


def test_masked_tokens_are_those_of_run_mlm(tokenizer: PreTrainedTokenizerBase) -> None:
    """15 % of the tokens that are not special: 80 % of them masked, 10 % replaced, 10 % kept; labels are the ids, and
    -100 elsewhere."""
    rows = to_inputs(Dataset.from_dict({"text": TEXTS * 20}), tokenizer, LENGTH).to_list()
    batch = RepeatableMasks(tokenizer, seed=0)(rows)
    original = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row["input_ids"]) for row in rows], batch_first=True, padding_value=tokenizer.pad_token_id
    )
    chosen = batch["labels"] != IGNORED
    special = torch.isin(original, torch.tensor(tokenizer.all_special_ids))
    assert not (chosen & special).any()
    assert torch.equal(batch["labels"][chosen], original[chosen])
    assert torch.equal(batch["input_ids"][~chosen], original[~chosen])
    shares = {
        "chosen": float(chosen.sum() / (~special).sum()),
        "masked": float((batch["input_ids"][chosen] == tokenizer.mask_token_id).float().mean()),
        "kept": float((batch["input_ids"][chosen] == original[chosen]).float().mean()),
    }
    assert shares == pytest.approx({"chosen": 0.15, "masked": 0.8, "kept": 0.1}, abs=0.05)


@every_case("pad_with_end", [False, True])
def test_next_token_labels_are_those_of_run_clm(pad_with_end: bool, tokenizer: PreTrainedTokenizerBase) -> None:
    """Labels are the ids, the end token's, too, where it pads as well; padding has none. Packed, no text predicts
    another."""
    if pad_with_end:
        if tokenizer.eos_token is None:
            pytest.skip("no end token")
        tokenizer.pad_token = tokenizer.eos_token
    rows = to_inputs(Dataset.from_dict({"text": TEXTS}), tokenizer, LENGTH, True)
    batch = RepeatableMasks(tokenizer, mlm=False)(rows.select_columns(["input_ids"]).to_list())
    for ids, labels, original in zip(batch["input_ids"], batch["labels"], rows["input_ids"], strict=True):
        real = slice(len(ids) - len(original), None) if tokenizer.padding_side == "left" else slice(0, len(original))
        assert ids[real].tolist() == labels[real].tolist() == original
        assert int((labels != IGNORED).sum()) == len(original)
    packed = DataCollatorForPackedText(tokenizer, mlm=False)(rows.to_list())
    starts = [
        0,
        *[
            at
            for at in range(1, packed["documents"].shape[1])
            if packed["documents"][0, at] != packed["documents"][0, at - 1]
        ],
    ]
    assert (packed["labels"] == IGNORED).nonzero()[:, 1].tolist() == starts


@every_case("length", [1, 2, 3, 5])
def test_masking_leaves_a_short_batch_a_token_to_predict(length: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """The mean over no label is not a number."""
    ids = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"][:length]
    for seed in range(20):
        labels = RepeatableMasks(tokenizer, seed=seed)([{"input_ids": ids}])["labels"]
        assert int((labels != IGNORED).sum()) >= 1


def test_leftover_tokens_are_kept_if_they_hold_a_token_to_predict(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = example_stream(TEXTS[:1], tokenizer)
    for length in range(len(stream) - 4, len(stream)):
        rows = to_inputs(Dataset.from_dict({"text": TEXTS[:1]}), tokenizer, length)["input_ids"][:]
        rest = stream[length:]
        predictable = len(rest) > 1 and not set(rest) <= set(tokenizer.all_special_ids)
        assert rows == ([stream[:length], rest] if predictable else [stream[:length]])


# ---- run_qa


def questions() -> list[dict[str, Any]]:
    """Answers at the beginning, in the middle and at the end of short and long documents, and a question without
    one."""
    rows = []
    for number, text in enumerate(TEXTS):
        words = text.split()
        for place in (0, len(words) // 2, len(words) - 1):
            start = len(" ".join(words[:place])) + (place > 0)
            answer = {"text": [words[place]], "answer_start": [start]}
            rows.append({"question": f"  What is word {place}? ", "context": text, "answers": answer})
        rows.append({"question": f"Who is {number}?", "context": text, "answers": {"text": [], "answer_start": []}})
    return rows


def run_qa(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, length: int, stride: int
) -> list[tuple[list[int], int, int]]:
    """prepare_train_features: ids, first and last token of the answer, each that of "no answer" where it is not in the
    window."""
    encoded = tokenizer(
        row["question"].lstrip(),
        row["context"],
        truncation="only_second",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    features = []
    for window, ids in enumerate(encoded["input_ids"]):
        offsets, sequence = encoded["offset_mapping"][window], encoded.sequence_ids(window)
        firsts = [ids.index(token) for token in (tokenizer.cls_token_id, tokenizer.bos_token_id) if token in ids]
        first, last = sequence.index(1), len(sequence) - 1 - sequence[::-1].index(1)
        null = firsts[0] if firsts else 0
        start_end = null, null
        if row["answers"]["text"]:
            begin = row["answers"]["answer_start"][0]
            end = begin + len(row["answers"]["text"][0])
            if offsets[first][0] <= begin and offsets[last][1] >= end:
                start = max(at for at in range(first, last + 1) if offsets[at][0] <= begin)
                stop = min(at for at in range(first, last + 1) if offsets[at][1] >= end)
                start_end = start, stop
        features.append((ids, *start_end))
    return features


@every_case(("length", "stride"), [(1000, 16), (40, 8)])
def test_question_features_are_those_of_run_qa(length: int, stride: int, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = questions()
    records = [
        {"id": str(number), "title": "", "kind": "span" if row["answers"]["text"] else "none", **row}
        for number, row in enumerate(rows)
    ]
    found = qa_rows(Dataset.from_list(records), tokenizer, length, stride)
    assert found[:] == qa_rows(Dataset.from_list(records), tokenizer, length, stride, processes=2)[:]
    expected = [feature for row in rows for feature in run_qa(row, tokenizer, length, stride)]
    assert found["input_ids"][:] == [ids for ids, _, _ in expected]
    assert found["starts"][:] == [[start] for _, start, _ in expected]
    assert found["ends"][:] == [[end] for _, _, end in expected]


# ---- run_classification, run_summarization


@every_case("length", [1000, LENGTH])
def test_classification_inputs_are_those_of_run_classification(
    length: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    data = Dataset.from_dict({"text": TEXTS, "label": ["b", "a", "b", "a"]})
    found = encode_documents(data, tokenizer, length, ["a", "b"])
    assert found["input_ids"][:] == tokenizer(TEXTS, max_length=length, truncation=True)["input_ids"]
    assert found["labels"][:] == [1, 0, 1, 0]


@every_case("length", [1000, LENGTH])
def test_classification_inputs_with_a_question_are_those_of_run_glue(
    length: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    questions = ["Is it so?", "Who says that?", "Why?", "Is it not so?"]
    data = Dataset.from_dict({"text": TEXTS, "question": questions, "label": ["b", "a", "b", "a"]})
    found = encode_documents(data, tokenizer, length, ["a", "b"])
    expected = dict(tokenizer(questions, TEXTS, max_length=length, truncation=True))
    del expected["attention_mask"]  # the collator's
    assert {name: found[name][:] for name in expected} == expected
    whole = [len(ids) for ids in tokenizer(questions, TEXTS)["input_ids"]]
    assert (found["document"][:], row_lengths(found)) == (whole, [min(count, length) for count in whole])


@every_case("prefix", ["", "summarize: "])
def test_summary_inputs_are_those_of_run_summarization(prefix: str, tokenizer: PreTrainedTokenizerBase) -> None:
    summaries = [text[:50] for text in TEXTS]
    found = to_summaries(Dataset.from_dict({"document": TEXTS, "summary": summaries}), tokenizer, prefix, LENGTH, 12)
    inputs = tokenizer([prefix + text for text in TEXTS], max_length=LENGTH, truncation=True)
    assert found["input_ids"][:] == inputs["input_ids"]
    assert found["labels"][:] == tokenizer(text_target=summaries, max_length=12, truncation=True)["input_ids"]


# ---- sentence-transformers


@pytest.fixture
def embedder(kind: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A folder of a tiny BERT with the tokenizer."""
    torch.manual_seed(0)
    BertModel(small_config("bert", Shape(tokens=2000, vocabulary=len(tokenizer)))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_embedding_pairs_are_read_as_by_sentence_transformers(
    tokenizer: PreTrainedTokenizerBase, embedder: Path, tmp_path: Path
) -> None:
    st = pytest.importorskip("sentence_transformers")
    prompts = {"query": "query: ", "document": "passage: "}
    model = st.SentenceTransformer(str(embedder), prompts=prompts)
    model.save(str(tmp_path / "embedder"))
    data = Dataset.from_list([{"anchor": text[:20], "positive": text} for text in TEXTS])
    model_args, data_args = (
        EmbedModelArguments(str(tmp_path / "embedder")),
        EmbedDataArguments(["data"], max_length=LENGTH),
    )
    trainer = embedding_trainer(
        model_args, data_args, EmbedTrainingArguments(str(tmp_path / "out"), bf16=False), data, data
    )
    batch = trainer.data_collator(data.to_list())
    for column, prompt in (("anchor", prompts["query"]), ("positive", prompts["document"])):
        expected = tokenizer(
            [prompt + text for text in data[column]], truncation=True, max_length=LENGTH, padding=True
        )
        assert batch[f"{column}_input_ids"].tolist() == expected["input_ids"]
        assert batch[f"{column}_attention_mask"].tolist() == expected["attention_mask"]


WORDS = ["Payment", "of", "the", "invoice", "12345", "is", "due", "by", "the", "end", "of", "June"]


@pytest.mark.parametrize(
    ("base", "places"), [("layoutlmv2", {"boxes": [[0, 0, 1000, 1000]]}), ("markuplm", {"xpaths": ["/html/body/p"]})]
)
def test_tokenizers_of_pages_read_text_as_words_of_a_page(base: str, places: dict[str, list[Any]]) -> None:
    tokenizer, text = tokenizer_of(base), " ".join(WORDS)
    of_words = {name: place * len(WORDS) for name, place in places.items()}
    assert token_ids(tokenizer, text) == tokenizer(WORDS, **of_words)["input_ids"]
    assert special_ids(tokenizer) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    assert token_ids(tokenizer, text, special_tokens=False) == token_ids(tokenizer, text)[1:-1]


def test_other_tokenizers_read_text_as_it_is() -> None:
    tokenizer = tokenizer_of("gpt2")
    assert dict(text_encoding(tokenizer, "two  spaces")) == dict(tokenizer("two  spaces"))
