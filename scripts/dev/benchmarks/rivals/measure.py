"""One model at one length by one way, in a process of its own that makes a pass for each line of its input.

    python -m scripts.dev.benchmarks.rivals.measure HOME MODEL LENGTH WAY compare

A warm-up of 256 tokens precedes the first pass; compiled ways are warmed up at the length itself. Each answer is a
line of JSON. The first pass is compared with the reference before another one is made.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scripts.dev.benchmarks.rivals.plan import DECODERS, THREADS, WAYS, arguments, expected_file, file_of

WARM_UP = 256
ANSWER = "ANSWER "
"""The beginning of a line that is not a library's."""
OUTPUTS = {"last_hidden_state", "logits", "token_embeddings"}
Opened = Callable[[Any], Callable[[], Any]]
"""A function from token ids, of the shape (1, length), to a function that makes a pass and returns its outputs: all
hidden states, or the logits of the last token."""


def token_ids(length: int) -> Any:
    """Token ids from 1,000 to 28,999, which are the same for all models."""
    return np.random.default_rng(length).integers(1000, 29000, (1, length), dtype=np.int64)


def resident(field: str) -> float:
    """MiB of VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 2**10


def stock_model(home: Path, model: str, attention: str, **settings: Any) -> Any:
    """A checkpoint in PyTorch."""
    from transformers import AutoModel, AutoModelForCausalLM

    if model == "privacy":  # "eager" loops over the experts that were hit
        settings["experts_implementation"] = "grouped_mm"
    auto = AutoModelForCausalLM if model in DECODERS else AutoModel
    return auto.from_pretrained(home / "models" / model / "hf", attn_implementation=attention, **settings).eval()


def open_torch(home: Path, model: str, way: str) -> Opened:
    """A model in PyTorch."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(THREADS)
    if WAYS[way].ours:
        import hf_longattn
    _, attention, *more = way.split("-")
    dtype = torch.bfloat16 if "bf16" in more else torch.float32
    if attention == "longformer":
        network = AutoModel.from_pretrained(file_of(home, model, way), dtype=dtype).eval()
    else:
        known = {"flex": "flex_attention"}.get(attention, attention)
        network = stock_model(home, model, known, dtype=dtype)
    if "int8" in more or "optimised" in more:
        hf_longattn.optimize_for_inference(network, "int8" if "int8" in more else "fp32")
    run: Any = torch.compile(network, dynamic=False) if "compile" in more else network
    extra = {"use_cache": False, "logits_to_keep": 1} if model in DECODERS else {}

    def call(ids: Any) -> Any:
        with torch.inference_mode():
            found = run(ids, **extra)
        return found.logits[0, -1:] if model in DECODERS else found.last_hidden_state[0]

    return lambda ids: partial(call, torch.from_numpy(ids))


def feed(names: list[str], ids: Any) -> dict[str, Any]:
    """The inputs of a graph."""
    known = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "logits_to_keep": np.array(1),
    }
    return {name: known[name] for name in names}


def picked(model: str, output: Any) -> Any:
    """The part of a graph's output that is compared."""
    return output[0, -1:] if model in DECODERS else output[0]


def open_runtime(home: Path, model: str, way: str) -> Opened:
    """A graph in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 3
    file = file_of(home, model, way) / "model.onnx"
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]
    output = next((name for name in outputs if name in OUTPUTS), outputs[0])

    def at(ids: Any) -> Callable[[], Any]:
        inputs = feed(names, ids)
        return lambda: picked(model, session.run([output], inputs)[0])

    return at


def open_openvino(home: Path, model: str, way: str) -> Opened:
    """A graph in OpenVINO."""
    import openvino

    folder = file_of(home, model, way)
    file = next(file for file in (folder / "openvino_model.xml", folder / "model.onnx") if file.exists())
    precision = "bf16" if way.endswith("+bf16") else "f32"
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": THREADS}
    graph = openvino.compile_model(str(file), "CPU", settings)
    names = [value.get_any_name() for value in graph.inputs]
    request = graph.create_infer_request()
    output = next((value for value in graph.outputs if OUTPUTS & set(value.get_names())), graph.outputs[0])

    def at(ids: Any) -> Callable[[], Any]:
        inputs = feed(names, ids)

        def run() -> Any:
            request.infer(inputs, share_inputs=True)
            return picked(model, request.get_tensor(output).data)

        return run

    return at


def open_llama(home: Path, model: str, way: str) -> Opened:
    """A GGUF file in llama.cpp."""
    from scripts.dev.benchmarks.rivals import llama

    return llama.opened(file_of(home, model, way), model in DECODERS, THREADS)


ENGINES: dict[str, Callable[[Path, str, str], Opened]] = {
    "torch": open_torch,
    "ort": open_runtime,
    "ov": open_openvino,
    "llama": open_llama,
}


def compared(output: Any, file: Path) -> dict[str, float]:
    """Largest difference from the reference, relative to the largest value, and the least cosine of a token."""
    expected = np.load(file).astype(np.float64)
    found = np.asarray(output.float() if hasattr(output, "float") else output, np.float64).reshape(expected.shape)
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return {
        "difference": float(np.abs(found - expected).max() / np.abs(expected).max()),
        "least_cosine": float(((found * expected).sum(-1) / norms).min()),
    }


def answer(**values: Any) -> None:
    """Write a line of JSON."""
    print(ANSWER + json.dumps(values), flush=True)


def main(home: Path, model: str, length: int, way: str, compare: bool) -> None:
    """Make a pass for each line of the standard input."""
    at = ENGINES[way.replace(":", "-").split("-")[0]](home, model, way)
    ids = token_ids(length)
    start = time.perf_counter()
    at(ids if way.endswith("compile") else ids[:, :WARM_UP])()
    about = {"compile_seconds": time.perf_counter() - start} if way.endswith("compile") else {}
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    run, first = at(ids), True
    answer(**about)
    for _ in sys.stdin:
        output = None  # the outputs of the pass before do not count
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        wall, processor = time.perf_counter(), time.process_time()
        output = run()
        values = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
        peak = resident("VmHWM")
        values |= {"mebibytes": peak - before, "process_mebibytes": peak}
        if first and compare:
            values |= compared(output, expected_file(home, model, length))
        first = False
        answer(**values)


if __name__ == "__main__":
    folder, name, tokens, way, comparison = arguments(__doc__, "home", "model", "length", "way", "comparison")
    main(Path(folder), name, int(tokens), way, comparison == "compare")
