"""The project's size against its ceilings in pyproject.toml: ``python -m scripts.dev.tools.ceiling``.

``make lint`` prints the numbers. Only ``make size``, which continuous integration runs, fails above a ceiling: who
contributes a mechanism does not have to remove code of others for it.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import tomllib

from scripts.dev import ROOT

MANY_BRANCHES = 20
"""Maximum branches of a function that is not counted."""
SLACK = {"tokens": 5_000, "test_tokens": 10_000, "branchy_functions": 3, "conditional_expressions": 3}
"""How far below each ceiling the project may be before the ceiling has to be lowered."""
NAMES = {
    "tokens": "tokens in hf_longattn",
    "test_tokens": "tokens in tests",
    "branchy_functions": f"functions of hf_longattn with more than {MANY_BRANCHES} branches",
    "conditional_expressions": "conditional expressions per 1,000 statements of hf_longattn",
}
"""What each ceiling bounds."""
NOT_COUNTED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
"""Types of tokens that hold no code."""


def docstrings(tree: ast.AST) -> Iterator[tuple[int, int]]:
    """Line and column of each string that is a statement of a module, class or function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in node.body:
                value = statement.value if isinstance(statement, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.lineno, value.col_offset


def count_tokens(text: str) -> int:
    """Python's tokens of a module, without comments, docstrings, line ends and indentation.

    A formatted string counts as one token, as in Python 3.11; from 3.12 on ``tokenize`` takes it apart.
    """
    strings = set(docstrings(ast.parse(text)))
    count = 0
    depth = 0  # of formatted strings around a token, from Python 3.12 on
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = tokenize.tok_name[token.type]
        if name == "FSTRING_END":
            depth -= 1
        elif depth == 0 and token.type not in NOT_COUNTED and token.start not in strings:
            count += 1
        if name == "FSTRING_START":
            depth += 1
    return count


def branches(function: ast.AST) -> int:
    """Ifs, loops, handlers, conditional expressions, ``and`` and ``or`` of a function, without functions inside it."""
    count, rest = 0, list(ast.iter_child_nodes(function))
    while rest:
        node = rest.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.If | ast.For | ast.AsyncFor | ast.While | ast.IfExp | ast.ExceptHandler):
            count += 1
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += 1 + len(node.ifs)
        rest.extend(ast.iter_child_nodes(node))
    return count


def project_size(root: Path) -> dict[str, int]:
    """The number for each of :data:`NAMES`."""
    texts = [path.read_text(encoding="utf-8") for path in (root / "hf_longattn").rglob("*.py")]
    tests = [path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py")]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    conditionals = sum(isinstance(node, ast.IfExp) for node in nodes)
    statements = sum(isinstance(node, ast.stmt) for node in nodes)
    return {
        "tokens": sum(map(count_tokens, texts)),
        "test_tokens": sum(map(count_tokens, tests)),
        "branchy_functions": sum(branches(function) > MANY_BRANCHES for function in functions),
        "conditional_expressions": round(1000 * conditionals / max(1, statements)),
    }


def against_ceilings(root: Path) -> tuple[str, str]:
    """The project's numbers, a line each, and what is wrong with them or with the ceilings; "" if nothing is."""
    ceilings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hf_longattn"]["size"]
    numbers, wrong = "", ""
    for name, size in project_size(root).items():
        ceiling = ceilings[name]
        numbers += f"{size:,} {NAMES[name]}, ceiling {ceiling:,}\n"
        if size > ceiling:
            wrong += f"{NAMES[name]}: {size:,}, and the ceiling in pyproject.toml is {ceiling:,}\n"
        elif size <= ceiling - SLACK[name]:
            wrong += f"{NAMES[name]}: {size:,}; lower {name} of [tool.hf_longattn.size] in pyproject.toml to that\n"
    return numbers, wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the project's size against its ceilings.")
    parser.add_argument("--fail", action="store_true", help="exit with 1 above a ceiling, or far below it")
    numbers, wrong = against_ceilings(ROOT)
    print(numbers + wrong, end="")
    sys.exit(parser.parse_args().fail and wrong != "")
