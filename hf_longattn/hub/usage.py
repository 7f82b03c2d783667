"""What a card tells its reader to type: code that loads and runs the model, and the command that trains it further.

The texts are blocks of ``usage.jinja``: one for every kind of input and one for every head. :func:`example_of` is the only function that
asks what kind of input a model reads.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jinja2 import Environment, Template

from ..configuration import LongAttentionConfig
from ..data.page_words import BOXES, PATHS, word_argument
from ..errors import CONTROL, in_one_line
from ..mechanisms.common.registry import prototype
from ..modeling.family.definition import Family, family_in, tower_field
from ..modeling.family.grid_rule import FRAMES_PER_SECOND
from ..modeling.family.registration import MULTIMODAL_TYPE
from ..processor_files import FEATURE_EXTRACTOR, IMAGE_PROCESSOR, TOKENIZER_CONFIG, ProcessorFile, tokenizer_values
from ..reading import is_generic, is_long, named_class, plain_names, read_json_object
from ..sentence_files import EMBEDDINGS, RERANKER, TOKEN_VECTORS, sentence_kind

TEMPLATE = Path(__file__).with_name("usage.jinja")


@dataclass(frozen=True)
class Head:
    """How models of one head are loaded and run.

    auto_class: of transformers; empty where there is none.
    task: its name on the Hub.
    blocks: of the template, which run the loaded model once; in a model of texts they make its inputs, too.
    """

    auto_class: str
    task: str | None
    blocks: str


def _auto(head: str, task: str | None, blocks: str) -> Head:
    """A head whose Auto class has the head's name."""
    return Head(f"AutoModel{head}", task, blocks)


