"""The mechanisms that CONTRIBUTING.md shows: each as one file dropped in place passes the contract without another file being touched."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", name, *tests]))
"""


def contract(name: str, folder: Path, *tests: str) -> None:
    """Run tests for the mechanism of CONTRIBUTING.md, whose file is found as if it lay in the package."""
    (folder / f"{name}.py").write_text(SNIPPETS[name], encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", RUN, str(folder), name, *tests], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("name", ["mine", "squared_relu"])
def test_a_mechanism_dropped_in_place_equals_its_definition(name: str, tmp_path: Path) -> None:
    contract(
        name,
        tmp_path,
        "tests/mechanisms/test_contract.py::test_covering_the_input_equals_full_softmax_attention",
        "tests/mechanisms/test_contract.py::test_only_the_causal_form_ignores_the_future",
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mine", "squared_relu"])
def test_a_mechanism_dropped_in_place_passes_the_contract(name: str, tmp_path: Path) -> None:
    contract(name, tmp_path, "tests/mechanisms/test_contract.py")
