"""Private names of torch, transformers and peft: all in one module, each seen in these versions, and each missed in a sentence."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import PreTrainedConfig

from hf_longattn.private_apis import DECLARED, PRIVATE_APIS, TESTED

HOME = "hf_longattn/private_apis.py"
FOLDERS = ("hf_longattn", "scripts")
OTHERS = {"_replace", "_asdict", "_actions", "_action_groups", "_group_actions", "_optionals", "_exit"}
"""Private by their spelling only (of a namedtuple, of os), or argparse's."""
LISTED = {part for api in PRIVATE_APIS.values() for where in api.where for part in re.split("[.:]", where) if part.startswith("_")}
HOOKS = {where.rpartition(".")[2] for where in PRIVATE_APIS["model_hooks"].where}
NAMED_ONLY = LISTED | {"_is_hf_initialized", "_modules", "TENSOR_PROCESSORS"}


def resolve(where: str) -> Any:
    """The object at ``"module:attribute.attribute"``; what modules have as instances only is looked up on one."""
    module, _, names = where.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = found() if found in (nn.Module, PreTrainedConfig) and not hasattr(found, name) else found
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("name", PRIVATE_APIS)
def test_each_is_in_the_installed_versions(name: str) -> None:
    if PRIVATE_APIS[name].library in ("peft", "sentence_transformers"):
        pytest.importorskip(PRIVATE_APIS[name].library)
    for where in PRIVATE_APIS[name].where:
        resolve(where)


def test_the_versions_are_those_that_are_tested(repository: Path) -> None:
    """The lowest by ``make test-lowest``, the pinned ones by every other run."""
    allowed, pinned = ((repository / file).read_text(encoding="utf-8") for file in ("pyproject.toml", "constraints.txt"))
    for library, (first, last) in TESTED.items():
        library = library.replace("_", "-")
        assert re.search(rf'"{library}>={re.escape(first)}[",]', allowed), f"{library} {first}"
        assert re.search(rf"^{library}=={re.escape(last)}\.", pinned, re.MULTILINE), f"{library} {last}"


def trees(repository: Path) -> Iterator[tuple[str, ast.Module]]:
    for folder in FOLDERS:
        for path in sorted((repository / folder).rglob("*.py")):
            yield path.relative_to(repository).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def names_of_ours(tree: ast.Module) -> Iterator[str]:
    """Private names that a file defines: functions, classes, variables, attributes and fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            yield node.attr


def touched(tree: ast.Module, ours: set[str]) -> Iterator[tuple[int, str]]:
    """(line, name) of every private name of another package that a file uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = node.attr
            if name == "_check" and ast.unparse(node.value) != "torch":
                continue
            if name in LISTED or (name.startswith("_") and not name.startswith("__") and name not in ours | OTHERS):
                yield node.lineno, name
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in (*TESTED, "torch"):
            private = [name for name in [*(node.module or "").split("."), *(alias.name for alias in node.names)] if name.startswith("_")]
            yield from ((node.lineno, name) for name in private if name != "__version__")
        elif isinstance(node, ast.Constant) and node.value in NAMED_ONLY:
            yield node.lineno, str(node.value)
        elif isinstance(node, ast.FunctionDef) and node.name in HOOKS:
            yield node.lineno, node.name


def test_no_other_module_touches_one(repository: Path) -> None:
    read = dict(trees(repository))
    ours = {name for file, tree in read.items() if file != HOME for name in names_of_ours(tree) if name.startswith("_")} - LISTED
    found = [f"{file}:{line} {name}" for file, tree in read.items() if file != HOME for line, name in touched(tree, ours)]
    assert not [one for one in found if one.split()[1] not in DECLARED], f"ask {HOME} for it"
    assert list(touched(read[HOME], ours)), "this very test finds them"


