"""Many cells of a table in one test: each is seeded and patched for itself, and those that fail are listed together."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch

FAILURES = (Exception, pytest.fail.Exception)
"""What ends one cell; the second is no ``Exception``."""


class Cells:
    """``with Cells() as cells: for x in ...: with cells(x): ...`` runs every cell, and then fails with all that failed."""

    def __init__(self) -> None:
        self.count, self.skipped = 0, ""
        self.failed: dict[str, BaseException] = {}

    def __enter__(self) -> Cells:
        return self

    @contextlib.contextmanager
    def __call__(self, name: object) -> Iterator[None]:
        """One cell, with the seed that a test begins with."""
        torch.manual_seed(0)
        self.count += 1
        try:
            yield
        except pytest.skip.Exception as skip:
            self.skipped = str(skip)
            self.count -= 1
        except FAILURES as error:
            if refuses_bf16(error):
                self.skipped = str(error)
                self.count -= 1
            else:
                self.failed[str(name)] = error

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            return
        if self.failed:
            heading = f"{len(self.failed)} of {self.count} cells failed: {', '.join(self.failed)}"
            raise AssertionError("\n\n".join([heading, *map(told, self.failed, self.failed.values())])) from next(iter(self.failed.values()))
        if not self.count and self.skipped:
            pytest.skip(self.skipped)
        assert self.count, "no cell ran"


def told(name: str, error: BaseException) -> str:
    """A failed cell, its error, and the lines of the tests that led there."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tests/" in frame.filename][1:]
    places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames]
    return f"[{name}] at {', '.join(places)}\n{type(error).__name__}: {error}"


def refuses_bf16(error: BaseException) -> bool:
    """Whether this processor computes no bf16, and the error says so."""
    from hf_longattn.engines.cpu.onednn import cpu_computes_bf16
    from hf_longattn.errors import BackendError

    return isinstance(error, BackendError) and not cpu_computes_bf16() and "computes no bf16" in str(error)


def every_cell(
    names: str | Sequence[str], values: Iterable[Any], *, by: str | Sequence[str] = (), ids: Callable[[Any], str] = str
) -> Callable[[Callable[..., None]], Any]:
    """As ``pytest.mark.parametrize``, with all cells in one test, or in a test for each value of the axes ``by``.

    Cells marked slow are in a slow test of their own. Decorators on one function are multiplied, as parametrize's are. The fixture
    ``monkeypatch`` is undone after each cell; other fixtures serve all cells of a test.
    """
    axes = [name.strip() for name in names.split(",")] if isinstance(names, str) else [*names]
    split = [by] if isinstance(by, str) else [*by]
    table = [_cell(axes, value, ids) for value in values]

    def decorate(function: Callable[..., None]) -> Any:
        inner, below, already = getattr(function, "every_cell", (function, [((), {}, False)], []))
        product = [
            ((*there, *here), {**more, **arguments}, slow or also)
            for (there, more, slow), (here, arguments, also) in itertools.product(below, table)
        ]
        return _test(inner, product, [*already, *split], ids)

    return decorate


Cell = tuple[tuple[str, ...], dict[str, Any], bool]
"""The words of its name, its arguments, and whether it is slow."""


def _cell(axes: Sequence[str], value: Any, ids: Callable[[Any], str]) -> Cell:
    marks: Sequence[Any] = ()
    name = None
    if isinstance(value, type(pytest.param())):
        value, marks, name = value.values, value.marks, value.id
        value = value if len(axes) > 1 else value[0]
    assert all(mark.name == "slow" for mark in marks), "of the marks, a cell may only be slow"
    numbers = value if len(axes) > 1 else (value,)
    return (name,) if name else tuple(map(ids, numbers)), dict(zip(axes, numbers, strict=True)), bool(marks)


def _test(function: Callable[..., None], table: Sequence[Cell], split: Sequence[str], ids: Callable[[Any], str]) -> Any:
    groups: dict[str, list[Cell]] = {}
    slow_ones: set[str] = set()
    for cell in table:
        _, arguments, slow = cell
        name = "-".join([*(ids(arguments[axis]) for axis in split), *(["slow"] if slow else [])])
        groups.setdefault(name or "quick", []).append(cell)
        if slow:
            slow_ones.add(name)
    signature = inspect.signature(function)
    assert {*table[0][1]} <= {*signature.parameters}, "an axis that the test does not take"
    left = [parameter for name, parameter in signature.parameters.items() if name not in table[0][1]]

    @functools.wraps(function, updated=())
    def test(*args: Any, _group: str = "quick", **fixtures: Any) -> None:
        with Cells() as cells:
            for words, arguments, _ in groups[_group]:
                with cells("-".join(words)), pytest.MonkeyPatch.context() as patch:
                    function(*args, **({**fixtures, "monkeypatch": patch} if "monkeypatch" in fixtures else fixtures), **arguments)

    test.every_cell = (function, table, split)  # type: ignore[attr-defined]
    test.pytestmark = [*getattr(function, "pytestmark", [])]  # type: ignore[attr-defined]
    if [*groups] == ["quick"]:
        test.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return test
    group = inspect.Parameter("_group", inspect.Parameter.KEYWORD_ONLY)
    test.__signature__ = signature.replace(parameters=[*left, group])  # type: ignore[attr-defined]
    marked = [pytest.param(name, marks=pytest.mark.slow if name in slow_ones else ()) for name in groups]
    return pytest.mark.parametrize("_group", marked)(test)