HEADS = {
    "LayoutLMForQuestionAnswering": _auto("ForDocumentQuestionAnswering", "document-question-answering", "page_question answer"),
    "LayoutLMForTokenClassification": _auto("ForTokenClassification", "token-classification", "page page_labels"),
    "LayoutLMForSequenceClassification": _auto("ForSequenceClassification", "text-classification", "page label"),
    "ForQuestionAnswering": _auto("ForQuestionAnswering", "question-answering", "question answer"),
    "ForMaskedLM": _auto("ForMaskedLM", "fill-mask", "masked"),
    "ForCausalLM": _auto("ForCausalLM", "text-generation", "continuation"),
    "LMHeadModel": _auto("ForCausalLM", "text-generation", "continuation"),
    "ForConditionalGeneration": _auto("ForSeq2SeqLM", None, "text summary"),
    "ForSequenceClassification": _auto("ForSequenceClassification", "text-classification", "text label"),
    "ForTokenClassification": _auto("ForTokenClassification", "token-classification", "text labels"),
    "ForMultipleChoice": _auto("ForMultipleChoice", "multiple-choice", "choices probabilities"),
    "ForNextSentencePrediction": _auto("ForNextSentencePrediction", None, "document_and_sentence probabilities"),
    "ForPreTraining": _auto("ForPreTraining", None, "text outputs"),
    "MTModel": _auto("ForSeq2SeqLM", "translation", "text summary"),
    "DoubleHeadsModel": Head("", None, "text outputs"),  # without an Auto class
    "ModelWithProjection": Head("", "feature-extraction", "text outputs"),
    "Model": _auto("", "feature-extraction", "text hidden"),
}
"""Ending of a class's name -> how its models are run."""
LILT_HEADS = {
    "LiltForQuestionAnswering": _auto("ForQuestionAnswering", "question-answering", "page_question answer"),
    "LiltForTokenClassification": _auto("ForTokenClassification", "token-classification", "page page_labels"),
    "LiltForSequenceClassification": _auto("ForSequenceClassification", "text-classification", "page label"),
}
"""LiLT with the tokenizer of a RoBERTa, which takes no boxes, and for which a space belongs to the word."""
PICTURE_HEADS = {
    "ForImageClassification": _auto("ForImageClassification", "image-classification", "label"),
    "ForImageClassificationWithTeacher": Head("", "image-classification", "label"),
    "ForMaskedImageModeling": _auto("ForMaskedImageModeling", None, "outputs"),
    "ForPreTraining": _auto("ForPreTraining", None, "outputs"),
    "ForSemanticSegmentation": _auto("ForSemanticSegmentation", "image-segmentation", "outputs"),
    "Backbone": Head("", "image-feature-extraction", "maps"),  # AutoBackbone takes repositories only
    "ModelWithProjection": Head("", "image-feature-extraction", "outputs"),
    "Model": _auto("", "image-feature-extraction", "patches"),
}
"""The same for models of pictures."""
RECOGNITION, CLASSIFICATION = "automatic-speech-recognition", "audio-classification"
"""Tasks of sound for which transformers has a pipeline."""
SOUND_HEADS = {
    "ForCTC": _auto("ForCTC", RECOGNITION, "transcript"),
    "ForSequenceClassification": _auto("ForAudioClassification", CLASSIFICATION, "label"),
    "ForAudioFrameClassification": _auto("ForAudioFrameClassification", None, "frame_labels"),
    "ForXVector": _auto("ForAudioXVector", None, "speaker"),
    "ForPreTraining": _auto("ForPreTraining", None, "outputs"),
    "ForRNNT": Head("", RECOGNITION, "generated"),
    "ForTDT": Head("", RECOGNITION, "generated"),
    "ForConditionalGeneration": _auto("ForSpeechSeq2Seq", RECOGNITION, "generated"),
    "ForAudioClassification": _auto("ForAudioClassification", CLASSIFICATION, "label"),
    "Encoder": _auto("", "feature-extraction", "states"),
    "WhisperModel": _auto("", "feature-extraction", "encoded"),
    "Model": _auto("", "feature-extraction", "states"),
}
"""The same for models of sound."""
VIDEO_HEADS = {
    "ForVideoClassification": _auto("ForVideoClassification", "video-classification", "label"),
    "ForPreTraining": _auto("ForPreTraining", None, "rebuilt"),
    "Model": _auto("", "feature-extraction", "patches"),
}
"""The same for models of videos."""
SPECTROGRAM_HEADS = {
    "ForAudioClassification": _auto("ForAudioClassification", CLASSIFICATION, "label"),
    "Model": _auto("", "feature-extraction", "patches"),
}
"""The same for models of spectrograms."""
TOWER_HEADS = {"Model": _auto("", "zero-shot-image-classification", "similarity")}
"""The same for models of texts and pictures."""
HEADS_ON_GRIDS = {"picture": PICTURE_HEADS, "video": VIDEO_HEADS, "spectrogram": SPECTROGRAM_HEADS}
"""What a model on a grid reads -> how its models are run."""
AUTO_CLASSES = {
    head.task: head.auto_class
    for head in (*SOUND_HEADS.values(), *SPECTROGRAM_HEADS.values(), *HEADS.values(), *VIDEO_HEADS.values(), *PICTURE_HEADS.values())
    if head.auto_class and head.task is not None
}
"""The Hub's name of a task -> the Auto class that loads its models."""
_PLACES = {
    BOXES: "[[10, 20, 60, 40]] * {count}",  # (left, top, right, bottom) of every word, from 0 to 1000 on its own page
    PATHS: '["/html/body/p"] * {count}',
}
"""The places of words that a tokenizer takes, by its argument."""


@dataclass(frozen=True)
class Domain:
    """What a model reads: Python literals of a repeated piece of text, and of a text with a mask."""

    document: str
    masked: str


DOMAINS = {
    "text": Domain('"A long document starts here. "', 'f"The lighthouse stands where the river {tokenizer.mask_token} the sea. "'),
    "code": Domain(r'"import numpy as np\n"', r'f"import {tokenizer.mask_token} as np\n"'),
    "protein": Domain('"MKTVRQERLKSIVRILERSKEPVSGAQ"', 'f"MKTVRQERLKSI{tokenizer.mask_token}RILERSKEPVSGAQ"'),
}
CODE = frozenset(("code", "python", "java", "javascript", "c++", "go", "rust"))
"""Languages and tags of models that read programs."""
PROTEINS = ("esm",)


