"""Models as functions of named tensors for export, and the runtimes that run the written files."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import FAILED, Check, Difference, equality
from ..private_apis import look_up

Runner = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""A graph in its runtime: named inputs -> named outputs."""


@dataclass(frozen=True)
class Traced:
    """A traced model and its example inputs.

    inputs, outputs: all names, in order. shortest: the minimum length that the graph takes.
    """

    program: torch.export.ExportedProgram
    example: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shortest: int


def exported(module: nn.Module, example: dict[str, Any], sizes: dict[str, Any]) -> torch.export.ExportedProgram:
    """Trace a module for all sizes of its dynamic axes.

    For models of several layers PyTorch 2.15 wrongly reports violations of conditions that always hold, such as n != 1 if 513 <= n.
    Then PyTorch infers the sizes of the dynamic axes, which are compared with the requested sizes.

    Args:
        sizes: input -> dynamic axis -> its ``Dim``.
    """
    try:
        return torch.export.export(module, (), kwargs=example, dynamic_shapes=sizes)
    except trace_errors() as error:
        if "Constraints violated" not in str(error):
            raise
        hints = {
            name: {axis: torch.export.Dim.AUTO(min=size.min, max=size.max) for axis, size in axes.items()} for name, axes in sizes.items()
        }
        program = torch.export.export(module, (), kwargs=example, dynamic_shapes=hints)
        if not _are_free(program, sizes):
            raise
        return program


def _are_free(program: torch.export.ExportedProgram, sizes: dict[str, Any]) -> bool:
    """Whether a program takes every requested size of the dynamic axes."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    ranges = {str(symbol): limits for symbol, limits in program.range_constraints.items()}
    for name, axes in sizes.items():
        for axis, size in axes.items():
            limits = ranges.get(str(values[name].shape[axis]))
            if limits is None or limits.lower > max(size.min, 2) or limits.upper < size.max:
                return False
    return True


@dataclass(frozen=True)
class Comparison:
    """Inputs on which a graph is compared with its model.

    description: the inputs as text. values: the inputs' sizes, for the report.
    defined: from an output to the index of its defined entries; entries at padding are undefined.
    """

    inputs: dict[str, Tensor]
    description: str
    values: dict[str, Any]
    defined: Callable[[Tensor], Any] = lambda output: ...


@dataclass(frozen=True)
class Int8Inputs:
    """Inputs for measuring accuracy (``compared``) and seconds (``timed``) of an int8 copy, with their sizes for the report."""

    compared: dict[str, Tensor]
    compared_sizes: dict[str, Any]
    timed: dict[str, Tensor]
    timed_sizes: dict[str, Any]


class ExportedGraph(nn.Module, ABC):
    """A model without cache as a function from named inputs to a dictionary of tensors, for all batch sizes and lengths.
    The parameters of ``forward`` give the graph's inputs their names.

    advised: a mechanism that can be exported, for the error message about one that cannot.
    fixed: further arguments of the model's ``forward``.
    """

    advised: ClassVar[str]

    def __init__(self, model: nn.Module, fixed: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self.fixed: dict[str, Any] = {**(fixed or {}), "return_dict": True}

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Names of all inputs, in order."""

    def run(self, **inputs: Tensor | None) -> dict[str, Tensor]:
        """Run the model on the inputs that are not ``None``. An output with the name of an input gets the prefix ``output_``."""
        arguments = {name: value for name, value in inputs.items() if value is not None}
        returned = named_tensors(self.model(**arguments, **self.fixed))
        return {f"output_{name}" if name in arguments else name: tensor for name, tensor in returned}

    @abstractmethod
    def shortest_lengths(self, max_length: int) -> Sequence[int]:
        """The minimum lengths to try, in order."""

    @abstractmethod
    def traceable(self, shortest: int, max_length: int) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
        """The example inputs to trace, and the dynamic axes of each."""

    @abstractmethod
    def comparisons(self, limits: tuple[int, int]) -> Iterator[Comparison]:
        """The inputs on which graph and model are compared, at lengths between ``limits``."""

    @abstractmethod
    def int8_inputs(self, limits: tuple[int, int]) -> Int8Inputs:
        """Inputs for measuring accuracy and speed of an int8 copy, at lengths between ``limits``."""

    def traced(self, max_length: int) -> Traced:
        """Trace the model for any batch size and up to ``max_length`` tokens, with the first minimum length for which it is one graph."""
        lengths = self.shortest_lengths(max_length)
        for shortest in lengths:
            example, sizes = self.traceable(shortest, max_length)
            try:
                program = exported(self, example, sizes)
            except trace_errors():  # a guard on the length, or guards that contradict each other
                if shortest == lengths[-1]:
                    raise
            else:
                return Traced(program, example, tuple(example), tuple(self(**example)), shortest)
        raise AssertionError("no minimum length to try")

    def check(self, load: Callable[[], Runner], limits: tuple[int, int]) -> list[Check]:
        """Compare the graph that ``load()`` runs with the model, at lengths between ``limits``."""
        run = load()
        return [self._compared(run, comparison) for comparison in self.comparisons(limits)]

    def _compared(self, run: Runner, comparison: Comparison) -> Check:
        """Compare the outputs of graph and model."""
        name, values = "equal to the model", comparison.values
        with torch.no_grad():
            expected = self(**comparison.inputs)
        try:
            outputs = run(comparison.inputs)
        except Exception as error:  # runtimes raise any type of error
            why = f"{comparison.description}: the runtime cannot run it ({type(error).__name__})"
            return Check(name, FAILED, why, {**values, "difference": None})
        defined = [{output: each[output][comparison.defined(expected[output])] for output in expected} for each in (expected, outputs)]
        difference = Difference.of(*defined)
        return equality(name, f"{comparison.description}: largest difference", difference, {**values, "difference": difference.relative})


def named_tensors(outputs: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of an output. Tensors in a tuple, such as a backbone's feature maps, have numbered names."""
    for name, value in outputs.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple):
            yield from ((f"{name}.{number}", tensor) for number, tensor in enumerate(value))


def turned(row: Tensor, batch: int, axis: int) -> Tensor:
    """Repeat ``row (1, …)`` ``batch`` times, and roll each copy by another amount along ``axis``."""
    return torch.cat([row.roll(number * row.shape[axis] // batch, axis) for number in range(batch)])


def runner(file: Path, outputs: tuple[str, ...], format: str) -> Runner:
    """Load the graph in ``file`` into the runtime for ``format``."""
    if format == "onnx":
        return onnx_runner(file, outputs)
    program: Callable[..., Any] = torch.export.load(file).module()
    return lambda inputs: program(**inputs)


def onnx_runner(file: Path, outputs: tuple[str, ...]) -> Runner:
    """Load an ONNX graph into onnxruntime, on the CPU."""
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


def trace_errors() -> tuple[type[Exception], ...]:
    """Types of error that torch.export raises for an example input that is too short to represent all lengths."""
    importlib.import_module("torch._dynamo")
    return (look_up("trace_errors"), AssertionError)  # PyTorch asserts if its guards contradict each other
