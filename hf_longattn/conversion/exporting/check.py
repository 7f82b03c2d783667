"""Compare an exported graph with the model it came from, in the runtime that it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..report import FAILED, PASSED, Check
from ..text import VerificationText
from .graph import ModelGraph, longest_decoded

__all__ = ["check_export", "example_inputs"]

SHAPES = ((3, 7), (2, 333), (1, 2048))
"""Batch sizes and lengths that are compared, where the graph takes them: its least length, one between, and its longest."""
TOLERANCE = 1e-4
"""Largest difference called equal, relative to the largest output (at least 1)."""
Runner = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def example_inputs(model: Any, names: tuple[str, ...], words: VerificationText, batch: int, length: int) -> dict[str, Tensor]:
    """Rows of text of different length, padded on the right to ``(batch, length)``; choices between, where the head takes them."""
    ids = words.tokens(length).repeat(batch, 1)
    real = torch.tensor([length - (row + 1) * length // 7 for row in range(batch)])[:, None]
    mask = torch.arange(length)[None] < real
    config = model.config
    ids = torch.where(mask, ids, config.pad_token_id or 0)
    if getattr(config, "is_encoder_decoder", False):  # heads that read the whole text in the decoder look for where it ends
        ids = ids.masked_fill(ids == config.eos_token_id, min(5, config.vocab_size - 1)).scatter(1, real - 1, config.eos_token_id)
    separator = getattr(config, "question_separator_id", None)
    if separator is not None and length > 2:  # a question, whose tokens the graph has to find
        ids = ids.index_fill(1, torch.tensor([min(length // 4, 8)]), separator)
    made = {"input_ids": ids, "attention_mask": mask.long()}
    if "token_type_ids" in names:
        made["token_type_ids"] = torch.zeros_like(ids)
    if "global_attention_mask" in names:
        made["global_attention_mask"] = (torch.arange(length)[None] < 2 + torch.arange(batch)[:, None]).long() * mask
    if "MultipleChoice" in type(model).__name__:
        made = {name: value[:, None].repeat(1, 2, 1) for name, value in made.items()}
    if "decoder_input_ids" in names:
        text_in_decoder = any(head in type(model).__name__ for head in ("SequenceClassification", "QuestionAnswering"))
        made["decoder_input_ids"] = (
            ids if text_in_decoder else ids[:, : min(max(2, length // 2), longest_decoded(model, length))].contiguous()
        )
    return made


def check_export(
    model: nn.Module,
    names: tuple[str, ...],
    outputs: tuple[str, ...],
    file: Path,
    format: str,
    words: VerificationText,
    limits: tuple[int, int],
) -> list[Check]:
    """The graph in ``file`` against the model, once for each of ``SHAPES``."""
    run = _onnx_runner(file, outputs) if format == "onnx" else _torch_runner(file)
    graph = ModelGraph(model).eval()
    compared: list[Check] = []
    for batch, length in SHAPES:
        if length < limits[0] and compared:
            length = sum(limits) // 2
        compared.append(_compare(graph, run, example_inputs(model, names, words, batch, min(max(length, limits[0]), limits[1]))))
    return compared


def _compare(graph: nn.Module, run: Runner, inputs: dict[str, Tensor]) -> Check:
    batch, length = inputs["input_ids"].shape[0], inputs["input_ids"].shape[-1]
    with torch.no_grad():
        expected = graph(**inputs)
        try:
            found = run(inputs)
        except Exception as error:  # a runtime has errors of its own
            why = f"{batch} × {length:,} tokens: the runtime cannot run it ({type(error).__name__})"
            return Check("equal to the model", FAILED, why, {"batch": batch, "length": length, "difference": None})
    worst = 0.0
    for name, want in expected.items():
        mask = inputs["attention_mask"] != 0
        rows = mask if want.shape[: mask.dim()] == mask.shape else ...  # what stands at padding means nothing
        difference = (found[name] - want)[rows].abs().max().item() / max(1.0, want[rows].abs().max().item())
        worst = max(worst, difference if difference == difference else float("inf"))
    detail = f"{batch} × {length:,} tokens with padding: largest difference {worst:.1e} of the largest output"
    status = PASSED if worst <= TOLERANCE else FAILED
    return Check("equal to the model", status, detail, {"batch": batch, "length": length, "difference": worst})


def _torch_runner(file: Path) -> Runner:
    program = torch.export.load(file).module()

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return program(**inputs)

    return run


def _onnx_runner(file: Path, outputs: tuple[str, ...]) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        given = {name: value.numpy() for name, value in inputs.items() if name in taken}  # an input without influence is no input
        return dict(zip(outputs, map(torch.from_numpy, session.run(list(outputs), given)), strict=True))

    return run
