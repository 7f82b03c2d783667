"""A question about four pages that are far apart: a small LayoutLM, LiLT or LayoutLMv3 that read short documents, converted to long ones.

A key is printed in a corner of page 1, and four values in the corners of page 4; the answer is the value in the corner of the key. Around
them is text of WikiText-2, set in a font, with the box of every word. Where key and values come among the words of their pages is drawn,
as programs that read pages return marks in any order: only boxes tell corners. In the control the key is left out: no model can be
right in more than a quarter of the questions.

Inputs are what ``longattn train qa`` makes of questions about pages, and windows what it makes with ``--stride``.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.implementations import BertWordPieceTokenizer
from torch import Tensor, nn
from transformers import (
    BertTokenizerFast,
    LayoutLMConfig,
    LayoutLMForQuestionAnswering,
    LayoutLMv3Config,
    LayoutLMv3ForQuestionAnswering,
    LiltConfig,
    LiltForQuestionAnswering,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_longattn.data.pages import read_pages
from hf_longattn.data.qa_features import QAFormat, encode_qa

from .far_running import FULL, Stage, run_study
from .far_task import Labelled, Shown, System, Task, converted, plain
from .page_rendering import CORNERS, HEIGHT, WIDTH, Printed, mark, set_words

WIKITEXT = Path(__file__).parents[4] / "shared" / "data" / "wikitext-2"
PAGES = 4
TYPESET = 400
"""Pages of each size and part of the text, from which documents are drawn."""
VOCABULARY = 2_000
KEY = "keymark"
VALUES = tuple(f"code{first}{second}" for first in "abcd" for second in "wxyz")
QUESTION = "Which value is in the corner of the key ?"
WINDOW, STRIDE = 512, 128
"""Tokens of the baseline's windows, and those that two of them share."""
REACH = 128
"""Tokens that a window of attention sees on each side."""
COLUMNS = 6
"""Of an input's tokens: id, type, and the four sides of the box."""


