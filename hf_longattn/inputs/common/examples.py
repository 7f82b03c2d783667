"""Code in a model card that runs the model once. How models with a head are loaded, and how their inputs are made.

The example of models of texts and pages is in this file, those of other kinds are in the kind's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...configuration import LongAttentionConfig
from ...data.tokenization import BOXES, PATHS, word_argument
from ...files import tokenizer_values
from ...mechanisms.common.registry import prototype


@dataclass(frozen=True)
class Head:
    """How models with this head are loaded and run.

    auto_class: transformers' Auto class for the head; empty if there is none.
    task: name of the head's task on the Hub; ``None`` if the Hub has no such task.
    blocks: names of template blocks that run the loaded model once. For models of texts, these blocks make the inputs, too.
    """

    auto_class: str
    task: str | None
    blocks: str


def auto_head(head: str, task: str | None, blocks: str) -> Head:
    """A head whose Auto class is ``AutoModel`` followed by the name ``head``."""
    return Head(f"AutoModel{head}", task, blocks)


@dataclass(frozen=True)
class Example:
    """The part of a card's code that depends on the input kind. The template is ``hub/usage.jinja``.

    head: the model's head.
    blocks: names of template blocks that make the input and run the model.
    values: values of the template's variables.
    reader: variable and class name of the tokenizer or processor; ``None`` if the folder has neither.
    imports: lines before the imports of torch and of transformers.
    pipeline: whether the code also calls transformers' pipeline.
    """

    head: Head
    blocks: str
    values: Mapping[str, Any]
    reader: tuple[str, str] | None
    imports: tuple[str, ...] = ()
    pipeline: bool = False


def head_of(architecture: str, heads: Mapping[str, Head]) -> Head | None:
    """The entry of ``heads`` for a model class, by the ending of the class's name. ``None`` if no ending matches."""
    return next((head for ending, head in heads.items() if architecture.endswith(ending)), None)


# Texts and pages.

HEADS = {
    "LayoutLMForQuestionAnswering": auto_head("ForDocumentQuestionAnswering", "document-question-answering", "page_question answer"),
    "LayoutLMForTokenClassification": auto_head("ForTokenClassification", "token-classification", "page page_labels"),
    "LayoutLMForSequenceClassification": auto_head("ForSequenceClassification", "text-classification", "page label"),
    "ForQuestionAnswering": auto_head("ForQuestionAnswering", "question-answering", "question answer"),
    "ForMaskedLM": auto_head("ForMaskedLM", "fill-mask", "masked"),
    "ForCausalLM": auto_head("ForCausalLM", "text-generation", "continuation"),
    "LMHeadModel": auto_head("ForCausalLM", "text-generation", "continuation"),
    "ForConditionalGeneration": auto_head("ForSeq2SeqLM", None, "text summary"),
    "ForSequenceClassification": auto_head("ForSequenceClassification", "text-classification", "text label"),
    "ForTokenClassification": auto_head("ForTokenClassification", "token-classification", "text labels"),
    "ForMultipleChoice": auto_head("ForMultipleChoice", "multiple-choice", "choices probabilities"),
    "ForNextSentencePrediction": auto_head("ForNextSentencePrediction", None, "document_and_sentence probabilities"),
    "ForPreTraining": auto_head("ForPreTraining", None, "text outputs"),
    "MTModel": auto_head("ForSeq2SeqLM", "translation", "text summary"),
    "DoubleHeadsModel": Head("", None, "text outputs"),  # without an Auto class
    "ModelWithProjection": Head("", "feature-extraction", "text outputs"),
    "Model": auto_head("", "feature-extraction", "text hidden"),
}
"""Ending of a class's name -> how its models are run."""
_PLACES = {
    BOXES: "[[10, 20, 60, 40]] * {count}",  # (left, top, right, bottom) of every word, from 0 to 1000 on its page
    PATHS: '["/html/body/p"] * {count}',
}
"""Argument of a tokenizer for the places of words -> Python code for its value."""


@dataclass(frozen=True)
class Domain:
    """Python literals of example texts. A passage to repeat, and a text with a mask token."""

    document: str
    masked: str


DOMAINS = {
    "text": Domain('"A long document starts here. "', 'f"The lighthouse stands where the river {tokenizer.mask_token} the sea. "'),
    "code": Domain(r'"import numpy as np\n"', r'f"import {tokenizer.mask_token} as np\n"'),
    "protein": Domain('"MKTVRQERLKSIVRILERSKEPVSGAQ"', 'f"MKTVRQERLKSI{tokenizer.mask_token}RILERSKEPVSGAQ"'),
}
CODE = frozenset(("code", "python", "java", "javascript", "c++", "go", "rust"))
"""Languages and tags in cards of models that read source code."""
PROTEINS = ("esm",)


def domain_of(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> Domain:
    """The domain of a model by its model type and its card's language and tags. By default natural language."""
    if str(config.get("model_type")).removeprefix("long_") in PROTEINS:
        return DOMAINS["protein"]
    fields = (metadata.get(field) for field in ("language", "tags"))
    said = {word.lower() for values in fields for word in (values if isinstance(values, list) else [values]) if isinstance(word, str)}
    return DOMAINS["code" if said & CODE else "text"]


TOKENIZER = ("tokenizer", "AutoTokenizer")


def text_example(folder: Path, config: Mapping[str, Any], head: Head, length: int, metadata: Mapping[str, Any]) -> Example:
    """The example for the card of a model of texts or pages."""
    chosen, marks_question = config.get("long_attention"), config.get("question_separator_id") is not None
    attention = None if chosen is None else LongAttentionConfig.from_dict(chosen)
    takes_globals = attention is not None and prototype(attention.mechanism, attention.options).traits.takes_globals
    domain, words_with = domain_of(config, metadata), tokenizer_words(folder)
    texts, words = f"{domain.document} * 50", ""
    if words_with is not None:
        places = f"{words_with}={_PLACES[words_with]}"
        count = 50 * len(domain.document.strip('"').split())
        texts = f"{domain.document}.split() * 50, {places.format(count=count)}"
        words = f".split(), {places.format(count='len(document.split())')}"
    values = {
        **{"length": length, "texts": texts, "words": words, "document": domain.document, "masked": domain.masked},
        "takes_globals": takes_globals and not marks_question,  # such a model makes the question global itself
        "pair": 'choice, document, truncation="only_second"' if marks_question else 'document, choice, truncation="only_first"',
    }
    return Example(head, head.blocks, values, TOKENIZER)


def tokenizer_words(folder: Path) -> str | None:
    """The argument for places of words of the tokenizer in a folder (LayoutLMv3, MarkupLM). ``None`` if it takes text only."""
    import transformers

    named = tokenizer_values(folder).get("tokenizer_class")
    tokenizer_class = getattr(transformers, named, None) if isinstance(named, str) else None
    return word_argument(tokenizer_class) if isinstance(tokenizer_class, type) else None
