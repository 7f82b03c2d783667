"""Many cases of a table in one test: each is seeded and patched for itself, and those that fail are listed
together."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import traceback
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch

from tests.grids import all_pairs

FAILURES = (Exception, pytest.fail.Exception)
"""What ends one case; the second is no ``Exception``."""
MOST_SHOWN = 20
"""Failed cases whose errors are printed; all are named."""
ONLY: list[str] = []
"""``--case``: only cases with one of these words in their names run, and are printed;
:func:`tests.conftest.pytest_configure` says it."""


class Cases:
    """``with Cases() as cases: for x in ...: with cases(x): ...`` runs every case, and then fails with all that
    failed."""

    def __init__(self) -> None:
        self.count, self.skipped = 0, ""
        self.failed: dict[str, BaseException] = {}

    def __enter__(self) -> Cases:
        return self

    @contextlib.contextmanager
    def __call__(self, name: object) -> Iterator[None]:
        """One case, with the seed that a test begins with."""
        torch.manual_seed(0)
        self.count += 1
        if ONLY:
            print(name)
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
            names, errors = [*self.failed], [*self.failed.values()]
            words = [
                f"{len(names)} of {self.count} cases failed: {', '.join(names)}",
                *map(told, names[:MOST_SHOWN], errors),
            ]
            raise AssertionError("\n\n".join(words)) from errors[0]
        if not self.count and self.skipped:
            pytest.skip(self.skipped)
        assert self.count, "no case ran"


def told(name: str, error: BaseException) -> str:
    """A failed case, its error, and the lines of the tests that led there."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/tests/" in frame.filename and frame.filename != __file__
    ]
    places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames]
    return f"[{name}] at {', '.join(places)}\n{type(error).__name__}: {error}"


def refuses_bf16(error: BaseException) -> bool:
    """Whether this processor computes no bf16, and the error says so."""
    from hf_longattn.engines.cpu.onednn import cpu_computes_bf16
    from hf_longattn.errors import BackendError

    return isinstance(error, BackendError) and not cpu_computes_bf16() and "computes no bf16" in str(error)


Case = tuple[tuple[str, ...], dict[str, Any], bool]
"""The words of a case's name, its arguments, and whether it is slow."""


def wanted(name: str) -> bool:
    """Whether a case, or a test without cases, is one of those that ``--case`` names."""
    return not ONLY or any(word in name for word in ONLY)


def asked_for(item: pytest.Item) -> bool:
    """Whether ``--case`` leaves something of a test."""
    table = getattr(getattr(item, "function", None), "every_case", None)
    return wanted(item.nodeid) if table is None else any(wanted("-".join(words)) for words, _, _ in table.cases)


def every_case(
    names: str | Sequence[str],
    values: Iterable[Any],
    *,
    by: str | Sequence[str] = (),
    ids: Callable[[Any], str | None] | Sequence[str] = str,
    pairs: bool = False,
    of: int = 1,
    code: Callable[..., Any] | None = None,
) -> Callable[[Any], Any]:
    """As ``pytest.mark.parametrize``, with all cases in one test, or in a test for each value of the axes ``by``.

    Cases marked slow are in a slow test of their own. Decorators on one function are multiplied, as parametrize's are.
    The fixture ``monkeypatch`` is undone after each case, ``tmp_path`` is a new folder for each, and what was captured
    before is gone; other fixtures serve all cases of a test.

    Args:
        pairs: of the product of this decorator and those below it, the quick test has every two values once; the slow
            one has the rest.
        of: the quick test runs every ``of``-th value, the slow one the rest. The name of the test says which is the
            first, so tests with the same axis take its values in turn.
        code: the code that a value runs, of its parts. Every code has a quick value; of those that share one, every
            ``of``-th is quick.
    """
    axes = [name.strip() for name in names.split(",")] if isinstance(names, str) else [*names]
    split = [by] if isinstance(by, str) else [*by]
    of_value = ids if callable(ids) else str

    def named(value: Any) -> str:
        name = of_value(value)
        return str(value) if name is None else name

    table = [_cell(axes, value, named) for value in values]
    if not callable(ids):
        table = [((name,), arguments, slow) for name, (_, arguments, slow) in zip(ids, table, strict=True)]

    def decorate(function: Any) -> Any:
        if inspect.isclass(function):
            for name in [name for name in dir(function) if name.startswith("test")]:  # also those that it inherits
                setattr(function, name, decorate(getattr(function, name)))
            return function
        own = _in_turn(table, of, code, zlib.crc32(function.__qualname__.encode()))
        below = getattr(function, "every_case", None)
        if below is None or below.test is not function:
            below = _Table(function, function, [((), {}, False)], [], [])
        product = [
            ((*there, *here), {**more, **arguments}, slow or also)
            for (there, more, slow), (here, arguments, also) in itertools.product(below.cases, own)
        ]
        sizes = [*below.sizes, len(own)]
        if pairs:
            assert not any(slow for _, _, slow in product), "pairs are chosen from cases of which none is slow yet"
            quick = {*all_pairs(*sizes)}
            indices = itertools.product(*map(range, sizes))
            product = [
                (words, values, at not in quick) for at, (words, values, _) in zip(indices, product, strict=True)
            ]
        test = _test(below.function, product, [*below.split, *split], named)
        marks = [mark for mark in getattr(function, "pytestmark", []) if mark.args[:1] != ("_group",)]
        test.pytestmark = [*marks, *getattr(test, "pytestmark", [])]
        test.every_case = _Table(test, below.function, product, sizes, [*below.split, *split])
        return test

    return decorate


