"""The CPU's softmax engine: rows of tokens are read and added to one by one, and its operator is well formed for every source."""

from __future__ import annotations

from typing import Any

import torch

import hf_longattn.engines.dispatch  # noqa: F401  enters the sources
from hf_longattn.engines.cpu.softmax import SOURCES, Runs, cpu_softmax
from tests.cases import every_case


@every_case("runs", [
    Runs(3, 5), Runs(1, 4, 1, 0, 3), Runs(2, 4, 3, 4), Runs(2, 7, 4, 3), Runs(0, 5, 3, 1, 4), Runs(1, 4, 3, 6, 2), Runs(0, 4, 3, 3, 2),
    Runs(4, 3, 5, 0),
])  # fmt: skip
@every_case("dtype", [torch.float64, torch.bfloat16])
def test_overlapping_runs_of_tokens_are_read_and_added_to(runs: Runs, dtype: torch.dtype) -> None:
    x = torch.randn(1, 2, 20, 3, dtype=torch.float64)
    index = torch.tensor([[runs.start + row * runs.step + i * runs.stride for i in range(runs.size)] for row in range(runs.rows)])
    taken = x[0][:, index].transpose(0, 1)
    assert torch.equal(runs.of(x), taken)
    values = torch.randn(taken.shape, dtype=torch.float64).to(dtype)
    expected = x.index_add(2, index.flatten(), values.double().transpose(0, 1).flatten(1, 2)[None])
    runs.add(x, values)
    torch.testing.assert_close(x, expected)


def arguments_of(name: str) -> tuple[Any, ...]:
    """The arguments of a small call of the operator, with gradients."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 100, 8, requires_grad=True) for _ in range(3))
    learned: list[Any] = []
    if name == "band":
        learned, fixed, numbers = [torch.randn(2, 9)], [None, torch.arange(100)[None] < 3], [10, 10, 0, 1, 4]
    elif name == "distances":
        learned = [torch.randn(1, 2, 100, 3), torch.randn(1, 21, 3), torch.randn(1, 2, 100, 4), torch.randn(2, 21, 4)]
        fixed, numbers = [None, None, torch.arange(100)[None] < 3], [10, 10, 10, 0, 1, 0]
    elif name == "tiles":
        rows = torch.arange(100).view(1, 1, 10, 10)
        fixed, numbers = [None, rows, rows, rows, rows.flip(2), None, None], [-99, 99, 1, 0, -99, 99, 1, 0]
    else:
        fixed, numbers = [None, torch.randint(-1, 3, (1, 2, 100, 1))], [25, 1]
    sinks = torch.randn(2, requires_grad=True)
    return name, q, k, v, [x.requires_grad_() for x in learned], fixed, numbers, 0.3, 0.0, None, sinks


@every_case("name", ["band", "blocks", "distances", "tiles"])
def test_the_cpu_softmax_operator_is_well_formed_for_every_source(name: str) -> None:
    assert set(SOURCES) == {"band", "blocks", "distances", "tiles"}
    arguments = arguments_of(name)
    torch.library.opcheck(cpu_softmax, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
    out, _ = cpu_softmax(*arguments)
    leaves = [*arguments[1:4], *arguments[4], arguments[-1]]
    gradients = torch.autograd.grad(out.square().sum(), leaves)
    if name != "tiles":  # the same operator with other descriptions of its rows
        return
    compiled = torch.compile(lambda: cpu_softmax(*arguments)[0], backend="aot_eager", fullgraph=True)()
    torch.testing.assert_close(compiled, out)
    for found, expected, leaf in zip(torch.autograd.grad(compiled.square().sum(), leaves), gradients, leaves, strict=True):
        torch.testing.assert_close(found, expected)
        assert found.shape == leaf.shape
