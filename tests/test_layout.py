"""The shape of the project: which room may import which, who may know a mechanism's name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hf_longattn"
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]

# A room imports from lower floors only. The rooms of the top floor see one another's front door
# (`hf_longattn.hub`), never what is behind it; `cli` and the scripts stand on everything.
FLOORS = (
    ("errors", "naming"),
    ("hub_errors", "private_apis", "reading"),
    ("recipes",),
    ("engines",),
    ("positions",),
    ("mechanisms",),
    ("configuration", "attend", "explain"),
    ("memory",),
    ("backend",),
    ("modeling",),
    ("families",),
    ("evaluation",),
    ("conversion", "training", "hub"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
TOP_FLOOR = FLOOR["conversion"]

# The same inside `conversion`: a file or folder imports from its own floor or lower ones, in no circle.
CONVERSION = (
    ("config", "report", "text", "staging", "tensor_files"),
    ("sources",),
    ("long_models",),
    ("architectures",),
    ("twins",),
    ("flops", "model_loading", "pooling"),
    ("plan", "plan_tensors"),
    ("inspection", "writing"),
    ("verify", "verify_outputs"),
    ("native", "decoder_export"),
    ("convert", "revert", "export"),
    ("gguf_export", "audit"),
    ("__init__",),
)
CONVERSION_FLOOR = {room: number for number, rooms in enumerate(CONVERSION) for room in rooms}

# Beside the package in a checkout, and not in the wheel.
CHECKOUT = ("benchmarks", "research", "scripts", "tests", "tools")

NAME_OF_MECHANISM = re.compile(r"(^|[._])mechanism([._]name)?$")


def imports(path: Path, packages: tuple[str, ...] = ("hf_longattn",)) -> Iterator[tuple[int, str]]:
    """(line, dotted target) of every import of ``packages`` in a file, relative ones resolved."""
    package = ["hf_longattn", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] in packages)


def is_module(*parts: str) -> bool:
    path = PACKAGE.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").is_file()


def trespass(here: str, target: str) -> bool:
    room, *inner = target.split(".")[1:] or [""]
    if room == here:
        return False
    if room not in FLOOR:  # a name from the package's front, which imports every family
        return FLOOR[here] < TOP_FLOOR and room != "__version__"
    if FLOOR[room] == FLOOR[here] == TOP_FLOOR:
        return is_module(room, *inner[:1]) if inner else False
    return FLOOR[room] >= FLOOR[here]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert here in FLOOR, f"{here} is a new room: give it a floor in {Path(__file__).name} and in docs/architecture.md"
    wrong = [f"{path.name}:{line} imports {target}" for line, target in imports(path) if trespass(here, target)]
    assert not wrong, f"{here} may import lower floors only: {'; '.join(wrong)}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "conversion").rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_inside_conversion_go_one_way(path: Path) -> None:
    here = path.relative_to(PACKAGE / "conversion").parts[0].removesuffix(".py")
    assert here in CONVERSION_FLOOR, f"{here} is a new room of conversion: give it a floor in {Path(__file__).name}"
    targets = [(line, target.split(".")) for line, target in imports(path)]
    inner = [(line, parts[2]) for line, parts in targets if parts[1:2] == ["conversion"] and len(parts) > 2]
    wrong = [f"{path.name}:{line} imports {room}" for line, room in inner if room != here and climbs(here, room)]
    assert not wrong, f"{here} must not import higher floors of conversion: {'; '.join(wrong)}"


def climbs(here: str, room: str) -> bool:
    return CONVERSION_FLOOR[room] > CONVERSION_FLOOR[here]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_imports_nothing_that_only_a_checkout_has(path: Path) -> None:
    found = [f"{path.name}:{line} {name}" for line, name in imports(path, CHECKOUT)]
    assert not found, f"{', '.join(CHECKOUT)} import hf_longattn, never the other way round: {'; '.join(found)}"


def test_no_file_imports_itself_through_others() -> None:
    """Modules that import each other in a circle, also where the import stands in a function or is for types only."""
    known = {".".join(["hf_longattn", *path.relative_to(PACKAGE).with_suffix("").parts]): path for path in MODULES}
    graph = {name: {found for _, target in imports(path) if (found := module_of(target, known))} - {name} for name, path in known.items()}
    assert not list(circles(graph)), "put what both need into a file of its own"


def module_of(target: str, known: Mapping[str, Path]) -> str | None:
    """The module that an import of ``target`` reads: itself, its package's ``__init__``, or the module that holds the name."""
    own = target.rpartition(".")[0]
    return next((name for name in (target, f"{target}.__init__", own, f"{own}.__init__") if name in known), None)


def circles(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """What is left when modules that import nothing left, or that nothing left imports, are taken away one after another."""
    left = dict(graph)
    while ends := [name for name, found in left.items() if not found & set(left) or not any(name in other for other in left.values())]:
        for name in ends:
            del left[name]
    if left:
        yield sorted(left)


def test_a_mechanism_is_known_by_name_only_in_its_own_file() -> None:
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Compare) and NAME_OF_MECHANISM.search(ast.unparse(node.left))):
                continue
            leaves = [leaf for side in node.comparators for leaf in ast.walk(side) if isinstance(leaf, ast.Constant)]
            if any(isinstance(leaf.value, str) and leaf.value != path.stem for leaf in leaves):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert not found, f"a mechanism's behaviour belongs into its own file: {'; '.join(found)}"


def test_the_rules_catch_what_they_are_for() -> None:
    assert trespass("engines", "hf_longattn.mechanisms.window")
    assert trespass("conversion", "hf_longattn.hub.card")
    assert not trespass("conversion", "hf_longattn.hub")
    assert trespass("evaluation", "hf_longattn.training.qa")
    assert not trespass("training", "hf_longattn.evaluation.qa_features")
    assert not trespass("families", "hf_longattn.backend")
    assert trespass("mechanisms", "hf_longattn.LongBertModel")
    assert not trespass("cli", "hf_longattn.convert_checkpoint")
    assert climbs("sources", "plan")
    assert not climbs("plan", "sources")
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})) == [["b", "c"]]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_private_name_of_a_library_is_needed_to_import_a_module(path: Path) -> None:
    """Such a name may move with any version: it is looked up where it is used, so that everything else goes on without it."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in ("torch", "transformers"):
            found += [f"{path.name}:{node.lineno} {node.module}.{alias.name}" for alias in node.names if alias.name.startswith("_")]
            found += [f"{path.name}:{node.lineno} {node.module}" for part in (node.module or "").split(".") if part.startswith("_")]
    assert not found, f"import it where it is used: {'; '.join(found)}"
