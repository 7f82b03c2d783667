"""Questions about source code whose answers Python's own parser knows.

* *argument → parameter*: "In `edge_connectivity`, which parameter receives `nodes[i + 1]`?" The answer is the name in the parameter list of
  the called function. The question names neither that function nor the parameter: a reader has to find the call in the named function, then
  the ``def`` of what is called, then the parameter at the argument's place.
* *origin of a base class*: "Which module does the base class of `Graph` come from?" The answer is ``module`` in
  ``from module import Base``.

Every answer is derived from ``ast``, never guessed; what is not certain is left out.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

LONGEST_ARGUMENT = 60
"""Characters of an argument that is asked for."""
LEAST_PARAMETERS = 3
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_NO_FUNCTION = {"property", "cached_property", "setter", "getter", "deleter", "overload"}
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SCOPES = (*_FUNCTIONS, ast.ClassDef, ast.Lambda)


@dataclass(frozen=True)
class Question:
    """A question with its gold answer in one document.

    Attributes:
        kind: "argument" or "base".
        text: the question.
        answer: the span of the document that answers it, at the end of the trail.
        trail: the characters that a reader passes on its way: the argument in the call, the name that is called, that name in its
            ``def``, the parameter (base class: the class, its base, the imported name, the module).
    """

    kind: str
    text: str
    answer: str
    trail: tuple[int, ...]


@dataclass
class Parsed:
    """Source text with its syntax tree and what is asked about it.

    Attributes:
        text: the document.
        tree: its module.
        nodes: all nodes of the tree.
        lines: the first character of every line.
        functions: qualified name (``f``, or ``Class.f`` for methods) to its definitions.
        classes: name to its definitions.
        owner: a method's class.
        bound: how often each name is bound, anywhere in the document.
    """

    text: str
    tree: ast.Module
    nodes: list[ast.AST]
    lines: list[int]
    functions: dict[str, list[_Function]] = field(default_factory=dict)
    classes: dict[str, list[ast.ClassDef]] = field(default_factory=dict)
    owner: dict[_Function, ast.ClassDef] = field(default_factory=dict)
    bound: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def of(text: str) -> Parsed | None:
        """Parse ``text``; None if it is not Python."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in old sources
                tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            return None
        parsed = Parsed(text, tree, list(ast.walk(tree)), lines=[0, *(match.end() for match in re.finditer("\n", text))])
        parsed._visit(tree, None)
        for node in parsed.nodes:
            parsed.bound.update(_bound_names(node))
        return parsed

    def offset(self, line: int, column: int) -> int:
        """The character at a 1-based line and a column in bytes of UTF-8, as ``ast`` counts them."""
        start = self.lines[line - 1]
        stretch = self.text[start : start + column]
        return start + (column if stretch.isascii() else len(self.text[start:].encode()[:column].decode()))

    def start(self, node: ast.AST) -> int:
        """The first character of a node."""
        return self.offset(node.lineno, node.col_offset)  # type: ignore[attr-defined]

    def source(self, node: ast.expr) -> str:
        """The text of an expression."""
        return self.text[self.start(node) : self.offset(node.end_lineno or 0, node.end_col_offset or 0)]

    def name_start(self, definition: _Function | ast.ClassDef) -> int:
        """The first character of the name after ``def`` or ``class``; -1 where it is not on the same line."""
        match = re.compile(r"(?:async[ \t]+def|def|class)[ \t]+").match(self.text, self.start(definition))
        return match.end() if match and self.text.startswith(definition.name, match.end()) else -1

    def _visit(self, node: ast.AST, owner: ast.ClassDef | None) -> None:
        """Fill functions and classes; a method belongs to the class whose body it is in."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, _FUNCTIONS):
                name = f"{owner.name}.{child.name}" if owner else child.name
                self.functions.setdefault(name, []).append(child)
                if owner:
                    self.owner[child] = owner
                self._visit(child, None)
            elif isinstance(child, ast.ClassDef):
                self.classes.setdefault(child.name, []).append(child)
                self._visit(child, child)
            else:
                self._visit(child, owner if isinstance(child, ast.stmt) else None)


def _bound_names(node: ast.AST) -> list[str]:
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        return [node.id]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    if isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
        return [node.name]
    return []


def argument_questions(parsed: Parsed) -> Iterator[Question]:
    """Yield every argument → parameter question about calls of functions that the file itself defines, by name or as ``self.method``."""
    defined = Counter(node.name for node in parsed.nodes if isinstance(node, (*_FUNCTIONS, ast.ClassDef)))
    for caller_name, callers in parsed.functions.items():
        caller = callers[0]
        receiver = receiver_of(caller) if caller in parsed.owner else None
        calls = [node for node in ast.walk(caller) if isinstance(node, ast.Call)]
        asked = Counter(parsed.source(value) for call in calls for value in (*call.args, *(keyword.value for keyword in call.keywords)))
        for call in own_calls(caller) if len(callers) == 1 else ():
            found = callee_of(parsed, call, parsed.owner.get(caller), receiver, defined)
            if found is not None and found[0] is not caller:
                yield from _of_call(parsed, caller_name, call, *found, asked)


def own_calls(function: _Function) -> Iterator[ast.Call]:
    """Yield the calls in a function's body, without those of functions inside it."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.Call):
            yield node
        if not isinstance(node, _SCOPES):
            pending.extend(ast.iter_child_nodes(node))


def receiver_of(method: _Function) -> str | None:
    """The name of a method's own object; None for static and class methods."""
    positional = [*method.args.posonlyargs, *method.args.args]
    return positional[0].arg if positional and not {"staticmethod", "classmethod"} & decorators(method) else None


