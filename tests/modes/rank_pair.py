"""Two processes that stay for all cells of a session: each computes its half of the sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_longattn import errors
from hf_longattn.errors import LongAttentionError
from tests.ranks import PAIR


def fields_of_this_process(row: str, names: tuple[str, ...]) -> dict[str, Tensor] | tuple[str, str]:
    """The outputs of a cell, or the type and the sentence of its refusal."""
    from tests.modes.cells import Cell

    try:
        cell = Cell(row, *names)
        torch.manual_seed(0)
        model = cell.model()
        for way in cell.ways:
            model = way.prepare(model)
        text = cell.lay_out(model, cell.sequences())
        return {name: value.detach() for name, value in cell.call(model, text.arguments).items()}
    except LongAttentionError as error:
        return type(error).__name__, str(error)


def run_in_pair(row: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The fields of the whole batch: each process's tokens side by side, gradients of its own tokens' sum added up.

    Raises:
        LongAttentionError: both processes refused.
        AssertionError: anything else went wrong in one of them.
    """
    answers: list[Any] = PAIR.run(fields_of_this_process, row, names)
    if all(isinstance(answer, tuple) for answer in answers):
        kind, words = answers[0]
        raise getattr(errors, kind)(words)
    assert all(isinstance(answer, dict) for answer in answers), "one process refused and the other one did not"
    return {name: _joined(name, [answer[name] for answer in answers]) for name in answers[0]}


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    if name == "gradient":
        return torch.stack(parts).sum(0)
    if name in ("loss", "aux_loss") or name.startswith("router_logits"):
        for part in parts[1:]:
            torch.testing.assert_close(part, parts[0])
        return parts[0]
    return torch.cat(parts, 1)
