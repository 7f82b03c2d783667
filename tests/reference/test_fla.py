"""Our stand-ins for flash-linear-attention's kernels against the package: their parameters, and its own plain implementations.

Its source is read, since importing it takes Triton: ``pip install --no-deps flash-linear-attention fla-core einops`` is enough.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.engines.test_fla import chunk_gated_delta_rule, chunk_simple_gla, parallel_nsa

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("fla", "einops")), reason="flash-linear-attention is not installed"
    ),
]
IMPORTED = ("fla", "fla.ops", "fla.ops.utils", "fla.ops.utils.pooling")
"""What the plain implementations import for functions that are not called here."""


def file_of(name: str) -> Path:
    spec = importlib.util.find_spec("fla")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "ops" / name


def plain(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plain implementations of a kind of attention."""
    spec = importlib.util.spec_from_file_location("plain", file_of(f"{name}/naive.py"))
    assert spec is not None
    assert spec.loader is not None
    for module in IMPORTED:
        empty = ModuleType(module)
        vars(empty).update(prepare_chunk_offsets=None, mean_pooling=None)
        monkeypatch.setitem(sys.modules, module, empty)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize(
    ("file", "function"),
    [
        ("simple_gla/chunk.py", chunk_simple_gla),
        ("gated_delta_rule/chunk.py", chunk_gated_delta_rule),
        ("nsa/parallel.py", parallel_nsa),
    ],
)
def test_the_parameters_are_those_of_the_package(file: str, function: Callable[..., Any]) -> None:
    tree = ast.parse(file_of(file).read_text())
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function.__name__)
    assert {"q", "k", "v", "scale", "cu_seqlens"} <= {argument.arg for argument in found.args.args}
    named = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert [argument.arg for argument in found.args.args] == named


def test_linear_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 100, 3, width) for width in (8, 8, 16))
    before = torch.randn(2, 3, 8, 16)
    theirs = plain("simple_gla", monkeypatch).naive_recurrent_simple_gla
    expected = theirs(q, k, v, torch.zeros(2, 100, 3), scale=0.5, initial_state=before, output_final_state=True)
    out, after = chunk_simple_gla(q, k, v, scale=0.5, initial_state=before, output_final_state=True)
    torch.testing.assert_close(out, expected[0], atol=5e-2, rtol=2e-3)  # products of TF32
    torch.testing.assert_close(after, expected[1], atol=5e-2, rtol=2e-3)


def test_the_gated_delta_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.nn.functional.normalize(torch.randn(2, 100, 3, width), dim=-1) for width in (8, 8, 16))
    g, beta, before = -torch.rand(2, 100, 3) / 8, torch.rand(2, 100, 3), torch.randn(2, 3, 8, 16)
    theirs = plain("gated_delta_rule", monkeypatch).naive_recurrent_gated_delta_rule
    expected = theirs(q, k, v, beta, g, scale=1.0, initial_state=before.clone(), output_final_state=True)
    found = chunk_gated_delta_rule(q, k, v, g, beta, scale=1.0, initial_state=before, output_final_state=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_selected_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 90, heads, 16) for heads in (32, 2, 2))
    own = torch.arange(90) // 16
    chosen = torch.rand(2, 90, 2, 6).argsort(-1)[..., :3]
    chosen = torch.where(chosen < own[:, None, None], chosen, -1)  # as the package lists blocks: -1 is none
    listed = torch.cat([own[None, :, None, None].expand(2, -1, 2, 1), chosen], -1)
    theirs = plain("nsa", monkeypatch).naive_nsa_selection
    expected = theirs(q, k, v, listed, block_size=16, scale=0.3)
    found = parallel_nsa(q, k, v, block_indices=listed, block_counts=4, block_size=16, scale=0.3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
