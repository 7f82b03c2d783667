"""Checkpoints, references, weights for llama.cpp and graphs. What is missing is made, each in a process of its own.

python -m scripts.dev.benchmarks.rivals.prepare HOME MODEL KIND NAME
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from hf_longattn.errors import CheckpointError
from scripts.dev import ROOT
from scripts.dev.benchmarks.rivals.library import PACKAGES, source_of
from scripts.dev.benchmarks.rivals.measure import stock_model, token_ids
from scripts.dev.benchmarks.rivals.plan import (
    DECODERS,
    LONG,
    LONGEST,
    THREADS,
    Group,
    arguments,
    expected_file,
    file_of,
)
from scripts.dev.real import DECODER, LLAMA_CPP, make_decoder, make_llama_cpp, real_checkpoint

EXAMPLE = 600
"""Tokens of the texts with which graphs are traced."""
SHARPER = 2.6
"""Factor on random query and key weights. Without it, a wrong mask would hardly change an output."""
EAGER_BYTES = 5e9
"""Maximum size of the scores of eager attention for a reference."""


def make_checkpoint(home: Path, model: str, folder: Path) -> None:
    """Write a stock checkpoint in float32."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    torch.manual_seed(0)
    if model in ("modernbert", "modernbert3"):
        layers = 22 if model == "modernbert" else 3
        long = {"max_position_embeddings": LONGEST} if model == "modernbert3" else {}
        network = AutoModel.from_config(AutoConfig.for_model("modernbert", num_hidden_layers=layers, **long))
    elif model == "bert":
        network = AutoModel.from_config(AutoConfig.for_model("bert", max_position_embeddings=LONG))
    elif model == "privacy":
        network = AutoModel.from_config(AutoConfig.for_model("openai_privacy_filter", num_hidden_layers=2))
    elif model == "minilm":
        network = AutoModel.from_pretrained(real_checkpoint(), dtype=torch.float32)
        table = network.embeddings.position_embeddings.weight.data
        tiled = torch.nn.Embedding.from_pretrained(table.repeat(LONG // len(table), 1), freeze=False)
        network.embeddings.position_embeddings = tiled
        network.config.max_position_embeddings = LONG
    else:
        network = AutoModelForCausalLM.from_pretrained(DECODER, dtype=torch.float32)
        if model == "gemma6":
            network.model.layers = network.model.layers[:6]
            network.config.num_hidden_layers = 6
            network.config.layer_types = network.config.layer_types[:6]
    if model not in ("minilm", *DECODERS):
        sharpen(network)
    network.float().save_pretrained(folder)
    if model in DECODERS:
        for file in DECODER.glob("tokenizer*.json"):
            shutil.copyfile(file, folder / file.name)


def sharpen(network: Any) -> None:
    """Make random attention differ between keys, and fill parameters that a config leaves unset."""
    import torch

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("query.weight", "key.weight", "q_proj.weight", "k_proj.weight")):
                parameter.mul_(SHARPER)
            elif name.endswith("Wqkv.weight"):
                parameter[: 2 * parameter.shape[1]].mul_(SHARPER)
            elif name.endswith("sinks"):
                parameter.normal_()
            elif parameter.isnan().any() or parameter.abs().max() > 1e4:
                parameter.normal_(std=0.02)


def make_longformer(home: Path, model: str, folder: Path) -> None:
    """Convert a checkpoint to longformer."""
    from hf_longattn import convert_checkpoint

    convert_checkpoint(
        home / "models" / model / "hf", folder / "long", mechanism="longformer", max_length=LONG, verify=False
    )
    for file in (folder / "long").iterdir():
        file.rename(folder / file.name)
    (folder / "long").rmdir()


def make_expected(home: Path, model: str, file: Path) -> None:
    """The outputs of eager attention in float32.

    Where its scores take more than :data:`EAGER_BYTES`, it is ``sdpa``. For privacy-filter, which has no ``sdpa``, it
    is ``longattn`` there, which is compared with eager attention at the lengths below.
    """
    import numpy as np
    import torch

    length = int(file.stem.removesuffix(".part"))
    config = json.loads((home / "models" / model / "hf" / "config.json").read_text(encoding="utf-8"))
    attention = "eager"
    if config["num_attention_heads"] * length**2 * 8 > EAGER_BYTES:
        attention = "sdpa"
        if model == "privacy":
            import hf_longattn  # noqa: F401  registers the name

            attention = "longattn"
    network = stock_model(home, model, attention, dtype=torch.float32)
    ids = torch.from_numpy(token_ids(length))
    with torch.inference_mode():
        if model in DECODERS:
            found = network(ids, use_cache=False, logits_to_keep=1).logits[0, -1:]
        else:
            found = network(ids).last_hidden_state[0]
    np.save(file, found.numpy())


def traced(model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs with which transformers' exporters trace a model, and their axes."""
    import torch

    ids = torch.from_numpy(token_ids(EXAMPLE)).repeat(2, 1)
    axes = {0: torch.export.Dim.AUTO(min=1, max=64), 1: torch.export.Dim.AUTO(min=2, max=LONGEST)}
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    shapes: dict[str, Any] = dict.fromkeys(inputs, axes)
    if model in DECODERS:
        inputs |= {"use_cache": False, "logits_to_keep": 1}
        shapes |= {"logits_to_keep": None}
    return inputs, shapes


def make_graph(home: Path, model: str, folder: Path) -> None:
    """Write a graph into ``folder``, by the way that its name says.

    ``longattn``, ``longattn-openvino`` and ``longformer`` are made by ``longattn export``, and ``tf-*`` by
    transformers' exporters.
    ``int8-*`` is ``quantize_dynamic`` of another graph.
    """
    name = folder.name.removesuffix(".part")
    if name in ("longattn", "longattn-openvino", "longformer"):
        from hf_longattn import export_checkpoint

        source = home / "models" / model / ("longformer" if name == "longformer" else "hf")
        written = "openvino" if name.endswith("openvino") else "onnx"
        export_checkpoint(source, folder / "out", format=written, progress=partial(print, file=sys.stderr))
        for file in (folder / "out").iterdir():
            file.rename(folder / file.name)
        (folder / "out").rmdir()
    elif name.startswith("int8-"):
        quantise(folder.with_name(name.removeprefix("int8-")) / "model.onnx", folder / "model.onnx")
    else:
        from transformers.exporters import OnnxConfig, OnnxExporter, OpenVINOConfig, OpenVINOExporter

        network = stock_model(home, model, "eager" if model == "privacy" else "sdpa")
        inputs, shapes = traced(model)
        if name == "tf-onnx-nomask":
            del inputs["attention_mask"], shapes["attention_mask"]
        exporter, settings = OnnxExporter(), OnnxConfig(dynamic=True, dynamic_shapes=shapes, ort_fusions="cpu")
        if name == "tf-ov":
            exporter, settings = OpenVINOExporter(), OpenVINOConfig(dynamic=True, dynamic_shapes=shapes)
        exporter.export(network, inputs, settings).save_pretrained(folder)


def quantise(source: Path, target: Path) -> None:
    """Dynamic int8 of ONNX Runtime, with unsigned weights."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(source, load_external_data=False)
    weights = {value.name for value in graph.graph.initializer}
    shapes = [value for value in graph.graph.value_info if value.name not in weights]
    del graph.graph.value_info[:]  # the shapes of weights would be those before
    graph.graph.value_info.extend(shapes)
    plain = source.with_name("plain.onnx")
    onnx.save(graph, plain)
    quantize_dynamic(plain, target, weight_type=QuantType.QUInt8, extra_options={"EnableSubgraph": True})
    plain.unlink()


MAKERS = {"checkpoint": make_checkpoint, "longformer": make_longformer, "expected": make_expected, "graph": make_graph}


def commands(home: Path, model: str, target: Path, part: Path) -> tuple[list[str], dict[str, str]]:
    """The command that makes a file or folder at ``part``, and its variables of the environment."""
    module = "scripts.dev.benchmarks.rivals"
    python = [sys.executable, "-W", "ignore", "-m"]
    if target.parent.name == "gguf":
        checkpoint = home / "models" / model / "hf"
        return [*python, f"{module}.llama", str(checkpoint), target.stem, str(part)], {}
    if target.name.startswith("st-"):
        return [*python, f"{module}.library", str(source_of(home)), target.name, str(part)], {
            "PYTHONPATH": f"{home / 'st'}:{ROOT}"
        }
    kind = {"hf": "checkpoint", "longformer": "longformer"}.get(target.name, "graph")
    kind = {"expected": "expected", "graphs": "graph"}.get(target.parent.name, kind)
    return [*python, f"{module}.prepare", str(home), model, kind, str(part)], {}


def sources(home: Path, model: str, target: Path) -> list[Path]:
    """The files from which one is made."""
    folder = home / "models" / model
    if target.name == "hf":
        return []
    if target.name.startswith("int8-"):
        return [target.with_name(target.name.removeprefix("int8-"))]
    if target == folder / "graphs" / "longformer":
        return [folder / "longformer"]
    return [folder / "hf"]


def lacking(home: Path, model: str, target: Path) -> str | None:
    """The package or download that a file needs and that is not there."""
    if target.parent.name == "gguf" and not LLAMA_CPP.exists():
        return "llama.cpp"
    if target.name.startswith("st-") and not (home / "st").exists():
        return "sentence-transformers with optimum"
    if model in DECODERS and not DECODER.exists():
        return "Gemma 3 270M"
    engine = "openvino" if target.name in ("tf-ov", "longattn-openvino") else "onnxruntime"
    if target.parent.name == "graphs" and importlib.util.find_spec(engine) is None:
        return engine
    return None


def make(home: Path, model: str, target: Path) -> str | None:
    """Make a file or folder that is missing, and what it needs; return why it could not be made."""
    if target.exists():
        return None
    if reason := lacking(home, model, target):
        return f"{reason} is not there"
    for source in sources(home, model, target):
        if reason := make(home, model, source):
            return reason
    part = target.with_name(f"{target.stem}.part{target.suffix}")
    shutil.rmtree(part, ignore_errors=True)
    (part.parent if target.suffix else part).mkdir(parents=True, exist_ok=True)
    command, variables = commands(home, model, target, part)
    log = home / "logs" / f"{model}-{target.name}.log"
    log.parent.mkdir(exist_ok=True)
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": str(ROOT), **variables}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    if done.returncode:
        return f"{model} {target.name} failed: {log}"
    part.rename(target)
    print(f"{model} {target.name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return None


def download(home: Path) -> None:
    """Gemma 3 270M, llama.cpp, and the packages of sentence-transformers' graphs.

    Raises:
        CheckpointError: a download failed.
    """
    make_decoder()
    make_llama_cpp()
    if not (folder := home / "st").exists():
        part = home / "st.part"
        shutil.rmtree(part, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*pip, "--no-compile", "--target", str(part), *PACKAGES]).returncode:
            raise CheckpointError("pip could not install the packages of sentence-transformers' graphs; see above.")
        part.rename(folder)


def prepare(home: Path, groups: Iterable[Group]) -> dict[tuple[str, str], str]:
    """Make the files of all groups; return why those of (model, way) could not be made."""
    failed: dict[tuple[str, str], str] = {}
    for group in groups:
        for way in group.ways:
            if reason := make(home, group.model, file_of(home, group.model, way)):
                failed[group.model, way] = reason
        if reason := make(home, group.model, expected_file(home, group.model, group.length)):
            failed |= dict.fromkeys(((group.model, way) for way in group.ways), reason)
    return failed


if __name__ == "__main__":
    folder, name, kind, target = arguments(__doc__, "home", "model", "kind", "target")
    MAKERS[kind](Path(folder), name, Path(target))