def domain_of(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> Domain:
    """What a model reads, from its model type and the language and tags of its card; text, in doubt."""
    if str(config.get("model_type")).removeprefix("long_") in PROTEINS:
        return DOMAINS["protein"]
    fields = (metadata.get(field) for field in ("language", "tags"))
    said = {word.lower() for values in fields for word in (values if isinstance(values, list) else [values]) if isinstance(word, str)}
    return DOMAINS["code" if said & CODE else "text"]


SAMPLING_RATE = 16_000
"""Samples a second where a feature extractor does not say."""
SHOWN_SECONDS = 30
"""The longest sound of an example, which its reader runs at once."""
GRAPHS = ("model.onnx", "model.pt2")
EXPORT_REPORT = "export_report.json"
TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
"""What a tokenizer gives."""
CANDIDATE_LABEL = {"0": "candidate"}
"""The labels of a model that scores candidates."""
ADAPTER = Path("adapter", "adapter_config.json")
"""The config of an adapter that was converted with its base."""
ADAPTED = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_2_SEQ_LM": "ForConditionalGeneration",
}
"""Task of an adapter -> ending of the adapted class's name."""
MODEL = "{model}"
"""Stands for the model's name in the fields of a report."""
INSTALL = "`pip install .` in a clone of the hf_longattn repository: it is not on a package index yet"
IMPORT_LINE = "import hf_longattn  # registers the model with transformers"


def usage_section(folder: Path, config: dict[str, Any], name: str, length: int, metadata: Mapping[str, Any]) -> str:
    """The section about loading the model as ``name``, with this package and, if its code was bundled, without.

    Args:
        folder, config: of the model.
        name: what a reader types.
        length: tokens that it takes.
        metadata: of its card, whose language and tags tell what the example reads.
    """
    if (exported := exported_usage(folder, name, length)) is not None:
        return exported
    code = snippet(folder, config, name, length, metadata)
    if code is None:
        text = f"Import `hf_longattn`, then load it; the class is `{named_class(config, 'AutoModel')}`."
    else:
        text = (f"With hf_longattn ({INSTALL}):\n\n" if is_long(config) else "") + f"```python\n{code}\n```"
    return text if "auto_map" not in config else f"{text}\n\n{remote_usage(folder, config, name, metadata, length)}"


def remote_usage(folder: Path, config: dict[str, Any], name: str, metadata: Mapping[str, Any], length: int | None = None) -> str:
    """The section of a card about loading a model with its bundled code, where this package is not installed."""
    code = snippet(folder, config, name, length or tokens_of(config), metadata, trusts_code=True)
    how = f"```python\n{code}\n```" if code else "Pass `trust_remote_code=True` to `from_pretrained`."
    return f"## Use without hf_longattn\n\nThe model's code is in this repository. Read it before you run it:\n\n{how}"


def exported_usage(folder: Path, name: str, length: int) -> str | None:
    """How a graph or a GGUF file in a folder without weights is run; ``None`` for any other folder."""
    if any(folder.glob("*.safetensors")):
        return None
    if (folder / "model.gguf").is_file():
        command = in_one_line(
            shlex.join(["llama-cli", "-m", f"{name}/model.gguf", "-c", str(length), "-p", "A long document starts here."])
        )
        return f"With llama.cpp:\n\n```\n{command}\n```"
    file = next((name for name in GRAPHS if (folder / name).is_file()), None)
    if file is None or not (folder / EXPORT_REPORT).is_file():
        return None
    report = read_json_object(folder / EXPORT_REPORT)
    decoding = report.get("decoding") or {}
    if decoding or not TEXT_INPUTS.issuperset(map(str, report.get("inputs") or ())):
        return f"`{file}` takes and returns the tensors that `{EXPORT_REPORT}` lists. {decoding.get('note', '')}".strip()
    values = {"name": _quoted(name), "file": file, "length": length, "document": DOMAINS["text"].document, "onnx": file == GRAPHS[0]}
    return f"```python\n{_block('graph', values).strip()}\n```"


