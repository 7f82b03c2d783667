"""A new family is one file, and so is a new modality: examples/extend/, put in place in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn
from transformers.models.bert.configuration_bert import BertConfig

from hf_longattn.errors import OptionError
from hf_longattn.modeling.attach.attention_sites import attention_projections, own_projections
from hf_longattn.modeling.family import definition as families
from hf_longattn.modeling.family.definition import AttentionNames, Family, PositionTable
from hf_longattn.modeling.family.long_config import LongConfig
from tests.fresh_processes import run_fresh

TABLE = (PositionTable(r"position_embeddings\.weight$"),)
USE = """
import sys
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, ErnieForMaskedLM
import hf_longattn
from hf_longattn import LongErnieForMaskedLM, convert_checkpoint
from scripts.dev.tools.small_models import Shape, small_config

folder = Path(sys.argv[1])
assert Path(hf_longattn.__file__).is_relative_to(folder), hf_longattn.__file__
torch.manual_seed(0)
short = ErnieForMaskedLM(small_config("ernie", Shape(tokens=32))).eval()
short.save_pretrained(folder / "short")
convert_checkpoint(folder / "short", folder / "long", max_length=128, mechanism="window", options={"window": 64})
longer = AutoModelForMaskedLM.from_pretrained(folder / "long").eval()
assert type(longer) is LongErnieForMaskedLM and type(longer.ernie).__name__ == "LongErnieModel"
ids = torch.randint(5, 90, (2, 30))
with torch.no_grad():
    assert torch.allclose(longer(ids).logits, short(ids).logits, atol=1e-5)
    assert longer(torch.randint(5, 90, (1, 128))).logits.isfinite().all()
print(AutoConfig.from_pretrained(folder / "long").model_type)
"""


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """A copy of the package with the example in place; everything else is the repository's."""
    shutil.copytree(repository / "hf_longattn", tmp_path / "hf_longattn", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / "examples" / "extend" / "ernie.py", tmp_path / "hf_longattn" / "families")
    for name in ("tests", "pyproject.toml", "configs", "scripts", "model_cards", "docs"):
        if (repository / name).exists():
            (tmp_path / name).symlink_to(repository / name)
    return tmp_path


def run(checkout: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return run_fresh(*command, cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, timeout=3000)


def test_the_example_of_a_new_family_converts_a_checkpoint(checkout: Path) -> None:
    done = run(checkout, "-c", USE, str(checkout))
    assert done.stdout.splitlines()[-1:] == ["long_ernie"], done.stdout + done.stderr


@pytest.mark.slow
def test_the_example_of_a_new_family_passes_the_contract(checkout: Path) -> None:
    files = [
        f"tests/modeling/test_{name}.py"
        for name in ("family", "config", "loading", "mixin", "registration", "attachment")
    ]
    done = run(checkout, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--case", "ernie", *files)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert passed is not None
    assert int(passed[1]) >= 20, done.stdout


@pytest.fixture(autouse=True)
def no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests register is gone after them."""
    monkeypatch.setattr(families, "_REGISTERED", dict(families._REGISTERED))


def config_class(model_type: str | None = "long_bert", base: type = BertConfig) -> Any:
    namespace = {"__module__": __name__} | ({"model_type": model_type} if model_type else {})
    return type("LongOtherConfig", (LongConfig, base), namespace)


class OddConfig(BertConfig):
    """The config of a base in a package of its own."""

    model_type = "odd"


@pytest.mark.parametrize(
    ("config", "tables", "sentence"),
    [
        (config_class(None), TABLE, "LongOtherConfig needs model_type = 'long_bert'"),
        (BertConfig, TABLE, r"class LongNewConfig\(LongConfig, NewConfig\)"),
        (config_class(), (), "rope=True"),
    ],
)
def test_a_new_family_refuses_an_incomplete_entry(config: Any, tables: Any, sentence: str) -> None:
    with pytest.raises(OptionError, match=rf"The family in \S+ cannot be registered: .*{sentence}"):
        Family(config, tables)


@pytest.mark.parametrize(
    "content",
    [{}, {"FAMILY": families.FAMILIES["bert"]}, {"FAMILY": families.FAMILIES["roberta"], "__getattr__": None}],
)
def test_a_file_without_its_own_family_is_named(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("bert")
    vars(module).update(content, __file__="families/bert.py")
    monkeypatch.setattr(families, "load_module", lambda *_: module)
    with pytest.raises(OptionError, match=r"families/bert\.py:1 is named after the model type 'bert'"):
        families.FAMILIES["bert"]


class Odd(nn.Module):
    """Attention of a base that calls its parts as no other does."""

    def __init__(self) -> None:
        super().__init__()
        self.asking, self.w_out = nn.Linear(8, 8), nn.Linear(8, 8)


class TestAFamilyWithUnusualNames:
    def known(self, monkeypatch: pytest.MonkeyPatch, names: AttentionNames) -> Odd:
        monkeypatch.setattr(Odd, "__module__", "transformers.models.odd.modeling_odd")
        entry = Family(config_class("long_odd", OddConfig), TABLE, attention=names)
        assert families.attention_names(Odd()) is entry.attention
        return Odd()

    def test_attention_names_tell_its_projections(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert not own_projections(Odd())
        attention = self.known(monkeypatch, AttentionNames(query="asking", output="w_out"))
        assert set(own_projections(attention)) == {"query.weight", "query.bias"}
        model = nn.Module()
        model.attention = attention
        assert attention_projections(model, "attention") == ["attention.asking", "attention.w_out"]


USE_GENOMES = """
import json, sys
from pathlib import Path
import torch
from transformers import ErnieForMaskedLM
from hf_longattn import convert_checkpoint, plan_conversion
from hf_longattn.errors import OptionError
from hf_longattn.inspect import inspect_checkpoint
import genomes
from scripts.dev.tools.small_models import Shape, small_config

folder = Path(sys.argv[1])
torch.manual_seed(0)
ErnieForMaskedLM(small_config("ernie", Shape(tokens=32))).save_pretrained(folder / "short")
options = {"window": 4}
report = convert_checkpoint(folder / "short", folder / "long", max_length=128, mechanism="window", options=options)
assert report.verified and report.text == "random genomes", report
assert (report.plan["old_bases"], report.plan["new_bases"]) == (32, 128), report.plan
assert "It was made for genomes of up to 128 bases." in (folder / "long" / "README.md").read_text()
try:
    plan_conversion(folder / "short", image_size=64)
except OptionError as error:
    print(error)
print(inspect_checkpoint(folder / "long").longest_input)
"""


def test_the_example_of_a_new_modality_converts_a_checkpoint(checkout: Path, repository: Path) -> None:
    page = (repository / "docs" / "extending.md").read_text(encoding="utf-8").partition("## Add a modality")[2]
    spec = page.partition("```python\n")[2].partition("```")[0]
    shutil.copy(repository / "examples" / "extend" / "genomes.py", checkout)
    family = checkout / "hf_longattn" / "families" / "ernie.py"
    entry = "FAMILY = Family(LongErnieConfig,"
    code = family.read_text(encoding="utf-8").replace(entry, f"{spec}\n\n{entry} spec=GenomeSpec(),")
    family.write_text(code, encoding="utf-8")
    done = run(checkout, "-c", USE_GENOMES, str(checkout))
    assert done.stdout.splitlines()[-2:] == [
        "--image-size is the size of images, but a ErnieForMaskedLM reads genomes; leave it out.",
        "up to 128 bases, 128 tokens",
    ], done.stdout + done.stderr
