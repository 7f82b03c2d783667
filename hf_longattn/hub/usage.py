"""What a card tells its reader to type: code that loads and runs the model, and the command that trains it further."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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

_QA = """
{question}
inputs = tokenizer(question, document{words}, truncation="only_second", max_length={length}, return_tensors="pt")
{globals}with torch.no_grad():
    outputs = model(**inputs)
start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))
"""
_PAGE_QA = """
question = "Where does the name of the house come from?"
words = "The house stands on a hill. It is called Larkfield, after the birds that nest there in spring.".split() * 40
boxes = [[10, 20, 60, 40]] * len(words)  # (left, top, right, bottom) of every word, from 0 to 1000 on its own page
inputs = tokenizer(
    question.split(), words, is_split_into_words=True, truncation="only_second", max_length={length}, return_tensors="pt"
)
tokens = zip(inputs.sequence_ids(0), inputs.word_ids(0), inputs["input_ids"][0].tolist())
inputs["bbox"] = torch.tensor(
    [[boxes[word] if text == 1 else [1000 * (token == tokenizer.sep_token_id)] * 4 for text, word, token in tokens]]
)
{globals}with torch.no_grad():
    outputs = model(**inputs)
start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))
"""
_PAGE_TOKENS = """
words = "Invoice 7 of Larkfield . Total : 12 euros".split() * 40
boxes = [[10, 20, 60, 40]] * len(words)  # (left, top, right, bottom) of every word, from 0 to 1000 on its own page
inputs = tokenizer(words, is_split_into_words=True, truncation=True, max_length={length}, return_tensors="pt")
tokens = list(zip(inputs.word_ids(0), inputs["input_ids"][0].tolist()))
inputs["bbox"] = torch.tensor(
    [[boxes[word] if word is not None else [1000 * (token == tokenizer.sep_token_id)] * 4 for word, token in tokens]]
)
with torch.no_grad():
    labels = model(**inputs).logits[0].argmax(-1).tolist()
print([(words[word], model.config.id2label[label]) for (word, _), label in zip(tokens, labels) if word is not None])
"""
_PAGE_CLASS = (
    _PAGE_TOKENS.partition("with torch")[0]
    + """with torch.no_grad():
    logits = model(**inputs).logits
print(model.config.id2label[logits[0].argmax().item()])
"""
)
_PLACES = {
    BOXES: "[[10, 20, 60, 40]] * {count}",  # (left, top, right, bottom) of every word, from 0 to 1000 on its own page
    PATHS: '["/html/body/p"] * {count}',
}
"""The places of words that a tokenizer takes, by its argument."""
_QUESTION = """\
question = "Where does the name of the house come from?"
document = "The house stands on a hill. It is called Larkfield, after the birds that nest there in spring. " * 40"""
_MARKED_QUESTION = """\
question = "[q] Where does the name of the house come from? [/q]"
# each paragraph: <t> title </t> sentence [s] sentence [s]
document = "<t> Larkfield </t> The house stands on a hill. [s] Its name is that of the birds that nest there. [s] " * 40"""
_CANDIDATES = """
question, candidates = "Where does the name of the house come from?", ["birds", "a hill"]
first = " ".join([f"[q] {{question}} [/q]", *(f"[ent] {{candidate}} [/ent]" for candidate in candidates)])
document = "The house stands on a hill. It is called Larkfield, after the birds that nest there in spring. " * 40
inputs = tokenizer(first, document, truncation="only_second", max_length={length}, return_tensors="pt")
places = inputs["input_ids"][0] == tokenizer.convert_tokens_to_ids("[ent]")
with torch.no_grad():
    scores = model(**inputs).logits[0, places, 0]