@dataclass(frozen=True)
class Example:
    """The code that runs one model once, as far as the kind of its input decides it.

    head: of the model.
    blocks: of the template, which make the input and run the model.
    values: of the template.
    reader: the variable and the class of what makes inputs; ``None`` where the folder has no such file.
    imports: lines before those of torch and of transformers, and between them.
    pipeline: whether the code calls transformers' pipeline as well.
    """

    head: Head
    blocks: str
    values: Mapping[str, Any]
    reader: tuple[str, str] | None
    imports: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    pipeline: bool = False

    def code(self, architecture: str, name: str, *, ours: bool, trusts_code: bool) -> str | None:
        """The code; ``None`` where the model's own code is to be loaded, and no Auto class of transformers loads it.

        Args:
            architecture, name: the model's class, and what a reader types.
            ours: whether it imports this package.
            trusts_code: load the model with its bundled code.
        """
        auto = self.head.auto_class
        if trusts_code and not auto:
            return None
        values = {**self.values, "name": _quoted(name), "task": self.head.task}
        body = "".join(_block(block, values) for block in self.blocks.split())
        loaded = [auto] if auto else [] if ours else [architecture]
        classes = [*loaded, *([self.reader[1]] if self.reader else []), *(["pipeline"] if self.pipeline else [])]
        first, last = self.imports
        imports = [*first, *(["import torch"] if "torch." in body or self.reader != TOKENIZER else []), *([IMPORT_LINE] if ours else [])]
        imports += [*last, *([f"from transformers import {', '.join(sorted(classes))}"] if classes else [])]
        loaded_by = auto or (f"hf_longattn.{architecture}" if ours else architecture)
        values |= {"imports": imports, "reader": self.reader, "loaded_by": loaded_by, "trust": _trust(trusts_code), "body": body}
        return re.sub(r"\n{3,}", "\n\n", _block("code", values)).strip()


TOKENIZER = ("tokenizer", "AutoTokenizer")


def snippet(
    folder: Path, config: dict[str, Any], name: str, length: int, metadata: Mapping[str, Any], *, trusts_code: bool = False
) -> str | None:
    """Python that loads a saved model as ``name`` and runs it once on an input of up to ``length`` tokens; ``None`` for unknown heads.

    Args:
        folder, config, name, length, metadata: as for :func:`usage_section`.
        trusts_code: load it with its bundled code, without this package.
    """
    if is_generic(config):
        return _block("generic", {"name": _quoted(name), "base": named_class(plain_names(config), "model")}).strip()
    ours = is_long(config) and not trusts_code
    if (kind := sentence_kind(folder)) is not None:
        kind = kind if kind in (RERANKER, TOKEN_VECTORS) else EMBEDDINGS
        values = {"kind": kind, "name": _quoted(name), "trust": _trust(trusts_code), "ours": ours, "import_line": IMPORT_LINE}
        return _block("sentence", values).strip()
    example = example_of(folder, config, length, metadata)
    return None if example is None else example.code(named_class(config, "AutoModel"), name, ours=ours, trusts_code=trusts_code)


def example_of(folder: Path, config: dict[str, Any], length: int, metadata: Mapping[str, Any]) -> Example | None:
    """The example of a model of transformers, by the kind of its input; ``None`` for a head without one."""
    family, architecture = family_in(config), named_class(config, "AutoModel")
    if family is not None and family.towers:
        return _of_towers(folder, architecture, length)
    if family is not None and family.audio is not None:
        return _of_sound(family, folder, config, architecture)
    if family is not None and family.grid is not None:
        return _of_grid(family, folder, config, architecture)
    chosen = config.get("long_attention")
    attention = None if chosen is None else LongAttentionConfig.from_dict(chosen)
    marks_question = config.get("question_separator_id") is not None  # the model makes the question global by itself
    takes_globals = attention is not None and prototype(attention.mechanism, attention.options).traits.takes_globals
    return _of_text(
        class_to_load(folder, architecture),
        length,
        takes_globals=takes_globals and not marks_question,
        question_first=marks_question,
        adapted=(folder / ADAPTER).is_file(),
        domain=domain_of(config, metadata),
        evidence=bool(config.get("has_evidence_heads")),
        candidates=config.get("id2label") == CANDIDATE_LABEL,
        words_with=tokenizer_words(folder),
    )


def usage(architecture: str, name: str, length: int, *, is_long: bool, trusts_code: bool = False, **options: Any) -> str | None:
    """The snippet of a model of texts.

    Args:
        architecture, name, length: its class, what a reader types, and the tokens that it takes.
        is_long: whether it is one of this package's models.
        trusts_code: load it with its bundled code, without this package.
        options: of :func:`_of_text`.
    """
    example = _of_text(architecture, length, **options)
    return None if example is None else example.code(architecture, name, ours=is_long and not trusts_code, trusts_code=trusts_code)