def decorators(function: _Function) -> set[str]:
    """The last names of the decorators: ``abc.abstractmethod`` and ``cache(3)`` give abstractmethod and cache."""
    nodes = [node.func if isinstance(node, ast.Call) else node for node in function.decorator_list]
    return {node.attr if isinstance(node, ast.Attribute) else node.id for node in nodes if isinstance(node, (ast.Attribute, ast.Name))}


def callee_of(
    parsed: Parsed, call: ast.Call, owner: ast.ClassDef | None, receiver: str | None, defined: Counter[str]
) -> tuple[_Function, int] | None:
    """The only function that the call can mean, and the character of its name in the call; None if that is not certain."""
    function = call.func
    if isinstance(function, ast.Name):
        name = function.id
        if defined[name] != 1 or parsed.bound[name] != 1 or name not in parsed.functions:
            return None
        callee = parsed.functions[name][0]
        if callee not in parsed.tree.body:
            return None
    elif isinstance(function, ast.Attribute) and owner is not None:
        name = function.attr
        if not isinstance(function.value, ast.Name) or function.value.id != receiver:
            return None
        methods = [node for node in ast.walk(owner) if isinstance(node, _FUNCTIONS) and node.name == name]
        if len(methods) != 1 or parsed.owner.get(methods[0]) is not owner or len(parsed.classes[owner.name]) > 1:
            return None
        callee = methods[0]
    else:
        return None
    at = parsed.offset(function.end_lineno or 0, function.end_col_offset or 0) - len(name)
    return None if decorators(callee) & _NO_FUNCTION or parsed.name_start(callee) < 0 else (callee, at)


def bind(call: ast.Call, function: _Function, *, bound_method: bool) -> list[tuple[ast.expr, ast.arg]] | None:
    """Pair the positional arguments of a call with the parameters that receive them, as Python does.

    Arguments after ``*values`` are left out, since their place is not known; keyword arguments name their parameter themselves.

    Returns:
        The pairs; None if Python would refuse the call.
    """
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args][1 if bound_method else 0 :]
    pairs: list[tuple[ast.expr, ast.arg]] = []
    for place, value in enumerate(call.args):
        if isinstance(value, ast.Starred):
            break
        if place < len(positional):
            pairs.append((value, positional[place]))
        elif arguments.vararg:
            pairs.append((value, arguments.vararg))
        else:
            return None
    received = {parameter.arg for _, parameter in pairs}
    by_name = {parameter.arg for parameter in (*arguments.args, *arguments.kwonlyargs)}
    for keyword in call.keywords:
        if keyword.arg in received and keyword.arg in by_name:
            return None
        if keyword.arg is not None and keyword.arg not in by_name and arguments.kwarg is None:
            return None
    return pairs


def _of_call(parsed: Parsed, caller: str, call: ast.Call, callee: _Function, name_at: int, asked: Counter[str]) -> Iterator[Question]:
    bound_method = callee in parsed.owner and "staticmethod" not in decorators(callee)
    parameters = _parameters(callee)[1 if bound_method else 0 :]
    if len(parameters) < LEAST_PARAMETERS:
        return
    for value, parameter in bind(call, callee, bound_method=bound_method) or ():
        text = parsed.source(value)
        if _askable(text, parameter.arg, asked):
            trail = (parsed.start(value), name_at, parsed.name_start(callee), parsed.start(parameter))
            yield Question("argument", f"In `{caller}`, which parameter receives `{text}`?", parameter.arg, trail)


def _parameters(function: _Function) -> list[ast.arg]:
    """All parameters in the order of the list."""
    found = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs, function.args.vararg, function.args.kwarg]
    return sorted((node for node in found if node is not None), key=lambda node: (node.lineno, node.col_offset))


def _askable(argument: str, parameter: str, asked: Counter[str]) -> bool:
    """Whether an argument is asked for: it shares no word with its parameter, is short, is passed once in the function; and its
    parameter's name is none that SQuAD's normalisation deletes."""
    short = "\n" not in argument and "`" not in argument and len(argument) <= LONGEST_ARGUMENT
    named = parameter.strip("_") and parameter.strip("_").lower() not in ("a", "an", "the")
    return bool(short and named) and asked[argument] == 1 and not words(argument) & words(parameter)


def words(text: str) -> set[str]:
    """The lower-case words of identifiers, split at underscores and capitals."""
    return {word.lower() for word in WORD.findall(text)}


def base_questions(parsed: Parsed) -> Iterator[Question]:
    """Yield a question for every class with a single base class that ``from module import`` brings."""
    imports: dict[str, list[tuple[ast.ImportFrom, ast.alias]]] = {}
    for node in parsed.nodes:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                imports.setdefault(alias.asname or alias.name, []).append((node, alias))
    for name, classes in parsed.classes.items():
        base, at = classes[0].bases[0] if len(classes[0].bases) == 1 else None, parsed.name_start(classes[0])
        if len(classes) > 1 or at < 0 or not isinstance(base, ast.Name) or base.id not in imports or parsed.bound[base.id] > 1:
            continue
        statement, alias = imports[base.id][0]
        module = "." * statement.level + (statement.module or "")
        match = re.compile(r"from[ \t]+([\w.]+)[ \t]+import\b").match(parsed.text, parsed.start(statement))
        if match is None or match[1] != module or not module.strip(".") or words(name) & words(module) or name in module:
            continue
        trail = (at, parsed.start(base), parsed.start(alias), match.start(1))
        yield Question("base", f"Which module does the base class of `{name}` come from?", module, trail)