print(candidates[scores.argmax()])
"""
_QA_GLOBALS = """\
# the question sees everything, and everything sees the question
before_document = torch.tensor(inputs.sequence_ids(0).index(1))
inputs["global_attention_mask"] = (torch.arange(inputs["input_ids"].shape[1]) < before_document).long()[None]
"""
_MASKED = """
text = {masked} + {document} * 100
inputs = tokenizer(text, truncation=True, max_length={length}, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
masked = inputs["input_ids"][0] == tokenizer.mask_token_id
print(tokenizer.decode(logits[0, masked].argmax(-1)))
"""
_GENERATE = """
inputs = tokenizer({document} * 50, truncation=True, max_length={length} - 20, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
"""
_DOCUMENT = """
inputs = tokenizer({texts}, truncation=True, max_length={length}, return_tensors="pt")
"""
_SUMMARY = f"""{_DOCUMENT}\
output = model.generate(**inputs, max_new_tokens=60, do_sample=False)
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""
_LOGITS = f"""{_DOCUMENT}\
with torch.no_grad():
    logits = model(**inputs).logits
"""
_CLASS = f"""{_LOGITS}\
print(model.config.id2label[logits[0].argmax().item()])
"""
_TOKEN_CLASSES = f"""{_LOGITS}\
print([model.config.id2label[number] for number in logits[0].argmax(-1).tolist()])
"""
_NEXT_SENTENCE = """
document, sentence = "A long document starts here. " * 50, "It ends here."
inputs = tokenizer(document, sentence, truncation="only_first", max_length={length}, return_tensors="pt")
with torch.no_grad():
    print(model(**inputs).logits.softmax(-1))
"""
_CHOICES = """
document, choices = "A long document starts here. " * 50, ["It ends here.", "It ends there."]
rows = [tokenizer({pair}, max_length={length}, return_tensors="pt") for choice in choices]
inputs = {{name: torch.stack([row[name] for row in rows], dim=1) for name in rows[0]}}  # (texts, choices, tokens)
with torch.no_grad():
    print(model(**inputs).logits.softmax(-1))
"""
_OUTPUTS = (
    _DOCUMENT
    + """\
with torch.no_grad():
    outputs = model(**inputs)
print({{name: tuple(value.shape) for name, value in outputs.items() if isinstance(value, torch.Tensor)}})
"""
)
_HIDDEN = f"""{_DOCUMENT}\
with torch.no_grad():
    print(model(**inputs).last_hidden_state.shape)
"""
_PICTURE = """
image = Image.new("RGB", ({width}, {height}), "white")  # or yours: Image.open("photo.jpg").convert("RGB")
inputs = processor(image, return_tensors="pt")
"""
_PIXELS = """
inputs = {{"pixel_values": torch.rand(1, 3, {height}, {width}) * 2 - 1}}  # pictures, normalised as the model was trained
"""
_VIDEO = """
frames = [Image.new("RGB", ({width}, {height}), "white")] * {frames}  # or yours: [Image.open(file).convert("RGB") for file in files]
inputs = processor(frames, return_tensors="pt")
"""
_FRAME_PIXELS = """
inputs = {{"{input}": torch.rand(1, {frames}, 3, {height}, {width}) * 2 - 1}}  # videos, normalised as the model was trained
"""
_VIDEO_OUTPUTS = """\
inputs["bool_masked_pos"] = torch.arange({cells})[None] % 2 == 1  # what is left out, and rebuilt
with torch.no_grad():
    print(model(**inputs).logits.shape)
"""
_SOUND = """
sound = torch.randn({samples}).numpy()  # or yours at {rate:,} samples a second: soundfile.read("sound.wav", dtype="float32")[0]
inputs = extractor(sound, sampling_rate={rate}, return_tensors="pt")
"""
_SPECTROGRAM = """
inputs = {{"{input}": torch.randn({shape})}}  # spectrograms, normalised as the model was trained
"""
_PICTURE_CLASS = """\
with torch.no_grad():
    logits = model(**inputs).logits
print(model.config.id2label[logits[0].argmax().item()])
"""
_SIMILARITY = """
texts = ["A long caption starts here.", "Another one."]
picture = Image.new("RGB", (640, 480))  # or yours: Image.open("photo.jpg").convert("RGB")
inputs = processor(text=texts, images=picture, padding="max_length", truncation=True, max_length={length}, return_tensors="pt")
with torch.no_grad():
    print(model(**inputs).logits_per_image)  # (pictures, texts)
"""
_RECORDING = """
samples = np.random.default_rng(0).standard_normal({samples}).astype(np.float32)  # {seconds:g} s; or yours: soundfile.read("talk.wav")[0]
inputs = processor(samples, sampling_rate={rate}, return_tensors="pt")
"""
_SAMPLES = """
inputs = {{"{input}": torch.randn({shape})}}  # {seconds:g} s, normalised as the model was trained
"""
_TRANSCRIPT = """\
with torch.no_grad():
    logits = model(**inputs).logits
print(logits.argmax(-1))  # a token for every frame, which `processor.batch_decode` of AutoProcessor makes a text
"""
_GENERATED = """\
print(model.generate(**inputs))  # tokens, which `processor.batch_decode` of AutoProcessor makes a text
"""
_ENCODED = """\
with torch.no_grad():
    print(model.get_encoder()(**inputs).last_hidden_state.shape)  # {frames:,} frames
"""
_FRAME_CLASSES = """\
with torch.no_grad():
    print(model(**inputs).logits.shape)  # classes of every frame
"""
_SPEAKER = """\
with torch.no_grad():
    print(model(**inputs).embeddings.shape)
"""
_FRAMES = """\
with torch.no_grad():
    print(model(**inputs).last_hidden_state.shape)  # {frames:,} frames
"""
_SOUND_PIPELINE = """
run = pipeline("{task}", model={name})  # reads files, too
print(run({{"raw": samples, "sampling_rate": {rate}}}))
"""
_PIPELINE = """
classify = pipeline("image-classification", model=model, image_processor=processor)  # reads files and addresses, too
print(classify(image, top_k=1))
"""
_PICTURE_STATES = """\
with torch.no_grad():
    states = model(**inputs).last_hidden_state  # {layout}
print(states.shape)
"""
_PICTURE_MAPS = """\
with torch.no_grad():
    print([tuple(states.shape) for states in model(**inputs).feature_maps])
"""
_PICTURE_OUTPUTS = """\
with torch.no_grad():
    outputs = model(**inputs)
print({{name: tuple(value.shape) for name, value in outputs.items() if isinstance(value, torch.Tensor)}})
"""


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


_SENTENCES = """
embeddings = model.encode(["A long document starts here. " * 50, "A short one."])
print(model.similarity(embeddings, embeddings))
"""

_TOKEN_VECTORS = """
documents = model.encode_document(["A long document starts here. " * 50, "A short one."])
print(model.similarity(model.encode_query(["Where does the document start?"]), documents))
"""
_RANKING = """
documents = ["A long document starts here. " * 50, "A short one."]
print(model.rank("Where does the document start?", documents))
"""
_ONNX = """
import onnxruntime
from transformers import AutoTokenizer

folder = {name}  # of a repository: huggingface_hub.snapshot_download({name})
tokenizer = AutoTokenizer.from_pretrained(folder)
graph = onnxruntime.InferenceSession(f"{{folder}}/{file}")
inputs = tokenizer({document} * 50, truncation=True, max_length={length}, return_tensors="np")
outputs = graph.run(None, {{one.name: inputs[one.name] for one in graph.get_inputs()}})
print({{one.name: value.shape for one, value in zip(graph.get_outputs(), outputs)}})
"""
_PROGRAM = """
import torch
from transformers import AutoTokenizer

folder = {name}  # of a repository: huggingface_hub.snapshot_download({name})
tokenizer = AutoTokenizer.from_pretrained(folder)
graph = torch.export.load(f"{{folder}}/{file}").module()
inputs = tokenizer({document} * 50, truncation=True, max_length={length}, return_tensors="pt")
print({{name: tuple(value.shape) for name, value in graph(**inputs).items()}})
"""


@dataclass(frozen=True)
class Head:
    """How models of one head are loaded and run.

    auto_class: of transformers; empty where there is none.
    task: its name on the Hub.
    code: runs the loaded model once.
    """

    auto_class: str
    task: str | None
    code: str


HEADS = {
    "LayoutLMForQuestionAnswering": Head("AutoModelForDocumentQuestionAnswering", "document-question-answering", _PAGE_QA),
    "LayoutLMForTokenClassification": Head("AutoModelForTokenClassification", "token-classification", _PAGE_TOKENS),
    "LayoutLMForSequenceClassification": Head("AutoModelForSequenceClassification", "text-classification", _PAGE_CLASS),
    "ForQuestionAnswering": Head("AutoModelForQuestionAnswering", "question-answering", _QA),
    "ForMaskedLM": Head("AutoModelForMaskedLM", "fill-mask", _MASKED),
    "ForCausalLM": Head("AutoModelForCausalLM", "text-generation", _GENERATE),
    "LMHeadModel": Head("AutoModelForCausalLM", "text-generation", _GENERATE),
    "ForConditionalGeneration": Head("AutoModelForSeq2SeqLM", None, _SUMMARY),
    "ForSequenceClassification": Head("AutoModelForSequenceClassification", "text-classification", _CLASS),
    "ForTokenClassification": Head("AutoModelForTokenClassification", "token-classification", _TOKEN_CLASSES),
    "ForMultipleChoice": Head("AutoModelForMultipleChoice", "multiple-choice", _CHOICES),
    "ForNextSentencePrediction": Head("AutoModelForNextSentencePrediction", None, _NEXT_SENTENCE),
    "ForPreTraining": Head("AutoModelForPreTraining", None, _OUTPUTS),
    "MTModel": Head("AutoModelForSeq2SeqLM", "translation", _SUMMARY),
    "DoubleHeadsModel": Head("", None, _OUTPUTS),  # without an Auto class
    "ModelWithProjection": Head("", "feature-extraction", _OUTPUTS),
    "Model": Head("AutoModel", "feature-extraction", _HIDDEN),
}
"""Ending of a class's name -> how its models are run."""
_WORDS, _SPACED = "words, is_split_into_words", '[f" {{word}}" for word in words], is_split_into_words'
LILT_HEADS = {
    "LiltForQuestionAnswering": Head("AutoModelForQuestionAnswering", "question-answering", _PAGE_QA.replace(_WORDS, _SPACED)),
    "LiltForTokenClassification": Head("AutoModelForTokenClassification", "token-classification", _PAGE_TOKENS.replace(_WORDS, _SPACED)),
    "LiltForSequenceClassification": Head(
        "AutoModelForSequenceClassification", "text-classification", _PAGE_CLASS.replace(_WORDS, _SPACED)
    ),
}
"""LiLT with the tokenizer of a RoBERTa, which takes no boxes, and for which a space belongs to the word."""
PICTURE_HEADS = {
    "ForImageClassification": Head("AutoModelForImageClassification", "image-classification", _PICTURE_CLASS),
    "ForImageClassificationWithTeacher": Head("", "image-classification", _PICTURE_CLASS),
    "ForMaskedImageModeling": Head("AutoModelForMaskedImageModeling", None, _PICTURE_OUTPUTS),
    "ForPreTraining": Head("AutoModelForPreTraining", None, _PICTURE_OUTPUTS),
    "ForSemanticSegmentation": Head("AutoModelForSemanticSegmentation", "image-segmentation", _PICTURE_OUTPUTS),
    "Backbone": Head("", "image-feature-extraction", _PICTURE_MAPS),  # AutoBackbone takes repositories only
    "ModelWithProjection": Head("", "image-feature-extraction", _PICTURE_OUTPUTS),
    "Model": Head("AutoModel", "image-feature-extraction", _PICTURE_STATES),
}
"""The same for models of pictures."""
RECOGNITION, CLASSIFICATION = "automatic-speech-recognition", "audio-classification"
"""Tasks of sound for which transformers has a pipeline."""
SOUND_HEADS = {
    "ForCTC": Head("AutoModelForCTC", RECOGNITION, _TRANSCRIPT),
    "ForSequenceClassification": Head("AutoModelForAudioClassification", CLASSIFICATION, _PICTURE_CLASS),
    "ForAudioFrameClassification": Head("AutoModelForAudioFrameClassification", None, _FRAME_CLASSES),
    "ForXVector": Head("AutoModelForAudioXVector", None, _SPEAKER),
    "ForPreTraining": Head("AutoModelForPreTraining", None, _PICTURE_OUTPUTS),
    "ForRNNT": Head("", RECOGNITION, _GENERATED),
    "ForTDT": Head("", RECOGNITION, _GENERATED),
    "ForConditionalGeneration": Head("AutoModelForSpeechSeq2Seq", RECOGNITION, _GENERATED),
    "ForAudioClassification": Head("AutoModelForAudioClassification", CLASSIFICATION, _PICTURE_CLASS),
    "Encoder": Head("AutoModel", "feature-extraction", _FRAMES),
    "WhisperModel": Head("AutoModel", "feature-extraction", _ENCODED),
    "Model": Head("AutoModel", "feature-extraction", _FRAMES),
}
"""The same for models of sound."""
VIDEO_HEADS = {
    "ForVideoClassification": Head("AutoModelForVideoClassification", "video-classification", _PICTURE_CLASS),
    "ForPreTraining": Head("AutoModelForPreTraining", None, _VIDEO_OUTPUTS),
    "Model": Head("AutoModel", "feature-extraction", _PICTURE_STATES),
}
"""The same for models of videos."""
SPECTROGRAM_HEADS = {
    "ForAudioClassification": Head("AutoModelForAudioClassification", "audio-classification", _PICTURE_CLASS),
    "Model": Head("AutoModel", "feature-extraction", _PICTURE_STATES),
}
"""The same for models of spectrograms."""
TOWER_HEADS = {"Model": Head("AutoModel", "zero-shot-image-classification", _SIMILARITY)}
"""The same for models of texts and pictures."""
HEADS_ON_GRIDS = {"picture": PICTURE_HEADS, "video": VIDEO_HEADS, "spectrogram": SPECTROGRAM_HEADS}
"""What a model on a grid reads -> how its models are run."""
AUTO_CLASSES = {
    head.task: head.auto_class
    for head in (*SOUND_HEADS.values(), *SPECTROGRAM_HEADS.values(), *HEADS.values(), *VIDEO_HEADS.values(), *PICTURE_HEADS.values())
    if head.auto_class and head.task is not None
}
"""The Hub's name of a task -> the Auto class that loads its models."""

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
    body = (_ONNX if file == GRAPHS[0] else _PROGRAM).strip()
    code = body.format(name=_quoted(name), file=file, length=length, document=DOMAINS["text"].document)
    return f"```python\n{code}\n```"


def snippet(
    folder: Path, config: dict[str, Any], name: str, length: int, metadata: Mapping[str, Any], *, trusts_code: bool = False
) -> str | None:
    """Python that loads a saved model as ``name`` and runs it once on an input of up to ``length`` tokens; ``None`` for unknown heads.

    Args:
        folder, config, name, length, metadata: as for :func:`usage_section`.
        trusts_code: load it with its bundled code, without this package.
    """
    is_long = "long_attention" in config
    if is_generic(config):
        base = named_class(plain_names(config), "model")
        return f"import hf_longattn\n\nmodel = hf_longattn.load_generic({_quoted(name)})  # a {base} with mechanisms; AutoModel refuses it"
    if (kind := sentence_kind(folder)) is not None:
        kind = kind if kind in (RERANKER, TOKEN_VECTORS) else EMBEDDINGS
        start = [*([IMPORT_LINE] if is_long and not trusts_code else []), f"from sentence_transformers import {kind}", ""]
        body = {RERANKER: _RANKING, TOKEN_VECTORS: _TOKEN_VECTORS}.get(kind, _SENTENCES).strip()
        return "\n".join([*start, f"model = {kind}({_quoted(name)}{_trust(trusts_code)})", body])
    family = family_in(config)
    if family is not None and family.towers:
        return tower_usage(folder, config, name, length, trusts_code=trusts_code)
    if family is not None and family.audio is not None:
        return sound_usage(family, folder, config, name, trusts_code=trusts_code)
    if family is not None and family.grid is not None:
        of_grid = picture_usage if family.grid.reads_photographs else spectrogram_usage
        return of_grid(family, folder, config, name, trusts_code=trusts_code)
    attention = LongAttentionConfig.from_dict(config["long_attention"]) if is_long else None
    marks_question = config.get("question_separator_id") is not None  # the model makes the question global by itself
    return usage(
        class_to_load(folder, named_class(config, "AutoModel")),
        name,
        length,
        is_long=is_long,
        takes_globals=attention is not None
        and prototype(attention.mechanism, attention.options).traits.takes_globals
        and not marks_question,
        question_first=marks_question,
        trusts_code=trusts_code,
        adapted=(folder / ADAPTER).is_file(),
        domain=domain_of(config, metadata),
        evidence=bool(config.get("has_evidence_heads")),
        candidates=config.get("id2label") == CANDIDATE_LABEL,
        words_with=tokenizer_words(folder),
    )


def usage(
    architecture: str,
    name: str,
    length: int,
    *,
    is_long: bool,
    takes_globals: bool,
    question_first: bool = False,
    trusts_code: bool = False,
    adapted: bool = False,
    domain: Domain = DOMAINS["text"],
    evidence: bool = False,
    candidates: bool = False,
    words_with: str | None = None,
) -> str | None:
    """The snippet of a transformers model.

    Args:
        architecture, name, length: its class, what a reader types, and the tokens that it takes.
        is_long: whether it is one of this package's models.
        takes_globals: whether the caller has to pass ``global_attention_mask``.
        question_first: whether the model makes the first of two texts global, so that choices come before the document.
        trusts_code: load it with its bundled code, without this package.
        adapted: load the adapter in its folder, too.
        domain: what it reads.
        evidence: it reads questions and documents with the marks of HotpotQA.
        candidates: it scores candidates that are read with the documents.
        words_with: the argument in which its tokenizer takes the places of words; ``None`` for one that takes text.
    """
    head = head_of(architecture, HEADS if words_with is not None else {**LILT_HEADS, **HEADS})
    if head is None or (trusts_code and not head.auto_class):
        return None
    auto = head.auto_class
    body = _CANDIDATES if candidates and architecture.endswith("ForTokenClassification") else head.code
    ours = is_long and not trusts_code
    imported = ([auto] if auto else [] if ours else [architecture]) + ["AutoTokenizer"]
    loaded_by = auto or (f"hf_longattn.{architecture}" if ours else architecture)
    imports = ["import torch"] if "torch." in body else []
    imports += [IMPORT_LINE] if ours else []
    imports += ["from peft import PeftModel"] if adapted else []
    code = "\n".join([*imports, f"from transformers import {', '.join(sorted(imported))}", "", ""])
    code += f"tokenizer = AutoTokenizer.from_pretrained({_quoted(name)})\n"
    code += f"model = {loaded_by}.from_pretrained({_quoted(name)}{_trust(trusts_code)}).eval()\n"
    code += f'model = PeftModel.from_pretrained(model, {_quoted(name)}, subfolder="{ADAPTER.parent}").eval()\n' if adapted else ""
    pair = 'choice, document, truncation="only_second"' if question_first else 'document, choice, truncation="only_first"'
    texts, words = f"{domain.document} * 50", ""
    if words_with is not None:
        places = f"{words_with}={_PLACES[words_with]}"
        count = 50 * len(domain.document.strip('"').split())
        texts = f"{domain.document}.split() * 50, {places.format(count=count)}"
        words = f".split(), {places.format(count='len(document.split())')}"
    code += body.format(
        length=length,
        texts=texts,
        words=words,
        globals=_QA_GLOBALS if is_long and takes_globals else "",
        question=_MARKED_QUESTION if evidence else _QUESTION,
        document=domain.document,
        masked=domain.masked,
        pair=pair,
    )
    return re.sub(r"\n{3,}", "\n\n", code).strip()


def tokenizer_words(folder: Path) -> str | None:
    """The argument in which the tokenizer of a folder takes the places of words (LayoutLMv3, MarkupLM); ``None`` where it takes text."""
    import transformers

    named = tokenizer_values(folder).get("tokenizer_class")
    tokenizer_class = getattr(transformers, named, None) if isinstance(named, str) else None
    return word_argument(tokenizer_class) if isinstance(tokenizer_class, type) else None


def spectrogram_usage(family: Family, folder: Path, config: Mapping[str, Any], name: str, *, trusts_code: bool = False) -> str | None:
    """The snippet of a model of spectrograms; arguments as for :func:`snippet`."""
    head = head_of(named_class(config, "AutoModel"), SPECTROGRAM_HEADS)
    if head is None:
        return None
    ours, processed = "long_attention" in config and not trusts_code, ProcessorFile.find(folder, FEATURE_EXTRACTOR)
    names = sorted([*(["AutoFeatureExtractor"] if processed else []), head.auto_class])
    lines = ["import torch", *([IMPORT_LINE] if ours else []), f"from transformers import {', '.join(names)}", ""]
    lines += [f"extractor = AutoFeatureExtractor.from_pretrained({_quoted(name)})"] if processed else []
    lines += [f"model = {head.auto_class}.from_pretrained({_quoted(name)}{_trust(trusts_code)}).eval()", ""]
    values, rule = config_with_defaults(family, config), family.grid
    assert rule is not None
    size = rule.sizes(values)[1]
    grid = rule.of_size(values, size)
    rate = int(processed.values.get("sampling_rate", SAMPLING_RATE)) if processed else SAMPLING_RATE
    body = (_SOUND if processed else _SPECTROGRAM) + head.code
    code = body.format(
        samples=f"{rate} * {size[1]} // {FRAMES_PER_SECOND}",
        rate=rate,
        input=rule.input,
        shape=f"1, {size[1]}, {size[0]}",
        layout=f"prefix tokens: {grid.prefix}; then {grid.sizes[0]} × {grid.sizes[1]} patches of frequency and time",
    )
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines) + code).strip()


