"""What is measured: models, ways to run them, and the groups of both in the order of their importance."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.dev import ROOT

HOME = ROOT / "build" / "rivals"
"""The folder of the checkpoints, graphs and weights."""
THREADS = 2
LIMIT_LOW, LIMIT_COSINE, LIMIT_DIFFERENCE = 0.99, 0.9999, 5e-3
"""Least cosine of a token in a low precision, least cosine in fp32, and largest difference in fp32."""
DECODERS = ("gemma", "gemma6")
"""Models that are compared by the logits of the last token; the others by all hidden states."""

MODELS = {
    "minilm": "all-MiniLM-L6-v2",
    "modernbert": "ModernBERT-base's shape",
    "modernbert3": "ModernBERT-base's shape, 3 of 22 layers",
    "gemma": "Gemma 3 270M",
    "gemma6": "Gemma 3 270M, 6 of 18 layers",
    "bert": "BERT-base's shape",
    "privacy": "privacy-filter's shape, 2 of 8 layers",
}


class Way(NamedTuple):
    """A way to run a model."""

    title: str
    ours: bool
    precision: str = "fp32"
    same: bool = True
    """Whether it computes the function of the stock model."""


OURS = {
    "torch-longattn": Way("longattn, PyTorch", True),
    "torch-longattn-optimised": Way("longattn, PyTorch, optimize_for_inference", True),
    "torch-longattn-compile": Way("longattn, PyTorch, compiled", True),
    "ort:longattn": Way("longattn export, ONNX Runtime", True),
    "ov:longattn-openvino": Way("longattn export, OpenVINO", True),
    "torch-longattn-bf16": Way("longattn, PyTorch", True, "bf16"),
    "torch-longattn-int8": Way("longattn, PyTorch, optimize_for_inference", True, "int8"),
    "ov:longattn-openvino+bf16": Way("longattn export, OpenVINO", True, "bf16"),
    "ort:int8-longattn": Way("longattn export, ONNX Runtime, quantize_dynamic", True, "int8"),
    "torch-longformer-optimised": Way("converted to longformer, PyTorch, optimize_for_inference", True, same=False),
    "ort:longformer": Way("converted to longformer, longattn export, ONNX Runtime", True, same=False),
    "torch-longformer-bf16": Way("converted to longformer, PyTorch", True, "bf16", same=False),
    "torch-longformer-int8": Way("converted to longformer, PyTorch, optimize_for_inference", True, "int8", same=False),
}
THEIRS = {
    "torch-sdpa": Way("sdpa, PyTorch", False),
    "torch-eager": Way("eager, PyTorch", False),
    "torch-sdpa-compile": Way("sdpa, PyTorch, compiled", False),
    "torch-flex-compile": Way("flex_attention, PyTorch, compiled", False),
    "llama-f32": Way("llama.cpp F32", False),
    "ort:tf-onnx": Way("transformers.exporters, ONNX Runtime", False),
    "ort:tf-onnx-nomask": Way("transformers.exporters without attention_mask, ONNX Runtime", False),
    "ov:tf-ov": Way("transformers.exporters, OpenVINO", False),
    "ort:st-onnx": Way("sentence-transformers, ONNX Runtime", False),
    "ort:st-onnx-O3": Way("sentence-transformers O3, ONNX Runtime", False),
    "ov:st-ov": Way("sentence-transformers, OpenVINO", False),
    "torch-sdpa-bf16": Way("sdpa, PyTorch", False, "bf16"),
    "torch-eager-bf16": Way("eager, PyTorch", False, "bf16"),
    "llama-f16": Way("llama.cpp F16", False, "f16"),
    "llama-q8_0": Way("llama.cpp Q8_0", False, "q8_0"),
    "ov:tf-ov+bf16": Way("transformers.exporters, OpenVINO", False, "bf16"),
    "ort:int8-tf-onnx": Way("transformers.exporters, ONNX Runtime, quantize_dynamic", False, "int8"),
    "ort:st-onnx-avx512_vnni": Way("sentence-transformers avx512_vnni, ONNX Runtime", False, "int8"),
    "ov:st-ov-int8": Way("sentence-transformers, OpenVINO", False, "int8"),
}
WAYS = OURS | THEIRS
"""Way -> what it is. ``torch-ATTENTION[-MORE]``, ``llama-TYPE``, ``ort:GRAPH`` and ``ov:GRAPH[+bf16]``."""


class Group(NamedTuple):
    """Ways whose passes take turns."""

    model: str
    length: int
    ways: tuple[str, ...]


ENCODER = (
    "torch-longattn",
    "ort:longattn",
    "ov:longattn-openvino",
    "torch-sdpa",
    "llama-f32",
    "ort:tf-onnx",
    "ov:tf-ov",
)
FULL = (*ENCODER, "torch-longattn-optimised", "ort:tf-onnx-nomask")
EXACT = {
    "minilm": (*FULL, "ort:st-onnx", "ort:st-onnx-O3", "ov:st-ov"),
    "modernbert": ENCODER,
    "modernbert3": ENCODER[:5],
    "gemma": ("torch-longattn", "torch-sdpa", "llama-f32", "ort:tf-onnx", "ov:tf-ov"),
    "gemma6": ("torch-longattn", "torch-sdpa", "llama-f32"),
    "bert": (*FULL, "torch-longformer-optimised", "ort:longformer"),
    "privacy": ("torch-longattn", "ort:longattn", "ov:longattn-openvino", "torch-eager", "ort:tf-onnx", "ov:tf-ov"),
}
"""Model -> ways in fp32."""
COMPILED = ("torch-longattn-compile", "torch-sdpa-compile", "torch-flex-compile")
DECODER_LOW = ("torch-longattn-bf16", "torch-longattn-int8", "torch-sdpa-bf16", "llama-q8_0", "ov:tf-ov+bf16")
ENCODER_LOW = (*DECODER_LOW, "ov:longattn-openvino+bf16")
LOW = {
    "minilm": (*ENCODER_LOW, "ort:st-onnx-avx512_vnni", "ov:st-ov-int8"),
    "modernbert": ENCODER_LOW,
    "gemma": DECODER_LOW,
    "bert": (*ENCODER_LOW, "torch-longformer-bf16", "torch-longformer-int8"),
    "privacy": (
        "torch-longattn-bf16",
        "torch-longattn-int8",
        "torch-eager-bf16",
        "ov:longattn-openvino+bf16",
        "ov:tf-ov+bf16",
    ),
}
"""Model -> ways in other precisions."""
ROUNDED = ("llama-f16", "ort:int8-tf-onnx", "ort:int8-longattn")
"""Ways in other precisions that are too slow or too far off to be measured on long texts."""
LOWER = {
    **{model: ways + ROUNDED for model, ways in LOW.items() if model != "privacy"},
    "gemma": (*DECODER_LOW, "llama-f16"),
    "privacy": LOW["privacy"],
}
ORDER = ("modernbert", "gemma", "minilm", "bert", "privacy")
SHORT, MIDDLE, LONG, LONGEST = 512, 2048, 8192, 32768
LENGTHS = (SHORT, MIDDLE, LONG, LONGEST)
PLAN = [
    *(Group(model, length, EXACT[model]) for length in (LONG, SHORT) for model in ORDER),
    *(Group(model, LONG, LOW[model]) for model in ORDER),
    *(Group(model, MIDDLE, EXACT[model]) for model in ORDER),
    *(Group(model, LONG, COMPILED) for model in ("modernbert", "gemma")),
    *(Group(model, LONGEST, EXACT[model]) for model in ("modernbert3", "gemma6")),
    *(Group(model, SHORT, LOWER[model]) for model in ORDER),
    *(Group(model, MIDDLE, COMPILED) for model in ("modernbert", "gemma", "minilm")),
    *(Group(model, MIDDLE, LOWER[model]) for model in ORDER),
]
QUICK = [Group("minilm", SHORT, (*EXACT["minilm"], "torch-longattn-bf16", "llama-q8_0"))]
LARGE = {
    ("ort:tf-onnx", "bert"): 17,
    ("ort:tf-onnx", "modernbert"): 17,
    ("ort:tf-onnx", "minilm"): 17,
    ("ort:tf-onnx", "privacy"): 15,
    ("ort:st-onnx", "minilm"): 17,
    ("ort:st-onnx-O3", "minilm"): 17,
    ("ort:st-onnx-avx512_vnni", "minilm"): 17,
    ("torch-eager", "privacy"): 13,
    ("torch-eager-bf16", "privacy"): 9,
    ("ov:tf-ov", "privacy"): 13,
    ("ov:tf-ov+bf16", "privacy"): 9,
    ("torch-sdpa", "modernbert3"): 17,
    ("torch-sdpa", "gemma6"): 8,
    ("llama-f32", "modernbert3"): 8,
    ("llama-f32", "gemma6"): 8,
}
"""GiB of a process at 8,192 tokens or more, where it takes more than 6. It is loaded alone."""


def checked() -> Iterator[Group]:
    """Every way of every model, once at :data:`SHORT` tokens."""
    for model in ORDER:
        ways = dict.fromkeys(way for group in PLAN if group.model == model for way in group.ways)
        yield Group(model, SHORT, tuple(ways))


def chosen(groups: Sequence[Group], only: Sequence[str]) -> list[Group]:
    """The groups with the ways whose MODEL:LENGTH:WAY contains one of the texts; all without a text."""
    if not only:
        return list(groups)
    found = []
    for group in groups:
        names = {way: f"{group.model}:{group.length}:{way}" for way in group.ways}
        if ways := tuple(way for way, name in names.items() if any(text in name for text in only)):
            found.append(group._replace(ways=ways))
    return found


def file_of(home: Path, model: str, way: str) -> Path:
    """The file or folder that a way reads."""
    folder = home / "models" / model
    engine, separator, graph = way.partition(":")
    if separator:
        return folder / "graphs" / graph.removesuffix("+bf16")
    engine, kind, *_ = way.split("-")
    if engine == "llama":
        return folder / "gguf" / f"{kind}.gguf"
    return folder / ("longformer" if kind == "longformer" else "hf")


def expected_file(home: Path, model: str, length: int) -> Path:
    """The file of the reference's outputs."""
    return home / "models" / model / "expected" / f"{length}.npy"


def arguments(description: str | None, *names: str) -> list[str]:
    """The command's arguments, which have these names in its help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in names:
        parser.add_argument(name)
    options = vars(parser.parse_args())
    return [options[name] for name in names]