USES = """
import contextlib, functools, importlib, logging, types
import torch, transformers
from torch import nn
from transformers import PreTrainedConfig
from hf_longattn import errors, private_apis as apis
from tests.test_private_apis import resolve

messages = []
handler = logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
apis.logger.addHandler(handler)

class Without:
    def __init__(self, whole, gone):
        self.__dict__.update(whole=whole, gone=gone)
    def __getattr__(self, name):
        if name == self.gone:
            raise AttributeError(name)
        return getattr(self.whole, name)

@contextlib.contextmanager
def removed(where):
    module, _, names = where.partition(":")
    path, _, name = names.rpartition(".")
    owner = resolve(f"{module}:{path}") if path else importlib.import_module(module)
    if (space := next((space for space in ("aten", "mkldnn", "onednn") if owner is getattr(torch.ops, space)), None)) is not None:
        setattr(torch.ops, space, Without(owner, name))
        yield
        setattr(torch.ops, space, owner)
    elif name in vars(owner):
        kept = vars(owner)[name]
        delattr(owner, name)
        yield
        setattr(owner, name, kept)
    else:  # inherited, or set by __init__
        def gone(self):
            raise AttributeError(name)
        setattr(owner, name, property(gone))
        yield
        delattr(owner, name)

def auto_table():
    from transformers.models.auto import modeling_auto
    return apis.lazy_mappings(modeling_auto)

ones = torch.ones(2)
BY_TYPE = (
    "tokenizer_overrides", "awq_scales", "response_templates", "standalone_encoders", "prompt_adapters", "expert_adapters"
)
USES = {
    "cpu_flash": lambda: apis.aten("cpu_flash")(ones),
    "pair_scores": lambda: __import__("hf_longattn.engines.topk", fromlist=[""]).pair_scores(
        torch.ones(1, 1, 2, 3), torch.ones(1, 1, 4, 3), torch.zeros(1, 1, 2, 1, dtype=torch.long)
    ),
    "packed_linear": lambda: apis.pack_weight(torch.ones(2, 2)),
    "int8_linear": lambda: apis.int8_product(ones, ones, ones, ones, torch.float32),
    "amx": apis.has_amx,
    "in_backward": apis.in_backward,
    "func_transforms": apis.func_transforms,
    "context_parallel": lambda: apis.leave_context_parallelism(__import__("accelerate").Accelerator(cpu=True)),
    "assert_in_graph": lambda: apis.assert_in_graph(torch.tensor(True), "no"),
    "assume_in_graph": lambda: apis.assume_in_graph(True),
    "scan_in_graph": lambda: apis.scan_in_graph(lambda state, entries: (state, entries[0]), [ones], [ones]),
    "trace_errors": apis.trace_errors,
    "compile_errors": apis.compile_errors,
    "floats_as_constants": apis.floats_as_constants,
    "tensor_version": lambda: apis.tensor_version(ones),
    "storage_offset": lambda: apis.storage_offset(ones),
    "has_hooks": lambda: apis.has_hooks(types.SimpleNamespace()),
    "parameter_dict": lambda: apis.replace_parameters(types.SimpleNamespace(), dict),
    "attention_implementation": lambda: apis.attention_implementation(types.SimpleNamespace()),
    "attentions_collected": apis.attentions_collected,
    "record_outputs": lambda: apis.record_outputs(transformers.BertModel),
    "initialised": lambda: None,
    "tied_weights": lambda: apis.tie_parameters(types.SimpleNamespace(), {}),
    "lazy_mapping": auto_table,
    "load_weights": lambda: apis.with_loader(transformers.BertModel, print),
    "model_hooks": lambda: apis.can_set_implementation(types.SimpleNamespace()),
    "gguf_readers": apis.gguf_readers,
    "run_epoch": apis.epochs_can_be_skipped,
    "target_modules": lambda: apis.target_module_tables(types.ModuleType("constants")),
    **{name: functools.partial(apis.model_type_table, name, types.ModuleType("module")) for name in BY_TYPE},
}
# given something that lacks it
INSTANCES = ("has_hooks", "attention_implementation", "parameter_dict", "tied_weights", "model_hooks", "target_modules", *BY_TYPE)
"""


def test_without_one_there_is_a_sentence(repository: Path) -> None:
    """Each is removed in a separate process."""
    code = (
        USES
        + """
assert USES.keys() == apis.PRIVATE_APIS.keys()
transformers.BertModel, transformers.AutoModel
import transformers.modeling_gguf_pytorch_utils, transformers.utils.output_capturing
for name, api in apis.PRIVATE_APIS.items():
    if name == "initialised":
        continue
    messages.clear()
    with contextlib.nullcontext() if name in INSTANCES else removed(api.where[0]):
        try:
            USES[name]()
        except errors.BackendError as error:
            messages.append(str(error))
    assert len(messages) == 1, (name, messages)
    assert api.sentence() == messages[0] or name == "model_hooks", messages
    print(messages[0])
"""
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sentences = done.stdout.splitlines()
    assert len(sentences) == len(PRIVATE_APIS) - 1
    for sentence in sentences:
        assert re.search(r"has no .*, needed to .*; .*\. hf_longattn is tested with", sentence), sentence


def test_nothing_private_is_needed_to_import_the_package(repository: Path) -> None:
    code = (
        USES
        + """
import pkgutil, sys
sys.modules["torchao"] = None  # needs some of the names itself
with contextlib.ExitStack() as stack:
    for name, api in apis.PRIVATE_APIS.items():
        if name not in (*INSTANCES, "initialised", "lazy_mapping", "record_outputs"):  # which transformers itself needs
            for where in api.where:
                if not where.startswith(("transformers:", "torch:_check", "torch:_assert", "torch:_C", "torch:Tensor")):
                    stack.enter_context(removed(where))
    import hf_longattn
    skipped = ("__main__",)
    for found in pkgutil.walk_packages(hf_longattn.__path__, "hf_longattn."):
        if not found.name.endswith(skipped):
            importlib.import_module(found.name)
print("imported")
"""
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["imported"], done.stdout + done.stderr