class Pages(Task):
    """The value on the last page in the corner that the key has on the first; easier documents are a quarter as long."""

    name = "pages"
    model_type, noun = "layoutlm", "LayoutLM"
    config_class: type[PreTrainedConfig] = LayoutLMConfig
    model_class: type[PreTrainedModel] = LayoutLMForQuestionAnswering
    before_table = 0
    """Rows of the position table before that of the first token."""
    classes = len(CORNERS)
    item = "document"
    unit = "tokens"
    making = "rendering"
    easy_first = True
    baselines = ("windows",)
    defaults = {
        "systems": ["windows", "marked", FULL], "stages": [Stage(1024, 24, 8), Stage(4096, 12, 2)], "short_size": 512, "layers": 2,
        "halved": 0.0, "short_batch": 16, "short_minutes": 0.5, "test_examples": 16, "other_examples": 4, "memory_batch": 1,
    }  # fmt: skip

    def document(self, shown: Shown, random: np.random.Generator) -> tuple[dict[str, Any], int]:
        """A record of questions about pages, and the corner of the key."""
        room = (shown.size - len(tokenizer()(QUESTION, "")["input_ids"]) - len(VALUES)) // PAGES - self.classes
        drawn = typeset("test" if shown.held_out else "valid", room)
        corner = int(random.integers(self.classes))
        values = [VALUES[number] for number in random.permutation(len(VALUES))[: self.classes]]
        pages = []
        for number in range(PAGES):
            page = drawn[int(random.integers(len(drawn)))]
            marks = []
            if number == 0 and not shown.control:
                marks = [mark(KEY, corner)]
            elif number == PAGES - 1:
                marks = [mark(values[place], int(place)) for place in random.permutation(self.classes)]
            place = int(random.integers(len(page) + 1))
            pages.append([*page[:place], *marks, *page[place:]])
        read = read_pages(
            [[word.word for word in page] for page in pages], [[list(word.box) for word in page] for page in pages],
            sizes=[[WIDTH, HEIGHT]] * PAGES,
        )  # fmt: skip
        answer = values[corner]
        start = read.text.index(answer)
        return {
            "question": QUESTION, "context": read.text, **read.columns(), "answers": {"text": [answer], "answer_start": [start]},
        }, corner  # fmt: skip

    def batch(self, shown: Shown, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Inputs ``(count, tokens, COLUMNS)``, and the token that is the answer ``(count,)``."""
        if random.random() < shown.easy:
            shown = shown._replace(size=shown.size // 4)
        form = QAFormat(shown.size, token_columns={"bbox": 0})
        inputs, labels = torch.zeros(count, shown.size, COLUMNS, dtype=torch.long), []
        for row in inputs:
            feature = encode_qa(self.document(shown, random)[0], tokenizer(), form)[0]
            columns = torch.tensor([feature.inputs["input_ids"], feature.inputs["token_type_ids"]])
            row[: len(feature)] = torch.cat([columns.T, torch.tensor(feature.inputs["bbox"])], 1)
            labels.append(feature.start)
        return inputs, torch.tensor(labels)

    def small_model(self, args: argparse.Namespace, seed: int) -> PreTrainedModel:
        config = self.config_class(
            vocab_size=len(tokenizer()), hidden_size=args.width, num_hidden_layers=args.layers,
            num_attention_heads=max(1, args.width // 32), intermediate_size=4 * args.width,
            max_position_embeddings=args.short_size + self.before_table, pad_token_id=tokenizer().pad_token_id, type_vocab_size=2,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=args.width**-0.5, **self.fields(args.width),
        )  # fmt: skip
        return self.model_class(config)

    def fields(self, width: int) -> dict[str, Any]:
        """Further fields of the config of a model of this width."""
        return {}

    def small_logits(self, model: nn.Module, inputs: Tensor, labelled: Labelled) -> Tensor:
        return whole(model, inputs, labelled)

    def systems(self, args: argparse.Namespace) -> dict[str, System]:
        separator = tokenizer().sep_token_id
        window = {"mechanism": "longformer", "left": REACH, "right": REACH}
        full = {"mechanism": "full"}

        def with_attention(attention: Mapping[str, Any], **fields: Any) -> Callable[[Path, int], nn.Module]:
            def of_size(size: int) -> Mapping[str, Any]:
                return {"max_position_embeddings": size + self.before_table, "question_separator_id": separator, **fields}

            return converted(self.model_type, self.model_class, attention, of_size)

        key = [tokenizer().convert_tokens_to_ids(KEY)]
        return {
            "windows": System(f"windows of {WINDOW} tokens that share {STRIDE}", plain(self.model_class), in_windows),
            "globals": System(f"longformer, {2 * REACH + 1} tokens, the question global", with_attention(window), whole),
            "marked": System(
                f"longformer, {2 * REACH + 1} tokens, question and key global", with_attention(window, global_token_ids=key), whole
            ),
            FULL: System("full attention", with_attention(full), whole),
        }

    def about_model(self, settings: Mapping[str, Any]) -> str:
        return f"A {self.noun} of {settings['layers']} layers and width {settings['width']}"

    def tokens(self, size: int) -> str:
        return f"{PAGES} pages of about {size // PAGES:,}"

    def sentence(self, size: int) -> str:
        return (
            f"Documents of {PAGES} pages, {size:,} tokens, of WikiText-2 set in a font: a key is printed in a corner of page 1 and four "
            "values in the corners of page 4. The answer is the value in the corner of the key, chance 25 % for who knows the values. Key "
            "and values come anywhere among the words of their pages, so that boxes alone tell corners. In the control the key is left out."
        )


class PagesOfLilt(Pages):
    """The same for LiLT, whose width is a multiple of 24."""

    name, model_type, noun, before_table = "pages_lilt", "lilt", "LiLT", 1
    config_class, model_class = LiltConfig, LiltForQuestionAnswering


class PagesOfLayoutLMv3(Pages):
    """The same for LayoutLMv3 without pictures, whose width is a multiple of 6."""

    name, model_type, noun, before_table = "pages_layoutlmv3", "layoutlmv3", "LayoutLMv3", 1
    config_class, model_class = LayoutLMv3Config, LayoutLMv3ForQuestionAnswering

    def fields(self, width: int) -> dict[str, Any]:
        return {"visual_embed": False, "coordinate_size": width // 6, "shape_size": width // 6}


@functools.cache
def tokenizer() -> BertTokenizerFast:
    """Pieces of words of WikiText-2's training part here, and key and values as whole words."""
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator([" ".join(raw_words("valid"))], vocab_size=VOCABULARY, show_progress=False)
    ordered = sorted(pieces.get_vocab().items(), key=lambda item: item[1])
    vocabulary = {name: number for number, name in enumerate([*(name for name, _ in ordered), KEY, *VALUES])}
    return BertTokenizerFast(vocab=vocabulary)


@functools.cache
def raw_words(part: str) -> list[str]:
    """The words of a part of WikiText-2."""
    return (WIKITEXT / f"{part}.txt").read_text(encoding="utf-8").replace("<unk>", "unknown").split()


@functools.cache
def words(part: str) -> tuple[list[str], np.ndarray]:
    """The words of a part of WikiText-2, and the number of tokens of each."""
    text = raw_words(part)
    distinct = list(dict.fromkeys(text))
    counts = dict(zip(distinct, map(len, tokenizer()(distinct, add_special_tokens=False)["input_ids"]), strict=True))
    return text, np.array([counts[word] for word in text])


@functools.cache
def typeset(part: str, room: int) -> list[list[Printed]]:
    """:data:`TYPESET` pages of a part of WikiText-2 with as many words as ``room`` tokens allow, from anywhere in it."""
    text, tokens = words(part)
    random, pages = np.random.default_rng(0), []
    for _ in range(TYPESET):
        first = int(random.integers(len(text) - room))
        count = int(np.searchsorted(tokens[first : first + room].cumsum(), room, side="right"))
        pages.append(set_words(text[first : first + count]))
    return pages


def whole(model: nn.Module, inputs: Tensor, labelled: Labelled) -> Tensor:
    """The score of each token as the answer, ``(B, tokens)``; padding cannot be it."""
    ids, types, boxes = inputs[..., 0], inputs[..., 1], inputs[..., 2:]
    real = ids != tokenizer().pad_token_id
    outputs = model(input_ids=ids, token_type_ids=types, bbox=boxes, attention_mask=real.long())
    return (outputs.start_logits + outputs.end_logits).masked_fill(~real, -1e4)


def in_windows(model: nn.Module, inputs: Tensor, labelled: Labelled) -> Tensor:
    """As :func:`whole`, from windows of the pages, each with the question; a token in two windows has its higher score."""
    separator, end = tokenizer().sep_token_id, inputs.new_tensor([tokenizer().sep_token_id, 1, 1000, 1000, 1000, 1000])
    before = int((inputs[0, :, 0] == separator).nonzero()[0]) + 1
    room = WINDOW - before - 1
    scores = torch.full(inputs.shape[:2], -torch.inf)
    scores[:, :before] = -1e4
    first = before
    while True:
        last = min(first + room, inputs.shape[1])
        body = inputs[:, first:last]
        body = body.where((body[..., :1] != separator), 0)
        window = torch.cat([inputs[:, :before], body, end.expand(len(inputs), 1, COLUMNS)], 1)
        of_window = whole(model, window, labelled)[:, before:-1]
        scores = torch.cat([scores[:, :first], torch.maximum(scores[:, first:last], of_window), scores[:, last:]], 1)
        if last == inputs.shape[1]:
            return scores
        first += room - STRIDE


TASKS = (Pages, PagesOfLilt, PagesOfLayoutLMv3)

if __name__ == "__main__":
    run_study(TASKS)