def picture_usage(family: Family, folder: Path, config: Mapping[str, Any], name: str, *, trusts_code: bool = False) -> str | None:
    """The snippet of a model of pictures or videos; arguments as for :func:`snippet`."""
    architecture = named_class(config, "AutoModel")
    rule = family.grid
    assert rule is not None
    head = head_of(architecture, HEADS_ON_GRIDS[rule.noun])
    if head is None or (trusts_code and not head.auto_class):
        return None
    ours, processed = "long_attention" in config and not trusts_code, ProcessorFile.find(folder, IMAGE_PROCESSOR) is not None
    classifies = processed and head.auto_class == "AutoModelForImageClassification"
    auto = head.auto_class or architecture
    names = [*(["AutoImageProcessor"] if processed else []), *([auto] if head.auto_class or not ours else [])]
    names += ["pipeline"] if classifies else []
    imports = ["import torch", *([IMPORT_LINE] if ours else []), *(["from PIL import Image"] if processed else [])]
    imports += [f"from transformers import {', '.join(sorted(names))}"] if names else []
    loaded_by = f"hf_longattn.{architecture}" if ours and not head.auto_class else auto
    lines = [*imports, ""]
    lines += [f"processor = AutoImageProcessor.from_pretrained({_quoted(name)})"] if processed else []
    lines += [f"model = {loaded_by}.from_pretrained({_quoted(name)}{_trust(trusts_code)}).eval()", ""]
    values = config_with_defaults(family, config)
    size = rule.sizes(values)[1]
    grid = rule.of_size(values, size)
    of_pictures, of_videos = (_PICTURE, _PIXELS), (_VIDEO, _FRAME_PIXELS)
    body = (of_pictures if rule.reads_pictures else of_videos)[not processed] + head.code + (_PIPELINE if classifies else "")
    patches = f"{' × '.join(map(str, grid.sizes))} patches"
    layout = f"a map of {patches}" if rule.returns_maps else f"prefix tokens: {grid.prefix}; then {patches}"
    code = body.format(height=size[-2], width=size[-1], frames=size[0], input=rule.input, cells=grid.cells, layout=layout)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines) + code).strip()