def _of_text(
    architecture: str,
    length: int,
    *,
    takes_globals: bool,
    question_first: bool = False,
    adapted: bool = False,
    domain: Domain = DOMAINS["text"],
    evidence: bool = False,
    candidates: bool = False,
    words_with: str | None = None,
) -> Example | None:
    """The example of a model of texts or of pages.

    Args:
        architecture, length: its class, and the tokens that it takes.
        takes_globals: whether the caller has to pass ``global_attention_mask``.
        question_first: whether the model makes the first of two texts global, so that choices come before the document.
        adapted: load the adapter in its folder, too.
        domain: what it reads.
        evidence: it reads questions and documents with the marks of HotpotQA.
        candidates: it scores candidates that are read with the documents.
        words_with: the argument in which its tokenizer takes the places of words; ``None`` for one that takes text.
    """
    lilt = None if words_with is not None else head_of(architecture, LILT_HEADS)
    if (head := lilt or head_of(architecture, HEADS)) is None:
        return None
    blocks = "candidates" if candidates and architecture.endswith("ForTokenClassification") else head.blocks
    texts, words = f"{domain.document} * 50", ""
    if words_with is not None:
        places = f"{words_with}={_PLACES[words_with]}"
        count = 50 * len(domain.document.strip('"').split())
        texts = f"{domain.document}.split() * 50, {places.format(count=count)}"
        words = f".split(), {places.format(count='len(document.split())')}"
    values = {
        **{"length": length, "texts": texts, "words": words, "document": domain.document, "masked": domain.masked},
        **{"takes_globals": takes_globals, "evidence": evidence, "adapted": adapted},
        "page_words": "words" if lilt is None else '[f" {word}" for word in words]',
        "pair": 'choice, document, truncation="only_second"' if question_first else 'document, choice, truncation="only_first"',
    }
    return Example(head, blocks, values, TOKENIZER, ((), ("from peft import PeftModel",) if adapted else ()))


def tokenizer_words(folder: Path) -> str | None:
    """The argument in which the tokenizer of a folder takes the places of words (LayoutLMv3, MarkupLM); ``None`` where it takes text."""
    import transformers

    named = tokenizer_values(folder).get("tokenizer_class")
    tokenizer_class = getattr(transformers, named, None) if isinstance(named, str) else None
    return word_argument(tokenizer_class) if isinstance(tokenizer_class, type) else None


def _of_grid(family: Family, folder: Path, config: Mapping[str, Any], architecture: str) -> Example | None:
    """The example of a model of pictures, videos or spectrograms."""
    rule: Any = family.grid
    if (head := head_of(architecture, HEADS_ON_GRIDS[rule.noun])) is None:
        return None
    values = config_with_defaults(family, config)
    size = rule.sizes(values)[1]
    grid = rule.of_size(values, size)
    processed = ProcessorFile.find(folder, IMAGE_PROCESSOR if rule.reads_photographs else FEATURE_EXTRACTOR)
    facts = {"processed": processed is not None, "input": rule.input, "cells": grid.cells}
    if not rule.reads_photographs:
        rate = int(processed.values.get("sampling_rate", SAMPLING_RATE)) if processed else SAMPLING_RATE
        layout = f"prefix tokens: {grid.prefix}; then {grid.sizes[0]} × {grid.sizes[1]} patches of frequency and time"
        facts |= {"rate": rate, "samples": f"{rate} * {size[1]} // {FRAMES_PER_SECOND}", "shape": f"1, {size[1]}, {size[0]}"}
        reader = ("extractor", "AutoFeatureExtractor") if processed else None
        return Example(head, f"spectrogram {head.blocks}", {**facts, "layout": layout}, reader)
    patches = f"{' × '.join(map(str, grid.sizes))} patches"
    layout = f"a map of {patches}" if rule.returns_maps else f"prefix tokens: {grid.prefix}; then {patches}"
    facts |= {"height": size[-2], "width": size[-1], "frames": size[0], "layout": layout}
    piped = processed is not None and head.auto_class == "AutoModelForImageClassification"
    kind = "picture" if rule.reads_pictures else "video"
    blocks = f"{kind} {head.blocks} {'picture_pipeline' if piped else ''}"
    reader = ("processor", "AutoImageProcessor") if processed else None
    return Example(head, blocks, facts, reader, ((), (PILLOW,) if processed else ()), piped)


PILLOW = "from PIL import Image"


