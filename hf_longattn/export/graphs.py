"""Text models as graphs over the whole text: tracing, comparing the written file, and the runtimes that run it."""

from __future__ import annotations

import bisect
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion.source_models import attached_mechanisms
from ..evaluation.pooling import SentencePooling
from ..inputs.tokenizer import VerificationText
from ..mechanisms import Mechanism
from ..mechanisms.common.shared_options import is_full
from ..modeling.family.definition import known_family
from ..names import look_up
from ..reports import FAILED, Check, Difference, equality

Runner = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""A graph in its runtime: named inputs -> named outputs."""

MIN_LENGTHS = (2, 129, 513)
"""Minimum lengths to try: PyTorch specialises on sizes of 0 and 1, and some mechanisms need a few blocks to be one graph."""
EXAMPLE_TOKENS = 600
"""Number of tokens of the traced text, unless the minimum length is greater."""
COMPARED_SHAPES = ((3, 7), (2, 333), (1, 2048))
"""Batch sizes and lengths to compare. The graph's minimum, mean or maximum length replaces lengths that the graph does not take."""


@dataclass(frozen=True)
class Traced:
    """A traced model, its example inputs, the names of its outputs, and the minimum length that the graph takes."""

    program: torch.export.ExportedProgram
    example: dict[str, Any]
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


def _is_sparse(mechanism: Mechanism, causal: bool, length: int) -> bool:
    return not is_full(mechanism, length, causal)


class ModelGraph(nn.Module):
    """A model without cache as a function from named inputs to a dictionary of tensors, for all batch sizes and lengths.

    The parameters of ``forward`` give the graph's inputs their names.

    names: names of the inputs, in order.
    """

    def __init__(self, model: nn.Module, words: VerificationText, names: tuple[str, ...], pooling: SentencePooling | None = None) -> None:
        super().__init__()
        self.model: Any = model
        without_cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        self.fixed: dict[str, Any] = {**without_cache, "return_dict": True}
        self.words, self.names, self.pooling = words, names, pooling

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        bbox: Tensor | None = None,
        xpath_tags_seq: Tensor | None = None,
        xpath_subs_seq: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Run the model on the inputs that are not ``None``. An output with the name of an input gets the prefix ``output_``."""
        inputs = {
            "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids,
            "global_attention_mask": global_attention_mask,
            "bbox": bbox, "xpath_tags_seq": xpath_tags_seq, "xpath_subs_seq": xpath_subs_seq,
        }  # fmt: skip
        arguments = {name: value for name, value in inputs.items() if value is not None}
        tensors = {}
        for name, value in self.model(**arguments, **self.fixed).items():
            if isinstance(value, Tensor):
                tensors[f"output_{name}" if name in arguments else name] = value
            elif isinstance(value, tuple):  # of a backbone's feature maps, for example
                tensors |= {f"{name}.{number}": tensor for number, tensor in enumerate(value)}
        if self.pooling is not None and "last_hidden_state" in tensors:
            tensors["sentence_embedding"] = self.pooling(tensors["last_hidden_state"], attention_mask)
        return tensors

    def traced(self, max_length: int) -> Traced:
        """Trace the model for any batch size and up to ``max_length`` tokens, with the first minimum length for which it is one graph.

        ``MIN_LENGTHS`` are tried, and each mechanism's first length at which it is not full attention, which is a separate path.
        """
        ends = set(MIN_LENGTHS)
        for mechanism in attached_mechanisms(self).values():
            for causal in (False, True):
                ends.add(1 + bisect.bisect_left(range(1, max_length + 1), True, key=partial(_is_sparse, mechanism, causal)))
        lengths = sorted(length for length in ends if 2 <= length < max_length)
        for shortest in lengths:
            example = example_inputs(self.model, self.names, self.words, 2, min(max_length, max(EXAMPLE_TOKENS, shortest + 1)))
            try:
                program = exported(self, example, self._free_sizes(example, shortest, max_length))
            except trace_errors():  # a guard on the length, or guards that contradict each other
                if shortest == lengths[-1]:
                    raise
            else:
                return Traced(program, example, tuple(self(**example)), shortest)
        raise AssertionError("no minimum length to try")

    def _free_sizes(self, example: dict[str, Tensor], shortest: int, max_length: int) -> dict[str, dict[int, Any]]:
        """Dynamic axes of each input ``(B, N)`` or ``(B, choices, N)``. Inputs of pages are ``(B, N, width)``, whose width is fixed."""
        pages = page_inputs(self.model)
        batch, choices = torch.export.Dim("batch", min=1), torch.export.Dim("choices", min=1)
        length = torch.export.Dim("length", min=shortest, max=max_length)
        sizes = {}
        for name, value in example.items():
            several = value.dim() == 3 and name not in pages
            sizes[name] = {0: batch, **({1: choices} if several else {}), 1 + several: length}
        return sizes

    def check(self, run: Runner, limits: tuple[int, int]) -> list[Check]:
        """Compare the graph that ``run`` runs with the model, at lengths between ``limits``."""
        checks = []
        for number, (batch, length) in enumerate(COMPARED_SHAPES):
            if length < limits[0] and number:
                length = sum(limits) // 2
            inputs = example_inputs(self.model, self.names, self.words, batch, min(max(length, limits[0]), limits[1]))
            checks.append(self._compared(run, inputs))
        return checks

    def _compared(self, run: Runner, inputs: dict[str, Tensor]) -> Check:
        """Compare the outputs of graph and model for these texts, except at padding, where they are undefined."""
        batch, length = inputs["input_ids"].shape[0], inputs["input_ids"].shape[-1]
        name, values = "equal to the model", {"batch": batch, "length": length}
        texts, mask = f"{batch} × {length:,} tokens with padding", inputs["attention_mask"] != 0
        with torch.no_grad():
            expected = self(**inputs)
        try:
            outputs = run(inputs)
        except Exception as error:  # runtimes raise any type of error
            why = f"{texts}: the runtime cannot run it ({type(error).__name__})"
            return Check(name, FAILED, why, {**values, "difference": None})
        real: dict[str, Any] = {output: mask if value.shape[: mask.dim()] == mask.shape else ... for output, value in expected.items()}
        difference = Difference.of(*({output: each[output][real[output]] for output in expected} for each in (expected, outputs)))
        return equality(name, f"{texts}: largest difference", difference, {**values, "difference": difference.relative})


def page_inputs(model: Any) -> tuple[str, ...]:
    """Names of a model's inputs ``(B, N, width)`` besides token ids, such as ``bbox``."""
    family = known_family(model.config)
    return () if family is None else tuple(family.rule.further)