def sound_usage(family: Family, folder: Path, config: Mapping[str, Any], name: str, *, trusts_code: bool = False) -> str | None:
    """The snippet of a model of sound; arguments as for :func:`snippet`."""
    architecture = named_class(config, "AutoModel")
    head = head_of(architecture, SOUND_HEADS)
    if head is None or (trusts_code and not head.auto_class):
        return None
    ours, processed = "long_attention" in config and not trusts_code, ProcessorFile.find(folder, FEATURE_EXTRACTOR) is not None
    writes = head.task != RECOGNITION or any(path for pattern in ("vocab*", "tokenizer*") for path in folder.glob(pattern))
    spelled = processed and bool(head.auto_class) and head.task in (RECOGNITION, CLASSIFICATION) and writes
    auto = head.auto_class or architecture
    names = [*(["AutoFeatureExtractor"] if processed else []), *([auto] if head.auto_class or not ours else [])]
    names += ["pipeline"] if spelled else []
    imports = [*(["import numpy as np"] if processed else []), "import torch", *([IMPORT_LINE] if ours else [])]
    imports += [f"from transformers import {', '.join(sorted(names))}"] if names else []
    loaded_by = f"hf_longattn.{architecture}" if ours and not head.auto_class else auto
    lines = [*imports, ""]
    lines += [f"processor = AutoFeatureExtractor.from_pretrained({_quoted(name)})"] if processed else []
    lines += [f"model = {loaded_by}.from_pretrained({_quoted(name)}{_trust(trusts_code)}).eval()", ""]
    values = config_with_defaults(family, config)
    rule: Any = family.audio
    seconds = min(rule.durations(values)[1], SHOWN_SECONDS)
    length = rule.length(seconds)
    body = (_RECORDING if processed else _SAMPLES) + head.code + (_SOUND_PIPELINE if spelled else "")
    code = body.format(
        samples=round(seconds * rule.sampling_rate),
        seconds=seconds,
        rate=rule.sampling_rate,
        input=rule.input,
        shape=", ".join(map(str, (1, length, *([] if rule.features is None else [rule.features(values)])))),
        frames=rule.output_rows(values, length),
        task=head.task,
        name=_quoted(name),
    )
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines) + code).strip()


def tower_usage(folder: Path, config: Mapping[str, Any], name: str, length: int, *, trusts_code: bool = False) -> str | None:
    """The snippet of a model of texts and pictures; arguments as for :func:`snippet`. ``None`` without a tokenizer and a processor."""
    head = head_of(named_class(config, "AutoModel"), TOWER_HEADS)
    if head is None or not (folder / TOKENIZER_CONFIG).is_file() or not ProcessorFile.find(folder, IMAGE_PROCESSOR):
        return None
    lines = ["import torch", *([IMPORT_LINE] if is_long(config) and not trusts_code else []), "from PIL import Image"]
    lines += [f"from transformers import {head.auto_class}, AutoProcessor", ""]
    lines += [f"processor = AutoProcessor.from_pretrained({_quoted(name)})"]
    lines += [f"model = {head.auto_class}.from_pretrained({_quoted(name)}{_trust(trusts_code)}).eval()", ""]
    return "\n".join(lines) + head.code.format(length=length).rstrip()


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
