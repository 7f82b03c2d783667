"""Quantise an exported ONNX graph to 8 bits, and measure its accuracy and time."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ExportError, in_a_line, needs_extra
from .graphs import Runner

INT8_FILE = "model_int8.onnx"
OPERATORS = ("MatMul", "Gemm")
LARGEST_FILE = 2**31 - 2**20
"""Maximum bytes of a graph in one file: protobuf's 2 GiB, less 1 MiB for names. A larger graph has its weights in a second file."""
TURNS = 3


def quantise(graph: Path, target: Path) -> int:
    """Write a copy of an ONNX graph, with onnxruntime's dynamic quantisation of the linear layers.

    Weights are uint8 with one scale per output channel. Inputs of linear layers are uint8 with one scale per batch, computed in every run.
    Embeddings, normalisations, biases and the products inside attention stay in float32. Weights are unsigned, since CPUs without VNNI
    saturate the sum of two products of a signed and an unsigned number at 16 bits.

    Returns:
        The number of quantised linear layers.
    Raises:
        ExportError: onnxruntime cannot quantise this graph, or finds no linear layer in it.
    """
    with needs_extra("onnx"):
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.quant_utils import add_pre_process_metadata
    model = onnx.load(graph)
    del model.graph.value_info[:]  # these shapes contradict the quantiser's, which turns Gemm into MatMul; it infers new ones
    add_pre_process_metadata(model)  # hides a warning that asks for constant folding, which PyTorch's exporter did
    constants = {tensor.name for tensor in model.graph.initializer}
    computed = [node.name for node in model.graph.node if node.op_type in OPERATORS and node.input[1] not in constants]
    try:
        quantize_dynamic(
            model, target, op_types_to_quantize=list(OPERATORS), per_channel=True, weight_type=QuantType.QUInt8, nodes_to_exclude=computed,
            use_external_data_format=graph_bytes(graph) > LARGEST_FILE,
        )  # fmt: skip
        quantised = onnx.load(target, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf, shape inference and the quantiser raise various types
        raise ExportError(f"onnxruntime cannot quantise this graph ({in_a_line(error)}); export it without int8.") from error
    layers = sum(node.op_type == "MatMulInteger" for node in quantised.graph.node)
    if not layers:
        raise ExportError("This graph has no linear layer that onnxruntime can quantise; export it without int8.")
    return layers


def graph_bytes(graph: Path) -> int:
    """Bytes of an ONNX graph with its weights, which a large model has in a second file (``model.onnx.data``)."""
    beside = graph.with_name(f"{graph.name}.data")
    return graph.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def accuracy(expected: dict[str, Tensor], quantised: dict[str, Tensor], mask: Tensor | None) -> dict[str, dict[str, float]]:
    """Compare the outputs ``quantised`` with ``expected``, without padding by ``mask (B, N)`` if an output has a vector per token.

    Returns:
        For every output ``relative_error``: the norm of the difference divided by the norm of the expected values. For states and
        embeddings also ``cosine`` and ``least_cosine``: mean and minimum cosine similarity of the vectors. For scores of several classes
        or tokens ``same_choice``: the fraction of vectors with the same argmax.
    """
    measured = {}
    for name, want in expected.items():
        have = quantised[name].float()
        real = torch.ones(want.shape[:1], dtype=torch.bool) if mask is None else mask != 0
        spans = name in ("start_logits", "end_logits")  # one choice among all tokens of a text
        rows: Any = real if want.shape[: real.dim()] == real.shape and not spans else ...
        if spans:
            want, have = (values.masked_fill(~real, 0) for values in (want, have))
        values = {"relative_error": ((have - want)[rows].norm() / want[rows].norm().clamp(min=1e-12)).item()}
        if "logits" in name:
            lowest = torch.finfo(torch.float32).min
            scores = [values.masked_fill(~real, lowest) if spans else values[rows] for values in (want, have)]
            if scores[0].shape[-1] > 1:
                first, second = (values.argmax(-1) for values in scores)
                values["same_choice"] = (first == second).float().mean().item()
        else:
            cosine = F.cosine_similarity(want[rows], have[rows], dim=-1)
            values |= {"cosine": cosine.mean().item(), "least_cosine": cosine.min().item()}
        measured[name] = values
    return measured


def measure(floats: Runner, integers: Runner, compared: dict[str, Tensor], timed: dict[str, Tensor]) -> dict[str, Any]:
    """Measure a graph and its quantised copy: accuracy on the inputs ``compared``, and seconds on ``timed`` in alternating runs.

    Raises:
        ExportError: the quantised graph does not run, or returns values that are not finite.
    """
    expected = floats(compared)
    try:
        outputs = integers(compared)
    except Exception as error:  # runtimes raise any type of error
        raise ExportError(f"onnxruntime cannot run the quantised graph ({in_a_line(error)}); export it without int8.") from error
    if not all(torch.isfinite(tensor).all() for tensor in outputs.values() if tensor.is_floating_point()):
        raise ExportError("The quantised graph returns values that are not finite; export it without int8.")
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(TURNS):
        for run, times in zip((floats, integers), seconds, strict=True):
            start = time.perf_counter()
            run(timed)
            times.append(time.perf_counter() - start)
    return {
        "outputs": accuracy(expected, outputs, compared.get("attention_mask")),
        "seconds": {
            "threads": torch.get_num_threads(),
            "float32": statistics.median(seconds[0]),
            "int8": statistics.median(seconds[1]),
        },
    }
