"""The structure of the project: which module may import which, and where a mechanism's name may be known."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hf_longattn"
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]

# Top-level modules and subpackages by layer. Each imports from lower layers only. `conversion`, `training` and `hub`
# also import one another's public names (`hf_longattn.hub`), not their files; `cli` and the scripts import everything.
LAYERS = (
    ("errors",),
    ("files", "names"),
    ("loading", "reports"),
    ("engines",),
    ("positions",),
    ("mechanisms",),
    ("configuration", "functional"),
    ("memory",),
    ("modeling",),
    ("families",),
    ("data",),
    ("evaluation",),
    ("conversion", "training", "hub"),
    ("inspect",),
    ("export",),
    ("search",),
    ("cli",),
    ("__main__",),
)
LAYER = {module: number for number, modules in enumerate(LAYERS) for module in modules}
PEERS = LAYER["conversion"]

# The same inside `conversion`: a file or folder imports from its own layer or lower ones, without cycles.
CONVERSION = (
    ("settings", "source", "running", "tokenizer"),
    ("adopt", "seeded_inputs"),
    ("architecture",),
    ("load",),
    ("plan",),
    ("folders",),
    ("check",),
    ("modality",),
    ("check_texts", "native", "sized"),
    ("images", "plain", "sounds"),
    ("towers",),
    ("convert",),
    ("__init__",),
)
# And inside `modeling`.
MODELING = (
    ("keywords", "lazy_tensor"),
    ("masks",),
    ("declared",),
    ("stock_attention", "upstream"),
    ("family",),
    ("rotation",),
    ("streaming",),
    ("backend",),
    ("attach",),
    ("costs", "inference", "losses", "memory_argument", "packed_documents", "pruning"),
    ("mixin",),
    ("grids", "multimodal", "pipelines", "sounds", "towers"),
    ("classes",),
    ("generic",),
    ("unpadding",),
    ("__init__",),
)
MODELING_LAYER = {module: number for number, modules in enumerate(MODELING) for module in modules}
CONVERSION_LAYER = {module: number for number, modules in enumerate(CONVERSION) for module in modules}
ROOMS = {"conversion": CONVERSION_LAYER, "modeling": MODELING_LAYER}

# Next to the package in a checkout, and not in the wheel.
CHECKOUT = ("scripts", "tests")

NAME_OF_MECHANISM = re.compile(r"(^|[._])mechanism([._]name)?$")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def every_import(path: Path) -> list[tuple[int, str]]:
    """(line, dotted target) of every import in a file, relative ones resolved."""
    package, found = ["hf_longattn", *path.relative_to(PACKAGE).parent.parts], list[tuple[int, str]]()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def imports(path: Path, packages: tuple[str, ...] = ("hf_longattn",)) -> list[tuple[int, str]]:
    """The imports of ``packages`` in a file."""
    return [(line, name) for line, name in every_import(path) if name.split(".")[0] in packages]


def is_module(*parts: str) -> bool:
    path = PACKAGE.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").is_file()


def forbidden(here: str, target: str) -> bool:
    module, *inner = target.split(".")[1:] or [""]
    if module == here:
        return False
    if module not in LAYER:  # a name from the package's __init__, which imports every family
        return LAYER[here] < PEERS and module != "__version__"
    if LAYER[module] == PEERS and (
        LAYER[here] == PEERS or (here, module) in (("export", "training"), ("export", "hub"))
    ):
        return is_module(module, *inner[:1]) if inner else False
    return LAYER[module] >= LAYER[here]


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_rooms_import_lower_layers_only() -> None:
    room_of = {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES}
    unknown = {*room_of.values()} - {*LAYER}
    assert not unknown, (
        f"{sorted(unknown)} are new: give them a layer in {Path(__file__).name} and in docs/architecture.md"
    )
    wrong = [
        f"{place(path, line)} imports {target}"
        for path, room in room_of.items()
        for line, target in imports(path)
        if forbidden(room, target)
    ]
    assert not wrong, "a module may import lower layers only: " + "; ".join(wrong)


@pytest.mark.parametrize("room", ROOMS)
def test_modules_of_a_room_import_lower_layers_only(room: str) -> None:
    folder, layers = PACKAGE / room, ROOMS[room]
    module_at = {path: path.relative_to(folder).parts[0].removesuffix(".py") for path in sorted(folder.rglob("*.py"))}
    unknown = {*module_at.values()} - {*layers}
    assert not unknown, f"{sorted(unknown)} are new in {room}: give them a layer in {Path(__file__).name}"
    wrong = []
    for path, here in module_at.items():
        targets = [(line, target.split(".")) for line, target in imports(path)]
        inner = [(line, parts[2]) for line, parts in targets if parts[1:2] == [room] and len(parts) > 2]
        wrong += [
            f"{place(path, line)} imports {module}"
            for line, module in inner
            if module != here and is_higher(layers, here, module)
        ]
    assert not wrong, f"a module must not import higher layers of {room}: " + "; ".join(wrong)


def is_higher(layers: Mapping[str, int], here: str, module: str) -> bool:
    return layers[module] > layers[here]


def test_the_package_imports_nothing_that_only_a_checkout_has() -> None:
    wrong = [f"{place(path, line)} {name}" for path in MODULES for line, name in imports(path, CHECKOUT)]
    assert not wrong, f"{', '.join(CHECKOUT)} import hf_longattn, never the other way round: {'; '.join(wrong)}"


REGISTRIES = {
    "mechanisms/common/registry.py": "mechanisms",
    "modeling/family/definition.py": "families",
    "evaluation/__init__.py": "evaluation.metrics",
    "training/tasks/__init__.py": "training.tasks",
}
"""The file of each registry -> the folder whose modules it imports, each of which enters itself."""
BY_NAME = {
    "names.py": "public names on first use, the modules of registries, and private modules of libraries",
    "modeling/mixin.py": "the upload of a model, and the file for trust_remote_code",
    "modeling/classes.py": "transformers' package of a family",
    "modeling/family/definition.py": "transformers' package of a family, and the family's own module",
    "modeling/family/registration.py": "what transformers' tables import on first use",
}
"""Files that import modules whose names they compute, and which ones."""
LOADER = "load_module"
"""The function of ``lazy.py`` that imports a module of a registry."""


def dynamic_imports(tree: ast.AST) -> Iterator[tuple[int, str, list[ast.expr]]]:
    """(line, function, arguments) of every import by a function, except of other packages by a constant name."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func).rpartition(".")[2]
        if function not in ("import_module", "__import__", LOADER):
            continue
        target = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
        if function == LOADER or not str(target) or str(target).startswith((".", "hf_longattn")):
            yield node.lineno, function, node.args


