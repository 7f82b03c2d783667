"""A new kind of input is one file beside that of its family: the example of CONTRIBUTING.md, put in place in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.warm import run_fresh

USE = """
import os
import sys
from pathlib import Path
import pytest
import torch
from transformers import AutoModel, DecisionTransformerConfig, DecisionTransformerModel
import hf_longattn
from hf_longattn import LongAttentionError, convert_checkpoint, diagnose, export_checkpoint
from hf_longattn.conversion import plan_conversion
from hf_longattn.search import choose_mechanisms

folder = Path(sys.argv[1])
assert Path(hf_longattn.__file__).is_relative_to(folder), hf_longattn.__file__
torch.manual_seed(0)
config = DecisionTransformerConfig(hidden_size=32, n_head=2, n_layer=2, n_positions=96, state_dim=5, act_dim=3, vocab_size=1)
DecisionTransformerModel(config).save_pretrained(folder / "short")
report = convert_checkpoint(folder / "short", folder / "wide", max_length=128, mechanism="window", options={"window": 1024})
checks = {check.name: check.status for check in report.checks}
assert checks["equal where the mechanism covers the input"] == "passed", checks
assert checks["equal at the new length with full attention"] == checks["at the new length"] == "passed", checks
convert_checkpoint(folder / "short", folder / "long", max_length=128, mechanism="window", options={"window": 64})
model = AutoModel.from_pretrained(folder / "long").eval()
assert type(model).__name__ == "LongDecisionTransformerModel" and model.config.long_steps == 128
card = (folder / "long" / "README.md").read_text()
assert "It was made for trajectories of 128 steps" in card
code = card.partition("```python\\n")[2].partition("```")[0]
exec(code, {})
with pytest.raises(LongAttentionError, match="takes --max-length of 32 to 4,096 steps, not 5,000"):
    plan_conversion(folder / "short", max_length=5000)
with pytest.raises(LongAttentionError, match="reads trajectories; give the number of steps as --max-length 1024"):
    plan_conversion(folder / "short", image_size=64)
with pytest.raises(LongAttentionError, match="Mechanisms are not compared on trajectories"):
    plan_conversion(folder / "short", mechanism="auto", choose=choose_mechanisms)
with pytest.raises(LongAttentionError, match="reads trajectories and no text; look at"):
    diagnose(folder / "long", "a text " * 50)
with pytest.raises(LongAttentionError, match="Models of trajectories are not exported"):
    export_checkpoint(folder / "long", folder / "graph", format="torch")
os.chdir(folder / "trial")
exec(Path("trial.py").read_text(), {})
"""


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """A copy of the package with both files of the example in place."""
    section = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add a kind of input\n")[2].partition("\n## ")[0]
    family, kind, trial = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    shutil.copytree(repository / "hf_longattn", tmp_path / "hf_longattn", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "hf_longattn" / "families" / "decision_transformer.py").write_text(family, encoding="utf-8")
    (tmp_path / "hf_longattn" / "inputs" / "trajectory.py").write_text(kind, encoding="utf-8")
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "trial.py").write_text(trial, encoding="utf-8")
    for name in ("tests", "pyproject.toml", "configs", "scripts", "model_cards", "docs"):
        (tmp_path / name).symlink_to(repository / name)
    return tmp_path


def run(checkout: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return run_fresh(*command, cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, timeout=3000)


def test_the_example_is_converted_and_what_it_leaves_out_is_refused(checkout: Path) -> None:
    done = run(checkout, "-c", USE, str(checkout))
    assert done.stdout.splitlines()[-1:] == ["passed finite at the new length"], done.stdout + done.stderr
    assert "needs training" not in done.stdout


@pytest.mark.slow
def test_the_example_passes_the_contract(checkout: Path) -> None:
    done = run(
        checkout, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "decision_transformer", "tests/inputs/test_contract.py"
    )
    assert "4 passed" in done.stdout, done.stdout + done.stderr