def _in_turn(table: Sequence[Case], of: int, code: Callable[..., Any] | None, turn: int) -> list[Case]:
    """The cases, of which those that are not in turn are slow."""
    groups: dict[Any, list[int]] = {}
    for number, (_, arguments, slow) in enumerate(table):
        if not slow:
            groups.setdefault(code(*arguments.values()) if code else None, []).append(number)
    quick = set()
    # each begins one place later, so that a second axis is in turn, too
    for later, group in enumerate(groups.values()):
        quick.update(group[(turn + later) % min(of, len(group)) :: of])
    return [(words, arguments, number not in quick) for number, (words, arguments, _) in enumerate(table)]


@contextlib.contextmanager
def _own(fixtures: dict[str, Any], number: int) -> Iterator[dict[str, Any]]:
    """The test's fixtures for its case of this number."""
    own = dict(fixtures)
    if "tmp_path" in own:
        own["tmp_path"] = own["tmp_path"] / f"case{number}"
        own["tmp_path"].mkdir()
    for captured in {"capsys", "capfd"} & {*own}:
        own[captured].readouterr()
    if "caplog" in own:
        own["caplog"].clear()
    with pytest.MonkeyPatch.context() as patch:
        yield {**own, "monkeypatch": patch} if "monkeypatch" in own else own


class _Table(NamedTuple):
    """What a decorated test runs, for a further decorator on it."""

    test: Any
    function: Callable[..., None]
    cases: list[Case]
    sizes: list[int]
    """How many values each decorator has."""
    split: list[str]


def _cell(axes: Sequence[str], value: Any, named: Callable[[Any], str]) -> Case:
    marks: Collection[Any] = ()
    name = None
    if isinstance(value, type(pytest.param())):
        value, marks, name = value.values, value.marks, value.id
        value = value if len(axes) > 1 else value[0]
    assert all(mark.name == "slow" for mark in marks), "of the marks, a case may only be slow"
    parts = value if len(axes) > 1 else (value,)
    return (str(name),) if name else tuple(map(named, parts)), dict(zip(axes, parts, strict=True)), bool(marks)


def _test(
    function: Callable[..., None], table: Sequence[Case], split: Sequence[str], named: Callable[[Any], str]
) -> Any:
    groups: dict[str, list[Case]] = {}
    for case in table:
        _, arguments, slow = case
        words = [named(arguments[axis]) for axis in split] + (["slow"] if slow else [])
        groups.setdefault("-".join(words) or "quick", []).append(case)
    signature = inspect.signature(function)
    axes = {*table[0][1]}
    assert axes <= {*signature.parameters}, f"axes that the test does not take: {axes - {*signature.parameters}}"

    @functools.wraps(function, updated=())
    def test(*args: Any, _group: str = "quick", **fixtures: Any) -> None:
        with Cases() as cases:
            for number, (words, arguments, _) in enumerate(groups[_group]):
                if not wanted("-".join(words)):
                    cases.skipped = "no case of this name"
                    continue
                with cases("-".join(words)), _own(fixtures, number) as own:
                    function(*args, **own, **arguments)

    left = [parameter for name, parameter in signature.parameters.items() if name not in axes]
    if [*groups] == ["quick"]:
        test.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return test
    group = inspect.Parameter("_group", inspect.Parameter.KEYWORD_ONLY)
    test.__signature__ = signature.replace(parameters=[*left, group])  # type: ignore[attr-defined]
    marked = [pytest.param(name, marks=pytest.mark.slow if cases[0][2] else ()) for name, cases in groups.items()]
    return pytest.mark.parametrize("_group", marked)(test)