def _of_sound(family: Family, folder: Path, config: Mapping[str, Any], architecture: str) -> Example | None:
    """The example of a model of sound."""
    if (head := head_of(architecture, SOUND_HEADS)) is None:
        return None
    processed = ProcessorFile.find(folder, FEATURE_EXTRACTOR) is not None
    writes = head.task != RECOGNITION or any(path for pattern in ("vocab*", "tokenizer*") for path in folder.glob(pattern))
    piped = processed and bool(head.auto_class) and head.task in (RECOGNITION, CLASSIFICATION) and writes
    values, rule = config_with_defaults(family, config), family.audio
    assert rule is not None
    seconds = min(rule.durations(values)[1], SHOWN_SECONDS)
    length = rule.length(seconds)
    facts = {
        **{"processed": processed, "samples": round(seconds * rule.sampling_rate), "seconds": seconds, "rate": rule.sampling_rate},
        **{"input": rule.input, "frames": rule.output_rows(values, length)},
        "shape": ", ".join(map(str, (1, length, *([] if rule.features is None else [rule.features(values)])))),
    }
    reader = ("processor", "AutoFeatureExtractor") if processed else None
    blocks = f"sound {head.blocks} {'sound_pipeline' if piped else ''}"
    return Example(head, blocks, facts, reader, (("import numpy as np",) if processed else (), ()), piped)


def _of_towers(folder: Path, architecture: str, length: int) -> Example | None:
    """The example of a model of texts and pictures; ``None`` without a tokenizer and a processor."""
    head = head_of(architecture, TOWER_HEADS)
    if head is None or not (folder / TOKENIZER_CONFIG).is_file() or not ProcessorFile.find(folder, IMAGE_PROCESSOR):
        return None
    return Example(head, head.blocks, {"length": length}, ("processor", "AutoProcessor"), ((), (PILLOW,)))


@cache
def _template() -> Template:
    return Environment(trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text(encoding="utf-8"))


def _block(name: str, values: Mapping[str, Any]) -> str:
    """A block of the template."""
    return "".join(_template().blocks[name](_template().new_context(dict(values))))


def config_with_defaults(family: Family, config: Mapping[str, Any]) -> SimpleNamespace:
    """The values of a config file, with the defaults of the family's base for those that it leaves out."""
    return SimpleNamespace(**{**family.base_config_class().to_dict(), **config})


def next_step(step: Mapping[str, Any], name: str) -> str:
    """How to train the model ``name`` that needs training, from the report's ``next_step``: a shell command, or advice."""
    if step.get("command"):
        return shlex.join(word.replace(MODEL, name) for word in step["command"])
    return (step.get("advice") or "").replace(MODEL, name)


def class_to_load(folder: Path, architecture: str) -> str:
    """The class to load a saved model with: that of its adapter's task, if it has one, or its own."""
    if not (folder / ADAPTER).is_file():
        return architecture
    task = read_json_object(folder / ADAPTER).get("task_type")
    return ADAPTED.get(task, architecture) if isinstance(task, str) else architecture


def head_of(architecture: str, heads: Mapping[str, Head] = HEADS) -> Head | None:
    """The head of a model class, of these; ``None`` for one without a snippet."""
    return next((head for ending, head in heads.items() if architecture.endswith(ending)), None)


def backbone_of(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the backbone of a model of several modalities; of any other model its own."""
    text_config = config.get("text_config")
    return text_config if config.get("model_type") == MULTIMODAL_TYPE and isinstance(text_config, dict) else config


def tokens_of(config: dict[str, Any]) -> int:
    """Maximum length of a model with this config: the rows of its position table, less those that are not positions."""
    config = backbone_of(config)
    family = family_in(config)
    if family is not None and family.towers:
        texts = [name for name, tower in family.towers.items() if tower.reads_text]
        return max(tokens_of(config.get(tower_field(name)) or {}) for name in texts)
    if family is not None and not family.reads_text:
        return family.longest(config_with_defaults(family, config))
    known = SimpleNamespace(**{"pad_token_id": None, **config})
    leading = max((table.config_value(0, known) for table in family.position_tables), default=0) if family else 0
    return int(config.get("max_position_embeddings") or config.get("n_positions") or 512) - leading


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=CONTROL.search(name) is not None)


def _trust(trusts_code: bool) -> str:
    return ", trust_remote_code=True" if trusts_code else ""