def example_inputs(model: Any, names: tuple[str, ...], words: VerificationText, batch: int, length: int) -> dict[str, Tensor]:
    """Texts of different lengths, right-padded to ``(batch, length)``, or to ``(batch, choices, length)`` for multiple choice."""
    ids = words.tokens(length).repeat(batch, 1)
    real = torch.tensor([length - (row + 1) * length // 7 for row in range(batch)])[:, None]
    mask = torch.arange(length)[None] < real
    config = model.config
    ids = torch.where(mask, ids, config.pad_token_id or 0)
    separator = getattr(config, "question_separator_id", None)
    if separator is not None and length > 2:  # a question, which the graph has to find
        ids = ids.index_fill(1, torch.tensor([min(length // 4, 8)]), separator)
    if getattr(config, "global_token_ids", None) and length > 4:
        ids = ids.index_fill(1, torch.tensor([length // 2]), config.global_token_ids[0])
    family = known_family(config)
    further = {} if family is None else family.rule.further_inputs(config, batch, length)
    inputs = {"input_ids": ids, "attention_mask": mask.long(), **further}
    if "token_type_ids" in names:
        second = torch.arange(length)[None] >= length // 2  # a pair of texts, where the model has two types
        inputs["token_type_ids"] = second.long() * mask * (getattr(config, "type_vocab_size", 1) > 1)
    if "global_attention_mask" in names:
        inputs["global_attention_mask"] = (torch.arange(length)[None] < 2 + torch.arange(batch)[:, None]).long() * mask
    if "MultipleChoice" in type(model).__name__:
        inputs = {name: value[:, None].repeat(1, 2, 1) for name, value in inputs.items()}
    return inputs


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
