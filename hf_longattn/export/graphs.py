"""What an export writes: a model as a function of tensors, and the runtime that runs the written file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..conversion.report import FAILED, PASSED, TOLERANCE, Check

PAST = "past_key_values"
"""How the names of a decoder's state tensors begin."""
Runner = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""A graph in its runtime: outputs by name for inputs by name."""


@dataclass(frozen=True)
class Traced:
    """A traced model and its example inputs.

    inputs, outputs: names of all of them, in order. shortest: the minimum length for which it is one graph.
    """

    program: torch.export.ExportedProgram
    example: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shortest: int


class ExportedGraph(nn.Module, ABC):
    """A model as a function of named tensors, which can be one graph for all batch sizes and lengths.

    model: what it wraps.
    advised: a mechanism whose models can be written, for the message that another cannot.
    """

    model: Any
    advised: ClassVar[str]

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Names of all inputs, in order."""

    @abstractmethod
    def traced(self, max_length: int) -> Traced:
        """The program for any batch and texts of up to ``max_length`` tokens."""

    @abstractmethod
    def check(self, load: Callable[[], Runner], limits: tuple[int, int]) -> list[Check]:
        """Compare the graph that ``load()`` runs with the model, at lengths between ``limits``."""

    def name_axes(self, onnx: Any) -> None:
        """Name the free axes of an ONNX model (of onnx_ir), where programs need more than PyTorch's symbols."""

    def describe(self) -> dict[str, Any] | None:
        """What export_report.json tells a program that runs the graph about its state; ``None`` without one."""
        return None


def compare(
    run: Runner, inputs: dict[str, Tensor], expected: dict[str, Tensor], shape: str, values: dict[str, Any], rows: Callable[[Tensor], Any]
) -> Check:
    """Whether a graph returns what is expected.

    shape, values: of the inputs, in words and for the report. rows: the index of the entries of an output that are defined.
    """
    try:
        outputs = run(inputs)
    except Exception as error:  # runtimes raise any type of error
        why = f"{shape}: the runtime cannot run it ({type(error).__name__})"
        return Check("equal to the model", FAILED, why, {**values, "difference": None})
    worst = 0.0
    for name, expected_values in expected.items():
        at = rows(expected_values)
        difference = (outputs[name] - expected_values)[at].abs().max().item() / max(1.0, expected_values[at].abs().max().item())
        worst = max(worst, difference if difference == difference else float("inf"))
    detail = f"{shape}: largest difference {worst:.1e} of the largest output"
    return Check("equal to the model", PASSED if worst <= TOLERANCE else FAILED, detail, {**values, "difference": worst})


def runner(file: Path, outputs: tuple[str, ...], format: str) -> Runner:
    """The graph in ``file``, in the runtime that ``format`` is for."""
    return onnx_runner(file, outputs) if format == "onnx" else torch_runner(file, outputs)


def torch_runner(file: Path, outputs: tuple[str, ...]) -> Runner:
    """A program of torch.export."""
    program: Callable[..., Any] = torch.export.load(file).module()

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        past = [value for name, value in inputs.items() if name.startswith(PAST)]
        plain_inputs = {name: value for name, value in inputs.items() if not name.startswith(PAST)}
        returned = program(**plain_inputs, **({"past": past} if past else {}))
        return returned if isinstance(returned, dict) else dict(zip(outputs, returned, strict=True))

    return run


def onnx_runner(file: Path, outputs: tuple[str, ...]) -> Runner:
    """An ONNX graph in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        arrays = {name: value.numpy() for name, value in inputs.items() if name in taken}  # unused inputs are removed from the graph
        return dict(zip(outputs, map(torch.from_numpy, session.run(list(outputs), arrays)), strict=True))

    return run
