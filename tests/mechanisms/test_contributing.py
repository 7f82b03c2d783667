"""The mechanisms that CONTRIBUTING.md shows: each as one file dropped in place passes the contract without another file being touched."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.fresh_processes import run_fresh

ROOT = Path(__file__).resolve().parents[2]
SECTION = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add a mechanism\n")[2].partition("\n## ")[0]
SNIPPETS = {
    re.search(r'@register_mechanism\("(\w+)"\)', code)[1]: code for code in re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)
}  # type: ignore[index]
RUN = """
import sys
import pytest
import hf_longattn.mechanisms

folder, name, *tests = sys.argv[1:]
hf_longattn.mechanisms.__path__.append(folder)
sys.exit(pytest.main(["-x", "-rP", "-p", "no:cacheprovider", "--case", name, *tests]))
"""


def contract(names: list[str], folder: Path, *tests: str) -> str:
    """What pytest says of tests for mechanisms of CONTRIBUTING.md, whose files are found as if they lay in the package."""
    for name in names:
        (folder / f"{name}.py").write_text(SNIPPETS[name], encoding="utf-8")
    done = run_fresh("-c", RUN, folder, ",".join(names), *tests, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.thorough
def test_mechanisms_dropped_in_place_equal_their_definitions(tmp_path: Path) -> None:
    covering = "tests/mechanisms/test_contract.py::test_covering_the_input_equals_full_softmax_attention"
    causal = "tests/mechanisms/test_contract.py::test_only_the_causal_form_ignores_the_future"
    said = contract(["mine", "squared_relu"], tmp_path, covering, causal, "tests/mechanisms/test_extent.py")
    _, _, ran = said.partition("_ test_only_the_causal_form_ignores_the_future _")
    assert all(f"\n{name}-True\n" in ran.partition("____")[2] for name in ("mine", "squared_relu"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mine", "squared_relu"])
def test_a_mechanism_dropped_in_place_passes_the_contract(name: str, tmp_path: Path) -> None:
    assert " passed" in contract([name], tmp_path, "tests/mechanisms/test_contract.py", "tests/memory/test_static_decoding.py")


@pytest.mark.parametrize("name", SNIPPETS)
def test_mechanisms_of_contributing_state_summary_paper_use_and_head_tensors(name: str) -> None:
    classes = [node for node in ast.parse(SNIPPETS[name]).body if isinstance(node, ast.ClassDef)]
    stated = {target.id: node.value for node in classes[-1].body if isinstance(node, ast.Assign) for target in node.targets}
    assert "per_head_tensors" in stated
    assert {keyword.arg for keyword in stated["about"].keywords} >= {"summary", "paper", "when"}