def test_no_import_by_name_goes_around_the_layers() -> None:
    wrong = []
    for path in MODULES:
        name = path.relative_to(PACKAGE).as_posix()
        for line, function, arguments in dynamic_imports(tree_of(path)):
            registry = REGISTRIES.get(name)
            of_registry = registry is not None and bool(arguments) and ast.unparse(arguments[0]) == repr(registry)
            if not (of_registry if function == LOADER and name != "names.py" else name in BY_NAME):
                wrong.append(place(path, line))
    assert not wrong, "import statically, move the code, or be given a function: " + "; ".join(wrong)


METHODS = {"from_pretrained", "from_config"}
CALLED = {"SentenceTransformer", "CrossEncoder", "pipeline"}
"""What loads a checkpoint, or would run its code."""


def loads(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every call that loads a checkpoint, except in a method of that name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in METHODS and ast.unparse(node.value) != "super()":
            yield node.lineno, node.attr
        elif (
            isinstance(node, ast.Call) and (name := getattr(node.func, "attr", getattr(node.func, "id", ""))) in CALLED
        ):
            yield node.lineno, name


def test_checkpoints_are_loaded_in_one_file() -> None:
    """``hf_longattn/loading.py`` says once that no code of a checkpoint runs and no pickle is read."""
    wrong = [
        f"{place(path, line)} {text}"
        for path in MODULES
        if path.name != "loading.py" or path.parent != PACKAGE
        for line, text in loads(tree_of(path))
    ]
    assert not wrong, f"load it by a function of hf_longattn/loading.py: {'; '.join(wrong)}"


def test_imports_have_no_cycles() -> None:
    """Cyclic imports, also where an import is inside a function or for types only."""
    known = {".".join(["hf_longattn", *path.relative_to(PACKAGE).with_suffix("").parts]): path for path in MODULES}
    graph = {
        name: {found for _, target in imports(path) if (found := module_of(target, known))} - {name}
        for name, path in known.items()
    }
    assert not list(cycles(graph)), "put what both need into a third file"


def module_of(target: str, known: Mapping[str, Path]) -> str | None:
    """The module that an import of ``target`` reads: itself, its package's ``__init__``, or the module that holds the
    name."""
    own = target.rpartition(".")[0]
    return next((name for name in (target, f"{target}.__init__", own, f"{own}.__init__") if name in known), None)


def cycles(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """The modules that are left after those without imports, and those that no other imports, are removed one after
    another."""
    left = dict(graph)
    while ends := [
        name
        for name, found in left.items()
        if not found & set(left) or not any(name in other for other in left.values())
    ]:
        for name in ends:
            del left[name]
    if left:
        yield sorted(left)


def test_a_mechanism_is_known_by_name_only_in_its_own_file() -> None:
    found = []
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if not (isinstance(node, ast.Compare) and NAME_OF_MECHANISM.search(ast.unparse(node.left))):
                continue
            leaves = [leaf for side in node.comparators for leaf in ast.walk(side) if isinstance(leaf, ast.Constant)]
            if any(isinstance(leaf.value, str) and leaf.value != path.stem for leaf in leaves):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert not found, f"a mechanism's behaviour belongs into its own file: {'; '.join(found)}"


def test_the_kind_of_input_is_asked_in_two_tables() -> None:
    """Elsewhere, a field of the family's spec decides, or a function of the modality."""
    asks = re.compile(r"\.reads\b|is(instance|subclass)\([^)]*(Text|Grid|Audio|Towers|Plain)Spec")
    asking = [path for path in MODULES if asks.search(path.read_text(encoding="utf-8"))]
    assert [path.relative_to(PACKAGE).as_posix() for path in asking] == [
        "conversion/convert.py",
        "conversion/towers.py",
    ]


def test_rules_of_layers_catch_imports_that_break_them() -> None:
    assert forbidden("engines", "hf_longattn.mechanisms.window")
    assert forbidden("conversion", "hf_longattn.hub.card")
    assert forbidden("conversion", "hf_longattn.export")
    assert not forbidden("conversion", "hf_longattn.hub")
    assert forbidden("evaluation", "hf_longattn.training.tasks.qa")
    assert forbidden("data", "hf_longattn.evaluation.qa_reader")
    assert not forbidden("training", "hf_longattn.evaluation.qa_reader")
    assert not forbidden("families", "hf_longattn.modeling.backend")
    assert forbidden("mechanisms", "hf_longattn.LongBertModel")
    assert not forbidden("cli", "hf_longattn.convert_checkpoint")
    assert is_higher(CONVERSION_LAYER, "source", "plan")
    assert not is_higher(CONVERSION_LAYER, "plan", "source")
    evasions = "load_module('hub', 'card'); import_module('.hub', 'hf_longattn')"
    assert len(list(dynamic_imports(ast.parse(evasions)))) == 2
    assert not list(dynamic_imports(ast.parse("importlib.import_module('deepspeed.utils')")))
    evasions = (
        "x = AutoModel.from_pretrained; partial(A.from_config, c); SentenceTransformer(name); "
        "models.CrossEncoder(name)"
    )
    assert len({text for _, text in loads(ast.parse(evasions))}) == 4
    assert not list(loads(ast.parse("super().from_pretrained(name); load_sentence_model(SentenceTransformer, name)")))
    assert list(cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})) == [["b", "c"]]


def test_no_private_name_of_a_library_is_needed_to_import_a_module() -> None:
    """Such a name may move with any version: it is looked up where it is used, so that everything else goes on without
    it."""
    wrong = []
    for path in MODULES:
        for node in tree_of(path).body:
            if (
                isinstance(node, ast.ImportFrom)
                and not node.level
                and (node.module or "").split(".")[0] in ("torch", "transformers")
            ):
                names = [f"{node.module}.{alias.name}" for alias in node.names if alias.name.startswith("_")]
                names += [f"{node.module}" for part in (node.module or "").split(".") if part.startswith("_")]
                wrong += [f"{place(path, node.lineno)} {name}" for name in names]
    assert not wrong, f"import it where it is used: {'; '.join(wrong)}"


POSIX_ONLY = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")


def test_no_module_of_posix_is_needed_to_import_a_module() -> None:
    """Windows has none of them, and everything that needs none works there."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES
        for node in tree_of(path).body
        if {name.name for name in getattr(node, "names", ())} & {*POSIX_ONLY}
        or getattr(node, "module", None) in POSIX_ONLY
    ]
    assert not wrong, f"import it where it is used: {'; '.join(wrong)}"
