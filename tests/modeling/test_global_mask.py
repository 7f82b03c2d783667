"""Global tokens of a call: by mask, by their ids, and in models that pass none on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from hf_longattn import enable_long_attention, list_mechanisms
from hf_longattn.errors import InputError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms.common.global_tokens import GlobalTokenIds
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.modeling.attach.attention_sites import layer_mechanisms, with_members
from hf_longattn.modeling.attach.global_mask import (
    carry_question,
    global_token_ids,
    global_tokens_of,
    question_separator,
)
from hf_longattn.names import LOGGER
from tests.cases import every_case
from tests.reference.small_models import long_model, padding, plain_model, tokens
from tests.samples import sample_of

SEPARATOR, PADDING = 2, 1
LENGTH = 48
TAKING = [name for name in list_mechanisms(grid=False) if mechanism_class(name).capabilities.takes_globals]
LONGFORMER = {"mechanism": "longformer", "window": 8}


def question_and_document(separators: int, side: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Two rows, one of them padded on ``side``, and which of their tokens stand before the document."""
    torch.manual_seed(0)
    ids = torch.randint(3, 60, (2, LENGTH))
    mask = torch.ones_like(ids)
    before = torch.zeros_like(ids)
    for row, (start, stop, question) in enumerate(
        [(0, LENGTH, 6), (9, LENGTH, 4) if side == "left" else (0, LENGTH - 9, 4)]
    ):
        ids[row, start + question : start + question + separators] = SEPARATOR
        ids[row, stop - 1] = SEPARATOR
        mask[row] = 0
        before[row] = 0
        mask[row, start:stop] = 1
        before[row, start : start + question + separators] = 1
    return {"input_ids": ids.masked_fill(mask == 0, PADDING), "attention_mask": mask}, before


@pytest.mark.thorough
@every_case("side", ["right", "left"])
@every_case("separators", [1, 2])
@every_case("mechanism", TAKING)
def test_a_config_with_a_separator_marks_the_question_as_a_mask_does(
    mechanism: str, separators: int, side: str
) -> None:
    attention = sample_of(mechanism)
    model = long_model("bert", "BertForQuestionAnswering", attention)
    inputs, before = question_and_document(separators, side)
    with torch.no_grad():
        marked = model(**inputs, global_attention_mask=before)
        unset = model(**inputs)
        model.config.question_separator_id = SEPARATOR
        found = model(**inputs)
        first_only = torch.zeros_like(before).index_fill(1, torch.tensor([0]), 1)
        chosen = [
            model(**inputs, global_attention_mask=first_only)
            for model.config.question_separator_id in (None, SEPARATOR)
        ]
    assert torch.equal(found.start_logits, marked.start_logits)
    assert not torch.equal(found.start_logits, unset.start_logits)
    assert torch.equal(chosen[0].start_logits, chosen[1].start_logits)  # a mask that is given has the last word


def test_a_question_without_a_document_is_not_global() -> None:
    model = long_model("bert", "BertForQuestionAnswering", {**LONGFORMER, "global_tokens": (0, 3)})
    ids = torch.randint(3, 60, (1, LENGTH))
    ids[0, -1] = SEPARATOR
    with torch.no_grad():
        plain = model(ids).start_logits
        model.config.question_separator_id = SEPARATOR
        assert torch.equal(model(ids).start_logits, plain)


def test_a_mechanism_without_global_tokens_gets_no_separator() -> None:
    model = long_model("bert", "BertForQuestionAnswering", {"mechanism": "window", "window": 8})
    carry_question(model, pairs("[CLS] $A [SEP] $B [SEP]"))
    assert model.config.question_separator_id is None
    model.config.question_separator_id = SEPARATOR
    assert global_token_ids(model) is None


def test_a_mechanism_that_marks_the_first_segment_needs_no_separator() -> None:
    attention = {**LONGFORMER, "global_first_segment": True, "separator_token_id": SEPARATOR}
    model = long_model("bert", "BertForQuestionAnswering", attention)
    carry_question(model, pairs("[CLS] $A [SEP] $B [SEP]"))
    assert model.config.question_separator_id is None


