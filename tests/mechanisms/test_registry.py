"""What the registry takes: mechanisms as one file. What cannot work is refused in one sentence with file and line."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import sys
from pathlib import Path

import pytest
from torch import nn

from hf_longattn import LongViTConfig, list_mechanisms
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common import registry
from hf_longattn.mechanisms.common.base import Mechanism
from hf_longattn.mechanisms.common.capabilities import Capabilities
from hf_longattn.mechanisms.common.registry import prototype
from hf_longattn.mechanisms.window import Window, WindowOptions
from hf_longattn.names import module_names
from tests.cases import every_case
from tests.fresh_processes import run_fresh

HEAD = """\
import dataclasses

from hf_longattn import register_mechanism
from hf_longattn.mechanisms.common.masked import SparseMechanism
from hf_longattn.mechanisms.common.options import Options, option
from hf_longattn.mechanisms.window import Window

"""
WRONG = {
    "a missing method": (
        '@register_mechanism("half_done")\nclass HalfDone(SparseMechanism):\n    """Lacks its pattern."""\n',
        r"Mechanism 'half_done' of .*theirs\.py:9 lacks mask_mod\(\), pattern\(\); define them as MaskedMechanism",
    ),
    "a name that is taken": (
        '@register_mechanism("window")\nclass Theirs(Window):\n    """A window of theirs."""\n',
        r"Two files register the mechanism 'window': .*window\.py:\d+ and .*theirs\.py:9; rename one of them",
    ),
    "options without help": (
        "@dataclasses.dataclass(frozen=True)\nclass MineOptions(Options):\n    width: int = 3\n\n\n"
        '@register_mechanism("helpless")\nclass Mine(Window):\n    options: MineOptions\n',
        r"Option 'width' of mechanism 'helpless' at .*theirs\.py:9 has no help text; write width = option\(default",
    ),
    "an option that build_mechanism would take": (
        '@dataclasses.dataclass(frozen=True)\nclass MineOptions(Options):\n    head_dim: int = option(3, "width", '
        '"numbers")\n\n\n'
        '@register_mechanism("taken_option")\nclass Mine(Window):\n    options: MineOptions\n',
        r"Option 'head_dim' of mechanism 'taken_option' at .*theirs\.py:9 has the name of an argument of "
        r"build_mechanism or attend",
    ),
    "options that are no dataclass": (
        'class MineOptions(Options):\n    width: int = option(3, "width", "tokens")\n\n\n'
        '@register_mechanism("undecorated")\nclass Mine(Window):\n    options: MineOptions\n',
        r"The options of mechanism 'undecorated' at .*theirs\.py:9 are not a frozen dataclass derived from Options",
    ),
    "options of another kind": (
        '@register_mechanism("dict_options")\nclass Mine(Window):\n    options: dict\n',
        r"The options of mechanism 'dict_options' at builtins\.dict are not a frozen dataclass derived from Options",
    ),
    "a capability outside of the capabilities": (
        '@register_mechanism("misplaced")\nclass Mine(Window):\n    takes_globals = True\n',
        r"Mechanism 'misplaced' of .*theirs\.py:9 sets 'takes_globals' as an attribute, but it belongs in "
        r"capabilities; write ",
    ),
    "a summary outside of the facts": (
        '@register_mechanism("misplaced")\nclass Mine(Window):\n    summary = "windows"\n',
        r"sets 'summary' as an attribute, but it belongs in about; write about = About\(summary=\.\.\.\)",
    ),
    "a function": (
        '@register_mechanism("function")\ndef mine(q, k, v):\n    return v\n',
        r"Mechanism 'function' of .*theirs\.py:9 is not a class derived from Mechanism",
    ),
}


@pytest.mark.parametrize(("code", "sentence"), WRONG.values(), ids=WRONG)
def test_a_wrong_mechanism_is_refused_with_file_and_line(
    code: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = set(registry.list_mechanisms())
    (tmp_path / "theirs.py").write_text(HEAD + "\n" + code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    with pytest.raises(OptionError) as refused:
        importlib.import_module("theirs")
    assert re.search(sentence, str(refused.value)), refused.value
    assert set(registry.list_mechanisms()) == known


@every_case("name", list_mechanisms())
def test_the_words_for_the_input_of_a_mechanism_say_what_it_takes(name: str) -> None:
    """The words of its page and of ``longattn mechanisms NAME``, and what a model of images takes."""

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    if "image" in registry.input_in_words(name):
        LongViTConfig(**sizes, long_attention={"mechanism": name})
    else:
        with pytest.raises(OptionError, match="choose a mechanism on a grid"):
            LongViTConfig(**sizes, long_attention={"mechanism": name})


def test_options_that_a_mechanisms_module_does_not_define_are_refused() -> None:
    class Local(WindowOptions):
        pass

    with pytest.raises(OptionError, match="has options of Local, which its module does not define; define it there"):

        class OfLocal(Window):
            options: Local


def test_the_file_of_a_mechanism_has_the_name_of_the_mechanism(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module_names("mechanisms") == list_mechanisms()
    monkeypatch.setattr(registry, "module_names", lambda package: ["common"])
    with pytest.raises(OptionError, match=r"registers no mechanism 'common'; give the file the name of its mechanism"):
        registry._discover.__wrapped__()


def test_a_mechanism_has_few_members_and_capabilities() -> None:
    """What only some mechanisms need stands in their files, or in classes beside ``Mechanism``."""
    built = prototype("full", {})
    members = {*vars(Mechanism), *Mechanism.__annotations__, *vars(built)} - {*dir(nn.Module), *vars(nn.Module())}
    assert len({name for name in members if not name.startswith("_")} - {"finds_starts"}) <= 20
    assert len(dataclasses.fields(Capabilities)) <= 12


ROOT = Path(__file__).resolve().parents[2]
SECTION = (
    (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add a mechanism\n")[2].partition("\n## ")[0]
)
SNIPPETS = {
    "mine": SECTION.partition("```python\n")[2].partition("```")[0],
    "squared_relu": (ROOT / "examples" / "extend" / "squared_relu.py").read_text(encoding="utf-8"),
}
RUN = """
import sys
import pytest
import hf_longattn.mechanisms

