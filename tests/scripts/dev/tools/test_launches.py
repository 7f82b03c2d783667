"""Attention asks of a GPU no more than the stored table says, and the counters see what a GPU would."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from scripts.dev.benchmarks.report import machine
from scripts.dev.tools.launches import LAYERS, NAMES, ONE_OPERATION, STORED, as_on_cuda, launches, list_modes, python_calls, rows_of, table
from tests.cases import every_case

RECORD = json.loads(STORED.read_text(encoding="utf-8"))
CEILINGS = {(row["mode"], row["layer"]): row for row in RECORD["rows"]}
PYTHON_SLACK = 1.05
"""Versions of Python differ in what they call."""


def check_ceilings(mode: str) -> None:
    versions = [{name: about[name].split("+")[0] for name in ("torch", "transformers")} for about in (RECORD["machine"], machine())]
    if versions[0] != versions[1]:
        pytest.skip(f"the stored table is of {versions[0]}")
    for row in rows_of(mode):
        ceiling = CEILINGS[row["mode"], row["layer"]]
        above = {name: row[name] for name in NAMES if row[name] > ceiling[name] * (PYTHON_SLACK if "python" in name else 1)}
        assert not above, f"{row['layer']} layer: {ceiling}; if more is right, store it by python -m scripts.dev.tools.launches --write"


@every_case("mode", [mode for mode in list_modes() if mode.split(", ")[0] in LAYERS])
def test_layers_ask_no_more_of_a_gpu_than_the_table_says(mode: str) -> None:
    check_ceilings(mode)


@every_case("mode", [mode for mode in list_modes() if mode.split(", ")[0] not in LAYERS])
def test_models_ask_no_more_of_a_gpu_than_the_table_says(mode: str) -> None:
    check_ceilings(mode)


def test_the_stored_table_has_every_mode() -> None:
    assert [*dict.fromkeys(mode for mode, _ in CEILINGS)] == list_modes()
    assert table(RECORD["rows"]).count("\n") == len(list_modes()) + 1


def test_operations_and_waits_are_those_of_a_gpu() -> None:
    x, mask = torch.randn(4, 4), torch.eye(4, dtype=torch.bool)
    cases = {
        "views": (lambda: x.view(16)[None].detach(), 0, 0),
        "two operations": (lambda: (x + 1).sum(), 2, 0),
        "a number": (lambda: x.sum().item(), 1, 1),
        "a condition": (lambda: bool((x > 9).any()), 2, 1),
        "a list": (lambda: x.tolist(), 0, 1),
        "a copy, whose list and sum are on the host": (lambda: (x.detach().cpu()[0].tolist(), x.to("cpu").sum().item()), 0, 2),
        "a copy that returns": (lambda: x.cpu().to(x.device).add(1), 2, 1),
        "a list that is copied": (lambda: torch.tensor([1, 2]).to(x.device) + 1, 2, 0),
        "rows by a mask": (lambda: x[mask], 1, 1),
        "places of a mask": (lambda: mask.nonzero(), 1, 1),
        "rows by places": (lambda: x[torch.arange(2)], 2, 0),
    }
    for name, (run, operations, waits) in cases.items():
        counted, _ = launches(run)
        assert (counted.operations, counted.waits.total()) == (operations, waits), (name, counted.waits)


def test_a_fused_kernel_counts_as_one_operation_in_each_direction() -> None:
    q = torch.randn(1, 2, 8, 16, requires_grad=True)
    with as_on_cuda():
        forward, out = launches(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
        backward, _ = launches(lambda: out.backward(torch.ones_like(q)))
    assert forward.operations == 1
    assert backward.operations == 1 + 1 + 2, "the ones, the kernel, and the sum of three gradients"
    assert not forward.waits + backward.waits
    assert ONE_OPERATION.counting is None


def test_python_calls_are_those_of_functions_inside() -> None:
    def outer() -> int:
        return inner() + inner()

    def inner() -> int:
        return len(Counter())

    calls, result = python_calls(outer)
    assert result == 0
    assert calls >= 2
    assert python_calls(lambda: 1) == (0, 1)