def pairs(template: str | None) -> PreTrainedTokenizerFast:
    special = {"[CLS]": 0, "[PAD]": 1, "[SEP]": 2}
    backend = Tokenizer(models.WordLevel({**special, "a": 3, "b": 4, "[UNK]": 5}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if template is not None:
        backend.post_processor = processors.TemplateProcessing(
            single="$A",
            pair=template,
            special_tokens=[(name, number) for name, number in special.items() if name in template],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="[CLS]", pad_token="[PAD]", sep_token="[SEP]", unk_token="[UNK]"
    )


@pytest.mark.parametrize(
    ("template", "separator"),
    [
        ("[CLS] $A [SEP] $B [SEP]", 2),  # BERT, ALBERT, ELECTRA, DeBERTa, ModernBERT
        ("[CLS] $A [SEP] [SEP] $B [SEP]", 2),  # RoBERTa, BART, MPNet
        ("$A [SEP] $B [SEP]", 2),  # T5
        ("$A $B", None),  # GPT-2
        ("[CLS] $A [CLS] $B", None),  # Llama: the token between them is also the first
        (None, None),
    ],
)
def test_the_separator_of_a_question_is_read_from_the_tokenizer(template: str | None, separator: int | None) -> None:
    assert question_separator(pairs(template)) == separator


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(logging.get_logger(LOGGER), "warning_once", messages.append)
    return messages


def test_a_document_in_the_question_s_place_is_warned_of(said: list[str]) -> None:
    model = long_model("bert", "BertForQuestionAnswering", LONGFORMER, max_position_embeddings=1024)
    model.config.question_separator_id = SEPARATOR
    for place, expected in ((9, 0), (700, 1)):
        ids = torch.randint(3, 60, (1, 900))
        ids[0, place] = SEPARATOR
        with torch.no_grad():
            model(ids)
        assert len(said) == expected
    assert "tokenizer(question, document)" in said[0]


def test_a_separator_typed_in_a_question_does_not_end_it() -> None:
    """Token types (BERT) or two separators in a row (RoBERTa) tell where it ends."""
    rule = GlobalTokenIds(positions=(0,), question_separator=SEPARATOR)
    text = [7, 8, SEPARATOR]
    for typed in (
        [5, SEPARATOR, 6],
        [SEPARATOR, 6],
        [5, SEPARATOR],
        [5, SEPARATOR, SEPARATOR, 6],
        [5, SEPARATOR, 6, SEPARATOR, 6],
        [5, 6],
    ):
        for separators in (1, 2):
            first = [0, *typed, *[SEPARATOR] * separators]
            after = [*text, PADDING, PADDING]
            ids = torch.tensor([first + after, [PADDING, PADDING, *first, *text]])
            types = torch.tensor([[0] * len(first) + [1, 1, 1, 0, 0], [0] * (len(first) + 2) + [1, 1, 1]])
            expected = [[1] * len(first) + [0] * 5, [0, 0] + [1] * len(first) + [0] * 3]
            inputs = {"input_ids": ids, "attention_mask": (ids != PADDING).long()}
            assert global_tokens_of(rule, {**inputs, "token_type_ids": types}).tolist() == expected, typed
            if separators == 2 and typed != [5, SEPARATOR, SEPARATOR, 6]:
                assert global_tokens_of(rule, inputs).tolist() == expected, typed
    single = torch.tensor([[0, 5, SEPARATOR]])  # without a document there is no question
    assert global_tokens_of(rule, {"input_ids": single, "token_type_ids": torch.zeros_like(single)}).tolist() == [
        [1, 0, 0]
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("generic", [False, True])
def test_a_global_mask_reaches_a_layer_or_is_refused(generic: bool) -> None:
    """In a Long class, and in a model without one, whose attention modules do not know one another."""

    def built(long_attention: dict[str, Any]) -> Any:
        if generic:
            return enable_long_attention(plain_model("bert", "BertModel"), long_attention).eval()
        return long_model("bert", None, long_attention).eval()

    ids = tokens(2, 200)
    mask = torch.zeros(2, 200, dtype=torch.long)
    mask[:, 100] = 1
    for name in list_mechanisms(causal=False, grid=False):
        if name == "recurrent_memory":
            continue  # for Long classes only
        takes = mechanism_class(name).capabilities.takes_globals
        model = built(
            {
                "mechanism": name,
                **mechanism_class(name).about.sample,
                **({"window": 4} if name in ("window", "longformer") else {}),
            }
        )
        covered = any(mechanism.covers(200) for mechanism in with_members(layer_mechanisms(model)))
        if takes or covered:
            outs = [model(ids, global_attention_mask=given).last_hidden_state for given in (mask, 0 * mask)]
            assert torch.equal(*outs) == covered, name
        else:
            with pytest.raises(
                InputError, match=f"no layer of this model takes global tokens .its mechanism is '{name}'"
            ):
                model(ids, global_attention_mask=mask)
            # as long as what the window covers
            with pytest.raises(InputError, match="no layer of this model takes global tokens"):
                model(ids, global_attention_mask=mask[:, :1])
    mixed = built({"mechanism": "window", "window": 4, "layers": {1: {"mechanism": "longformer", "window": 4}}})
    assert mixed(ids, global_attention_mask=mask).last_hidden_state.shape[:2] == ids.shape


BASES = [base for base, family in FAMILIES.items() if not getattr(family.mixin, "hands_globals_down", True)]
WITHOUT = {"union": {"mechanism": "union", "of": "window:window=8+window:window=16"}}
"""Composites that compute a window of 16."""
WITH = {
    "union": {"mechanism": "union", "of": "window:window=8+longformer:window=16"},
    "longformer": {"mechanism": "longformer"},
}


@pytest.mark.thorough
@every_case("name", WITHOUT)
@every_case("base", BASES)
def test_families_without_global_tokens_run_unions_without_them(base: str, name: str) -> None:
    ids = tokens(3, 60)
    mask = padding(3, 60)
    window, composite = (
        long_model(base, None, attention) for attention in ({"mechanism": "window", "window": 16}, WITHOUT[name])
    )
    composite.load_state_dict(window.state_dict())
    with torch.no_grad():
        expected, out = (
            model(ids, attention_mask=mask).last_hidden_state[mask.bool()] for model in (window, composite)
        )
    torch.testing.assert_close(out, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0)


@every_case("name", WITH)
@every_case("base", [base for base in BASES if not getattr(FAMILIES[base].mixin, "annotates_globals", False)])
def test_families_without_global_tokens_refuse_mechanisms_that_need_them(base: str, name: str) -> None:
    with pytest.raises(
        OptionError, match=f"cannot pass global tokens to its attention, which mechanism '{name}' needs"
    ):
        long_model(base, None, WITH[name])
