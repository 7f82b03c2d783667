"""Trace a model into one graph with a free batch size and length, and write it."""

from __future__ import annotations

import bisect
import contextlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ExportError
from ...mechanisms import Mechanism
from ..architectures.base import attached_mechanisms

__all__ = ["FILES", "FORMATS", "ModelGraph", "longest_decoded", "write_graph"]

FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
FORMATS = tuple(FILES)
SHORTEST = (2, 129, 513)
"""Least lengths to try: PyTorch fixes sizes of 0 and 1 when it traces, and some definitions need a few blocks to be one graph."""
EXAMPLE = 600
"""Tokens of the text that is traced, unless the least length asks for more."""


class ModelGraph(nn.Module):
    """A model as a function of named tensors that returns a dictionary of tensors: without cache, without classes of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.fixed: dict[str, Any] = {"return_dict": True}
        if "use_cache" in inspect.signature(model.forward).parameters:
            self.fixed["use_cache"] = False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        given = {
            "token_type_ids": token_type_ids,
            "global_attention_mask": global_attention_mask,
            "decoder_input_ids": decoder_input_ids,
        }
        given = {name: value for name, value in given.items() if value is not None}
        returned = self.model(input_ids=input_ids, attention_mask=attention_mask, **given, **self.fixed)
        return {name: value for name, value in returned.items() if isinstance(value, Tensor)}


def write_graph(
    model: nn.Module, example_of: Callable[[int], dict[str, Tensor]], file: Path, format: str, max_length: int, opset: int | None
) -> tuple[tuple[str, ...], int, int | None]:
    """Trace the model and write it to ``file``.

    Args:
        model, file, format: what is written, where, and as which of ``FORMATS``.
        example_of: inputs of a length, to trace the model on.
        max_length: tokens that the graph takes.
        opset: of ONNX; ``None`` takes PyTorch's default.

    Returns:
        The names of the outputs, the least length, and the opset of an ONNX file.

    Raises:
        ExportError: PyTorch cannot write this model as one graph.
    """
    graph = ModelGraph(model).eval()
    with torch.no_grad(), _hushed():
        try:
            program, example, shortest = _traced(graph, example_of, max_length)
            outputs = tuple(graph(**example))
            if format == "torch":
                torch.export.save(program, file)
                return outputs, shortest, None
            onnx = torch.onnx.export(
                program, kwargs=example, input_names=list(example), output_names=list(outputs), opset_version=opset, verbose=False
            )
        except OSError:
            raise
        except Exception as error:  # whatever the traced code, the translation or its checks raise
            raise ExportError(
                f"PyTorch cannot write this {type(model).__name__} as one {format} graph for all lengths ({_cause(error)}); "
                "run the model itself, or export one with other attention, for example mechanism='longformer'."
            ) from error
        assert onnx is not None
        onnx.save(str(file))
        return outputs, shortest, onnx.model.opset_imports[""]


def _cause(error: BaseException) -> str:
    """The first line of what went wrong in the first place; the errors raised from it carry advice for PyTorch's developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:160]}" if lines else type(error).__name__


def _traced(
    graph: ModelGraph, example_of: Callable[[int], dict[str, Tensor]], max_length: int
) -> tuple[torch.export.ExportedProgram, dict[str, Tensor], int]:
    """The program, what it was traced on, and the least length for which it is one graph."""
    from torch._dynamo.exc import UserError

    decoded, tried = longest_decoded(graph.model, max_length), _least_lengths(graph, max_length)
    for shortest in tried:
        example = example_of(min(max_length, max(EXAMPLE, shortest + 1)))
        try:
            program = torch.export.export(graph, (), kwargs=example, dynamic_shapes=free_sizes(example, shortest, max_length, decoded))
            return program, example, shortest
        except (UserError, AssertionError):  # a guard on the length; PyTorch asserts where the guards contradict each other
            if shortest == tried[-1]:
                raise
    raise AssertionError("the longest input is longer than the least length")


def _least_lengths(graph: ModelGraph, max_length: int) -> list[int]:
    """``SHORTEST``, and where mechanisms that are full attention on short inputs, by a path of their own, no longer are."""
    ends = set(SHORTEST)
    for mechanism in attached_mechanisms(graph).values():
        for causal in (False, True):
            ends.add(1 + bisect.bisect_right(range(1, max_length + 1), 0, key=partial(_uncovered, mechanism, causal)))
    return sorted(length for length in ends if 2 <= length < max_length)


def _uncovered(mechanism: Mechanism, causal: bool, length: int) -> int:
    return int(not mechanism.covers(length, causal))


def longest_decoded(model: Any, max_length: int) -> int:
    """Tokens that the decoder takes, beside an encoder that takes ``max_length``."""
    return min(max_length, getattr(model.config, "max_decoder_position_embeddings", max_length))


def free_sizes(example: dict[str, Tensor], shortest: int, max_length: int, decoder_max: int) -> dict[str, dict[int, Any]]:
    """Which axes of the inputs are free: the batch first, the tokens last (the decoder's their own), and choices between."""
    batch, choices = torch.export.Dim("batch", min=1), torch.export.Dim("choices", min=1)
    length = torch.export.Dim("length", min=shortest, max=max_length)
    decoder_length = torch.export.Dim("decoder_length", min=2, max=decoder_max)
    sizes = {}
    for name, value in example.items():
        tokens = decoder_length if name.startswith("decoder") else length
        sizes[name] = {0: batch, **({1: choices} if value.dim() == 3 else {}), value.dim() - 1: tokens}
    return sizes


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """The exporters report their steps and what is not installed as warnings."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
