"""Our stand-in for flash-linear-attention's kernel against the package: its parameters, and the package's plain
implementation.

Its source is read, since importing it takes Triton: ``pip install --no-deps flash-linear-attention fla-core einops``
    is enough.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.engines.test_linear_attention import chunk_simple_gla

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("fla", "einops")),
        reason="flash-linear-attention is not installed",
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


def test_our_stand_in_for_fla_has_the_parameters_of_its_kernel() -> None:
    tree = ast.parse(file_of("simple_gla/chunk.py").read_text())
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "chunk_simple_gla")
    assert {"q", "k", "v", "scale", "cu_seqlens"} <= {argument.arg for argument in found.args.args}
    named = [p.name for p in inspect.signature(chunk_simple_gla).parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert [argument.arg for argument in found.args.args] == named


def test_our_stand_in_for_fla_equals_its_plain_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 100, 3, width) for width in (8, 8, 16))
    before = torch.randn(2, 3, 8, 16)
    theirs = plain("simple_gla", monkeypatch).naive_recurrent_simple_gla
    expected = theirs(q, k, v, torch.zeros(2, 100, 3), scale=0.5, initial_state=before, output_final_state=True)
    out, after = chunk_simple_gla(q, k, v, scale=0.5, initial_state=before, output_final_state=True)
    torch.testing.assert_close(out, expected[0], atol=5e-2, rtol=2e-3)  # products of TF32
    torch.testing.assert_close(after, expected[1], atol=5e-2, rtol=2e-3)