folder, name, *tests = sys.argv[1:]
hf_longattn.mechanisms.__path__.append(folder)
sys.exit(pytest.main(["-x", "-rP", "-p", "no:cacheprovider", "--case", name, *tests]))
"""


def contract(names: list[str], folder: Path, *tests: str) -> str:
    """What pytest says of tests for example mechanisms, whose files are found as if they lay in the package."""
    for name in names:
        (folder / f"{name}.py").write_text(SNIPPETS[name], encoding="utf-8")
    done = run_fresh("-c", RUN, folder, ",".join(names), *tests, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.thorough
def test_mechanisms_dropped_in_place_equal_their_definitions(tmp_path: Path) -> None:
    covering = "tests/mechanisms/test_contract.py::test_covering_the_input_equals_full_softmax_attention"
    causal = "tests/mechanisms/test_contract.py::test_only_the_causal_form_ignores_the_future"
    said = contract(["mine", "squared_relu"], tmp_path, covering, causal, "tests/mechanisms/test_seen_keys.py")
    _, _, ran = said.partition("_ test_only_the_causal_form_ignores_the_future _")
    assert all(f"\n{name}-True\n" in ran.partition("____")[2] for name in ("mine", "squared_relu"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mine", "squared_relu"])
def test_a_mechanism_dropped_in_place_passes_the_contract(name: str, tmp_path: Path) -> None:
    assert " passed" in contract(
        [name], tmp_path, "tests/mechanisms/test_contract.py", "tests/memory/test_static_decoding.py"
    )


@pytest.mark.parametrize("name", SNIPPETS)
def test_mechanisms_of_contributing_state_summary_paper_use_and_head_tensors(name: str) -> None:
    classes = [node for node in ast.parse(SNIPPETS[name]).body if isinstance(node, ast.ClassDef)]
    stated = {
        target.id: node.value for node in classes[-1].body if isinstance(node, ast.Assign) for target in node.targets
    }
    assert "per_head_tensors" in stated
    assert {keyword.arg for keyword in stated["about"].keywords} >= {"summary", "paper", "when"}
